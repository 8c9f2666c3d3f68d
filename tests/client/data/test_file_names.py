"""File names in an encoding other than UTF-8, as old Windows shares and archives have them."""

import logging
import os
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from client.cli.main import main
from client.config import CacheConfig, FoldersData, GroupedSplit, load_site
from client.data.manifest import Manifest
from client.data.readers import read
from client.data.readers.image_list import listed, write_list
from client.data.splitting.kept_split import kept
from client.data.store import ImageStore
from client.governance.image_hashes import token
from client.images import Preprocessing
from client.preflight import data as preflight
from client.preflight import html_page
from common import log

CLASSES = ("mel", "nv")


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """Ten images of each of two classes, called f\\xfcnf_0.png to f\\xfcnf_9.png in Latin-1."""
    for number in range(20):
        folder = tmp_path / "images" / CLASSES[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (64, 64, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(folder / os.fsdecode(b"f\xfcnf_%d.png" % (number // 2)))
    settings = {
        "name": "north",
        "data": {"kind": "folders", "root": "images"},
        "state_dir": "state",
        "threads": 1,
    }
    (tmp_path / "site.yaml").write_text(yaml.safe_dump(settings))
    return tmp_path / "site.yaml"


@pytest.fixture
def manifest(site: Path) -> Manifest:
    return read.read(load_site(site).data, CLASSES)


def test_check_prints_them_and_makes_its_page(
    site: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("common.log.start", lambda *_: None)
    page = site.parent / "page.html"
    (site.parent / "images" / "mel" / os.fsdecode(b"caf\xe9.png")).write_bytes(b"no picture")
    assert main(["check", str(site), "--html", str(page)]) == 1
    assert "21 images" in capsys.readouterr().out
    assert b"caf\\udce9.png" in page.read_bytes()


def test_the_page_shows_the_same_samples_again(site: Path) -> None:
    report = preflight.check(load_site(site), CLASSES)
    now = datetime(2026, 1, 1).astimezone()
    assert html_page.page(report, now) == html_page.page(report, now)


def test_a_split_is_drawn_kept_and_read_again(manifest: Manifest, tmp_path: Path) -> None:
    first = kept(manifest, GroupedSplit(), tmp_path / "state")
    assert len(first.on("test")) == 4
    assert kept(manifest, GroupedSplit(), tmp_path / "state") == first


def test_their_images_are_decoded_and_kept(manifest: Manifest, tmp_path: Path) -> None:
    split = kept(manifest, GroupedSplit(), tmp_path / "state")
    preprocessing = Preprocessing(image_size=32, mean=(0.5,) * 3, std=(0.5,) * 3, interpolation="bilinear")
    store = ImageStore.build(split, preprocessing, CacheConfig(memory_mib=0), tmp_path / "state")
    assert [sum(store.class_counts(side)) for side in ("train", "validation", "test")] == [14, 2, 4]


def test_a_list_of_images_names_them_and_finds_them_again(manifest: Manifest, tmp_path: Path) -> None:
    write_list(tmp_path / "list.csv", manifest.rows)
    rows, problems = listed(manifest.rows, tmp_path / "list.csv")
    assert len(rows) == 20
    assert problems == []


def test_simulated_sites_are_written_and_read(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("common.log.start", lambda *_: None)
    home = site.parent / os.fsdecode(b"h\xe4user")
    (home / "north").mkdir(parents=True)
    (site.parent / "images").rename(home / "north" / "data")
    for name in CLASSES:
        (home / "north" / "data" / name).rename(home / "north" / name)
    (home / "north" / "data").rmdir()
    assert main(["simulate", "--data", str(home), "--out", str(site.parent / "sites")]) == 0
    written = load_site(site.parent / "sites" / "north.yaml")
    assert isinstance(written.data, FoldersData)
    assert len(read.read(written.data, CLASSES).rows) == 20


@pytest.mark.parametrize(
    "formatter", [log.ReadableFormatter(), log.JsonFormatter()], ids=["readable", "json"]
)
def test_a_line_of_the_log_is_text_that_every_file_takes(formatter: logging.Formatter) -> None:
    """Formatted here, not logged: half a character in pytest's own capture breaks the report of a parallel run."""
    name = os.fsdecode(b"f\xfcnf")
    line = formatter.format(logging.LogRecord("consilium", logging.INFO, "", 0, name, None, None))
    assert "udcfcnf" in line
    assert line.encode()


def test_their_group_has_a_hash_of_its_own() -> None:
    assert token(b"key", os.fsdecode(b"f\xfcnf")) != token(b"key", os.fsdecode(b"f\xf6nf"))

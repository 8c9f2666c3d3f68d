"""Joining data sets into one federation: classes, images that two of them have, and what is written."""

import logging
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from client.cli.main import main
from client.config import load_site
from client.data.readers import read
from client.data.simulation.join import join
from common.errors import ConfigError, SiteDataError


def picture(seed: int, size: int = 96) -> Image.Image:
    """Smooth random blobs, unlike those of any other seed."""
    coarse = np.random.default_rng(seed).integers(0, 255, (6, 6, 3), np.uint8)
    return Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC)


def data_set(folder: Path, images: dict[str, int], more: str = "") -> Path:
    """A data set in folders, `CLASS/FILE` to the seed of its picture, and the YAML that reads it."""
    for name, seed in images.items():
        path = folder / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(seed).save(path)
    path = folder / "site.yaml"
    path.write_text(
        f"name: whole\nstate_dir: state\ndata:\n  kind: folders\n  root: images\n{more}", encoding="utf-8"
    )
    return path


HAM = {"mel/a1.png": 1, "mel/a2.png": 2, "nv/a3.png": 3, "nv/a4.png": 4}
ISIC = {"mel/b1.png": 11, "nv/b2.png": 12, "nv/b3.png": 13}


def test_every_data_set_becomes_a_site_that_is_read_as_its_yaml_says(tmp_path: Path) -> None:
    parts = {"ham": data_set(tmp_path / "h", HAM), "isic": data_set(tmp_path / "i", ISIC)}
    found = join(parts, tmp_path / "out")
    assert found.classes == ("mel", "nv")
    assert [(site.name, site.num_images) for site in found.sites] == [("ham", 4), ("isic", 3)]
    assert found.sites[1].data == load_site(parts["isic"]).data
    assert not found.has_groups
    assert found.num_shared_groups == 0
    assert found.class_images == {"ham": {"mel": 2, "nv": 2}, "isic": {"mel": 1, "nv": 2}}


# --- classes ----------------------------------------------------------------------------------


def test_data_sets_with_different_classes_are_listed_with_what_to_do(tmp_path: Path) -> None:
    parts = {
        "ham": data_set(tmp_path / "h", HAM),
        "isic": data_set(tmp_path / "i", ISIC | {"scc/b9.png": 19}),
    }
    with pytest.raises(SiteDataError) as caught:
        join(parts, tmp_path / "out")
    assert "ham: mel, nv" in str(caught.value)
    assert "isic: mel, nv, scc" in str(caught.value)
    assert "--classes" in str(caught.value)
    assert "label_map" in str(caught.value)


def test_classes_that_are_named_are_the_studys_and_absent_ones_are_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    more = "  label_map: {naevus: nv}\n"
    parts = {
        "ham": data_set(tmp_path / "h", HAM),
        "isic": data_set(tmp_path / "i", {"naevus/b1.png": 11, "naevus/b2.png": 12}, more),
    }
    with caplog.at_level(logging.WARNING, "consilium"):
        found = join(parts, tmp_path / "out", classes=["mel", "nv"])
    assert found.classes == ("mel", "nv")
    assert [record.getMessage() for record in caplog.records] == ["isic has no image of mel"]


def test_a_table_among_its_images_is_not_called_a_file_without_images(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    parts = {}
    for name, seed in (("ham", 1), ("isic", 2)):
        folder = tmp_path / name
        folder.mkdir()
        picture(seed).save(folder / "1.png")
        (folder / "labels.csv").write_text("file,label\n1.png,mel\n")
        (folder / "notes.csv").write_text("file,label\n")
        parts[name] = folder / "site.yaml"
        parts[name].write_text("name: whole\nstate_dir: state\ndata: {kind: csv, labels: labels.csv}\n")
    with caplog.at_level(logging.INFO, "consilium"):
        join(parts, tmp_path / "out", classes=["mel"])
    assert "labels.csv" not in caplog.text
    assert caplog.text.count("no images: 1 files with the ending .csv (notes.csv)") == 2


# --- images that two data sets have -----------------------------------------------------------


@pytest.fixture
def overlapping(tmp_path: Path) -> dict[str, Path]:
    """isic has one file of ham under another name, and a smaller copy of another under its own."""
    parts = {"ham": data_set(tmp_path / "h", HAM), "isic": data_set(tmp_path / "i", ISIC)}
    images = tmp_path / "i" / "images"
    (images / "mel" / "renamed.png").write_bytes((tmp_path / "h/images/mel/a1.png").read_bytes())
    picture(3, size=64).save(images / "nv" / "a3.jpg", quality=85)
    return parts


def test_shared_images_are_refused_with_their_number_and_the_way_out(
    overlapping: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(
        SiteDataError, match=r"ham and isic: 2, such as a1\.png, a3\.png\n.*--drop-shared isic"
    ):
        join(overlapping, tmp_path / "out")


@pytest.mark.parametrize(
    ("dropped", "counts", "left"),
    [("isic", [4, 3], {"b1.png", "b2.png", "b3.png"}), ("ham", [2, 5], {"a2.png", "a4.png"})],
)
def test_shared_images_are_left_out_of_the_site_that_is_named(
    dropped: str, counts: list[int], left: set[str], overlapping: dict[str, Path], tmp_path: Path
) -> None:
    found = join(overlapping, tmp_path / "out", drop_shared=[dropped])
    assert [site.num_images for site in found.sites] == counts
    site = next(site for site in found.sites if site.name == dropped)
    assert {row.image.name for row in read.read(site.data, found.classes).rows} == left


def test_images_of_one_name_that_look_different_are_not_the_same(tmp_path: Path) -> None:
    parts = {
        "ham": data_set(tmp_path / "h", {"mel/1.png": 1, "nv/2.png": 2}),
        "isic": data_set(tmp_path / "i", {"mel/1.png": 11, "nv/2.png": 12}),
    }
    assert [site.num_images for site in join(parts, tmp_path / "out").sites] == [2, 2]


def test_a_data_set_of_nothing_but_another_sites_images_is_an_error(tmp_path: Path) -> None:
    parts = {"ham": data_set(tmp_path / "h", HAM), "copy": data_set(tmp_path / "c", HAM)}
    with pytest.raises(SiteDataError, match=r"copy: all 4 images are another site's, too"):
        join(parts, tmp_path / "out", drop_shared=["copy"])


def test_three_sites_are_compared_in_pairs(tmp_path: Path) -> None:
    parts = {name: data_set(tmp_path / name, HAM) for name in ("a", "b")}
    parts["c"] = data_set(tmp_path / "c", ISIC)
    with pytest.raises(SiteDataError, match=r"1 problem:\n  a and b: 4, such as"):
        join(parts, tmp_path / "out")


# --- the command ------------------------------------------------------------------------------


def test_the_command_writes_sites_that_a_simulation_takes(
    overlapping: dict[str, Path], tmp_path: Path
) -> None:
    joined = [word for name, path in overlapping.items() for word in ("--join", f"{name}={path}")]
    out = tmp_path / "sites"
    assert main(["simulate", *joined, "--drop-shared", "isic", "--out", str(out)]) == 0
    assert sorted(path.name for path in out.glob("*.yaml")) == ["federation.yaml", "ham.yaml", "isic.yaml"]
    site = load_site(out / "isic.yaml")
    assert (site.name, site.data.image_list) == ("isic", out / "lists" / "isic.csv")
    assert site.state_dir == out / "state" / "isic"
    about = yaml.safe_load((out / "federation.yaml").read_text())
    assert {name: sum(counts.values()) for name, counts in about["class_images"].items()} == about["sites"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--join", "ham"], "expected NAME=SITE.yaml"),
        (["--join", "ham="], "expected NAME=SITE.yaml"),
        (["--join", "h m=x.yaml"], "'h m' cannot be the name of a site"),
        (["--join", "Zürich=x.yaml"], "write letters a to z and A to Z, digits, `_`, `.` and `-`"),
        (["--join", "ham=x.yaml", "--join", "ham=y.yaml"], "there is a site ham already"),
        (["--join", "a=x.yaml", "--join", "b=y.yaml", "--data", "d"], "leave --data and --pooled out"),
        (["--drop-shared", "a"], "go with --join"),
    ],
)
def test_a_mistake_on_the_command_line_is_named(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["simulate", *arguments, "--out", str(tmp_path / "out")]) != 0
    assert message in capsys.readouterr().err.replace("\n", " ")


def test_a_site_that_is_not_joined_cannot_be_dropped_from(
    overlapping: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="--drop-shared bcn: the joined sites are ham, isic"):
        join(overlapping, tmp_path / "out", drop_shared=["bcn"])

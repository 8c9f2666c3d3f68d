"""One data set becomes several sites: nothing is lost, no patient is torn apart, and a seed is a promise."""

import csv
import random
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from client.cli.main import main
from client.config import load_site
from client.data.readers import read
from client.data.simulation.partition import (
    Alike,
    ByAcquisition,
    ClassPerSite,
    LabelSkew,
    Partition,
    Piece,
    QuantitySkew,
    shared_out,
)
from client.data.splitting.split import split
from common.errors import SiteDataError
from tests.client.data.readers.test_dicom import dicom


def lesions(counts: dict[str, int], images_each: int = 1) -> list[Piece]:
    """So many lesions of each class, each with so many images of one device."""
    return [
        Piece(label, f"{label}-{number}", f"device {number % 3}")
        for label, count in counts.items()
        for number in range(count)
        for _ in range(images_each)
    ]


def counted(pieces: list[Piece], homes: list[str]) -> dict[str, Counter[str]]:
    """Images of each class, by site."""
    found: dict[str, Counter[str]] = defaultdict(Counter)
    for piece, home in zip(pieces, homes, strict=True):
        found[home][piece.label] += 1
    return dict(found)


# --- who gets what ---------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 30), st.sampled_from("xy")), min_size=40, max_size=90),
    st.sampled_from([ByAcquisition(), Alike(3), LabelSkew(3, 1.0), QuantitySkew(2, 5.0), ClassPerSite()]),
    st.integers(0, 99), st.randoms(use_true_random=False),
)  # fmt: skip
def test_no_patient_is_torn_apart_and_the_order_of_rows_changes_nothing(
    rows: list[tuple[str, int, str]], how: Partition, seed: int, rng: random.Random
) -> None:
    pieces = [Piece(label, f"P{patient}", device) for label, patient, device in rows]

    def homes(of: list[Piece]) -> dict[str, set[str]]:
        found = defaultdict(set)
        for piece, home in zip(of, shared_out(of, how, seed), strict=True):
            found[piece.group].add(home)
        return found

    try:
        first = homes(pieces)
    except SiteDataError:  # too few patients for so many sites
        return
    assert all(len(sites) == 1 for sites in first.values())
    shuffled = pieces.copy()
    rng.shuffle(shuffled)
    assert homes(shuffled) == first


def test_sites_alike_have_the_same_classes() -> None:
    pieces = lesions({"mel": 40, "nv": 120})
    homes = shared_out(pieces, Alike(4), seed=0)
    assert counted(pieces, homes) == {f"site-{n}": Counter(nv=30, mel=10) for n in (1, 2, 3, 4)}


def test_a_lesion_of_two_devices_goes_where_most_of_its_images_were_made() -> None:
    pieces = [Piece("nv", "L1", "b"), Piece("nv", "L1", "b"), Piece("nv", "L1", "a"), Piece("nv", "L2", "a")]
    assert shared_out(pieces, ByAcquisition(), 0) == ["b", "b", "b", "a"]


def test_one_class_per_site() -> None:
    pieces = lesions({"mel": 5, "nv": 7})
    assert counted(pieces, shared_out(pieces, ClassPerSite(), 0)) == {
        "mel": Counter(mel=5),
        "nv": Counter(nv=7),
    }


def distance_from_alike(pieces: list[Piece], homes: list[str]) -> float:
    """Mean over sites of half the sum of |share of a class at the site - share in all|: 0 alike, near 1 far."""
    totals = Counter(piece.label for piece in pieces)
    sites = counted(pieces, homes).values()
    return sum(
        sum(abs(site[name] / site.total() - totals[name] / len(pieces)) for name in totals) / 2 for site in sites
    ) / len(sites)  # fmt: skip


def test_a_large_alpha_makes_sites_alike_and_a_small_one_gives_each_its_own_classes() -> None:
    pieces = lesions(dict.fromkeys("abcde", 100))
    alike = [distance_from_alike(pieces, shared_out(pieces, LabelSkew(5, 1e6), seed)) for seed in range(3)]
    apart = [distance_from_alike(pieces, shared_out(pieces, LabelSkew(5, 1e-3), seed)) for seed in range(3)]
    assert max(alike) < 0.02
    # One class of five at each site would be 0.8.
    assert min(apart) > 0.5


def test_sites_of_other_proportions_are_of_one_size_and_nothing_is_lost() -> None:
    pieces = lesions({"akiec": 33, "bcc": 51, "bkl": 110, "mel": 111, "nv": 670})
    found = counted(pieces, shared_out(pieces, LabelSkew(5, 1.0), 3))
    assert sum(found.values(), Counter()) == Counter(piece.label for piece in pieces)
    # 975 images for five sites; each class is dealt to within one lesion, so a site to within five.
    assert all(abs(site.total() - 195) <= 5 for site in found.values())


def test_sites_of_other_sizes_have_the_same_proportions() -> None:
    pieces = lesions({"mel": 200, "nv": 600})
    found = counted(pieces, shared_out(pieces, QuantitySkew(4, 1.0), 1))
    sizes = sorted(site.total() for site in found.values())
    assert sizes[-1] > 2 * sizes[0]
    assert all(abs(site["mel"] - site.total() / 4) <= 2 for site in found.values())


def test_a_seed_gives_these_sites_on_every_machine() -> None:
    pieces = lesions({"mel": 30, "nv": 70})
    skewed = counted(pieces, shared_out(pieces, LabelSkew(3, 3.0), 7))
    sizes = counted(pieces, shared_out(pieces, QuantitySkew(3, 2.0), 7))
    assert skewed == SKEWED
    assert {name: site.total() for name, site in sizes.items()} == SIZES


# As they were drawn first; another result would change every study that was simulated with a seed.
SKEWED = {
    "site-1": {"mel": 2, "nv": 32},
    "site-2": {"mel": 7, "nv": 26},
    "site-3": {"mel": 21, "nv": 12},
}
SIZES = {"site-1": 49, "site-2": 19, "site-3": 32}


def test_a_site_without_an_image_is_refused() -> None:
    with pytest.raises(SiteDataError, match=r"3 images of 3 patients or lesions leave site-\d of 4 sites"):
        shared_out(lesions({"nv": 3}), Alike(4), 0)


def test_images_that_do_not_say_where_they_were_made_are_refused() -> None:
    with pytest.raises(SiteDataError, match="1 of 2 images do not say which device"):
        shared_out([Piece("nv", "L1", "a"), Piece("nv", "L2", None)], ByAcquisition(), 0)


# --- what is written -------------------------------------------------------------------------


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    """60 lesions of two images each, in three classes, from two clinics; one lesion was seen in both."""
    folder = tmp_path / "data"
    folder.mkdir()
    lines = ["file,label,lesion_id,site"]
    draws = np.random.default_rng(0)
    for number in range(120):
        Image.fromarray(draws.integers(0, 255, (8, 8, 3), dtype=np.uint8)).save(folder / f"{number}.png")
        clinic = "north" if number < 60 or number == 61 else "south clinic"
        lines.append(f"{number}.png,{('bkl', 'mel', 'nv')[number // 2 % 3]},L{number // 2},{clinic}")
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")
    return folder / "labels.csv"


def partitioned(whole: Path, out: Path, *options: str) -> Path:
    assert main(["partition", str(whole), "--out", str(out), "--threads", "1", *options]) == 0
    return out


def test_every_image_is_at_one_site_on_the_side_that_the_list_says(whole: Path, tmp_path: Path) -> None:
    out = partitioned(whole, tmp_path / "sites", "--by", "iid", "--sites", "3", "--pooled")
    about = yaml.safe_load((out / "federation.yaml").read_text())
    assert about == {
        "synthetic": False, "classes": ["bkl", "mel", "nv"], "sites": dict.fromkeys(("site-1", "site-2", "site-3"), 40)
    }  # fmt: skip
    seen: dict[str, str] = {}
    for name in about["sites"]:
        site = load_site(out / f"{name}.yaml")
        for row in split(read.read(site.data, about["classes"]), site.split).rows:
            assert row.image.key not in seen
            seen[row.image.key] = row.split or ""
    # 12 or 14 images of each class at each site: a fifth, to the nearest lesion, is one lesion of two images.
    # Of the other five or six lesions of a class one is for validation.
    assert Counter(seen.values()) == {"train": 84, "validation": 18, "test": 18}
    pooled = load_site(out / "pooled.yaml")
    taken = split(read.read(pooled.data, about["classes"]), pooled.split).rows
    assert {row.image.key: row.split for row in taken} == {
        key: side for key, side in seen.items() if side != "test"
    }
    assert (out / "classes.png").read_bytes().startswith(b"\x89PNG")


def test_sites_by_a_column_with_a_lesion_of_two_clinics_at_one(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = partitioned(whole, tmp_path / "sites")
    assert {path.stem for path in out.glob("*.yaml")} == {"north", "south-clinic", "federation"}
    # Images 60 and 61 show one lesion, one from each clinic: both go north, first in the alphabet.
    assert [line.split() for line in capsys.readouterr().out.splitlines()] == [
        ["site", "bkl", "mel", "nv", "images", "validation", "test", "groups"],
        ["north", "22", "20", "20", "62", "6", "12", "31"],
        ["south-clinic", "18", "20", "20", "58", "6", "12", "29"],
        ["all", "40", "40", "40", "120", "12", "24", "60"],
    ]
    with (out / "lists" / "north.csv").open(newline="") as file:
        line = next(csv.DictReader(file))
    assert (line["label"], line["lesion"], line["acquisition"], line["patient"]) == ("bkl", "L0", "north", "")
    assert line["image"] == str(whole.parent / "0.png")


def test_the_same_seed_writes_the_same_lists_wherever_the_images_lie(whole: Path, tmp_path: Path) -> None:
    whole.write_text("\n".join(line.replace("lesion_id", "x") for line in whole.read_text().splitlines()))
    moved = whole.parent.rename(tmp_path / "moved") / whole.name
    again = tmp_path / "data"
    lists = []
    for labels in (moved, again / whole.name):
        out = partitioned(labels, tmp_path / "out", "--by", "dirichlet", "--sites", "2", "--alpha", "1")
        with (out / "lists" / "site-1.csv").open(newline="") as file:
            lists.append([(Path(row["image"]).name) for row in csv.DictReader(file)])
        if labels == moved:
            moved.parent.rename(again)
    assert lists[0] == lists[1]


def test_folders_and_archives_are_shared_out_like_tables(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 255, (60, 28, 28, 3)).astype(np.uint8)
    labels = np.arange(60)[:, None] % 2
    np.savez(
        tmp_path / "set.npz",
        train_images=images,
        train_labels=labels,
        test_images=images[::-1],
        test_labels=labels,
    )
    settings = {"name": "all", "data": {"kind": "medmnist", "archive": "set.npz", "label_map": {0: "no", 1: "yes"}},
                "split": {"kind": "column"}, "state_dir": "state"}  # fmt: skip
    (tmp_path / "all.yaml").write_text(yaml.safe_dump(settings))
    out = partitioned(tmp_path / "all.yaml", tmp_path / "sites", "--by", "iid", "--sites", "2")
    sides: Counter[str] = Counter()
    for name in ("site-1", "site-2"):
        site = load_site(out / f"{name}.yaml")
        rows = split(read.read(site.data, ("no", "yes")), site.split).rows
        sides.update(f"{row.split} {row.label}" for row in rows)
        assert len(rows) == 60
        assert all((row.split == "test") == ("test_images" in row.image.key) for row in rows)
    # 0.15 of 30 images of a class are 4.5
    validation = {"validation no": 4, "validation yes": 5}
    assert sides == {"train no": 26, "train yes": 25, "test no": 30, "test yes": 30, **validation}


@pytest.mark.filterwarnings("ignore::UserWarning:pydicom")
def test_patients_of_dicoms_are_hidden_in_the_lists_and_another_secret_makes_no_other_sites(
    tmp_path: Path,
) -> None:
    lines = ["PatientID,label"]
    for number in range(16):
        noise = np.random.default_rng(number).integers(0, 4096, (16, 16)).astype(np.uint16)
        patient = f"SECRET-{number // 2}"
        dicom(tmp_path / "files" / f"{number}.dcm", noise, PatientID=patient, SOPInstanceUID=f"1.2.{number}")
        lines.append(f"{patient},{('mel', 'nv')[number // 2 % 2]}")
    (tmp_path / "labels.csv").write_text("\n".join(lines) + "\n")
    lists = []
    for state in ("first", "second"):
        settings = {
            "name": "all", "data": {"kind": "dicom", "root": "files", "labels": "labels.csv", "match": "PatientID"},
            "split": {"kind": "none", "all": "train"}, "state_dir": state,
        }  # fmt: skip
        (tmp_path / "all.yaml").write_text(yaml.safe_dump(settings))
        out = partitioned(tmp_path / "all.yaml", tmp_path / f"sites-{state}", "--by", "iid", "--sites", "2")
        assert "SECRET" not in "".join(path.read_text() for path in out.rglob("*.csv"))
        with (out / "lists" / "site-1.csv").open(newline="") as file:
            lists.append(list(csv.DictReader(file)))
        site = load_site(out / "site-1.yaml")
        assert len(read.read(site.data, ("mel", "nv"), site.state_dir).rows) == 8
    assert [row["image"] for row in lists[0]] == [row["image"] for row in lists[1]]
    assert lists[0][0]["patient"] != lists[1][0]["patient"]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--by", "iid"), "--by iid needs --sites"),
        (("--by", "dirichlet", "--sites", "3"), "--by dirichlet needs --alpha"),
        (("--by", "class", "--sites", "3", "--alpha", "1"), "--by class has no --sites; --by class has no --alpha"),
        (("--by", "iid", "--sites", "1"), "--sites 1: expected 2 to 1000"),
        (("--by", "quantity", "--sites", "2", "--alpha", "-1"), "--alpha -1: expected a number above 0"),
        (("--column", "clinic"), "no column for data.columns.acquisition='clinic'"),
        (("--by", "iid", "--sites", "50"), "sites cannot be split into train and test: 50 problems"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_said(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], told: str
) -> None:
    assert main(["partition", str(whole), "--out", str(tmp_path / "sites"), *options]) == 1
    assert told in capsys.readouterr().err


def test_a_list_of_images_that_are_not_there_is_reported_line_by_line(whole: Path, tmp_path: Path) -> None:
    out = partitioned(whole, tmp_path / "sites", "--by", "iid", "--sites", "3")
    path = out / "lists" / "site-1.csv"
    path.write_text(path.read_text() + "/nowhere/else.png,nv,,,,,train\n")
    with pytest.raises(SiteDataError, match=r"site-1.csv row 42: /nowhere/else.png is not among the images"):
        read.read(load_site(out / "site-1.yaml").data, ("bkl", "mel", "nv"))

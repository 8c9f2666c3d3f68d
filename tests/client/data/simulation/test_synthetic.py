import csv
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from client.config import GroupedSplit
from client.data.readers.read import read
from client.data.simulation.discover import discover
from client.data.simulation.lesions import CLASSES, MISTAKEN, draw_lesion
from client.data.simulation.synthetic import contact_sheet, generate
from client.data.splitting.split import split
from common.errors import ConfigError, SiteDataError


def rows_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "labels.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    generate(folder, images_per_site=100, image_size=32, seed=7)
    return folder


def test_every_listed_image_is_there_and_no_other(made):
    files = {path.relative_to(made).as_posix() for path in made.rglob("*.jpg")}
    assert files == {row["file"] for row in rows_of(made)}


def test_the_folder_says_that_it_is_synthetic(made):
    assert (made / "README.txt").read_text().startswith("SYNTHETIC")
    row = rows_of(made)[0]
    assert row["lesion_id"].startswith("SYNTHETIC")
    with Image.open(made / row["file"]) as image:
        assert image.info["comment"].startswith(b"SYNTHETIC")


def test_sites_differ_in_number_size_and_classes(made):
    by_site = defaultdict(list)
    for row in rows_of(made):
        by_site[row["site"]].append(row)
    # 100 images a site times 1.3, 1.0, 0.7
    assert {site: len(rows) for site, rows in by_site.items()} == {"north": 130, "south": 100, "east": 70}
    classes = {site: {row["label"] for row in rows} for site, rows in by_site.items()}
    assert classes["north"] == classes["east"] == set(CLASSES)
    assert classes["south"] == set(CLASSES) - {"df"}
    sizes = {}
    for site, rows in by_site.items():
        with Image.open(made / rows[0]["file"]) as image:
            sizes[site] = image.size
    # Heights 32 * 1.0, 0.85, 1.2, widths 4/3 of them, rounded down.
    assert sizes == {"north": (42, 32), "south": (36, 27), "east": (50, 38)}


def test_some_lesions_have_several_images_and_each_has_one_class(made):
    images, labels = defaultdict(int), defaultdict(set)
    for row in rows_of(made):
        images[row["lesion_id"]] += 1
        labels[row["lesion_id"]].add(row["label"])
    assert set(images.values()) == {1, 2, 3}
    assert all(len(found) == 1 for found in labels.values())


def test_the_same_seed_gives_the_same_files_and_another_seed_others(tmp_path):
    for name, seed in [("a", 1), ("b", 1), ("c", 2)]:
        generate(tmp_path / name, sites=("x",), images_per_site=6, image_size=16, seed=seed)
    a, b, c = (
        [path.read_bytes() for path in sorted((tmp_path / name).rglob("*.jpg"))] for name in ("a", "b", "c")
    )
    assert a == b
    assert a != c


def test_the_federation_is_found_read_and_split(made):
    found = discover(made)
    assert found.classes == CLASSES
    assert [site.name for site in found.sites] == ["east", "north", "south"]
    for site in found.sites:
        assert site.split == GroupedSplit()
        done = split(read(site.data, found.classes), site.split)
        assert sum(done.class_counts("test")) == pytest.approx(0.2 * site.num_images, abs=6)


def test_any_sites_and_classes_can_be_asked_for(tmp_path):
    generate(tmp_path, sites=tuple("abcde"), images_per_site=10, image_size=16, classes=("mel", "nv"))
    found = discover(tmp_path)
    assert found.classes == ("mel", "nv")
    assert [site.num_images for site in found.sites] == [13, 10, 7, 13, 10]


def test_a_class_that_cannot_be_drawn_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ConfigError, match="no drawing of class glioma; there are akiec"):
        generate(tmp_path / "x", classes=("nv", "glioma"))
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("label", CLASSES)
def test_a_lesion_has_valid_colours_and_leaves_the_rim_of_its_square_free(label):
    for seed in range(5):
        lesion = draw_lesion(label, 40, np.random.default_rng(seed))
        assert lesion.colour_PPC.shape == (40, 40, 3)
        assert lesion.colour_PPC.min() >= 0
        assert lesion.colour_PPC.max() <= 1
        assert lesion.cover_PP[17:23, 17:23].mean() > 0.5
        corners = lesion.cover_PP[[0, 0, -1, -1], [0, -1, 0, -1]]
        assert corners.max() < 0.05


def test_a_class_is_only_mistaken_for_others():
    assert set(MISTAKEN) == set(CLASSES)
    assert all(label not in others and set(others) < set(CLASSES) for label, others in MISTAKEN.items())


def test_a_contact_sheet_shows_classes_by_sites(made, tmp_path):
    contact_sheet(made, tmp_path / "out" / "sheet.png", per_cell=2, height=24)
    with Image.open(tmp_path / "out" / "sheet.png") as sheet:
        # 60 + 3 sites * (2 * (32 + 3) + 8) by 24 + 7 classes * (24 + 3)
        assert sheet.size == (60 + 3 * 78, 24 + 7 * 27)
    with pytest.raises(SiteDataError, match="generate the images first"):
        contact_sheet(tmp_path, tmp_path / "sheet.png")

"""A folder with planted mistakes: each is found, ranked and named, all in one go."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image, ImageFilter

from client import cli
from client.check import Finding, check, may_take_part
from client.config import SiteConfig

NAMES = ("mel", "nv")


def picture(path: Path, seed: int, size: tuple[int, int] = (120, 90)) -> Path:
    """A smooth picture of its own for each seed."""
    coarse = np.random.default_rng(seed).integers(0, 256, (9, 12, 3)).astype(np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).save(path)
    return path


class Site:
    """Twenty lesions of each class, one picture each, that a test spoils."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.rows: list[tuple[str, str, str]] = []
        for number in range(40):
            self.add(f"{number}.png", NAMES[number % 2], f"L{number}", seed=number)

    def add(self, name: str, label: str, lesion: str, seed: int | None = None, **how: object) -> Path:
        if seed is not None:
            picture(self.folder / name, seed, **how)  # type: ignore[arg-type]
        self.rows.append((name, label, lesion))
        return self.folder / name

    def write(self) -> Path:
        lines = ["file,label,lesion", *(",".join(row) for row in self.rows)]
        (self.folder / "labels.csv").write_text("\n".join(lines) + "\n")
        settings = {
            "name": "north",
            "data": {"kind": "csv", "labels": "labels.csv", "columns": {"group": "lesion"}},
            "state_dir": "state",
            "threads": 1,
        }
        (self.folder / "site.yaml").write_text(yaml.safe_dump(settings))
        return self.folder / "site.yaml"

    def findings(self, classes: tuple[str, ...] | None = NAMES) -> list[Finding]:
        from client.config import load_site

        site: SiteConfig = load_site(self.write())
        return check(site, classes)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def texts(findings: list[Finding], rank: str) -> list[str]:
    return [finding.text for finding in findings if finding.rank == rank]


def test_a_sound_site_may_take_part_and_is_told_what_it_has(site: Site) -> None:
    findings = site.findings()
    assert may_take_part(findings)
    assert texts(findings, "look") == []
    (told,) = texts(findings, "fine")
    assert told.startswith("40 images of 40 patients or lesions (mel 20, nv 20); 120 x 90 to 120 x 90 pixels")


def cut(site: Site) -> None:
    path = site.add("cut.png", "mel", "X1", seed=100)
    path.write_bytes(path.read_bytes()[:300])


def no_image(site: Site) -> None:
    site.add("text.png", "mel", "X2").write_text("not a picture")


def empty(site: Site) -> None:
    site.add("empty.png", "mel", "X3").touch()


def animated(site: Site) -> None:
    frames = [Image.new("RGB", (80, 80), (value, 0, 0)) for value in (0, 99)]
    frames[0].save(site.add("moves.gif", "mel", "X4"), save_all=True, append_images=frames[1:])


def bomb(site: Site) -> None:
    Image.new("1", (20_000, 20_000)).save(site.add("bomb.png", "mel", "X5"))


def blank(site: Site) -> None:
    Image.new("RGB", (120, 90), (200, 180, 160)).save(site.add("blank.png", "mel", "X6"))


def tiny(site: Site) -> None:
    site.add("tiny.png", "mel", "X7", seed=107, size=(40, 40))


def too_tiny(site: Site) -> None:
    Image.new("RGB", (4, 4)).save(site.add("dot.png", "mel", "X8"))


def grey(site: Site) -> None:
    path = site.add("grey.png", "mel", "X9", seed=109)
    Image.open(path).convert("L").save(path)


def deep(site: Site) -> None:
    values = np.random.default_rng(0).integers(0, 4096, (90, 120)).astype(np.uint16)
    Image.fromarray(values).save(site.add("deep.png", "mel", "X10"))


def floating(site: Site) -> None:
    Image.fromarray(np.ones((90, 120), np.float32)).save(site.add("float.tif", "mel", "X11"))


def missing(site: Site) -> None:
    site.add("lost.png", "mel", "X12")


def unlabelled(site: Site) -> None:
    site.add("what.png", "", "X13", seed=113)


def unknown(site: Site) -> None:
    site.add("melanoma.png", "melanoma", "X14", seed=114)


def copied(site: Site) -> None:
    shutil.copy(site.folder / "0.png", site.add("copy.png", "mel", "L0"))


def contradicted(site: Site) -> None:
    shutil.copy(site.folder / "0.png", site.add("other.png", "nv", "X16"))


def leaked(site: Site) -> None:
    for number in range(0, 40, 2):  # a copy of each melanoma under another lesion: some pair is divided
        shutil.copy(site.folder / f"{number}.png", site.add(f"again{number}.png", "mel", f"Y{number}"))


def resaved(site: Site) -> None:
    path = site.add("shrunk.jpg", "mel", "X18")
    Image.open(site.folder / "0.png").filter(ImageFilter.GaussianBlur(1)).resize((100, 75)).save(
        path, quality=80
    )


def rare(site: Site) -> None:
    site.rows = [row for row in site.rows if row[1] == "nv" or int(row[0][:-4]) < 6]  # 0, 2 and 4 stay


def ungrouped(site: Site) -> None:
    site.rows[0] = (*site.rows[0][:2], "")


PLANTED: list[tuple[Callable[[Site], None], str, str]] = [
    (cut, "stops", r"cut.png\) cannot be decoded"),
    (no_image, "stops", r"text.png\) cannot be decoded"),
    (empty, "stops", r"empty.png\) cannot be decoded"),
    (animated, "stops", r"moves.gif\) holds 2 images"),
    (bomb, "stops", r"bomb.png\) has more pixels than"),
    (too_tiny, "stops", r"dot.png\) is 4 x 4 pixels"),
    (floating, "stops", r"float.tif\) has floating-point pixels"),
    (missing, "stops", r"row 42: .*lost.png is not there"),
    (unlabelled, "stops", "row 42: no label"),
    (unknown, "stops", r"class 'melanoma' is not in the study \(1 image"),
    (contradicted, "stops", r"under two classes.*\n.*0.png\) = .*other.png"),
    (leaked, "stops", "the same file is trained and tested on"),
    (blank, "look", r"1 image\(s\) show one flat colour.*\n.*blank.png"),
    (tiny, "look", r"1 image\(s\) have fewer than 64 pixels.*\n.*tiny.png\): 40 x 40"),
    (grey, "look", r"1 image\(s\) are not RGB.*\n.*grey.png\): L"),
    (deep, "look", r"1 image\(s\) are not RGB.*\n.*deep.png\): I;16"),
    (copied, "look", r"there more than once.*\n.*0.png\) = .*copy.png"),
    (resaved, "look", r"nearly the same.*\n.*0.png\) ~ .*shrunk.jpg"),
    (rare, "look", r"fewer than 5 patients or lesions.*\n  mel: 3"),
    (ungrouped, "look", r"1 of 40 images name no patient or lesion"),
]


@pytest.mark.parametrize(
    ("plant", "rank", "expected"), PLANTED, ids=lambda value: getattr(value, "__name__", "")
)
def test_a_planted_mistake_is_found_and_ranked(
    site: Site, plant: Callable[[Site], None], rank: str, expected: str
) -> None:
    import re

    plant(site)
    findings = site.findings()
    found = [text for text in texts(findings, rank) if re.search(expected, text)]
    assert len(found) == 1, findings
    assert may_take_part(findings) == (rank != "stops")


def test_mistakes_that_need_the_images_are_found_all_at_once(site: Site) -> None:
    for plant in (cut, blank, tiny, contradicted, resaved):
        plant(site)
    findings = site.findings()
    assert len(texts(findings, "stops")) == 2
    assert len(texts(findings, "look")) == 3
    assert [finding.rank for finding in findings] == ["stops"] * 2 + ["look"] * 3 + ["fine"]


def test_without_a_study_the_classes_of_the_data_are_taken(site: Site) -> None:
    unknown(site)
    assert may_take_part(site.findings(classes=None))


def test_the_command_says_whether_the_site_may_take_part(
    site: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["check", str(site.write())]) == 0
    assert "north may take part" in capsys.readouterr().out
    cut(site)
    assert cli.main(["check", str(site.write())]) == 1
    out = capsys.readouterr().out
    assert "[STOPS THE STUDY] 1 image(s) cannot be used" in out
    assert "north may NOT take part" in out

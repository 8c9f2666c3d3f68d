"""A folder with planted mistakes: each is found, ranked and named, all in one go."""

import re
import shutil
import stat
import struct
import zlib
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image, ImageDraw, ImageFilter, ImageFont
from pydicom.uid import ComprehensiveSRStorage, RTDoseStorage, SegmentationStorage

from client.cli.main import main
from client.config import load_site
from client.data.decoding import burned_in_text
from client.data.readers import read
from client.data.references import DicomFrame
from client.data.splitting.kept_split import kept
from client.governance import small_cells
from client.preflight import html_page, inspection
from client.preflight.data import Report, check
from client.preflight.findings import Finding
from tests.client.data.readers.test_dicom import dicom

CLASSES = ("df", "mel", "nv")


def picture(path: Path, seed: int, size: tuple[int, int] = (120, 90)) -> Path:
    """A smooth picture of its own for each seed."""
    coarse = np.random.default_rng(seed).integers(0, 256, (9, 12, 3)).astype(np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).save(path)
    return path


class Site:
    """Ten lesions of each of two classes, one picture each, that a test spoils."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.rows: list[tuple[str, ...]] = []
        self.settings: dict[str, object] = {}
        for number in range(20):
            self.add(f"{number}.png", CLASSES[1:][number % 2], f"L{number}", seed=number)

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
        (self.folder / "site.yaml").write_text(yaml.safe_dump(settings | self.settings))
        return self.folder / "site.yaml"

    def report(self, classes: tuple[str, ...] | None = CLASSES[1:]) -> Report:
        return check(load_site(self.write()), classes)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def texts(report: Report, rank: str) -> list[str]:
    return [finding.text for finding in report.findings if finding.rank == rank]


def test_a_sound_site_may_take_part_and_its_contents_are_listed(site: Site) -> None:
    report = site.report()
    assert report.may_take_part
    assert texts(report, "look") == []
    settings, largest, space, contents, speed = texts(report, "fine")
    assert settings == "no images: 1 files with the ending .yaml:\n  site.yaml"
    assert largest.startswith(
        "the patient or lesion with the most images has 1 of 20 (5%), that of labels.csv row"
    )
    # 20 images of 256 x 256 x 3 bytes are 3.75 MiB
    assert space == "decoded images will take 4 MiB of memory, for an encoder that keeps 256 x 256 pixels"
    assert contents == (
        "20 images of 20 patients or lesions (mel 10, nv 10); 14 train, 2 validation, 4 test; "
        "120 x 90 to 120 x 90 pixels"
    )
    assert re.fullmatch(
        r"decoding all images once, to 256 x 256 pixels, takes about \d s with 1 thread.*", speed
    )
    assert not (site.folder / "state").exists()


# --- mistakes in one folder ------------------------------------------------------------------


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
    """A PNG that says 20,000 x 20,000 pixels and ends there."""
    header = b"IHDR" + struct.pack(">2I5B", 20_000, 20_000, 8, 2, 0, 0, 0)
    chunks = [
        struct.pack(">I", 13),
        header,
        struct.pack(">I", zlib.crc32(header)),
        struct.pack(">I", 9),
        b"IDAT",
    ]
    site.add("bomb.png", "mel", "X5").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))


def too_tiny(site: Site) -> None:
    Image.new("RGB", (4, 4)).save(site.add("dot.png", "mel", "X8"))


def floating(site: Site) -> None:
    Image.fromarray(np.ones((90, 120), np.float32)).save(site.add("float.tif", "mel", "X11"))


def missing(site: Site) -> None:
    site.add("lost.png", "mel", "X12")


def unlabelled(site: Site) -> None:
    site.add("what.png", "", "X13", seed=113)


def unknown(site: Site) -> None:
    site.add("melanoma.png", "melanoma", "X14", seed=114)


def contradicted(site: Site) -> None:
    shutil.copy(site.folder / "3.png", site.add("other.png", "mel", "X16"))


def leaked(site: Site) -> None:
    for number in range(0, 20, 2):  # a copy of each melanoma under another lesion: some pair is divided
        shutil.copy(site.folder / f"{number}.png", site.add(f"again{number}.png", "mel", f"Y{number}"))


def blank(site: Site) -> None:
    Image.new("RGB", (120, 90), (200, 180, 160)).save(site.add("blank.png", "mel", "X6"))


def tiny(site: Site) -> None:
    site.add("tiny.png", "mel", "X7", seed=107, size=(40, 40))


def strip(site: Site) -> None:
    site.add("strip.png", "mel", "X19", seed=119, size=(720, 90))


def grey(site: Site) -> None:
    path = site.add("grey.png", "mel", "X9", seed=109)
    Image.open(path).convert("L").save(path)


def grey_in_colour(site: Site) -> None:
    path = site.add("faded.png", "mel", "X20", seed=120)
    Image.open(path).convert("L").convert("RGB").save(path)


def transparent(site: Site) -> None:
    path = site.add("glass.png", "mel", "X21", seed=121)
    Image.open(path).convert("RGBA").save(path)


def deep(site: Site) -> None:
    values = np.random.default_rng(0).integers(0, 4096, (90, 120)).astype(np.uint16)
    Image.fromarray(values).save(site.add("deep.png", "mel", "X10"))


def copied(site: Site) -> None:
    shutil.copy(site.folder / "1.png", site.add("copy.png", "nv", "L1"))


def resaved(site: Site) -> None:
    path = site.add("shrunk.jpg", "nv", "X18")
    small = Image.open(site.folder / "5.png").filter(ImageFilter.GaussianBlur(1)).resize((100, 75))
    small.save(path, quality=80)


def rare(site: Site) -> None:
    for number in range(3):
        site.add(f"df{number}.png", "df", f"R{number}", seed=130 + number)


def ungrouped(site: Site) -> None:
    site.rows[0] = (*site.rows[0][:2], "")


def repeated(site: Site) -> None:
    site.rows.append(site.rows[7])


def unnamed(site: Site) -> None:
    picture(site.folder / "more" / "new.png", seed=140)


Plant = Callable[[Site], None]
STOP: list[tuple[Plant, str]] = [
    (cut, r"cut.png\) cannot be decoded"),
    (no_image, r"text.png\) cannot be decoded"),
    (empty, r"empty.png\) cannot be decoded"),
    (animated, r"moves.gif\) holds 2 images"),
    (bomb, r"bomb.png\) has more pixels than"),
    (too_tiny, r"dot.png\) is 4 x 4 pixels"),
    (floating, r"float.tif\) has floating-point pixels"),
    (missing, r"row \d+: no image \'lost.png\'"),
    (unlabelled, r"row \d+: no label"),
    (unknown, r"class 'melanoma' is not in the study \(1 image"),
    (contradicted, r"under two classes.*\n.*3.png\) = .*other.png"),
    (leaked, "the same file is on two sides of the split"),
]
LOOK: list[tuple[Plant, str]] = [
    (blank, r"1 image\(s\) show one flat colour.*\n.*blank.png"),
    (tiny, r"1 image\(s\) have fewer than 64 pixels.*\n.*tiny.png\): 40 x 40"),
    (strip, r"1 image\(s\) are of another size or shape.*\n.*strip.png\): 720 x 90"),
    (grey, r"image\(s\) are not RGB like most(.*\n)*.*grey.png\): L$"),
    (grey_in_colour, r"image\(s\) are not RGB like most(.*\n)*.*faded.png\): RGB without colour"),
    (transparent, r"image\(s\) are not RGB like most(.*\n)*.*glass.png\): RGBA"),
    (deep, r"image\(s\) are not RGB like most(.*\n)*.*deep.png\): I;16"),
    (copied, r"there more than once(.*\n)*.*1.png\) = .*copy.png"),
    (resaved, r"1 pair.*nearly the same.*\n.*5.png\) ~ .*shrunk.jpg"),
    (rare, r"fewer than 5 patients or lesions.*\n  df: 3"),
    (ungrouped, r"1 of \d+ images \(\d+%\) name no patient or lesion"),
    (repeated, r"1 row\(s\) repeat another row"),
    (unnamed, r"not used: 1 image files that no row of labels.csv names:\n  more.new.png"),
]


@pytest.fixture(scope="module")
def doubtful(tmp_path_factory: pytest.TempPathFactory) -> Report:
    """Everything that is worth a look, in one folder."""
    site = Site(tmp_path_factory.mktemp("doubtful"))
    for plant, _ in LOOK:
        plant(site)
    return site.report(CLASSES)


@pytest.fixture(scope="module")
def spoiled(tmp_path_factory: pytest.TempPathFactory) -> Report:
    """Every mistake there is, in one folder."""
    site = Site(tmp_path_factory.mktemp("spoiled"))
    for plant, _ in [*STOP, *LOOK]:
        plant(site)
    return site.report(CLASSES)


def matching(report: Report, rank: str, expected: str) -> list[Finding]:
    return [
        finding
        for finding in report.findings
        if finding.rank == rank and re.search(expected, "\n  ".join([f"{finding.what}:", *finding.items]), re.M)
    ]  # fmt: skip


def named(value: object) -> str:
    return getattr(value, "__name__", "")


@pytest.mark.parametrize(("plant", "expected"), STOP, ids=named)
def test_what_stops_a_study_is_found_among_all_other_mistakes(
    spoiled: Report, plant: Plant, expected: str
) -> None:
    assert len(matching(spoiled, "stops", expected)) == 1, spoiled.findings


@pytest.mark.parametrize(("plant", "expected"), LOOK, ids=named)
def test_what_is_worth_a_look_is_found_with_and_without_worse(
    spoiled: Report, doubtful: Report, plant: Plant, expected: str
) -> None:
    assert len(matching(doubtful, "look", expected)) == 1, doubtful.findings
    assert len(matching(spoiled, "look", expected)) == 1, spoiled.findings


def test_only_what_stops_a_study_keeps_a_site_out(spoiled: Report, doubtful: Report) -> None:
    assert doubtful.may_take_part
    assert not spoiled.may_take_part
    ranks = [finding.rank for finding in spoiled.findings]
    assert ranks == sorted(ranks, key=["stops", "look", "fine"].index)


def test_a_near_pair_on_both_sides_of_the_split_is_named_first(site: Site) -> None:
    for number in range(0, 20, 2):
        small = Image.open(site.folder / f"{number}.png").resize((100, 75))
        small.save(site.add(f"near{number}.png", "mel", f"Z{number}"))
    (finding,) = matching(site.report(), "look", "10 pair")
    across = [" and " in item.rpartition(";")[2] for item in finding.items]
    assert across == sorted(across, reverse=True)
    assert f"{sum(across)} of them on two sides of the split" in finding.what


# --- mistakes of the settings ----------------------------------------------------------------


def test_a_split_of_the_data_that_tears_a_lesion_apart_stops_the_study(site: Site) -> None:
    site.settings = {
        "data": {"kind": "csv", "labels": "labels.csv", "columns": {"lesion": "lesion", "split": "side"}},
        "split": {"kind": "column"},
    }
    path = site.write()
    lines = [f"{','.join(row[:2])},L{n // 2},{('train', 'test')[n % 2]}" for n, row in enumerate(site.rows)]
    (site.folder / "labels.csv").write_text("\n".join(["file,label,lesion,side", *lines]) + "\n")
    report = check(load_site(path), CLASSES[1:])
    (finding,) = matching(report, "stops", "puts images of one group on two sides")
    assert "10 of 10 groups are on two sides" in finding.what
    assert len(report.images) == 20


def test_a_split_by_image_and_a_class_on_one_side_only_are_worth_a_look(site: Site) -> None:
    site.settings = {"split": {"kind": "by_image"}}
    site.rows = [(*row[:2], f"L{number // 4}") for number, row in enumerate(site.rows)]
    site.add("df.png", "df", "D", seed=150)
    report = site.report(CLASSES)
    assert matching(report, "look", r"by_image: [1-5] of 6 patients or lesions are trained and tested on")
    assert matching(report, "look", r"on one side of the split only:\n  df: no image to test on \(1 in all\)")


def test_images_that_will_not_fit_are_said_before_the_study(site: Site) -> None:
    # 20 images of 256 x 256 are 3.75 MiB
    site.settings = {"cache": {"memory_mib": 3, "disk_mib": 3}}
    assert matching(site.report(), "stops", "need 4 MiB, more than cache.disk_mib=3 and cache.memory_mib=3")
    site.settings = {"cache": {"memory_mib": 3}}
    assert matching(site.report(), "fine", "will take 4 MiB in a file under state_dir")


def test_the_study_says_how_large_images_are_kept(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    study = {
        "name": "large", "classes": list(CLASSES[1:]), "sites": {"train": ["north"]}, "rounds": 1,
        "model": {"encoder": "test_convnext", "image_size": 448},
    }  # fmt: skip
    (site.folder / "study.yaml").write_text(yaml.safe_dump(study))
    assert main(["check", str(site.write()), "--study", str(site.folder / "study.yaml")]) == 0
    # 448 is cropped from 512, four times as much as 224 from 256
    assert "will take 15 MiB of memory, for an encoder that keeps 512 x 512 pixels" in capsys.readouterr().out


def test_a_split_that_was_drawn_before_is_the_one_that_is_checked(site: Site) -> None:
    before = load_site(site.write())
    drawn = kept(read.read(before.data, CLASSES[1:]), before.split, before.state_dir)
    for number in range(30):
        site.add(f"late{number}.png", "mel", f"N{number}", seed=200 + number)
    report = site.report()
    assert {row.image.key for row in report.manifest.on("test")} == {
        row.image.key for row in drawn.on("test")
    }


def test_masks_that_a_table_names_as_images_are_found_by_their_few_colours(site: Site) -> None:
    mask = np.zeros((90, 120), np.uint8)
    mask[20:60, 30:80] = 255
    Image.fromarray(mask).save(site.add("lesion.png", "mel", "X1"))
    labels = np.zeros((90, 120), np.uint8)
    labels[20:60, 30:80] = np.arange(50) // 10 * 40  # five structures
    Image.fromarray(labels).save(site.add("structures.png", "nv", "X2"))
    (found,) = matching(site.report(), "look", "as masks of a segmentation have")
    assert [row.image.path.name for row in found.rows] == ["lesion.png", "structures.png"]


def test_without_a_study_the_classes_of_the_data_are_taken(site: Site) -> None:
    unknown(site)
    assert site.report(classes=None).may_take_part


# --- DICOM -----------------------------------------------------------------------------------


def written_on(text: str, height: int) -> np.ndarray:
    """Dim noise, as of an ultrasound, with white writing of so many pixels."""
    noise = np.random.default_rng(0).integers(0, 90, (120, 320)).astype(np.uint8)
    image = Image.fromarray(noise)
    ImageDraw.Draw(image).text((8, 8), text, fill=255, font=ImageFont.load_default(height))
    return np.asarray(image)


@pytest.mark.parametrize("height", [10, 14, 24])
def test_writing_in_a_picture_is_suspected_and_noise_is_not(height: int) -> None:
    assert burned_in_text.looks_written_on(Image.fromarray(written_on("DOE^JANE 12.03.1961", height)))
    assert not burned_in_text.looks_written_on(Image.fromarray(written_on("", height)))


@pytest.mark.filterwarnings("ignore::UserWarning:pydicom")
def test_a_dicom_with_burned_in_text_is_detected_by_its_attribute_or_by_its_pixels(tmp_path: Path) -> None:
    images = {
        "said": written_on("", 12),
        "seen": written_on("DOE^JANE 12.03.1961", 12),
        "none": written_on("", 12).T,
    }
    lines = ["SOPInstanceUID,label"]
    for number, (name, pixels) in enumerate(images.items()):
        dicom(
            tmp_path / "files" / f"{name}.dcm", np.ascontiguousarray(pixels), PatientID=f"P{number}",
            SOPInstanceUID=f"1.2.{number}", WindowCenter=128, WindowWidth=256,
            BurnedInAnnotation="YES" if name == "said" else "NO",
        )  # fmt: skip
        lines.append(f"1.2.{number},mel")
    (tmp_path / "labels.csv").write_text("\n".join(lines) + "\n")
    settings = {
        "name": "north", "data": {"kind": "dicom", "root": "files", "labels": "labels.csv"}, "state_dir": "state",
        "split": {"kind": "none", "all": "train"}, "threads": 1,
    }  # fmt: skip
    (tmp_path / "site.yaml").write_text(yaml.safe_dump(settings))
    report = check(load_site(tmp_path / "site.yaml"), ("mel",))
    (declared,) = matching(report, "look", "declare burned-in text")
    (suspected,) = matching(report, "look", "seem to have burned-in text")
    assert [row.image.path.stem for row in (*declared.rows, *suspected.rows)] == ["said", "seen"]
    assert {image.kind for image in report.images} == {"8-bit MONOCHROME2"}


def test_an_attribute_that_cannot_be_read_is_not_the_same_as_one_that_is_not_there() -> None:
    class Broken:
        def get(self, *_: object) -> str:
            raise ValueError("no code string")

    assert inspection._attribute(Broken(), "BurnedInAnnotation") is None  # type: ignore[arg-type]
    assert inspection._attribute({}, "BurnedInAnnotation") == ""  # type: ignore[arg-type]
    path, picture = Path("a.dcm"), Image.fromarray(written_on("", 12))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inspection.dicom, "read_header", lambda _: Broken())
        assert inspection._stored(DicomFrame(path, 0), picture)[2] == "suspected"
        patch.setattr(inspection.dicom, "read_header", lambda _: {})
        assert inspection._stored(DicomFrame(path, 0), picture)[2] == "none"


@pytest.mark.filterwarnings("ignore::UserWarning:pydicom")
def test_dicom_objects_that_are_no_images_are_counted_by_kind_and_do_not_stop_the_site(
    tmp_path: Path,
) -> None:
    for number in range(4):
        dicom(tmp_path / "files" / f"{number}.dcm", PatientID=f"P{number}", SOPInstanceUID=f"1.2.{number}")
    for name, kind, modality in (
        ("mask", SegmentationStorage, "SEG"),
        ("dose", RTDoseStorage, "RTDOSE"),
        ("report", ComprehensiveSRStorage, "SR"),
    ):
        dicom(tmp_path / "files" / f"{name}.dcm", PatientID="P0", SOPClassUID=kind, Modality=modality)
    (tmp_path / "labels.csv").write_text("PatientID,label\n" + "".join(f"P{n},mel\n" for n in range(4)))
    settings = {
        "name": "north", "data": {"kind": "dicom", "root": "files", "labels": "labels.csv", "match": "PatientID"},
        "state_dir": "state", "split": {"kind": "none", "all": "train"}, "threads": 1,
    }  # fmt: skip
    (tmp_path / "site.yaml").write_text(yaml.safe_dump(settings))
    report = check(load_site(tmp_path / "site.yaml"), ("mel",))
    assert report.may_take_part
    assert len(report.images) == 4
    told = " ".join(texts(report, "look"))
    for kind in ("a segmentation", "a radiotherapy dose", "a structured report"):
        assert f"1 DICOM files with {kind} instead of an image" in told


def told(report: Report) -> str:
    return "\n".join(finding.text for finding in report.findings)


# --- the command and the page ----------------------------------------------------------------


def test_the_command_says_whether_the_site_may_take_part(
    site: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    page = site.folder / "page.html"
    assert main(["check", str(site.write()), "--html", str(page)]) == 0
    assert "north may take part" in capsys.readouterr().out
    assert stat.S_IMODE(page.stat().st_mode) == 0o600
    cut(site)
    assert main(["check", str(site.write()), "--html", str(page)]) == 1
    out = capsys.readouterr().out
    assert "[STOPS THE STUDY] 1 image(s) cannot be used" in out
    assert "north may NOT take part" in out
    assert "may not take part until what stops it is fixed" in page.read_text()


def test_the_page_shows_every_finding_and_class_and_fetches_nothing(spoiled: Report) -> None:
    page = html_page.page(spoiled, datetime(2026, 1, 2, 3, 4, tzinfo=UTC))
    assert "02 January 2026, 03:04" in page
    for name in CLASSES:
        assert f"<td>{name}</td>" in page
    assert page.count('<div class="card finding ') == len(spoiled.findings)
    # Nothing but pictures that are in the page itself; a browser is told to fetch nothing else.
    assert set(re.findall(r'(?:src|href)="(.{5})', page)) == {"data:"}
    assert not re.findall(r"https?:|url\(|<script|@import", page)
    assert "default-src 'none'" in page
    melanomas = page.split("<h2>Samples")[1].split("<b>mel</b>")[1].split("<b>nv</b>")[0]
    assert melanomas.count("<figure>") == 16


def test_what_the_policy_keeps_back_is_said_and_the_numbers_are_those_of_the_trainer(site: Site) -> None:
    # Ten lesions of each class: 2 for testing, 1 for validation, 7 to train on. A kit's policy asks for 5 on a side.
    assert "14 train, 2 validation, 4 test" in told(site.report())
    site.settings["policy"] = {"min_cell": 5}
    report = site.report()
    text = told(report)
    assert "2 validation images train instead, and none are left to validate on. policy.min_cell is 5" in text
    assert "4 of 20 images are not used: neither counted, trained on nor scored" in text
    assert "mel: 2 test images" in text
    assert "16 train, 0 validation, 0 test" in text
    config = load_site(site.write())
    split = kept(read.read(config.data, CLASSES[1:], config.state_dir), config.split, config.state_dir)
    trained = small_cells.usable(split, config.policy)
    assert report.used is not None
    assert {row.image.key: row.split for row in report.used.rows} == {
        row.image.key: row.split for row in trained.rows
    }
    site.settings["policy"] = {"min_cell": 20}
    assert "the policy leaves no image to train on" in told(site.report())
    assert not site.report().may_take_part


def test_a_warning_that_is_among_the_findings_is_not_logged_as_well(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    site.rows = [(name, label, "") for name, label, _ in site.rows]
    assert "20 of 20 images (100%) name no patient or lesion" in told(site.report())
    assert not caplog.records

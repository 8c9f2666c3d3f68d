"""BraTS in its two layouts: which slices, which channels, scaled inside the brain."""

import gzip
import os
import re
import tarfile
from pathlib import Path

import nibabel
import numpy as np
import pytest

from client.config import BratsData, EverySlice, MostTumour
from client.data.decoding import nifti
from client.data.decoding.decode import decode
from client.data.readers import read
from client.data.references import BadImage, NiftiSlice
from common.errors import SiteDataError
from tests.places import DATA

TURNED = np.diag([-1.0, -1, 1, 1])  # as in BraTS: X to the left, Y to the back


def volume(path: Path, values_XYZ: np.ndarray, affine: np.ndarray = TURNED) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(values_XYZ, affine), path)
    return path


def brain(factor: int) -> np.ndarray:
    """16 x 16 x 12, brain in the middle of slices 2 to 9, brighter from slice to slice."""
    values = np.zeros((16, 16, 12), np.int16)
    for index in range(2, 10):
        values[4:12, 4:12, index] = factor * index
    return values


def subject(folder: Path, areas: dict[int, int], ending: str = ".nii.gz") -> Path:
    """A patient with tumours of so many voxels on these slices."""
    for number, modality in enumerate(("t1", "t1ce", "t2", "flair"), start=1):
        volume(folder / f"{folder.name}_{modality}{ending}", brain(10 * number))
    tumour = np.zeros((16, 16, 12), np.int16)
    for index, area in areas.items():
        tumour[5, 4 : 4 + area, index] = 4
    volume(folder / f"{folder.name}_seg{ending}", tumour)
    return folder


@pytest.fixture
def of_2018(tmp_path: Path) -> BratsData:
    subject(tmp_path / "HGG" / "Brats18_CBICA_AAB_1", {4: 3, 5: 8, 6: 5, 7: 8})
    subject(tmp_path / "LGG" / "Brats18_TCIA09_141_1", {6: 2})
    return BratsData(root=tmp_path, slices=MostTumour(count=2))


@pytest.fixture
def of_2020(tmp_path: Path) -> BratsData:
    subject(tmp_path / "BraTS20_Training_001", {5: 1}, ".nii")
    folder = subject(tmp_path / "BraTS20_Training_355", {6: 1}, ".nii")
    # the one patient whose segmentation kept another name
    (folder / f"{folder.name}_seg.nii").rename(folder / "W39_1998.09.19_Segm.nii")
    (tmp_path / "name_mapping.csv").write_text(
        "Grade,BraTS_2017_subject_ID,BraTS_2018_subject_ID,TCGA_TCIA_subject_ID,BraTS_2019_subject_ID,"
        "BraTS_2020_subject_ID\nHGG,,,NA,BraTS19_CBICA_AAB_1,BraTS20_Training_001\n"
        "LGG,,,NA,NA,BraTS20_Training_355\n"
    )
    return BratsData(root=tmp_path)


def test_the_slices_with_most_tumour_of_each_patient(of_2018):
    rows = read.read(of_2018, ("HGG", "LGG")).rows
    # 8 voxels each on slices 5 and 7 of the first patient; the second has one slice with any
    assert [(row.image.index, row.label) for row in rows] == [(5, "HGG"), (7, "HGG"), (6, "LGG")]
    assert [row.group for row in rows[1:]] == ["patient Brats18_CBICA_AAB_1", "patient Brats18_TCIA09_141_1"]
    assert [row.acquisition for row in rows[1:]] == ["CBICA", "TCIA09"]
    assert rows[0].source == "HGG/Brats18_CBICA_AAB_1 slice 5"


def test_every_third_slice_that_shows_brain(of_2018):
    data = of_2018.model_copy(update={"slices": EverySlice(step=3)})
    rows = read.read(data, ("HGG", "LGG")).rows
    assert [row.image.index for row in rows] == [3, 6, 9] * 2  # brain is on 2 to 9


def test_2020_has_its_grades_in_a_table(of_2020):
    rows = read.read(of_2020, ("HGG", "LGG")).rows
    assert [(row.patient, row.label, row.acquisition) for row in rows] == [
        ("BraTS20_Training_001", "HGG", "CBICA"),
        ("BraTS20_Training_355", "LGG", None),
    ]


def test_three_of_four_volumes_are_red_green_and_blue(of_2018):
    data = of_2018.model_copy(update={"channels": ("t1", "t2", "flair")})
    (row, *_) = read.read(data, ("HGG", "LGG")).rows
    assert [path.name.removeprefix("Brats18_CBICA_AAB_1_") for path in row.image.files] == [
        "t1.nii.gz", "t2.nii.gz", "flair.nii.gz",
    ]  # fmt: skip


def test_a_volume_is_scaled_inside_the_brain_and_what_is_outside_stays_black(of_2018):
    # Brain values 20 to 90 in steps of 10, 64 voxels each, so the 1st percentile is 20 and the 99th 90:
    # slice 5 has 50, which is 1 + 254 * 30/70 = 109.9
    (row, *_) = read.read(of_2018, ("HGG", "LGG")).rows
    square = decode(row.image, 16, "nearest")
    assert square[8, 8].tolist() == [110, 110, 110]  # whatever the scanner's scale: 20, 30 and 40 times
    assert square[0, 0].tolist() == [0, 0, 0]
    assert sorted(set(nifti.scaled(row.image.channels[0]).ravel())) == [
        0,
        1,
        37,
        74,
        110,
        146,
        182,
        219,
        255,
    ]


def test_the_front_is_up_whatever_way_a_volume_is_stored(tmp_path):
    # A bright front: with Y to the back (as in BraTS) it is stored at the low end of Y.
    for name, affine, front in (("a", TURNED, slice(0, 4)), ("b", np.eye(4), slice(12, 16))):
        values = np.full((16, 16, 3), 10, np.int16)
        values[:, front] = 90
        path = volume(tmp_path / name / "v.nii", values, affine)
        square = decode(NiftiSlice((path, path, path), 1), 16, "nearest")
        assert square[1, 8, 0] == 255
        assert square[14, 8, 0] == 1


def read_by_nibabel(path: Path) -> np.ndarray:
    return nibabel.as_closest_canonical(nibabel.load(path)).get_fdata()


@pytest.mark.parametrize("kind", [np.uint8, np.int16, np.float32, np.float64, ">i2"])
@pytest.mark.parametrize("axes", [(0, 1, 2), (2, 0, 1)])
def test_a_volume_has_the_values_that_nibabel_reads(kind, axes, tmp_path):
    turned = np.vstack([TURNED[list(axes)], TURNED[3]])
    values = np.arange(3 * 4 * 5).reshape(3, 4, 5).astype(kind)
    image = nibabel.Nifti1Image(values, turned)
    image.header.set_data_dtype(np.int16)
    image.header.set_slope_inter(0.5, -7)
    nibabel.save(image, tmp_path / "v.nii")
    assert np.allclose(nifti.load(tmp_path / "v.nii"), read_by_nibabel(tmp_path / "v.nii"))


def test_all_that_is_wrong_is_said_at_once(of_2018):
    (of_2018.root / "HGG" / "Brats18_CBICA_AAB_1" / "Brats18_CBICA_AAB_1_t2.nii.gz").unlink()
    second = of_2018.root / "LGG" / "Brats18_TCIA09_141_1"
    volume(second / f"{second.name}_seg.nii.gz", np.zeros((16, 16, 12), np.int16))
    with pytest.raises(SiteDataError) as caught:
        read.read(of_2018, ("HGG", "LGG"))
    assert "has no Brats18_CBICA_AAB_1_t2.nii or .nii.gz; copy it again" in str(caught.value)
    assert "LGG/Brats18_TCIA09_141_1 has no tumour in its segmentation" in str(caught.value)


def test_a_table_of_2020_is_checked_line_by_line(of_2020):
    with (of_2020.root / "name_mapping.csv").open("a") as file:
        file.write("HGG,,,NA,NA,BraTS20_Training_999\nIII,,,NA,NA,BraTS20_Training_001\nHGG,,,NA,NA,../x\n")
    with pytest.raises(SiteDataError) as caught:
        read.read(of_2020, ("HGG", "LGG"))
    text = str(caught.value)
    assert "row 4: no folder BraTS20_Training_999" in text
    assert "row 5: found grade 'III'" in text
    assert "row 6: " in text


def test_another_folder_is_answered_with_what_was_expected(tmp_path):
    with pytest.raises(SiteDataError, match=r"neither folders HGG and LGG .* nor name_mapping"):
        read.read(BratsData(root=tmp_path), ("HGG", "LGG"))


# --- companions ------------------------------------------------------------------------------


def problem(data: BratsData) -> str:
    with pytest.raises(SiteDataError) as caught:
        read.read(data, ("HGG", "LGG"))
    return str(caught.value)


@pytest.mark.parametrize(
    ("modality", "affine", "values", "said"),
    [
        ("seg", np.diag([-1.0, -1, 2, 1]), brain(1), "voxels of 1 x 1 x 2 mm instead of 1 x 1 x 1 mm"),
        ("seg", TURNED, brain(1)[:, :, 1:], "16 x 16 x 11 voxels instead of 16 x 16 x 12"),
        ("seg", np.eye(4), brain(1), r"origin \(0, 0, 0\) mm instead of \(-15, -15, 0\) mm"),
        ("flair", TURNED, brain(1)[1:], "15 x 16 x 12 voxels instead of 16 x 16 x 12"),
    ],
)
def test_a_companion_on_another_grid_is_said_with_the_patient(of_2018, modality, affine, values, said):
    folder = of_2018.root / "LGG" / "Brats18_TCIA09_141_1"
    volume(folder / f"{folder.name}_{modality}.nii.gz", values, affine)
    told = problem(of_2018)
    assert f"LGG/{folder.name} has {folder.name}_{modality}.nii.gz on another grid" in told
    assert re.search(said, told)


def test_every_third_slice_needs_channels_on_one_grid_but_no_segmentation(of_2018):
    data = of_2018.model_copy(update={"slices": EverySlice(step=3)})
    folder = of_2018.root / "LGG" / "Brats18_TCIA09_141_1"
    (folder / f"{folder.name}_seg.nii.gz").unlink()
    assert len(read.read(data, ("HGG", "LGG")).rows) == 6
    volume(folder / f"{folder.name}_t2.nii.gz", brain(1), np.eye(4))
    assert "on another grid" in problem(data)


def test_labels_that_are_nearly_whole_numbers_are_labels(of_2018):
    # 0.9999 is tumour, on slices 3 and 8; what is left of an interpolation, 0.01 all over, is none.
    folder = of_2018.root / "LGG" / "Brats18_TCIA09_141_1"
    labels = np.full((16, 16, 12), 0.01, np.float32)
    labels[5, 5, [3, 8]] = 0.9999
    volume(folder / f"{folder.name}_seg.nii.gz", labels)
    rows = [row for row in read.read(of_2018, ("HGG", "LGG")).rows if row.label == "LGG"]
    assert [row.image.index for row in rows] == [3, 8]


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (
            lambda labels: labels * 0.4 / 4 + 0.35,
            r"has values such as 0\.35 in .*_seg\.nii\.gz; expected the labels",
        ),
        (lambda labels: labels - 1, r"has values such as -1 in .*; expected the labels of a segmentation"),
        (lambda labels: labels * 0 + 1, r"has tumour in 100% of .*, as a mask of the head has"),
    ],
)
def test_probabilities_and_masks_of_the_head_are_no_segmentation(of_2018, values, said):
    folder = of_2018.root / "HGG" / "Brats18_CBICA_AAB_1"
    path = folder / f"{folder.name}_seg.nii.gz"
    volume(path, values(nibabel.load(path).get_fdata()).astype(np.float32))
    with pytest.raises(SiteDataError, match=said):
        read.read(of_2018, ("HGG", "LGG"))


def test_what_lies_in_a_patients_folder_and_is_not_used_is_named_by_kind(of_2018):
    folder = of_2018.root / "HGG" / "Brats18_CBICA_AAB_1"
    (folder / "notes.txt").write_text("check again")
    (folder / ".DS_Store").write_text("")
    (folder / "old").mkdir()
    (folder / "lost.nii").symlink_to("nowhere.nii")
    os.mkfifo(folder / "pipe.nii")
    home = "HGG/Brats18_CBICA_AAB_1"
    unused = {one.kind: (one.names, one.is_usual) for one in read.survey(of_2018, None).unused}
    assert unused == {
        "files of patients that are no volume by their name": ((f"{home}/notes.txt",), False),
        "files of the operating system": ((f"{home}/.DS_Store",), True),
        "folders inside of patients' folders": ((f"{home}/old",), False),
        "links that lead nowhere": ((f"{home}/lost.nii",), False),
        "pipes, sockets and devices": ((f"{home}/pipe.nii",), False),
        "volumes of patients that data.channels and data.slices do not ask for": (
            (
                f"{home}/Brats18_CBICA_AAB_1_t1.nii.gz",
                "LGG/Brats18_TCIA09_141_1/Brats18_TCIA09_141_1_t1.nii.gz",
            ),
            True,
        ),
    }


@pytest.mark.parametrize(("ending", "found"), [("mgz", ".mgz"), ("img", ".hdr, Brats18_CBICA_AAB_1_t2.img")])
def test_a_volume_in_another_format_is_said_with_its_name(of_2018, ending, found):
    folder = of_2018.root / "HGG" / "Brats18_CBICA_AAB_1"
    path = folder / f"{folder.name}_t2.nii.gz"
    kind = nibabel.MGHImage if ending == "mgz" else nibabel.Nifti1Pair
    nibabel.save(kind(brain(3), TURNED), folder / f"{folder.name}_t2.{ending}")
    path.unlink()
    with pytest.raises(SiteDataError, match=f"has Brats18_CBICA_AAB_1_t2{found}, but no .*; convert it"):
        read.read(of_2018, ("HGG", "LGG"))


def test_one_file_under_two_names_is_not_two_channels(of_2018):
    folder = of_2018.root / "HGG" / "Brats18_CBICA_AAB_1"
    (folder / f"{folder.name}_t2.nii.gz").write_bytes((folder / f"{folder.name}_t1ce.nii.gz").read_bytes())
    with pytest.raises(SiteDataError, match=r"_t1ce\.nii\.gz and .*_t2\.nii\.gz, which are the same"):
        read.read(of_2018, ("HGG", "LGG"))


def test_a_patient_under_both_grades_is_a_problem(of_2018):
    subject(of_2018.root / "LGG" / "Brats18_CBICA_AAB_1", {3: 2})
    with pytest.raises(SiteDataError, match="Brats18_CBICA_AAB_1 lies under HGG and under LGG"):
        read.read(of_2018, ("HGG", "LGG"))


def test_grades_are_known_in_small_letters_and_another_folder_is_named(of_2018, tmp_path):
    (of_2018.root / "HGG").rename(of_2018.root / "hgg")
    assert {row.label for row in read.read(of_2018, ("HGG", "LGG")).rows} == {"HGG", "LGG"}
    with pytest.raises(SiteDataError, match=r"neither folders HGG and LGG .* but Brats18_CBICA_AAB_1; point"):
        read.read(BratsData(root=of_2018.root / "hgg"), ("HGG", "LGG"))


def test_an_image_is_not_taken_for_a_segmentation(of_2018):
    folder = of_2018.root / "LGG" / "Brats18_TCIA09_141_1"
    volume(folder / f"{folder.name}_seg.nii.gz", brain(100))
    assert (
        f"has values up to 900 in {folder.name}_seg.nii.gz; expected the labels of a segmentation"
        in problem(of_2018)
    )


def test_of_two_files_for_one_volume_none_is_preferred(of_2018):
    folder = of_2018.root / "LGG" / "Brats18_TCIA09_141_1"
    volume(folder / f"{folder.name}_t2.nii", brain(1))
    name = f"{folder.name}_t2.nii"
    assert f"has {name} and {name}.gz; keep the one that counts" in problem(of_2018)


def test_of_two_segmentations_under_other_names_none_is_preferred(of_2020):
    folder = of_2020.root / "BraTS20_Training_355"
    volume(folder / "W39_corrected_seg.nii", brain(1))
    assert "has W39_1998.09.19_Segm.nii and W39_corrected_seg.nii; keep the one that counts" in problem(
        of_2020
    )


def test_endings_in_capitals_are_endings(of_2020):
    folder = of_2020.root / "BraTS20_Training_001"
    for path in folder.iterdir():
        path.rename(path.with_suffix(".NII"))
    assert len(read.read(of_2020, ("HGG", "LGG")).rows) == 2


# --- what is refused -------------------------------------------------------------------------


def refusal(path: Path) -> str:
    with pytest.raises(BadImage) as caught:
        nifti.load(path)
    return str(caught.value)


def test_a_volume_that_says_more_than_the_limit_is_refused_by_its_header(tmp_path):
    # 2,000^3 voxels of zeros: the header alone says so, nothing is unpacked.
    header = nibabel.Nifti1Header()
    header.set_data_shape((2000, 2000, 2000))
    header["magic"] = b"n+1"
    with gzip.open(tmp_path / "bomb.nii.gz", "wb") as file:
        file.write(header.binaryblock + bytes(4))
        file.write(bytes(10**6))
    assert "8,000,000,000 voxels; expected at most 67,108,864" in refusal(tmp_path / "bomb.nii.gz")


def test_no_more_is_unpacked_than_the_header_speaks_of(tmp_path):
    path = volume(tmp_path / "a.nii", brain(1))
    with gzip.open(tmp_path / "b.nii.gz", "wb") as file:
        file.write(path.read_bytes() + bytes(50 * 2**20))
    assert np.array_equal(nifti.load(tmp_path / "b.nii.gz"), nifti.load(path))
    with gzip.open(tmp_path / "b.nii.gz") as file:
        nifti._voxels(file, "b.nii.gz")
        assert file.tell() == path.stat().st_size


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (
            lambda path: volume(path, np.zeros((4, 4, 4, 3), np.int16)),
            "4 x 4 x 4 x 3 voxels; expected one volume",
        ),
        (lambda path: volume(path, np.zeros((4, 4), np.int16)), "4 x 4 voxels"),
        (lambda path: path.write_bytes(b"short"), "shorter than the header"),
        (lambda path: path.write_bytes(bytes(4000)), "no NIfTI-1 file"),
        (
            lambda path: path.write_bytes(volume(path, brain(1)).read_bytes()[:-100]),
            "ends 100 bytes too early",
        ),
        (lambda path: volume(path, np.zeros((4, 4, 4), np.complex64)), "complex64 voxels"),
        (lambda path: None, "cut short or damaged|has no file"),
    ],
)
def test_what_is_no_volume_is_refused_with_a_reason(make, said, tmp_path):
    make(tmp_path / "v.nii")
    assert re.search(said, refusal(tmp_path / "v.nii"))


def test_channels_of_different_sizes_are_refused(tmp_path):
    one = volume(tmp_path / "a.nii", np.ones((16, 16, 4), np.int16))
    other = volume(tmp_path / "b.nii", np.ones((16, 12, 4), np.int16))
    with pytest.raises(BadImage, match="different sizes: 16 x 12 x 4, 16 x 16 x 4"):
        decode(NiftiSlice((one, one, other), 1), 16, "nearest")
    with pytest.raises(BadImage, match="has 4 slices, found no slice 4"):
        decode(NiftiSlice((one, one, one), 4), 16, "nearest")


# --- the real samples ------------------------------------------------------------------------


@pytest.mark.skipif(not DATA.exists(), reason="the real samples lie in ../shared/data, which is not here")
def test_every_real_sample_is_read_or_refused_with_a_sentence(tmp_path):
    with tarfile.open(DATA / "dicom_nifti_samples.tar") as archive:
        archive.extractall(tmp_path, filter="data")
    found: dict[str, object] = {}
    for path in sorted([*tmp_path.rglob("*.nii"), *tmp_path.rglob("*.nii.gz")]):
        try:
            found[path.name] = nifti.scaled(path).shape
            assert np.allclose(nifti.load(path), read_by_nibabel(path))
        except BadImage as bad:
            found[path.name] = str(bad)
    assert found == {
        "anatomical.nii": (33, 41, 25),
        "example4d.nii.gz": "has a file example4d.nii.gz of 128 x 96 x 24 x 2 voxels; expected one volume of "
        "three axes",
        "functional.nii": "has a file functional.nii of 17 x 21 x 3 x 20 voxels; expected one volume of three axes",
    }

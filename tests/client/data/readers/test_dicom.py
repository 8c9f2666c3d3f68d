"""DICOM: what is seen of a frame, whose it is, and that no identifier is told in clear."""

import os
import tarfile
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydantic import ValidationError
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import (
    ComprehensiveSRStorage,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    GrayscaleSoftcopyPresentationStateStorage,
    JPEG2000Lossless,
    KeyObjectSelectionDocumentStorage,
    MRImageStorage,
    RLELossless,
    RTDoseStorage,
    SecondaryCaptureImageStorage,
    SegmentationStorage,
)

from client.config import DicomColumns, DicomData, DicomWindow, SiteConfig, SubgroupColumn, SubgroupTag
from client.data.decoding import dicom as dicom_pixels
from client.data.decoding.decode import decode
from client.data.readers import read
from client.data.references import BadImage, DicomFrame, Window
from common.errors import SiteDataError
from tests.places import DATA

# A test's own filters replace the ones that dicom_pixels sets for pydicom.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:pydicom")

RAMP = np.repeat(np.arange(16, dtype=np.uint16)[None] * 100, 16, axis=0)  # 0 to 1500 from left to right


def dicom(path: Path, pixels: np.ndarray = RAMP, compress: str | None = None, **values: object) -> Path:
    """A file as a scanner writes it: 16-bit grey, patient P7, image 1.2.3.NAME."""
    path.parent.mkdir(parents=True, exist_ok=True)
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = MRImageStorage
    meta.MediaStorageSOPInstanceUID = "1.2.3.4"
    data = FileDataset(str(path), {}, file_meta=meta, preamble=bytes(128))
    data.SOPClassUID = MRImageStorage
    data.SOPInstanceUID = f"1.2.3.{sum(path.stem.encode())}"
    data.StudyInstanceUID, data.PatientID, data.PatientName = "1.9.8", "P7-SECRET", "Doe^Jane"
    data.Manufacturer, data.ManufacturerModelName, data.Modality = "Acme", "M1", "MR"
    frames = pixels if pixels.ndim == 3 else pixels[None]
    data.Rows, data.Columns, data.SamplesPerPixel = *frames.shape[1:3], 1
    data.BitsAllocated = data.BitsStored = 8 * pixels.dtype.itemsize
    data.HighBit, data.PixelRepresentation = data.BitsStored - 1, int(pixels.dtype.kind == "i")
    data.PhotometricInterpretation = "MONOCHROME2"
    if len(frames) > 1:
        data.NumberOfFrames = len(frames)
    data.PixelData = pixels.tobytes()
    for word, value in values.items():
        setattr(data, word, value)
    if compress == "rle":
        data.compress(RLELossless)
    data.save_as(path)
    return path


def seen(path: Path, frame: int = 0, window: Window | None = None) -> list[int]:
    """The middle row of the 16 x 16 picture, as grey."""
    return decode(DicomFrame(path, frame, window), 16, "nearest")[8, :, 0].tolist()


# --- values become grey ----------------------------------------------------------------------


def test_without_a_window_the_first_to_the_99th_percentile_is_black_to_white(tmp_path):
    # 16 values alike often: the 1st percentile is 0, the 99th 1500; 700 becomes 700/1500 * 255 = 119
    row = seen(dicom(tmp_path / "a.dcm"))
    assert (row[0], row[7], row[15]) == (0, 119, 255)


def test_the_files_window_is_obeyed_and_the_sites_goes_before_it(tmp_path):
    # centre 800.5, width 401: 600 and below is black, 1000 and above is white, 800 is half, 127.5 rounded up
    path = dicom(tmp_path / "a.dcm", WindowCenter=[800.5, 1], WindowWidth=[401, 2])
    row = seen(path)
    assert (row[5], row[6], row[8], row[10], row[11]) == (0, 0, 128, 255, 255)
    # centre 300.5, width 201: 200 to 400
    assert [seen(path, window=Window(300.5, 201))[place] for place in (2, 3, 4)] == [0, 128, 255]


def test_a_window_is_in_hounsfield_units_where_the_file_has_a_scale(tmp_path):
    # 1 * value - 1000: the value 1000 is 0 HU; window 0.5 +- 100: 900 black, 1000 half, 1100 white
    path = dicom(tmp_path / "a.dcm", RescaleSlope=1, RescaleIntercept=-1000)
    assert [seen(path, window=Window(0.5, 201))[place] for place in (9, 10, 11)] == [0, 128, 255]


def test_monochrome1_is_turned_over(tmp_path):
    row = seen(dicom(tmp_path / "a.dcm", PhotometricInterpretation="MONOCHROME1"))
    assert (row[0], row[15]) == (255, 0)


def test_negative_values_and_padding_are_understood(tmp_path):
    # The left column is padding; without it the range is -700 to 700.
    values = (RAMP.astype(np.int16) - 800).copy()
    values[:, 0] = -30000
    row = seen(dicom(tmp_path / "a.dcm", values, PixelPaddingValue=-30000))
    assert (row[0], row[1], row[8], row[15]) == (0, 0, 128, 255)
    turned = dicom(
        tmp_path / "b.dcm", values, PixelPaddingValue=-30000, PhotometricInterpretation="MONOCHROME1"
    )
    row = seen(turned)  # what no detector saw is black here, too
    assert (row[0], row[1], row[8], row[15]) == (0, 255, 128, 0)


def test_a_flat_frame_is_black_and_no_error(tmp_path):
    assert set(seen(dicom(tmp_path / "a.dcm", np.full((16, 16), 7, np.uint16)))) == {0}


def test_each_frame_of_several_is_an_image(tmp_path):
    frames = np.stack([RAMP, RAMP[:, ::-1]])
    path = dicom(tmp_path / "a.dcm", frames)
    assert seen(path, 0) == seen(path, 1)[::-1]
    with pytest.raises(BadImage, match=r"has 2 frame\(s\), found no frame 3"):
        seen(path, 2)


def test_rle_is_what_it_was(tmp_path):
    assert seen(dicom(tmp_path / "b.dcm", compress="rle")) == seen(dicom(tmp_path / "a.dcm"))


def test_colour_keeps_its_colours(tmp_path):
    red = np.zeros((16, 16, 3), np.uint8)
    red[..., 0] = 200
    path = dicom(
        tmp_path / "a.dcm", red[..., 0], SamplesPerPixel=3, PhotometricInterpretation="RGB",
        PlanarConfiguration=0, PixelData=red.tobytes(),
    )  # fmt: skip
    assert decode(DicomFrame(path, 0), 16, "nearest")[3, 3].tolist() == [200, 0, 0]


# --- what is refused -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"Rows": 65535, "Columns": 65535}, "says 65535 x 65535 pixels; expected at most"),
        ({"NumberOfFrames": 10**9}, "says 1000000000 frames"),
        ({"Rows": 0}, r"holds no image \(modality MR\)"),
        ({"BitsAllocated": 12}, "of 12 bits a pixel"),
        ({"Rows": 64}, "end 1,536 bytes too early"),
    ],
)
def test_a_file_that_says_more_than_it_holds_is_refused(values, said, tmp_path):
    with pytest.raises(BadImage, match=said):
        seen(dicom(tmp_path / "a.dcm", **values))


def test_a_compressed_frame_of_another_size_is_refused_before_it_is_decoded(tmp_path, monkeypatch):
    # A JPEG 2000 codestream that says 60,000 x 60,000 in a file of 16 x 16.
    siz = b"\xff\x4f\xff\x51\x00\x29\x00\x00" + (60000).to_bytes(4) * 2 + bytes(8) + bytes(60)
    path = dicom(tmp_path / "a.dcm", PixelData=pydicom.encaps.encapsulate([siz]))
    data = pydicom.dcmread(path)
    data.file_meta.TransferSyntaxUID = JPEG2000Lossless
    data["PixelData"].is_undefined_length = True
    data.save_as(path)
    monkeypatch.setattr(dicom_pixels, "pixel_array", None)
    with pytest.raises(BadImage, match="says 16 x 16 pixels, but its frame 60000x60000"):
        seen(path)


def test_a_deflated_file_is_refused_because_it_may_unpack_to_anything(tmp_path):
    data = pydicom.dcmread(dicom(tmp_path / "a.dcm"))
    data.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    data.save_as(tmp_path / "b.dcm")
    with pytest.raises(BadImage, match="deflated"):
        seen(tmp_path / "b.dcm")


# --- rows ------------------------------------------------------------------------------------


@pytest.fixture
def export(tmp_path: Path) -> DicomData:
    """Two patients, three images, one of three frames; one image without a line."""
    root = tmp_path / "pacs"
    dicom(root / "x" / "a.dcm", SOPInstanceUID="1.1", PatientID="P1")
    dicom(root / "x" / "IM0002", SOPInstanceUID="1.2", PatientID="P1", pixels=np.stack([RAMP] * 3))
    dicom(root / "y" / "c.dcm", SOPInstanceUID="1.3", PatientID="P2")
    dicom(root / "y" / "scout.dcm", SOPInstanceUID="1.4", PatientID="P3")
    (root / "DICOMDIR").write_bytes(b"an index")
    (root / "readme.txt").write_text("no image")
    (tmp_path / "labels.csv").write_text("SOPInstanceUID,label\n1.1,a\n1.2,b\n1.3,a\n")
    return DicomData(root=root, labels=tmp_path / "labels.csv")


def test_images_are_found_by_their_number_whatever_their_files_are_called(export, tmp_path):
    rows = read.read(export, ("a", "b"), tmp_path / "state").rows
    assert [(row.image.name, row.label, row.source) for row in rows] == [
        ("IM0002 frame 1", "b", "labels.csv row 3"),
        ("IM0002 frame 2", "b", "labels.csv row 3"),
        ("IM0002 frame 3", "b", "labels.csv row 3"),
        ("a.dcm frame 1", "a", "labels.csv row 2"),
        ("c.dcm frame 1", "a", "labels.csv row 4"),
    ]
    assert len({row.group for row in rows[:4]}) == 1
    assert rows[4].group != rows[0].group
    assert rows[0].acquisition == "Acme M1"
    middle = export.model_copy(update={"frames": "middle"})
    assert [row.image.frame for row in read.read(middle, ("a", "b")).rows] == [1, 0, 0]


def test_a_line_says_in_which_subgroup_its_images_are(export):
    export.labels.write_text("SOPInstanceUID,label,sex\n1.1,a,F\n1.2,b,M\n1.3,a,\n")
    by_sex = export.model_copy(update={"subgroups": {"sex": SubgroupColumn(column="sex")}})
    rows = read.read(by_sex, ("a", "b")).rows
    assert [row.attributes for row in rows] == [{"sex": "M"}] * 3 + [{"sex": "F"}, {}]
    export.labels.write_text("SOPInstanceUID,label,sex\n1.1,a,F\n1.1,a,M\n1.2,b,M\n1.3,a,\n")
    with pytest.raises(SiteDataError, match="with another label, split or subgroup"):
        read.read(by_sex, ("a", "b"))


def test_a_header_says_in_which_subgroup_its_images_are(export):
    dicom(
        export.root / "x" / "a.dcm", SOPInstanceUID="1.1", PatientID="P1", PatientSex="F", PatientAge="063Y"
    )
    dicom(export.root / "y" / "c.dcm", SOPInstanceUID="1.3", PatientID="P2", PatientAge="018M")
    export.labels.write_text("SOPInstanceUID,label\n1.1,a\n1.3,a\n")
    tags = {"sex": SubgroupTag(tag="PatientSex"), "age": SubgroupTag(tag="PatientAge")}
    rows = read.read(export.model_copy(update={"subgroup_tags": tags}), ("a", "b")).rows
    assert [row.attributes for row in rows] == [{"sex": "F", "age": "063Y"}, {"age": "018M"}]


def test_an_attribute_is_a_column_or_a_tag_and_no_tag_names_a_person(export):
    about = {"subgroups": {"sex": {"column": "sex"}}, "subgroup_tags": {"sex": {"tag": "PatientSex"}}}
    with pytest.raises(ValidationError, match="keep the column or the tag"):
        DicomData.model_validate({**export.model_dump(), **about})
    with pytest.raises(ValidationError, match="PatientAge"):
        SubgroupTag.model_validate({"tag": "PatientName"})


def test_a_patients_line_labels_all_images(export, tmp_path):
    export.labels.write_text("id,grade,side\nP1,a,train\nP2,b,test\n")
    columns = DicomColumns(key="id", label="grade", split="side")
    data = export.model_copy(update={"match": "PatientID", "columns": columns})
    rows = read.read(data, ("a", "b")).rows
    assert [(row.label, row.split) for row in rows] == [("a", "train")] * 4 + [("b", "test")]


def test_no_identifier_is_in_a_row_in_clear_and_names_hold_from_day_to_day(export, tmp_path):
    first = read.read(export, ("a", "b"), tmp_path / "state").rows
    again = read.read(export, ("a", "b"), tmp_path / "state").rows
    assert first == again
    told = " ".join(str(vars(row) | {"image": ""}) for row in first)
    for secret in ("P1", "P2", "1.1", "1.2", "1.9.8", "Doe"):
        assert secret not in told.replace("M1", "")
    other = read.read(export, ("a", "b"), tmp_path / "elsewhere").rows
    assert {row.group for row in other}.isdisjoint({row.group for row in first})


def test_the_secret_is_for_its_owner_only(export, tmp_path):
    read.read(export, ("a", "b"), tmp_path / "state")
    (file,) = (tmp_path / "state").iterdir()
    assert file.stat().st_mode & 0o777 == 0o600
    file.chmod(0o644)
    with pytest.raises(SiteDataError, match="may be read by others on this machine; run `chmod 600"):
        read.read(export, ("a", "b"), tmp_path / "state")


def test_images_without_a_patient_are_grouped_by_their_study(export, tmp_path):
    for path in (export.root / "x").iterdir():
        data = pydicom.dcmread(path)
        data.PatientID = ""
        data.save_as(path)
    contents = read.survey(export, ("a", "b"))
    assert len({row.group for row in contents.manifest.rows[:4]}) == 1
    (entry,) = [one for one in contents.unused if one.what == "grouped by their study"]
    assert entry.names == ("IM0002 frame 1", "IM0002 frame 2", "IM0002 frame 3", "a.dcm frame 1")


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({}, None),
        ({"pixels": RAMP + 1}, "is an image with the SOPInstanceUID of another file and other pixels"),
        ({"PatientID": "P9"}, "the pixels of another file, but another PatientID"),
    ],
)
def test_one_image_that_lies_there_twice_counts_once_and_two_under_one_number_are_a_problem(
    export, values, said
):
    dicom(export.root / "again" / "a.dcm", **{"SOPInstanceUID": "1.1", "PatientID": "P1", **values})
    contents = read.survey(export, ("a", "b"))
    if said is None:
        assert not contents.problems
        assert len(contents.manifest.rows) == 5
        (copies,) = [one for one in contents.unused if one.kind.startswith("copies of a DICOM image")]
        assert copies.names == ("x/a.dcm",)
    else:
        (problem,) = contents.problems
        assert problem.startswith("x/a.dcm ")
        assert said in problem


def test_images_that_share_a_number_are_images_if_the_table_labels_patients(export):
    """Some tools that remove names give every file one number."""
    export.labels.write_text("PatientID,label\nP1,a\nP2,b\nP3,b\n")
    dicom(export.root / "x" / "b.dcm", SOPInstanceUID="1.1", PatientID="P1", pixels=RAMP + 1)
    contents = read.survey(export.model_copy(update={"match": "PatientID"}), ("a", "b"))
    assert len(contents.manifest.rows) == 7
    (entry,) = [one for one in contents.unused if "SOPInstanceUID" in one.kind]
    assert (entry.what, entry.names) == ("taken as images of their own", ("x/b.dcm",))


def test_a_patient_in_several_spellings_is_one_and_no_spelling_is_said(export):
    """One system writes 00123, the next 123."""
    for name, patient in (("IM0002", "00123"), ("a.dcm", "123")):
        data = pydicom.dcmread(export.root / "x" / name)
        data.PatientID = patient
        data.save_as(export.root / "x" / name)
    contents = read.survey(export, ("a", "b"))
    assert len({row.group for row in contents.manifest.rows[:4]}) == 1
    (entry,) = [one for one in contents.unused if one.what == "taken as one"]
    assert entry.names == ("a.dcm frame 1",)
    assert "123" not in entry.text.replace("00123", "123")


def test_a_line_of_a_patient_is_found_in_another_spelling_and_counted(export):
    """Excel drops the zeros in front."""
    for name in ("IM0002", "a.dcm"):
        data = pydicom.dcmread(export.root / "x" / name)
        data.PatientID = "00123"
        data.save_as(export.root / "x" / name)
    export.labels.write_text("PatientID,label\n123,a\np2,b\nP3,b\n1.2E+15,a\n")
    contents = read.survey(export.model_copy(update={"match": "PatientID"}), ("a", "b"))
    assert len(contents.manifest.rows) == 6
    assert contents.problems == (
        "labels.csv row 5: no file has this PatientID, which a spreadsheet has rounded (1.2E+05); save the column as "
        "text",
    )
    (entry,) = [one for one in contents.unused if one.what == "found nearly"]
    assert entry.names == ("x/IM0002", "x/a.dcm", "y/c.dcm")


def test_of_two_lines_that_a_patient_may_mean_none_is_taken(export):
    export.labels.write_text("PatientID,label\n007,a\n07,b\nP1,a\nP2,b\nP3,b\n")
    dicom(export.root / "x" / "seven.dcm", SOPInstanceUID="1.7", PatientID="7")
    contents = read.survey(export.model_copy(update={"match": "PatientID"}), ("a", "b"))
    assert len(contents.manifest.rows) == 6
    assert [one.names for one in contents.unused if "no line" in one.kind] == [("x/seven.dcm",)]


@pytest.mark.parametrize(("match", "expected"), [("StudyInstanceUID", 1), ("SOPInstanceUID", 0)])
def test_screenshots_in_a_study_that_is_labelled_as_a_whole_are_named(export, match, expected):
    dicom(export.root / "x" / "dose.dcm", SOPInstanceUID="1.1.9", SOPClassUID=SecondaryCaptureImageStorage)
    export.labels.write_text(
        "StudyInstanceUID,SOPInstanceUID,label\n"
        + "".join(f"1.9.8,{number},a\n" for number in ("1.1", "1.2", "1.3", "1.4", "1.1.9"))
    )
    contents = read.survey(export.model_copy(update={"match": match}), ("a",))
    found = [one for one in contents.unused if one.kind.startswith("secondary captures")]
    assert [(one.what, one.names) for one in found] == [("taken as images", ("x/dose.dcm",))] * expected


def test_a_pipe_and_a_file_without_its_mark_do_not_go_unseen(export):
    os.mkfifo(export.root / "pipe.dcm")
    (export.root / "bare").write_bytes((export.root / "x" / "a.dcm").read_bytes()[132:])
    contents = read.survey(export, ("a", "b"))
    assert [one.names for one in contents.unused if one.kind == "pipes, sockets and devices"] == [
        ("pipe.dcm",)
    ]
    assert contents.problems == (
        "bare lacks the header of a DICOM file (132 bytes that end in DICM); export it again, or let `dcmconv` of "
        "DCMTK add it",
    )


def test_all_that_is_wrong_with_an_export_is_said_at_once_without_an_identifier(export):
    export.labels.write_text("SOPInstanceUID,label\n1.1,a\n1.77,b\n1.3,\n1.1,b\n")
    (export.root / "broken.dcm").write_bytes(b"no dicom")
    dicom(export.root / "report.dcm", SOPInstanceUID="1.5", Rows=0)
    with (export.labels).open("a") as file:
        file.write("1.5,a\n")
    with pytest.raises(SiteDataError) as caught:
        read.read(export, ("a", "b"))
    text = str(caught.value)
    assert "5 problems" in text
    assert "row 3: no file has this SOPInstanceUID" in text
    assert "row 4: no label" in text
    assert "row 5: the SOPInstanceUID of labels.csv row 2 with another label, split or subgroup" in text
    assert "broken.dcm lacks the header of a DICOM file" in text
    assert "report.dcm holds no image (modality MR); leave it out" in text
    assert "1.77" not in text


def test_a_window_of_the_sites_yaml_reaches_the_pixels(export, tmp_path):
    site = SiteConfig(
        name="north",
        state_dir=tmp_path,
        data=export.model_copy(update={"window": DicomWindow(centre=300.5, width=201)}),
    )
    (image, *_) = (row.image for row in read.read(site.data, ("a", "b")).rows)
    assert decode(image, 16, "nearest")[8, [2, 3, 4], 0].tolist() == [0, 128, 255]
    assert image.how == "300.5/201"  # so that images that were decoded with another window are not used


# --- objects that are no images --------------------------------------------------------------

OTHERS = {
    "seg": (SegmentationStorage, "SEG"),
    "dose": (RTDoseStorage, "RTDOSE"),
    "state": (GrayscaleSoftcopyPresentationStateStorage, "PR"),
    "report": (ComprehensiveSRStorage, "SR"),
    "keys": (KeyObjectSelectionDocumentStorage, "KO"),
    "private": ("1.3.12.2.1107.5.9.1", "MR"),
}


@pytest.fixture
def wrong_export(export: DicomData) -> DicomData:
    """The export with six other objects of patient P1, some with pixels and some without."""
    for name, (kind, modality) in OTHERS.items():
        path = dicom(export.root / "x" / f"{name}.dcm", PatientID="P1", SOPClassUID=kind, Modality=modality)
        if name in ("report", "keys", "state"):
            data = pydicom.dcmread(path)
            for word in ("Rows", "Columns", "PixelData", "BitsAllocated"):
                del data[word]
            data.save_as(path)
    export.labels.write_text("PatientID,label\nP1,a\nP2,b\n")
    return export.model_copy(update={"match": "PatientID"})


def test_objects_that_are_no_images_are_neither_labelled_nor_do_they_stop_the_site(wrong_export, caplog):
    rows = read.read(wrong_export, ("a", "b")).rows
    assert [row.image.name for row in rows] == [
        "IM0002 frame 1", "IM0002 frame 2", "IM0002 frame 3", "a.dcm frame 1", "c.dcm frame 1",
    ]  # fmt: skip
    told = caplog.text
    for kind in ("segmentation", "radiotherapy dose", "presentation state", "structured report"):
        assert kind in told
    assert "key object selection" in told
    assert "object of the private class 1.3.12.2.1107.5.9.1" in told


def test_a_line_that_labels_no_image_is_a_problem(wrong_export):
    data = wrong_export.model_copy(update={"match": "SOPInstanceUID"})
    one, other = (
        pydicom.dcmread(data.root / "x" / f"{name}.dcm").SOPInstanceUID for name in ("seg", "report")
    )
    data.labels.write_text(f"SOPInstanceUID,label\n1.1,a\n{one},b\n{other},b\n")
    with pytest.raises(SiteDataError) as caught:
        read.read(data, ("a", "b"))
    assert "row 3: this SOPInstanceUID has no image, only 1 x segmentation; name the image" in str(
        caught.value
    )
    assert "row 4: this SOPInstanceUID has no image, only 1 x structured report" in str(caught.value)
    assert one not in str(caught.value)


def test_a_scout_does_not_get_the_label_of_its_patient(export):
    dicom(export.root / "y" / "topogram.dcm", PatientID="P2", ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    export.labels.write_text("PatientID,label\nP2,a\n")
    of_patient = export.model_copy(update={"match": "PatientID"})
    assert [row.image.name for row in read.read(of_patient, ("a",)).rows] == ["c.dcm frame 1"]
    # but who names the image itself means it
    own = pydicom.dcmread(export.root / "y" / "topogram.dcm").SOPInstanceUID
    export.labels.write_text(f"SOPInstanceUID,label\n{own},a\n")
    assert [row.image.name for row in read.read(export, ("a",)).rows] == ["topogram.dcm frame 1"]


@pytest.mark.parametrize(
    "form", ["RLE", "jp2klossless", "jpeg_ls_lossless", "bigendian", "expb", "implicit", "padded"]
)
def test_a_real_frame_looks_the_same_however_it_is_stored(form):
    # Of pydicom's own samples, which are installed with it.
    folder = Path(pydicom.__file__).parent / "data" / "test_files"
    plain, stored = (
        dicom_pixels.picture(DicomFrame(folder / name, 0))
        for name in ("MR_small.dcm", f"MR_small_{form}.dcm")
    )
    assert np.array_equal(np.asarray(plain), np.asarray(stored))


# --- the real samples ------------------------------------------------------------------------

SAMPLES = {
    "CT_small.dcm": (128, 128),
    "J2K_pixelrep_mismatch.dcm": (512, 512),
    "MR-SIEMENS-DICOM-WithOverlays.dcm": (484, 484),
    "MR_small.dcm": (64, 64),
    "MR_small_RLE.dcm": (64, 64),
    "SC_rgb_jpeg_dcmd.dcm": (256, 256),
    "badVR.dcm": "says no number where rows, columns or frames should stand; export it again",
    "emri_small.dcm": (64, 64),
    "emri_small_jpeg_2k_lossless.dcm": (64, 64),
    "examples_jpeg2k.dcm": (640, 480),
    "examples_overlay.dcm": (484, 300),
    "examples_rgb_color.dcm": (320, 240),
    "no_meta.dcm": "lacks the header of a DICOM file (132 bytes that end in DICM); export it again, or let "
    "`dcmconv` of DCMTK add it",
}


@pytest.mark.skipif(not DATA.exists(), reason="the real samples lie in ../shared/data, which is not here")
def test_every_real_sample_is_read_or_refused_with_a_sentence(tmp_path):
    with tarfile.open(DATA / "dicom_nifti_samples.tar") as archive:
        archive.extractall(tmp_path, filter="data")
    found: dict[str, object] = {}
    whole: dict[str, list[np.ndarray]] = {}
    for path in sorted(tmp_path.rglob("*.dcm")):
        try:
            frames = dicom_pixels.num_frames(dicom_pixels.read_header(path))
            whole[path.name] = [np.asarray(dicom_pixels.picture(DicomFrame(path, n))) for n in range(frames)]
            found[path.name] = whole[path.name][0].shape[1::-1]
        except BadImage as bad:
            found[path.name] = str(bad)
    assert found == SAMPLES
    # the same pictures, compressed without loss: RLE, and JPEG 2000 of ten frames
    assert np.array_equal(whole["MR_small.dcm"], whole["MR_small_RLE.dcm"])
    assert len(whole["emri_small.dcm"]) == 10
    assert np.array_equal(whole["emri_small.dcm"], whole["emri_small_jpeg_2k_lossless.dcm"])
    for name, frames_ in whole.items():
        assert all(frame.max() > frame.min() for frame in frames_), name

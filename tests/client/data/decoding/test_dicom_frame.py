"""Enhanced files: scale, window, spacing and type in functional groups, shared or of each frame."""

from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import EnhancedCTImageStorage

from client.data.decoding import dicom as dicom_pixels
from client.data.decoding.dicom_frame import Frame
from client.data.decoding.dicom_rendering import shown_size
from client.data.references import BadImage, DicomFrame, Window
from tests.client.data.readers.test_dicom import RAMP, dicom, seen

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:pydicom")


def item(**values: Any) -> Dataset:
    made = Dataset()
    for word, value in values.items():
        setattr(made, word, value)
    return made


def scaled(slope: float, intercept: float) -> dict[str, Any]:
    return {
        "PixelValueTransformationSequence": [
            item(RescaleSlope=slope, RescaleIntercept=intercept, RescaleType="HU")
        ]
    }


def windowed(centre: float, width: float, **more: Any) -> dict[str, Any]:
    return {"FrameVOILUTSequence": [item(WindowCenter=centre, WindowWidth=width, **more)]}


def enhanced(path: Path, shared: Dataset | None, frames: list[Dataset], **values: Any) -> Path:
    """Frames that all hold the ramp from 0 to 1500."""
    groups: dict[str, Any] = {} if shared is None else {"SharedFunctionalGroupsSequence": [shared]}
    if frames:
        groups["PerFrameFunctionalGroupsSequence"] = frames
    return dicom(
        path, np.stack([RAMP] * 2), SOPClassUID=EnhancedCTImageStorage, Modality="CT", **groups | values
    )


def test_a_shared_scale_and_window_hold_for_all_frames(tmp_path):
    # 0 to 1500 are -1000 to 500; window -300 to 100 (centre -99.5, width 401): 700 is black, 900 half, 1100 white
    shared = item(**scaled(1, -1000), **windowed(-99.5, 401))
    path = enhanced(tmp_path / "a.dcm", shared, [item(), item()])
    for frame in (0, 1):
        assert [seen(path, frame)[place] for place in (7, 9, 11)] == [0, 128, 255]


def test_each_frame_has_its_own_scale_and_window(tmp_path):
    frames = [
        item(**scaled(1, -1000), **windowed(-99.5, 401)),
        item(
            **scaled(2, 0), **windowed(1600.5, 801)
        ),  # 0 to 3000; 1200 to 2000: 600 black, 800 half, 1000 white
    ]
    path = enhanced(tmp_path / "a.dcm", None, frames)
    assert [seen(path, 0)[place] for place in (7, 9, 11)] == [0, 128, 255]
    assert [seen(path, 1)[place] for place in (6, 8, 10)] == [0, 128, 255]


def test_a_frames_own_goes_before_what_is_shared_and_that_before_the_flat_header(tmp_path):
    flat = {"RescaleSlope": 1, "RescaleIntercept": 5000, "WindowCenter": 1, "WindowWidth": 2}
    shared = item(**scaled(1, -1000), **windowed(-99.5, 401))
    path = enhanced(tmp_path / "a.dcm", shared, [item(**windowed(0.5, 201)), item()], **flat)
    # the first frame: -100 to 100, so 900 is black, 1000 half and 1100 white
    assert [seen(path, 0)[place] for place in (9, 10, 11)] == [0, 128, 255]
    assert [seen(path, 1)[place] for place in (7, 9, 11)] == [0, 128, 255]


def test_the_flat_header_of_an_enhanced_file_is_asked_last(tmp_path):
    path = enhanced(tmp_path / "a.dcm", item(), [item(), item()], WindowCenter=800.5, WindowWidth=401)
    assert [seen(path, 1)[place] for place in (6, 8, 10)] == [0, 128, 255]


def test_the_sites_window_is_in_the_unit_of_each_frame(tmp_path):
    path = enhanced(tmp_path / "a.dcm", None, [item(**scaled(1, -1000)), item(**scaled(2, -2000))])
    window = Window(0.5, 201)  # -100 to 100
    assert [seen(path, 0, window)[place] for place in (9, 10, 11)] == [0, 128, 255]
    assert [seen(path, 1, window)[place] for place in (9, 10, 11)] == [0, 128, 255]


def test_tables_and_functions_stand_in_groups_too(tmp_path):
    table = item(LUTDescriptor=[1501, 0, 12], LUTData=np.arange(0, 3002, 2, "<u2").tobytes())
    frames = [
        item(FrameVOILUTSequence=[item(VOILUTSequence=[table])]),
        item(**windowed(800, 400, VOILUTFunction="LINEAR_EXACT")),  # 600 black, 800 half, 1000 white
    ]
    path = enhanced(tmp_path / "a.dcm", None, frames)
    assert seen(path, 0)[15] == 187  # 3000 / 4095 * 255 = 186.8
    assert [seen(path, 1)[place] for place in (6, 8, 10)] == [0, 128, 255]


def test_attributes_that_a_conversion_kept_apart_are_found(tmp_path):
    apart = item(RescaleSlope=1, RescaleIntercept=-1000, WindowCenter=-99.5, WindowWidth=401)
    frames = [item(UnassignedPerFrameConvertedAttributesSequence=[apart]), item()]
    path = enhanced(tmp_path / "a.dcm", None, frames)
    assert [seen(path, 0)[place] for place in (7, 9, 11)] == [0, 128, 255]
    shared = item(UnassignedSharedConvertedAttributesSequence=[apart])
    path = enhanced(tmp_path / "b.dcm", shared, [])
    assert [seen(path, 1)[place] for place in (7, 9, 11)] == [0, 128, 255]


def test_a_file_that_describes_another_number_of_frames_is_refused(tmp_path):
    path = enhanced(tmp_path / "a.dcm", None, [item(**scaled(1, 0))])
    with pytest.raises(BadImage, match="says 2 frames, but describes 1 of them"):
        dicom_pixels.picture(DicomFrame(path, 0))


def test_frames_may_have_pixels_of_other_proportions(tmp_path):
    def spaced(*sides: float) -> Dataset:
        return item(PixelMeasuresSequence=[item(PixelSpacing=list(sides))])

    path = enhanced(tmp_path / "a.dcm", None, [spaced(1, 1), spaced(2, 1)])
    assert dicom_pixels.shown_sizes(path) == [(16, 16), (16, 32)]
    assert dicom_pixels.picture(DicomFrame(path, 1)).size == (16, 32)


def test_a_frames_type_is_its_own(tmp_path):
    def typed(*kinds: str) -> Dataset:
        return item(CTImageFrameTypeSequence=[item(FrameType=list(kinds))])

    frames = [
        typed("ORIGINAL", "PRIMARY", "LOCALIZER", "NONE"),
        typed("ORIGINAL", "PRIMARY", "VOLUME", "NONE"),
    ]
    path = enhanced(tmp_path / "a.dcm", None, frames, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER", "MIXED"])
    header = dicom_pixels.read_header(path)
    assert [Frame(header, number, 2).is_localizer for number in (0, 1)] == [True, False]


def test_a_frames_colours_are_its_own(tmp_path):
    # From 1000 on red, but only in the frame that is said to have colours.
    told: dict[str, Any] = {
        f"{name}PaletteColorLookupTableDescriptor": [600, 1000, 16] for name in ("Red", "Green", "Blue")
    }
    for name in ("Red", "Green", "Blue"):
        told[f"{name}PaletteColorLookupTableData"] = np.full(
            600, 200 * 256 if name == "Red" else 0, "<u2"
        ).tobytes()
    frames = [
        item(MRImageFrameTypeSequence=[item(PixelPresentation=presentation)], **windowed(400.5, 801))
        for presentation in ("MONOCHROME", "COLOR")
    ]
    path = enhanced(tmp_path / "a.dcm", None, frames, PixelPresentation="MIXED", **told)
    first, second = (
        np.asarray(dicom_pixels.picture(DicomFrame(path, number)).convert("RGB"))[8, 15].tolist()
        for number in (0, 1)
    )
    assert (first, second) == ([255, 255, 255], [200, 0, 0])


def test_a_broken_group_is_a_sentence(tmp_path):
    path = enhanced(tmp_path / "a.dcm", None, [item(**scaled(0, 0)), item()])
    with pytest.raises(BadImage, match="RescaleSlope of 0"):
        dicom_pixels.picture(DicomFrame(path, 0))
    assert dicom_pixels.picture(DicomFrame(path, 1)).size == (16, 16)


def test_a_size_needs_no_pixels(tmp_path):
    header = pydicom.dcmread(enhanced(tmp_path / "a.dcm", None, []), stop_before_pixels=True)
    assert shown_size(Frame(header, 0, 2)) == (16, 16)


def test_the_header_of_many_frames_is_read_once_and_again_when_the_file_changes(tmp_path, monkeypatch):
    path = enhanced(tmp_path / "a.dcm", None, [item(**scaled(1, 0)), item(**scaled(-1, 0))])
    read: list[Path] = []
    real = dicom_pixels._read
    monkeypatch.setattr(dicom_pixels, "_read", lambda path, **how: read.append(path) or real(path, **how))
    assert (seen(path, 0)[15], seen(path, 1)[15]) == (255, 0)
    assert read == [path]
    enhanced(path, None, [item(**scaled(-1, 0)), item(**scaled(1, 0))])
    assert (seen(path, 0)[15], seen(path, 1)[15]) == (0, 255)
    assert read == [path] * 2

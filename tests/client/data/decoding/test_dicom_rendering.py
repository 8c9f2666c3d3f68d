"""What changes a DICOM's pixels: each against pydicom's own functions, or worked by hand."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, encapsulate_extended
from pydicom.pixels.processing import apply_color_lut, apply_modality_lut, apply_voi_lut, convert_color_space
from pydicom.uid import (
    MPEG4HP41,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    RLELossless,
)

from client.data.decoding import dicom as dicom_pixels
from client.data.decoding.decode import decode
from client.data.references import BadImage, DicomFrame, Window
from tests.client.data.readers.test_dicom import RAMP, dicom, seen

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:pydicom")

SAMPLES = Path(pydicom.__file__).parent / "data" / "test_files"


def item(**values: Any) -> Dataset:
    made = Dataset()
    for word, value in values.items():
        setattr(made, word, value)
    return made


def lut(first: int, entries: list[int], bits: int = 16) -> Dataset:
    return item(LUTDescriptor=[len(entries) % 65536, first, bits], LUTData=np.array(entries, "<u2").tobytes())


def refusal(path: Path) -> str:
    with pytest.raises(BadImage) as caught:
        decode(DicomFrame(path, 0), 16, "nearest")
    return str(caught.value)


def by_pydicom(path: Path, low: float, high: float) -> list[int]:
    """The middle row as pydicom shows it, where its output goes from `low` to `high`."""
    data = pydicom.dcmread(path)
    shown = apply_voi_lut(apply_modality_lut(data.pixel_array, data), data)
    return np.floor((shown[8].astype(float) - low) / (high - low) * 255 + 0.5).astype(int).tolist()


def alike(one: list[int], other: list[int]) -> bool:
    return bool(np.abs(np.array(one) - np.array(other)).max() <= 1)


# --- windows and tables, against pydicom -----------------------------------------------------


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
@pytest.mark.parametrize(("slope", "intercept"), [(1, -300), (2.5, 100), (-1, 1500)])
def test_a_window_is_as_pydicom_has_it_whatever_its_function(function, slope, intercept, tmp_path):
    path = dicom(
        tmp_path / "a.dcm", RescaleSlope=slope, RescaleIntercept=intercept, WindowCenter=600, WindowWidth=400,
        VOILUTFunction=function,
    )  # fmt: skip
    ends = 0 * slope + intercept, 65535 * slope + intercept
    assert alike(seen(path), by_pydicom(path, *ends))


def test_a_voi_table_is_as_pydicom_has_it_and_goes_before_a_window(tmp_path):
    table = lut(200, [0, *range(1000, 4000, 3), 4095], 12)
    path = dicom(tmp_path / "a.dcm", VOILUTSequence=[table], WindowCenter=5, WindowWidth=2)
    assert alike(seen(path), by_pydicom(path, 0, 4095))
    # 200 and less is the first entry, 0; 300 is entry 100: (1000 + 99*3) / 4095 * 255 = 80.8
    assert seen(path)[2:4] == [0, 81]


def test_a_modality_table_is_as_pydicom_has_it(tmp_path):
    table = lut(0, [value // 2 for value in range(1501)], 16)
    path = dicom(tmp_path / "a.dcm", ModalityLUTSequence=[table], WindowCenter=400, WindowWidth=300)
    assert alike(seen(path), by_pydicom(path, 0, 65535))


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian])
def test_tables_are_read_in_every_syntax(syntax, tmp_path):
    path = dicom(tmp_path / "a.dcm", VOILUTSequence=[lut(0, list(range(0, 3002, 2)), 12)])
    plain = seen(path)
    data = pydicom.dcmread(path)
    order = ">u2" if syntax == ExplicitVRBigEndian else "<u2"
    data.VOILUTSequence[0].LUTData = np.arange(0, 3002, 2).astype(order).tobytes()
    if syntax == ExplicitVRBigEndian:
        data.PixelData = RAMP.astype(">u2").tobytes()
    data.file_meta.TransferSyntaxUID = syntax
    pydicom.dcmwrite(
        tmp_path / "b.dcm", data, implicit_vr=syntax.is_implicit_VR, little_endian=syntax.is_little_endian
    )
    assert seen(tmp_path / "b.dcm") == plain
    assert plain[15] == 187  # 3000 / 4095 * 255 = 186.8


def test_a_table_of_eight_bits_may_be_packed(tmp_path):
    packed = item(LUTDescriptor=[256, 0, 8], LUTData=bytes(range(255, -1, -1)))
    packed["LUTData"].VR = "OW"
    path = dicom(tmp_path / "a.dcm", (RAMP // 10).astype(np.uint8), VOILUTSequence=[packed])
    assert seen(path)[:3] == [255, 245, 235]  # 255 less 0, 10, 20


def test_a_table_without_a_sign_may_begin_below_zero(tmp_path):
    # 64,512 is -1024 in 16 bits: entry 0 is for -1024, entry 1024 for 0.
    table = lut(64512, [min(value, 2047) for value in range(2048)], 11)
    path = dicom(
        tmp_path / "a.dcm", RescaleSlope=1, RescaleIntercept=-1024, VOILUTSequence=[table]
    )  # 0 to 1500 become -1024 to 476, which are entries 0 to 1500
    assert seen(path)[15] == 187  # 1500 / 2047 * 255 = 186.9


def test_the_first_window_that_can_be_used_is_used(tmp_path):
    several = dicom(tmp_path / "a.dcm", WindowCenter=[5, 800.5, 1], WindowWidth=[0, 401, 2])
    assert [seen(several)[place] for place in (6, 8, 10)] == [0, 128, 255]  # 600 black, 800 half, 1000 white
    none = dicom(tmp_path / "b.dcm", WindowCenter=[5], WindowWidth=[0])
    assert seen(none) == seen(dicom(tmp_path / "c.dcm"))


def test_a_window_narrower_than_one_is_meant_exactly(tmp_path):
    # 0.001 * value: 0 to 1.5; centre 0.75 and width 0.5: 0.5 black, 1.0 white, 0.7 is 0.2/0.5
    path = dicom(
        tmp_path / "a.dcm", RescaleSlope=0.001, RescaleIntercept=0, WindowCenter=0.75, WindowWidth=0.5
    )
    assert [seen(path)[place] for place in (5, 7, 10)] == [0, 102, 255]


def test_an_unknown_function_is_refused(tmp_path):
    path = dicom(tmp_path / "a.dcm", WindowCenter=800, WindowWidth=400, VOILUTFunction="CUBIC")
    assert "a window of the function CUBIC; expected LINEAR, LINEAR_EXACT or SIGMOID" in refusal(path)


# --- scale -----------------------------------------------------------------------------------


def test_a_slope_alone_scales_and_a_negative_one_turns_over(tmp_path):
    path = dicom(tmp_path / "a.dcm", RescaleSlope=-1)
    assert (seen(path)[0], seen(path)[15]) == (255, 0)


def test_a_slope_of_zero_is_refused_unless_the_frame_is_flat(tmp_path):
    assert "RescaleSlope of 0" in refusal(dicom(tmp_path / "a.dcm", RescaleSlope=0, RescaleIntercept=0))
    flat = dicom(tmp_path / "b.dcm", np.zeros((16, 16), np.uint16), RescaleSlope=0, RescaleIntercept=0)
    assert set(seen(flat)) == {0}  # an empty slice of a PET


@pytest.mark.parametrize("word", ["RescaleSlope", "RescaleIntercept"])
def test_a_scale_that_is_no_number_is_refused(word, tmp_path):
    path = dicom(tmp_path / "a.dcm", RescaleSlope="1.25", RescaleIntercept="1.25")
    data = path.read_bytes()
    place = data.index(
        b"1.25", data.index(b"\x28\x00\x53\x10" if word == "RescaleSlope" else b"\x28\x00\x52\x10")
    )
    path.write_bytes(data[:place] + b"nan " + data[place + 4 :])
    assert word in refusal(path)


def test_large_whole_numbers_keep_their_differences(tmp_path):
    # 2^30 and a little more: 32 bits of floating point would see steps of 64 only.
    values = (np.repeat(np.arange(16)[None] * 4, 16, axis=0) + 2**30).astype(np.uint32)
    row = seen(dicom(tmp_path / "a.dcm", values))
    assert len(set(row)) == 16


# --- which bits hold the value ---------------------------------------------------------------


def test_bits_above_the_stored_ones_are_not_part_of_the_value(tmp_path):
    # Twelve bits, and an overlay in bit 12.
    values = RAMP | 0x1000 * (np.arange(16, dtype=np.uint16)[:, None] % 2)
    assert seen(dicom(tmp_path / "a.dcm", values, BitsStored=12, HighBit=11)) == seen(
        dicom(tmp_path / "b.dcm")
    )


def test_values_in_the_upper_bits_of_a_cell_are_moved_down(tmp_path):
    left = (RAMP << 4) | 7  # bits 4 to 15; the lowest four are something else
    window = {"WindowCenter": 800.5, "WindowWidth": 401}
    high = dicom(tmp_path / "a.dcm", left, BitsStored=12, HighBit=15, **window)
    assert seen(high) == seen(dicom(tmp_path / "b.dcm", **window))


def test_values_with_a_sign_in_twelve_of_sixteen_bits(tmp_path):
    signed = RAMP.astype(np.int16) - 800
    cells = (signed & 0x0FFF).astype(np.uint16)  # the upper four bits are not filled with the sign
    path = dicom(tmp_path / "a.dcm", cells, BitsStored=12, HighBit=11, PixelRepresentation=1)
    assert seen(path) == seen(dicom(tmp_path / "b.dcm", signed))


@pytest.mark.parametrize("high", [10, 16])
def test_a_high_bit_that_cannot_be_is_refused(high, tmp_path):
    assert f"high bit {high} for 12 of 16 bits" in refusal(
        dicom(tmp_path / "a.dcm", BitsStored=12, HighBit=high)
    )


def test_one_bit_a_pixel_is_black_and_white(tmp_path):
    bits = np.repeat((np.arange(16) % 2).astype(np.uint8)[None], 16, axis=0)
    path = dicom(
        tmp_path / "a.dcm", bits, BitsAllocated=1, BitsStored=1, HighBit=0,
        PixelData=np.packbits(bits, bitorder="little").tobytes(),
    )  # fmt: skip
    assert seen(path) == [0, 255] * 8


# --- padding ---------------------------------------------------------------------------------


def test_a_range_of_padding_is_black_and_has_no_part_in_the_percentiles(tmp_path):
    # 0 to 200 is padding; 300 to 1500 is left: 900 is half
    for first, last in ((0, 200), (200, 0)):
        path = dicom(tmp_path / "a.dcm", PixelPaddingValue=first, PixelPaddingRangeLimit=last)
        assert [seen(path)[place] for place in (0, 2, 3, 9, 15)] == [0, 0, 0, 128, 255]


def test_padding_that_is_written_with_the_other_sign_is_recognised(tmp_path):
    values = RAMP.astype(np.int16)
    values[:, 0] = -2000
    path = dicom(tmp_path / "a.dcm", values)
    data = pydicom.dcmread(path)
    data.add_new("PixelPaddingValue", "US", 63536)  # -2000 in 16 bits
    data.save_as(path)
    # 100 to 1500 is left: 800 is half
    assert [seen(path)[place] for place in (0, 1, 8, 15)] == [0, 0, 128, 255]


def test_padding_outside_of_the_stored_bits_is_recognised(tmp_path):
    values = RAMP.copy()
    values[:, 0] = 63536
    path = dicom(tmp_path / "a.dcm", values, BitsStored=12, HighBit=11, PixelPaddingValue=63536)
    assert [seen(path)[place] for place in (0, 1, 8, 15)] == [0, 0, 128, 255]


# --- which way round -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("photometric", "shape", "is_inverse"),
    [
        ("MONOCHROME1", None, True),
        ("MONOCHROME1", "INVERSE", True),
        ("MONOCHROME2", "INVERSE", True),
        ("MONOCHROME2", "IDENTITY", False),
    ],
)
def test_a_frame_is_turned_over_once_if_the_file_says_so_in_one_way_or_in_both(
    photometric, shape, is_inverse, tmp_path
):
    values = {} if shape is None else {"PresentationLUTShape": shape}
    row = seen(dicom(tmp_path / "a.dcm", PhotometricInterpretation=photometric, **values))
    assert (row[0], row[15]) == ((255, 0) if is_inverse else (0, 255))


# --- palettes --------------------------------------------------------------------------------

NAMES = ("Red", "Green", "Blue")


def palette(path: Path, data: list[bytes], descriptor: list[int], segmented: str = "", **values: Any) -> Path:
    told = {f"{name}PaletteColorLookupTableDescriptor": descriptor for name in NAMES}
    told |= {
        f"{segmented}{name}PaletteColorLookupTableData": one for name, one in zip(NAMES, data, strict=True)
    }
    return dicom(
        path, (RAMP // 100).astype(np.uint8), PhotometricInterpretation="PALETTE COLOR", **told | values
    )


def colours_of(path: Path) -> list[list[int]]:
    return decode(DicomFrame(path, 0), 16, "nearest")[8].tolist()


def test_a_palette_is_as_pydicom_has_it(tmp_path):
    entries = [np.arange(16, dtype="<u2") * factor for factor in (4000, 2000, 1000)]
    path = palette(tmp_path / "a.dcm", [one.tobytes() for one in entries], [16, 0, 16])
    data = pydicom.dcmread(path)
    assert colours_of(path) == (apply_color_lut(data.pixel_array, data)[8] >> 8).tolist()


def test_entries_of_eight_bits_in_cells_of_sixteen_are_not_black(tmp_path):
    entries = np.arange(16, dtype="<u2") * 10
    for bits in (8, 16):
        path = palette(tmp_path / "a.dcm", [entries.tobytes()] * 3, [16, 0, bits])
        assert colours_of(path)[9] == [90, 90, 90]


def test_a_packed_palette_of_an_odd_number_of_entries_is_read(tmp_path):
    entries = bytes(range(0, 150, 10))  # 15 entries, and a byte that makes them even
    path = palette(tmp_path / "a.dcm", [entries + b"\0"] * 3, [15, 1, 8])
    assert [colours_of(path)[place] for place in (0, 1, 2, 15)] == [[0] * 3, [0] * 3, [10] * 3, [140] * 3]


def test_a_palette_of_eight_bits_for_values_above_255(tmp_path):
    entries = bytes([value // 8 for value in range(1501)]) + b"\0"
    path = palette(tmp_path / "a.dcm", [entries] * 3, [1501, 0, 8])
    data = pydicom.dcmread(path)
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelData = 16, 16, 15, RAMP.tobytes()
    data.save_as(path)
    assert [colours_of(path)[place][0] for place in (0, 8, 15)] == [0, 100, 187]  # a value over 8


def test_a_palette_in_segments_is_as_pydicom_has_it(tmp_path):
    # two values (0, 9), then a line of 10 entries up to 209, then four times 7
    segments = np.array([0, 2, 0, 9 * 256, 1, 10, 209 * 256, 0, 4, *[7 * 256] * 4], "<u2").tobytes()
    path = palette(tmp_path / "a.dcm", [segments] * 3, [16, 0, 16], "Segmented")
    data = pydicom.dcmread(path)
    assert colours_of(path) == (apply_color_lut(data.pixel_array, data)[8] >> 8).tolist()
    assert [one[0] for one in colours_of(path)][:3] == [0, 9, 29]  # 9 + 200/10


def test_a_segment_that_refers_to_others_is_refused(tmp_path):
    segments = np.array([0, 2, 0, 9, 2, 1, 0, 0], "<u2").tobytes()
    path = palette(tmp_path / "a.dcm", [segments] * 3, [16, 0, 16], "Segmented")
    assert "segments of kind 2; expected values (0) or lines (1)" in refusal(path)


def test_a_palette_that_is_shorter_than_it_says_is_refused(tmp_path):
    path = palette(tmp_path / "a.dcm", [bytes(8)] * 3, [16, 0, 16])
    assert "a look-up table of 4 entries; expected 16" in refusal(path)


def test_high_values_of_a_supplemental_palette_are_colours_and_the_others_grey(tmp_path):
    # Values from 1000 on are red; below them a window from 0 to 800.
    told = {f"{name}PaletteColorLookupTableDescriptor": [600, 1000, 16] for name in NAMES}
    red, none = np.full(600, 200 * 256, "<u2").tobytes(), bytes(1200)
    told |= {f"{name}PaletteColorLookupTableData": red if name == "Red" else none for name in NAMES}
    window = {"WindowCenter": 400.5, "WindowWidth": 801}
    path = dicom(tmp_path / "a.dcm", PixelPresentation="COLOR", **told, **window)
    row = colours_of(path)
    assert (row[0], row[4], row[9], row[10], row[15]) == (
        [0] * 3,
        [128] * 3,
        [255] * 3,
        [200, 0, 0],
        [200, 0, 0],
    )
    grey = dicom(tmp_path / "b.dcm", PixelPresentation="MONOCHROME", **told, **window)
    assert colours_of(grey)[15] == [255] * 3


# --- colours ---------------------------------------------------------------------------------

RED = (200, 30, 40)


def coloured(path: Path, pixels: np.ndarray, photometric: str, planar: int = 0, **values: Any) -> Path:
    data = pixels.transpose(2, 0, 1) if planar else pixels
    return dicom(
        path, pixels[..., 0], SamplesPerPixel=3, PhotometricInterpretation=photometric, PlanarConfiguration=planar,
        PixelData=np.ascontiguousarray(data).tobytes(), **values,
    )  # fmt: skip


@pytest.fixture
def red() -> np.ndarray:
    return np.full((16, 16, 3), RED, np.uint8)


@pytest.mark.parametrize("planar", [0, 1])
def test_planes_and_pixels_are_the_same_picture(planar, red, tmp_path):
    red[:, 8:] = 7
    path = coloured(tmp_path / "a.dcm", red, "RGB", planar)
    assert decode(DicomFrame(path, 0), 16, "nearest").tolist() == red.tolist()


@pytest.mark.parametrize("planar", [0, 1])
def test_ybr_becomes_rgb_as_pydicom_has_it(planar, red, tmp_path):
    path = coloured(tmp_path / "a.dcm", convert_color_space(red, "RGB", "YBR_FULL"), "YBR_FULL", planar)
    assert np.abs(np.array(colours_of(path)[3]) - RED).max() <= 1


def test_halved_colours_are_spread_as_pydicom_does(tmp_path):
    path = SAMPLES / "SC_ybr_full_422_uncompressed.dcm"
    (expected,) = [pydicom.pixels.pixel_array(path)]
    assert np.array_equal(np.asarray(dicom_pixels.picture(DicomFrame(path, 0))), expected)


def test_colours_that_are_said_to_be_halved_and_are_not_are_read_as_they_are(red, tmp_path):
    path = coloured(tmp_path / "a.dcm", convert_color_space(red, "RGB", "YBR_FULL"), "YBR_FULL_422")
    assert np.abs(np.array(decode(DicomFrame(path, 0), 16, "nearest")) - RED).max() <= 1


@pytest.mark.parametrize(
    ("photometric", "said"),
    [
        ("YBR_PARTIAL_422", "3 sample(s) a pixel as YBR_PARTIAL_422"),
        ("YBR_RCT", "says YBR_RCT, which only JPEG 2000 has"),
        ("HSV", "as HSV; expected RGB"),
        ("MONOCHROME2", "3 sample(s) a pixel as MONOCHROME2"),
    ],
)
def test_colours_that_cannot_be_rendered_are_refused(photometric, said, red, tmp_path):
    assert said in refusal(coloured(tmp_path / "a.dcm", red, photometric))


def test_deep_colours_keep_their_upper_bits_and_deep_ybr_is_refused(red, tmp_path):
    deep = red.astype(np.uint16) << 4
    path = coloured(tmp_path / "a.dcm", deep, "RGB", BitsStored=12, HighBit=11)
    assert colours_of(path)[3] == list(RED)
    assert "YBR_FULL of 12 bits; expected 8" in refusal(
        coloured(tmp_path / "b.dcm", deep, "YBR_FULL", BitsStored=12, HighBit=11)
    )


def compressed(path: Path, frame: bytes, syntax: str, photometric: str) -> Path:
    coloured(path, np.zeros((16, 16, 3), np.uint8), "RGB")
    data = pydicom.dcmread(path)
    data.PhotometricInterpretation, data.file_meta.TransferSyntaxUID = photometric, syntax
    data.PixelData = encapsulate([frame])
    data["PixelData"].is_undefined_length = True
    data.save_as(path)
    return path


def jpeg(**options: Any) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (16, 16), RED).save(file, "JPEG", quality=95, **options)
    return file.getvalue()


def without_jfif(data: bytes) -> bytes:
    """Marker E0 begins after the two bytes of the start, and says its own length."""
    assert data[2:4] == b"\xff\xe0"
    return data[:2] + data[4 + int.from_bytes(data[4:6]) :]


def adobe(data: bytes, transform: int) -> bytes:
    return data[:2] + b"\xff\xee\x00\x0eAdobe\x00\x64" + bytes(4) + bytes([transform]) + data[2:]


JPEGS = {
    "jfif": jpeg(subsampling=0),
    "halved": jpeg(subsampling=1),
    "numbered 1, 2, 3": without_jfif(jpeg(subsampling=0)),
    "halved without a mark": without_jfif(jpeg(subsampling=1)),
    "adobe, transformed": adobe(without_jfif(jpeg(subsampling=0)), 1),
    "named R, G, B": without_jfif(jpeg(subsampling=0, keep_rgb=True))
    if jpeg(subsampling=0, keep_rgb=True)[2:4] == b"\xff\xe0"
    else jpeg(subsampling=0, keep_rgb=True),
}


@pytest.mark.parametrize("photometric", ["RGB", "YBR_FULL", "YBR_FULL_422"])
@pytest.mark.parametrize("kind", JPEGS)
def test_a_lossy_jpeg_has_its_colours_whatever_the_header_says_of_them(kind, photometric, tmp_path):
    path = compressed(tmp_path / "a.dcm", JPEGS[kind], JPEGBaseline8Bit, photometric)
    assert np.abs(np.array(colours_of(path)[8]) - RED).max() <= 3


@pytest.mark.parametrize(
    "name", ["SC_jpeg_no_color_transform.dcm", "SC_jpeg_no_color_transform_2.dcm", "SC_rgb_jpeg_gdcm.dcm"]
)
def test_an_untransformed_jpeg_of_pydicoms_samples_stays_as_it_is(name):
    expected = pydicom.pixels.pixel_array(SAMPLES / name)
    assert np.array_equal(np.asarray(dicom_pixels.picture(DicomFrame(SAMPLES / name, 0))), expected)


def jpeg2000(transforms: bool) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (16, 16), RED).save(
        file, "JPEG2000", no_jp2=True, irreversible=False, mct=int(transforms), num_resolutions=2
    )
    return file.getvalue()


def test_jpeg2000_undoes_its_own_transform_and_a_header_that_says_another_is_refused(tmp_path):
    for transforms, photometric in ((True, "YBR_RCT"), (True, "RGB"), (False, "RGB")):
        path = compressed(tmp_path / "a.dcm", jpeg2000(transforms), JPEG2000Lossless, photometric)
        assert colours_of(path)[8] == list(RED)
    path = compressed(tmp_path / "b.dcm", jpeg2000(True), JPEG2000Lossless, "YBR_FULL")
    assert "says YBR_FULL, but its JPEG 2000 frames transform colours themselves" in refusal(path)


# --- the rest --------------------------------------------------------------------------------


def test_an_extended_offset_table_is_followed(tmp_path):
    path = dicom(tmp_path / "a.dcm", np.stack([RAMP, RAMP[:, ::-1]]), compress="rle")
    data = pydicom.dcmread(path)
    frames = list(pydicom.encaps.generate_frames(data.PixelData, number_of_frames=2))
    data.PixelData, data.ExtendedOffsetTable, data.ExtendedOffsetTableLengths = encapsulate_extended(frames)
    data["PixelData"].is_undefined_length = True
    data.save_as(path)
    assert seen(path, 0) == seen(dicom(tmp_path / "b.dcm"))
    assert seen(path, 1) == seen(path, 0)[::-1]


def test_an_extended_offset_table_of_jpeg2000_is_followed(tmp_path):
    path = compressed(tmp_path / "a.dcm", jpeg2000(True), JPEG2000Lossless, "RGB")
    data = pydicom.dcmread(path)
    data.NumberOfFrames = 2
    data.PixelData, data.ExtendedOffsetTable, data.ExtendedOffsetTableLengths = encapsulate_extended(
        [jpeg2000(True), jpeg2000(False)]
    )
    data["PixelData"].is_undefined_length = True
    data.save_as(path)
    assert decode(DicomFrame(path, 1), 16, "nearest")[8, 8].tolist() == list(RED)


@pytest.mark.parametrize(
    "word", ["BitsStored", "PixelRepresentation", "PhotometricInterpretation", "SamplesPerPixel"]
)
def test_what_gives_pixels_their_meaning_must_be_there(word, tmp_path):
    path = dicom(tmp_path / "a.dcm")
    data = pydicom.dcmread(path)
    del data[word]
    data.save_as(path)
    assert f"lacks {word}, so its pixels have no meaning; export it again" in refusal(path)


def test_floating_point_pixels_are_shown_and_what_is_no_number_is_black(tmp_path):
    path = dicom(tmp_path / "a.dcm", RAMP)
    data = pydicom.dcmread(path)
    values = RAMP.astype(np.float32) / 1000
    values[:, 0] = np.nan
    for word in ("PixelData", "BitsStored", "HighBit", "PixelRepresentation"):
        del data[word]
    data.BitsAllocated, data.FloatPixelData = 32, values.tobytes()
    data.save_as(path)
    # 0.1 to 1.5 is left: 0.8 is half
    assert [seen(path)[place] for place in (0, 1, 8, 15)] == [0, 0, 128, 255]


def test_pixels_that_are_not_square_are_made_so(tmp_path):
    # Rows are 3 mm apart and columns 1.5 mm: the picture is twice as high as it has rows.
    path = dicom(tmp_path / "a.dcm", PixelSpacing=[3, 1.5])
    assert dicom_pixels.picture(DicomFrame(path, 0)).size == (16, 32)
    assert dicom_pixels.shown_sizes(path) == [(16, 32)]
    old = dicom(tmp_path / "b.dcm", PixelAspectRatio=[1, 2])
    assert dicom_pixels.picture(DicomFrame(old, 0)).size == (32, 16)
    odd = dicom(tmp_path / "c.dcm", PixelSpacing=[100, 1])
    assert "a pixel is 100 times as high as wide" in refusal(odd)


def test_a_video_is_refused_by_its_name(tmp_path):
    path = compressed(tmp_path / "a.dcm", b"\0\0\0\1", MPEG4HP41, "YBR_FULL_422")
    assert "is a video (MPEG-4 AVC/H.264 High Profile / Level 4.1); export its frames as images" in refusal(
        path
    )


def test_compressed_values_in_the_upper_bits_are_refused(tmp_path):
    path = dicom(tmp_path / "a.dcm", RAMP << 4, BitsStored=12, HighBit=15)
    data = pydicom.dcmread(path)
    data.HighBit = 11
    data.compress(RLELossless)
    data.HighBit = 15
    data.save_as(path)
    assert "do not begin at the lowest bit" in refusal(path)


def test_the_sites_window_goes_before_a_table_of_the_file(tmp_path):
    path = dicom(tmp_path / "a.dcm", VOILUTSequence=[lut(0, [4095] * 1501, 12)])
    assert [seen(path, window=Window(800.5, 401))[place] for place in (6, 8, 10)] == [0, 128, 255]

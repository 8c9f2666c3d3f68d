"""DICOM files that hold other pixels than their header says."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.dataset import FileDataset

from client.data.references import BadImage
from tests.client.data.readers.test_dicom import RAMP, dicom, seen

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:pydicom")

TWO = np.stack([RAMP, RAMP[:, ::-1]])


def changed(path: Path, change: Callable[[FileDataset], object]) -> Path:
    data = pydicom.dcmread(path)
    change(data)
    data.save_as(path, enforce_file_format=False)
    return path


@pytest.mark.parametrize("compress", [None, "rle"])
@pytest.mark.parametrize("said", [None, 1])
def test_frames_that_the_header_does_not_count_are_not_lost_in_silence(
    tmp_path: Path, compress: str | None, said: int | None
) -> None:
    path = dicom(tmp_path / "a.dcm", TWO, compress)
    changed(
        path, lambda data: setattr(data, "NumberOfFrames", said) if said else delattr(data, "NumberOfFrames")
    )
    with pytest.raises(BadImage, match=r"holds pixels of 2 frames, but its header says 1 \(NumberOfFrames\)"):
        seen(path)


def test_padding_behind_the_last_frame_is_no_frame(tmp_path: Path) -> None:
    padded = RAMP.tobytes() + bytes(RAMP.nbytes - 2)
    assert seen(dicom(tmp_path / "a.dcm", PixelData=padded)) == seen(dicom(tmp_path / "b.dcm"))


@pytest.mark.parametrize("stored", [200, 2])
def test_pixels_that_end_too_early_are_said_so(tmp_path: Path, stored: int) -> None:
    path = dicom(tmp_path / "a.dcm")
    path.write_bytes(path.read_bytes()[: stored - 512])  # 512 bytes of pixels
    with pytest.raises(BadImage, match=f"has pixels that end {512 - stored} bytes too early"):
        seen(path)
    with pytest.raises(BadImage, match="has pixels that end 12 bytes too early"):
        seen(dicom(tmp_path / "b.dcm", PixelData=RAMP.tobytes()[:-12]))


def test_a_header_without_pixels_is_said(tmp_path: Path) -> None:
    path = changed(dicom(tmp_path / "a.dcm"), lambda data: delattr(data, "PixelData"))
    with pytest.raises(BadImage, match="has no pixels; export it again"):
        seen(path)


@pytest.mark.parametrize("has_length", [False, True])
def test_pixels_that_are_compressed_against_the_header_are_refused(tmp_path: Path, has_length: bool) -> None:
    """Read as values, they are noise without an error."""
    path = dicom(tmp_path / "a.dcm", compress="rle")
    path.write_bytes(path.read_bytes().replace(b"1.2.840.10008.1.2.5\0", b"1.2.840.10008.1.2.1\0"))
    if has_length:
        changed(path, lambda data: setattr(data["PixelData"], "is_undefined_length", False))
    with pytest.raises(
        BadImage, match=r"says that its pixels are not compressed \(Explicit VR Little Endian\)"
    ):
        seen(path)


def test_pixels_that_are_not_compressed_against_the_header_are_refused(tmp_path: Path) -> None:
    path = dicom(tmp_path / "a.dcm")
    path.write_bytes(path.read_bytes().replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.5\0"))
    with pytest.raises(BadImage, match=r"says that its pixels are compressed \(RLE Lossless\)"):
        seen(path)


def test_a_header_that_is_written_against_its_transfer_syntax_is_refused(tmp_path: Path) -> None:
    """The pixels would be read four bytes too early."""
    path = dicom(tmp_path / "a.dcm")
    path.write_bytes(path.read_bytes().replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2\0\0\0"))
    with pytest.raises(
        BadImage, match=r"is not written as its transfer syntax \(Implicit VR Little Endian\) says"
    ):
        seen(path)


def test_a_picture_of_the_whole_in_the_header_is_not_the_image(tmp_path: Path) -> None:
    icon = pydicom.Dataset()
    icon.Rows = icon.Columns = icon.BitsAllocated = icon.BitsStored = 8
    icon.HighBit, icon.PixelRepresentation, icon.SamplesPerPixel = 7, 0, 1
    icon.PhotometricInterpretation, icon.PixelData = "MONOCHROME2", bytes(64)
    path = changed(dicom(tmp_path / "a.dcm"), lambda data: setattr(data, "IconImageSequence", [icon]))
    assert seen(path) == seen(dicom(tmp_path / "b.dcm"))

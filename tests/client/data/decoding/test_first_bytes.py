"""Files that are not what their ending says."""

import gzip
import io
import zipfile
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
from PIL import Image

from client.data.decoding import first_bytes
from client.data.decoding.decode import decode
from client.data.references import BadImage, PictureFile

DICOM = Path(pydicom.__file__).parent / "data" / "test_files" / "CT_small.dcm"


def of_nibabel(kind: type) -> bytes:
    return bytes(kind(np.zeros((4, 4, 4), np.int16), np.eye(4)).header.binaryblock)


def zipped() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a", "b")
    return file.getvalue()


@pytest.mark.parametrize(
    ("start", "expected"),
    [
        (b"", "an empty file"),
        (bytes(4000), "a file of zeros"),
        (gzip.compress(b"x", mtime=0), "a gzip file"),
        (zipped(), "a zip archive"),
        (DICOM.read_bytes()[:544], "a DICOM file"),
        (b"\n<!DOCTYPE html><html>sign in</html>", "a web page"),
        (b"<html><body>404</body></html>", "a web page"),
        (b'{"error": "no such file"}', "XML or JSON"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a pointer of Git LFS"),
        (b"ObjectType = Image\nNDims = 3\n", "a MetaImage volume"),
        (b"NRRD0004\ntype: short\n", "an NRRD volume"),
        (of_nibabel(nibabel.Nifti1Pair), "the header of a NIfTI pair"),
        (of_nibabel(nibabel.Nifti1Image), "a NIfTI-1 volume"),
        (of_nibabel(nibabel.Nifti2Image) + bytes(4), "a NIfTI-2 volume"),
        (of_nibabel(nibabel.AnalyzeImage), "the header of an Analyze 7.5 pair"),
        (b"\0\0\0\x18ftypheic\0\0\0\0", "a HEIC picture"),
        (b"\0\0\0\x1cftypavif\0\0\0\0", "an AVIF picture"),
        (b"\0\0\0\x18ftypcrx \0\0\0\0", "a camera's raw file"),
        (b"\0\0\0\x18ftypisom\0\0\0\0", "a video"),
        (b"\xff\x0a\x00", "a JPEG XL picture"),
        (b"II\xbc\x01", "a JPEG XR picture"),
        (b"II+\0\x08\0", "a BigTIFF"),
        (b"II*\0\x10\0\0\0CR\x02\0", "a camera's raw file"),
        (b"8BPS\0\x01", "a Photoshop file"),
        (b'<?xml version="1.0"?>\n<svg>', "a drawing"),
        (b"anything else", None),
    ],
)
def test_a_file_is_known_by_its_first_bytes(start, expected):
    found = first_bytes.what(start)
    assert (expected is None and found is None) or expected in str(found)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"<!DOCTYPE html><html>sign in</html>", "cannot be decoded, as it is a web page"),
        (DICOM.read_bytes(), "is a DICOM file and no picture"),
        (b"", "is an empty file"),
    ],
)
def test_what_is_called_a_picture_and_is_none_is_named(data, said, tmp_path):
    (tmp_path / "a.jpg").write_bytes(data)
    with pytest.raises(BadImage, match=said):
        decode(PictureFile(tmp_path / "a.jpg"), 16, "nearest")


def test_a_picture_is_read_whatever_its_ending(tmp_path):
    Image.new("RGB", (16, 16), (9, 9, 9)).save(tmp_path / "a.png")
    (tmp_path / "a.png").rename(tmp_path / "a.jpg")
    assert decode(PictureFile(tmp_path / "a.jpg"), 16, "nearest")[0, 0].tolist() == [9, 9, 9]

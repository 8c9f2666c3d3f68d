"""What a file is by its first bytes, whatever its name says.

Downloads that failed, exports under a wrong name and files of another program are common, and a sentence that
names what is really there saves the data manager a search.
"""

import struct

_MARKS: tuple[tuple[bytes, str], ...] = (
    (b"\x1f\x8b", "a gzip file"),
    (b"BZh", "a bzip2 file"),
    (b"\xfd7zXZ\x00", "an xz file"),
    (b"\x28\xb5\x2f\xfd", "a zstd file"),
    (b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive"),
    (b"Rar!", "a RAR archive"),
    (b"PK\x03\x04", "a zip archive"),
    (b"\x93NUMPY", "a single numpy array (.npy)"),
    (b"\x89PNG", "a PNG picture"),
    (b"\xff\xd8\xff", "a JPEG picture"),
    (b"II*\x00", "a TIFF picture"),
    (b"MM\x00*", "a TIFF picture"),
    (b"GIF8", "a GIF picture"),
    (b"8BPS", "a Photoshop file"),
    (b"II\xbc\x01", "a JPEG XR picture, which is not read here"),
    (b"II+\x00", "a BigTIFF, which is not read here"),
    (b"MM\x00+", "a BigTIFF, which is not read here"),
    (b"\xff\x0a", "a JPEG XL picture, which is not read here"),
    (b"\x00\x00\x00\x0cJXL ", "a JPEG XL picture, which is not read here"),
    (b"FUJIFILMCCD-RAW", "a camera's raw file"),
    (b"IIRO", "a camera's raw file"),
    (b"IIU\x00", "a camera's raw file"),
    (b"%PDF", "a PDF"),
    (b"\x89HDF", "an HDF5 file (MINC 2, Matlab 7.3)"),
    (b"CDF\x01", "a NetCDF file (MINC 1)"),
    (b"MATLAB", "a Matlab file"),
    (b"NRRD", "an NRRD volume"),
    (b"ObjectType", "a MetaImage volume (.mha, .mhd)"),
    (b"NDims", "a MetaImage volume (.mha, .mhd)"),
    (b"version https://git-lfs", "a pointer of Git LFS, and not the file that it stands for"),
    (b"\x80\x04\x95", "a Python pickle"),
    (b"\x00\x00\x00\x01\x00\x00", "a FreeSurfer volume (.mgh)"),
)
_BOXED = {
    b"heic": "a HEIC picture of a phone, which is not read here",
    b"heix": "a HEIC picture of a phone, which is not read here",
    b"mif1": "a HEIC or AVIF picture, which is not read here",
    b"avif": "an AVIF picture, which is not read here",
    b"crx ": "a camera's raw file",
}
"""Kinds of files in boxes (ISO 14496-12) that are no video."""
_NIFTI = {b"n+1\x00": "a NIfTI-1 volume", b"ni1\x00": "the header of a NIfTI pair (.hdr and .img)"}
NUM_BYTES = 544
"""As many as are looked at."""


def what(start: bytes) -> str | None:
    """What a file that begins so is, with its article; None if that is not known."""
    if not start:
        return "an empty file"
    if not start.strip(b"\x00") and len(start) >= 16:
        return "a file of zeros, as a copy that was cut off leaves"
    if start[128:132] == b"DICM":
        return "a DICOM file"
    if (volume := _volume(start)) is not None:
        return volume
    if start[:4] in (b"II*\x00", b"MM\x00*") and start[8:10] == b"CR":
        return "a camera's raw file"
    for mark, kind in _MARKS:
        if start.startswith(mark):
            return kind
    if start[4:8] == b"ftyp":
        return _BOXED.get(start[8:12], "a video")
    words = start.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if words.startswith((b"<!doctype html", b"<html")):
        return "a web page, as a failed download leaves"
    if words.startswith(b"<svg") or (words.startswith(b"<?xml") and b"<svg" in words):
        return "a drawing (SVG)"
    if words.startswith((b"<?xml", b"<error", b"{")):
        return "a text (XML or JSON), as a failed download leaves"
    return None


def _volume(start: bytes) -> str | None:
    if len(start) < 348:
        return None
    for order in "<>":
        (size,) = struct.unpack(f"{order}i", start[:4])
        if size == 540:
            return (
                "a NIfTI-2 volume" if start[4:7] == b"n+2" else "the header of a NIfTI-2 pair (.hdr and .img)"
            )
        if size == 348:
            return _NIFTI.get(start[344:348], "the header of an Analyze 7.5 pair (.hdr and .img)")
    return None

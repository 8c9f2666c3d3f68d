"""TIFFs whose first picture does not mean what it seems to, and pictures that were cut off."""

import os
import struct
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from client.data.decoding.decode import decode
from client.data.references import BadImage, PictureFile

RAMP = np.repeat(np.arange(16, dtype=np.uint8)[None] * 17, 16, axis=0)  # 0 to 255 from left to right
SHORT, LONG, BYTES = 3, 4, 1
Tag = tuple[int, int, int, int | bytes]


def tiff(path: Path, pixels: npt.NDArray[np.integer], *more: Tag) -> Path:
    """Uncompressed grey with some tags in addition, each as number, type, count and value."""
    data = pixels.tobytes()
    rows, columns = pixels.shape
    tags: dict[int, Tag] = {
        tag[0]: tag
        for tag in [
            (256, SHORT, 1, columns),
            (257, SHORT, 1, rows),
            (258, SHORT, 1, 8 * pixels.dtype.itemsize),
            (259, SHORT, 1, 1),
            (262, SHORT, 1, 1),
            (273, LONG, 1, 8),
            (277, SHORT, 1, 1),
            (278, SHORT, 1, rows),
            (279, LONG, 1, len(data)),
            *more,
        ]
    }
    entries = b"".join(
        struct.pack("<HHI", number, kind, count)
        + (value if isinstance(value, bytes) else struct.pack("<I", value))
        for number, kind, count, value in sorted(tags.values())
    )
    head = b"II*\0" + struct.pack("<I", 8 + len(data))
    path.write_bytes(head + data + struct.pack("<H", len(tags)) + entries + bytes(4))
    return path


def seen(path: Path) -> list[int]:
    """Four pixels of the middle row, from left to right."""
    return decode(PictureFile(path), 16, "nearest")[8, ::5, 0].tolist()


@pytest.mark.parametrize(
    ("pixels", "white_is_zero", "expected"),
    [
        (RAMP, 0, [0, 85, 170, 255]),
        (RAMP, 1, [255, 170, 85, 0]),
        (RAMP.astype("<u2") * 257, 0, [0, 85, 170, 255]),
        (RAMP.astype("<u2") * 257, 1, [255, 170, 85, 0]),
        (RAMP.astype("<u2") * 16, 1, [255, 170, 86, 1]),  # of 12 bits: 4080 of 4095 is 254
    ],
)
def test_where_0_is_white_grey_is_turned_over_in_8_and_in_16_bits(
    tmp_path: Path, pixels: npt.NDArray[np.integer], white_is_zero: int, expected: list[int]
) -> None:
    assert seen(tiff(tmp_path / "a.tif", pixels, (262, SHORT, 1, 1 - white_is_zero))) == expected


@pytest.mark.parametrize(
    ("tags", "said"),
    [
        ([(50706, BYTES, 4, b"\1\4\0\0")], "a camera's raw file"),
        ([(254, LONG, 1, 1), (330, LONG, 1, 8)], "a camera's raw file"),
        ([(339, SHORT, 1, 2)], "8 bits with a sign"),
    ],
)
def test_a_tiff_whose_first_picture_is_not_what_it_means_is_refused(
    tmp_path: Path, tags: list[Tag], said: str
) -> None:
    with pytest.raises(BadImage, match=said):
        seen(tiff(tmp_path / "a.tif", RAMP, *tags))


def test_a_tiff_that_calls_its_only_picture_a_small_one_is_read(tmp_path: Path) -> None:
    assert seen(tiff(tmp_path / "a.tif", RAMP, (254, LONG, 1, 1))) == [0, 85, 170, 255]


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_a_picture_whose_end_is_zeros_is_refused_and_zeros_behind_its_end_are_none_of_it(
    tmp_path: Path, kind: str
) -> None:
    """A copy over a network that broke off has its full size; decoders make its last rows grey or black."""
    noise = np.random.default_rng(0).integers(0, 256, (120, 120, 3)).astype(np.uint8)
    path = tmp_path / "a"
    Image.fromarray(noise).save(path, kind)
    whole = path.read_bytes()
    path.write_bytes(whole + bytes(4096))
    seen(path)
    path.write_bytes(whole[:-4096] + bytes(4096))
    with pytest.raises(BadImage, match="ends in zeros, as a copy that was cut off leaves"):
        seen(path)


def test_no_message_has_the_path_of_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(b"Access denied")
    with pytest.raises(BadImage) as caught:
        seen(path)
    assert str(caught.value).startswith("cannot be decoded, as it is none of JPEG, PNG, TIFF")
    path.write_bytes(b"\x89PNG\r\nbroken")
    with pytest.raises(BadImage, match=r"^begins like a PNG picture and is damaged; fetch it again"):
        seen(path)

    def refused(*_: object, **__: object) -> None:
        raise PermissionError(13, os.strerror(13), str(path))

    monkeypatch.setattr(Image, "open", refused)
    with pytest.raises(BadImage, match=r"^cannot be read \(Permission denied\); let the trainer read it"):
        seen(path)

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from client.data.decoding import decode as pixels
from client.data.decoding.decode import Interpolation, Pixels, decode
from client.data.references import BadImage, PictureFile

GREEN, RED = (0, 255, 0), (255, 0, 0)


def saved(path: Path, image: Image.Image, **options: object) -> Path:
    image.save(path, **options)
    return path


def seen(path: Path, size: int, interpolation: Interpolation) -> Pixels:
    return decode(PictureFile(path), size, interpolation)


def test_the_centre_square_is_kept(tmp_path):
    # 40 x 20, red with a green middle of 20 x 20: only the middle is left.
    image = Image.new("RGB", (40, 20), RED)
    image.paste(GREEN, (10, 0, 30, 20))
    square = seen(saved(tmp_path / "a.png", image), 20, "bilinear")
    assert square.shape == (20, 20, 3)
    assert square.dtype == np.uint8
    assert (square == GREEN).all()


def test_shrinking_is_antialiased(tmp_path):
    # Black and white stripes one pixel wide become grey, not black or white.
    stripes = np.tile(np.array([0, 255], np.uint8), (64, 32))
    square = seen(saved(tmp_path / "a.png", Image.fromarray(stripes)), 16, "bilinear")
    assert abs(int(square[4:-4, 4:-4].min()) - 127) < 10
    assert abs(int(square[4:-4, 4:-4].max()) - 127) < 10


def test_sixteen_bit_grey_is_scaled_and_not_clipped(tmp_path):
    # 65535 is 255, 32896 = 128 * 257 is 128, 257 is 1.
    for value, expected in [(65535, 255), (32896, 128), (5140, 20)]:
        path = saved(tmp_path / "a.png", Image.fromarray(np.full((16, 16), value, np.uint16)))
        assert (seen(path, 16, "bilinear") == expected).all()


def test_twelve_bit_grey_in_a_sixteen_bit_file_is_not_black(tmp_path):
    grey = np.linspace(0, 4095, 256, dtype=np.uint16).reshape(16, 16)
    square = seen(saved(tmp_path / "a.tif", Image.fromarray(grey)), 16, "nearest")
    assert (square.min(), square.max()) == (0, 255)


def test_cmyk_becomes_rgb(tmp_path):
    path = saved(tmp_path / "a.jpg", Image.new("CMYK", (32, 32), (255, 0, 255, 0)), quality=95)
    red, green, blue = seen(path, 16, "bilinear")[8, 8]
    assert green > 200
    assert max(red, blue) < 60


@pytest.mark.parametrize("mode", ["L", "1", "LA", "P", "RGBA"])
def test_other_colour_modes_become_rgb(mode, tmp_path):
    white = Image.new("RGB", (16, 16), (255, 255, 255)).convert(mode)
    assert (seen(saved(tmp_path / "a.png", white), 16, "bilinear") == 255).all()


def test_transparent_is_black(tmp_path):
    path = saved(tmp_path / "a.png", Image.new("RGBA", (16, 16), (255, 255, 255, 0)))
    assert (seen(path, 16, "bilinear") == 0).all()


def test_a_palette_with_transparency_is_understood(tmp_path):
    image = Image.new("P", (16, 16), 1)
    image.putpalette([255, 0, 0, 0, 255, 0])
    path = saved(tmp_path / "a.png", image, transparency=bytes([0, 255]))
    assert (seen(path, 16, "bilinear") == GREEN).all()


def test_the_cameras_orientation_is_obeyed(tmp_path):
    # Stored with green on the left; orientation 3 says: turn by half, so green is on the right.
    image = Image.new("RGB", (32, 32), RED)
    image.paste(GREEN, (0, 0, 16, 32))
    exif = Image.Exif()
    exif[0x0112] = 3
    square = seen(saved(tmp_path / "a.png", image, exif=exif), 32, "nearest")
    assert tuple(square[5, 5]) == RED
    assert tuple(square[5, 26]) == GREEN


def test_a_large_jpeg_looks_like_the_small_one(tmp_path):
    ramp = np.linspace(0, 255, 512, dtype=np.uint8)
    grey = Image.fromarray(np.broadcast_to(ramp, (512, 512)).copy()).convert("RGB")
    from_jpeg = seen(saved(tmp_path / "a.jpg", grey, quality=95), 32, "bilinear").astype(int)
    from_png = seen(saved(tmp_path / "a.png", grey), 32, "bilinear").astype(int)
    assert np.abs(from_jpeg - from_png).max() <= 4


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda path: Image.new("RGB", (1, 1)).save(path, "PNG"), "is 1 x 1 pixels; expected at least 8"),
        (lambda path: Image.new("RGB", (400, 7)).save(path, "PNG"), "is 400 x 7 pixels"),
        (lambda path: path.write_bytes(b"no image"), "cannot be decoded"),
        (lambda path: path.write_bytes(b""), "cannot be decoded"),
        (lambda path: Image.new("F", (16, 16)).save(path, "TIFF"), "floating-point"),
        (
            lambda path: Image.fromarray(np.full((16, 16), 70000, np.int32)).save(path, "TIFF"),
            "grey values from 70000",
        ),
    ],
)
def test_what_is_no_usable_picture_is_refused_with_a_reason(make, said, tmp_path):
    make(tmp_path / "a.img")
    with pytest.raises(BadImage, match=said):
        seen(tmp_path / "a.img", 16, "bilinear")


@pytest.mark.parametrize("kept", [0.2, 0.5, 0.95])
def test_a_truncated_jpeg_is_refused(kept, tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (128, 128, 3), dtype=np.uint8)
    path = saved(tmp_path / "a.jpg", Image.fromarray(noise))
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * kept)])
    with pytest.raises(BadImage, match="cannot be decoded"):
        seen(path, 32, "bilinear")


def test_several_images_in_one_file_are_refused(tmp_path):
    frames = [Image.new("L", (16, 16), grey) for grey in (10, 200)]
    path = saved(tmp_path / "a.tif", frames[0], save_all=True, append_images=frames[1:])
    with pytest.raises(BadImage, match="holds 2 images"):
        seen(path, 16, "bilinear")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")  # as outside tests: it stops nobody
@pytest.mark.parametrize("limit", [40 * 40 - 1, 100])
def test_a_decompression_bomb_is_refused(limit, tmp_path, monkeypatch):
    # Pillow warns above its limit, here 1599 of 1600 pixels, and raises above twice of it, here 100.
    path = saved(tmp_path / "a.png", Image.new("RGB", (40, 40)))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with pytest.raises(BadImage, match="more pixels than Pillow considers safe"):
        seen(path, 16, "bilinear")


def test_a_jpeg_that_goes_over_its_picture_without_end_is_refused(tmp_path):
    path = saved(tmp_path / "a.jpg", Image.new("L", (64, 64), 77), progressive=True)
    data = path.read_bytes()
    last = data[data.rfind(b"\xff\xda") : -2]
    for repeats, is_refused in ((1, False), (200, True)):
        path.write_bytes(data[:-2] + repeats * last + data[-2:])
        if is_refused:
            with pytest.raises(BadImage, match="is a JPEG of 206 scans; expected at most 64"):
                seen(path, 16, "bilinear")
        else:
            assert (seen(path, 16, "bilinear") == 77).all()


def tiled_tiff(path: Path, side: int, tile: int) -> Path:
    """A picture of `side` pixels in one black tile of `tile` pixels a side, deflated."""
    data = zlib.compress(bytes(tile * tile))
    entries = {256: side, 257: side, 258: 8, 259: 8, 262: 1, 277: 1, 322: tile, 323: tile, 325: len(data)}
    entries[324] = 8 + 2 + 12 * (len(entries) + 1) + 4  # the data follow the entries
    table = b"".join(struct.pack("<HHII", tag, 4, 1, entries[tag]) for tag in sorted(entries))
    path.write_bytes(b"II*\0" + struct.pack("<IH", 8, len(entries)) + table + bytes(4) + data)
    return path


def test_a_small_tiff_of_one_huge_tile_is_refused(tmp_path):
    assert (seen(tiled_tiff(tmp_path / "a.tif", 16, 64), 16, "bilinear") == 0).all()
    with pytest.raises(BadImage, match="has tiles of 8192 x 8192 pixels; expected at most 16,777,216"):
        seen(tiled_tiff(tmp_path / "b.tif", 16, 8192), 16, "bilinear")


def test_a_picture_for_which_there_is_no_memory_is_refused(tmp_path, monkeypatch):
    def too_large(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(pixels, "_upright", too_large)
    with pytest.raises(BadImage, match="takes more memory to decode than is free"):
        seen(tmp_path / "a.png", 16, "bilinear")

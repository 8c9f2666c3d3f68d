"""Keyed hashes of images: what they find, what they cannot, and how little they say."""

import hashlib
import hmac
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from client.data.manifest import ImageRow
from client.data.references import PictureFile
from client.governance import image_hashes
from common import wire
from common.errors import PolicyRefusal, SiteDataError

SECRET = "ab" * 32
KEY = bytes(range(32))


def picture(seed: int = 0, side: int = 48) -> Image.Image:
    """A smooth picture, as photographs are."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC)


def shown(*paths: Path) -> list[image_hashes.Shown]:
    rows = [ImageRow(PictureFile(path), "mel", None, "train", f"row {n}") for n, path in enumerate(paths)]
    return list(image_hashes.shown(rows, 1))


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    path = tmp_path / "overlap.secret"
    path.write_text(f"{SECRET}\n")
    path.chmod(0o600)
    return path


# --- what is found -----------------------------------------------------------------------------


def test_the_same_pixels_under_another_name_and_format_are_the_same(tmp_path: Path) -> None:
    picture().save(tmp_path / "a.png")
    picture().save(tmp_path / "b.bmp")
    turned = picture().transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise, which undoes it
    turned.save(tmp_path / "c.png", exif=exif)
    one, other, marked = shown(tmp_path / "a.png", tmp_path / "b.bmp", tmp_path / "c.png")
    assert one.pixels == other.pixels == marked.pixels


def test_a_jpeg_and_its_png_are_the_same_however_large(tmp_path: Path) -> None:
    """A decoder that shrinks a large JPEG on the way would tell them apart."""
    picture(side=2000).save(tmp_path / "a.jpg")
    with Image.open(tmp_path / "a.jpg") as image:
        image.save(tmp_path / "a.png")
    one, other = shown(tmp_path / "a.jpg", tmp_path / "a.png")
    assert one.pixels == other.pixels


def test_a_copy_in_worse_quality_is_only_similar_and_another_picture_is_neither(tmp_path: Path) -> None:
    picture(side=128).save(tmp_path / "a.png")
    picture(side=128).save(tmp_path / "b.jpg", quality=90)
    picture(seed=1).save(tmp_path / "c.png")
    one, copy, other = shown(tmp_path / "a.png", tmp_path / "b.jpg", tmp_path / "c.png")
    assert one.pixels != copy.pixels
    assert one.looks == copy.looks
    assert other.looks != one.looks


def test_an_image_that_cannot_be_read_is_named_here(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("a letter")
    with pytest.raises(SiteDataError, match=r"row 0: a\.png cannot be decoded"):
        shown(tmp_path / "a.png")


# --- how little is said ------------------------------------------------------------------------


def test_a_token_is_half_a_hmac_of_what_an_image_shows() -> None:
    whole = hmac.new(KEY, b"pixels 12", hashlib.sha256).hexdigest()
    assert image_hashes.token(KEY, "pixels 12") == whole[:32]


def test_tokens_are_as_many_as_images_in_their_own_order_and_hide_what_a_site_has_twice() -> None:
    found = image_hashes.tokens(KEY, "north", ["a", "b", "a", "c", "a"])
    assert len(set(found)) == 5
    assert list(found) == sorted(found)
    assert {image_hashes.token(KEY, name) for name in "abc"} < set(found)
    assert found == image_hashes.tokens(KEY, "north", ["c", "a", "a", "b", "a"])
    # Fillers of two sites do not meet: each has two of its own beside the three that are shared.
    assert len(set(found) & set(image_hashes.tokens(KEY, "south", ["a", "b", "a", "c", "a"]))) == 3


def test_every_study_has_a_key_of_its_own(secret: Path, make_study) -> None:
    study = make_study(overlap={})
    assert image_hashes.key(secret, study) == image_hashes.key(secret, make_study(overlap={}))
    assert image_hashes.key(secret, study) != image_hashes.key(secret, make_study(overlap={}, seed=4))


def test_another_secret_has_another_check_value(secret: Path, make_study) -> None:
    before = image_hashes.check(image_hashes.key(secret, make_study()))
    secret.write_text("cd" * 32)
    assert image_hashes.check(image_hashes.key(secret, make_study())) != before
    secret.write_text(SECRET.upper())
    assert image_hashes.check(image_hashes.key(secret, make_study())) == before


@pytest.mark.parametrize("content", [None, b"password", b"ab" * 31, b"zz" * 32, b"\xff" * 64])
def test_what_is_no_secret_is_refused_and_the_server_learns_no_path(
    tmp_path: Path, make_study, content: bytes | None
) -> None:
    path = tmp_path / "overlap.secret"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(PolicyRefusal, match=r"overlap\.secret") as caught:
        image_hashes.key(path, make_study())
    assert "the study compares images between sites" in caught.value.reason
    assert str(tmp_path) not in caught.value.reason
    with pytest.raises(PolicyRefusal, match="names no `overlap_secret`"):
        image_hashes.key(None, make_study())


def test_a_secret_that_everybody_may_read_is_worth_a_warning(secret: Path, make_study, caplog) -> None:
    image_hashes.key(secret, make_study())
    assert "every user" not in caplog.text
    secret.chmod(0o644)
    image_hashes.key(secret, make_study())
    assert "may be read by every user" in caplog.text


# --- what a data manager finds -------------------------------------------------------------------


def test_the_images_that_are_meant_are_listed_here_and_an_older_list_goes(tmp_path: Path) -> None:
    for seed in (0, 1, 2):
        picture(seed).save(tmp_path / f"{seed}.png")
    images = shown(*(tmp_path / f"{seed}.png" for seed in (0, 1, 2)))
    meant = (image_hashes.token(KEY, images[0].looks), image_hashes.token(KEY, images[2].pixels), "0" * 32)
    assert image_hashes.list_shared(tmp_path, KEY, images, meant) == {"same": 1, "similar": 1}
    lines = (tmp_path / image_hashes.FILE).read_text().splitlines()
    assert lines == ["match,label,image,source", "similar,mel,0.png,row 0", "same,mel,2.png,row 2"]
    assert image_hashes.list_shared(tmp_path, KEY, images, ()) == {}
    assert not (tmp_path / image_hashes.FILE).exists()


def test_a_plan_that_tells_is_answered_without_hashes(tmp_path: Path, make_study) -> None:
    picture().save(tmp_path / "a.png")
    images = shown(tmp_path / "a.png")
    plan = wire.OverlapPlan(plan_id="o", site="north", study=make_study(overlap={}))
    assert len(image_hashes.answer(plan, KEY, images).same) == 1
    told = image_hashes.answer(plan.model_copy(update={"shared": ("0" * 32,)}), KEY, images)
    assert (told.same, told.similar) == ((), ())

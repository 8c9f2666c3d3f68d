import logging
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from client.config import CacheConfig
from client.data.decoding import decode
from client.data.manifest import ImageRow, Manifest
from client.data.references import PictureFile
from client.data.store import ImageStore
from client.images import Images, Preprocessing
from common.errors import SiteDataError, StorageError

CLASSES = ("mel", "nv")
# 14 / 0.875 = 16 stored pixels a side, 2 of them to spare for crops.
PLAIN = Preprocessing(image_size=14, mean=(0, 0, 0), std=(1, 1, 1), interpolation="bilinear")
IN_MEMORY, ON_DISK = CacheConfig(), CacheConfig(memory_mib=0, disk_mib=1)


def site(folder: Path, num_images: int = 6) -> Manifest:
    """Images 0, 1, 2, ... of noise; every third one tests, classes alternate."""
    rng = np.random.default_rng(0)
    rows = []
    for number in range(num_images):
        path = folder / f"{number}.png"
        Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(path)
        side = "test" if number % 3 == 2 else "train"
        rows.append(
            ImageRow(PictureFile(path), CLASSES[number % 2], None, side, f"labels.csv row {number + 2}")
        )
    return Manifest(tuple(rows), CLASSES)


def pixels_of(row: ImageRow) -> torch.Tensor:
    """(16, 16, 3) in [0, 1]."""
    with Image.open(row.image.path) as image:
        return torch.from_numpy(np.array(image)).float() / 255


@pytest.mark.parametrize("cache", [IN_MEMORY, ON_DISK])
def test_each_side_has_its_own_images_in_order(cache, tmp_path):
    manifest = site(tmp_path)
    store = ImageStore.build(manifest, PLAIN, cache, tmp_path / "state", num_threads=2)
    train: Images = store.images("train")
    assert train.labels_N.tolist() == [0, 1, 1, 0]  # images 0, 1, 3, 4
    assert store.class_counts("train") == (2, 2)
    assert store.class_counts("test") == (1, 1)
    batch_BCSS = store.images("test").batch(torch.tensor([1, 0]), None)  # images 5 and 2
    assert batch_BCSS.dtype == torch.float32
    assert batch_BCSS.is_contiguous()
    for image_CSS, number in zip(batch_BCSS, (5, 2), strict=True):
        centre_SSC = pixels_of(manifest.rows[number])[1:15, 1:15]
        assert torch.equal(image_CSS, centre_SSC.permute(2, 0, 1))


def test_values_are_normalised_per_channel(tmp_path):
    Image.new("RGB", (16, 16), (255, 51, 0)).save(tmp_path / "a.png")
    manifest = Manifest((ImageRow(PictureFile(tmp_path / "a.png"), "mel", None, "test", "a"),), CLASSES)
    preprocessing = PLAIN.model_copy(update={"mean": (0.5, 0.2, 0.1), "std": (0.25, 1.0, 0.1)})
    image_CSS = (
        ImageStore.build(manifest, preprocessing, IN_MEMORY, tmp_path)
        .images("test")
        .batch(torch.tensor([0]), None)[0]
    )
    # (1 - 0.5) / 0.25 = 2; (51/255 - 0.2) / 1 = 0; (0 - 0.1) / 0.1 = -1
    for channel_SS, expected in zip(image_CSS, (2.0, 0.0, -1.0), strict=True):
        assert torch.allclose(channel_SS, torch.full((14, 14), expected), atol=1e-6)


def test_augmented_images_are_crops_or_their_mirror_images_and_all_occur(tmp_path):
    manifest = site(tmp_path, num_images=1)
    train = ImageStore.build(manifest, PLAIN, IN_MEMORY, tmp_path).images("train", "paper")
    image_CRR = pixels_of(manifest.rows[0]).permute(2, 0, 1)
    crops = [image_CRR[:, top : top + 14, left : left + 14] for top in range(3) for left in range(3)]
    known = crops + [crop.flip(2) for crop in crops]
    drawn = train.batch(torch.zeros(300, dtype=torch.int64), torch.Generator().manual_seed(1))
    which = [[number for number, crop in enumerate(known) if torch.equal(crop, image)] for image in drawn]
    assert all(len(found) == 1 for found in which)
    # 18 places, 300 draws: that one never occurs has a chance of 18 * (17/18)^300 < 1e-6.
    assert {found[0] for found in which} == set(range(18))


def test_all_chance_comes_from_the_generator(tmp_path):
    store = ImageStore.build(site(tmp_path), PLAIN, IN_MEMORY, tmp_path)
    train, indices_B = store.images("train", "paper"), torch.tensor([3, 0, 1])
    first, again, other = (train.batch(indices_B, torch.Generator().manual_seed(s)) for s in (5, 5, 6))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    plain = train.batch(indices_B, None)
    assert torch.equal(plain, store.images("train", "none").batch(indices_B, torch.Generator()))


def test_no_epoch_decodes_an_image_twice(tmp_path, monkeypatch):
    decoded = []
    real = decode.decode
    monkeypatch.setattr(decode, "decode", lambda image, *how: decoded.append(image) or real(image, *how))
    manifest = site(tmp_path)
    train = ImageStore.build(manifest, PLAIN, IN_MEMORY, tmp_path).images("train", "paper")
    for epoch in range(3):
        train.batch(torch.arange(4), torch.Generator().manual_seed(epoch))
    assert set(decoded) == {row.image for row in manifest.rows}
    assert len(decoded) == 6


def test_a_restarted_trainer_finds_its_decoded_images_unless_something_changed(tmp_path, monkeypatch):
    manifest = site(tmp_path)
    before = ImageStore.build(manifest, PLAIN, ON_DISK, tmp_path / "state").images("train")
    decoded = []
    real = decode.decode
    monkeypatch.setattr(decode, "decode", lambda image, *how: decoded.append(image) or real(image, *how))

    again = ImageStore.build(manifest, PLAIN, ON_DISK, tmp_path / "state").images("train")
    assert decoded == []
    assert torch.equal(before.batch(torch.arange(4), None), again.batch(torch.arange(4), None))

    os.utime(manifest.rows[0].image.path, (1, 1))
    ImageStore.build(manifest, PLAIN, ON_DISK, tmp_path / "state")
    assert len(decoded) == 6
    # Replaced under its name, size and time, as `cp -p` and `rsync -t` do.
    other, path = tmp_path / "other.png", manifest.rows[0].image.path
    other.write_bytes(path.read_bytes()[::-1])
    os.utime(other, (1, 1))
    other.rename(path)
    with pytest.raises(SiteDataError, match=r"0\.png cannot be decoded"):
        ImageStore.build(manifest, PLAIN, ON_DISK, tmp_path / "state")
    path.write_bytes(path.read_bytes()[::-1])
    smaller = PLAIN.model_copy(update={"image_size": 7})
    ImageStore.build(manifest, smaller, ON_DISK, tmp_path / "state")
    assert len(decoded) == 18


def test_files_of_other_data_sets_make_room_oldest_first(tmp_path):
    folder = tmp_path / "state" / "images"
    folder.mkdir(parents=True)
    for age, name in [(1, "old.rgb"), (2, "new.rgb"), (3, "broken.partial")]:
        (folder / name).write_bytes(bytes(2**19))
        os.utime(folder / name, (age, age))
    # Limit 1 MiB = 2 * 2^19; ours takes 6 * 16 * 16 * 3 = 4608 bytes, so one of the two has to go.
    ImageStore.build(site(tmp_path), PLAIN, ON_DISK, tmp_path / "state")
    left = {path.name for path in folder.iterdir()}
    assert len(left) == 2
    assert "new.rgb" in left
    assert "old.rgb" not in left


def test_a_data_set_over_both_limits_is_refused_with_need_and_limit(tmp_path):
    # 6 * 301 * 301 * 3 bytes = 1.56 MiB
    large = PLAIN.model_copy(update={"image_size": 301, "crop_share": 1.0})
    with pytest.raises(SiteDataError, match=r"need 2 MiB, more than cache\.disk_mib=1"):
        ImageStore.build(site(tmp_path), large, ON_DISK, tmp_path)


def test_all_bad_images_are_reported_at_once_and_nothing_half_written_stays(tmp_path):
    manifest = site(tmp_path, num_images=8)
    Image.new("RGB", (1, 1)).save(manifest.rows[1].image.path)
    whole = manifest.rows[4].image.path.read_bytes()
    manifest.rows[4].image.path.write_bytes(whole[: len(whole) // 2])
    manifest.rows[6].image.path.unlink()
    for cache in (IN_MEMORY, ON_DISK):
        with pytest.raises(SiteDataError) as caught:
            ImageStore.build(manifest, PLAIN, cache, tmp_path / "state")
        text = str(caught.value)
        assert "3 of 8 images cannot be used" in text
        for line in ("row 3: ", "1.png is 1 x 1 pixels", "row 6: ", "4.png cannot be decoded", "row 8: "):
            assert line in text
    assert list((tmp_path / "state" / "images").iterdir()) == []


def test_a_disk_that_cannot_be_written_says_what_was_needed(tmp_path):
    (tmp_path / "state").write_text("a file where a folder should be")
    with pytest.raises(StorageError, match="of decoded images could not be written"):
        ImageStore.build(site(tmp_path), PLAIN, ON_DISK, tmp_path / "state")


def test_what_is_logged_names_no_file(tmp_path, caplog):
    with caplog.at_level(logging.INFO, "consilium"):
        ImageStore.build(site(tmp_path), PLAIN, IN_MEMORY, tmp_path)
    assert "6 images decoded" in caplog.text
    assert str(tmp_path) not in caplog.text


def test_a_side_without_images_is_empty(tmp_path):
    manifest = site(tmp_path, num_images=2)
    store = ImageStore.build(manifest, PLAIN, IN_MEMORY, tmp_path)
    assert store.images("test").labels_N.shape == (0,)
    assert store.images("test").batch(torch.empty(0, dtype=torch.int64), None).shape == (0, 3, 14, 14)


@pytest.mark.parametrize("preset", ["dermoscopy", "mri"])
def test_presets_change_training_images_and_never_what_is_scored(preset, tmp_path):
    store = ImageStore.build(site(tmp_path), PLAIN, IN_MEMORY, tmp_path)
    images, indices_B = store.images("train", preset), torch.tensor([0, 1])
    plain = images.batch(indices_B, None)
    assert torch.equal(plain, store.images("train", "none").batch(indices_B, None))
    drawn = images.batch(indices_B, torch.Generator().manual_seed(0))
    assert drawn.shape == plain.shape
    assert not torch.equal(drawn, plain)
    assert drawn.min() >= 0
    assert drawn.max() <= 1

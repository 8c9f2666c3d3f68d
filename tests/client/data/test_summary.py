"""What a site's images look like from afar: figures by hand, and no patient at the ends of a range."""

from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from PIL import Image

from client.data.manifest import ImageRow
from client.data.references import DicomFrame, NiftiSlice, NpzEntry, PictureFile
from client.data.summary import STEP, channel_figures, size, sizes, summary
from tests.places import DATA


def rows(folder: Path, *images: tuple[str, int, int]) -> list[ImageRow]:
    """(patient, width, height) each."""
    found = []
    for number, (patient, width, height) in enumerate(images):
        path = folder / f"{number}.png"
        Image.new("L", (width, height)).save(path)
        found.append(ImageRow(PictureFile(path), "a", patient or None, "train", "row"))
    return found


def test_means_and_deviations_are_of_all_pixels_of_all_images() -> None:
    # red: half 0, half 255: mean 127.5, deviation 127.5; green: 51 everywhere; blue: 0, 0, 0, 255 in quarters:
    # mean 63.75, deviation 255 * sqrt(1/4 * 3/4) = 110.42
    pixels = torch.zeros(4, 2 * STEP, 2 * STEP, 3, dtype=torch.uint8)
    pixels[2:, ..., 0] = 255
    pixels[..., 1] = 51
    pixels[3:, ..., 2] = 255
    mean, std = channel_figures(pixels)
    assert mean == (0.5, 0.2, 0.25)
    assert std == (0.5, 0.0, 0.433)


def test_the_order_of_images_changes_no_digit() -> None:
    pixels = torch.randint(
        0, 256, (300, 8, 8, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)
    )
    assert channel_figures(pixels) == channel_figures(pixels.flip(0))


def test_a_site_without_a_minimum_tells_the_whole_range(tmp_path: Path) -> None:
    found = sizes(rows(tmp_path, ("p", 10, 40), ("p", 30, 20), ("q", 20, 20)), 1)
    assert found is not None
    assert (found.width, found.height) == ((10, 30), (20, 40))


def test_at_each_end_of_a_range_are_as_many_patients_as_may_be_counted(tmp_path: Path) -> None:
    # Widths by patient: p 10 and 12, q 20, r 30 and 99, s 40. The second smallest patient has 20, the second
    # largest 40; p's two narrow images are one patient's, r's 99 as well.
    images = [("p", 10, 8), ("p", 12, 8), ("q", 20, 8), ("r", 30, 8), ("r", 99, 8), ("s", 40, 8)]
    found = sizes(rows(tmp_path, *images), 2)
    assert found is not None
    assert (found.width, found.height) == ((20, 40), (8, 8))
    assert sizes(rows(tmp_path, *images[:5]), 2) is None  # three patients: the middle one would be both ends


def test_images_of_nobody_known_count_one_each(tmp_path: Path) -> None:
    found = sizes(rows(tmp_path, ("", 10, 8), ("", 11, 8), ("", 12, 8), ("", 13, 8)), 2)
    assert found is not None
    assert found.width == (11, 12)


def test_no_images_have_no_summary() -> None:
    assert summary([], torch.zeros(0, 8, 8, 3, dtype=torch.uint8), None) is None


def test_a_picture_that_a_camera_marked_as_turned_has_the_size_in_which_it_is_shown(tmp_path: Path) -> None:
    picture = Image.new("RGB", (40, 20))
    exif = picture.getexif()
    exif[0x0112] = 6
    picture.save(tmp_path / "a.jpg", exif=exif)
    assert size(PictureFile(tmp_path / "a.jpg")) == (20, 40)


def test_slices_and_entries_of_archives_have_the_size_in_which_they_are_shown(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", train_images=np.zeros((2, 20, 30, 3), np.uint8))
    assert size(NpzEntry(tmp_path / "a.npz", "train_images", 1)) == (30, 20)
    # First axis: front to back, 12 voxels; second: left to right, 16. A slice is 16 wide and 12 high.
    turned = np.array([[0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    path = tmp_path / "a.nii.gz"
    nibabel.save(nibabel.Nifti1Image(np.zeros((12, 16, 3), np.uint8), turned), path)
    assert size(NiftiSlice((path, path, path), 0)) == (16, 12)


@pytest.mark.skipif(not (DATA / "dicom_nifti_samples.tar").exists(), reason="needs the shared samples")
def test_a_dicom_has_the_size_of_its_header(tmp_path: Path) -> None:
    import tarfile

    with tarfile.open(DATA / "dicom_nifti_samples.tar") as archive:
        name = next(name for name in sorted(archive.getnames()) if name.endswith("CT_small.dcm"))
        archive.extract(name, tmp_path, filter="data")
    assert size(DicomFrame(tmp_path / name, 0)) == (128, 128)

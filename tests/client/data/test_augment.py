import pytest
import torch

from client.data.augment import augmented

FLAT = torch.full((3, 32, 32), 100, dtype=torch.uint8)
NOISE = torch.randint(0, 256, (3, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


@pytest.mark.parametrize("preset", ["dermoscopy", "mri"])
def test_all_chance_comes_from_the_generator_and_torch_draws_on_as_before(preset):
    before = torch.get_rng_state()
    one, same, other = (
        augmented([NOISE, NOISE], preset, 28, torch.Generator().manual_seed(s)) for s in (1, 1, 2)
    )
    assert one.shape == (2, 3, 28, 28)
    assert one.dtype == torch.uint8
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert not torch.equal(one[0], one[1])  # each image has draws of its own
    assert torch.equal(torch.get_rng_state(), before)


def test_a_turned_skin_image_has_no_black_corners():
    # Only the light changes on a flat picture: brightness and contrast by a fifth, hue of grey not at all.
    done = augmented([FLAT] * 40, "dermoscopy", 28, torch.Generator().manual_seed(0))
    assert done.min() >= 60
    assert (done.flatten(1).amax(1) - done.flatten(1).amin(1) <= 1).all()


def test_a_grey_scan_stays_grey():
    grey = NOISE[:1].expand(3, -1, -1)
    done = augmented([grey] * 10, "mri", 28, torch.Generator().manual_seed(0)).int()
    assert (done[:, 0] - done[:, 1]).abs().max() <= 1

import dataclasses
import math

import pytest
import torch

from client.data.augment import Change, change_into, draw

FLAT = torch.full((3, 32, 32), 100, dtype=torch.uint8)
NOISE = torch.randint(0, 256, (3, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
AS_IT_IS = Change(((1, 0, 0), (0, 1, 0)), "reflection")


def changed(square, change, size):
    image = torch.empty(3, size, size)
    change_into(image, square, change)
    return image


def batch(squares, preset, seed=0):
    changes = draw(preset, len(squares), torch.Generator().manual_seed(seed))
    return torch.stack([changed(square, change, 28) for square, change in zip(squares, changes, strict=True)])


@pytest.mark.parametrize("preset", ["dermoscopy", "mri"])
def test_all_chance_comes_from_the_generator_and_torch_draws_on_as_before(preset):
    before = torch.get_rng_state()
    one, same, other = (batch([NOISE, NOISE], preset, seed) for seed in (1, 1, 2))
    assert one.shape == (2, 3, 28, 28)
    assert one.dtype == torch.float32
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert not torch.equal(one[0], one[1])  # each image has draws of its own
    assert torch.equal(torch.get_rng_state(), before)


def test_a_turned_skin_image_has_no_black_corners():
    # Only the light changes on a flat picture: brightness by a fifth, contrast and hue of grey not at all.
    done = batch([FLAT] * 40, "dermoscopy")
    assert 80 <= done.min() < 85
    assert 115 < done.max() <= 120
    assert (done.flatten(1).amax(1) - done.flatten(1).amin(1) <= 1).all()


def test_a_grey_scan_stays_grey():
    grey = NOISE[:1].expand(3, -1, -1)
    done = batch([grey] * 10, "mri")
    assert (done[:, 0] - done[:, 1]).abs().max() <= 1


def test_the_map_that_changes_nothing_gives_the_square_and_mirrors_and_turns_are_exact():
    square = NOISE.float()
    mirrored = dataclasses.replace(AS_IT_IS, map_23=((-1, 0, 0), (0, 1, 0)))
    turned = dataclasses.replace(AS_IT_IS, map_23=((0, -1, 0), (1, 0, 0)))  # x from -y, y from x
    torch.testing.assert_close(changed(NOISE, AS_IT_IS, 32), square, atol=0.01, rtol=0)
    torch.testing.assert_close(changed(NOISE, mirrored, 32), square.flip(2), atol=0.01, rtol=0)
    torch.testing.assert_close(changed(NOISE, turned, 32), square.rot90(1, (1, 2)), atol=0.01, rtol=0)


def test_a_crop_is_a_part_of_the_square():
    # A quarter: the upper left 16 x 16 pixels, on 16 x 16.
    corner = dataclasses.replace(AS_IT_IS, map_23=((0.5, 0, -0.5), (0, 0.5, -0.5)))
    torch.testing.assert_close(changed(NOISE, corner, 16), NOISE[:, :16, :16].float(), atol=0.01, rtol=0)


@pytest.mark.parametrize("preset", ["dermoscopy", "mri"])
def test_crops_keep_the_part_that_the_preset_says_and_lie_within_the_square_before_the_turn(preset):
    least, ratio = (0.7, 1.1) if preset == "dermoscopy" else (0.8, 1.05)
    areas = []
    for change in draw(preset, 200, torch.Generator().manual_seed(0)):
        (a, b, c), (d, e, f) = change.map_23
        width, height = math.hypot(a, d), math.hypot(b, e)
        areas.append(abs(a * e - b * d))
        assert 1 / ratio - 1e-9 <= width / height <= ratio + 1e-9
        left, top = (a * c + d * f) / width, (b * c + e * f) / height  # turned back
        assert abs(left) + width <= 1 + 1e-9
        assert abs(top) + height <= 1 + 1e-9
    assert least * 0.97 < min(areas) < least + 0.03  # a long crop that does not fit is cut
    assert max(areas) > 0.95


def test_brain_scans_stay_upright_and_skin_turns_any_way():
    brains, skins = (draw(preset, 100, torch.Generator().manual_seed(0)) for preset in ("mri", "dermoscopy"))
    assert all(change.map_23[1][1] > 0 for change in brains)
    assert {math.copysign(1, change.map_23[0][0]) for change in brains} == {1.0, -1.0}
    assert {math.copysign(1, change.map_23[1][1]) for change in skins} == {1.0, -1.0}


def test_light_and_colour_are_what_they_are_worked_out_to_by_hand():
    red = torch.tensor([100, 0, 0], dtype=torch.uint8).view(3, 1, 1).expand(3, 4, 4)

    def pixel(**light):
        return changed(red, dataclasses.replace(AS_IT_IS, **light), 4)[:, 0, 0].tolist()

    assert pixel(brightness=1.2) == [120, 0, 0]
    assert pixel(contrast=0.8) == [86, 6, 6]  # 80 + 0.2 x 29.9, 0.2 x 29.9
    assert pixel(saturation=0.0) == [30, 30, 30]
    assert pixel(hue=math.pi) == [0, 60, 60]  # as far from grey on the other side: 59.8 - 100 and 59.8


def test_values_are_whole_numbers_and_end_at_black_and_white():
    white = torch.full((3, 4, 4), 250, dtype=torch.uint8)
    assert (changed(white, dataclasses.replace(AS_IT_IS, brightness=1.2), 4) == 255).all()
    assert (changed(white, dataclasses.replace(AS_IT_IS, brightness=0.9943), 4) == 249).all()  # 248.575
    done = batch([NOISE], "dermoscopy")
    assert torch.equal(done, done.round())


def test_what_lies_outside_is_the_mirror_image_or_black():
    away = dataclasses.replace(AS_IT_IS, map_23=((1, 0, 2), (0, 1, 0)))  # one whole square to the right
    torch.testing.assert_close(changed(NOISE, away, 32), NOISE.float().flip(2), atol=0.01, rtol=0)
    assert changed(NOISE, dataclasses.replace(away, edge="zeros"), 32)[:, :, 1:].abs().max() < 1e-3

"""Equal digests, and fingerprints that differ in few bits."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from client.data.duplicates import fingerprint, near, same


def test_equal_files_are_one_group_each():
    assert same(["a", "b", "a", "c", "b", "a"]) == [(0, 2, 5), (1, 4)]


def test_pairs_within_so_many_bits_are_named_once_with_their_distance():
    # 0b0000 and 0b0111 differ in 3 bits, 0b0111 and 0b1111 in 1, 0b0000 and 0b1111 in 4
    assert list(near([0b0000, 0b0111, 0b1111], most=3)) == [(0, 1, 3), (1, 2, 1)]


@given(st.lists(st.integers(0, 2**64 - 1), max_size=40), st.integers(0, 64))
@settings(derandomize=True, deadline=None, max_examples=60)
def test_no_pair_is_missed_across_blocks(prints, most):
    expected = {
        (one, other, (prints[one] ^ prints[other]).bit_count())
        for one in range(len(prints))
        for other in range(one + 1, len(prints))
        if (prints[one] ^ prints[other]).bit_count() <= most
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("client.data.duplicates._BLOCK", 7)
        assert set(near(prints, most)) == expected


def test_a_brighter_picture_has_the_same_fingerprint_and_another_one_has_not():
    rng = np.random.default_rng(0)
    smooth = np.kron(rng.integers(30, 200, (8, 8)), np.ones((8, 8)))[..., None].repeat(3, axis=2)
    other = np.kron(rng.integers(30, 200, (8, 8)), np.ones((8, 8)))[..., None].repeat(3, axis=2)
    prints = [fingerprint(square.astype(np.uint8)) for square in (smooth, smooth + 20, other)]
    assert (prints[0] ^ prints[1]).bit_count() <= 4
    assert (prints[0] ^ prints[2]).bit_count() > 10

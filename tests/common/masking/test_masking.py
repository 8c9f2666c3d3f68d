"""Arithmetic of masks: keys of pairs, streams, shares, signed keys."""

import hmac
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from hypothesis import given
from hypothesis import strategies as st

from common.errors import ConfigError, WireError
from common.masking import agreement, grid, roster, sharing
from common.masking.stream import PIECE, Stream, apply, stream_of

ALICE = bytes(range(1, 33))
BOB = bytes.fromhex(
    "5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb"
)  # of RFC 7748, section 6.1
SESSION = bytes(range(32))
ASKED = "c0ffee"


def test_a_public_key_is_that_of_the_standards_example() -> None:
    assert agreement.public(BOB).hex() == "de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f"


def test_both_of_a_pair_get_the_same_seed_and_another_session_gives_another() -> None:
    mine = agreement.pair_seed(ALICE, agreement.public(BOB), SESSION, ASKED)
    assert mine == agreement.pair_seed(BOB, agreement.public(ALICE), SESSION, ASKED)
    assert mine != agreement.pair_seed(ALICE, agreement.public(BOB), bytes(32), ASKED)
    assert mine != agreement.pair_seed(ALICE, agreement.public(BOB), SESSION, "decaf")


def test_the_seed_of_a_pair_is_derived_as_it_was_in_the_third_version() -> None:
    """A changed derivation would keep sites of two versions from taking part together, and must be noticed."""
    seed = agreement.pair_seed(bytes([1] * 32), agreement.public(bytes([2] * 32)), SESSION, ASKED)
    assert seed.hex() == "0b560f7c49ae58358b9f67c1c30317a2d75b77b7225538efad821352491d5fb5"


def test_each_use_of_a_seed_has_a_stream_of_its_own() -> None:
    """HKDF-Expand of one block is HMAC(seed, info || 1), RFC 5869, section 2.3."""
    for use in ("update", "scores/test"):
        info = f"consilium masking 2: stream of {use}".encode()
        key = hmac.digest(SESSION, info + b"\x01", "sha256")
        assert [*stream_of(SESSION, use).words(2)] == [*Stream(key).words(2)]
    assert stream_of(SESSION, "update").words(1).tobytes().hex() == "ed97b2b36115d1f1"
    assert stream_of(SESSION, "scores/test").words(1).tobytes().hex() == "e6700fcc4475d9f5"


def test_an_envelope_is_read_by_its_receiver_alone_and_names_its_sender() -> None:
    sealed = agreement.seal(ALICE, agreement.public(BOB), SESSION, "north", b"shares")
    assert agreement.unseal(BOB, agreement.public(ALICE), SESSION, "north", sealed) == b"shares"
    for private, session, sender in (
        (bytes([3] * 32), SESSION, "north"),
        (BOB, bytes(32), "north"),
        (BOB, SESSION, "south"),
    ):
        with pytest.raises(WireError, match="did not seal for this site and this session"):
            agreement.unseal(private, agreement.public(ALICE), session, sender, sealed)


def test_a_key_whose_secret_everybody_knows_is_refused() -> None:
    with pytest.raises(WireError, match="makes no secret"):
        agreement.pair_seed(ALICE, bytes(32), SESSION, ASKED)


def test_a_stream_is_chacha20s_and_goes_on_where_it_stopped() -> None:
    first = bytes.fromhex("76b8e0ada0f13d90405d6ae55386bd28")  # RFC 8439, A.1, key and nonce of zeros
    assert Stream(bytes(32)).words(2).tobytes() == first
    stream, whole = Stream(bytes(32)), Stream(bytes(32)).words(5)
    assert [*stream.words(2), *stream.words(3)] == [*whole]


def test_a_mask_longer_than_a_piece_is_that_of_the_cipher_in_one_call() -> None:
    number = 2 * PIECE + 3
    cipher = Cipher(algorithms.ChaCha20(SESSION, bytes(16)), mode=None).encryptor()
    whole = np.frombuffer(cipher.update(bytes(8 * number)), "<u8")
    assert np.array_equal(Stream(SESSION).words(number), whole)
    together = np.ones((1, number), np.uint64)
    apply(together, added=[Stream(SESSION), Stream(ALICE)], subtracted=[Stream(BOB)])
    one_by_one = Stream(SESSION).words(number) + Stream(ALICE).words(number) - Stream(BOB).words(number)
    assert np.array_equal(together[0], one_by_one + np.uint64(1))
    with pytest.raises(ValueError, match="do not lie side by side"):
        apply(together[:, ::2], added=[Stream(SESSION)])


def test_words_in_pieces_are_the_whole_numbers_of_the_array() -> None:
    array = np.random.default_rng(3).normal(0, 1e-3, (3, 40_000)).astype(np.float32)  # more than three pieces
    assert np.array_equal(grid.words(array, 977).view(np.int64), np.stack(grid.wholes(array, 977)))
    assert grid.words(np.float32(0.5).reshape(()), 2).shape == (2,)


def test_a_mask_that_is_added_and_subtracted_leaves_the_numbers() -> None:
    words = np.array([[0, 1], [2**64 - 1, 5]], np.uint64)
    masked = words.copy()
    apply(masked, added=[Stream(SESSION)])
    assert (masked != words).all()
    apply(masked, subtracted=[Stream(SESSION)])
    assert (masked == words).all()


@given(secret=st.binary(min_size=32, max_size=32), threshold=st.integers(1, 4), extra=st.integers(0, 3))
def test_any_shares_that_are_enough_give_the_secret(secret: bytes, threshold: int, extra: int) -> None:
    shares = sharing.split(secret, threshold, threshold + extra)
    last = dict(sorted(shares.items())[extra:])
    assert len(last) == threshold
    assert sharing.combine(last) == secret


def test_one_share_too_few_gives_something_else() -> None:
    shares = sharing.split(SESSION, 3, 4)
    assert sharing.combine({1: shares[1], 2: shares[2]}) != SESSION


def test_shares_of_another_secrets_length_are_refused() -> None:
    with pytest.raises(ValueError, match="found 16 bytes"):
        sharing.split(bytes(16), 2, 3)


def test_a_sum_of_whole_numbers_is_the_mean_weighted_by_counts() -> None:
    north, south = np.array([1.0, -2.0], np.float32), np.array([4.0, 0.5], np.float32)
    coarse = fine = np.zeros(2, np.int64)
    for array, count in ((north, 3), (south, 1)):
        parts = grid.wholes(array, count)
        coarse, fine = coarse + parts[0], fine + parts[1]
    assert grid.mean(coarse, fine, 4, np.float32).tolist() == [1.75, -1.375]


def test_announced_keys_are_taken_for_their_site_round_and_study_alone() -> None:
    identity = Ed25519PrivateKey.from_private_bytes(ALICE)
    signer = roster.public_key(identity)
    keys = roster.announce(identity, agreement.public(ALICE), agreement.public(BOB), "f00d", 3, "north")
    assert keys.is_signed_by(signer, "f00d", 3, "north")
    assert not keys.is_signed_by(signer, "f00d", 4, "north")
    assert not keys.is_signed_by(signer, "beef", 3, "north")
    assert not keys.is_signed_by(signer, "f00d", 3, "north", "scoring")
    assert not keys.is_signed_by(signer, "f00d", 3, "south")
    other = keys.model_copy(update={"mask_key": keys.envelope_key})
    assert not other.is_signed_by(signer, "f00d", 3, "north")
    stranger = roster.public_key(Ed25519PrivateKey.from_private_bytes(BOB))
    assert not keys.is_signed_by(stranger, "f00d", 3, "north")


def test_a_session_is_another_one_if_any_key_is(tmp_path: Path) -> None:
    identity = roster.load_identity(tmp_path / "identity")
    keys = [
        roster.announce(
            identity, agreement.public(bytes([n] * 32)), agreement.public(BOB), "f00d", 1, "north"
        )
        for n in (1, 2)
    ]
    both = [roster.session({"north": keys[0], "south": one}, "f00d", 1) for one in keys]
    assert both[0] != both[1]
    scoring = roster.session({"north": keys[0], "south": keys[0]}, "f00d", 1, "scoring")
    assert scoring != both[0]


def test_an_identity_is_made_once_for_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "identity"
    first = roster.public_key(roster.load_identity(path))
    assert path.stat().st_mode & 0o077 == 0
    assert roster.public_key(roster.load_identity(path)) == first
    path.write_text("not a key")
    with pytest.raises(ConfigError, match="is not this site's signing key"):
        roster.load_identity(path)


def test_rosters_that_differ_in_one_key_have_other_fingerprints() -> None:
    keys = ["0" * 64, "1" * 64, "2" * 64]
    one, other = (roster.Roster(sites={"north": keys[0], "south": key}) for key in keys[1:])
    assert one.fingerprint != other.fingerprint
    assert len(one.fingerprint.split()) == 6

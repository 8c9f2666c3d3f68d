"""Shares of a secret, of which any `threshold` give it back and fewer say nothing (Shamir 1979).

The arithmetic is PyCryptodome's, on 16 bytes at a time.
"""

from collections.abc import Collection, Mapping

from Crypto.Protocol.SecretSharing import Shamir

SECRET_BYTES = 32
_HALF = 16


def split(secret: bytes, threshold: int, number: int) -> dict[int, bytes]:
    """`number` shares of 32 bytes, by place from 1."""
    if len(secret) != SECRET_BYTES or not 1 <= threshold <= number:
        raise ValueError(
            f"found {len(secret)} bytes and {threshold} of {number} shares, expected {SECRET_BYTES} bytes and "
            "no more shares needed than there are"
        )
    halves = [dict(Shamir.split(threshold, number, secret[at : at + _HALF], ssss=False)) for at in (0, _HALF)]
    return {place: halves[0][place] + halves[1][place] for place in halves[0]}


def combine(shares: Mapping[int, bytes]) -> bytes:
    """The secret, from as many shares as were needed; from fewer, 32 bytes that are not it."""
    halves = [
        Shamir.combine(
            [(place, share[at : at + _HALF]) for place, share in sorted(shares.items())], ssss=False
        )
        for at in (0, _HALF)
    ]
    return halves[0] + halves[1]


def places(sites: Collection[str]) -> dict[str, int]:
    """The place of each site among the shares of a secret, from 1, in the order of names."""
    return {site: place for place, site in enumerate(sorted(sites), 1)}

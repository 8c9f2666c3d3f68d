"""Seeds derived from a study's seed: one independent seed per site, round and purpose.

Seeds are hashed, not counted: `seed + round` would give two sites the same stream in
neighbouring rounds, and adding a consumer would shift all the others.
"""

import hashlib


def derive(seed: int, *purpose: str | int) -> int:
    """A seed in [0, 2**63) for `purpose`, e.g. `derive(study.seed, site, round, "order")`."""
    text = "\x1f".join([str(seed), *map(str, purpose)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1

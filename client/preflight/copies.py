"""Findings about copies: the same file more than once, and pictures that are nearly the same.

A copy on another side of the split makes the test too easy; a copy under another class has one wrong label.
"""

from collections.abc import Iterator, Sequence

from client.data import duplicates
from client.data.manifest import Manifest
from client.preflight.findings import Finding, Rank
from client.preflight.inspection import InspectedImage


def findings(images: Sequence[InspectedImage], manifest: Manifest) -> Iterator[Finding]:
    """Images that are there twice, exactly or nearly: under two classes, on both sides, of two patients."""
    readable = [image for image in images if not image.problem]
    sides = {row.image.key: row.split for row in manifest.rows}
    contradicting: list[tuple[int, ...]] = []
    repeated: list[tuple[int, ...]] = []
    for places in duplicates.same([image.digest for image in readable]):
        labels = {readable[place].row.label for place in places}
        (contradicting if len(labels) > 1 else repeated).append(places)

    def finding(rank: Rank, what: str, copies: Sequence[tuple[int, ...]]) -> Finding:
        items = [" = ".join(readable[place].where for place in places) for places in copies]
        return Finding(
            rank, what, tuple(items), tuple(readable[place].row for places in copies for place in places)
        )

    if contradicting:
        yield finding("stops", "the same file under two classes; one label is wrong", contradicting)
    if repeated:
        yield finding("look", "the same file is there more than once and counts more than once", repeated)
    on_both_sides = [
        places
        for places in (*contradicting, *repeated)
        if len({sides.get(readable[place].row.image.key) for place in places}) > 1
    ]
    if on_both_sides:
        yield finding(
            "stops", "the same file is on two sides of the split; remove one of each", on_both_sides
        )
    yield from _near(readable, sides)


def _near(readable: Sequence[InspectedImage], sides: dict[str, str | None]) -> Iterator[Finding]:
    pairs = []
    for one, other, bits in duplicates.near([image.fingerprint for image in readable]):
        left, right = readable[one], readable[other]
        if left.digest != right.digest and left.row.group_key != right.row.group_key:
            on = [sides.get(image.row.image.key) for image in (left, right)]
            pairs.append((len(set(on)) == 1, bits, left, right, on))
    if not pairs:
        return
    pairs.sort(key=lambda pair: pair[:2])  # those that make a test easier first
    across = sum(not together for together, *_ in pairs)
    yield Finding(
        "look",
        f"{len(pairs)} pair(s) of pictures that are nearly the same belong to different patients or lesions"
        + (f", {across} of them on two sides of the split" if across else ""),
        tuple(
            f"{left.where} ~ {right.where} ({bits} of 64 bits differ"
            f"{'' if together else f'; {on[0]} and {on[1]}'})"
            for together, bits, left, right, on in pairs
        ),
        tuple(image.row for _, _, left, right, _ in pairs for image in (left, right)),
    )

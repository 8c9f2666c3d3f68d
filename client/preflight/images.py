"""Findings about single images: files that cannot be used, and images unlike the others of the site."""

import statistics
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

from client.preflight.findings import Finding
from client.preflight.inspection import InspectedImage

SMALL, BLANK = 64, 2.0
"""Pixels a side; standard deviation of 8-bit pixels."""
FAR, FAR_SHARE = 3.0, 0.1
"""Times the median size, or its proportions; the most images that may be so and still be called exceptions."""


def findings(images: Sequence[InspectedImage]) -> Iterator[Finding]:
    """Files that cannot be used, and images unlike the others: flat, small, of another kind, with text."""
    yield from _files(images)
    yield from _sizes(images)
    yield from _kinds(images)
    yield from _text(images)


def _files(images: Sequence[InspectedImage]) -> Iterator[Finding]:
    bad = [image for image in images if image.problem]
    if bad:
        yield Finding(
            "stops",
            f"{len(bad)} image(s) cannot be used; repair, replace or remove them",
            tuple(f"{image.where} {image.problem}" for image in bad),
        )
    yield from _each(
        [image for image in images if not image.problem and image.spread < BLANK],
        "{} image(s) show one flat colour; remove them if they are blank",
    )
    yield from _each(
        [image for image in images if not image.problem and image.ends_in_grey],
        "{} image(s) end in rows of one grey, as a JPEG that was cut off does; look at them, and fetch them again",
    )
    yield from _each(
        [
            image
            for image in images
            if not image.problem and image.spread >= BLANK and image.looks_like_a_mask
        ],
        "{} image(s) have eight colours at most, as masks of a segmentation have; name the images that they belong to",
    )


def _sizes(images: Sequence[InspectedImage]) -> Iterator[Finding]:
    readable = [image for image in images if not image.problem]
    small = [image for image in readable if min(image.size) < SMALL]
    yield from _each(small, f"{{}} image(s) have fewer than {SMALL} pixels a side; thumbnails?", _size)
    if not readable:
        return
    usual = statistics.median(image.size[0] * image.size[1] for image in readable) ** 0.5
    shape = statistics.median(_proportion(image) for image in readable)
    odd = [
        image
        for image in readable
        if min(image.size) >= SMALL
        and (
            not 1 / FAR < (image.size[0] * image.size[1]) ** 0.5 / usual < FAR
            or not 1 / FAR < _proportion(image) / shape < FAR
        )
    ]
    if len(odd) <= FAR_SHARE * len(readable):
        yield from _each(
            odd,
            f"{{}} image(s) are of another size or shape than the rest ({FAR:g} times the median or more); sheets, "
            "strips or scans of something else?",
            _size,
        )


def _size(image: InspectedImage) -> str:
    return f"{image.size[0]} x {image.size[1]}"


def _proportion(image: InspectedImage) -> float:
    return max(image.size) / min(image.size)


def _kinds(images: Sequence[InspectedImage]) -> Iterator[Finding]:
    readable = [image for image in images if not image.problem and image.spread >= BLANK]
    kinds = Counter(image.kind for image in readable)
    if len(kinds) > 1:
        usual, _ = kinds.most_common(1)[0]
        yield from _each(
            [image for image in readable if image.kind != usual],
            f"{{}} image(s) are not {usual} like most; all become RGB",
            lambda image: image.kind,
        )


def _text(images: Sequence[InspectedImage]) -> Iterator[Finding]:
    yield from _each(
        [image for image in images if image.text == "declared"],
        "{} image(s) declare burned-in text (BurnedInAnnotation); cut it off if it names a patient: a model "
        "can learn it",
    )
    yield from _each(
        [image for image in images if image.text == "suspected"],
        "{} image(s) seem to have burned-in text; look at them, and cut it off if it names a patient: a model "
        "can learn it",
    )


def _each(
    images: Sequence[InspectedImage], what: str, detail: Callable[[InspectedImage], str] | None = None
) -> Iterator[Finding]:
    if images:
        yield Finding(
            "look",
            what.format(len(images)),
            tuple(image.where + (f": {detail(image)}" if detail else "") for image in images),
            tuple(image.row for image in images),
        )

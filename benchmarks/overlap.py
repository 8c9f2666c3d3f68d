"""What comparing sites by keyed hashes finds and costs, on real images.

Hashes every image of a labels.csv with a column that names its source, counts what sources share,
which pictures of different lesions have the same perceptual hash, and how many copies keep theirs.
Prints what docs/results/overlap.md holds.
`IMAGES=DIR BY=COLUMN GROUP=COLUMN python -m benchmarks overlap`, DIR with labels.csv.
"""

import csv
import io
import os
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from itertools import combinations
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from client.data import duplicates, summary
from client.data.decoding import decode
from client.data.manifest import ImageRow
from client.data.references import PictureFile
from client.governance.image_hashes import Shown, shown

EVERY, NUM_SQUARES = 25, 1000
"""Of the images that are copied; made up, to time means and deviations."""


def main() -> None:
    """Print the figures."""
    folder, by, group = Path(os.environ["IMAGES"]), os.environ["BY"], os.environ["GROUP"]
    with (folder / "labels.csv").open(encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    rows = [
        ImageRow(PictureFile(folder / line["file"]), line["label"], line[group], None, line["file"])
        for line in lines
    ]
    started = time.monotonic()
    images = shown(rows, 1)
    print(f"{len(rows)} images hashed in {time.monotonic() - started:.1f} s on one thread")
    _between([line[by] for line in lines], images)
    _within(images)
    _copies(images[::EVERY])
    _summary(rows)


def _between(sources: list[str], images: tuple[Shown, ...]) -> None:
    same, similar, number = defaultdict(set), defaultdict(set), Counter(sources)
    for source, image in zip(sources, images, strict=True):
        same[source].add(image.pixels)
        similar[source].add(image.looks)
    for one, other in combinations(sorted(number), 2):
        print(
            f"{one} ({number[one]}) and {other} ({number[other]}): {len(same[one] & same[other])} same, "
            f"{len(similar[one] & similar[other])} similar"
        )


def _within(images: tuple[Shown, ...]) -> None:
    looks = [image.looks for image in images]
    groups = duplicates.same(looks)
    different = [places for places in groups if len({images[place].row.group for place in places}) > 1]
    print(f"{len(duplicates.same([image.pixels for image in images]))} times the same pixels twice")
    print(f"{len(groups)} perceptual hashes more than once, {len(different)} of them for different lesions")
    for places in different[:10]:
        print(
            "  ", ", ".join(f"{images[place].row.image.name} ({images[place].row.group})" for place in places)
        )


def _copies(images: tuple[Shown, ...]) -> None:
    def jpeg(quality: int) -> Callable[[Image.Image], Image.Image]:
        def copied(image: Image.Image) -> Image.Image:
            data = io.BytesIO()
            image.save(data, "JPEG", quality=quality)
            return Image.open(data).convert("RGB")

        return copied

    def half(image: Image.Image) -> Image.Image:
        return image.resize((image.width // 2, image.height // 2), Image.Resampling.LANCZOS)

    def cropped(image: Image.Image) -> Image.Image:
        right, down = round(image.width / 100), round(image.height / 100)
        return image.crop((right, down, image.width - right, image.height - down))

    copies = {
        "JPEG, quality 95": jpeg(95),
        "JPEG, quality 75": jpeg(75),
        "half the size": half,
        "cropped": cropped,
    }
    for name, copy in copies.items():
        bits = Counter()
        for image in images:
            picture = decode.load(image.row.image, 2**15)
            other = duplicates.fingerprint(np.asarray(copy(picture)))
            bits[(other ^ int(image.looks.split()[1], 16)).bit_count()] += 1
        shares = ", ".join(f"{bit} bits {number / len(images):.3f}" for bit, number in sorted(bits.items()))
        print(f"{name} ({len(images)} images): {shares}")


def _summary(rows: list[ImageRow]) -> None:
    started = time.monotonic()
    sizes = summary.sizes(rows, 1)
    print(f"sizes of {len(rows)} images from their headers: {time.monotonic() - started:.1f} s, {sizes}")
    squares_NRRC = torch.randint(0, 256, (NUM_SQUARES, 256, 256, 3), dtype=torch.uint8)
    started = time.monotonic()
    summary.channel_figures(squares_NRRC)
    print(f"means and deviations of {NUM_SQUARES} squares of 256 x 256: {time.monotonic() - started:.1f} s")


if __name__ == "__main__":
    main()

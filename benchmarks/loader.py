"""How fast images come: decoded by a plain ImageFolder and DataLoader, and from the kept squares.

Every way runs in a process of its own, one after another, over the same files with the paper's
augmentation unless it names another, batches of 32 and one thread, and does nothing with the batches. Writes
docs/results/loader.md. `HAM10000=DIR python -m benchmarks loader`, DIR with labels.csv (file, label, lesion_id).
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks._page import RESULTS, write_page
from common.config import Augmentation
from server.report.text import markdown_table

PAGE = RESULTS / "loader.md"
CLASSES = ("akiec", "bcc", "bkl", "df", "mel", "nv", "vasc")
MEAN, STD, SIZE, SIDE, BATCH = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 224, 256, 32
WAYS = {
    "folder": "ImageFolder and DataLoader",
    "folder2": "the same, two workers",
    "mapped": "here, squares in a mapped file",
    "memory": "here, squares in memory",
    "dermoscopy": "here, mapped, augmentation `dermoscopy`",
    "mri": "here, mapped, augmentation `mri`",
    "tensor": "loop over a tensor in memory",
}
NUM = 2048
"""Of the images; few, so that every way has the machine for seconds and gets its turn again."""
ROUNDS = 3
"""Every way is tried so often, in turn, and its best kept: others use the machine as well."""


@dataclass(frozen=True)
class Seen:
    """One way, in one process."""

    images_s: list[float]
    """Of each epoch; the first of the ways that keep squares includes decoding."""
    images_cpu_s: list[float]
    own_mib: float
    """Memory that is this process's alone."""
    file_mib: float
    """Pages of mapped files, which the system takes back when it needs them."""

    @property
    def figures(self) -> tuple[float, ...]:
        """The columns of the table."""
        return (*self.images_s, self.images_cpu_s[1], self.own_mib, self.file_mib)


# --- the ways, each in a process of its own ------------------------------------------------------


def _folder(ham: Path, home: Path, workers: int) -> Callable[[int], Iterator[torch.Tensor]]:
    from torch.utils.data import DataLoader
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import v2

    from benchmarks.split_gap import read

    root = home / "folders"
    for row in read(ham).rows[:NUM]:
        link = root / row.label / row.image.name
        if not link.exists():
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(row.image.files[0].absolute())
    change = v2.Compose(
        [
            v2.ToImage(), v2.Resize(SIDE, antialias=True), v2.RandomCrop(SIZE), v2.RandomHorizontalFlip(),
            v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD),
        ]
    )  # fmt: skip
    loader: Any = DataLoader(ImageFolder(str(root), change), BATCH, shuffle=True, num_workers=workers)
    return lambda _: (images for images, _ in loader)


def _store(
    ham: Path, home: Path, memory_mib: int, augmentation: Augmentation = "paper"
) -> Callable[[int], Iterator[torch.Tensor]]:
    from dataclasses import replace

    from benchmarks.split_gap import read
    from client.config import CacheConfig
    from client.data.store import ImageStore
    from client.images import Preprocessing

    preprocessing = Preprocessing(image_size=SIZE, mean=MEAN, std=STD, interpolation="bilinear")
    kept: list[Any] = []

    def epoch(number: int) -> Iterator[torch.Tensor]:
        if not kept:
            manifest = read(ham)
            rows = tuple(replace(row, split="train") for row in manifest.rows[:NUM])
            cache = CacheConfig(memory_mib=memory_mib)
            store = ImageStore.build(replace(manifest, rows=rows), preprocessing, cache, home, num_threads=1)
            kept.append(store.images("train", augmentation))
        draws = torch.Generator().manual_seed(number)
        for places_B in torch.randperm(len(kept[0].labels_N), generator=draws).split(BATCH):
            yield kept[0].batch(places_B, draws)

    return epoch


def _tensor() -> Callable[[int], Iterator[torch.Tensor]]:
    """The barest loop: squares of the final size, no crop, no flip; picked and normalised."""
    pixels_NCSS = torch.randint(0, 256, (NUM, 3, SIZE, SIZE), dtype=torch.uint8)
    mean_C11, std_C11 = torch.tensor(MEAN).view(3, 1, 1), torch.tensor(STD).view(3, 1, 1)

    def epoch(number: int) -> Iterator[torch.Tensor]:
        draws = torch.Generator().manual_seed(number)
        for places_B in torch.randperm(NUM, generator=draws).split(BATCH):
            yield pixels_NCSS[places_B].to(torch.float32).div_(255).sub_(mean_C11).div_(std_C11)

    return epoch


def way(kind: str, ham: Path, home: Path) -> None:
    """Runs two epochs, and prints what was seen."""
    torch.set_num_threads(1)
    ways = {
        "folder": lambda: _folder(ham, home, 0),
        "folder2": lambda: _folder(ham, home, 2),
        "mapped": lambda: _store(ham, home, 0),
        "memory": lambda: _store(ham, home, 10**5),
        "dermoscopy": lambda: _store(ham, home, 0, "dermoscopy"),
        "mri": lambda: _store(ham, home, 0, "mri"),
        "tensor": _tensor,
    }
    epoch = ways[kind]()
    images_s, images_cpu_s = [], []
    for number in range(2):
        wall, cpu = time.perf_counter(), _cpu_s()
        num_images = sum(len(batch) for batch in epoch(number))
        images_s.append(num_images / (time.perf_counter() - wall))
        images_cpu_s.append(num_images / (_cpu_s() - cpu))
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    own, mapped = (int(fields[name].split()[0]) / 1024 for name in ("RssAnon", "RssFile"))
    print(json.dumps(vars(Seen(images_s, images_cpu_s, own, mapped))))


def _cpu_s() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


# --- the page ----------------------------------------------------------------------------------


def main() -> None:
    if "HAM10000" not in os.environ:
        print("left out: set HAM10000 to the folder with the images")
        return
    ham, best = Path(os.environ["HAM10000"]), dict[str, Seen]()
    for _ in range(ROUNDS):
        with tempfile.TemporaryDirectory() as home:
            for kind in WAYS:
                seen = _measured(kind, ham, home)
                print(f"{WAYS[kind]}: {seen.images_s}", flush=True)
                if kind not in best or seen.images_s[1] > best[kind].images_s[1]:
                    best[kind] = seen
    _write_page(best)


def _measured(kind: str, ham: Path, home: str) -> Seen:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.loader", kind, str(ham), home], stdout=subprocess.PIPE, check=True
    )
    return Seen(**json.loads(done.stdout.splitlines()[-1]))


def _write_page(best: dict[str, Seen]) -> None:
    mapped, folder, tensor = best["mapped"], best["folder"], best["tensor"]
    lines = [
        f"The first {NUM:,} HAM10000 images (JPEG, 200 x 150 pixels), batches of {BATCH} at {SIZE} pixels, crops and "
        "mirror images as in the paper, normalised; nothing is done with the batches.",
        "",
        markdown_table(
            [
                "",
                "first epoch, images/s",
                "second epoch, images/s",
                "second, images per second of processor",
                "own memory, MiB",
                "of mapped files, MiB",
            ],
            [
                [
                    WAYS[kind],
                    *(
                        f"{figure:,.0f}"
                        for figure in (*seen.images_s, seen.images_cpu_s[1], seen.own_mib, seen.file_mib)
                    ),
                ]
                for kind, seen in best.items()
            ],
        ),
        "",
        "The paper's augmentation is "
        + " and ".join(
            f"{mapped.images_cpu_s[1] / best[kind].images_cpu_s[1]:.1f} times as fast as `{kind}`"
            for kind in ("dermoscopy", "mri")
        )
        + ", by processor time.",
        "",
        f"Second epoch from the mapped file against its first, which decodes: "
        f"{mapped.images_s[1] / mapped.images_s[0]:.1f} times (processor time "
        f"{mapped.images_cpu_s[1] / mapped.images_cpu_s[0]:.1f}); against ImageFolder's second: "
        f"{mapped.images_s[1] / folder.images_s[1]:.1f} times ({mapped.images_cpu_s[1] / folder.images_cpu_s[1]:.1f}); "
        f"against the loop over a tensor: {mapped.images_s[1] / tensor.images_s[1]:.2f} "
        f"({mapped.images_cpu_s[1] / tensor.images_cpu_s[1]:.2f}).",
    ]
    write_page(
        PAGE,
        "From files to batches",
        lines,
        command="HAM10000=DIR python -m benchmarks loader",
        conditions=f"one thread of two cores that others use too, the best of {ROUNDS} tries each. "
        "Workers' processor time is counted, their memory is not.",
    )


if __name__ == "__main__":
    way(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))

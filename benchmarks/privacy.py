"""Accuracy, time and memory under differential privacy, and how well a membership inference does.

A linear head on the frozen encoder of configs/study/heads.yaml at 64 pixels, trained over HAM10000's four
sources by the site's own training loop and FedAvg: without noise (that is plain training with cross-entropy) and
with epsilon 8, 3 and 1 for each lesion, which is the patient here (HAM10000 names no patients). Features are
computed once and kept in FEATURES. Then the attack: a threshold on the loss of a head that was trained on one
small site (Yeom et al. 2018, arXiv:1709.01604).
Writes docs/results/privacy.md and privacy.json beside it:

    HAM10000=DIR WEIGHTS=DIR FEATURES=DIR python -m benchmarks privacy
"""

import json
import os
import resource
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from sklearn.metrics import balanced_accuracy_score, roc_auc_score, roc_curve
from torch import nn

from benchmarks._page import RESULTS, write_page
from benchmarks.heads import SOURCES, STUDY, FeatureRows, World, encoded
from client.model import build, parameters
from client.privacy.accountant import Charge, epsilon
from client.training import fit, losses
from client.training.private.patients import capped_counts
from client.training.private.private_round import PrivateRound
from client.training.private.secure_random import SecureRandom
from common import seeds
from common.config import AdamW, ClassifierConfig, DpSgdConfig, LocalConfig, Lora, Sgd, StudyConfig
from common.settings import load_settings
from common.weights import Arrays
from server.aggregation.tally import AdmittedUpdate, weighted_mean
from server.report.text import markdown_table

PAGE = RESULTS / "privacy.md"
DELTA, RATE, ROUNDS, COUNT_NOISE = 1e-5, 0.1, 10, 20.0
EPSILONS = (None, 8.0, 3.0, 1.0)
SEEDS = tuple(range(int(os.environ.get("SEEDS", "3"))))
NAMES = parameters.TensorNames(shared=("weight", "bias"), local=(), frozen=())
# Of AdamW 1e-3 and 1e-2, SGD 0.05 and 0.5, the best balanced accuracy of another split (seed 100).
LOCAL = LocalConfig(epochs=2, augmentation="none", channels_last=False, optimizer=AdamW(lr=1e-2))
PLAIN = LOCAL.model_copy(update={"optimizer": Sgd(lr=0.05, weight_decay=0)})
CPU = torch.device("cpu")

Data = tuple[npt.NDArray[np.float32], npt.NDArray[np.int64], list[str]]
"""Features, labels and lesions."""


def settings(noise: float) -> DpSgdConfig:
    return DpSgdConfig(
        noise=noise, sampling_rate=RATE, images_per_patient=2, delta=DELTA, count_noise=COUNT_NOISE
    )


def cost(noise: float, rounds: int = ROUNDS, local: LocalConfig = LOCAL) -> float:
    steps = rounds * settings(noise).num_steps(local)
    return epsilon([Charge(COUNT_NOISE, 1.0, 1), Charge(noise, RATE, steps)], DELTA)


def noise_for(target: float, rounds: int = ROUNDS, local: LocalConfig = LOCAL) -> float:
    """The smallest noise, to 1 %, that costs no more than `target`."""
    low, high = 0.2, 100.0
    while high / low > 1.01:
        middle = (low * high) ** 0.5
        low, high = (low, middle) if cost(middle, rounds, local) <= target else (middle, high)
    return high


def trained(
    data: Mapping[str, Data], noise: float | None, seed: int, rounds: int = ROUNDS, local: LocalConfig = LOCAL
) -> tuple[nn.Linear, float]:
    """The head after the rounds, and the seconds that the sites trained."""
    model = nn.Linear(next(iter(data.values()))[0].shape[1], 7)
    nn.init.zeros_(model.weight), nn.init.zeros_(model.bias)
    counts_C = {site: counts_of_classes(one, noise) for site, one in data.items()}
    weights, spent = parameters.shared_arrays(model, NAMES), 0.0
    for number in range(1, rounds + 1):
        updates = []
        for site, one in data.items():
            update, seconds = site_round(
                model, weights, site, one, counts_C[site], noise, seeds.derive(seed, site, number), local,
                fit.StudyPosition(number, rounds),
            )  # fmt: skip
            updates.append(update)
            spent += seconds
        step = weighted_mean(updates)
        weights = {name: np.asarray(weights[name] + step[name]) for name in weights}
    parameters.load_shared(model, NAMES, weights)
    return model, spent


def site_round(
    model: nn.Module, weights: Arrays, site: str, data: Data, counts_C: Sequence[int], noise: float | None, seed: int,
    local: LocalConfig, progress: fit.StudyPosition,
) -> tuple[AdmittedUpdate, float]:  # fmt: skip
    """What a site sends after a round that begins with `weights`, and the seconds that it trained."""
    rows_NF, labels_N, lesions = data
    parameters.load_shared(model, NAMES, weights)
    private = None if noise is None else PrivateRound(settings(noise), lesions, sum(counts_C))
    done = fit.fit(
        model, FeatureRows(rows_NF, labels_N), local, parts=NAMES, progress=progress, penalty=None, device=CPU,
        seed=seed, num_classes=7, private=private,
        loss=losses.of_study(ClassifierConfig(encoder="none"), local, counts_C),
    )  # fmt: skip
    after = parameters.shared_arrays(model, NAMES)
    delta = {name: after[name] - weights[name] for name in weights}
    return AdmittedUpdate(site=site, num_examples=sum(counts_C), delta=delta), done.seconds


def counts_of_classes(data: Data, noise: float | None) -> list[int]:
    """A site's training images by class, as it tells the server."""
    if noise is None:
        return np.bincount(data[1], minlength=7).tolist()
    true = capped_counts(data[1].tolist(), data[2], 7, 2)
    drawn = COUNT_NOISE * 2 * SecureRandom().normals(7)
    return [max(1, round(count + one)) for count, one in zip(true, drawn, strict=True)]


def _logits(model: nn.Linear, rows_NF: npt.NDArray[np.float32]) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(torch.from_numpy(rows_NF))
    return found


def sides(world: World, seed: int) -> dict[str, dict[str, Data]]:
    """By source and side: training images (with those of validation, which do not score here) and test images."""
    found: dict[str, dict[str, Data]] = {}
    for source in SOURCES:
        manifest = world.manifest(world.site(source, seed, sources=(source,)))
        found[source] = {}
        for side in ("train", "test"):
            rows = [r for r in manifest.rows if (r.split == "test") == (side == "test")]
            labels = np.array([manifest.classes.index(r.label) for r in rows], np.int64)
            features = np.stack([world.rows[r.image.name] for r in rows])
            found[source][side] = features, labels, [r.group_key for r in rows]
    return found


def accuracy(world: World) -> list[dict[str, Any]]:
    results = []
    for target in EPSILONS:
        noise = None if target is None else noise_for(target)
        runs = []
        for seed in SEEDS:
            data = sides(world, seed)
            model, spent = trained(
                {s: d["train"] for s, d in data.items()}, noise, seed, local=PLAIN if noise is None else LOCAL
            )
            labels_N = np.concatenate([d["test"][1] for d in data.values()])
            found_N = np.concatenate([_logits(model, d["test"][0]).argmax(1).numpy() for d in data.values()])
            runs.append(
                {
                    "accuracy": float((labels_N == found_N).mean()),
                    "balanced": float(balanced_accuracy_score(labels_N, found_N)),
                    "seconds": spent,
                }
            )
        results.append({"epsilon": target, "noise": noise, "runs": runs})
        print(results[-1], flush=True)
    return results


# --- membership inference ------------------------------------------------------------------------

ATTACKED = LocalConfig(
    epochs=20,
    loss="cross_entropy",
    augmentation="none",
    channels_last=False,
    optimizer=Sgd(lr=0.05, weight_decay=0),
)


def membership(world: World) -> list[dict[str, Any]]:
    """One site of 200 lesions with one image each, trained on to the end of what it can learn; as many others."""
    results = []
    for target in (None, 8.0, 1.0):
        noise = None if target is None else noise_for(target, 5, ATTACKED)
        runs = []
        for seed in SEEDS:
            rows_NF, labels_N, lesions = sides(world, seed)["rosendahl"]["train"]
            first = list({lesion: place for place, lesion in enumerate(lesions)}.values())
            draws = np.random.default_rng(seed).permutation(first)[:400]
            inside, outside = draws[:200], draws[200:]
            data = {"site": (rows_NF[inside], labels_N[inside], [lesions[i] for i in inside])}
            model, _ = trained(data, noise, seed, rounds=5, local=ATTACKED)
            loss_N = [
                nn.functional.cross_entropy(
                    _logits(model, rows_NF[who]), torch.from_numpy(labels_N[who]), reduction="none"
                ).numpy()
                for who in (inside, outside)
            ]
            truth, score = np.repeat([1, 0], 200), -np.concatenate(loss_N)
            wrong, right, _ = roc_curve(truth, score)
            runs.append(
                {"auc": float(roc_auc_score(truth, score)), "advantage": float((right - wrong).max())}
            )
        results.append({"epsilon": target, "noise": noise, "runs": runs})
        print(results[-1], flush=True)
    return results


# --- time and memory of whole images ----------------------------------------------------------


def costs() -> list[dict[str, Any]]:
    """A small vision transformer at 64 pixels, 256 images, 10 steps of 26 images: full training, LoRA and head."""
    results = []
    for what, changes in (
        ("all layers", {}),
        ("LoRA, rank 4", {"tuning": Lora(rank=4)}),
        ("head", {"trainable": "head"}),
    ):
        for is_private in (False, True):
            pid = os.fork()  # a process of its own, so that the peak is its own
            if pid == 0:
                _cost_of(changes, is_private=is_private)
                os._exit(0)
            os.waitpid(pid, 0)
            found = json.loads(Path(_OUT).read_text())
            results.append({"what": what, "private": is_private, **found})
            print(results[-1], flush=True)
    return results


_OUT = str(Path(tempfile.gettempdir()) / f"consilium-privacy-{os.getpid()}.json")


class Noise:
    """Random images."""

    def __init__(self, number: int) -> None:
        self.pixels = torch.randn(number, 3, 64, 64, generator=torch.Generator().manual_seed(0))
        self.labels_N = torch.arange(number) % 7

    def batch(self, indices_B: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:  # noqa: ARG002
        return self.pixels[indices_B]


def _cost_of(changes: Mapping[str, Any], *, is_private: bool) -> None:
    config = ClassifierConfig(encoder="vit_tiny_patch16_224", image_size=64, **changes)
    model = build.build(config, 7, seed=0, weights_dir=None).model
    parts = parameters.partition(model, config)
    local = LocalConfig(
        steps=10, batch_size=26, loss="cross_entropy", augmentation="none", optimizer=Sgd(lr=0.01)
    )
    private = PrivateRound(settings(1.0), [str(n) for n in range(256)], 256) if is_private else None
    times = []
    for _ in range(2):  # the first warms up
        done = fit.fit(
            model, Noise(256), local, parts=parts, progress=fit.StudyPosition(1, 1), penalty=None, device=CPU,
            seed=0, num_classes=7, private=private,
        )  # fmt: skip
        times.append(done.seconds)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    count = sum(p.numel() for p in model.parameters() if p.requires_grad)
    Path(_OUT).write_text(json.dumps({"seconds": times[-1] / 10, "peak_mib": peak, "parameters": count}))


def main() -> None:
    if not {"HAM10000", "WEIGHTS", "FEATURES"} <= os.environ.keys():
        print(
            "left out: set HAM10000, WEIGHTS and FEATURES to folders with images, weights and room for features"
        )
        return
    torch.set_num_threads(1)
    study = load_settings(STUDY, StudyConfig, "study")
    study = study.model_copy(update={"model": study.model.model_copy(update={"image_size": 64})})
    ham, weights = Path(os.environ["HAM10000"]), Path(os.environ["WEIGHTS"])
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as scratch:
        rows = encoded(ham, weights, Path(os.environ["FEATURES"]), study)
        world = World(ham, weights, Path(scratch), study, rows)
        found = {"costs": costs(), "accuracy": accuracy(world), "membership": membership(world)}
    (RESULTS / "privacy.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    _write_page(found, time.perf_counter() - started)


def _write_page(found: Mapping[str, Any], seconds: float) -> None:
    lines = [
        "What noise for whole patients costs, and what it stands against.",
        "",
        f"A linear head on `tf_efficientnet_lite0` (ImageNet) at 64 pixels, HAM10000's four sources, {ROUNDS} "
        f"rounds of {settings(1).num_steps(LOCAL)} steps, balanced softmax with the noisy counts, AdamW 1e-2, chance "
        f"{RATE} of each lesion, norm 1, two images of a lesion at most, delta 1e-5. Pooled test images of all four, "
        "mean and range over the seeds. The first row is plain training: 2 epochs a round in batches of 32, SGD 0.05. "
        "Both optimizers are the best of four on another split.",
        "",
        markdown_table(
            ["epsilon", "noise", "accuracy", "balanced accuracy", "seconds training"],
            [
                [
                    _eps(row), _noise(row), *(_range(row, key) for key in ("accuracy", "balanced")),
                    _mean(row, "seconds", 1),
                ]
                for row in found["accuracy"]
            ],
        ),
        "",
        "**Membership inference** by a threshold on the loss: 200 lesions of rosendahl, one image each, 5 rounds of "
        "20 epochs, against 200 that were left out. *Advantage*: the best difference of hits and false alarms.",
        "",
        markdown_table(
            ["epsilon", "noise", "AUC", "advantage"],
            [
                [_eps(row), _noise(row), _range(row, "auc"), _range(row, "advantage")]
                for row in found["membership"]
            ],
        ),
        "",
        "**Time and memory** of a step on about 26 images of 64 pixels, `vit_tiny_patch16_224`, one thread; the peak "
        "is of the process.",
        "",
        markdown_table(
            ["trained", "weights", "privacy", "seconds a step", "peak MiB"],
            [
                [
                    row["what"], f"{row['parameters']:,}", "yes" if row["private"] else "no",
                    f"{row['seconds']:.3f}", f"{row['peak_mib']:.0f}",
                ]
                for row in found["costs"]
            ],
        ),
    ]  # fmt: skip
    write_page(
        PAGE,
        "Differential privacy",
        lines,
        command=f"HAM10000=DIR WEIGHTS=DIR FEATURES=DIR SEEDS={len(SEEDS)} python -m benchmarks privacy",
        conditions=f"2 shared cores, one thread, no GPU; {seconds / 60:.0f} minutes with the features at hand.",
    )


def _eps(row: Mapping[str, Any]) -> str:
    return "none" if row["epsilon"] is None else f"{row['epsilon']:g}"


def _noise(row: Mapping[str, Any]) -> str:
    return "0" if row["noise"] is None else f"{row['noise']:.2f}"


def _values(row: Mapping[str, Any], key: str) -> Sequence[float]:
    return [run[key] for run in row["runs"]]


def _mean(row: Mapping[str, Any], key: str, digits: int) -> str:
    return f"{statistics.fmean(_values(row, key)):.{digits}f}"


def _range(row: Mapping[str, Any], key: str) -> str:
    values = _values(row, key)
    return f"{statistics.fmean(values):.3f} ({min(values):.3f} to {max(values):.3f})"


if __name__ == "__main__":
    main()

"""Classical heads against the network's softmax on HAM10000: seen sources, and one that training has not seen.

The features are those of the frozen ImageNet encoder of configs/study/heads.yaml, computed once by the
site's own code and kept in FEATURES. The softmax is the network's linear head, trained on them by the site's
training loop and FedAvg. Then the server's story of the heads runs with real trainers in one process; only
decoding and the encoder's pass are left out, for their result is at hand. Writes docs/results/heads.md and
heads.json beside it. Needs the images and the weights:

    HAM10000=DIR WEIGHTS=DIR FEATURES=DIR python -m benchmarks heads

SEEDS=1 takes one seed of the split instead of three.
"""

import csv
import json
import logging
import os
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from benchmarks._page import RESULTS, ROOT, write_page
from client import trainer
from client.config import (
    CacheConfig,
    Columns,
    ColumnSplit,
    CsvData,
    GroupedSplit,
    NoSplit,
    RowFilter,
    SiteConfig,
)
from client.data.manifest import Manifest, Side
from client.data.readers import read
from client.data.splitting import kept_split
from client.data.store import ImageStore
from client.heads import features, worker
from client.model import build, parameters
from client.training import fit
from common import seeds
from common.config import StudyConfig
from common.settings import load_settings
from common.weights import Array, load_file, save_file
from server.aggregation.tally import AdmittedUpdate, weighted_mean
from server.enrolment import cohort as enrolment
from server.heads import fit as heads
from server.heads.record import POOLED, Cell, cells
from server.report.text import markdown_table
from server.rounds.sites import InProcessSites
from server.state import RoundState

PAGE = RESULTS / "heads.md"
STUDY = ROOT / "configs" / "study" / "heads.yaml"
SOURCES = ("rosendahl", "vidir_modern", "vidir_molemax", "vienna_dias")
UNSEEN = ("rosendahl", "vidir_modern")
COLUMNS = Columns(image="file", label="label", lesion="lesion_id")
SEEDS = tuple(range(int(os.environ.get("SEEDS", "3"))))

Rows = npt.NDArray[np.float32]
Found = dict[str, dict[str, Cell]]
"""By site, then by head."""


@dataclass(frozen=True)
class World:
    """Where things lie, and every image's features by its file name."""

    ham: Path
    weights: Path
    scratch: Path
    study: StudyConfig
    rows: Mapping[str, Rows]

    def site(self, name: str, seed: int, *, sources: Sequence[str], test_only: bool = False) -> SiteConfig:
        """A source as a site: split by lesion with this seed, or all of it for testing."""
        data = CsvData(
            labels=self.ham / "labels.csv",
            columns=COLUMNS,
            row_filter=RowFilter(column="site", values=tuple(sources)),
        )
        split = NoSplit(all="test") if test_only else GroupedSplit(seed=seed)
        return self._site(name, data, split, f"{seed}-{test_only}")

    def pooled(self, name: str, sides: Mapping[str, str]) -> SiteConfig:
        """One site that holds the images named in `sides`, on these sides."""
        path = self.scratch / f"{name}.csv"
        with (self.ham / "labels.csv").open(encoding="utf-8", newline="") as file:
            rows = [(line, sides.get(Path(line["file"]).name)) for line in csv.DictReader(file)]
        # Nine lesions are in two sources, which split each for itself: where one is tested on, it does not train.
        tested = {line["lesion_id"] for line, side in rows if side == "test"}
        lines = [
            line | {"split": side}
            for line, side in rows
            if side == "test" or (side == "train" and line["lesion_id"] not in tested)
        ]
        with path.open("w", encoding="utf-8", newline="") as file:
            out = csv.DictWriter(file, lines[0])
            out.writeheader()
            out.writerows(lines)
        columns = COLUMNS.model_copy(update={"split": "split"})
        return self._site(name, CsvData(labels=path, images=self.ham, columns=columns), ColumnSplit(), "")

    def _site(self, name: str, data: CsvData, split: Any, what: str) -> SiteConfig:
        return SiteConfig(
            name=name, data=data, split=split, state_dir=self.scratch / f"{name}-{what}", device="cpu",
            weights_dir=self.weights, threads=1,
        )  # fmt: skip

    def manifest(self, site: SiteConfig) -> Manifest:
        """A site's rows on their sides, as its trainer reads them."""
        rows = read.read(site.data, self.study.classes, site.state_dir)
        return kept_split.kept(rows, site.split, site.state_dir)

    def features(self, manifest: Manifest, side: Side | None = None) -> tuple[Rows, npt.NDArray[np.int64]]:
        """Features and labels of one side, or of both."""
        rows = manifest.rows if side is None else manifest.on(side)
        labels = [manifest.classes.index(row.label) for row in rows]
        return np.stack([self.rows[row.image.name] for row in rows]), np.array(labels, np.int64)


# --- features and the softmax ------------------------------------------------------------------


def encoded(ham: Path, weights: Path, kept: Path, study: StudyConfig) -> dict[str, Rows]:
    """Every image's features, by file name; computed once."""
    found: dict[str, Rows] = {}
    for source in SOURCES:
        path = kept / f"{study.model.encoder}-{study.model.image_size}-{source}.safetensors"
        if not path.exists():
            data = CsvData(
                labels=ham / "labels.csv",
                columns=COLUMNS,
                row_filter=RowFilter(column="site", values=(source,)),
            )
            manifest = read.read(data, study.classes)
            built = build.of_study(study, weights)
            store = ImageStore.build(manifest, built.preprocessing, CacheConfig(memory_mib=4096), Path(), 1)
            model = built.model.to(memory_format=torch.channels_last)
            rows_NF, _ = features.extract(
                model, store.images(None), layer=None, device=torch.device("cpu"), precision="float32"
            )
            save_file(path, {"features": rows_NF}, {"files": "\n".join(r.image.name for r in manifest.rows)})
        arrays, about = load_file(path)
        found |= dict(zip(about["files"].split("\n"), arrays["features"], strict=True))
    return found


class FeatureRows:
    """Features in the place of images, for the training loop."""

    def __init__(self, rows_NF: Rows, labels_N: npt.NDArray[np.int64]) -> None:
        self._rows_NF, self._labels_N = torch.from_numpy(rows_NF), torch.from_numpy(labels_N)

    @property
    def labels_N(self) -> torch.Tensor:
        return self._labels_N

    def batch(self, indices_B: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:  # noqa: ARG002
        return self._rows_NF[indices_B]


def trained_head(world: World, sites: Sequence[SiteConfig], seed: int) -> dict[str, Array]:
    """The classifier's weights after the study's rounds of FedAvg over these sites."""
    study = world.study
    data = {site.name: world.features(world.manifest(site), "train") for site in sites}
    width = next(iter(data.values()))[0].shape[1]
    model = nn.Linear(width, len(study.classes))
    nn.init.zeros_(model.weight), nn.init.zeros_(model.bias)
    names = parameters.TensorNames(shared=("weight", "bias"), local=(), frozen=())
    local = study.local.model_copy(update={"channels_last": False})
    weights = parameters.shared_arrays(model, names)
    for number in range(1, study.rounds + 1):
        updates = []
        for site, (rows_NF, labels_N) in data.items():
            parameters.load_shared(model, names, weights)
            fitted = fit.fit(
                model, FeatureRows(rows_NF, labels_N), local, parts=names,
                progress=fit.StudyPosition(number, study.rounds), penalty=None, device=torch.device("cpu"),
                seed=seeds.derive(seed, site, number), num_classes=len(study.classes),
            )  # fmt: skip
            after = parameters.shared_arrays(model, names)
            delta = {name: after[name] - weights[name] for name in weights}
            updates.append(AdmittedUpdate(site=site, num_examples=fitted.num_examples, delta=delta))
        step = weighted_mean(updates)
        weights = {name: weights[name] + step[name] for name in weights}
    return weights


# --- one federation ----------------------------------------------------------------------------


def fitted(
    world: World, train: Sequence[SiteConfig], evaluate: Sequence[SiteConfig], head: Mapping[str, Array],
    seed: int, which: Mapping[str, Any],
) -> tuple[Found, heads.Fitted]:  # fmt: skip
    """Every head of the study on the network with this classifier, scored at every site."""
    values = world.study.model_dump(mode="json") | {
        "sites": {"train": [s.name for s in train], "evaluate": [s.name for s in evaluate]},
        "heads": dict(which),
        "seed": seed,
    }
    study = StudyConfig.model_validate(values)
    sites = InProcessSites({site.name: trainer.Trainer(site).answer for site in [*train, *evaluate]})
    cohort = enrolment.enrol(study, sites, None)
    weights = {name: head[name.rpartition(".")[2]] for name in cohort.weights}
    state = RoundState(study.rounds, weights, cohort.reference.layout, cohort.reference.preprocessing)
    done = heads.fit(study, sites, cohort, state)
    return cells(done.record, study), done


def without_pixels(world: World) -> None:
    """Trainers take features from `world` instead of decoding images and running the encoder."""

    def store(manifest: Manifest, preprocessing: Any, *_: Any, **__: Any) -> ImageStore:
        side = preprocessing.stored_size
        return ImageStore(
            manifest,
            preprocessing,
            torch.zeros(1, 1, 1, 1, dtype=torch.uint8).expand(len(manifest.rows), side, side, 3),
        )

    def of(model: Any, store: ImageStore, *_: Any, **__: Any) -> Any:
        rows_NF, _labels = world.features(store.manifest)
        with torch.no_grad():
            logits_NC = model.get_classifier()(torch.from_numpy(rows_NF)).double().numpy()
        return features.sides(store, rows_NF, logits_NC)

    ImageStore.build = store  # type: ignore[method-assign,assignment]
    trainer.features.of = of  # type: ignore[assignment]
    # The same code without a process for each of a hundred heads; the time limit is not needed here.
    worker._work = lambda folder, _: worker.main(folder)  # type: ignore[assignment]


# --- the two questions -------------------------------------------------------------------------


def seen(world: World, seed: int, which: Mapping[str, Any]) -> dict[str, Any]:
    """(a) All four sources train; each is tested on its own fifth, and all of them together."""
    sites = [world.site(source, seed, sources=(source,)) for source in SOURCES]
    head = trained_head(world, sites, seed)
    found, done = fitted(world, sites, (), head, seed, which)
    sides = {row.image.name: str(row.split) for site in sites for row in world.manifest(site).rows}
    pooled, _ = fitted(
        world, [world.pooled(f"pooled-{seed}", sides)], (), head, seed, {"local": which["local"]}
    )
    return {
        "sites": _plain(found),
        "pooled": _plain(pooled)[f"pooled-{seed}"],
        **_against(world, sites, done),
    }


def unseen(world: World, source: str, seed: int, which: Mapping[str, Any]) -> dict[str, Any]:
    """(b) Three sources train; all images of the fourth are the test."""
    sites = [world.site(other, seed, sources=(other,)) for other in SOURCES if other != source]
    away = world.site(source, seed, sources=(source,), test_only=True)
    head = trained_head(world, sites, seed)
    found, _ = fitted(world, sites, [away], head, seed, {"federated": which["federated"]})
    sides = {row.image.name: "train" for site in sites for row in world.manifest(site).on("train")}
    sides |= {row.image.name: "test" for row in world.manifest(away).rows}
    name = f"without-{source}-{seed}"
    pooled, _ = fitted(world, [world.pooled(name, sides)], (), head, seed, {"local": which["local"]})
    return {"unseen": _plain(found)[source], "pooled": _plain(pooled)[name], "seen": _plain(found)[POOLED]}


def _plain(found: Found) -> dict[str, dict[str, dict[str, Any]]]:
    return {site: {title: vars(cell) for title, cell in row.items()} for site, row in found.items()}


def _against(world: World, sites: Sequence[SiteConfig], done: heads.Fitted) -> dict[str, Any]:
    """The federated machines beside scikit-learn's on the pooled features."""
    from sklearn.svm import LinearSVC

    both = [world.features(world.manifest(site), "train") for site in sorted(sites, key=lambda s: s.name)]
    rows_NF, labels_N = (np.concatenate(part) for part in zip(*both, strict=True))
    counts = np.bincount(labels_N, minlength=len(world.study.classes))
    weights_N = (counts.sum() / (np.count_nonzero(counts) * np.maximum(counts, 1)))[labels_N]
    head = next(h for h in done.heads if h.form.title == "federated.linear_svm")
    rows = head.view.of(rows_NF)
    c = next(
        h for h in (world.study.heads.federated if world.study.heads else ()) if h.kind == "linear_svm"
    ).c
    signs = np.where(labels_N[:, None] == np.arange(len(counts)), 1.0, -1.0)

    def objective(weights_DC: Any, bias_C: Any) -> float:
        short = np.maximum(0, 1 - signs * (rows @ weights_DC + bias_C))
        return float(
            0.5 * ((weights_DC**2).sum() + (bias_C**2).sum()) + c * (weights_N[:, None] * short**2).sum()
        )

    there = LinearSVC(C=c, tol=1e-5, max_iter=3000).fit(rows, labels_N, sample_weight=weights_N)
    ours = objective(head.parameters["weights"], head.parameters["bias"])
    theirs = objective(there.coef_.T, there.intercept_)
    return {"messages": done.record.num_messages, "objective": ours, "objective_pooled": theirs}


def main() -> None:
    if not {"HAM10000", "WEIGHTS", "FEATURES"} <= os.environ.keys():
        print(
            "left out: set HAM10000, WEIGHTS and FEATURES to folders with images, weights and room for features"
        )
        return
    logging.getLogger("consilium").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    study = load_settings(STUDY, StudyConfig, "study")
    assert study.heads is not None
    ham, weights = Path(os.environ["HAM10000"]), Path(os.environ["WEIGHTS"])
    which = study.heads.model_dump(mode="json")
    path, found = PAGE.with_suffix(".json"), {}
    with tempfile.TemporaryDirectory() as scratch:
        rows = encoded(ham, weights, Path(os.environ["FEATURES"]), study)
        world = World(ham, weights, Path(scratch), study, rows)
        without_pixels(world)
        for seed in SEEDS:
            for question in (*UNSEEN, "seen"):
                started = time.monotonic()
                answer = (
                    seen(world, seed, which) if question == "seen" else unseen(world, question, seed, which)
                )
                found[f"{question} {seed}"] = answer
                path.write_text(json.dumps(found, indent=1), encoding="utf-8")
                _write_page(found, study)
                print(f"{question}, seed {seed}: {time.monotonic() - started:.0f} s", flush=True)


# --- the page --------------------------------------------------------------------------------


def _write_page(found: Mapping[str, Any], study: StudyConfig) -> None:
    done = {q: [seed for seed in SEEDS if f"{q} {seed}" in found] for q in ("seen", *UNSEEN)}
    lines = [
        f"Features of `{study.model.encoder}` as trained on ImageNet, frozen, {study.model.image_size} x "
        f"{study.model.image_size} pixels of the centre; softmax: the network's linear head after {study.rounds} "
        "rounds of FedAvg on them. Balanced accuracy in percent; in brackets the gain over the softmax on the same "
        "images, in points, and the ends of its 95 % interval over lesions. All are means over seeds, each with "
        "its own splits and training. Settings of the heads: configs/study/heads.yaml.",
        "",
        "## Sources that trained",
        "",
        "A fifth of each source, by lesion, is the test. *local*: each site's own head on its own test. *pooled*: the "
        f"same kind of head, fitted by one site that holds all four sources' training images. {_seeds(done['seen'])}",
        "",
        _seen_table(found, done["seen"]) if done["seen"] else "Not run.",
        "",
        *(_unseen_section(found, done[source], source) for source in UNSEEN if done[source]),
        "## Federated against pooled",
        "",
        *(
            f"- seed {seed}: linear SVM objective {found[f'seen {seed}']['objective']:.6g} federated, "
            f"{found[f'seen {seed}']['objective_pooled']:.6g} by LinearSVC on the pooled features; "
            f"{found[f'seen {seed}']['messages']} messages to each site for all federated heads and the scores"
            for seed in done["seen"]
        ),
    ]
    write_page(
        PAGE,
        "Classical heads on HAM10000's four sources",
        lines,
        command=f"HAM10000=DIR WEIGHTS=DIR FEATURES=DIR SEEDS={len(SEEDS)} python -m benchmarks heads",
        conditions=f"one thread of two shared cores, {time.process_time():.0f} s of processor time without the "
        "features.",
    )


def _seeds(done: Sequence[int]) -> str:
    if not done:
        return ""
    return f"Seed {done[0]}." if len(done) == 1 else f"Means of the seeds {', '.join(map(str, done))}."


def _seen_table(found: Mapping[str, Any], done: Sequence[int]) -> str:
    runs = [found[f"seen {seed}"] for seed in done]
    head = ["head", *SOURCES, "all four"]
    rows = []
    for title in runs[0]["sites"][SOURCES[0]]:
        row = [title, *(_cell([run["sites"][s].get(title) for run in runs]) for s in (*SOURCES, POOLED))]
        rows.append(row)
    for title in runs[0]["pooled"]:
        if title != "softmax":
            row = [
                title.replace("local.", "pooled."),
                *["-"] * len(SOURCES),
                _cell([r["pooled"][title] for r in runs]),
            ]
            rows.append(row)
    return markdown_table(head, rows)


def _unseen_section(found: Mapping[str, Any], done: Sequence[int], source: str) -> str:
    runs = [found[f"{source} {seed}"] for seed in done]
    rows = [
        [
            title,
            _cell([run["unseen"][title] for run in runs]),
            _cell([run["seen"].get(title) for run in runs]),
        ]
        for title in runs[0]["unseen"]
    ]
    rows += [
        [title.replace("local.", "pooled."), _cell([run["pooled"][title] for run in runs]), "-"]
        for title in runs[0]["pooled"]
        if title != "softmax"
    ]
    num_images = runs[0]["unseen"]["softmax"]["num_images"]
    return "\n".join(
        [
            f"## {source}, unseen",
            "",
            f"The other three sources train; all {num_images:,} images of {source} are the test. {_seeds(done)}",
            "",
            markdown_table(["head", f"{source} (unseen)", "the three that trained, pooled"], rows),
            "",
        ]
    )


def _cell(cells_there: Sequence[Mapping[str, Any] | None]) -> str:
    there = [cell for cell in cells_there if cell is not None]
    known = [cell for cell in there if cell["balanced_accuracy"] is not None]
    if not known:
        return there[0]["problem"].replace("_", " ") if there else "-"
    value, *gain = (
        100 * statistics.mean(cell[name] for cell in known)
        for name in ("balanced_accuracy", "gain", "gain_low", "gain_high")
        if known[0][name] is not None
    )
    return f"{value:.1f}" + (" ({:+.1f}, {:+.1f} to {:+.1f})".format(*gain) if gain else "")


if __name__ == "__main__":
    main()

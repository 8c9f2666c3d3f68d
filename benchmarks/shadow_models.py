"""Membership inference with shadow models against what leaves a site in a round, and against the mean of four sites.

Four hospitals, HAM10000's sources, train a linear head on the frozen encoder of configs/study/heads.yaml at 64 pixels
for one round, by the site's own training loop: plainly, and with epsilon 8 and 1 for that round. A *lesion* with all of
its images is the patient (HAM10000 names no patients). Each hospital has twice as many candidates as it trains on, and
each federation of MODELS draws another half of them. The attacker knows images and labels of the candidates, the first
weights and the settings. He sees a hospital's own update, or, under masks, the mean of all four alone.
`_membership.py` has the attack. Writes docs/results/membership.md:

    HAM10000=DIR WEIGHTS=DIR FEATURES=DIR python -m benchmarks shadow_models

NOISY=0 leaves out the rounds with noise, which take most of the time.
"""

import os
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from benchmarks import _membership as attack
from benchmarks._page import RESULTS, write_page
from benchmarks.heads import SOURCES, STUDY, Rows, World, encoded
from benchmarks.privacy import ATTACKED, DELTA, NAMES, counts_of_classes, noise_for, settings, site_round
from client.data.manifest import Manifest
from client.model import parameters
from client.training.fit import StudyPosition
from common import seeds
from common.config import StudyConfig
from common.settings import load_settings
from common.weights import Arrays
from server.aggregation.tally import weighted_mean
from server.report.text import markdown_table

PAGE = RESULTS / "membership.md"
NOISY = os.environ.get("NOISY", "1") == "1"
EPSILONS = (None, 8.0, 1.0) if NOISY else (None,)
SEED = 0


@dataclass(frozen=True)
class Setting:
    """One kind of round."""

    candidates: int
    """Lesions by hospital, at most; half of them train."""
    epochs: int
    federations: int
    epsilons: tuple[float | None, ...]


SETTINGS = (Setting(400, 2, 32, EPSILONS), Setting(400, 20, 16, (None,)))


@dataclass(frozen=True)
class Hospital:
    """Candidates of one hospital. N images of C lesions."""

    rows_NF: Rows
    labels_N: npt.NDArray[np.int64]
    lesions_N: npt.NDArray[np.int64]
    """The lesion of each image, from 0 to C - 1."""

    @property
    def num_lesions(self) -> int:
        return int(self.lesions_N.max()) + 1

    def by_lesion(self, seen_MN: attack.Floats) -> attack.Floats:
        """Mean over a lesion's images, M x C."""
        sums_CM = np.zeros((self.num_lesions, len(seen_MN)))
        np.add.at(sums_CM, self.lesions_N, seen_MN.T)
        means_MC: attack.Floats = sums_CM.T / np.bincount(self.lesions_N)
        return means_MC

    @property
    def of_several_C(self) -> attack.Flags:
        """Lesions with two images or more."""
        several_C: attack.Flags = np.bincount(self.lesions_N) > 1
        return several_C


@dataclass(frozen=True)
class Seen:
    """One hospital's candidates in the eyes of all models. M federations."""

    inside_MC: attack.Flags
    own_MN: attack.Floats
    """Confidences of the hospital's own model."""
    mean_MN: attack.Floats
    """Confidences of the mean of all hospitals' models."""
    right_MN: attack.Flags
    """Whether the hospital's own model names the true class."""


def hospitals(
    manifests: Mapping[str, Manifest], features: Mapping[str, Rows], candidates: int
) -> dict[str, Hospital]:
    """Candidates of each source, drawn by chance. A lesion that two sources have is the first one's."""
    found: dict[str, Hospital] = {}
    taken: set[str] = set()
    for source, manifest in manifests.items():
        free = sorted({row.group_key for row in manifest.rows} - taken)
        taken |= set(free)
        draws = np.random.default_rng(seeds.derive(SEED, "candidates", source)).permutation(free)[:candidates]
        place = {str(lesion): number for number, lesion in enumerate(draws)}
        rows = [row for row in manifest.rows if row.group_key in place]
        found[source] = Hospital(
            np.stack([features[row.image.name] for row in rows]),
            np.array([manifest.classes.index(row.label) for row in rows], np.int64),
            np.array([place[row.group_key] for row in rows], np.int64),
        )
    return found


def federations(
    all_hospitals: Mapping[str, Hospital], noise: float | None, epochs: int, models: int
) -> dict[str, Seen]:
    """By hospital: what the models of so many federations, each of one round, say of its candidates."""
    local = ATTACKED.model_copy(update={"epochs": epochs})
    random = np.random.default_rng(seeds.derive(SEED, "members"))
    inside = {name: attack.halves(models, one.num_lesions, random) for name, one in all_hospitals.items()}
    model = nn.Linear(next(iter(all_hospitals.values())).rows_NF.shape[1], 7)
    nn.init.zeros_(model.weight), nn.init.zeros_(model.bias)
    first = parameters.shared_arrays(model, NAMES)
    own: dict[str, list[attack.Floats]] = {name: [] for name in all_hospitals}
    mean: dict[str, list[attack.Floats]] = {name: [] for name in all_hospitals}
    right: dict[str, list[attack.Flags]] = {name: [] for name in all_hospitals}
    for number in range(models):
        updates = []
        for name, one in all_hospitals.items():
            in_N = inside[name][number][one.lesions_N]
            data = one.rows_NF[in_N], one.labels_N[in_N], [str(lesion) for lesion in one.lesions_N[in_N]]
            update, _ = site_round(
                model, first, name, data, counts_of_classes(data, noise), noise,
                seeds.derive(SEED, name, number), local, StudyPosition(1, 1),
            )  # fmt: skip
            updates.append(update)
            logits_NC = _logits(model, first, update.delta, one.rows_NF)
            own[name].append(attack.confidences(logits_NC, one.labels_N))
            right[name].append(logits_NC.argmax(axis=1) == one.labels_N)
        delta = weighted_mean(updates)
        for name, one in all_hospitals.items():
            logits_NC = _logits(model, first, delta, one.rows_NF)
            mean[name].append(attack.confidences(logits_NC, one.labels_N))
    return {
        name: Seen(inside[name], np.stack(own[name]), np.stack(mean[name]), np.stack(right[name]))
        for name in all_hospitals
    }


def _logits(model: nn.Linear, first: Arrays, delta: Arrays, rows_NF: Rows) -> npt.NDArray[np.float32]:
    parameters.load_shared(model, NAMES, {name: np.asarray(first[name] + delta[name]) for name in first})
    with torch.no_grad():
        found: npt.NDArray[np.float32] = model(torch.from_numpy(rows_NF)).numpy()
    return found


# --- figures and page ----------------------------------------------------------------------------

VIEWS: dict[str, Callable[[Seen], attack.Floats]] = {
    "its own update": lambda seen: seen.own_MN,
    "the mean of four": lambda seen: seen.mean_MN,
}
Scores = Callable[[Hospital, Seen, attack.Floats], attack.Floats]
ATTACKS: dict[str, Scores] = {
    "loss threshold": lambda one, _, seen_MN: one.by_lesion(attack.log_probabilities(seen_MN)),
    "LiRA, offline": lambda one, seen, seen_MN: attack.offline(one.by_lesion(seen_MN), seen.inside_MC),
    "LiRA, online": lambda one, seen, seen_MN: attack.online(one.by_lesion(seen_MN), seen.inside_MC),
}


def rows_of_attacks(
    target: float | None, all_hospitals: Mapping[str, Hospital], found: Mapping[str, Seen]
) -> list[list[str]]:
    rows = []
    for view, seen_by in VIEWS.items():
        for name, scores in ATTACKS.items():
            outcomes = [
                attack.outcome(scores(one, found[site], seen_by(found[site])), found[site].inside_MC)
                for site, one in all_hospitals.items()
            ]
            rows.append(
                [
                    _eps(target), view, name,
                    _range([one.auroc for one in outcomes]), _range([one.advantage for one in outcomes]),
                    *(_range([one.hits[share] for one in outcomes]) for share in (0.01, 0.001)),
                ]
            )  # fmt: skip
    return rows


def row_of_images(
    target: float | None, all_hospitals: Mapping[str, Hospital], found: Mapping[str, Seen]
) -> list[str]:
    """Lesions with several images: attacked by one image alone, and by all of them."""
    alone, together = [], []
    for site, one in all_hospitals.items():
        several_C, seen = one.of_several_C, found[site]
        if not several_C.any():
            continue
        inside_MN = seen.inside_MC[:, one.lesions_N]
        several_N = several_C[one.lesions_N]
        of_images = attack.online(seen.own_MN[:, several_N], inside_MN[:, several_N])
        alone.append(attack.outcome(of_images, inside_MN[:, several_N]))
        of_lesions = attack.online(one.by_lesion(seen.own_MN)[:, several_C], seen.inside_MC[:, several_C])
        together.append(attack.outcome(of_lesions, seen.inside_MC[:, several_C]))
    return [
        _eps(target),
        *(_range([one.auroc for one in outcomes]) for outcomes in (alone, together)),
        *(_range([one.hits[0.01] for one in outcomes]) for outcomes in (alone, together)),
    ]


def _accuracy(all_hospitals: Mapping[str, Hospital], found: Mapping[str, Seen]) -> str:
    inside, outside = [], []
    for site, one in all_hospitals.items():
        in_MN = found[site].inside_MC[:, one.lesions_N]
        inside.append(float(found[site].right_MN[in_MN].mean()))
        outside.append(float(found[site].right_MN[~in_MN].mean()))
    return f"{_range(inside)} on its own training images, {_range(outside)} on the others"


def _eps(target: float | None) -> str:
    return "none" if target is None else f"{target:g}"


def _range(values: Sequence[float | None]) -> str:
    counted = [value for value in values if value is not None]
    if len(counted) < len(values):
        return "too few to count"
    return f"{statistics.fmean(counted):.3f} ({min(counted):.3f} to {max(counted):.3f})"


def _section(all_hospitals: Mapping[str, Hospital], setting: Setting) -> list[str]:
    """The page's part about one kind of round."""
    rows, images, about = [], [], []
    for target in setting.epsilons:
        started = time.process_time()
        local = ATTACKED.model_copy(update={"epochs": setting.epochs})
        noise = None if target is None else noise_for(target, 1, local)
        found = federations(all_hospitals, noise, setting.epochs, setting.federations)
        rows += rows_of_attacks(target, all_hospitals, found)
        images.append(row_of_images(target, all_hospitals, found))
        about.append(
            f"* Epsilon {_eps(target)}: " + ("" if noise is None else f"noise {noise:.2f}. ")
            + f"A hospital's own model is right in {_accuracy(all_hospitals, found)}."
        )  # fmt: skip
        print(
            setting,
            target,
            f"{time.process_time() - started:.0f} s",
            *rows[-6:],
            images[-1],
            about[-1],
            sep="\n",
        )
    lesions = Counter({site: one.num_lesions for site, one in all_hospitals.items()})
    steps = settings(1).num_steps(ATTACKED.model_copy(update={"epochs": setting.epochs}))
    return [
        f"## {setting.epochs} epochs on half of {setting.candidates} lesions",
        "",
        f"{setting.federations} federations. "
        "Candidates: "
        + ", ".join(
            f"{site} {count} lesions with {len(all_hospitals[site].labels_N)} images"
            for site, count in lesions.items()
        )
        + (f". A round with noise has {steps} steps." if len(setting.epsilons) > 1 else "."),
        "",
        markdown_table(
            ["epsilon", "seen", "attack", "AUROC", "advantage", "hits at 1 %", "hits at 0.1 %"], rows
        ),
        "",
        *about,
        "",
        "Lesions with two images or more, LiRA online on the hospital's own update: one image of the lesion, or the "
        "mean over all. Hospitals without such lesions are left out: "
        + (", ".join(s for s, one in all_hospitals.items() if not one.of_several_C.any()) or "none")
        + ".",
        "",
        markdown_table(
            ["epsilon", "AUROC, one", "AUROC, all", "hits at 1 %, one", "hits at 1 %, all"], images
        ),
        "",
    ]


def _bounds() -> list[str]:
    return [
        "No attack whatever can do better than this (delta 1e-5), by the definition of differential privacy:",
        "",
        markdown_table(
            ["epsilon", "advantage", "hits at 1 %", "hits at 0.1 %"],
            [
                [
                    f"{target:g}", f"{attack.most_advantage(target, DELTA):.3f}",
                    *(f"{attack.most_hits(share, target, DELTA):.3f}" for share in (0.01, 0.001)),
                ]
                for target in (8.0, 1.0)
            ],
        ),
        "",
    ]  # fmt: skip


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
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as scratch:
        rows = encoded(ham, weights, Path(os.environ["FEATURES"]), study)
        world = World(ham, weights, Path(scratch), study, rows)
        started = time.process_time()
        manifests = {
            source: world.manifest(world.site(source, SEED, sources=(source,), test_only=True))
            for source in SOURCES
        }
        sections: list[str] = []
        for setting in SETTINGS:  # the page has what is done, should a later part be stopped
            sections += _section(hospitals(manifests, rows, setting.candidates), setting)
            _write_page(sections, time.process_time() - started, load)


def _write_page(sections: Sequence[str], seconds: float, load: float) -> None:
    write_page(
        PAGE,
        "Membership inference with shadow models",
        [
            "Can an operator tell from one round's update whether a patient was trained on? A linear head on "
            "`tf_efficientnet_lite0` (ImageNet, frozen) at 64 pixels, from zeros, SGD 0.05, batches of 32, or a chance "
            f"of {settings(1).sampling_rate:g} for each lesion, norm 1. Four hospitals: HAM10000's sources. **A lesion "
            "with all of its images is the patient**; epsilon is of this one round, delta 1e-5.",
            "",
            "Federations train on random halves of each hospital's candidates. Each is attacked, with the "
            "others as shadow models. *Loss threshold*: one "
            "threshold for all candidates (Yeom et al. 2018, arXiv:1709.01604). *LiRA* (Carlini et al. 2022, "
            "arXiv:2112.03570): the likelihood ratio of the logit-scaled confidence, *offline* with models that "
            "were not trained on the candidate, *online* with both kinds. *Hits at 1 %*: share of the trained lesions "
            "that are found while 1 % of the others are taken for trained ones. Mean and range over the "
            "four hospitals, over all federations and candidates of each; the federations share the candidates, so "
            "these counts are not independent. Chance is AUROC 0.5, advantage near 0, hits 0.010 and 0.001.",
            "",
            *_bounds(),
            *sections,
        ],
        command=f"HAM10000=DIR WEIGHTS=DIR FEATURES=DIR NOISY={int(NOISY)} python -m benchmarks shadow_models",
        conditions=f"2 shared cores with load {load:.0f}, one thread, no GPU; seed {SEED} for candidates, members and "
        f"plain training; noise has no seed. {seconds / 60:.0f} minutes of one core with the features at hand.",
    )


if __name__ == "__main__":
    main()

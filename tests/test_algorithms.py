"""Algorithms on quadratics: the real rounds and the real local training, optima worked out by hand.

Site i has the loss h_i / 2 * (w - b_i)², so the optimum of the mean loss is sum(h_i * b_i) / sum(h_i). K full steps of
size lr move a site by 1 - (1 - lr * h_i)^K of its distance to b_i. Where those shares differ, FedAvg ends elsewhere.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from client.config import SiteConfig
from client.model.parameters import TensorNames, load_shared, shared_arrays
from client.trainer import Trainer
from client.training.fit import StudyPosition, fit
from client.training.penalty import build_penalty
from client.training.state.control_variates import ControlVariates
from client.training.state.local_state import SiteState
from client.training.update import delta
from common import wire
from common.config import StudyConfig
from common.metrics import count
from common.weights import TensorSpec, digest, load_file
from common.wire import codec
from server.app import conduct
from server.config import ServerConfig
from server.rounds.loop import run_rounds
from server.rounds.sites import InProcessSites
from server.state import Cohort, RoundState

MakeStudy = Callable[..., StudyConfig]
MakeSite = Callable[..., SiteConfig]

LAYOUT = {"w": TensorSpec(shape=(2,), dtype="float64")}
SCORE = count(np.eye(3), np.array([0, 1, 2]), loss_sum=0.0)
START = RoundState(0, {"w": np.zeros(2)}, LAYOUT, {})
PLAIN = {
    "batch_size": "all", "augmentation": "none", "precision": "float64", "steps": 10,
    "optimizer": {"kind": "sgd", "lr": 0.1, "momentum": 0.0, "weight_decay": 0.0},
}  # fmt: skip


class Point(nn.Module):
    """A model that is its two weights, whatever the image."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(2, dtype=torch.float64))

    def forward(self, images_BCHW: Tensor) -> Tensor:
        return self.w.expand(len(images_BCHW), -1)


@dataclass(frozen=True)
class NoImages:
    num_images: int

    @property
    def labels_N(self) -> Tensor:
        return torch.zeros(self.num_images, dtype=torch.int64)

    def batch(self, indices_B: Tensor, generator: torch.Generator | None) -> Tensor:
        return torch.zeros(len(indices_B), 3, 2, 2)


@dataclass
class Site:
    """Trains by the real loop on h / 2 * (w - b)², and answers with what it got."""

    state_dir: Path
    curvature: tuple[float, float]
    lowest: tuple[float, float]
    num_images: int = 1
    plans: list[wire.RoundPlan] = field(default_factory=list)
    fails_in: frozenset[int] = frozenset()
    counts: tuple[int, int, int] | None = None

    def __call__(self, request: bytes) -> bytes:
        plan = codec.from_bytes(request)
        assert isinstance(plan, wire.RoundPlan)
        self.plans.append(plan)
        scores = dict.fromkeys(plan.score, SCORE)
        answer = wire.RoundAnswer(
            plan_id=plan.plan_id, site=plan.site, round=plan.round, scores=scores, num_examples=0, num_steps=0,
            train_loss=None, train_s=0.0, evaluate_s=0.0, delta={},
        )  # fmt: skip
        return codec.to_bytes(self.trained(plan, answer) if plan.train else answer)

    def trained(self, plan: wire.RoundPlan, answer: wire.RoundAnswer) -> wire.RoundAnswer:
        model, parts = Point(), TensorNames(shared=("w",), local=(), frozen=())
        load_shared(model, parts, plan.network)
        control = ControlVariates(plan, parts, model, SiteState(self.state_dir, plan.study))
        curvature_C = torch.tensor(self.curvature, dtype=torch.float64)
        lowest_C = torch.tensor(self.lowest, dtype=torch.float64)

        def loss(logits_BC: Tensor, labels_B: Tensor, weights_C: Tensor) -> Tensor:
            return (curvature_C / 2 * (logits_BC - lowest_C).square()).sum()

        result = fit(
            model,
            NoImages(self.num_images),
            plan.study.local,
            parts=parts,
            progress=StudyPosition(plan.round, plan.study.rounds),
            penalty=build_penalty(plan.study.algorithm, model, control.correction),
            device=torch.device("cpu"),
            seed=1,
            num_classes=3,
            class_counts=plan.class_counts,
            loss=loss,
        )
        moved = delta(shared_arrays(model, parts), plan.network)
        control.keep(moved, result.rate_sum)
        num_examples = -1 if plan.round in self.fails_in else self.num_images
        return answer.model_copy(
            update={
                "num_examples": 0 if num_examples < 0 else num_examples,  # 0 is refused
                "num_steps": result.num_steps,
                "train_loss": result.mean_loss,
                "delta": moved,
            }
        )


def cohort(sites: Mapping[str, Site]) -> Cohort:
    return Cohort(
        {
            name: wire.Enrolment(
                plan_id="e", site=name, layout=LAYOUT, weights_digest="a", frozen_digest="b", preprocessing={},
                train_counts=sites[name].counts or (sites[name].num_images, 0, 0),
                validation_counts=(1, 1, 1), test_counts=(1, 1, 1),
                device="cpu", weights={},
            )
            for name in sorted(sites)
        },
        {"w": np.zeros(2)},
    )  # fmt: skip


def rounds(study: StudyConfig, sites: Mapping[str, Site], start: RoundState = START) -> Iterator[RoundState]:
    return run_rounds(study, InProcessSites(sites), cohort(sites), start)


def end(study: StudyConfig, sites: Mapping[str, Site]) -> list[float]:
    weights: list[float] = list(rounds(study, sites))[-1].weights["w"].tolist()
    return weights


def two(folder: Path, **south: Any) -> dict[str, Site]:
    """North is flat and lowest at 0, south is steep and lowest at 1; the second weight is alike at both."""
    return {
        "north": Site(folder / "north", (1.0, 2.0), (0.0, 3.0)),
        "south": Site(folder / "south", (4.0, 2.0), (1.0, 3.0), **south),
    }


def test_scaffold_reaches_the_optimum_of_all_where_fedavg_does_not(
    make_study: MakeStudy, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {"rounds": 40, "local": PLAIN}
    fedavg = make_study(**settings)
    scaffold = make_study(**settings, algorithm={"kind": "scaffold"})
    # The shares are 1 - 0.9^10 = 0.651 and 1 - 0.6^10 = 0.994: FedAvg rests at 0.994 / (0.651 + 0.994) = 0.604.
    north, south = 1 - 0.9**10, 1 - 0.6**10
    assert end(fedavg, two(tmp_path / "a")) == pytest.approx([south / (north + south), 3.0], abs=1e-6)
    # (1 * 0 + 4 * 1) / (1 + 4)
    assert end(scaffold, two(tmp_path / "b")) == pytest.approx([0.8, 3.0], abs=1e-6)


@pytest.mark.parametrize("mu", [0.5, 5.0])
def test_fedprox_goes_a_share_of_the_way_that_mu_and_the_curvature_say(
    make_study: MakeStudy, tmp_path: Path, mu: float
) -> None:
    """Li et al. 2020: from w, the minimum of h/2 (w - b)² + mu/2 (w - w_received)² is h / (h + mu) of the way to b."""
    study = make_study(rounds=60, local=PLAIN, algorithm={"kind": "fedprox", "mu": mu})
    north = (1 - (1 - 0.1 * (1 + mu)) ** 10) * 1 / (1 + mu)
    south = (1 - (1 - 0.1 * (4 + mu)) ** 10) * 4 / (4 + mu)
    assert end(study, two(tmp_path))[0] == pytest.approx(south / (north + south), abs=1e-6)
    if mu == 5.0:  # the sites move in proportion to their curvature, as all together would: 0.8 in the limit
        assert 0.7 < end(study, two(tmp_path / "b"))[0] < 0.8


def test_scaffold_weighs_sites_by_their_images(make_study: MakeStudy, tmp_path: Path) -> None:
    study = make_study(rounds=40, local=PLAIN, algorithm={"kind": "scaffold"})
    # Three images to one: (1 * 1 * 0 + 3 * 4 * 1) / (1 + 3 * 4)
    assert end(study, two(tmp_path, num_images=3))[0] == pytest.approx(12 / 13, abs=1e-6)


def test_scaffold_follows_the_learning_rates_of_a_schedule(make_study: MakeStudy, tmp_path: Path) -> None:
    local = {**PLAIN, "schedule": {"kind": "cosine", "warmup": 0.1, "round_warmup": 0.3, "final": 0.2}}
    study = make_study(rounds=60, local=local, algorithm={"kind": "scaffold"})
    assert end(study, two(tmp_path))[0] == pytest.approx(0.8, abs=1e-6)


def test_rounds_that_did_not_count_leave_no_trace_in_scaffolds_control_variates(
    make_study: MakeStudy, tmp_path: Path
) -> None:
    """The site trained, and the server refused it. Its control variate goes on from the last round that counted."""
    study = make_study(
        rounds=60, local=PLAIN, algorithm={"kind": "scaffold"},
        sites={"train": ("north", "south"), "required": 1},
    )  # fmt: skip
    sites = two(tmp_path, fails_in=frozenset({2, 3, 4, 5, 9}))
    history = list(rounds(study, sites))
    assert [plan.control for plan in sites["south"].plans][:7] == [0, 1, 1, 1, 1, 1, 6]
    assert history[4].counted == {"north": 5, "south": 1}
    assert history[-1].weights["w"][0] == pytest.approx(0.8, abs=1e-6)


def test_scaffold_resumed_after_any_round_gives_the_same_bits(make_study: MakeStudy, tmp_path: Path) -> None:
    study = make_study(rounds=5, local=PLAIN, algorithm={"kind": "scaffold"})
    sites = two(tmp_path)
    whole = list(rounds(study, sites))
    for state in whole[2:4]:  # of rounds 3 and 4: a server resumes from one of its last rounds
        again = list(rounds(study, sites, replace(state)))
        assert digest(again[-1].weights) == digest(whole[-1].weights)


def test_fednova_counts_a_site_by_its_images_and_not_by_its_steps_as_well(
    make_study: MakeStudy, tmp_path: Path
) -> None:
    local = {**PLAIN, "steps": None, "epochs": 1, "batch_size": 1}
    local["optimizer"] = {**PLAIN["optimizer"], "lr": 0.05}
    # One step at north goes 0.05 of its distance, nine at south 1 - 0.95^9 = 0.37, of which a ninth is 0.041.
    north, south = 0.05, 1 - 0.95**9
    sites = {
        "north": Site(tmp_path / "n", (1.0, 1.0), (0.0, 0.0)),
        "south": Site(tmp_path / "s", (1.0, 1.0), (1.0, 1.0), num_images=9),
    }
    names = {"train": ("north", "south"), "evaluate_every": 60}
    settings: dict[str, Any] = {"rounds": 60, "local": local, "sites": names}
    fedavg = 9 * south / (north + 9 * south)  # 0.985
    assert end(make_study(**settings), sites)[0] == pytest.approx(fedavg, abs=1e-6)
    nova = (
        9 * (south / 9) / (north + 9 * (south / 9))
    )  # 0.88; in the limit of small steps 0.9, the share of the images
    assert end(make_study(**settings, algorithm={"kind": "fednova"}), sites)[0] == pytest.approx(
        nova, abs=1e-6
    )


def test_one_full_batch_step_under_scaffold_and_fednova_is_that_of_fedavg(
    make_study: MakeStudy, tmp_path: Path
) -> None:
    local = {**PLAIN, "steps": 1}
    after = [
        list(
            rounds(
                make_study(rounds=4, local=local, algorithm={"kind": kind}),
                two(tmp_path / kind, num_images=3),
            )
        )
        for kind in ("fedavg", "scaffold", "fednova")
    ]
    for kind in after[1:]:
        for ours, fedavg in zip(kind, after[0], strict=True):
            np.testing.assert_allclose(ours.weights["w"], fedavg.weights["w"], rtol=1e-12)


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"algorithm": {"kind": "scaffold"}}, "needs plain steps along the gradient"),
        ({"algorithm": {"kind": "scaffold"}, "local": {**PLAIN, "clip_grad_norm": 1.0}}, "clip_grad_norm"),
        ({"algorithm": {"kind": "fednova"}, "aggregation": {"kind": "median"}, "sites": {"train": ("a", "b", "c")}},
         "found aggregation.kind=median"),
    ],
)  # fmt: skip
def test_an_algorithm_that_does_not_fit_the_rest_is_refused(
    make_study: MakeStudy, settings: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(ValueError, match=complaint):
        make_study(**settings)


# --- the server's side --------------------------------------------------------------------------


def test_the_last_weights_of_a_study_are_the_average_of_its_rounds(
    make_study: MakeStudy, tmp_path: Path
) -> None:
    """The rounds themselves go on from their own weights."""
    plain = make_study(rounds=4, local=PLAIN)
    averaged = make_study(rounds=4, local=PLAIN, averaging={"kind": "last_rounds", "rounds": 2})
    alone, together = (list(rounds(study, two(tmp_path))) for study in (plain, averaged))
    for ours, theirs in zip(together[:3], alone[:3], strict=True):
        assert digest(ours.weights) == digest(theirs.weights)
    expected = (alone[2].weights["w"] + alone[3].weights["w"]) / 2
    np.testing.assert_allclose(together[3].weights["w"], expected, rtol=1e-12)
    assert digest(together[4].weights) == digest(together[3].weights)  # scored and kept

    again = list(rounds(averaged, two(tmp_path), together[2]))
    assert digest(again[0].weights) == digest(together[3].weights)


@pytest.mark.parametrize(("weigh_by", "south"), [("images", 9 / 10), ("equal", 1 / 2), ("classes", 1 / 2)])
def test_sites_weigh_by_what_the_study_says(
    make_study: MakeStudy, tmp_path: Path, weigh_by: str, south: float
) -> None:
    """North has the one image of the second class, south all nine of the first."""
    study = make_study(
        rounds=1, local={**PLAIN, "steps": 1}, aggregation={"kind": "mean", "weigh_sites_by": weigh_by}
    )
    sites = {
        "north": Site(tmp_path / "n", (1.0, 1.0), (0.0, 0.0), counts=(0, 1, 0)),
        "south": Site(tmp_path / "s", (1.0, 1.0), (1.0, 1.0), num_images=9, counts=(9, 0, 0)),
    }
    # One step of 0.1 takes south a tenth of the way to 1, and north stays at 0.
    after = next(rounds(study, sites))
    assert after.weights["w"] == pytest.approx([0.1 * south, 0.1 * south])


def test_sites_get_the_counts_of_all_where_the_study_weighs_by_them(
    make_study: MakeStudy, tmp_path: Path
) -> None:
    study = make_study(rounds=1, local={**PLAIN, "class_weights": "study"})
    sites = two(tmp_path, counts=(4, 3, 0))
    sites["north"].counts = (1, 0, 2)
    list(rounds(study, sites))
    assert [plan.class_counts for plan in sites["north"].plans] == [(5, 3, 2), None]  # the last one scores


# --- whole studies ------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("killed_in", [2, 3])
def test_a_killed_scaffold_study_goes_on_to_the_same_bits(
    make_site: MakeSite, make_study: MakeStudy, tmp_path: Path, killed_in: int
) -> None:
    """Server and trainers start again; the control variates are in the checkpoint and on the sites' disks."""
    study = make_study(
        rounds=4, algorithm={"kind": "scaffold"},
        local={"batch_size": 4, "augmentation": "none", "optimizer": {"kind": "sgd", "lr": 0.05, "momentum": 0}},
        model={"encoder": "test_efficientnet", "image_size": 32},
    )  # fmt: skip
    (tmp_path / "study.yaml").write_text(json.dumps(study.model_dump(mode="json")))

    def conduct_in(run: str, kill: int | None = None) -> Path:
        configs = [
            make_site(name, per_class=count).model_copy(
                update={"state_dir": tmp_path / run / f"{name}-state"}
            )
            for name, count in (("north", 5), ("south", 7))
        ]
        trainers = {site.name: Trainer(site).answer for site in configs}

        def dies(request: bytes) -> bytes:
            plan = codec.from_bytes(request)
            answer = trainers["south"](request)  # the site has done its part when the server dies
            if isinstance(plan, wire.RoundPlan) and plan.round == kill:
                raise KeyboardInterrupt
            return answer

        config = ServerConfig(
            study=tmp_path / "study.yaml", run_dir=tmp_path / run / "server", node_ids={"north": 1}
        )
        conduct(config, InProcessSites(trainers | {"south": dies}))
        return tmp_path / run / "server"

    whole = conduct_in("whole")
    with pytest.raises(KeyboardInterrupt):
        conduct_in("broken", kill=killed_in)
    resumed = conduct_in("broken")
    digests = [digest(load_file(run / "weights.safetensors")[0]) for run in (whole, resumed)]
    assert digests[0] == digests[1]

"""Models of the sites' own: beside the global one, without a change to it, and scored once."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from client import own_models
from client.trainer import Trainer
from common.config import StudyConfig
from common.weights import digest
from server.enrolment import cohort as enrolment
from server.rounds.loop import run_rounds
from server.rounds.sites import InProcessSites
from server.state import RoundState
from tests.test_three_sides import hospital, run

MakeStudy = Callable[..., StudyConfig]


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("common.log.start", lambda *_: None)


def trained(folder: Path, study: StudyConfig, *names: str) -> tuple[list[RoundState], dict[str, Trainer]]:
    """The states of a study of these sites, and their trainers."""
    trainers = {name: Trainer(hospital(folder / name, name, None)) for name in names}
    sites = InProcessSites({name: trainer.answer for name, trainer in trainers.items()})
    cohort = enrolment.enrol(study, sites, None)
    start = RoundState(0, cohort.weights, cohort.reference.layout, cohort.reference.preprocessing)
    return list(run_rounds(study, sites, cohort, start)), trainers


def personal(**settings: Any) -> dict[str, Any]:
    return {"personalisation": settings, "rounds": 2}


@pytest.mark.parametrize("kind", ["local_head", "ditto"])
def test_the_global_model_has_the_same_bits_with_and_without(
    make_study: MakeStudy, tmp_path: Path, kind: str
) -> None:
    plain, _ = trained(tmp_path / "a", make_study(rounds=2), "north", "south")
    beside, _ = trained(tmp_path / "b", make_study(**personal(kind=kind, alone=True)), "north", "south")
    assert [digest(state.weights) for state in beside] == [digest(state.weights) for state in plain]
    assert beside[-1].test_scores == plain[-1].test_scores
    assert [list(state.own_scores) for state in beside] == [[], [], ["personal", "alone"]]
    assert {name: list(scores) for name, scores in beside[-1].own_scores.items()} == {
        "personal": ["north", "south"], "alone": ["north", "south"],
    }  # fmt: skip


def test_alone_is_the_study_of_one_site(make_study: MakeStudy, tmp_path: Path) -> None:
    """The model that north trains alone beside a study is the global model of a study of north."""
    one, _ = trained(tmp_path / "a", make_study(rounds=2, sites={"train": ("north",)}), "north")
    both, _ = trained(tmp_path / "b", make_study(**personal(kind="none", alone=True)), "north", "south")
    assert both[-1].own_scores["alone"]["north"] == one[-1].test_scores["north"]
    assert both[-1].test_scores["north"] != one[-1].test_scores["north"]


def test_ditto_is_pulled_to_the_received_weights(make_study: MakeStudy, tmp_path: Path) -> None:
    """With almost no pull it is the model alone; with more of it, it stays nearer to the global one."""
    distances = []
    for number, mu in enumerate((1e-9, 1.0)):
        states, trainers = trained(
            tmp_path / str(number), make_study(**personal(kind="ditto", mu=mu, alone=True)), "north", "south"
        )
        setup = trainers["north"]._setup
        assert setup is not None
        own, alone = (setup.state.own_arrays(name, before_round=3) for name in ("personal", "alone"))
        assert own is not None
        assert alone is not None
        shared = states[1].weights
        distances.append(sum(float(((own[name] - shared[name]) ** 2).sum()) for name in shared))
        if mu == 1e-9:
            assert all(abs(own[name] - alone[name]).max() < 1e-4 for name in own)
    assert distances[1] < distances[0]


def test_a_head_of_its_own_is_all_that_a_site_keeps_of_a_local_head(
    make_study: MakeStudy, tmp_path: Path
) -> None:
    _, trainers = trained(tmp_path, make_study(**personal(kind="local_head")), "north", "south")
    setup = trainers["north"]._setup
    assert setup is not None
    kept = setup.state.own_arrays("personal", before_round=3)
    assert kept is not None
    assert sorted(kept) == ["head.fc.bias", "head.fc.weight"]


def test_a_site_that_only_scores_has_no_model_of_its_own(make_study: MakeStudy) -> None:
    from common import wire

    study = make_study(**personal(kind="ditto"), sites={"train": ("north",), "evaluate": ("unseen",)})
    plan = wire.RoundPlan(plan_id="p", site="unseen", study=study, round=1, train=False, weights={})
    assert own_models.names(plan) == ()
    assert own_models.names(plan.model_copy(update={"site": "north"})) == ("personal",)


def test_the_report_has_a_column_for_each_model(make_study: MakeStudy, tmp_path: Path) -> None:
    folder = run(
        tmp_path / "a", make_study(**personal(kind="ditto", alone=True), selection={"metric": "loss"})
    )
    report = (folder / "report.md").read_text()
    section = report.split("## Global model and the sites' own")[1].split("\n## ")[0]
    assert "balanced accuracy, global | balanced accuracy, personal | balanced accuracy, alone" in section
    assert [line.split("|")[1].strip() for line in section.splitlines() if line.startswith("| ")][1:] == [
        ":---", "north", "south", "**pooled, training sites**",
    ]  # fmt: skip


@pytest.mark.parametrize(("alone", "columns"), [(True, ["FedBN", "alone"]), (False, ["FedBN"])])
def test_fedbn_is_named_as_the_model_of_each_sites_own(
    make_study: MakeStudy, tmp_path: Path, alone: bool, columns: list[str]
) -> None:
    model = {"encoder": "test_efficientnet", "image_size": 32, "batch_norm": "local"}
    settings = personal(kind="none", alone=alone) | {"rounds": 1, "selection": {"metric": "loss"}}
    folder = run(tmp_path / "a", make_study(model=model, **settings))
    section = (
        (folder / "report.md").read_text().split("## Global model and the sites' own")[1].split("\n## ")[0]
    )
    head = next(line for line in section.splitlines() if line.startswith("|"))
    assert [cell.strip().split(", ")[-1] for cell in head.split("|")[3:-1]] == columns * 2
    assert "*FedBN*: the study's model with each site's own normalisation layers" in section
    assert ("*alone*" in section) is alone

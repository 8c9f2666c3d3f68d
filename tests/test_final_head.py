"""The head that a study ends with: fitted on the final network from sums, chosen on validation images."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client.config import SiteConfig
from client.trainer import Trainer
from common import wire
from common.config import StudyConfig
from common.config.heads import Lda
from common.heads import FittedHead, HeadForm, identity
from common.heads.result import HeadResult
from common.metrics import count
from common.wire import codec
from consilium_fl.prediction import load_predictor
from server.conduct import conduct
from server.config import ServerConfig
from server.heads.record import read
from server.heads.scoring import choose
from server.rounds.sites import InProcessSites

MakeSite = Callable[..., SiteConfig]
MakeStudy = Callable[..., StudyConfig]


def test_a_final_head_is_one_of_the_studys_heads(make_study: MakeStudy) -> None:
    study = make_study(final_head="federated_lda")
    assert study.heads is not None
    assert study.heads.titles == ("federated.lda",)
    assert study.final_head_title == "federated.lda"
    again = StudyConfig.model_validate(study.model_dump(mode="json"))
    assert again.fingerprint == study.fingerprint
    assert make_study().heads is None
    assert make_study().final_head_title == "softmax"


def test_a_head_that_the_study_lists_keeps_its_settings(make_study: MakeStudy) -> None:
    heads = {"federated": [{"kind": "lda", "name": "wide", "shrinkage": 0.7}, {"kind": "nearest_mean"}]}
    study = make_study(final_head="federated_lda", heads=heads)
    assert study.heads is not None
    assert study.heads.titles == ("federated.wide", "federated.nearest_mean")
    assert study.final_head_title == "federated.wide"


def test_another_head_under_the_final_heads_name_is_refused(make_study: MakeStudy) -> None:
    heads = {"federated": [{"kind": "nearest_mean", "name": "ridge"}]}
    with pytest.raises(ValueError, match="calls another head so"):
        make_study(final_head="federated_ridge", heads=heads)


# --- the choice on validation images ------------------------------------------------------------


class Answering:
    """Head calls whose sites score the forms as they are told to."""

    def __init__(self, right: dict[str, dict[str, int]]) -> None:
        self.right = right
        self.steps: list[Any] = []

    def ask(self, names: Any, step: Any, _arrays: Any, _admit: Any) -> dict[str, wire.HeadAnswer]:
        self.steps.append(step)
        return {site: self.answer(site, self.right[site]) for site in names}

    def answer(self, site: str, right: dict[str, int]) -> wire.HeadAnswer:
        return wire.HeadAnswer(
            plan_id="h", site=site, round=1, step="score", train_counts=(0, 0), seconds=0.0, arrays={},
            results=tuple(HeadResult(title=title, score=scored(number)) for title, number in right.items()),
        )  # fmt: skip


def scored(num_right: int) -> Any:
    """Ten images of each class, of which so many are classified rightly."""
    right_N = np.arange(10) < num_right
    both_N = np.concatenate([right_N, right_N])
    labels_N = np.repeat([0, 1], 10)
    probabilities_N = np.where(both_N, 0.9, 0.1)
    rows_NC = np.stack([1 - probabilities_N, probabilities_N], axis=1)
    return count(np.where(labels_N[:, None] == 1, rows_NC, rows_NC[:, ::-1]), labels_N, 1.0)


def form(title: str, bias: float) -> FittedHead:
    parameters = {"weights": np.zeros((1, 2)), "bias": np.array([bias, 0.0])}
    return FittedHead(HeadForm(title=title, form="linear"), identity(1), parameters)


def test_the_form_is_taken_that_is_best_on_the_validation_images_of_all_sites() -> None:
    # North alone would take the first form and south the last: 9 + 1, 7 + 7 and 1 + 9 of 10.
    right = {"north": {"f.0": 9, "f.1": 7, "f.2": 1}, "south": {"f.0": 1, "f.1": 7, "f.2": 9}}
    calls = Answering(right)
    forms = {"f": [form(f"f.{place}", float(place)) for place in range(3)]}
    chosen = choose(calls, ["north", "south"], forms)["f"]  # type: ignore[arg-type]
    assert chosen.form.title == "f"
    assert chosen.parameters["bias"].tolist() == [1.0, 0.0]
    assert [(step.side, step.choosing) for step in calls.steps] == [("validation", True)]


def test_a_form_that_one_site_cannot_score_is_no_choice_and_the_first_of_equal_ones_is_taken() -> None:
    right = {"north": {"f.0": 5, "f.1": 5, "f.2": 9}, "south": {"f.0": 5, "f.1": 5}}
    forms = {"f": [form(f"f.{place}", float(place)) for place in range(3)]}
    chosen = choose(Answering(right), ["north", "south"], forms)["f"]  # type: ignore[arg-type]
    assert chosen.parameters["bias"][0] == 0.0


# --- a whole study -------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_study_ends_with_its_final_head_beside_the_softmax(
    make_site: MakeSite, make_study: MakeStudy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("common.log.start", lambda *_: None)
    study = make_study(rounds=1, final_head="federated_lda")
    (tmp_path / "study.yaml").write_text(json.dumps(study.model_dump(mode="json")))
    run_dir = tmp_path / "run"
    config = ServerConfig(study=tmp_path / "study.yaml", run_dir=run_dir, node_ids={"north": 1, "south": 2})
    asked: list[wire.HeadPlan] = []

    def listening(answer: Callable[[bytes], bytes]) -> Callable[[bytes], bytes]:
        def answered(request: bytes) -> bytes:
            plan = codec.from_bytes(request)
            if isinstance(plan, wire.HeadPlan):
                asked.append(plan)
            return answer(request)

        return answered

    sites = {
        name: listening(Trainer(make_site(name, per_class=per_class)).answer)
        for name, per_class in (("north", 10), ("south", 15))
    }
    conduct(config, InProcessSites(sites))

    table = read(run_dir)
    assert table is not None
    assert not table.lacking
    assert not table.problems
    assert all(list(row) == ["softmax", "federated.lda"] for row in table.cells.values())
    sides = [(plan.step.side, plan.step.choosing) for plan in asked if plan.step.kind == "score"]
    assert sides == [("validation", True)] * 2 + [("test", False)] * 2
    report = (run_dir / "report.md").read_text()
    assert "**The study's model predicts with federated.lda**" in report

    images = sorted((tmp_path / "north-images").rglob("*.png"))[:6]
    by_default, by_head, by_softmax = (
        np.stack([load_predictor(run_dir, head, device="cpu").probabilities(image)[0] for image in images])
        for head in (None, "federated.lda", "softmax")
    )
    np.testing.assert_array_equal(by_default, by_head)
    assert np.abs(by_default - by_softmax).max() > 1e-3


def test_the_default_final_head_chooses_its_shrinkage(make_study: MakeStudy) -> None:
    study = make_study(final_head="federated_lda")
    assert study.heads is not None
    head = study.heads.federated[0]
    assert isinstance(head, Lda)
    assert len(head.shrinkage) > 1
    assert Lda().shrinkage == (0.1,)

"""One site's own head at other sites, through a whole study without processes: policy, audit, report, scores."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client.config import PolicyConfig, SiteConfig
from client.heads import worker
from client.trainer import Trainer
from common import wire
from common.config import StudyConfig
from common.wire import codec
from server.conduct import conduct
from server.config import ServerConfig
from server.heads.record import read
from server.rounds.sites import InProcessSites

pytestmark = pytest.mark.slow
MakeSite = Callable[..., SiteConfig]
MakeStudy = Callable[..., StudyConfig]
Answer = Callable[[bytes], bytes]


@pytest.fixture(autouse=True)
def _here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Heads are fitted in this process: to start one takes longer than these fits."""
    monkeypatch.setattr("common.log.start", lambda *_: None)
    monkeypatch.setattr(worker, "_work", lambda folder, _: worker.main(folder))


def held(study: StudyConfig, trainers: dict[str, Answer], tmp_path: Path) -> str:
    """The report of a study."""
    (tmp_path / "study.yaml").write_text(json.dumps(study.model_dump(mode="json")))
    config = ServerConfig(
        study=tmp_path / "study.yaml",
        run_dir=tmp_path / "run",
        node_ids={site: number for number, site in enumerate(study.sites.all, 1)},
    )
    conduct(config, InProcessSites(trainers))
    return (tmp_path / "run/report.md").read_text()


def test_the_heads_of_one_site_are_scored_where_nothing_was_trained(
    make_site: MakeSite, make_study: MakeStudy, tmp_path: Path
) -> None:
    kinds = ["knn", "svm_rbf", "random_forest", "logistic"]
    local = [{"kind": kind, "travels": True} | ({"trees": 5} if "forest" in kind else {}) for kind in kinds]
    study = make_study(sites={"train": ("north",), "evaluate": ("unseen",)}, rounds=1, heads={"local": local})
    trainers = {
        "north": Trainer(make_site("north", per_class=10)).answer,
        "unseen": Trainer(make_site("unseen", per_class=4, test_only=True)).answer,
    }
    report = held(study, trainers, tmp_path)
    table = read(tmp_path / "run")
    assert table is not None
    assert table.lacking == {}
    titles = ["softmax", *(f"local.{kind}" for kind in kinds)]
    assert {site: list(row) for site, row in table.cells.items()} == {"north": titles, "unseen": titles}
    cell = table.cells["unseen"]["local.knn"]
    assert cell.num_images == 12
    assert None not in (cell.accuracy, cell.auroc, cell.gain, cell.gain_low, cell.mcnemar_p)
    assert "Heads of north that travelled are scored at every site." in report
    assert "With local.knn, features of single patients left north." in report
    assert "With local.logistic" not in report
    left = [line for line in audit(tmp_path / "north-state") if "heads_that_left" in line]
    assert [line["heads_that_left"] for line in left] == [{kind: kind for kind in kinds}]
    # The arrays pass through the server, and no file of it has them.
    assert not list((tmp_path / "run").rglob("*@*"))
    assert not list((tmp_path / "run/heads").glob("local*"))


def audit(state_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (state_dir / "audit.jsonl").read_text().splitlines()]


def test_a_head_stays_where_the_policy_does_not_let_its_kind_leave(
    make_site: MakeSite, make_study: MakeStudy, tmp_path: Path
) -> None:
    """Without a word in the policy, heads made of sums leave and those made of patients' features stay."""
    local = [{"kind": "knn", "name": "near", "travels": True}, {"kind": "lda", "travels": True}]
    study = make_study(sites={"train": ("north", "south")}, rounds=1, heads={"local": local})
    careful = PolicyConfig(heads=("*",), own_first_weights=False)
    seen: list[wire.HeadAnswer] = []

    def north(request: bytes) -> bytes:
        reply = trainer.answer(request)
        if isinstance(message := codec.from_bytes(reply), wire.HeadAnswer):
            seen.append(message)
        return reply

    trainer = Trainer(make_site("north", policy=careful))
    report = held(study, {"north": north, "south": Trainer(make_site("south")).answer}, tmp_path)
    assert not [name for answer in seen for name in answer.arrays if "knn" in name]
    table = read(tmp_path / "run")
    assert table is not None
    assert list(table.cells["south"]) == [
        "softmax", "local.near", "local.lda", "local.lda@north", "local.near@south", "local.lda@south",
    ]  # fmt: skip
    # At home a head is what it is elsewhere.
    assert table.cells["north"]["local.lda"] == table.cells["north"]["local.lda@north"]
    assert table.cells["north"]["local.near"].balanced_accuracy is not None
    assert (
        "- local.near@north did not travel: north's policy does not let a knn leave; north would have to list it in "
        "policy.heads\\_may\\_leave, or take a kind that is made of sums." in report
    )
    assert "*NAME@SITE*: the own head of that site, on the images of every site." in report
    assert "With local.near, features of single patients left south." in report


def test_a_head_of_a_site_that_dropped_out_is_scored_all_the_same(
    make_site: MakeSite, make_study: MakeStudy, tmp_path: Path
) -> None:
    study = make_study(
        sites={"train": ("north", "south"), "required": 1},
        rounds=1,
        heads={"local": [{"kind": "nearest_mean", "travels": True}]},
    )
    north = Trainer(make_site("north"))

    def leaves(request: bytes) -> bytes:
        plan = codec.from_bytes(request)
        if isinstance(plan, wire.HeadPlan) and plan.step.kind == "score":
            failure = wire.Failure(
                plan_id=plan.plan_id, site="north", error="internal", case="", advice="gone"
            )
            return codec.to_bytes(failure)
        return north.answer(request)

    report = held(study, {"north": leaves, "south": Trainer(make_site("south")).answer}, tmp_path)
    table = read(tmp_path / "run")
    assert table is not None
    assert list(table.cells) == ["south"]
    assert table.cells["south"]["local.nearest_mean@north"].balanced_accuracy is not None
    assert "- north had no part in score: gone" in report


def test_a_damaged_head_costs_that_head_and_no_other(
    make_site: MakeSite, make_study: MakeStudy, tmp_path: Path
) -> None:
    local = [{"kind": "nearest_mean", "travels": True}, {"kind": "naive_bayes", "travels": True}]
    study = make_study(sites={"train": ("north",), "evaluate": ("unseen",)}, rounds=1, heads={"local": local})
    north = Trainer(make_site("north"))

    def damaged(request: bytes) -> bytes:
        answer = codec.from_bytes(north.answer(request))
        if isinstance(answer, wire.HeadAnswer) and answer.step == "travel":
            name = "fitted/nearest_mean/nearest_mean/bias"
            arrays = {**answer.arrays, name: np.full(3, np.nan)}
            answer = answer.model_copy(update={"arrays": arrays})
        return codec.to_bytes(answer)

    unseen = Trainer(make_site("unseen", per_class=4, test_only=True)).answer
    report = held(study, {"north": damaged, "unseen": unseen}, tmp_path)
    table = read(tmp_path / "run")
    assert table is not None
    assert list(table.cells["unseen"]) == ["softmax", "local.naive_bayes"]
    assert (
        "- local.nearest_mean@north did not travel: what north sent is no such head: bias is not 1-dimensional, or "
        "not made of finite numbers." in report
    )

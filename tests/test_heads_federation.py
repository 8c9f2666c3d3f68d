"""Heads through a whole study without processes: from its YAML to the report and to what left a site."""

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client.config import PolicyConfig, SiteConfig
from client.heads import features, worker
from client.trainer import Trainer
from common import wire
from common.config import StudyConfig
from common.errors import QuorumNotMet
from common.heads.result import HeadResult
from common.weights import digest, load_file
from common.wire import codec
from server.conduct import conduct
from server.config import ServerConfig
from server.enrolment import cohort as enrolment
from server.heads import fit
from server.heads.record import read
from server.rounds.sites import InProcessSites
from server.state import RoundState

Answer = Callable[[bytes], bytes]
MakeSite = Callable[..., SiteConfig]
MakeStudy = Callable[..., StudyConfig]

EXACT = [{"kind": "nearest_mean"}, {"kind": "lda"}]


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("common.log.start", lambda *_: None)


def fitted(study: StudyConfig, trainers: Mapping[str, Answer]) -> fit.Fitted:
    """The heads on the first weights."""
    sites = InProcessSites(trainers)
    cohort = enrolment.enrol(study, sites, None)
    state = RoundState(study.rounds, cohort.weights, cohort.reference.layout, cohort.reference.preprocessing)
    return fit.fit(study, sites, cohort, state)


@pytest.mark.slow
def test_a_study_with_heads_ends_with_a_table_of_heads_and_sites(
    make_site: MakeSite, make_study: MakeStudy, tmp_path: Path
) -> None:
    study = make_study(
        sites={"train": ("north", "south"), "evaluate": ("unseen",)},
        rounds=1,
        heads={"federated": EXACT, "local": [{"kind": "nearest_mean"}]},
    )
    (tmp_path / "study.yaml").write_text(json.dumps(study.model_dump(mode="json")))
    config = ServerConfig(
        study=tmp_path / "study.yaml",
        run_dir=tmp_path / "run",
        node_ids={"north": 1, "south": 2, "unseen": 3},
    )
    trainers = {
        "north": Trainer(make_site("north", per_class=10)).answer,
        "south": Trainer(make_site("south", per_class=15)).answer,
        "unseen": Trainer(make_site("unseen", per_class=4, test_only=True)).answer,
    }
    conduct(config, InProcessSites(trainers))
    table = read(tmp_path / "run")
    assert table is not None
    assert list(table.cells) == ["north", "south", "unseen", "pooled, training sites"]
    # 3 classes: a fifth of 10 and of 15 images, and all of 4
    images = {site: row["federated.lda"].num_images for site, row in table.cells.items()}
    assert images == {"north": 6, "south": 9, "unseen": 12, "pooled, training sites": 15}
    assert "local.nearest_mean" not in table.cells["unseen"]
    report = (tmp_path / "run/report.md").read_text()
    assert "| head | north | south | unseen (only scores) | pooled, training sites |" in report
    assert "| federated.lda | " in report
    _, label = load_file(tmp_path / "run/heads/federated.lda.safetensors")
    _, about = load_file(tmp_path / "run/weights.safetensors")
    assert label["weights_sha256"] == about["sha256"]


# --- what goes wrong -----------------------------------------------------------------------------


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Heads are fitted in this process: to start one takes longer than these fits."""
    monkeypatch.setattr(worker, "_work", lambda folder, _: worker.main(folder))


def results(found: fit.Fitted, site: str) -> dict[str, HeadResult]:
    return {result.title: result for result in found.record.results[site]}


@pytest.mark.slow
@pytest.mark.usefixtures("at_once")
def test_a_head_that_one_site_cannot_fit_is_named_and_the_others_go_on(
    make_site: MakeSite, make_study: MakeStudy, tmp_path: Path
) -> None:
    north = make_site("north")
    for label in ("pale", "red"):
        shutil.rmtree(tmp_path / "north-images" / label)
    trainers = {"north": Trainer(north).answer, "south": Trainer(make_site("south")).answer}
    listed = {
        "local": [{"kind": "lda"}],
        "federated": [{"kind": "lda"}, {"kind": "vote", "of": "nearest_mean"}],
    }
    found = fitted(make_study(heads=listed), trainers)
    assert results(found, "north")["local.lda"].problem == "one_class"
    assert results(found, "south")["local.lda"].score is not None
    # The sums of one class are as good as any; only the vote goes on without this site.
    assert [head.form.title for head in found.heads] == ["federated.lda", "federated.vote"]
    assert len(found.heads[1].parameters["shares"]) == 1
    assert results(found, "north")["federated.vote"].score is not None


def test_features_that_are_no_numbers_cost_the_site_its_part_and_no_more(
    make_site: MakeSite, make_study: MakeStudy, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainers = {name: Trainer(make_site(name)) for name in ("north", "south")}
    with_logits = features.with_logits

    def broken(*arguments: Any) -> Any:
        rows_BF, logits_BC = with_logits(*arguments)
        return rows_BF * float("nan"), logits_BC

    def answer(request: bytes) -> bytes:
        with monkeypatch.context() as now:
            now.setattr(features, "with_logits", broken)
            return trainers["north"].answer(request)

    study = make_study(
        sites={"train": ("north", "south"), "required": 1}, heads={"federated": [{"kind": "nearest_mean"}]}
    )
    found = fitted(study, {"north": answer, "south": trainers["south"].answer})
    assert found.record.problems["north"].startswith("score: the site could not compute with the weights")
    assert list(found.record.results) == ["south"]
    assert [head.form.title for head in found.heads] == ["federated.nearest_mean"]
    both = study.model_copy(update={"sites": study.sites.model_copy(update={"required": 2})})
    with pytest.raises(
        QuorumNotMet, match=r"1 of 2 training sites scored the heads, 2 are required \(north: score"
    ):
        fitted(both, {"north": answer, "south": trainers["south"].answer})


def test_a_sum_that_does_not_fit_is_not_added(make_site: MakeSite, make_study: MakeStudy) -> None:
    trainers = {name: Trainer(make_site(name)).answer for name in ("north", "south")}

    def inflated(request: bytes) -> bytes:
        reply = codec.from_bytes(trainers["south"](request))
        if isinstance(reply, wire.HeadAnswer) and reply.step == "statistics":
            reply = reply.model_copy(update={"train_counts": (800, 8, 8)})
        return codec.to_bytes(reply)

    study = make_study(
        sites={"train": ("north", "south"), "required": 1}, heads={"federated": [{"kind": "nearest_mean"}]}
    )
    found = fitted(study, trainers | {"south": inflated})
    alone = fitted(make_study(sites={"train": ("north",)}, heads=study.heads), {"north": trainers["north"]})
    assert np.array_equal(found.heads[0].parameters["weights"], alone.heads[0].parameters["weights"])


def test_a_site_that_allows_no_heads_takes_part_in_the_rounds(
    make_site: MakeSite, make_study: MakeStudy, tmp_path: Path
) -> None:
    south = make_site("south", policy=PolicyConfig(heads=("local.*",)))
    trainers = {"north": Trainer(make_site("north")).answer, "south": Trainer(south).answer}
    study = make_study(
        sites={"train": ("north", "south"), "required": 1},
        rounds=1,
        heads={"federated": [{"kind": "nearest_mean"}]},
    )
    (tmp_path / "study.yaml").write_text(json.dumps(study.model_dump(mode="json")))
    config = ServerConfig(
        study=tmp_path / "study.yaml", run_dir=tmp_path / "run", node_ids={"north": 1, "south": 2}
    )
    conduct(config, InProcessSites(trainers))
    line = json.loads((tmp_path / "run/rounds.jsonl").read_text().splitlines()[0])
    assert [site["outcome"] for site in line["sites"]] == ["ok", "ok"]
    report = (tmp_path / "run/report.md").read_text()
    assert "- south had no part in score: the plan asks for what this site did not agree to" in report
    assert "heads: the study fits 'federated.nearest\\_mean'" in report


def test_a_trainer_that_starts_again_in_the_middle_gives_the_same_heads(
    make_site: MakeSite, make_study: MakeStudy
) -> None:
    site = make_site("north")
    study = make_study(
        sites={"train": ("north",)}, heads={"federated": [{"kind": "linear_svm"}, {"kind": "logistic"}]}
    )
    whole = fitted(study, {"north": Trainer(site).answer})
    restarted = fitted(study, {"north": lambda request: Trainer(site).answer(request)})
    assert [digest(head.arrays()) for head in restarted.heads] == [
        digest(head.arrays()) for head in whole.heads
    ]


def test_a_head_that_takes_too_long_is_given_up(make_site: MakeSite, make_study: MakeStudy) -> None:
    study = make_study(
        sites={"train": ("north",)}, heads={"local": [{"kind": "svm_rbf", "time_limit_s": 0.001}]}
    )
    found = fitted(study, {"north": Trainer(make_site("north")).answer})
    assert results(found, "north")["local.svm_rbf"].problem == "too_slow"
    assert results(found, "north")["softmax"].score is not None


def test_heads_every_round_are_all_on_record_and_the_last_ones_are_kept(
    make_site: MakeSite, make_study: MakeStudy, tmp_path: Path
) -> None:
    study = make_study(
        sites={"train": ("north",)}, rounds=2, heads={"every": 1, "federated": [{"kind": "nearest_mean"}]}
    )
    (tmp_path / "study.yaml").write_text(json.dumps(study.model_dump(mode="json")))
    config = ServerConfig(study=tmp_path / "study.yaml", run_dir=tmp_path / "run", node_ids={"north": 1})
    conduct(config, InProcessSites({"north": Trainer(make_site("north")).answer}))
    entries = json.loads((tmp_path / "run/heads.json").read_text())
    assert [entry["round"] for entry in entries] == [1, 2]
    _, label = load_file(tmp_path / "run/heads/federated.nearest_mean.safetensors")
    assert label["round"] == "2"

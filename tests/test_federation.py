"""A whole study without processes: the real rounds, the real trainers, function calls between."""

import dataclasses
import functools
import json
import logging
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from client.config import PolicyConfig, SiteConfig
from client.trainer import Trainer
from common import wire
from common.config import OverlapConfig, StudyConfig
from common.errors import ConfigError, QuorumNotMet, SiteDataError
from common.log import ReadableFormatter
from common.weights import digest, load_file, norm, subtract
from common.wire import codec, flower_codec
from server.conduct import conduct
from server.config import ServerConfig
from server.enrolment import cohort as enrolment
from server.rounds.failures import NOTICED_BY_SERVER
from server.rounds.loop import run_rounds
from server.rounds.sites import Deadline, InProcessSites, Reply
from server.state import RoundState

Answer = Callable[[bytes], bytes]
MakeSite = Callable[..., SiteConfig]
MakeStudy = Callable[..., StudyConfig]


@pytest.fixture(autouse=True)
def _propagate(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let caplog see our events even after a test has started the real log."""
    monkeypatch.setattr("common.log.start", lambda *_: None)
    monkeypatch.setattr(logging.getLogger("consilium"), "propagate", True)
    logging.getLogger("consilium").setLevel(logging.INFO)


@pytest.fixture
def trainers(make_site: MakeSite) -> dict[str, Answer]:
    """Two sites of unequal size."""
    return {
        "north": Trainer(make_site("north", per_class=10)).answer,
        "south": Trainer(make_site("south", per_class=15)).answer,
    }


def states(study: StudyConfig, sites: InProcessSites) -> list[RoundState]:
    cohort = enrolment.enrol(study, sites, None)
    start = RoundState(0, cohort.weights, cohort.reference.layout, cohort.reference.preprocessing)
    return [start, *run_rounds(study, sites, cohort, start)]


def change_answers(answer: Answer, change: Callable[[wire.RoundAnswer], wire.RoundAnswer]) -> Answer:
    """A site that tampers with what it trained."""

    def tampered(request: bytes) -> bytes:
        reply = codec.from_bytes(answer(request))
        return codec.to_bytes(change(reply) if isinstance(reply, wire.RoundAnswer) and reply.delta else reply)

    return tampered


def test_a_study_trains_for_every_round_and_closes_with_the_scores_of_its_final_weights(
    trainers: dict[str, Answer], make_study: MakeStudy
) -> None:
    study = make_study(rounds=4)
    history = states(study, InProcessSites(trainers))
    assert [state.round for state in history] == [0, 1, 2, 3, 4, 5]
    assert digest(history[5].weights) == digest(history[4].weights)
    # 3 classes: north has 30 images, south 45; a fifth of each is for testing. Of the other 8 and 12 of a class, one
    # and two are for validation.
    assert {site: score.num_images for site, score in history[5].scores.items()} == {"north": 3, "south": 6}
    assert {site: score.num_images for site, score in history[5].test_scores.items()} == {
        "north": 6,
        "south": 9,
    }
    assert not any(state.test_scores for state in history[:5])
    first, last = history[1].scores["south"], history[5].scores["south"]
    assert last.loss_sum < first.loss_sum


@pytest.mark.slow
def test_same_seed_gives_the_same_bits_whatever_order_the_sites_answer_in(
    make_site: MakeSite, make_study: MakeStudy
) -> None:
    study = make_study(rounds=3, sites={"train": ("a", "b", "c")})
    configs = {name: make_site(name, per_class=count) for name, count in (("a", 5), ("b", 7), ("c", 11))}

    @dataclasses.dataclass(frozen=True)
    class Reversed(InProcessSites):
        def ask(self, plans: Mapping[str, wire.Plan], deadline: Deadline) -> Iterator[Reply]:
            return super().ask(dict(reversed(plans.items())), deadline)

    forward = states(study, InProcessSites({n: Trainer(c).answer for n, c in configs.items()}))
    backward = states(study, Reversed({n: Trainer(c).answer for n, c in configs.items()}))
    assert [digest(state.weights) for state in forward] == [digest(state.weights) for state in backward]
    assert digest(forward[3].weights) != digest(forward[2].weights)


def test_one_full_batch_step_at_each_site_is_one_step_on_the_union(
    make_site: MakeSite, make_study: MakeStudy
) -> None:
    """McMahan et al. 2017: with one full-batch step per site, FedAvg is SGD on all images."""
    local = {
        "batch_size": "all", "augmentation": "none", "precision": "float64",
        "optimizer": {"kind": "sgd", "lr": 0.1, "momentum": 0.0, "weight_decay": 0.0},
    }  # fmt: skip
    north, south = make_site("north", per_class=5), make_site("south", per_class=10)
    apart = make_study(rounds=1, local=local)
    federated = states(apart, InProcessSites({c.name: Trainer(c).answer for c in (north, south)}))[1]

    # The gradient of the union is the mean over 9 + 21 training images of both sites' gradients,
    # and a federation of one gives each site's own: w' - w = -lr * gradient.
    alone = {}
    for site in (north, south):
        one = make_study(rounds=1, local=local, sites={"train": (site.name,)})
        start, after, _ = states(one, InProcessSites({site.name: Trainer(site).answer}))
        alone[site.name] = subtract(after.weights, start.weights)
        first = start.weights
    union = {
        name: first[name] + (9 * alone["north"][name] + 21 * alone["south"][name]) / 30 for name in first
    }
    assert norm(subtract(federated.weights, union)) < 1e-9
    assert norm(subtract(federated.weights, first)) > 1e-3


def test_a_site_with_the_role_evaluate_scores_but_never_trains(
    make_site: MakeSite, make_study: MakeStudy
) -> None:
    study = make_study(sites={"train": ("north",), "evaluate": ("unseen",)})
    sites = InProcessSites(
        {
            "north": Trainer(make_site("north")).answer,
            "unseen": Trainer(make_site("unseen", per_class=4, test_only=True)).answer,
        }
    )
    *rounds, closing = states(study, sites)[1:]
    assert not any(
        row.site == "unseen" for state in rounds for row in state.sites
    )  # it has test images alone
    unseen = next(row for row in closing.sites if row.site == "unseen")
    assert (unseen.outcome, unseen.num_examples, unseen.mib_up) == ("ok", 0, 0.0)
    assert closing.test_scores["unseen"].num_images == 12  # 3 classes of 4 images, all of them tests


def test_sites_can_score_less_often_but_always_at_the_end(make_site: MakeSite, make_study: MakeStudy) -> None:
    sites = {"train": ("north",), "evaluate": ("unseen",), "evaluate_every": 2}
    trainers = {name: Trainer(make_site(name, per_class=5)).answer for name in ("north", "unseen")}
    history = states(make_study(rounds=3, sites=sites), InProcessSites(trainers))
    # rounds 1 and 3 are the first of two each; the closing one comes fourth
    for site in ("north", "unseen"):
        assert [state.round for state in history if site in state.scores] == [1, 3, 4]


@pytest.mark.parametrize(
    ("what", "change"),
    [
        ("not finite", lambda a: {"delta": {n: np.full_like(x, np.nan) for n, x in a.delta.items()}}),
        ("missing", lambda a: {"delta": dict(list(a.delta.items())[1:])}),
        ("enrolled", lambda a: {"num_examples": 10**9}),
        ("plan", lambda a: {"plan_id": "another"}),
    ],
)
def test_a_bad_update_costs_the_site_its_vote_not_the_study_its_round(
    trainers: dict[str, Answer],
    make_study: MakeStudy,
    what: str,
    change: Callable[[wire.RoundAnswer], dict[str, object]],
) -> None:
    study = make_study(sites={"train": ("north", "south"), "required": 1})
    bad = change_answers(trainers["south"], lambda a: a.model_copy(update=change(a)))
    with_bad = states(study, InProcessSites(trainers | {"south": bad}))
    refused = next(row for row in with_bad[1].sites if row.site == "south")
    assert refused.outcome == "refused"
    assert what in refused.reason
    assert all(np.isfinite(array).all() for array in with_bad[-1].weights.values())


def test_a_refused_site_finds_the_reason_in_its_own_log(
    trainers: dict[str, Answer], make_study: MakeStudy, caplog: pytest.LogCaptureFixture
) -> None:
    study = make_study(
        sites={"train": ("north", "south"), "required": 1}, rounds=1, admission={"max_norm": 1e-9}
    )
    small = change_answers(
        trainers["north"],
        lambda a: a.model_copy(update={"delta": {n: np.zeros_like(x) for n, x in a.delta.items()}}),
    )
    states(study, InProcessSites(trainers | {"north": small}))
    told = [line for line in caplog.messages if line.startswith("the server refused this site's last answer")]
    assert len(told) == 1
    assert "refused 1 time(s) in a row, last in round 1: its norm is " in told[0]


def test_a_round_below_the_quorum_fails_and_names_who_lacked(
    trainers: dict[str, Answer], make_study: MakeStudy
) -> None:
    bad = change_answers(trainers["south"], lambda a: a.model_copy(update={"num_examples": 0}))
    with pytest.raises(
        QuorumNotMet,
        match=r"round 1 has 1 usable .* 2 are required \(south since round 1 \(.* UTC\): it claims 0 examples",
    ):
        states(make_study(), InProcessSites(trainers | {"south": bad}))


def test_a_site_that_built_other_weights_is_named_before_round_1(
    trainers: dict[str, Answer], make_study: MakeStudy
) -> None:
    def other(request: bytes) -> bytes:
        plan = codec.from_bytes(request)
        assert isinstance(plan, wire.EnrolPlan)
        different = plan.model_copy(update={"study": plan.study.model_copy(update={"seed": 4})})
        return trainers["south"](codec.to_bytes(different))

    with pytest.raises(QuorumNotMet, match="south: it built other first weights than north"):
        enrolment.enrol(make_study(), InProcessSites(trainers | {"south": other}), None)


def test_another_site_builds_the_first_weights_if_the_first_one_cannot(
    trainers: dict[str, Answer], make_study: MakeStudy
) -> None:
    def fails(request: bytes) -> bytes:
        plan = codec.from_bytes(request)
        failure = wire.Failure(plan_id=plan.plan_id, site="north", error="internal", case="1", advice="-")
        return codec.to_bytes(failure)

    study = make_study(sites={"train": ("north", "south"), "required": 1})
    cohort = enrolment.enrol(study, InProcessSites(trainers | {"north": fails}), None)
    assert list(cohort.enrolments) == ["south"]
    assert digest(cohort.weights) == cohort.reference.weights_digest


def test_a_site_whose_gateway_was_away_at_the_enrolment_is_asked_again(
    trainers: dict[str, Answer], make_study: MakeStudy, caplog: pytest.LogCaptureFixture
) -> None:
    asked = []

    def away_at_first(request: bytes) -> bytes:
        plan = codec.from_bytes(request)
        asked.append(plan)
        if len(asked) == 1:
            return codec.to_bytes(
                wire.Failure(
                    plan_id=plan.plan_id,
                    site="south",
                    error="unreachable",
                    case=NOTICED_BY_SERVER,
                    advice="-",
                )
            )
        return trainers["south"](request)

    cohort = enrolment.enrol(make_study(), InProcessSites(trainers | {"south": away_at_first}), None)
    assert list(cohort.enrolments) == ["north", "south"]
    assert len(asked) == 2
    assert "south could not be reached; asking again" in caplog.text


def test_a_site_that_stays_away_is_asked_as_often_as_a_round_is_repeated(
    trainers: dict[str, Answer], make_study: MakeStudy
) -> None:
    asked = []

    def away(request: bytes) -> bytes:
        plan = codec.from_bytes(request)
        asked.append(plan)
        return codec.to_bytes(
            wire.Failure(
                plan_id=plan.plan_id, site="south", error="unreachable", case=NOTICED_BY_SERVER, advice="-"
            )
        )

    study = make_study(deadlines={"repeats": 2, "repeat_after_s": 0})
    with pytest.raises(QuorumNotMet, match=r"south: - \(unreachable\)"):
        enrolment.enrol(study, InProcessSites(trainers | {"south": away}), None)
    assert len(asked) == 3


def test_sites_that_do_not_connect_are_named_after_the_stated_time(
    make_study: MakeStudy, caplog: pytest.LogCaptureFixture
) -> None:
    study = make_study(sites={"train": ("a", "b", "c")}, deadlines={"enrol_s": 0.05})
    with pytest.raises(
        QuorumNotMet, match=r"b did not connect within 0 s; 2 of 3 training sites are there, 3"
    ):
        enrolment.wait_for_sites(study, InProcessSites({"a": bytes, "c": bytes}))
    assert "waiting for b to connect" in caplog.text


def test_local_batch_norm_never_travels_and_survives_a_restart_of_the_trainer(
    make_site: MakeSite, make_study: MakeStudy
) -> None:
    model = {"encoder": "test_efficientnet", "image_size": 32, "batch_norm": "local"}
    site = make_site("north")
    study = make_study(model=model, sites={"train": ("north",)}, rounds=2)
    whole = states(study, InProcessSites({"north": Trainer(site).answer}))
    assert not [name for name in whole[0].layout if "running_mean" in name or "bn" in name]

    class Restarting:
        def __call__(self, request: bytes) -> bytes:
            return Trainer(site).answer(request)  # a new process for every plan

    restarted = states(study, InProcessSites({"north": Restarting()}))
    assert digest(restarted[2].weights) == digest(whole[2].weights)
    assert restarted[3].scores["north"] == whole[3].scores["north"]


def test_a_finished_study_leaves_weights_rounds_the_study_and_a_report(
    trainers: dict[str, Answer], make_study: MakeStudy, tmp_path: Path
) -> None:
    (tmp_path / "study.yaml").write_text(json.dumps(make_study().model_dump(mode="json")))
    config = ServerConfig(
        study=tmp_path / "study.yaml",
        run_dir=tmp_path / "run",
        node_ids={"north": 1, "south": 2},
        synthetic=True,
    )
    conduct(config, InProcessSites(trainers))
    assert json.loads((tmp_path / "run/status.json").read_text())["status"] == "finished"
    assert len((tmp_path / "run/rounds.jsonl").read_text().splitlines()) == 3
    assert "synthetic" in (tmp_path / "run/report.md").read_text().lower()
    assert (tmp_path / "run/weights.safetensors").stat().st_size > 1000


def test_a_server_that_is_asked_to_end_is_no_failure(
    make_study: MakeStudy, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def interrupted(_: bytes) -> bytes:
        raise KeyboardInterrupt

    (tmp_path / "study.yaml").write_text(json.dumps(make_study().model_dump(mode="json")))
    config = ServerConfig(study=tmp_path / "study.yaml", run_dir=tmp_path / "run", node_ids={"north": 1})
    with pytest.raises(KeyboardInterrupt):
        conduct(config, InProcessSites({"north": interrupted, "south": interrupted}))
    status = json.loads((tmp_path / "run/status.json").read_text())
    assert (status["status"], status["reason"]) == ("crashed", "the server was stopped")
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


def test_a_study_that_fails_says_so_in_its_status(make_study: MakeStudy, tmp_path: Path) -> None:
    study = make_study(deadlines={"enrol_s": 0.01})
    (tmp_path / "study.yaml").write_text(json.dumps(study.model_dump(mode="json")))
    config = ServerConfig(study=tmp_path / "study.yaml", run_dir=tmp_path / "run", node_ids={"north": 1})
    with pytest.raises(QuorumNotMet):
        conduct(config, InProcessSites({}))
    status = json.loads((tmp_path / "run/status.json").read_text())
    assert status["status"] == "failed"
    assert "north, south did not connect" in status["reason"]


# --- sites that the study names and that do not take part ------------------------------------------


def ended(run_dir: Path) -> dict[str, Any]:
    return dict(json.loads((run_dir / "status.json").read_text()))


@pytest.fixture
def run_without(tmp_path: Path, make_site: MakeSite, make_study: MakeStudy) -> Callable[..., Path]:
    """`run_without("incomplete")`: a study whose site `unseen` has too few images for its split."""

    def run(missing: str, *, mended: bool = False) -> Path:
        sites = {"train": ("north",), "evaluate": ("unseen",), "evaluate_missing": missing}
        study = make_study(rounds=1, sites=sites)
        (tmp_path / "study.yaml").write_text(json.dumps(study.model_dump(mode="json")))
        # 3 classes of 1 image: a test share of 0.2 takes 5 groups
        unseen = make_site("unseen", per_class=1, test_only=mended)
        trainers = {site.name: Trainer(site).answer for site in (make_site("north"), unseen)}
        config = ServerConfig(
            study=tmp_path / "study.yaml", run_dir=tmp_path / "run", node_ids={"north": 1, "unseen": 2}
        )
        conduct(config, InProcessSites(trainers))
        return tmp_path / "run"

    return run


def test_a_study_that_never_hears_its_evaluate_site_is_incomplete_and_says_so_everywhere(
    run_without: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    run_dir = run_without("incomplete")
    status, reason = ended(run_dir), "data: the site's images, labels or weights file cannot be used"
    assert status["status"] == "finished, incomplete"
    assert status["reason"].startswith("1 rounds; unseen did not score the final model: ")
    assert reason.removeprefix("data: ") in status["absent"]["unseen"]
    for line in (run_dir / "rounds.jsonl").read_text().splitlines():
        (row,) = (row for row in json.loads(line)["sites"] if row["site"] == "unseen")
        assert row["outcome"] == "absent"
        assert row["reason"] == status["absent"]["unseen"]
    report = (run_dir / "report.md").read_text()
    troubles = report.split("## What went wrong")[1].split("\n## ")[0]
    assert "| 1 to closing | unseen | absent |" in troubles
    assert "Nothing" not in troubles
    assert "never trained and only scored" not in report
    assert "**Sites that took no part**: unseen" in report.split("## Model card")[1]
    last = [record.getMessage() for record in caplog.records][-2:]
    assert last[0].startswith("unseen took no part: ")
    assert last[1].startswith("study tiny finished, incomplete after 1 rounds; unseen did not score")


def test_the_closing_evaluation_of_an_incomplete_study_can_be_repeated(
    run_without: Callable[..., Path],
) -> None:
    before = load_file(run_without("incomplete") / "weights.safetensors")[0]
    run_dir = run_without("incomplete", mended=True)
    assert ended(run_dir)["status"] == "finished"
    assert ended(run_dir)["absent"] == {}
    assert digest(load_file(run_dir / "weights.safetensors")[0]) == digest(before)
    report = (run_dir / "report.md").read_text()
    assert "unseen never trained and only scored the model." in report
    assert "| 1 | unseen | absent |" in report  # it was, in round 1
    assert "The study was resumed from the checkpoint after round 1." in report
    assert "incomplete" not in report.lower()


def test_a_study_may_pass_or_fail_without_its_evaluate_site(
    run_without: Callable[..., Path], tmp_path: Path
) -> None:
    with pytest.raises(QuorumNotMet, match="unseen cannot score the model"):
        run_without("fail")
    assert ended(tmp_path / "run")["status"] == "failed"
    assert not (tmp_path / "run/rounds.jsonl").exists()  # before round 1
    run_dir = run_without("pass")
    assert ended(run_dir)["status"] == "finished"
    assert "unseen did not score the final model" in ended(run_dir)["reason"]
    assert "| unseen | absent |" in (run_dir / "report.md").read_text()


def test_a_training_site_that_never_took_part_is_named(
    trainers: dict[str, Answer], make_study: MakeStudy, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sites = {"train": ("north", "south", "west"), "required": 2}
    study = make_study(rounds=1, sites=sites, deadlines={"enrol_s": 0.01, "repeat_after_s": 0})
    (tmp_path / "study.yaml").write_text(json.dumps(study.model_dump(mode="json")))
    config = ServerConfig(
        study=tmp_path / "study.yaml", run_dir=tmp_path / "run", node_ids={"north": 1, "south": 2}
    )
    conduct(config, InProcessSites(trainers))
    status = ended(tmp_path / "run")
    why = "it did not connect within 0 s; no key of it is enrolled at the server"
    assert (status["status"], status["absent"]) == ("finished", {"west": why})
    assert status["reason"] == f"1 rounds; west took no part: {why}"
    report = (tmp_path / "run/report.md").read_text()
    assert "was trained by 2 sites in 1 round," in report
    assert f"| 1 to closing | west | absent | {why} |" in report
    assert f"west took no part: {why}" in caplog.text


def test_a_study_that_fails_after_a_round_has_a_report_that_says_why(
    trainers: dict[str, Answer], make_study: MakeStudy, tmp_path: Path
) -> None:
    def breaks(request: bytes) -> bytes:
        plan = codec.from_bytes(request)
        if isinstance(plan, wire.RoundPlan) and plan.round == 2:
            return codec.to_bytes(
                wire.Failure(
                    plan_id=plan.plan_id, site="south", error="memory", case="1a2b", advice="no memory"
                )
            )
        return trainers["south"](request)

    (tmp_path / "study.yaml").write_text(json.dumps(make_study(rounds=3).model_dump(mode="json")))
    config = ServerConfig(
        study=tmp_path / "study.yaml", run_dir=tmp_path / "run", node_ids={"north": 1, "south": 2}
    )
    with pytest.raises(QuorumNotMet):
        conduct(config, InProcessSites(trainers | {"south": breaks}))
    report = (tmp_path / "run/report.md").read_text()
    assert "**The study failed: round 2 has 1 usable answers" in report
    assert "in 1 of 3 rounds" in report
    assert "Nothing" not in report


@pytest.mark.slow
@pytest.mark.parametrize("killed_in", ["enrolment", "round 2", "round 3"])
def test_a_resumed_study_equals_an_uninterrupted_one(
    make_site: MakeSite, make_study: MakeStudy, tmp_path: Path, killed_in: str
) -> None:
    """Everything starts again after the kill: the server and every trainer. FedAdam has state on
    the server, local batch norm has state at the sites."""
    study = make_study(
        rounds=3,
        algorithm={"kind": "fedadam", "server_lr": 0.01},
        model={"encoder": "test_efficientnet", "image_size": 32, "batch_norm": "local"},
    )
    (tmp_path / "study.yaml").write_text(json.dumps(study.model_dump(mode="json")))
    configs = [make_site("north", per_class=5), make_site("south", per_class=7)]

    def conduct_in(run: str, kill: str | None = None) -> Path:
        trainers = {site.name: Trainer(site).answer for site in configs}

        def dies(request: bytes) -> bytes:
            plan = codec.from_bytes(request)
            where = f"round {plan.round}" if isinstance(plan, wire.RoundPlan) else "enrolment"
            answer = trainers["south"](request)  # the site has done its part when the server dies
            if where == kill:
                raise KeyboardInterrupt
            return answer

        config = ServerConfig(study=tmp_path / "study.yaml", run_dir=tmp_path / run, node_ids={"north": 1})
        conduct(config, InProcessSites(trainers | {"south": dies}))
        return tmp_path / run

    whole = conduct_in("whole")
    with pytest.raises(KeyboardInterrupt):
        conduct_in("broken", kill=killed_in)
    assert json.loads((tmp_path / "broken/status.json").read_text())["status"] == "crashed"
    resumed = conduct_in("broken")

    # Arrays, not files: safetensors writes its metadata in no fixed order.
    digests = [digest(load_file(run / "weights.safetensors")[0]) for run in (whole, resumed)]
    assert digests[0] == digests[1]
    rounds = [
        [json.loads(line) for line in (run / "rounds.jsonl").read_text().splitlines()]
        for run in (whole, resumed)
    ]
    for side in ("validation", "test"):
        assert [line[side] for line in rounds[0]] == [line[side] for line in rounds[1]]


def test_the_same_study_can_be_run_again_with_trainers_that_are_still_warm(
    trainers: dict[str, Answer], make_study: MakeStudy
) -> None:
    once, again = (states(make_study(), InProcessSites(trainers)) for _ in range(2))
    assert [digest(state.weights) for state in once] == [digest(state.weights) for state in again]


# --- what the sites hold, and whether they share it ---------------------------------------------


UNSEEN = {"train": ("north",), "evaluate": ("unseen",)}


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., Path]:
    """`run(study, sites...)`: the whole study in this process; returns its folder."""

    def run(study: StudyConfig, *sites: SiteConfig, folder: str = "run") -> Path:
        (tmp_path / "study.yaml").write_text(json.dumps(study.model_dump(mode="json")))
        config = ServerConfig(study=tmp_path / "study.yaml", run_dir=tmp_path / folder, node_ids={"north": 1})
        conduct(config, InProcessSites({site.name: Trainer(site).answer for site in sites}))
        return tmp_path / folder

    return run


@pytest.fixture
def make_secret(tmp_path: Path) -> Callable[[str], Path]:
    def make(digits: str) -> Path:
        path = tmp_path / f"{digits}.secret"
        path.write_text(digits * 32)
        path.chmod(0o600)
        return path

    return make


def test_a_study_begins_with_a_table_of_what_the_sites_hold(
    make_site: MakeSite, make_study: MakeStudy, run: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    folder = run(make_study(rounds=1), make_site("north", per_class=10), make_site("south", per_class=5))
    # dark is (70, 40, 30), pale (220, 190, 170), red (200, 60, 60), as many of each: red channel 490/3/255 = 0.64
    told = "\n".join(map(ReadableFormatter().format, caplog.records))
    row = next(line.strip() for line in told.splitlines() if line.startswith("    north  "))
    assert row.split()[:11] == ["north", *["7", "/", "1", "/", "2"] * 2]
    assert "40 x 40  0.64 " in row
    assert (
        "| north | 7 / 1 / 2 | 7 / 1 / 2 | 7 / 1 / 2 | 21 / 3 / 6 | 40 x 40 | 0.64 "
        in (folder / "report.md").read_text()
    )


def test_a_study_with_a_class_that_no_site_has_fails_before_round_1(
    make_site: MakeSite, make_study: MakeStudy, run: Callable[..., Path], tmp_path: Path
) -> None:
    study = make_study(classes=("dark", "pale", "red", "melanom"), sites={"train": ("north",)})
    with pytest.raises(ConfigError, match="no site has images of melanom: check how"):
        run(study, make_site("north", per_class=5))
    assert not (tmp_path / "run/rounds.jsonl").exists()


@pytest.mark.slow
def test_the_same_picture_under_another_name_at_an_unseen_site_stops_the_study_and_its_people_find_it(
    make_site: MakeSite,
    make_study: MakeStudy,
    run: Callable[..., Path],
    make_secret: Callable[[str], Path],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    secret = make_secret("a1")
    north = make_site("north", per_class=5, overlap_secret=secret)
    unseen = make_site("unseen", per_class=5, test_only=True, overlap_secret=secret)
    with Image.open(tmp_path / "north-images/red/3.png") as image:
        image.save(tmp_path / "unseen-images/red/MEIER_1961.bmp")
    study = make_study(sites=UNSEEN, rounds=1, overlap={})
    with pytest.raises(
        SiteDataError, match=r"^unseen shares 1 image with the training site north\. The data"
    ):
        run(study, north, unseen)
    assert not (tmp_path / "run/rounds.jsonl").exists()
    listed = (tmp_path / "unseen-state/overlap.csv").read_text().splitlines()
    assert [line.split(",")[:3] for line in listed[1:]] == [["same", "red", "MEIER_1961.bmp"]]
    assert not (tmp_path / "north-state/overlap.csv").exists()

    told = (tmp_path / "run/overlap.json").read_text() + (tmp_path / "run/status.json").read_text()
    assert "MEIER" not in told
    lenient = study.model_copy(update={"overlap": OverlapConfig(on_shared="warn")})
    warned = run(lenient, north, unseen, folder="warned")
    assert "**unseen shares 1 image with the training site north" in (warned / "report.md").read_text()

    (tmp_path / "unseen-images/red/MEIER_1961.bmp").unlink()
    report = (run(study, north, unseen, folder="clean") / "report.md").read_text()
    assert "none that unseen scores is at a training site." in report
    assert not (tmp_path / "unseen-state/overlap.csv").exists()


def test_sites_with_different_secrets_are_named_not_called_free_of_overlap(
    make_site: MakeSite, make_study: MakeStudy, run: Callable[..., Path], make_secret: Callable[[str], Path]
) -> None:
    north = make_site("north", per_class=5, overlap_secret=make_secret("a1"))
    unseen = make_site("unseen", per_class=5, test_only=True, overlap_secret=make_secret("b2"))
    with pytest.raises(
        SiteDataError, match=r"could not be compared: the sites' overlap_secrets differ.*Give every"
    ):
        run(make_study(sites=UNSEEN, overlap={}), north, unseen)


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({}, "this site has no secret for it"),
        ({"policy": PolicyConfig(overlap=False)}, "overlap: the study compares"),
    ],
    ids=["no secret", "policy"],
)
def test_a_site_that_will_not_compare_is_named_at_enrolment(
    make_site: MakeSite,
    make_study: MakeStudy,
    run: Callable[..., Path],
    settings: dict[str, object],
    why: str,
) -> None:
    with pytest.raises(QuorumNotMet, match=why):
        run(make_study(sites={"train": ("north",)}, overlap={}), make_site("north", per_class=5, **settings))


def test_two_training_sites_with_the_same_picture_are_worth_a_warning(
    make_site: MakeSite,
    make_study: MakeStudy,
    run: Callable[..., Path],
    make_secret: Callable[[str], Path],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    secret = make_secret("a1")
    north, south = (make_site(name, per_class=5, overlap_secret=secret) for name in ("north", "south"))
    shutil.copy(tmp_path / "north-images/red/3.png", tmp_path / "south-images/red/other.png")
    run(make_study(rounds=1, overlap={}), north, south)
    assert "north and south share 1 image, which count twice" in caplog.text


# --- kinds of models -----------------------------------------------------------------------------


def counting(answers: Mapping[str, Answer], sizes: list[int]) -> dict[str, Answer]:
    """Sites whose answers to rounds of training are measured, in bytes between trainer and gateway."""

    def counted(answer: Answer, request: bytes) -> bytes:
        reply = answer(request)
        if isinstance(plan := codec.from_bytes(request), wire.RoundPlan) and plan.train:
            sizes.append(len(reply))
        return reply

    return {name: functools.partial(counted, answer) for name, answer in answers.items()}


GENTLE = {"batch_size": 8, "augmentation": "none", "optimizer": {"kind": "adamw", "lr": 0.0005}}
"""Whatever images the split gives a site: it follows from their paths, which differ with every run of the tests."""


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["class", "supervised_contrastive"])
def test_a_clip_study_learns_and_begins_with_the_scores_of_a_clip_that_was_not_trained(
    trainers: dict[str, Answer], make_study: MakeStudy, loss: str
) -> None:
    model = {"kind": "clip", "encoder": "test_convnext", "image_size": 32, "loss": loss}
    study = make_study(model=model | {"text": {"kind": "random", "width": 16}}, rounds=3, local=GENTLE)
    history = states(study, InProcessSites(trainers))
    # The state of round 1 has the scores of what it started from: CLIP's zero-shot figures, round 0 in reports.
    assert history[1].scores["south"].num_images == 6
    assert history[4].scores["south"].loss_sum < history[1].scores["south"].loss_sum
    assert {name for name in history[0].weights if name.startswith("head.")} == {
        "head.logit_scale", "head.projection.weight", "head.projection.bias",
    }  # fmt: skip
    # A scalar stays one on its way through Flower.
    plan = wire.RoundPlan(
        plan_id="p", site="north", study=study, round=1, train=True, weights=history[4].weights
    )
    arrived = flower_codec.from_records(flower_codec.to_records(plan))
    assert isinstance(arrived, wire.RoundPlan)
    assert arrived.weights["head.logit_scale"].shape == ()


@pytest.mark.slow
def test_a_lora_study_learns_and_sends_only_products_and_head(
    trainers: dict[str, Answer], make_study: MakeStudy
) -> None:
    encoder = {"encoder": "test_convnext", "image_size": 32}
    lora = encoder | {"tuning": {"kind": "lora", "rank": 2, "alpha": 8, "layers": "all"}}
    sizes: dict[str, list[int]] = {"full": [], "lora": []}
    for name, model in (("full", encoder), ("lora", lora)):
        study = make_study(
            model=model, rounds=2, local=GENTLE | {"optimizer": {"kind": "adamw", "lr": 0.002}}
        )
        history = states(study, InProcessSites(counting(trainers, sizes[name])))
    assert all(".lora_" in name or name.startswith("head.") for name in history[-1].weights)
    assert history[-1].scores["south"].loss_sum < history[1].scores["south"].loss_sum
    # 207,323 weights of 4 bytes against 9,575; the score in every answer is the same few KiB.
    assert max(sizes["lora"]) < min(sizes["full"]) / 10

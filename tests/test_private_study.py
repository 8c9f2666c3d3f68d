"""Studies with differential privacy in one process: what leaves, what it costs, and what refuses."""

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from client.cli.main import main
from client.config import PolicyConfig, SiteConfig
from client.config.policy import PrivacyPolicy
from client.hosted import HostedTrainer
from client.privacy import budget, ledger
from client.privacy.accountant import Charge, epsilon
from client.trainer import Trainer
from client.training import losses
from common import wire
from common.config import StudyConfig
from common.errors import QuorumNotMet, StorageError
from common.heads import under
from common.settings import to_yaml
from common.weights import digest
from common.wire import codec, head_steps
from server.enrolment.cohort import enrol
from server.rounds.loop import run_rounds
from server.rounds.sites import Deadline, Reply
from server.simulation.engines import Inline
from server.simulation.inline import run_inline
from server.simulation.launch import LocalSite
from server.state import Cohort, RoundState

MakeSite = Callable[..., SiteConfig]
MakeSites = Callable[..., dict[str, SiteConfig]]
MakeStudy = Callable[..., StudyConfig]
PRIVATE: Mapping[str, Any] = {
    "privacy": {"kind": "dp_sgd", "noise": 1.5, "sampling_rate": 0.2},
    "local": {"steps": 3, "augmentation": "none", "optimizer": {"kind": "sgd", "lr": 0.05}},
    "model": {"encoder": "test_convnext", "image_size": 32, "trainable": "head"},
}  # fmt: skip
LIMITS = PolicyConfig(privacy=PrivacyPolicy(max_epsilon=5.0))


class Here:
    """Trainers in this process, and what they answered."""

    def __init__(self, sites: Mapping[str, SiteConfig]) -> None:
        self.trainers = {name: Trainer(site) for name, site in sites.items()}
        self.answers: list[wire.Answer] = []

    def online(self) -> set[str]:
        return set(self.trainers)

    def ask(self, plans: Mapping[str, wire.Plan], deadline: Deadline) -> Iterator[Reply]:
        for site, plan in plans.items():
            answer = codec.from_bytes(self.trainers[site].answer(codec.to_bytes(plan)))
            assert not isinstance(answer, wire.Plan)
            self.answers.append(answer)
            yield Reply(site, answer, 0.1)


def rounds(study: StudyConfig, here: Here) -> list[RoundState]:
    cohort = enrol(study, here, None)
    start = RoundState(0, cohort.weights, cohort.reference.layout, cohort.reference.preprocessing)
    return list(run_rounds(study, here, cohort, start, pause=lambda _: None))


@pytest.fixture
def sites(make_site: MakeSite) -> dict[str, SiteConfig]:
    return {name: make_site(name, 8, policy=LIMITS) for name in ("north", "south")}


def test_what_leaves_a_site_has_noise_or_does_not_leave(
    sites: dict[str, SiteConfig], make_study: MakeStudy
) -> None:
    here = Here(sites)
    states = rounds(make_study(rounds=2, **PRIVATE), here)
    assert len(states) == 3  # and the closing evaluation
    enrolments = [answer for answer in here.answers if isinstance(answer, wire.Enrolment)]
    for enrolment in enrolments:
        assert enrolment.images is None
        assert not any(enrolment.validation_counts + enrolment.test_counts)
        assert min(enrolment.train_counts) >= 1
    counts = {enrolment.site: sum(enrolment.train_counts) for enrolment in enrolments}
    for answer in here.answers:
        if isinstance(answer, wire.RoundAnswer):
            assert not any(score.num_images for score in answer.scores.values())
            assert answer.train_loss is None
            assert answer.train_s % 10 == 0
            if answer.delta:
                assert answer.num_examples == counts[answer.site]
                assert answer.num_steps == 3
    # One charge for the counts and one for each round, in the ledger, and the same sum at the server.
    for name, site in sites.items():
        entries = ledger.read(site.state_dir).entries
        assert [entry.what for entry in entries] == ["counts", "round 1", "round 2"]
        for state, upto in zip(states[:2], (2, 3), strict=True):
            row = next(row for row in state.sites if row.site == name)
            assert row.epsilon == pytest.approx(epsilon([one.charge for one in entries[:upto]], 1e-5))


def test_the_loss_knows_the_class_counts_that_have_noise_alone(
    sites: dict[str, SiteConfig], make_study: MakeStudy, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, given = losses.of_study, []

    def noted(*args: Any) -> losses.Loss:
        given.append(tuple(args[2]))
        return real(*args)

    monkeypatch.setattr("client.answers.rounds.losses.of_study", noted)
    here = Here(sites)
    rounds(make_study(rounds=1, **PRIVATE), here)
    assert given == [answer.train_counts for answer in here.answers if isinstance(answer, wire.Enrolment)]


def test_the_report_and_status_say_what_was_spent(
    sites: dict[str, SiteConfig], make_study: MakeStudy, tmp_path: Path
) -> None:
    local = []
    for site, config in sites.items():
        path = tmp_path / f"{site}.yaml"
        path.write_bytes(to_yaml(config.model_dump(mode="json", exclude_none=True)))
        local.append(LocalSite(site, path))
    outcome = run_inline(make_study(rounds=2, **PRIVATE), local, tmp_path / "run", Inline(HostedTrainer))
    assert outcome.finished, outcome
    report = (tmp_path / "run" / "report.md").read_text()
    spent = epsilon(ledger.read(sites["north"].state_dir).charges(), 1e-5)
    assert f"| 2 | {spent:.3g} | {spent:.3g} |" in report
    assert f"epsilon {spent:.3g} at most (north {spent:.3g}, south {spent:.3g}), at delta 1e-05" in report
    shown = budget.lines(sites["north"].state_dir, LIMITS.privacy)
    assert shown[0] == f"privacy: epsilon {spent:.3g} spent, of 5, at delta 1e-05, in 3 charges"


@pytest.mark.parametrize(
    ("rules", "study", "why"),
    [
        ({"max_epsilon": 0.5}, {}, "would take more privacy than this site has left"),
        ({"max_epsilon": 50, "least_noise": 2.0}, {}, "the study's noise is 1.5"),
        ({"max_epsilon": 50}, {"privacy": None}, "the study has no privacy"),
    ],
)
def test_a_study_beyond_the_sites_limits_is_refused_before_anything_is_computed(
    make_site: MakeSite, make_study: MakeStudy, rules: dict[str, Any], study: dict[str, Any], why: str
) -> None:
    strict = {
        name: make_site(name, 4, policy=PolicyConfig(privacy=PrivacyPolicy(**rules)))
        for name in ("north", "south")
    }
    here = Here(strict)
    with pytest.raises(QuorumNotMet, match=why):
        enrol(make_study(**{**PRIVATE, **study}), here, None)
    assert not any(ledger.read(site.state_dir).entries for site in strict.values())
    assert here.trainers["north"]._setup is None


def test_rules_that_count_patients_in_a_step_need_the_sites_own_limits(
    make_site: MakeSite, make_study: MakeStudy
) -> None:
    counting = {name: make_site(name, 4, policy=PolicyConfig(min_batch=2)) for name in ("north", "south")}
    with pytest.raises(QuorumNotMet, match="the study draws patients by chance"):
        enrol(make_study(**PRIVATE), Here(counting), None)


def test_a_question_that_comes_again_costs_again_until_nothing_is_left(
    sites: dict[str, SiteConfig], make_study: MakeStudy
) -> None:
    study = make_study(rounds=1, **PRIVATE)
    rounds(study, Here(sites))
    first = ledger.read(sites["north"].state_dir)
    after = epsilon(first.charges(), 1e-5)
    tight = {
        name: site.model_copy(
            update={"policy": PolicyConfig(privacy=PrivacyPolicy(max_epsilon=after + 1e-6))}
        )
        for name, site in sites.items()
    }
    with pytest.raises(QuorumNotMet, match="more privacy than this site has left"):
        rounds(study, Here(tight))
    assert ledger.read(sites["north"].state_dir) == first


def test_a_ledger_put_back_from_an_older_copy_is_noticed(
    sites: dict[str, SiteConfig], make_study: MakeStudy
) -> None:
    path = sites["north"].state_dir / ledger.FILE
    rounds(make_study(rounds=1, **PRIVATE), Here(sites))
    path.write_bytes(path.read_bytes().splitlines(keepends=True)[0])
    here = Here(sites)
    with pytest.raises(QuorumNotMet):
        rounds(make_study(rounds=1, **PRIVATE), here)
    path.unlink()
    with pytest.raises(QuorumNotMet):
        rounds(make_study(rounds=1, **PRIVATE), Here(sites))


def test_a_state_dir_put_back_as_a_whole_is_noticed_by_a_witness_that_lies_elsewhere(
    sites: dict[str, SiteConfig], make_study: MakeStudy, tmp_path: Path
) -> None:
    """Ledger and audit log go back together, and fit. Two charges a study: its counts and its round."""
    witnessed = {
        name: site.model_copy(update={"ledger_witness": tmp_path / f"{name}.witness"})
        for name, site in sites.items()
    }
    state, backup = sites["north"].state_dir, tmp_path / "backup"
    rounds(make_study(rounds=1, **PRIVATE), Here(witnessed))
    shutil.copytree(state, backup)
    rounds(make_study(rounds=1, name="second", **PRIVATE), Here(witnessed))
    assert len(ledger.read(state).entries) == 4
    shutil.rmtree(state)
    shutil.copytree(backup, state)
    third = make_study(rounds=1, name="third", **PRIVATE)
    here = Here(witnessed)
    with pytest.raises(QuorumNotMet):
        rounds(third, here)
    assert {answer.error for answer in here.answers if isinstance(answer, wire.Failure)} == {"storage"}
    assert len(ledger.read(state).entries) == 2
    with pytest.raises(StorageError, match="has 2 charges, and ledger_witness has noted charge 4"):
        budget.lines(state, LIMITS.privacy, witnessed["north"].ledger_witness)
    rounds(third, Here(sites))  # without a witness nobody at the site can know
    assert len(ledger.read(state).entries) == 4


def test_a_witness_within_state_dir_is_none(sites: dict[str, SiteConfig]) -> None:
    north = sites["north"]
    with pytest.raises(ValidationError, match="lies in state_dir, and would be put back with it"):
        SiteConfig.model_validate({**north.model_dump(), "ledger_witness": north.state_dir / "witness"})


def test_a_trainer_that_dies_while_it_trains_has_charged_the_round(
    sites: dict[str, SiteConfig], make_study: MakeStudy, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("client.answers.rounds.fit.fit", die)
    with pytest.raises(KeyboardInterrupt):
        rounds(make_study(rounds=1, **PRIVATE), Here(sites))
    charged = [ledger.read(site.state_dir).entries for site in sites.values()]
    assert any(entry.what == "round 1" for entries in charged for entry in entries)


def test_noise_goes_under_masks(make_rostered: MakeSites, make_study: MakeStudy) -> None:
    made = make_rostered({"east": 6, "north": 6, "south": 6}, policy=LIMITS)
    masks: dict[str, Any] = {
        "sites": {"train": tuple(made)},
        "secure_aggregation": {"threshold": 2},
        "admission": {"max_norm_ratio": None},
        "aggregation": {"kind": "mean", "max_share": 1},
    }
    states = rounds(make_study(rounds=1, **PRIVATE, **masks), Here(made))
    assert [row.outcome for row in states[0].sites] == ["ok"] * 3
    assert all(row.epsilon is not None and row.train_loss is None for row in states[0].sites)
    for site in made.values():
        assert [entry.what for entry in ledger.read(site.state_dir).entries] == ["counts", "round 1"]


def test_who_approves_a_study_sees_what_it_costs(
    make_site: MakeSite, make_study: MakeStudy, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asking = {
        name: make_site(name, 4, policy=PolicyConfig(ask=True, privacy=PrivacyPolicy(max_epsilon=5.0)))
        for name in ("north", "south")
    }
    study = make_study(rounds=2, **PRIVATE)
    here = Here(asking)
    here.trainers["north"].answer(
        codec.to_bytes(wire.ApprovalPlan(plan_id="a", site="north", study=study, first_round=1))
    )
    (tmp_path / "north.yaml").write_bytes(to_yaml(asking["north"].model_dump(mode="json", exclude_none=True)))
    assert main(["pending", str(tmp_path / "north.yaml")]) == 0
    shown = capsys.readouterr().out
    assert f"costs each patient of a training site epsilon {budget.cost(study):.3g} at delta 1e-05" in shown
    assert not ledger.read(asking["north"].state_dir).entries


HEADS: Mapping[str, Any] = {
    **PRIVATE,
    "rounds": 0,
    "local": {},
    "privacy": {"kind": "dp_sgd", "heads": {"noise": 2.0, "max_feature_norm": 5.0}},
    "heads": {"federated": [
        {"kind": "nearest_mean", "scale": False},
        {"kind": "naive_bayes", "scale": False},
        {"kind": "lda", "scale": False, "pca": 4},
        {"kind": "ridge", "scale": False},
    ]},
}  # fmt: skip
WITH_HEADS = PolicyConfig(privacy=PrivacyPolicy(max_epsilon=5.0), heads=("federated.*",))


def on_disk(
    make_site: MakeSite, folder: Path, policy: PolicyConfig = WITH_HEADS
) -> tuple[dict[str, SiteConfig], list[LocalSite]]:
    """Two sites whose policy allows heads under privacy, and their YAML files in `folder`."""
    sites = {name: make_site(name, 20, policy=policy) for name in ("north", "south")}
    local = []
    for site, config in sites.items():
        path = folder / f"{site}.yaml"
        path.write_bytes(to_yaml(config.model_dump(mode="json", exclude_none=True)))
        local.append(LocalSite(site, path))
    return sites, local


def test_heads_are_made_of_sums_with_noise_and_no_round(
    make_site: MakeSite, make_study: MakeStudy, tmp_path: Path
) -> None:
    sites, local = on_disk(make_site, tmp_path)
    outcome = run_inline(make_study(**HEADS), local, tmp_path / "run", Inline(HostedTrainer))
    assert outcome.finished
    fitted = sorted(path.stem for path in (tmp_path / "run" / "heads").glob("*.safetensors"))
    assert fitted == [f"federated.{kind}" for kind in ("lda", "naive_bayes", "nearest_mean", "ridge")]
    # The counts of the enrolment and the sums of all heads together, once each.
    entries = ledger.read(sites["north"].state_dir).entries
    assert [entry.what.rpartition(" ")[0] or entry.what for entry in entries] == ["counts", "head sums"]
    spent = epsilon([Charge(20.0, 1.0, 1), Charge(2.0, 1.0, 1)], 1e-5)
    assert budget.cost(make_study(**HEADS)) == pytest.approx(spent)
    report = (tmp_path / "run" / "report.md").read_text()
    assert f"| heads | {spent:.3g} | {spent:.3g} |" in report
    assert f"epsilon {spent:.3g} at most (north {spent:.3g}, south {spent:.3g}), at delta 1e-05" in report
    assert "noise of 2 times" in report


def sums_plan(study: StudyConfig, cohort: Cohort, plan_id: str, **changes: Any) -> wire.HeadPlan:
    request = head_steps.noisy_request(study).model_copy(update=changes)
    return wire.HeadPlan(
        plan_id=plan_id,
        site="north",
        study=study,
        round=0,
        weights_digest=digest(cohort.weights),
        step=head_steps.StatisticsStep(views=(request,)),
        arrays=under("weights", cohort.weights),
    )


def test_a_server_that_asks_for_sums_again_gets_the_same_ones_and_no_others(
    make_site: MakeSite, make_study: MakeStudy
) -> None:
    sites = {name: make_site(name, 8, policy=WITH_HEADS) for name in ("north", "south")}
    here, study = Here(sites), make_study(**HEADS)
    cohort = enrol(study, here, None)

    def asked(plan: wire.HeadPlan) -> wire.Answer:
        answer = codec.from_bytes(here.trainers["north"].answer(codec.to_bytes(plan)))
        assert not isinstance(answer, wire.Plan)
        return answer

    first = asked(sums_plan(study, cohort, "a"))
    here.trainers["north"] = Trainer(sites["north"])  # which has forgotten what it answered
    again = asked(sums_plan(study, cohort, "b"))
    assert isinstance(first, wire.HeadAnswer)
    assert isinstance(again, wire.HeadAnswer)
    assert {*first.arrays} == {f"statistics/raw/{name}" for name in ("counts", "sums", "moments")}
    for name, array in first.arrays.items():
        np.testing.assert_array_equal(array, again.arrays[name])
    assert first.train_counts == cohort.enrolments["north"].train_counts
    assert first.seconds == 0
    for changes in ({"squares": True}, {"moments": "none"}, {"class_weights": (1.0, 2.0, 3.0)}):
        other = asked(sums_plan(study, cohort, f"c{len(changes)}", **changes))
        assert isinstance(other, wire.Failure)
        assert "sums in another form than the one with noise" in other.reason
    assert len(ledger.read(sites["north"].state_dir).entries) == 2


def test_weights_that_overflow_on_some_image_get_an_answer_and_are_charged(
    make_site: MakeSite, make_study: MakeStudy
) -> None:
    """A failure would say without noise, and for nothing, that the image is there."""
    policy = WITH_HEADS.model_copy(update={"own_first_weights": False})
    sites = {name: make_site(name, 8, policy=policy) for name in ("north", "south")}
    model = {"encoder": "test_vit", "image_size": 32}
    here, study = Here(sites), make_study(**{**HEADS, "model": model})
    cohort = enrol(study, here, None)
    huge = {
        name: np.full_like(array, 3e38) if name.endswith("norm.weight") else array
        for name, array in cohort.weights.items()
    }
    assert any((huge[name] != array).any() for name, array in cohort.weights.items())
    plan = sums_plan(study, cohort, "a").model_copy(
        update={"weights_digest": digest(huge), "arrays": under("weights", huge)}
    )
    answer = codec.from_bytes(here.trainers["north"].answer(codec.to_bytes(plan)))
    assert isinstance(answer, wire.HeadAnswer), answer
    assert all(np.isfinite(array).all() for array in answer.arrays.values())
    assert len(ledger.read(sites["north"].state_dir).entries) == 2


@pytest.mark.parametrize("where", ["heads", "scores"])
def test_noise_that_is_none_is_refused_when_the_study_is_read(where: str, make_study: MakeStudy) -> None:
    """The accountant would compute for ever, before a person is asked."""
    with pytest.raises(ValidationError, match="greater than or equal to"):
        make_study(
            **{**HEADS, "privacy": {**HEADS["privacy"], where: {"noise": 1e-154, "max_feature_norm": 1.0}}}
        )


def test_a_study_whose_heads_cost_too_much_is_refused_before_it_begins(
    make_site: MakeSite, make_study: MakeStudy
) -> None:
    # The counts alone cost 0.17, the sums with them 2.1.
    limits = PolicyConfig(privacy=PrivacyPolicy(max_epsilon=1.0), heads=("federated.*",))
    here = Here({name: make_site(name, 4, policy=limits) for name in ("north", "south")})
    with pytest.raises(QuorumNotMet, match="more privacy than this site has left"):
        enrol(make_study(**HEADS), here, None)


def test_scores_with_noise_leave_once_and_the_report_says_so(
    make_site: MakeSite, make_study: MakeStudy, tmp_path: Path
) -> None:
    # Noise of 3, which the usual budget has room for, now and then hides every test image of a site.
    policy = WITH_HEADS.model_copy(update={"privacy": PrivacyPolicy(max_epsilon=500.0)})
    sites, local = on_disk(make_site, tmp_path, policy)
    study = make_study(**{**HEADS, "privacy": {**HEADS["privacy"], "scores": {"noise": 0.3}}})
    outcome = run_inline(study, local, tmp_path / "run", Inline(HostedTrainer))
    assert outcome.finished
    entries = ledger.read(sites["north"].state_dir).entries
    assert [entry.what.rpartition(" ")[0] or entry.what for entry in entries] == [
        "counts", "scores", "head sums", "head scores",
    ]  # fmt: skip
    spent = epsilon([one.charge for one in entries], 1e-5)
    assert budget.cost(study) == pytest.approx(spent)
    report = (tmp_path / "run" / "report.md").read_text()
    assert "with noise of 0.3 on each cell of a confusion matrix" in report
    assert f"| heads | {spent:.3g} | {spent:.3g} |" in report
    cells = json.loads((tmp_path / "run" / "heads.json").read_text())[-1]["cells"]
    assert {"softmax", "federated.lda"} <= cells["north"].keys()
    assert cells["north"]["softmax"]["auroc"] is None
    assert cells["north"]["softmax"]["gain"] is None

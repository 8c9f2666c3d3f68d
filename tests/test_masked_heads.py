"""Heads of a study with secure aggregation: the bits of a study without, and no site's own sum at the server."""

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client.config import SiteConfig
from client.trainer import Trainer
from common import wire
from common.config import StudyConfig
from common.errors import QuorumNotMet
from common.heads import outliers
from common.masking.tables import sum_words
from common.weights import load_file
from common.wire import codec, head_steps
from server.conduct import conduct
from server.config import ServerConfig
from server.enrolment.cohort import enrol
from server.heads import fit
from server.heads.record import POOLED, read
from server.rounds.sites import Deadline, Reply
from server.state import RoundState

MakeSites = Callable[..., dict[str, SiteConfig]]
MakeStudy = Callable[..., StudyConfig]
Silent = Callable[[str, wire.Plan], bool]
NAMES = ("east", "north", "south")
LISTED: Mapping[str, Any] = {
    "federated": [
        {"kind": "nearest_mean"},
        {"kind": "naive_bayes", "pca": 4},
        {"kind": "lda", "shrinkage": [0.1, 0.5]},
        {"kind": "ridge", "scale": False},
        {"kind": "logistic", "c": 0.1, "most_messages": 4},
    ]
}
MASKS: Mapping[str, Any] = {
    "sites": {"train": NAMES, "required": 2},
    "rounds": 1,
    "secure_aggregation": {"threshold": 2},
    "admission": {"max_norm_ratio": None},
    "aggregation": {"kind": "mean", "max_share": 1},
    "deadlines": {"repeats": 1, "repeat_after_s": 0},
    "heads": LISTED,
}


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("common.log.start", lambda *_: None)


@pytest.fixture
def sites(make_rostered: MakeSites) -> dict[str, SiteConfig]:
    """Three sites of the tiny study, with a roster of their keys."""
    return make_rostered({"east": 7, "north": 6, "south": 5})


def never(site: str, plan: wire.Plan) -> bool:
    return False


class Watched:
    """Trainers in this process, of which some are silent for some messages, and what the server saw of them."""

    def __init__(self, sites: Mapping[str, SiteConfig], silent: Silent = never) -> None:
        self.trainers = {name: Trainer(site) for name, site in sites.items()}
        self.silent = silent
        self.answers: list[wire.Answer] = []
        self.plans: list[wire.Plan] = []

    def online(self) -> set[str]:
        return set(self.trainers)

    def ask(self, plans: Mapping[str, wire.Plan], deadline: Deadline) -> Iterator[Reply]:
        for site, plan in plans.items():
            if self.silent(site, plan):
                continue
            answer = codec.from_bytes(self.trainers[site].answer(codec.to_bytes(plan)))
            assert not isinstance(answer, wire.Plan)
            self.answers.append(answer)
            self.plans.append(plan)
            yield Reply(site, answer, 0.1)

    @property
    def sent(self) -> list[wire.HeadAnswer]:
        return [answer for answer in self.answers if isinstance(answer, wire.HeadAnswer)]


def conducted(study: StudyConfig, watched: Watched, folder: Path) -> Path:
    """The run's folder of a whole study."""
    folder.mkdir(exist_ok=True)
    (folder / "as-given.yaml").write_text(json.dumps(study.model_dump(mode="json")))
    config = ServerConfig(
        study=folder / "as-given.yaml",
        run_dir=folder / "run",
        node_ids={name: number for number, name in enumerate(study.sites.train, 1)},
    )
    conduct(config, watched, pause=lambda _: None)
    return folder / "run"


def fitted(
    study: StudyConfig,
    watched: "Watched | Refusing",
    record: Path | None = None,
) -> fit.Fitted:
    """The heads on the first weights, as at the end of a study."""
    cohort = enrol(study, watched, None)
    reference = cohort.reference
    state = RoundState(
        study.rounds + 1, cohort.weights, reference.layout, reference.preprocessing, closing=True
    )
    return fit.fit(study, watched, cohort, state, pause=lambda _: None, mask_record=record)


def bits(found: fit.Fitted) -> dict[str, bytes]:
    return {
        f"{head.form.title}/{name}": array.tobytes()
        for head in found.heads
        for name, array in head.arrays().items()
    }


# --- the same bits -------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_masked_study_has_the_heads_and_the_outlier_score_of_one_without_masks_bit_for_bit(
    sites: dict[str, SiteConfig], make_study: MakeStudy, tmp_path: Path
) -> None:
    asked = {
        **MASKS,
        "final_head": "federated_lda",
        "out_of_distribution": {"least_images": 20, "flagged": 0.5},
    }
    without = conducted(
        make_study(**{**asked, "secure_aggregation": None}), Watched(sites), tmp_path / "plain"
    )
    masked = conducted(make_study(**asked), Watched(sites), tmp_path / "masked")
    names = sorted(path.name for path in (without / "heads").iterdir())
    assert len(names) == 5
    assert names == sorted(path.name for path in (masked / "heads").iterdir())
    for name in names:
        there, here = (load_file(run / "heads" / name)[0] for run in (without, masked))
        assert {key: array.tobytes() for key, array in here.items()} == {
            key: array.tobytes() for key, array in there.items()
        }
    expected, found = read(without), read(masked)
    assert expected is not None
    assert found is not None
    assert list(found.cells) == [POOLED]
    assert [*found.together] == [*NAMES]
    assert found.lacking == {}
    for title, cell in found.cells[POOLED].items():
        plain = expected.cells[POOLED][title]
        assert (cell.num_images, cell.balanced_accuracy) == (plain.num_images, plain.balanced_accuracy)
        assert cell.gain is None
    assert "softmax" in found.cells[POOLED]
    (one, plain_record), (other, record) = (
        outliers.load(run, 3) or pytest.fail("no outlier score") for run in (without, masked)
    )
    assert {n: a.tobytes() for n, a in one.arrays().items()} == {
        n: a.tobytes() for n, a in other.arrays().items()
    }
    assert record.num_images == plain_record.num_images
    assert record.limit == pytest.approx(plain_record.limit) if plain_record.limit else record.limit is None
    assert (record.together, plain_record.together) == (NAMES, ())
    report = (masked / "report.md").read_text()
    assert "came under masks: the figures are of all of them together" in report
    assert "**The study's model predicts with federated.lda**" in report


@pytest.mark.slow
def test_a_study_whose_heads_wait_for_a_site_has_its_weights_and_is_resumed(
    sites: dict[str, SiteConfig], make_study: MakeStudy, tmp_path: Path
) -> None:
    asked = {**MASKS, "heads": None, "final_head": "federated_ridge"}
    with pytest.raises(QuorumNotMet, match="The weights are kept, and resume fits the heads again"):
        conducted(make_study(**asked), Watched(sites, _drops("north", _sum(2))), tmp_path / "masked")
    assert (tmp_path / "masked" / "run" / "weights.safetensors").is_file()
    run = conducted(make_study(**asked), Watched(sites), tmp_path / "masked")
    plain = conducted(make_study(**{**asked, "secure_aggregation": None}), Watched(sites), tmp_path / "plain")
    there, here = (load_file(folder / "heads" / "federated.ridge.safetensors")[0] for folder in (plain, run))
    assert {key: array.tobytes() for key, array in here.items()} == {
        key: array.tobytes() for key, array in there.items()
    }


# --- what the server sees ------------------------------------------------------------------------


def test_no_sum_count_or_score_of_one_site_leaves_it_in_clear(
    sites: dict[str, SiteConfig], make_study: MakeStudy
) -> None:
    own = Watched(sites)
    fitted(make_study(**{**MASKS, "secure_aggregation": None}), own)
    watched = Watched(sites)
    fitted(make_study(**MASKS), watched)
    assert {answer.step for answer in watched.sent} == {"statistics", "gradients", "score"}
    clear = {
        (answer.site, name): array
        for answer in own.sent
        for name, array in answer.arrays.items()
        if answer.step == "statistics"
    }
    assert clear
    num_compared = 0
    for answer in watched.sent:
        assert (answer.train_counts, answer.results, answer.outliers) == ((), (), None)
        assert answer.seconds % 10 == 0
        for name, words in answer.arrays.items():
            assert words.dtype == np.uint64
            if (answer.site, name) in clear:
                hidden = sum_words(name, clear[answer.site, name])
                assert not np.any(words == hidden)
                num_compared += 1
            if words.size >= 100:
                share = np.mean((words >> np.uint64(63)) & np.uint64(1))
                assert abs(share - 0.5) < 5 * 0.5 / np.sqrt(words.size), (name, share)
    assert num_compared >= 3 * 4


def test_the_bins_of_a_site_do_not_say_whether_a_head_could_be_scored(
    sites: dict[str, SiteConfig], make_study: MakeStudy
) -> None:
    """A site that can score no head rounds to as many bins as its policy says."""
    north = sites["north"]
    keeps_back = north.policy.model_copy(update={"histogram_bins": 7, "min_score_cell": 1000})
    watched = Watched({**sites, "north": north.model_copy(update={"policy": keeps_back})})
    fitted(make_study(**MASKS), watched)
    bins = [answer.score_bins for answer in watched.sent if (answer.site, answer.step) == ("north", "score")]
    assert bins
    assert set(bins) == {7}


# --- sites that are lost -------------------------------------------------------------------------


def _drops(site: str, what: Callable[[wire.Plan], bool], times: int = 10**6) -> Silent:
    left = [times]

    def silent(name: str, plan: wire.Plan) -> bool:
        if name != site or not what(plan) or not left[0]:
            return False
        left[0] -= 1
        return True

    return silent


def _mask(step: str, number: int) -> Callable[[wire.Plan], bool]:
    return lambda plan: (
        isinstance(plan, wire.MaskPlan)
        and (plan.phase, plan.step.kind, plan.round) == ("heads", step, number)
    )


def _sum(number: int) -> Callable[[wire.Plan], bool]:
    return lambda plan: isinstance(plan, wire.HeadPlan) and plan.mask_number == number


@pytest.mark.parametrize(
    ("what", "times", "counts"),
    [
        (_mask("keys", 1), 10**6, False),
        (_mask("shares", 1), 10**6, False),
        (_sum(1), 10**6, False),
        (_sum(1), 1, True),
        (_mask("reveal", 1), 10**6, True),
        (_mask("keys", 2), 1, True),
        (_sum(2), 1, True),
        (_mask("reveal", 3), 10**6, True),
    ],
    ids=[
        "before its keys", "before its shares", "before its sum", "until it is asked again", "before it helps to open",
        "for one message of a later sum", "for one later sum", "before it helps to open a later sum",
    ],
)  # fmt: skip
def test_a_site_that_is_lost_leaves_the_heads_of_the_others_or_is_asked_again(
    what: Callable[[wire.Plan], bool],
    times: int,
    counts: bool,
    sites: dict[str, SiteConfig],
    make_study: MakeStudy,
) -> None:
    def for_good(plan: wire.Plan) -> bool:
        """A site that missed the first sum is in none."""
        return what(plan) or (not counts and isinstance(plan, wire.HeadPlan))

    found = fitted(make_study(**MASKS), Watched(sites, _drops("north", for_good, times)))
    there = NAMES if counts else ("east", "south")
    plain = make_study(**{**MASKS, "secure_aggregation": None})
    silent = never if counts else _drops("north", lambda plan: isinstance(plan, wire.HeadPlan))
    assert bits(found) == bits(fitted(plain, Watched(sites, silent)))
    assert found.record.together == there


def test_a_site_that_is_lost_after_the_first_sum_is_waited_for_and_resume_has_the_heads(
    sites: dict[str, SiteConfig], make_study: MakeStudy, tmp_path: Path
) -> None:
    study, record = make_study(**MASKS), tmp_path / "opening.json"
    watched = Watched(sites, _drops("north", _sum(2)))
    with pytest.raises(
        QuorumNotMet, match=r"sums of different sites would show the difference, and north did not"
    ):
        fitted(study, watched, record)
    watched.silent = never
    again = fitted(study, watched, record)
    assert bits(again) == bits(fitted(make_study(**{**MASKS, "secure_aggregation": None}), Watched(sites)))
    # A server that forgot which sums there were is refused.
    with pytest.raises(QuorumNotMet, match="masks of step 1 are asked for after step"):
        fitted(study, watched)


def test_a_site_that_was_not_in_the_first_sum_is_in_no_later_one(
    sites: dict[str, SiteConfig], make_study: MakeStudy, tmp_path: Path
) -> None:
    study, record = make_study(**MASKS), tmp_path / "opening.json"
    watched = Watched(sites, _drops("north", _sum(1)))
    assert fitted(study, watched, record).record.together == ("east", "south")
    watched.silent = never
    assert fitted(study, watched, record).record.together == ("east", "south")


# --- what a server may not ask -------------------------------------------------------------------


def test_a_server_that_opens_a_later_sum_without_a_site_is_refused(
    sites: dict[str, SiteConfig], make_study: MakeStudy, tmp_path: Path
) -> None:
    study = make_study(**MASKS)
    watched = Watched(sites)
    fitted(study, watched)
    last = max(plan.mask_number for plan in watched.plans if isinstance(plan, wire.HeadPlan))
    # The record says that there were two sites, as a dishonest server would write.
    lie = {"study": study.fingerprint, "phase": "heads", "round": last, "announcements": {}, "envelopes": {}}
    (tmp_path / "opening-heads.json").write_text(json.dumps({**lie, "survivors": ["east", "south"]}))
    with pytest.raises(QuorumNotMet, match="0 site\\(s\\) helped to open the sum"):
        fitted(study, watched, tmp_path / "opening.json")
    refusals = [answer.reason for answer in watched.answers if isinstance(answer, wire.Failure)]
    assert any("of other sites than the first one for heads" in reason for reason in refusals)


def test_a_server_that_asks_something_else_under_the_same_masks_is_refused(
    sites: dict[str, SiteConfig], make_study: MakeStudy
) -> None:
    watched = Watched(sites)
    fitted(make_study(**MASKS), watched)
    trainer = Trainer(sites["east"])
    plans = [plan for plan in watched.plans if isinstance(plan, wire.HeadPlan) and plan.site == "east"]
    last = plans[-1]
    other = next(plan for plan in plans if isinstance(plan.step, head_steps.GradientsStep))
    assert isinstance(codec.from_bytes(trainer.answer(codec.to_bytes(last))), wire.HeadAnswer)
    swapped = other.model_copy(
        update={"plan_id": "again", "mask_number": last.mask_number, "envelopes": last.envelopes}
    )
    answer = codec.from_bytes(trainer.answer(codec.to_bytes(swapped)))
    assert isinstance(answer, wire.Failure)
    assert "masked before, for another question" in answer.reason


class Favouring(Watched):
    """A server that has all sites but north map their features to next to nothing: the sum would be north's."""

    def ask(self, plans: Mapping[str, wire.Plan], deadline: Deadline) -> Iterator[Reply]:
        return super().ask({site: self.emptied(site, plan) for site, plan in plans.items()}, deadline)

    def emptied(self, site: str, plan: wire.Plan) -> wire.Plan:
        if site == "north" or not isinstance(plan, wire.HeadPlan) or plan.mask_number != 2:
            return plan
        views = [name for name in plan.arrays if name.startswith("view/") and name.endswith("/scale")]
        assert views, "the second sum is of mapped features"
        nothing = {name: np.full_like(plan.arrays[name], 1e300) for name in views}
        return plan.model_copy(update={"arrays": {**plan.arrays, **nothing}})


def test_a_server_that_asks_one_site_for_another_sum_than_the_rest_reads_none(
    sites: dict[str, SiteConfig], make_study: MakeStudy
) -> None:
    """Model inconsistency (Pasquini et al. 2022): masks of pairs are for one question, and do not cancel here."""
    with pytest.raises(QuorumNotMet, match="the masked sum of east, north, south is of no such numbers"):
        fitted(make_study(**MASKS), Favouring(sites))


def test_a_step_that_was_refused_leaves_the_number_of_the_next_sum_to_a_server_that_is_started_again(
    sites: dict[str, SiteConfig], make_study: MakeStudy, tmp_path: Path
) -> None:
    study, record = make_study(**MASKS), tmp_path / "opening.json"

    def scores(plan: wire.Plan) -> bool:
        return isinstance(plan, wire.HeadPlan) and plan.step.kind == "score"

    watched = Watched(sites, _drops("south", scores))
    with pytest.raises(QuorumNotMet, match="and south did not answer"):
        fitted(study, Refusing(watched, "north"), record)
    watched.silent = never
    found = fitted(study, Refusing(watched, "north"), record)
    assert set(found.record.lacking) == {"federated.logistic"}
    assert found.record.together == NAMES


@pytest.mark.parametrize("changes", [{"envelopes": None}, {"mask_number": 0}])
def test_a_step_without_masks_is_refused(
    changes: dict[str, Any], sites: dict[str, SiteConfig], make_study: MakeStudy
) -> None:
    watched = Watched(sites)
    fitted(make_study(**MASKS), watched)
    plan = next(plan for plan in watched.plans if isinstance(plan, wire.HeadPlan))
    bare = plan.model_copy(update={"plan_id": "bare", **changes})
    answer = codec.from_bytes(watched.trainers[plan.site].answer(codec.to_bytes(bare)))
    assert isinstance(answer, wire.Failure)
    assert "masks come along or are missing" in answer.reason


def test_a_site_whose_policy_refuses_a_later_sum_costs_the_heads_of_that_sum(
    sites: dict[str, SiteConfig], make_study: MakeStudy
) -> None:
    study = make_study(**MASKS)
    found = fitted(study, Refusing(Watched(sites), "north"))
    assert set(found.record.lacking) == {"federated.logistic"}
    assert "north refused one" in found.record.lacking["federated.logistic"]
    assert {head.form.title for head in found.heads} == {
        "federated.nearest_mean", "federated.naive_bayes", "federated.lda", "federated.ridge",
    }  # fmt: skip


class Refusing:
    """Sites of which one refuses to send gradients."""

    def __init__(self, watched: Watched, site: str) -> None:
        self.watched, self.site = watched, site

    def online(self) -> set[str]:
        return self.watched.online()

    def ask(self, plans: Mapping[str, wire.Plan], deadline: Deadline) -> Iterator[Reply]:
        for reply in self.watched.ask(plans, deadline):
            plan = plans[reply.site]
            if reply.site == self.site and isinstance(plan, wire.HeadPlan) and plan.step.kind == "gradients":
                refusal = wire.Failure(
                    plan_id=plan.plan_id,
                    site=self.site,
                    error="policy",
                    case="",
                    advice="refused",
                    reason="min_cell",
                )
                yield Reply(self.site, refusal, 0.1)
            else:
                yield reply

"""Studies with secure aggregation in one process: the bits of a study without, and no site's update at the server."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client.answers.masks import require_roster
from client.config import SiteConfig
from client.hosted import HostedTrainer
from client.masking.session import Masks
from client.trainer import Trainer
from common import wire
from common.config import StudyConfig
from common.errors import PolicyRefusal, QuorumNotMet
from common.masking import roster
from common.masking.tables import IMAGES, score_words
from common.metrics import Score
from common.metrics.pooling import POOLED, total
from common.settings import to_yaml
from common.weights import digest, load_file
from common.wire import codec
from server.enrolment import census
from server.enrolment.cohort import enrol
from server.rounds.loop import run_rounds
from server.rounds.sites import Deadline, Reply
from server.simulation.engines import Inline
from server.simulation.inline import run_inline
from server.simulation.launch import LocalSite
from server.state import RoundState
from server.storage.history import read_rounds

MakeSites = Callable[..., dict[str, SiteConfig]]
MakeStudy = Callable[..., StudyConfig]
NAMES = ("east", "north", "south")
MASKS: Mapping[str, Any] = {
    "sites": {"train": NAMES},
    "secure_aggregation": {"threshold": 2},
    "admission": {"max_norm_ratio": None},
    "aggregation": {"kind": "mean", "max_share": 1},
}


@pytest.fixture
def sites(make_rostered: MakeSites) -> dict[str, SiteConfig]:
    """Three sites of the tiny study, with a roster of their keys."""
    return make_rostered({"east": 7, "north": 6, "south": 5})


def weights_after(
    name: str, study: StudyConfig, sites: Mapping[str, SiteConfig], tmp_path: Path, resume: bool = False
) -> str:
    """Digest of the weights that the study ends with."""
    local = []
    for site, config in sites.items():
        path = tmp_path / f"{site}.yaml"
        path.write_bytes(to_yaml(config.model_dump(mode="json", exclude_none=True)))
        local.append(LocalSite(site, path))
    outcome = run_inline(study, local, tmp_path / name, Inline(HostedTrainer), resume=resume)
    assert outcome.finished, outcome
    return digest(load_file(tmp_path / name / "weights.safetensors")[0])


def test_a_masked_study_ends_with_the_bits_of_the_one_without_masks(
    sites: dict[str, SiteConfig], make_study: MakeStudy, tmp_path: Path
) -> None:
    plain = {**MASKS, "secure_aggregation": None}
    without = weights_after("plain", make_study(rounds=2, **plain), sites, tmp_path)
    assert weights_after("masked", make_study(rounds=2, **MASKS), sites, tmp_path) == without
    there, here = (read_rounds(tmp_path / name) for name in ("plain", "masked"))
    assert len(there) == len(here) == 3
    for expected, found in zip(there, here, strict=True):
        for side in ("validation", "test"):
            seen, pooled = expected.on(side), found.on(side)
            if seen is None:
                assert pooled is None
                continue
            assert pooled is not None
            assert pooled.sites == {}
            assert pooled.pooled_only == NAMES
            assert pooled.pooled.confusion_CC == seen.pooled.confusion_CC
            assert pooled.pooled.figures.auroc_macro == seen.pooled.figures.auroc_macro
            assert pooled.pooled.figures.loss == pytest.approx(seen.pooled.figures.loss, abs=1e-6)
    each = census.load(tmp_path / "plain")
    together = census.load(tmp_path / "masked")
    assert each is not None
    assert together is not None
    assert together.totals is not None
    assert (together.sites, together.totals.sites) == ({}, NAMES)
    for side in ("train_counts", "validation_counts", "test_counts"):
        sums = [sum(column) for column in zip(*(getattr(s, side) for s in each.sites.values()), strict=True)]
        assert sums == [*getattr(together.totals, side)]
    report = (tmp_path / "masked" / "report.md").read_text()
    assert "| east, north, south | " in report
    assert "each site's own came under masks" in report
    assert "| **pooled only** |" in report
    assert "Pooled only: the scores of east, north and south came under masks" in report
    assert "Not in the table" not in report


class Watched:
    """Trainers in this process, of which some are silent for some messages, and what the server saw of them."""

    def __init__(self, sites: Mapping[str, SiteConfig], silent: Callable[[str, wire.Plan], bool]) -> None:
        self.trainers = {name: Trainer(site) for name, site in sites.items()}
        self.silent = silent
        self.answers: list[wire.Answer] = []
        self.plans: list[wire.Plan] = []

    def online(self) -> set[str]:
        return set(self.trainers)

    def ask(self, plans: Mapping[str, wire.Plan], deadline: Deadline) -> Iterator[Reply]:
        for site, plan in plans.items():
            answer = codec.from_bytes(self.trainers[site].answer(codec.to_bytes(plan)))
            assert not isinstance(answer, wire.Plan)
            self.answers.append(answer)
            self.plans.append(plan)
            if not self.silent(site, plan):
                yield Reply(site, answer, 0.1)


def after_one_round(
    study: StudyConfig,
    sites: Mapping[str, SiteConfig],
    silent: Callable[[str, wire.Plan], bool],
    record: Path | None = None,
) -> tuple[str, Watched]:
    """Digest of the weights after round 1, and who was asked."""
    watched = Watched(sites, silent)
    cohort = enrol(study, watched, None)
    start = RoundState(0, cohort.weights, cohort.reference.layout, cohort.reference.preprocessing)
    state = next(run_rounds(study, watched, cohort, start, pause=lambda _: None, mask_record=record))
    return digest(state.weights), watched


def never(site: str, plan: wire.Plan) -> bool:
    return False


LOSES: Mapping[str, Any] = {**MASKS, "sites": {"train": NAMES, "required": 2}}


def _drops(kind: type[wire.Plan], step: str | None = None) -> Callable[[str, wire.Plan], bool]:
    def silent(site: str, plan: wire.Plan) -> bool:
        if site != "north" or not isinstance(plan, kind):
            return False
        return step is None or (isinstance(plan, wire.MaskPlan) and plan.step.kind == step)

    return silent


@pytest.mark.parametrize(
    ("silent", "counts"),
    [
        (_drops(wire.MaskPlan, "keys"), False),
        (_drops(wire.MaskPlan, "shares"), False),
        (_drops(wire.RoundPlan), False),
        (_drops(wire.MaskPlan, "reveal"), True),
    ],
    ids=["before its keys", "before its shares", "before its answer", "before it helps to open the sum"],
)
def test_a_site_that_is_lost_leaves_the_sum_of_the_others(
    silent: Callable[[str, wire.Plan], bool],
    counts: bool,
    sites: dict[str, SiteConfig],
    make_study: MakeStudy,
) -> None:
    masked, _ = after_one_round(make_study(rounds=1, **LOSES), sites, silent)
    plain = make_study(rounds=1, **{**LOSES, "secure_aggregation": None})
    expected, _ = after_one_round(plain, sites, never if counts else _drops(wire.RoundPlan))
    assert masked == expected


def test_the_server_sees_no_number_of_a_single_site(
    sites: dict[str, SiteConfig], make_study: MakeStudy
) -> None:
    plain = make_study(rounds=1, **{**MASKS, "secure_aggregation": None})
    own = {
        answer.site: answer
        for answer in after_one_round(plain, sites, never)[1].answers
        if isinstance(answer, wire.RoundAnswer)
    }
    _, watched = after_one_round(make_study(rounds=1, **MASKS), sites, never)
    answers = [answer for answer in watched.answers if isinstance(answer, wire.RoundAnswer)]
    assert len(answers) == 3
    for answer in answers:
        assert answer.train_loss is None
        assert not answer.scores
        # Nor the number of images, nor what follows from it.
        assert (answer.num_examples, answer.num_steps) == (0, 0)
        assert answer.train_s % 10 == answer.evaluate_s % 10 == 0
        assert own[answer.site].num_examples not in answer.delta[IMAGES].tolist()
        for name, words in answer.delta.items():
            assert words.dtype == np.uint64
            if words.size < 100:
                continue
            for bit in (0, 31, 63):  # each is set in about half of the words, whatever is below the mask
                share = np.mean((words >> np.uint64(bit)) & np.uint64(1))
                assert abs(share - 0.5) < 5 * 0.5 / np.sqrt(words.size), (name, bit, share)
            if name.startswith("scores/"):
                continue
            clear = (words[0].view(np.int64) / 2.0**12 / own[answer.site].num_examples).ravel()
            seen = own[answer.site].delta[name].ravel()
            if seen.std():
                assert abs(np.corrcoef(clear, seen)[0, 1]) < 5 / np.sqrt(clear.size)
    enrolments = [answer for answer in watched.answers if isinstance(answer, wire.Enrolment)]
    assert len(enrolments) == 3
    for enrolment in enrolments:
        assert enrolment.train_counts == enrolment.validation_counts == enrolment.test_counts == ()
        assert enrolment.images is None


def closing(
    study: StudyConfig,
    sites: Mapping[str, SiteConfig],
    silent: Callable[[str, wire.Plan], bool],
    record: Path | None = None,
) -> RoundState:
    """The closing evaluation, after the rounds."""
    watched = Watched(sites, silent)
    cohort = enrol(study, watched, None)
    start = RoundState(0, cohort.weights, cohort.reference.layout, cohort.reference.preprocessing)
    *_, last = run_rounds(study, watched, cohort, start, pause=lambda _: None, mask_record=record)
    return last


@pytest.mark.parametrize(("step", "counts"), [(None, False), ("shares", False), ("reveal", True)])
def test_a_site_that_is_lost_in_the_closing_evaluation_is_missing_in_its_scores_alone(
    step: str | None, counts: bool, sites: dict[str, SiteConfig], make_study: MakeStudy
) -> None:
    def silent(site: str, plan: wire.Plan) -> bool:
        if site != "north" or not isinstance(plan, wire.RoundPlan | wire.MaskPlan) or plan.phase != "scoring":
            return False
        return isinstance(plan, wire.RoundPlan) if step is None else _drops(wire.MaskPlan, step)(site, plan)

    last = closing(make_study(rounds=1, **LOSES), sites, silent)
    there = ("east", "north", "south") if counts else ("east", "south")
    plain = closing(make_study(rounds=1, **{**LOSES, "secure_aggregation": None}), sites, never)
    assert last.test_scores.keys() == {POOLED}
    expected = total({site: plain.test_scores[site] for site in there})
    assert np.array_equal(last.test_scores[POOLED].histogram_C2B, expected.histogram_C2B)


def test_a_server_that_asks_for_one_sites_scores_gets_none(
    sites: dict[str, SiteConfig], make_study: MakeStudy
) -> None:
    """The plan without masks, the masks of the round before, and a second sum of the same weights."""
    study = make_study(rounds=1, **LOSES)
    _, watched = after_one_round(study, sites, never)
    plans = [plan for plan in watched.plans if isinstance(plan, wire.RoundPlan)]
    trained = next(plan for plan in plans if plan.site == "north")

    def reason(plan: wire.Plan) -> str:
        answer = codec.from_bytes(watched.trainers["north"].answer(codec.to_bytes(plan)))
        assert isinstance(answer, wire.Failure)
        return answer.reason

    changes: dict[str, Any] = {"plan_id": "p", "train": False, "round": 2, "score": ("test",)}
    scored = trained.model_copy(update=changes)
    assert "masks of round 2 are needed, and this site has none" in reason(scored)
    assert "masks come along or are missing" in reason(scored.model_copy(update={"envelopes": None}))
    before = wire.RevealStep(survivors=("north", "south"))
    again = wire.MaskPlan(plan_id="q", site="north", study=study, round=1, step=before)
    assert "was opened before, of other sites" in reason(again)


class Favouring(Watched):
    """A server that gives all sites but north weights from which nothing is learned, so that the sum is north's."""

    def ask(self, plans: Mapping[str, wire.Plan], deadline: Deadline) -> Iterator[Reply]:
        return super().ask({site: self.emptied(site, plan) for site, plan in plans.items()}, deadline)

    def emptied(self, site: str, plan: wire.Plan) -> wire.Plan:
        if site == "north" or not isinstance(plan, wire.RoundPlan):
            return plan
        zeros = {name: np.zeros_like(array) for name, array in plan.weights.items()}
        return plan.model_copy(update={"weights": zeros})


def test_a_server_that_gives_one_site_other_weights_than_the_rest_reads_no_sum(
    sites: dict[str, SiteConfig], make_study: MakeStudy
) -> None:
    """Model inconsistency (Pasquini et al. 2022): masks of pairs are for one question, and do not cancel here."""
    study = make_study(rounds=1, **MASKS)
    server = Favouring(sites, never)
    cohort = enrol(study, server, None)
    start = RoundState(0, cohort.weights, cohort.reference.layout, cohort.reference.preprocessing)
    with pytest.raises(QuorumNotMet, match="sent wrong shares or wrong numbers"):
        next(run_rounds(study, server, cohort, start, pause=lambda _: None))


def test_a_site_that_sends_wrong_counts_costs_the_round_its_scores_and_not_its_update(
    sites: dict[str, SiteConfig], make_study: MakeStudy, monkeypatch: pytest.MonkeyPatch
) -> None:
    good, _ = after_one_round(make_study(rounds=1, **MASKS), sites, never)
    other = make_study(rounds=1, name="other", **MASKS)

    def wrong(score: Score) -> Any:
        words = score_words(score)
        words[0] += np.uint64(3)
        return words

    monkeypatch.setattr("client.answers.masks.score_words", wrong)
    watched = Watched(sites, never)
    cohort = enrol(other, watched, None)
    start = RoundState(0, cohort.weights, cohort.reference.layout, cohort.reference.preprocessing)
    state = next(run_rounds(other, watched, cohort, start, pause=lambda _: None))
    assert state.scores == {}
    assert [row.outcome for row in state.sites] == ["ok"] * 3
    assert digest(state.weights) == good


def test_too_few_sites_end_the_study_and_keep_its_weights(
    sites: dict[str, SiteConfig], make_study: MakeStudy
) -> None:
    def silent(site: str, plan: wire.Plan) -> bool:
        return site != "east" and isinstance(plan, wire.MaskPlan)

    with pytest.raises(
        QuorumNotMet, match=r"1 site\(s\) have masks, 2 are required .*north: no answer about masks"
    ):
        after_one_round(make_study(rounds=1, **LOSES), sites, silent)


def test_a_site_without_a_roster_says_what_it_lacks_and_the_others_go_on(
    sites: dict[str, SiteConfig], make_study: MakeStudy, caplog: pytest.LogCaptureFixture
) -> None:
    sites["north"] = sites["north"].model_copy(update={"roster": None})
    _, watched = after_one_round(make_study(rounds=1, **LOSES), sites, never)
    failures = [answer for answer in watched.answers if isinstance(answer, wire.Failure)]
    assert [failure.site for failure in failures] == ["north"]
    assert failures[0].reason == (
        "roster: the study has secure aggregation, and this site has no list of the sites' keys with its own in it"
    )


def test_a_key_that_is_not_the_sites_own_is_no_roster(sites: dict[str, SiteConfig], tmp_path: Path) -> None:
    for keys, problem in (
        ({"north": "a" * 64, "south": "b" * 64}, "roster.yaml has another key for north"),
        ({"east": "a" * 64, "south": "b" * 64}, "roster.yaml has no key for north"),
        ({"north": "a" * 64}, "sites: "),
    ):
        (tmp_path / "roster.yaml").write_bytes(to_yaml({"sites": keys}))
        with pytest.raises(PolicyRefusal, match=problem):
            require_roster(sites["north"])


def test_a_plan_without_masks_is_refused_in_a_study_that_has_them(
    sites: dict[str, SiteConfig], make_study: MakeStudy
) -> None:
    study = make_study(rounds=1, **MASKS)
    watched = Watched(sites, never)
    start = enrol(study, watched, None)
    plan = wire.RoundPlan(plan_id="p", site="north", study=study, round=1, train=True, weights=start.weights)
    answer = codec.from_bytes(watched.trainers["north"].answer(codec.to_bytes(plan)))
    assert isinstance(answer, wire.Failure)
    assert "masks come along or are missing, against the study" in answer.reason


def test_a_site_may_send_updates_under_masks_only(
    sites: dict[str, SiteConfig], make_study: MakeStudy
) -> None:
    rules = sites["north"].policy.model_copy(update={"only_masked": True})
    trainer = Trainer(sites["north"].model_copy(update={"policy": rules}))
    for study, refused in (
        (make_study(rounds=1, **{**MASKS, "secure_aggregation": None}), True),
        (make_study(rounds=1, **MASKS), False),
    ):
        plan = wire.EnrolPlan(plan_id=study.fingerprint[:8], site="north", study=study, want_weights=False)
        answer = codec.from_bytes(trainer.answer(codec.to_bytes(plan)))
        assert isinstance(answer, wire.Failure) == refused
        if isinstance(answer, wire.Failure):
            assert answer.reason == "only_masked: the study has no secure_aggregation"


def test_a_site_opens_no_sum_of_fewer_sites_than_the_study_goes_on_with(
    sites: dict[str, SiteConfig], make_study: MakeStudy
) -> None:
    """Else a server could leave out a site at will, and the difference of two sums would be its update."""
    study = make_study(rounds=1, **MASKS)  # all three are required
    trainer = Trainer(sites["north"])

    def asked(kind: type[wire.MaskPlan] | type[wire.EnrolPlan], **fields: Any) -> wire.Answer:
        plan = kind(plan_id=str(len(str(fields))), site="north", study=study, **fields)
        answer = codec.from_bytes(trainer.answer(codec.to_bytes(plan)))
        assert not isinstance(answer, wire.Plan)
        return answer

    asked(wire.EnrolPlan, want_weights=False)
    own = asked(wire.MaskPlan, round=1, step=wire.KeysStep())
    assert isinstance(own, wire.MaskAnswer)
    assert own.keys is not None
    south = Masks(sites["south"].state_dir, "south", study.fingerprint, 2, sites=NAMES)
    identity = roster.load_identity(sites["south"].state_dir / roster.IDENTITY)
    two = {"north": own.keys, "south": south.announce(1, identity)}
    answer = asked(wire.MaskPlan, round=1, step=wire.SharesStep(announcements=two))
    assert isinstance(answer, wire.Failure)
    assert "a sum of 2 site(s) is asked for, which is too few" in answer.reason


def test_an_audit_log_tells_whose_shares_left_and_none_of_the_secrets(
    sites: dict[str, SiteConfig], make_study: MakeStudy
) -> None:
    _, watched = after_one_round(make_study(rounds=1, **LOSES), sites, _drops(wire.RoundPlan))
    log = (sites["south"].state_dir / "audit.jsonl").read_text()
    assert '"seeds_of":["east","south"],"keys_of":["north"]' in log.replace(": ", ":").replace(", ", ",")
    revealed = [
        share
        for answer in watched.answers
        if isinstance(answer, wire.MaskAnswer)
        for share in (*answer.seed_shares.values(), *answer.key_shares.values())
    ]
    assert len(revealed) == 6
    for site in sites.values():
        text = (site.state_dir / "audit.jsonl").read_text()
        assert not any(share in text for share in revealed)


class Killed(Exception):
    """The server's process is gone."""


def _killed_at(kind: str, after: int = 0) -> Callable[[str, wire.Plan], bool]:
    """Ends the server when the answer number `after` to this step comes in."""
    heard = []

    def silent(site: str, plan: wire.Plan) -> bool:
        if isinstance(plan, wire.MaskPlan) and plan.step.kind == kind:
            heard.append(site)
            if len(heard) > after:
                raise Killed
        return False

    return silent


def test_a_server_that_dies_before_a_sum_is_opened_has_the_round_masked_again(
    sites: dict[str, SiteConfig], make_study: MakeStudy
) -> None:
    study = make_study(rounds=1, **MASKS)
    with pytest.raises(Killed):
        after_one_round(study, sites, _killed_at("shares"))
    masked, _ = after_one_round(study, sites, never)  # trainers and server were started again
    plain, _ = after_one_round(make_study(rounds=1, **{**MASKS, "secure_aggregation": None}), sites, never)
    assert masked == plain


@pytest.mark.parametrize("gone", [None, "north"], ids=["of all", "of those that stayed"])
def test_a_server_that_dies_while_a_sum_is_opened_opens_the_same_sum_when_it_is_back(
    gone: str | None, sites: dict[str, SiteConfig], make_study: MakeStudy, tmp_path: Path
) -> None:
    study = make_study(rounds=1, **LOSES)
    lost = never if gone is None else _drops(wire.RoundPlan)
    killed = _killed_at("reveal", after=1)  # one site has given its shares out
    with pytest.raises(Killed):
        after_one_round(
            study, sites, lambda site, plan: lost(site, plan) or killed(site, plan), tmp_path / "record"
        )
    masked, watched = after_one_round(study, sites, never, tmp_path / "record")
    trained = {answer.site for answer in watched.answers if isinstance(answer, wire.RoundAnswer)}
    assert trained == set(NAMES) - {gone}
    plain, _ = after_one_round(make_study(rounds=1, **{**LOSES, "secure_aggregation": None}), sites, lost)
    assert masked == plain


def test_a_sum_that_was_being_opened_waits_for_all_of_its_sites(
    sites: dict[str, SiteConfig], make_study: MakeStudy, tmp_path: Path
) -> None:
    study = make_study(rounds=1, **LOSES)
    with pytest.raises(Killed):
        after_one_round(study, sites, _killed_at("reveal", after=1), tmp_path / "record")
    with pytest.raises(QuorumNotMet, match=r"the answer of north is missing now\. Resume the study when"):
        after_one_round(study, sites, _drops(wire.RoundPlan), tmp_path / "record")
    masked, _ = after_one_round(study, sites, never, tmp_path / "record")
    plain, _ = after_one_round(make_study(rounds=1, **{**LOSES, "secure_aggregation": None}), sites, never)
    assert masked == plain


def test_sites_mask_no_round_again_whose_sum_was_opened(
    sites: dict[str, SiteConfig], make_study: MakeStudy
) -> None:
    study = make_study(rounds=1, **MASKS)
    with pytest.raises(Killed):
        after_one_round(study, sites, _killed_at("reveal", after=2))
    with pytest.raises(QuorumNotMet, match="the sum of round 1 was opened, its masks are not made again"):
        after_one_round(study, sites, never)  # a server that lost its record


def test_a_study_goes_on_after_a_round_with_trainers_that_were_started_again(
    sites: dict[str, SiteConfig], make_study: MakeStudy
) -> None:
    digests = []
    for masks in (MASKS["secure_aggregation"], None):
        study = make_study(rounds=2, **{**MASKS, "secure_aggregation": masks})
        watched = Watched(sites, never)
        cohort = enrol(study, watched, None)
        start = RoundState(0, cohort.weights, cohort.reference.layout, cohort.reference.preprocessing)
        first = next(run_rounds(study, watched, cohort, start, pause=lambda _: None))
        again = Watched(sites, never)
        cohort = enrol(study, again, first.weights, first_round=2)
        digests.append(digest(next(run_rounds(study, again, cohort, first, pause=lambda _: None)).weights))
    assert digests[0] == digests[1]

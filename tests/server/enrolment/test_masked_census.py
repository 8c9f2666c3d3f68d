"""The census under masks: sums of the sites' counts reach the server, and no site's own."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from client.answers import enrolment as enrolments
from client.answers.census import kept
from client.governance.contract import Contract
from client.masking.session import Masks
from common import wire
from common.config import StudyConfig
from common.errors import ConfigError, PolicyRefusal, QuorumNotMet, SiteDataError
from common.masking import roster
from common.masking.tables import CENSUS, IMAGES, image_sums
from common.wire import questions
from server.aggregation.masked_mean import MaskedMean
from server.aggregation.update import AdmittedUpdate
from server.enrolment import census
from server.enrolment.cohort import enrol
from server.enrolment.masked_census import counted
from server.report import census_table
from server.report.markdown import markdown
from server.report.outcome import Outcome
from server.rounds.loop import compare_with_census
from server.rounds.plans import round_plans
from server.rounds.selection import require_validation
from server.rounds.sites import Deadline, Reply
from server.state import Cohort, RoundState, Totals

MakeStudy = Callable[..., StudyConfig]
NAMES = ("a", "b", "c")
MASKS: dict[str, Any] = {
    "sites": {"train": NAMES, "required": 2},
    "secure_aggregation": {"threshold": 2},
    "admission": {"max_norm_ratio": None},
    "deadlines": {"repeats": 1, "repeat_after_s": 0},
}
COUNTS = {
    # three classes: for training, validation and test
    "a": (10, 20, 30, 1, 2, 3, 4, 5, 6),
    "b": (100, 0, 0, 0, 0, 0, 0, 0, 7),
    "c": (0, 0, 1, 0, 1, 0, 2, 0, 0),
}
IDENTITIES = {name: Ed25519PrivateKey.from_private_bytes(bytes([n] * 32)) for n, name in enumerate(NAMES, 1)}
ROSTER = {name: roster.public_key(identity) for name, identity in IDENTITIES.items()}
Silent = Callable[[str, wire.MaskPlan], bool]


def never(site: str, plan: wire.MaskPlan) -> bool:
    return False


class Counting:
    """Sites that mask their counts, some of them silent for some messages, and what the server saw of them."""

    def __init__(
        self, folder: Path, study: StudyConfig, counts: Mapping[str, Sequence[int]] = COUNTS
    ) -> None:
        self.folder, self.study, self.counts = folder, study, counts
        self.silent: Silent = never
        self.plans: list[wire.MaskPlan] = []
        self.answers: list[wire.Answer] = []

    def online(self) -> set[str]:
        return set(NAMES)

    def ask(self, plans: Mapping[str, wire.Plan], deadline: Deadline) -> Iterator[Reply]:
        for site, plan in plans.items():
            assert isinstance(plan, wire.MaskPlan)
            self.plans.append(plan)
            if self.silent(site, plan):
                continue
            try:
                answer: wire.Answer = self.answer(site, plan)
            except PolicyRefusal as refusal:
                answer = wire.Failure(
                    plan_id=plan.plan_id,
                    site=site,
                    error="policy",
                    case="",
                    advice="no",
                    reason=refusal.reason,
                )
            self.answers.append(answer)
            yield Reply(site, answer, 0.0)

    def answer(self, site: str, plan: wire.MaskPlan) -> wire.MaskAnswer:
        masks = Masks(
            self.folder / site,
            site,
            self.study.fingerprint,
            2,
            sites=self.study.sites.train,
            phase=plan.phase,
        )
        answer = wire.MaskAnswer(plan_id=plan.plan_id, site=site, round=plan.round)
        match plan.step:
            case wire.KeysStep():
                return answer.model_copy(update={"keys": masks.announce(plan.round, IDENTITIES[site])})
            case wire.SharesStep(announcements=announcements):
                envelopes = masks.seal(plan.round, announcements, ROSTER)
                return answer.model_copy(update={"envelopes": envelopes})
            case wire.CensusStep(envelopes=envelopes):
                words = np.array(self.counts[site], np.uint64)
                hidden = masks.mask(plan.round, questions.CENSUS, envelopes, {}, 0, {CENSUS: words})
                return answer.model_copy(update={"census": tuple(hidden[CENSUS].tolist())})
            case wire.RevealStep(survivors=survivors):
                seeds, keys = masks.reveal(plan.round, survivors)
                return answer.model_copy(update={"seed_shares": seeds, "key_shares": keys})


def enrolment(site: str, **more: Any) -> wire.Enrolment:
    return wire.Enrolment(
        plan_id="e", site=site, layout={}, weights_digest="a", frozen_digest="b", preprocessing={},
        train_counts=(), validation_counts=(), test_counts=(), device="cpu", weights={}, **more,
    )  # fmt: skip


COHORT = Cohort({name: enrolment(name) for name in NAMES}, {})


def taken(sites: Counting, run: Path, cohort: Cohort = COHORT) -> Cohort:
    run.mkdir(exist_ok=True)
    return counted(sites.study, sites, cohort, run, lambda _: None)


def loses(step: str, times: int = 99) -> Silent:
    """`c` does not answer this step, so often."""
    left = [times]

    def silent(site: str, plan: wire.MaskPlan) -> bool:
        if site != "c" or plan.step.kind != step or not left[0]:
            return False
        left[0] -= 1
        return True

    return silent


def sums(*names: str) -> tuple[int, ...]:
    return tuple(sum(column) for column in zip(*(COUNTS[name] for name in names), strict=True))


def all_sides(totals: Totals | None) -> tuple[int, ...]:
    assert totals is not None
    return (*totals.train_counts, *totals.validation_counts, *totals.test_counts)


def test_the_server_learns_the_sums_of_all_sites(tmp_path: Path, make_study: MakeStudy) -> None:
    cohort = taken(Counting(tmp_path, make_study(**MASKS)), tmp_path / "run")
    assert cohort.totals is not None
    # 10 + 100 + 0, 20 + 0 + 0, 30 + 0 + 1
    assert cohort.totals.train_counts == (110, 20, 31)
    assert cohort.totals.validation_counts == (1, 3, 3)
    assert cohort.totals.test_counts == (6, 5, 13)
    assert (cohort.totals.sites, [*cohort.enrolments], cohort.absent) == (NAMES, [*NAMES], {})


def test_a_study_that_is_run_again_with_the_same_sites_says_what_to_change(
    tmp_path: Path, make_study: MakeStudy
) -> None:
    sites = Counting(tmp_path, make_study(**MASKS))
    taken(sites, tmp_path / "run")
    with pytest.raises(QuorumNotMet) as caught:
        taken(sites, tmp_path / "again")
    assert str(caught.value).startswith(
        "a, b, c counted images for a study of this name and these settings before, and no site opens two sums of one "
        "study: resume that run; or give this study another name or another seed; or, in a simulation, make the sites "
        "again in another folder. census: 0 site(s) have masks, 2 are required (a: "
    )
    keys = [make_study(**MASKS, **changes).fingerprint for changes in ({}, {"name": "other"}, {"seed": 4})]
    assert len({*keys}) == 3  # a site keeps its sums by it


@settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(table=st.lists(st.lists(st.integers(0, 10**8), min_size=9, max_size=9), min_size=3, max_size=3))
def test_masked_counts_add_up_to_the_plain_ones(
    table: list[list[int]], tmp_path_factory: pytest.TempPathFactory, make_study: MakeStudy
) -> None:
    folder = tmp_path_factory.mktemp("census")
    sites = Counting(folder, make_study(**MASKS), dict(zip(NAMES, table, strict=True)))
    totals = taken(sites, folder / "run").totals
    assert all_sides(totals) == tuple(sum(column) for column in zip(*table, strict=True))


def test_no_field_of_any_message_has_a_number_of_one_site(tmp_path: Path, make_study: MakeStudy) -> None:
    """The counts are numbers that nothing else in a message is: over a million each."""
    counts = {
        name: tuple(1_000_000 * (10 * place + side + 1) + 7 for side in range(9))
        for place, name in enumerate(NAMES)
    }
    sites = Counting(tmp_path, make_study(**MASKS), counts)
    totals = taken(sites, tmp_path / "run").totals
    assert all_sides(totals) == tuple(sum(column) for column in zip(*counts.values(), strict=True))
    assert len(sites.answers) == 12  # keys, shares, counts, and what opens the sum
    own = {count for one in counts.values() for count in one}
    for answer in sites.answers:
        sent = json.loads(answer.model_dump_json())
        assert not own & set(_numbers(sent)), sent
        for words in [answer.census] if isinstance(answer, wire.MaskAnswer) and answer.census else []:
            # 9 words below 2**56 have a chance of 2**-72 under masks.
            assert max(words) > 2**56


def _numbers(value: Any) -> Iterator[int]:
    if isinstance(value, dict):
        for one in value.values():
            yield from _numbers(one)
    elif isinstance(value, list):
        for one in value:
            yield from _numbers(one)
    elif isinstance(value, int):
        yield value


@pytest.mark.parametrize(
    ("silent", "there"),
    [
        (loses("keys"), ("a", "b")),
        (loses("shares"), ("a", "b")),
        (loses("census"), ("a", "b")),
        (loses("census", times=1), NAMES),
        (loses("reveal"), NAMES),
    ],
    ids=["keys", "shares", "counts", "counts, once", "reveal"],
)
def test_a_site_that_is_lost_in_the_census_takes_no_part(
    silent: Silent, there: tuple[str, ...], tmp_path: Path, make_study: MakeStudy
) -> None:
    sites = Counting(tmp_path, make_study(**MASKS))
    sites.silent = silent
    cohort = taken(sites, tmp_path / "run")
    assert all_sides(cohort.totals) == sums(*there)
    assert tuple(cohort.enrolments) == there
    assert cohort.absent.keys() == set(NAMES) - set(there)
    assert all("no answer about masks" in reason for reason in cohort.absent.values())


def test_too_few_sites_end_the_study_before_anything_is_opened(tmp_path: Path, make_study: MakeStudy) -> None:
    sites = Counting(tmp_path, make_study(**MASKS))
    sites.silent = lambda site, plan: site != "a" and plan.step.kind == "census"
    with pytest.raises(
        QuorumNotMet, match=r"^census: 1 site\(s\) sent masked counts, 2 are required \(b: no"
    ):
        taken(sites, tmp_path / "run")
    assert not [plan for plan in sites.plans if plan.step.kind == "reveal"]


def test_a_resumed_study_keeps_its_census_and_asks_for_no_other(
    tmp_path: Path, make_study: MakeStudy
) -> None:
    """A site that comes later would show what it has, as the difference of two sums."""
    sites = Counting(tmp_path, make_study(**MASKS))
    sites.silent = loses("census")
    first = taken(sites, tmp_path / "run")
    sites.silent, asked = never, len(sites.plans)
    again = taken(sites, tmp_path / "run")
    assert len(sites.plans) == asked
    assert again.totals == first.totals
    assert again.absent == {"c": "it is not in the study's census, which is taken once under masks"}
    only_b = Cohort({"b": enrolment("b")}, {}, {"a": "it did not connect"})
    with pytest.raises(QuorumNotMet, match=r"1 of 3 training sites can take part.*a: it did not connect"):
        taken(sites, tmp_path / "run", only_b)


def test_sites_give_no_second_census(tmp_path: Path, make_study: MakeStudy) -> None:
    sites = Counting(tmp_path, make_study(**MASKS))
    taken(sites, tmp_path / "run")
    with pytest.raises(QuorumNotMet, match="was opened, its masks are not made again"):
        taken(sites, tmp_path / "another")


def test_a_replayed_question_gets_the_same_words_and_another_list_of_sites_none(
    tmp_path: Path, make_study: MakeStudy
) -> None:
    sites = Counting(tmp_path, make_study(**MASKS))
    taken(sites, tmp_path / "run")
    asked = next(plan for plan in sites.plans if plan.step.kind == "census" and plan.site == "a")
    words = next(one.census for one in sites.answers if isinstance(one, wire.MaskAnswer) and one.census)
    assert sites.answer("a", asked).census == words
    assert isinstance(asked.step, wire.CensusStep)
    fewer = wire.CensusStep(envelopes={"b": asked.step.envelopes["b"]})
    with pytest.raises(PolicyRefusal, match="masked before, with other sites"):
        sites.answer("a", asked.model_copy(update={"step": fewer}))
    opened = asked.model_copy(update={"step": wire.RevealStep(survivors=("a", "b"))})
    with pytest.raises(PolicyRefusal, match="opened before, of other sites"):
        sites.answer("a", opened)


def test_a_server_that_dies_while_it_opens_the_census_opens_the_same_one(
    tmp_path: Path, make_study: MakeStudy
) -> None:
    class Killed(Exception):
        pass

    def dies(site: str, plan: wire.MaskPlan) -> bool:
        if plan.step.kind == "reveal" and site == "b":
            raise Killed
        return False

    sites = Counting(tmp_path, make_study(**MASKS))
    sites.silent = dies
    with pytest.raises(Killed):
        taken(sites, tmp_path / "run")
    sites.silent = never
    assert all_sides(taken(sites, tmp_path / "run").totals) == sums(*NAMES)


def test_counts_that_no_site_can_have_end_the_study(tmp_path: Path, make_study: MakeStudy) -> None:
    wrong = {**COUNTS, "b": (2**63, *COUNTS["b"][1:])}
    with pytest.raises(QuorumNotMet, match="census: the sums are of no counts of images"):
        taken(Counting(tmp_path, make_study(**MASKS), wrong), tmp_path / "run")
    assert image_sums(np.array([3 * 10**11], np.uint64), 3) == (3 * 10**11,)
    with pytest.raises(ValueError, match="no counts of images"):
        image_sums(np.array([3 * 10**11 + 1], np.uint64), 3)


def test_a_site_with_other_classes_is_left_out(tmp_path: Path, make_study: MakeStudy) -> None:
    """Its words cannot be added, so its masks are taken off like those of a site that is gone."""
    sites = Counting(tmp_path, make_study(**MASKS), {**COUNTS, "c": (1, 2, 3)})
    cohort = taken(sites, tmp_path / "run")
    assert all_sides(cohort.totals) == sums("a", "b")
    assert cohort.absent == {"c": "it sent 3 masked counts, expected 9"}


def test_a_study_without_masks_has_no_such_census(tmp_path: Path, make_study: MakeStudy) -> None:
    study = make_study(**{**MASKS, "secure_aggregation": None})
    assert taken(Counting(tmp_path, study), tmp_path / "run") is COHORT


# --- what the server makes of it --------------------------------------------------------------------

TOTALS = Totals(
    study="f00d", sites=NAMES, train_counts=(110, 20, 31), validation_counts=(1, 3, 3), test_counts=(6, 5, 13)
)


def test_table_and_report_have_one_row_of_all_sites(make_study: MakeStudy) -> None:
    study = make_study(**MASKS)
    hiding = {**COHORT.enrolments, "b": enrolment("b", withheld=True)}
    made = census.count(study, hiding, TOTALS)
    assert (made.sites, made.withholding) == ({}, ("b",))
    _, body, foot = census_table.cells(study, made)
    row = ["a, b, c", "110 / 1 / 6", "20 / 3 / 5", "31 / 3 / 13", "161 / 7 / 24", "-", "-", "-"]
    assert (body, foot) == ([row], [])
    page = markdown(Outcome(study, (), None, synthetic=False, census=made))
    assert f"| {' | '.join(row)} |" in page
    assert "each site's own came under masks" in page
    assert "b may have a few more, which the policy there leaves out" in page
    assert "without validation images" not in page
    none = made.model_copy(update={"totals": TOTALS.model_copy(update={"validation_counts": (0, 0, 0)})})
    assert "No site has validation images" in markdown(Outcome(study, (), None, synthetic=False, census=none))


def test_a_class_that_no_site_has_is_found_in_the_sums(make_study: MakeStudy) -> None:
    study = make_study(**MASKS)
    census.require_classes(study, census.count(study, COHORT.enrolments, TOTALS))
    hiding = {"b": enrolment("b", withheld=True)}
    for changes, sentence in (
        (
            {"train_counts": (110, 0, 31)},
            "no training site has training images of pale, so the model can never",
        ),
        (
            {"train_counts": (1, 0, 1), "validation_counts": (0, 0, 0), "test_counts": (1, 0, 1)},
            "no site has images of pale.*b may have a few that the policy there leaves out",
        ),
    ):
        made = census.count(study, hiding, TOTALS.model_copy(update=changes))
        with pytest.raises(ConfigError, match=sentence):
            census.require_classes(study, made)


def test_the_classes_of_all_sites_in_a_plan_are_the_sums(make_study: MakeStudy) -> None:
    study = make_study(**MASKS, local={"class_weights": "study"})
    cohort = Cohort(COHORT.enrolments, {}, totals=TOTALS)
    plans = round_plans(study, cohort, RoundState(0, {}, {}, {}), frozenset(), train=True, score=())
    assert {plan.class_counts for plan in plans.values()} == {(110, 20, 31)}


def test_a_study_that_selects_needs_validation_images_anywhere(make_study: MakeStudy) -> None:
    study = make_study(**MASKS, selection={"metric": "loss"})
    require_validation(study, Cohort(COHORT.enrolments, {}, totals=TOTALS))
    none = TOTALS.model_copy(update={"validation_counts": (0, 0, 0)})
    with pytest.raises(ConfigError, match="by validation images, and no training site has any: set"):
        require_validation(study, Cohort(COHORT.enrolments, {}, totals=none))


def test_an_update_of_other_images_than_the_census_counted_is_named(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """161 training images were counted at a, b and c together."""

    def compare(images: int, *names: str) -> str:
        caplog.clear()
        tally = MaskedMean({})
        for name in names:
            tally.add(AdmittedUpdate(name, 0, {IMAGES: np.array([images // len(names)], np.uint64)}))
        collector: Any = SimpleNamespace(tally=tally, number=4)
        compare_with_census(Cohort({}, {}, totals=TOTALS), collector)
        return caplog.text

    assert compare(160, "a", "b") == ""
    assert "round 4: the update is of 162 images of a, b, and the census of a, b, c counted 161" in compare(
        162, "a", "b"
    )
    assert "the update is of 159 images" in compare(159, *NAMES)


def test_a_site_that_describes_its_images_without_masks_is_left_out(make_study: MakeStudy) -> None:
    study = make_study(**MASKS)
    shown = enrolment("b").model_copy(update={"train_counts": (1, 2, 3)})
    described = {**COHORT.enrolments, "b": shown}

    class Enrolling:
        def online(self) -> set[str]:
            return set(NAMES)

        def ask(self, plans: Mapping[str, wire.Plan], deadline: Deadline) -> Iterator[Reply]:
            yield from (Reply(site, described[site], 0.0) for site in plans)

    cohort = enrol(study, Enrolling(), {})
    assert [*cohort.enrolments] == ["a", "c"]
    assert "describes its images without masks" in cohort.absent["b"]


# --- what a site keeps to ------------------------------------------------------------------------------


def test_a_site_without_training_images_does_not_enrol_where_the_server_would_not_see_it(
    make_study: MakeStudy,
) -> None:
    setup: Any = SimpleNamespace(
        store=SimpleNamespace(class_counts=lambda side: (0, 0, 0) if side == "train" else (1, 1, 1)),
        state=SimpleNamespace(forget=lambda: None),
    )
    plan = wire.EnrolPlan(plan_id="e", site="a", study=make_study(**MASKS), want_weights=False)
    site: Any = None
    with pytest.raises(SiteDataError, match="found no training images of the study's classes"):
        enrolments.answer(plan, setup, site, torch.device("cpu"), (0, 0, 0))


def test_a_site_gives_the_counts_of_the_first_time_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Two numbers under one mask would show their difference."""

    def setup(*test: int) -> Any:
        sides = {"validation": (0, 1), "test": test}
        return SimpleNamespace(
            store=SimpleNamespace(class_counts=sides.__getitem__),
            state=SimpleNamespace(folder=tmp_path),
            is_private=False,
        )

    assert kept(setup(2, 3), (5, 6)).words.tolist() == [5, 6, 0, 1, 2, 3]
    assert "have changed" not in caplog.text
    assert kept(setup(2, 4), (5, 6)).words.tolist() == [5, 6, 0, 1, 2, 3]
    assert "images have changed since it was counted" in caplog.text


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"phase": "training"}, "counts of images are asked for under the masks of a round"),
        ({"round": 2}, "the census comes once, before round 1, and is asked for as of round 2"),
        ({}, None),
    ],
)
def test_a_contract_lets_a_census_come_before_round_1_alone(
    changes: dict[str, Any], sentence: str | None, tmp_path: Path, make_study: MakeStudy
) -> None:
    study, contract = make_study(**MASKS, rounds=3), Contract(tmp_path)
    contract.keep(wire.EnrolPlan(plan_id="e", site="a", study=study, want_weights=False), "")
    asked: dict[str, Any] = {"plan_id": "p", "site": "a", "study": study, "round": 1, "phase": "census"}
    plan = wire.MaskPlan(**{**asked, **changes}, step=wire.CensusStep(envelopes={}))
    if sentence is None:
        contract.check(plan, "")
        for number in (1, 2):
            done = wire.RoundPlan(plan_id="r", site="a", study=study, round=number, train=True, weights={})
            contract.keep(done, f"{number}")
        sentence = "the census comes once, before round 1, and is asked for as of round 2"
    with pytest.raises(PolicyRefusal, match=sentence):
        contract.check(plan, "")

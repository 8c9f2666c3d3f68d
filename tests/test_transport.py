"""A study with a transport, in one process: fewer bytes, and the same bits after every kind of interruption."""

import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client.config import SiteConfig
from client.hosted import HostedTrainer
from client.trainer import Trainer
from client.training.state.local_state import SiteState
from common import wire
from common.config import StudyConfig
from common.errors import WeightsMissing
from common.settings import to_yaml
from common.weights import Array, digest, load_file
from common.wire import codec, compact
from server.simulation.engines import Inline
from server.simulation.inline import run_inline
from server.simulation.launch import LocalSite

MakeSite = Callable[..., SiteConfig]
MakeStudy = Callable[..., StudyConfig]
Run = Callable[..., Path]
INT8 = {"up": "int8", "down": "int8"}


@pytest.fixture
def run(make_site: MakeSite, make_study: MakeStudy, tmp_path: Path) -> Run:
    """`run("name", transport=..., rounds=4)`: the tiny study of two sites in this process; its folder."""

    def run(name: str, resume: bool = False, **changes: Any) -> Path:
        sites = []
        for site, per_class in (("north", 6), ("south", 5)):
            path = tmp_path / f"{site}.yaml"
            if not path.exists():
                path.write_bytes(
                    to_yaml(make_site(site, per_class).model_dump(mode="json", exclude_none=True))
                )
            sites.append(LocalSite(site, path))
        outcome = run_inline(
            make_study(**{"rounds": 4, **changes}),
            sites,
            tmp_path / name,
            Inline(HostedTrainer),
            resume=resume,
        )
        assert outcome.finished, outcome
        return tmp_path / name

    return run


def weights_of(folder: Path) -> str:
    return digest(load_file(folder / "weights.safetensors")[0])


def mib(folder: Path, way: str) -> list[list[float]]:
    """By round: MiB of each site."""
    rounds = [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()]
    return [[row[f"mib_{way}"] for row in one["sites"]] for one in rounds]


def test_a_study_without_a_transport_has_the_text_and_the_fingerprint_it_had(make_study: MakeStudy) -> None:
    assert "transport" not in make_study().model_dump_json()
    plan = wire.RoundPlan(plan_id="r", site="north", study=make_study(), round=1, train=True, weights={})
    assert not {"base", "result", "transport"} & json.loads(codec.header_of(plan)).keys()
    assert make_study(transport={"up": "int8"}).fingerprint != make_study().fingerprint


def test_int8_both_ways_has_a_quarter_of_the_bytes_after_the_first_round(run: Run) -> None:
    whole, small = run("whole"), run("small", transport=INT8)
    for number in range(4):
        for site in range(2):
            assert 3.3 < mib(whole, "up")[number][site] / mib(small, "up")[number][site] <= 4
            if number:  # the first weights travel whole
                assert 3.3 < mib(whole, "down")[number][site] / mib(small, "down")[number][site] <= 4
    assert mib(small, "down")[0] == mib(whole, "down")[0]
    assert "MiB of changes to north, south" in (small / "server.log").read_text()


def test_the_same_study_gives_the_same_bits(run: Run) -> None:
    transport = {"up": "int8", "down": "bf16", "top_k": 0.1}
    assert weights_of(run("one", transport=transport)) == weights_of(run("two", transport=transport))


def test_a_server_that_was_killed_resumes_with_the_same_bits(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run("whole", transport=INT8)
    answer, asked = HostedTrainer.answer, [0]

    def breaks(self: HostedTrainer, request: bytes) -> bytes:
        asked[0] += 1
        if (
            asked[0] == 8
        ):  # two enrolments, two rounds of two sites: north has answered round 3, south has not
            raise KeyboardInterrupt
        return answer(self, request)

    monkeypatch.setattr(HostedTrainer, "answer", breaks)
    with pytest.raises(KeyboardInterrupt):
        run("broken", transport=INT8)
    assert weights_of(run("broken", transport=INT8, resume=True)) == weights_of(whole)


@pytest.mark.parametrize("lost", ["nothing", "received"])
def test_a_trainer_that_is_killed_costs_no_bit(
    lost: str, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run("whole", transport=INT8)
    answer, asked = HostedTrainer.answer, [0]

    def dies(self: HostedTrainer, request: bytes) -> bytes:
        asked[0] += 1
        if asked[0] == 7:
            answer(self, request)  # north has trained in round 3, and its answer is lost with the process
            self.rest()
            for path in (tmp_path / "north-state").rglob(f"{lost}-*.safetensors"):
                if lost == "received":
                    path.unlink()
        return answer(self, request)

    monkeypatch.setattr(HostedTrainer, "answer", dies)
    killed = run("killed", transport=INT8)
    assert weights_of(killed) == weights_of(whole)
    if lost == "received":
        assert (
            "north: does not hold the weights before, it gets whole ones"
            in (killed / "server.log").read_text()
        )
        assert mib(killed, "down")[2][0] > mib(whole, "down")[0][0]  # both travelled, and both are counted


# --- one trainer ---------------------------------------------------------------------------------


class Asked:
    """A trainer that has answered round 1 of a study with changes from the server."""

    def __init__(self, site: SiteConfig, study: StudyConfig) -> None:
        self.trainer, self.study = Trainer(site), study
        plan = wire.EnrolPlan(plan_id="e", site="north", study=study, want_weights=True)
        enrolment = codec.from_bytes(self.trainer.answer(codec.to_bytes(plan)))
        assert isinstance(enrolment, wire.Enrolment), enrolment
        self.layout, self.weights = enrolment.layout, enrolment.weights
        self.first = self.ask(1, self.weights)

    def ask(self, number: int, weights: Mapping[str, Array], **changes: Any) -> wire.Plan | wire.Answer:
        plan = wire.RoundPlan(
            plan_id=f"r{number}", site="north", study=self.study, round=number, train=True, weights=weights
        )
        return codec.from_bytes(self.trainer.answer(codec.to_bytes(plan.model_copy(update=changes))))

    def change(self, size: float) -> tuple[dict[str, Array], str]:
        """A change of all weights by about `size`, and the digest of the weights after it."""
        form = compact.down(self.study.transport)
        names = compact.rounded(self.layout)
        arrays = {
            name: np.full_like(array, size) if name in names else array
            for name, array in self.weights.items()
        }
        packed = compact.pack(arrays, self.layout, form, np.random.default_rng(0))
        after = compact.applied(self.weights, compact.unpack(packed, self.layout, form), self.layout)
        return packed, digest(after)


@pytest.fixture
def asked(make_site: MakeSite, make_study: MakeStudy) -> Callable[..., Asked]:
    def make(transport: dict[str, Any] = INT8, **policy: Any) -> Asked:
        site = make_site("north")
        site = site.model_copy(update={"policy": site.policy.model_copy(update=policy)})
        return Asked(site, make_study(rounds=4, transport=transport))

    return make


def test_a_change_is_judged_by_the_weights_it_leads_to(asked: Callable[..., Asked], caplog: Any) -> None:
    north = asked(max_weight_change=0.5)
    large, after = north.change(1e6)
    answer = north.ask(2, large, base=digest(north.weights), result=after)
    assert isinstance(answer, wire.Failure)
    assert "max_weight_change" in answer.reason
    small, after = north.change(1e-4)
    assert isinstance(north.ask(2, small, base=digest(north.weights), result=after), wire.RoundAnswer)


def test_another_change_for_the_same_round_is_another_question(asked: Callable[..., Asked]) -> None:
    north = asked()
    one, after_one = north.change(1e-4)
    other, after_other = north.change(2e-4)
    assert isinstance(north.ask(2, one, base=digest(north.weights), result=after_one), wire.RoundAnswer)
    answer = north.ask(2, other, plan_id="x", base=digest(north.weights), result=after_other)
    assert isinstance(answer, wire.Failure)
    assert "round 2 was answered before, to another question" in answer.reason


def test_a_change_that_is_no_change_of_the_study_is_not_computed_with(asked: Callable[..., Asked]) -> None:
    north = asked()
    change, after = north.change(1e-4)
    base = digest(north.weights)
    bad = {**change, compact.SCALES: change[compact.SCALES] * np.float32(np.nan)}
    answer = north.ask(2, bad, base=base, result=after)
    assert isinstance(answer, wire.Failure)
    assert answer.error == "message"
    for changes in ({"base": "0" * 64, "result": after}, {"base": base, "result": "0" * 64}):
        answer = north.ask(2, change, **changes)
        assert isinstance(answer, wire.Failure)
        assert answer.error == "no_base"
    whole = asked({"up": "int8"})
    answer = whole.ask(2, change, base=base, result=after)
    assert isinstance(answer, wire.Failure)
    assert answer.error == "message"


def test_what_is_left_over_is_dropped_with_a_word_when_a_round_was_missed(
    make_study: MakeStudy, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("consilium"), "propagate", True)
    state = SiteState(tmp_path, make_study())
    assert state.rest(before_round=1) is None
    state.keep_rest(1, {"w": np.ones(1)})
    assert state.rest(before_round=2) == {"w": np.ones(1)}
    assert not caplog.messages
    assert state.rest(before_round=3) is None
    assert "what rounding left out earlier is dropped, because this site's last round was 1" in caplog.text
    with pytest.raises(WeightsMissing):
        state.received(1, "0" * 64)


def test_a_site_whose_scale_is_no_number_is_refused_by_name(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = HostedTrainer.answer

    def hostile(self: HostedTrainer, request: bytes) -> bytes:
        message = codec.from_bytes(answer(self, request))
        if (
            isinstance(message, wire.RoundAnswer)
            and message.site == "south"
            and message.round == 2
            and message.delta
        ):
            scales = message.delta[compact.SCALES] * np.float32(np.nan)
            message = message.model_copy(update={"delta": {**message.delta, compact.SCALES: scales}})
        return codec.to_bytes(message)

    monkeypatch.setattr(HostedTrainer, "answer", hostile)
    folder = run("hostile", transport=INT8, sites={"train": ("north", "south"), "required": 1})
    log = (folder / "server.log").read_text()
    assert "round 2  south: refused" in log
    assert "is nan, expected a finite number of 0 or more" in log

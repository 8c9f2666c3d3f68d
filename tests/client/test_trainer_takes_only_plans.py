"""Whoever holds the gateway can make the trainer train, as its policy allows, and nothing else.

A trainer is asked everything that hypothesis can think of, while Python's audit hook watches what the
interpreter does: whatever comes in, no program is started, no code is compiled or run, nothing is unpickled,
no library is loaded, nobody is called, and no file is written but under the site's own folder.
"""

import itertools
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from client.config import PolicyConfig, SiteConfig
from client.trainer import Trainer
from common import wire
from common.config import StudyConfig
from common.wire import codec

FORBIDDEN = (
    "subprocess.", "os.system", "os.exec", "os.posix_spawn", "os.fork", "os.startfile", "pty.",
    "compile", "exec", "code.", "function.__new__", "marshal.", "pickle.",
    "ctypes.dlopen", "socket.connect", "socket.getaddrinfo", "socket.sendto", "urllib.",
)  # fmt: skip
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC

QUICK = settings(
    derandomize=True, deadline=None, max_examples=100,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip


class Watch:
    """What the interpreter did while it was watched. A hook can never be taken off again, so there is one."""

    def __init__(self) -> None:
        self.home: Path | None = None
        self.seen: list[str] = []
        sys.addaudithook(self._hook)

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.home is None:
            return
        if event == "compile" and arguments[1] == "<unknown>":
            return  # a traceback that reads its own lines as a syntax tree, to underline what failed
        if event.startswith(FORBIDDEN):
            self.seen.append(f"{event} {str(arguments)[:200]}")
        if event == "open" and isinstance(arguments[2], int) and arguments[2] & WRITES:
            path = Path(os.fsdecode(arguments[0])) if not isinstance(arguments[0], int) else None
            if path is not None and not path.is_relative_to(self.home):
                self.seen.append(f"open for writing {path}")

    @contextmanager
    def over(self, home: Path) -> Iterator[None]:
        self.home, self.seen = home, []
        try:
            yield
        finally:
            self.home = None


WATCH = Watch()

STUDY: dict[str, Any] = {
    "name": "tiny",
    "classes": ["dark", "pale", "red"],
    "sites": {"train": ["north", "south"]},
    "model": {"encoder": "test_convnext", "image_size": 32},
    "rounds": 2,
    "local": {"steps": 1, "batch_size": 8, "augmentation": "none"},
}
WICKED = st.sampled_from(
    [
        "__import__('os').system('id')", "hf-hub:evil/model", "hf_hub:evil/model", "file:///etc/passwd",
        "../../../etc/passwd", "http://192.0.2.1/x", "local-dir:/tmp", "torch.hub", "!!python/object:os.system",
        "os.system", "test_convnext.evil", "pkl", "a\x00b", "$(id)", "`id`", "{{7*7}}", "ResNet", "é" * 50,
    ]
)  # fmt: skip
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | WICKED,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8) | WICKED, inner, max_size=3)
    ),
    max_leaves=6,
)


IDS = itertools.count()


def plan_header() -> dict[str, Any]:
    """A whole plan, new each time: one that was answered before is answered from memory."""
    study = StudyConfig.model_validate(STUDY).model_dump(mode="json")
    plan = {
        "schema": codec.SCHEMA,
        "kind": "enrol",
        "plan_id": f"p{next(IDS)}",
        "site": "north",
        "study": study,
    }
    return plan | {"want_weights": True, "first_round": 1}


@pytest.fixture
def trainer(make_site: Callable[..., SiteConfig]) -> Trainer:
    """One that allows every study; asked once, so that everything is imported that ever will be."""
    made = Trainer(make_site("north", per_class=6))
    answer = codec.from_bytes(made.answer(codec.join(json.dumps(plan_header()), {})))
    assert isinstance(answer, wire.Enrolment), answer
    return made


def ask(trainer: Trainer, request: bytes) -> wire.Answer:
    with WATCH.over(trainer._site.state_dir):
        reply = trainer.answer(request)
    assert WATCH.seen == []
    answer = codec.from_bytes(reply)
    assert isinstance(answer, wire.Enrolment | wire.RoundAnswer | wire.Failure)
    return answer


def test_the_watch_sees_what_must_not_happen(tmp_path: Path) -> None:
    with WATCH.over(tmp_path / "home"):
        eval("1 + 1")
        (tmp_path / "outside").touch()
    assert [line.split()[0] for line in WATCH.seen] == ["compile", "exec", "open"]


@QUICK
@given(data=st.binary(max_size=300))
def test_bytes_are_refused(trainer: Trainer, data: bytes) -> None:
    assert isinstance(ask(trainer, data), wire.Failure)


@QUICK
@given(value=JSON, arrays=st.dictionaries(WICKED, st.just(np.zeros(2, np.float32)), max_size=2))
def test_json_that_is_no_plan_is_refused(trainer: Trainer, value: Any, arrays: dict[str, Any]) -> None:
    assert isinstance(ask(trainer, codec.join(json.dumps(value), arrays)), wire.Failure)


@QUICK
@given(data=st.data())
def test_a_plan_with_one_field_replaced_does_no_more_than_a_plan(
    trainer: Trainer, data: st.DataObject
) -> None:
    header = plan_header()
    place = data.draw(st.sampled_from(["plan", "study", "model", "local", "sites"]))
    target = {
        "plan": header, "study": header["study"], "model": header["study"]["model"],
        "local": header["study"]["local"], "sites": header["study"]["sites"],
    }[place]  # fmt: skip
    target[data.draw(st.sampled_from(sorted(target)) | WICKED)] = data.draw(JSON)
    ask(trainer, codec.join(json.dumps(header), {}))


@QUICK
@given(
    wicked=WICKED,
    field=st.sampled_from(["encoder", "weights", "name", "classes", "optimizer", "augmentation"]),
)
def test_a_name_that_means_something_to_a_program_is_only_a_name(
    trainer: Trainer, wicked: str, field: str
) -> None:
    header = plan_header()
    study = header["study"]
    match field:
        case "encoder":
            study["model"]["encoder"] = wicked
        case "weights":
            study["model"]["weights"] = {"kind": "file", "file": wicked, "sha256": "0" * 64}
        case "name":
            study["name"] = wicked
        case "classes":
            study["classes"] = [wicked, "pale"]
        case _:
            study["local"][field] = wicked
    answer = ask(trainer, codec.join(json.dumps(header), {}))
    assert field == "name" or isinstance(answer, wire.Failure)  # a study may be called torch.hub


def test_a_plan_outside_the_policy_is_refused_with_a_reason_before_anything_is_built(
    make_site: Callable[..., SiteConfig], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    policy = PolicyConfig(studies=("skin-*",), encoders=("convnext_*",))
    trainer = Trainer(make_site("north", per_class=6, policy=policy))
    monkeypatch.setattr("client.model.build.of_study", lambda *_: pytest.fail("it was built"))
    monkeypatch.setattr("logging.Logger.propagate", True, raising=False)
    answer = ask(trainer, codec.join(json.dumps(plan_header()), {}))
    assert isinstance(answer, wire.Failure)
    assert answer.error == "policy"
    assert "studies: the study is 'tiny'" in answer.reason  # the server is told what was asked,
    assert "skin-" not in answer.reason  # and not what this hospital allows

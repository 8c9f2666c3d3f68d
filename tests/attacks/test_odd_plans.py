"""Plans with odd values in every field: each is answered with a failure or as an honest one, and none is crashed on."""

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from client.trainer import Trainer
from common import wire
from common.heads import under
from common.weights import digest
from common.wire import codec, head_steps
from tests.attacks.conftest import Hospital, enrolled, round_plan, study

ODD: st.SearchStrategy[Any] = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.text(max_size=40),
    st.text(alphabet="\n\r\x1b\u202e\0", min_size=1, max_size=10),
    st.just("x" * 100_000),
    st.lists(st.integers(), max_size=3),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
)
ARRAYS: st.SearchStrategy[Any] = st.sampled_from(
    [
        np.zeros(0), np.zeros((0, 5)), np.full((2, 2), np.nan), np.full(3, np.inf), np.zeros((1, 1, 1, 1, 1)),
        np.zeros(4, np.int8), np.zeros(4, np.float16), np.array(1.0), np.zeros(2, bool), np.full(2, 1e300),
    ]
)  # fmt: skip


@pytest.fixture
def trainer(hospital: Hospital) -> Trainer:
    return hospital(heads=["*"], max_device_minutes_per_day=None, max_evaluations_per_day=None)


def answered(trainer: Trainer, plan: wire.Plan) -> None:
    """The trainer answers in bytes that can be read; the server's own process would have refused to pack the rest."""
    try:
        request = codec.to_bytes(plan)
    except Exception:  # cannot be packed at all
        return
    codec.from_bytes(trainer.answer(request))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(field=st.sampled_from(["plan_id", "site", "round", "train", "notice", "study", "weights"]), value=ODD)
def test_a_round_with_an_odd_field(trainer: Trainer, field: str, value: Any) -> None:
    plan = round_plan(study(), {"w": np.zeros(2, np.float32)})
    answered(trainer, plan.model_copy(update={field: value}))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.integers(0, 200), array=ARRAYS)
def test_a_round_with_an_odd_tensor(trainer: Trainer, name: int, array: Any) -> None:
    if trainer._setup is None:
        trainer.first = enrolled(trainer, study())  # type: ignore[attr-defined]
    weights = dict(trainer.first)  # type: ignore[attr-defined]
    weights[sorted(weights)[name % len(weights)]] = array
    answered(trainer, round_plan(study(), weights, plan_id=f"{name}"))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    field=st.sampled_from(["round", "weights_digest", "step", "arrays"]),
    value=ODD,
    arrays=st.dictionaries(
        st.sampled_from(
            ["points/logistic", "view/logistic/shift", "view/lda/components", "head/x/bias", "weights/w"]
        ),
        ARRAYS,
        max_size=3,
    ),
)
def test_a_step_towards_a_head_with_odd_fields_and_arrays(
    trainer: Trainer, field: str, value: Any, arrays: dict[str, Any]
) -> None:
    chosen = study(heads={"federated": [{"kind": "lda"}, {"kind": "logistic"}]})
    if trainer._setup is None:
        trainer.first = enrolled(trainer, chosen)  # type: ignore[attr-defined]
    weights = trainer.first  # type: ignore[attr-defined]
    objective = head_steps.Objective(name="logistic", loss="softmax", class_weights=(1.0, 1.0))
    plan = wire.HeadPlan(
        plan_id=str(hash((field, str(value)))), site="north", study=chosen, round=3, weights_digest=digest(weights),
        step=head_steps.GradientsStep(objectives=(objective,)), arrays={**under("weights", weights), **arrays},
    )  # fmt: skip
    answered(trainer, plan)
    answered(trainer, plan.model_copy(update={field: value}))


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.floats(0, 1), value=st.integers(0, 255), cut=st.booleans())
def test_a_message_with_a_changed_or_missing_byte(
    trainer: Trainer, place: float, value: int, cut: bool
) -> None:
    data = bytearray(codec.to_bytes(round_plan(study(), {"w": np.zeros(2, np.float32)})))
    at = min(int(place * len(data)), len(data) - 1)
    data[at] = value
    codec.from_bytes(trainer.answer(bytes(data[:at] if cut else data)))

import pytest
import torch

from client.training.hardware.precision import autocast, compute_dtype, weights_dtype
from common.errors import ConfigError

CPU = torch.device("cpu")


def test_weights_are_kept_in_float32_unless_the_study_asks_for_more():
    kept = {p: weights_dtype(p) for p in ("auto", "float32", "bf16", "fp16", "float64")}
    assert kept.pop("float64") == torch.float64
    assert set(kept.values()) == {torch.float32}


def test_auto_is_float32_on_a_cpu():
    assert compute_dtype("auto", CPU) == torch.float32


def test_fp16_on_a_cpu_is_refused():
    with pytest.raises(ConfigError, match="fp16 needs a GPU, and this site computes on cpu; use auto"):
        compute_dtype("fp16", CPU)


@pytest.mark.parametrize(
    ("precision", "product"),
    [("float32", torch.float32), ("float64", torch.float64), ("bf16", torch.bfloat16)],
)
def test_products_are_computed_in_the_format_of_the_study(precision, product):
    ones = torch.ones(2, 2, dtype=weights_dtype(precision))
    with autocast(precision, CPU):
        assert (ones @ ones).dtype == product

"""Settings files as Python sees them."""

import doctest
from pathlib import Path

import pytest

import consilium_fl
from consilium_fl import sites, studies

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("module", [studies, sites])
def test_the_examples_of_the_docstrings_are_true(module: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    result = doctest.testmod(module)  # type: ignore[arg-type]
    assert result.attempted > 0
    assert result.failed == 0


def test_every_mistake_of_a_study_is_in_the_error(tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text("name: x\nrounds: -1\nlearning_rate: 1\n")
    with pytest.raises(consilium_fl.ConsiliumError, match="learning_rate: no such setting") as caught:
        consilium_fl.read_study(tmp_path / "bad.yaml")
    assert "rounds: " in str(caught.value)

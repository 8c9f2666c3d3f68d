"""Numbers, lists and tables as Markdown."""

import pytest

from server.report.text import counted, decimal, escaped, listed, markdown_table, percent


@pytest.mark.parametrize(
    ("names", "text"), [(["a"], "a"), (["a", "b"], "a and b"), (["a", "b", "c"], "a, b and c")]
)
def test_names_are_joined_by_commas_and_a_last_and(names: list[str], text: str) -> None:
    assert listed(names) == text


@pytest.mark.parametrize(("number", "text"), [(0, "0 sites"), (1, "1 site"), (2, "2 sites")])
def test_only_one_is_singular(number: int, text: str) -> None:
    assert counted(number, "site") == text


def test_figures_that_are_not_numbers_are_a_dash() -> None:
    assert (percent(0.1234), percent(float("nan"))) == ("12.3", "-")
    assert (decimal(0.12345), decimal(float("inf"))) == ("0.123", "-")


def test_text_cannot_break_out_of_its_cell() -> None:
    assert escaped("a | b\nc") == "a \\| b c"


def test_all_columns_but_the_first_are_to_the_right_unless_the_table_says_otherwise() -> None:
    assert markdown_table(["x", "y"], [["1", "2"]]) == "| x | y |\n| :--- | ---: |\n| 1 | 2 |"
    assert markdown_table(["x", "y"], [], right=0) == "| x | y |\n| :--- | :--- |"

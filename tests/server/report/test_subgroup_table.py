"""The section on subgroups: figures that can be worked by hand, and what is not in them."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from server.report import subgroup_table
from server.report.markdown import sections
from server.report.outcome import Outcome
from server.storage.subgroup_scores import SubgroupScores

MakeOutcome = Callable[..., Outcome]
SEX = {"subgroups": {"sex": ["female", "male"], "age": {"bands": [0, 40, 120]}}}
WOMEN = ((4, 1, 0), (2, 3, 0), (0, 0, 0))
"""Seven of ten women are right: 4 of 5 of the first class, 3 of 5 of the second; two are taken for the first."""
MEN = ((0, 0, 0), (0, 0, 1), (0, 0, 0))


def scored(make_outcome: MakeOutcome, subgroups: dict[str, SubgroupScores], **changes: Any) -> Outcome:
    """A study of three classes whose closing round has these counts."""
    outcome = make_outcome(settings=SEX, **changes)
    *rounds, last = outcome.rounds
    return replace(outcome, rounds=[*rounds, replace(last, subgroups=subgroups)])


def test_figures_of_a_subgroup_are_over_the_classes_that_it_shows(make_outcome: MakeOutcome) -> None:
    outcome = scored(make_outcome, {"sex": SubgroupScores(("north",), (WOMEN, MEN))})
    assert outcome.final is not None
    tested = outcome.final.sites["north"].figures.num_images
    text = sections(outcome)["subgroups"]
    assert "| female | 10 | 2 of 3 | 70.0 (39.7 to 89.2) | 70.0 |" in text
    assert "| male | 1 | 1 of 3 | 0.0 (0.0 to 79.3) | 0.0 |" in text
    first, second, third = outcome.study.classes
    assert f"| {first} | 80.0 / 60.0 (5) | - / 100.0 (-) |" in text  # 3 of 5 others are not taken for it
    assert f"| {second} | 60.0 / 80.0 (5) | 0.0 / - (1) |" in text
    assert f"| {third} | - / 100.0 (-) | - / 0.0 (-) |" in text
    assert f"{tested - 11} of {tested} images are in no row" in text
    assert "No site counts by age." in text
    assert subgroup_table.summary(outcome) == {
        "Subgroups": "figures by sex are in the table of subgroups; none by age."
    }


def test_why_there_are_no_figures_is_said(make_outcome: MakeOutcome) -> None:
    assert "no site counts by them" in sections(scored(make_outcome, {}))["subgroups"]
    assert "which is not on record" in sections(make_outcome(settings=SEX, last=3))["subgroups"]
    assert "subgroups" not in sections(make_outcome())
    assert "did not ask" in subgroup_table.summary(make_outcome())["Subgroups"]

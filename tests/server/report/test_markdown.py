"""Sentences around the figures: each stands where it is true, and nowhere else."""

import math
from dataclasses import replace
from typing import Any

import pytest

from server.enrolment.census import Census, SiteCensus
from server.heads.record import Cell, HeadTable
from server.report.markdown import markdown
from server.report.outcome import Outcome
from server.state import Best, RoundState
from tests.server.report.conftest import Change, MakeOutcome, rescored, without


def section(outcome: Outcome, title: str) -> str:
    return markdown(outcome).split(f"## {title}", maxsplit=1)[1].split("\n## ", maxsplit=1)[0]


# --- figures ---------------------------------------------------------------------------------------


def test_a_study_that_no_site_scored_has_no_figures(make_outcome: MakeOutcome) -> None:
    text = markdown(make_outcome(lambda state: rescored(state, lambda _, score: None)))
    assert "No site scored the model: there are no figures to report." in text
    assert text.count("None: no scores are available.") == 2
    whole = markdown(make_outcome())
    assert "No site scored" not in whole
    assert "no scores are available" not in whole


def test_a_table_without_a_site_names_it_with_the_reason(make_outcome: MakeOutcome) -> None:
    text = section(make_outcome(without("unseen", "failed", "no memory", [4])), "The model after round 3")
    assert "Not in the table: unseen (no memory)." in text
    assert "unseen (only scores)" not in text
    assert "Not in the table" not in section(make_outcome(), "The model after round 3")


def test_a_site_that_was_not_due_is_not_said_to_have_failed(make_outcome: MakeOutcome) -> None:
    def not_due(state: RoundState) -> RoundState:
        rows = tuple(row for row in state.sites if row.site != "unseen")
        return rescored(replace(state, sites=rows), lambda site, score: None if site == "unseen" else score)

    def second(state: RoundState) -> RoundState:
        return not_due(state) if state.round == 2 else state

    text = section(make_outcome(second, last=2), "The model after round 1")
    assert "Not in the table: unseen (it was not asked)." in text


def test_figures_of_an_earlier_model_than_the_last_say_so(make_outcome: MakeOutcome) -> None:
    text = section(make_outcome(last=2), "The model after round 1, of 3 planned")
    assert "These are the last scores on record. The model after round 2 was not scored." in text
    assert "was not scored" not in section(make_outcome(), "The model after round 3")


def test_the_model_before_training_is_called_so(make_outcome: MakeOutcome) -> None:
    assert "## The model before training" in markdown(make_outcome(last=1))
    assert "before training\n" not in markdown(make_outcome(last=2)).split("## Rounds")[0]


def test_a_figure_that_is_no_number_is_a_dash_and_the_legend_says_when(make_outcome: MakeOutcome) -> None:
    def diverged(state: RoundState) -> RoundState:
        return rescored(state, lambda _, score: score.model_copy(update={"loss_sum": math.inf}))

    text = section(make_outcome(diverged), "The model after round 3")
    row = next(line for line in text.splitlines() if line.startswith("| north"))
    assert row.split("|")[10].strip() == "-"
    assert "or because the loss is not a finite number" in text
    assert "nan" not in text.lower().replace("finance", "")
    assert "inf " not in text


def test_a_row_of_sites_that_round_their_probabilities_says_how_coarse_its_figures_are(
    make_outcome: MakeOutcome,
) -> None:
    def rounded(state: RoundState) -> RoundState:
        return rescored(state, lambda _, score: score.model_copy(update={"num_bins": 20}))

    sentence = "AUROC, ECE and loss are as coarse as a bin, 0.05 wide."
    assert sentence in section(make_outcome(rounded), "The model after round 3")
    assert "coarse" not in section(make_outcome(), "The model after round 3")


def test_images_that_a_policy_leaves_out_of_scores_are_counted_and_bound_the_accuracy(
    make_outcome: MakeOutcome,
) -> None:
    """Every site leaves out two images of the first class."""

    def fewer(state: RoundState) -> RoundState:
        return rescored(state, lambda _, score: score.model_copy(update={"left_out_C": (2, 0, 0)}))

    text = section(make_outcome(fewer), "The model after round 3")
    last = make_outcome(fewer).rounds[-1].test
    assert last is not None
    f, left_out = last.pooled.figures, 2 * len(last.sites)
    right, images = round(f.accuracy * f.num_images), f.num_images + left_out
    assert f"{left_out} of {images} test images are in no figure (" in text
    low, high = 100 * right / images, 100 * (right + left_out) / images
    assert f"accuracy lies between {low:.1f} and {high:.1f} percent" in text
    assert "in no figure" not in section(make_outcome(), "The model after round 3")


# --- selection -------------------------------------------------------------------------------------


def chosen(round_: int, value: float = 0.5) -> Change:
    return lambda state: replace(state, best=Best(round_, value, 0))


BY = {"selection": {"metric": "accuracy", "sites": ("north", "south")}}


def test_it_is_said_of_which_images_the_figures_are(make_outcome: MakeOutcome) -> None:
    def figures(*changes: Change, **more: Any) -> str:
        return section(make_outcome(*changes, **more), "The model after round 3")

    def untested(state: RoundState) -> RoundState:
        return replace(state, test_scores={})

    def tested(state: RoundState) -> RoundState:
        return replace(state, test_scores=state.scores)

    chooses = {"settings": {"selection": {"metric": "loss"}}}
    once = "The figures are of test images, which were scored once, with these weights."
    validation = "**The figures are of validation images"
    assert once in figures()
    assert f"{validation}: no test images were scored.**" in figures(untested)
    assert f"{validation}, by which the study chooses: no test images were scored.** They" in figures(
        untested, **chooses
    )
    in_rounds = figures(tested)
    assert (
        "The figures are of test images. **They were scored in the rounds as well, for the curves.**"
        in in_rounds
    )
    assert once not in in_rounds


def test_the_best_round_is_named_with_the_images_that_chose_it(make_outcome: MakeOutcome) -> None:
    text = section(make_outcome(chosen(2), settings=BY), "The model after round 3")
    assert (
        "The best accuracy on the validation images of north and south was 0.5000, of the model after round 2."
        in text
    )
    assert "Its weights are in `best.safetensors`." in text
    assert "The figures below are of another model, that after round 3." in text
    assert "looks better than it is on the images that chose it" in text


def test_the_figures_of_the_best_model_itself_are_not_called_those_of_another(
    make_outcome: MakeOutcome,
) -> None:
    assert "of another model" not in markdown(make_outcome(chosen(3), settings=BY))


def test_if_no_round_beat_the_first_weights_no_file_is_promised(make_outcome: MakeOutcome) -> None:
    text = markdown(make_outcome(chosen(0), settings=BY))
    assert "of the model before training." in text
    assert "so there is no `best.safetensors`" in text
    assert "Its weights are in" not in text


def test_a_study_that_ended_early_keeps_its_best_weights_among_the_checkpoints(
    make_outcome: MakeOutcome,
) -> None:
    text = markdown(make_outcome(chosen(1), settings=BY, last=3))
    assert "Its weights are in `checkpoints/best.safetensors`." in text


def test_a_selection_that_never_had_all_its_scores_chose_nothing(make_outcome: MakeOutcome) -> None:
    text = markdown(make_outcome(without("south", "absent", "no key", range(9)), settings=BY))
    assert "No round was chosen by accuracy: that takes the scores of north and south in one round" in text
    assert "The weights are those of the last round." in text
    assert "The best accuracy" not in text


def test_a_study_without_a_selection_says_nothing_of_one(make_outcome: MakeOutcome) -> None:
    text = markdown(make_outcome())
    assert "The best " not in text
    assert "was chosen" not in text


# --- rounds and costs ------------------------------------------------------------------------------


def test_pools_of_different_sites_are_named(make_outcome: MakeOutcome) -> None:
    note = "They are not the same in all rows"
    assert note in section(make_outcome(without("unseen", "missing", "late", [2])), "Rounds")
    assert note not in section(make_outcome(), "Rounds")


def test_what_the_costs_leave_out_is_named_where_there_is_any(make_outcome: MakeOutcome) -> None:
    plain = section(make_outcome(), "What it cost")
    assert "MiB are those of the tensors that were sent in the rounds on record. Sites work" in plain
    again = make_outcome(lambda state: replace(state, attempts=3 if state.round == 1 else 1))
    assert "Of a round that was repeated, a site's last attempt counts." in section(again, "What it cost")
    resumed = section(make_outcome(resumed_after=(2,)), "What it cost")
    assert "A round that was done again counts once." in resumed
    heads = section(make_outcome(heads=HeadTable(3)), "What it cost")
    assert "Messages for the classical heads are not in it." in heads
    lost = "A site that failed or did not answer may not have fetched what was sent to it."

    def unreachable(state: RoundState) -> RoundState:
        rows = (replace(row, outcome="failed") if row.site == "west" else row for row in state.sites)
        return replace(state, sites=tuple(rows))

    assert any(row.mib_down for row in make_outcome().rounds[0].sites if row.site == "west")
    assert lost in section(make_outcome(unreachable), "What it cost")
    assert lost not in plain
    nothing_sent = without("west", "failed", "its gateway is not connected", [1])
    assert lost not in section(make_outcome(nothing_sent), "What it cost")


# --- the sites' images -----------------------------------------------------------------------------


def census(*sites: str) -> Census:
    one = SiteCensus(train_counts=(1, 2, 3), test_counts=(1, 1, 1), withheld=False, images=None)
    return Census(classes=("bkl", "mel", "nv"), sites=dict.fromkeys(sites, one))


def test_the_census_names_the_sites_that_are_not_in_it(make_outcome: MakeOutcome) -> None:
    absent = without("unseen", "absent", "no key", range(9))
    text = section(make_outcome(absent, census=census("north", "south", "west")), "The sites' images")
    assert "Not in the table, because they took no part: unseen." in text
    whole = make_outcome(census=census("north", "south", "west", "unseen"))
    assert "Not in the table" not in section(whole, "The sites' images")


SOME, NONE = (1, 0, 0), (0, 0, 0)


def validating(north: tuple[int, ...], others: tuple[int, ...]) -> Census:
    images = census("north", "south", "west", "unseen")
    counts = {
        site: row.model_copy(update={"validation_counts": north if site == "north" else others})
        for site, row in images.sites.items()
    }
    return images.model_copy(update={"sites": counts})


def test_others_are_said_to_choose_only_if_there_are_others_and_the_study_chooses(
    make_outcome: MakeOutcome,
) -> None:
    def said(north: tuple[int, ...], others: tuple[int, ...], **more: Any) -> str:
        return section(make_outcome(census=validating(north, others), **more), "The sites' images")

    chooses = {"settings": {"selection": {"metric": "loss"}}}
    assert "1 training site without validation images: north. The study chooses by others." in said(
        NONE, SOME, **chooses
    )
    plain = said(NONE, SOME)
    assert "1 training site without validation images: north. The others score the rounds." in plain
    assert "chooses" not in plain
    nobody = said(NONE, NONE)
    assert "No site has validation images, so no round was scored on any." in nobody
    assert "others" not in nobody
    assert "validation images:" not in said(SOME, SOME)


def test_rounds_that_are_not_on_record_have_no_empty_table_and_no_picture(make_outcome: MakeOutcome) -> None:
    text = section(make_outcome(last=0), "Rounds")
    assert "None: no round is on record." in text
    assert "curves.png" not in text
    assert "|" not in text
    assert "curves.png" in section(make_outcome(last=1), "Rounds")


# --- heads -----------------------------------------------------------------------------------------

CELL = Cell(num_images=10, accuracy=0.5, balanced_accuracy=0.5, auroc=0.5)


def heads(
    *titles: str, sites: tuple[str, ...] = ("north", "south", "unseen", "west"), **more: Any
) -> HeadTable:
    row = dict.fromkeys(("softmax", *titles), CELL)
    return HeadTable(3, cells=dict.fromkeys(sites, row), num_messages=4, **more)


def legend(outcome: Outcome) -> str:
    return section(outcome, "Classical heads")


def test_kinds_of_heads_are_explained_if_the_table_has_them(make_outcome: MakeOutcome) -> None:
    both = legend(make_outcome(heads=heads("local.knn", "federated.lda")))
    assert "*local*:" in both
    assert "*federated*:" in both
    assert "A table of many heads has some that look better by chance." in both
    local = legend(make_outcome(heads=heads("local.knn")))
    assert "*local*:" in local
    assert "*federated*:" not in local
    assert "by chance" not in local
    lost = legend(make_outcome(heads=heads("local.knn", lacking={"federated.lda": "too few"})))
    assert "*federated*:" not in lost
    assert "- federated.lda could not be fitted: too few." in lost
    assert "could not be fitted" not in local


def test_the_row_that_the_model_predicts_with_is_named_or_the_reason_why_there_is_none(
    make_outcome: MakeOutcome,
) -> None:
    final = {"settings": {"final_head": "federated_lda"}}
    fitted = legend(make_outcome(heads=heads("federated.lda"), **final))
    assert "**The study's model predicts with federated.lda** (`final_head`)" in fitted
    lost = legend(make_outcome(heads=heads(lacking={"federated.lda": "too few"}), **final))
    assert "federated.lda, could not be fitted: its model predicts with the softmax." in lost
    assert "predicts with federated.lda" not in lost
    assert "predicts with" not in legend(make_outcome(heads=heads("federated.lda")))


def test_a_site_without_a_column_is_named(make_outcome: MakeOutcome) -> None:
    table = heads("local.knn", sites=("north", "south", "west"))
    away = without("unseen", "absent", "no key", range(9))
    assert "- unseen has no column: no key." in legend(make_outcome(away, heads=table))
    late = replace(table, problems={"unseen": "score: no answer within 9 s"})
    text = legend(make_outcome(heads=late))
    assert "- unseen had no part in score: no answer within 9 s" in text
    assert "has no column" not in text
    assert "had no part" not in legend(make_outcome(heads=heads("local.knn")))


def test_a_site_that_only_scores_has_every_figure_of_every_head(make_outcome: MakeOutcome) -> None:
    lda = replace(CELL, f1_weighted=0.25, gain=0.05, gain_low=-0.01, gain_high=0.11, mcnemar_p=0.0412)
    slow = Cell(0, None, None, None, problem="too_slow")
    row = {"softmax": CELL, "federated.lda": lda, "local.knn": slow}
    text = legend(make_outcome(heads=HeadTable(3, cells=dict.fromkeys(("north", "unseen"), row))))
    assert "### Heads on unseen" in text
    assert "### Heads on north" not in text
    assert "| softmax | 10 | 50.0 | 50.0 | - | - | - | 50.0 | - | - | - | - | - |" in text
    assert (
        "| federated.lda | 10 | 50.0 | 50.0 | - | - | 25.0 | 50.0 | - | - | +5.0 | -1.0 to +11.0 | 0.041 |"
        in text
    )
    assert "| local.knn | too slow | - |" in text


def test_one_message_is_one_message(make_outcome: MakeOutcome) -> None:
    assert "at most 4 messages a site" in legend(make_outcome(heads=heads("local.knn")))
    one = replace(heads("local.knn"), num_messages=1)
    assert "at most 1 message a site" in legend(make_outcome(heads=one))


@pytest.mark.parametrize("title", ["What went wrong", "Model card", "What it cost", "Rounds"])
def test_every_section_stands_in_the_report_of_a_study_without_rounds(
    make_outcome: MakeOutcome, title: str
) -> None:
    assert f"## {title}" in markdown(make_outcome(last=0))

"""The section of the report on calibrated probabilities: the temperature, and what it changed on validation images."""

from common.calibration import Calibration
from common.calibration.temperature import Reliability
from server.report.outcome import Outcome
from server.report.text import counted, listed, markdown_table, no_counts, percent

_LEGEND = (
    "`consilium-site predict` divides the network's outputs by the temperature before it makes probabilities of them; "
    "the predicted class stays the same. *ECE* is the expected calibration error over 15 bins. The second row is of "
    "the images that the temperature was fitted on, so it is a little too good. `predict --coverage 0.9` gives sets of "
    "classes from the same counts."
)


def section(outcome: Outcome) -> list[str]:
    """Nothing if the study does not ask for calibration."""
    if outcome.study.calibration is None:
        return []
    found = outcome.calibration
    if found is None or found.fitted is None:
        return ["\n\n".join(["## Calibration", f"None: {_why_none(outcome, found)}."])]
    fitted = found.fitted
    sentences = [
        f"One temperature for all sites: **{fitted.temperature:.3g}**, from the sums of "
        f"{counted(found.num_images, 'validation image')} of {listed(list(found.sites))}."
    ]
    if fitted.at_end:
        sentences.append("It is the end of what is tried, so another one beyond it may fit better.")
    if found.without:
        sentences.append(no_counts(found.without))
    rows = [
        ["as the network gives them", *_cells(fitted.before)],
        ["with the temperature", *_cells(fitted.after)],
    ]
    table = markdown_table(["probabilities", "loss", "ECE, percent"], rows)
    return ["\n\n".join(["## Calibration", " ".join(sentences), table, _LEGEND])]


def _cells(reliability: Reliability) -> list[str]:
    return [f"{reliability.loss:.3f}", percent(reliability.ece)]


def _why_none(outcome: Outcome, found: Calibration | None) -> str:
    if not outcome.is_closed:
        return "sites count in the closing evaluation, which is not on record"
    if found is None:
        return "no counts are on record"
    silent = f"; no counts from {listed(found.without)}" if found.without else ""
    return f"too few validation images ({found.num_images}) were counted{silent}"

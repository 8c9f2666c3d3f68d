"""The page `report.html`: one file that a browser shows, prints or saves as PDF.

It holds everything it needs: no script, and a policy that forbids the browser to fetch anything or to run what a site
could have put into a name or a reason. The style is let through by its hash alone. Every figure comes from what has
travelled for the study anyway; the page names what it has no figures of.
"""

import base64
import hashlib
import math
from collections.abc import Iterator, Mapping
from pathlib import Path

from jinja2 import DictLoader, Environment, StrictUndefined
from markupsafe import Markup

from common.files import sha256_of
from common.release import version
from server.report import markdown
from server.report.html import charts, figures, site_curves
from server.report.html.templates import STYLE, TEMPLATES
from server.report.html.text import Section, section
from server.report.outcome import Outcome
from server.report.plots import SYNTHETIC
from server.storage.last_scores import LastScores

_TEMPLATES = Environment(
    loader=DictLoader(TEMPLATES),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_TEMPLATES.filters["share"] = lambda value: "-" if math.isnan(value) else f"{value:.1f}"
_TEMPLATES.filters["short"] = lambda value: f"{value:.3g}"

_NOT_KEPT = "a record of a version that kept no site's histograms (scores.json)"

_IN_FIGURES = ("confusion",)
"""Sections whose table the page draws itself."""


def page(outcome: Outcome, kept: LastScores, run_dir: Path) -> str:
    """The whole page as HTML. `run_dir` has the files whose digests it names."""
    sections = {name: section(text) for name, text in markdown.sections(outcome).items()}
    opening = sections.pop("opening")
    matrices = figures.matrices(outcome)
    # A matrix of too many classes stays what it is in the Markdown: a table.
    if matrices:
        sections = {
            name: Section(one.title, Markup()) if name in _IN_FIGURES else one
            for name, one in sections.items()
        }
    final = outcome.final
    return _TEMPLATES.get_template("page.html.jinja").render(
        title=opening.title,
        opening=opening.body,
        synthetic=SYNTHETIC if outcome.synthetic else "",
        sections=sections,
        style=Markup(STYLE),
        policy=f"default-src 'none'; style-src 'sha256-{_sha256(STYLE)}'; base-uri 'none'; form-action 'none'",
        curves=figures.curves(outcome),
        forests=figures.forests(outcome),
        matrices=matrices,
        class_curves=figures.class_curves(outcome, kept),
        site_curves=site_curves.site_curves(outcome, kept),
        thresholds=figures.thresholds(outcome, kept),
        classes=outcome.study.classes,
        side="" if final is None else final.side,
        left_out=list(_left_out(outcome, kept)),
        provenance=_provenance(outcome, run_dir),
        size=charts,
    )


def _left_out(outcome: Outcome, kept: LastScores) -> Iterator[str]:
    """What a reader may look for on the page, and why it is not there."""
    final, study = outcome.final, outcome.study
    if study.subgroups is None:
        yield "Figures by age, sex, body site or skin type: the study does not ask for them (`subgroups`)."
    if final is None:
        yield "Every figure of the model: no site scored it."
        return
    if figures.final_score(outcome, kept) is None:
        yield (
            "ROC, precision over recall, reliability and thresholds: the score histograms of this model are not on "
            "record (scores.json)."
        )
    else:
        if len(final.sites) > 1 and not site_curves.site_curves(outcome, kept):
            yield f"ROC and precision over recall by site: too many classes or sites, or {_NOT_KEPT}."
        yield "Reliability by site: only the sum over all sites is kept."
        if final.side == "test" and kept.of("validation", final.after_round) is None:
            yield "Thresholds chosen on validation images: this model has no scores on them."
    if len(study.classes) > charts.MOST_SERIES:
        yield f"ROC and precision over recall: {len(study.classes)} lines are too many for one chart."
    if len(study.classes) > figures.MOST_CLASSES:
        yield f"Recall by site and thresholds: a table each for {len(study.classes)} classes is too long."
    if len(final.sites) > figures.MOST_SITES:
        yield f"Confusion matrices by site: {len(final.sites)} of them are too many; rounds.jsonl has them."


def _provenance(outcome: Outcome, run_dir: Path) -> Mapping[str, str]:
    """What the page was made from and by."""
    found = {
        "Study": outcome.study.name,
        "Fingerprint of the study": outcome.study.fingerprint,
        "Seed": str(outcome.study.seed),
        "Rounds on record": f"{outcome.num_rounds} of {outcome.study.rounds}",
        "Program": f"consilium-fl {version()}",
    }
    for name in ("study.yaml", "rounds.jsonl", "census.json", "weights.safetensors", "best.safetensors"):
        path = run_dir / name
        if path.is_file():
            found[f"SHA-256 of {name}"] = sha256_of(path)
    return found


def _sha256(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()

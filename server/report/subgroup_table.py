"""The section of the report on subgroups: the test of all sites together, by age band, sex or what else was asked."""

import numpy as np
import numpy.typing as npt

from common.config.subgroups import titles
from common.metrics.pooling import interval
from server.report.outcome import Outcome
from server.report.text import listed, markdown_table, percent
from server.storage.subgroup_scores import SubgroupScores

MOST_CLASSES = 20
"""Beyond them a table by class is too long."""

_LEGEND = (
    "Percent, of the test images of the sites that count by the attribute, each once. *Sensitivity* is the share of a "
    "class's images that the model finds, *specificity* the share of the others that it does not take for the class; "
    "both by the class with the largest probability. *Balanced accuracy* is the mean sensitivity over the classes that "
    "the subgroup shows, so two subgroups with different classes cannot be compared by it, nor by their accuracy where "
    "the classes have other shares. The intervals are Wilson's; they take images as independent. AUROC takes the "
    "probabilities, which sites do not count by subgroup."
)


def section(outcome: Outcome) -> list[str]:
    """Nothing if the study does not ask for subgroups."""
    study, record = outcome.study, outcome.final_record
    if study.subgroups is None:
        return []
    parts = ["## Subgroups, pooled"]
    scored = {} if record is None or record.test is None else record.subgroups
    if not scored:
        return ["\n\n".join([*parts, f"None: {_why_none(outcome)}."])]
    for name, attribute in study.subgroups.items():
        if name in scored:
            parts += _of_attribute(outcome, name, titles(attribute), scored[name])
    if absent := [name for name in study.subgroups if name not in scored]:
        parts.append(f"No site counts by {listed(absent)}.")
    return ["\n\n".join([*parts, _LEGEND])]


def summary(outcome: Outcome) -> dict[str, str]:
    """What the model card says of subgroups."""
    study, record = outcome.study, outcome.final_record
    if study.subgroups is None:
        return {"Subgroups": "no figures by age, sex or the like: the study did not ask for them."}
    scored = {} if record is None else record.subgroups
    lacking = [name for name in study.subgroups if name not in scored]
    there = [name for name in study.subgroups if name in scored]
    sentences = [f"figures by {listed(there)} are in the table of subgroups"] if there else []
    sentences += [f"none by {listed(lacking)}"] if lacking else []
    return {"Subgroups": f"{'; '.join(sentences)}."}


def _why_none(outcome: Outcome) -> str:
    if not outcome.is_closed:
        return "sites count by subgroup in the test at the end, which is not on record"
    return "no site counts by them: its table names no column for it, or its policy forbids it"


def _of_attribute(outcome: Outcome, name: str, values: tuple[str, ...], scored: SubgroupScores) -> list[str]:
    confusion_VCC = np.array(scored.confusion_VCC, np.int64)
    rows = [[value, *_row(table_CC)] for value, table_CC in zip(values, confusion_VCC, strict=True)]
    head = [name, "images", "classes", "accuracy (95 % interval)", "balanced accuracy"]
    parts = [f"### By {name}", markdown_table(head, rows), _not_counted(outcome, scored, confusion_VCC)]
    classes = outcome.study.classes
    if len(classes) <= MOST_CLASSES:
        by_class = [
            [of_class, *(_of_class(table_CC, place) for table_CC in confusion_VCC)]
            for place, of_class in enumerate(classes)
        ]
        parts += [
            f"Sensitivity / specificity (images of the class) by {name}:",
            markdown_table(["class", *values], by_class),
        ]
    return parts


def _row(table_CC: npt.NDArray[np.int64]) -> list[str]:
    images_C, right_C = table_CC.sum(axis=1), table_CC.diagonal()
    images, right = int(images_C.sum()), int(right_C.sum())
    if not images:
        return ["-", "-", "-", "-"]
    low, high = interval(right, images)
    shown = images_C > 0
    balanced = float((right_C[shown] / images_C[shown]).mean())
    return [
        str(images),
        f"{int(shown.sum())} of {len(table_CC)}",
        f"{percent(right / images)} ({percent(low)} to {percent(high)})",
        percent(balanced),
    ]


def _of_class(table_CC: npt.NDArray[np.int64], place: int) -> str:
    of_class, found = int(table_CC[place].sum()), int(table_CC[place, place])
    others = int(table_CC.sum()) - of_class
    taken = int(table_CC[:, place].sum()) - found
    sensitivity = percent(found / of_class) if of_class else "-"
    specificity = percent((others - taken) / others) if others else "-"
    return f"{sensitivity} / {specificity} ({of_class or '-'})" if of_class or others else "-"


def _not_counted(outcome: Outcome, scored: SubgroupScores, confusion_VCC: npt.NDArray[np.int64]) -> str:
    """Images and sites that are not in a table, as a paragraph."""
    record = outcome.final_record
    sites = {} if record is None or record.test is None else record.test.sites
    tested = sum(sites[site].figures.num_images for site in scored.sites if site in sites)
    left = tested - int(confusion_VCC.sum())
    text = (
        f"{left} of {tested} images are in no row: their value is not known, or too few patients share a class and "
        "a value for their site's policy, or they are left out to hide such a row."
    )
    if without := [site for site in sites if site not in scored.sites]:
        text += f" Sites that do not count by it: {listed(without)}."
    return text

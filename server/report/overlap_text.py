"""The overlap of images between sites, as paragraphs of the report."""

from collections.abc import Collection, Sequence

from common.config import StudyConfig
from server.enrolment.overlap import Overlap, problems, proved, remarks
from server.report.text import escaped, listed


def paragraphs(
    study: StudyConfig,
    found: Overlap | None,
    *,
    trained: Collection[str] = (),
    absent: Collection[str] = (),
) -> Sequence[str]:
    """For the report. `trained` names the sites that the model learnt from, `absent` those that took no part."""
    if study.overlap is None or found is None:
        unseen = [site for site in study.sites.evaluate if site not in absent]
        return (
            [f"It was not checked whether images of {listed(unseen)} are at a training site, too."]
            if unseen
            else []
        )
    counts = ", ".join(f"{site} {number}" for site, number in found.compared.items())
    lines = [
        f"Images compared between sites by keyed hashes: {counts or 'none'}. Found are images with the same "
        "pixels, and pictures with the same perceptual hash; a copy that was cropped or recoloured is not."
    ]
    wrong, look = problems(study, found), remarks(study, found)
    wrong += [
        f"{site} trained the model and was not compared, because it was not there when the study was resumed"
        for site in study.sites.train
        if site in trained and site not in found.compared and site not in found.not_compared
    ]
    if not wrong and found.compared:
        lines.append(f"{proved(study, found)}.")
    lines += [f"**{escaped(sentence)}.**" for sentence in wrong]
    return [*lines, *(f"{escaped(sentence)}." for sentence in look)]

"""The overlap of images between sites, as paragraphs of the report."""

from collections.abc import Sequence

from common.config import StudyConfig
from server.enrolment.overlap import Overlap, problems, proved, remarks


def paragraphs(study: StudyConfig, found: Overlap | None) -> Sequence[str]:
    """For the report."""
    if study.overlap is None or found is None:
        unseen = ", ".join(study.sites.evaluate)
        return (
            [f"It was not checked whether images of {unseen} are at a training site, too."] if unseen else []
        )
    counts = ", ".join(f"{site} {number}" for site, number in found.compared.items())
    lines = [
        f"Images compared between sites by keyed hashes: {counts or 'none'}. Found are images with the same "
        "pixels, and pictures with the same perceptual hash; a copy that was cropped or recoloured is not."
    ]
    wrong, look = problems(study, found), remarks(study, found)
    if not wrong:
        lines.append(f"{proved(study, found)}.")
    return [*lines, *(f"**{sentence}.**" for sentence in wrong), *(f"{sentence}." for sentence in look)]

"""The training images of a site by class, with noise: drawn once for a study, and the same from then on.

What depends on how many images there are uses these: the site's weight in the mean, the class frequencies in its loss,
the length of its steps, the rules of its policy. A class never counts less than one image, so that a class without any
does not show.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from pydantic import Field

from client.privacy.budget import COUNTS, Budget, counts_charge
from client.training.private.patients import capped_counts
from client.training.private.secure_random import SecureRandom
from common.config import StudyConfig
from common.files import read_json, write_json
from common.settings import Frozen

FILE = "noisy-counts.json"


class NoisyCounts(Frozen):
    """The file, in the study's folder."""

    counts: tuple[Annotated[int, Field(ge=1)], ...]


def noisy_counts(
    study: StudyConfig, labels_N: Sequence[int], groups_N: Sequence[str], budget: Budget, folder: Path
) -> tuple[int, ...]:
    """Images by class; `groups_N` are the images' patients. Raises PolicyRefusal and StorageError.

    A patient adds `images_per_patient` at most, so noise in that unit is on each class.
    """
    privacy = study.privacy
    assert privacy is not None
    if (kept := read_json(folder / FILE, NoisyCounts)) is not None:
        return kept.counts
    budget.charge(study, COUNTS, counts_charge(privacy))
    true = capped_counts(labels_N, groups_N, len(study.classes), privacy.images_per_patient)
    noise = privacy.count_noise * privacy.images_per_patient * SecureRandom().normals(len(true))
    noisy = tuple(max(1, round(count + drawn)) for count, drawn in zip(true, noise, strict=True))
    write_json(folder / FILE, NoisyCounts(counts=noisy))
    return noisy

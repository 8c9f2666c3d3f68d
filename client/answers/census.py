"""The images of a site by class and side, as the server learns them: in the enrolment, or under masks as a sum.

Under masks the counts are kept on disk before they leave, and every later answer has the same ones. Otherwise a site
whose images changed would send two numbers under one mask, and their difference would be in clear.
"""

from typing import Annotated

import numpy as np
from pydantic import Field

from client.study_setup import StudySetup
from common import log
from common.files import read_json, write_json
from common.masking.stream import Words
from common.settings import Frozen

FILE = "masked-census.json"

ByClass = tuple[Annotated[int, Field(ge=0)], ...]


class Census(Frozen):
    """The file, in the study's folder. Images by class."""

    train: ByClass
    validation: ByClass
    test: ByClass

    @property
    def words(self) -> Words:
        """The three sides, one after the other."""
        return np.array([*self.train, *self.validation, *self.test], np.uint64)


def census(setup: StudySetup, train_counts: tuple[int, ...]) -> Census:
    """What this site has for the study. With privacy `train_counts` have noise, and nothing else is counted."""
    validation, test = (setup.store.class_counts(side) for side in ("validation", "test"))
    if setup.is_private:
        validation = test = (0,) * len(train_counts)
    return Census(train=train_counts, validation=validation, test=test)


def kept(setup: StudySetup, train_counts: tuple[int, ...]) -> Census:
    """The census that this site gives under masks, which stays that of the first time. Raises StorageError."""
    path, now = setup.state.folder / FILE, census(setup, train_counts)
    before = read_json(path, Census)
    if before is None:
        write_json(path, now)
        return now
    if before != now:
        log.warn(
            "this site's images have changed since it was counted for the study; the server gets no other count"
        )
    return before

"""Settings of a site's split into training and test images."""

from typing import Annotated, Literal, Self, TypeAlias

from pydantic import Field, model_validator

from common.settings import Frozen


class GroupedSplit(Frozen):
    """Draws test images by class; all images of a group are on one side."""

    kind: Literal["grouped"] = "grouped"
    test_share: Annotated[float, Field(ge=0.05, le=0.5)] = 0.2
    """Share of the images, of each class, that are test images."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Another seed draws other test images."""


class KFoldSplit(Frozen):
    """One of several folds is for testing; every image is tested on in one of them."""

    kind: Literal["kfold"] = "kfold"
    folds: Annotated[int, Field(ge=2, le=20)] = 5
    """Number of folds."""
    fold: Annotated[int, Field(ge=0)]
    """Which one is for testing, from 0."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Another seed draws other test images."""

    @model_validator(mode="after")
    def _fold_exists(self) -> Self:
        if self.fold >= self.folds:
            raise ValueError(f"fold={self.fold} of folds={self.folds}; expected 0 to {self.folds - 1}")
        return self


class ByImageSplit(Frozen):
    """Draws test images by class and ignores that some show one lesion: too optimistic.

    Only for comparison with work that split so.
    """

    kind: Literal["by_image"] = "by_image"
    test_share: Annotated[float, Field(ge=0.05, le=0.5)] = 0.2
    """Share of the images, of each class, that are test images."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Another seed draws other test images."""


class ColumnSplit(Frozen):
    """Takes the split that comes with the data: a csv column, or `train` and `test` folders."""

    kind: Literal["column"] = "column"


class NoSplit(Frozen):
    """Every image is on one side."""

    kind: Literal["none"] = "none"
    all: Literal["train", "test"]
    """The side that every image is on."""


SplitConfig: TypeAlias = Annotated[
    GroupedSplit | KFoldSplit | ByImageSplit | ColumnSplit | NoSplit, Field(discriminator="kind")
]

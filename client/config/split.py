"""Settings of a site's split into training, validation and test images.

Rounds are scored and choices are made on validation images. Test images are scored once, when the study has chosen
its weights.
"""

from typing import Annotated, ClassVar, Literal, Self, TypeAlias

from pydantic import Field, model_validator

from common.settings import Frozen


class _Validation(Frozen):
    """What every split says of its validation images."""

    validation: Annotated[float, Field(ge=0, le=0.5)] = 0.15
    """Share of the images that are not for testing, of each class, that are validation images: the study chooses by
    them, and nothing trains on them. 0: none."""
    stratified: bool = Field(default=True, exclude_if=lambda stratified: stratified)
    """True: each side gets its share of every class, so one patient more can move others to another side. False: the
    side of each patient is drawn by itself, as the promise of differential privacy takes for granted; rare classes may
    then be missing on a side."""

    _draws_test: ClassVar[bool] = False

    @property
    def deals_patients(self) -> bool:
        """Whether a patient's side depends on the other patients."""
        return self.stratified and (self.validation > 0 or self._draws_test)


class GroupedSplit(_Validation):
    """Draws test images by class; all images of a group are on one side."""

    _draws_test: ClassVar[bool] = True

    kind: Literal["grouped"] = "grouped"
    test_share: Annotated[float, Field(ge=0.05, le=0.5)] = 0.2
    """Share of the images, of each class, that are test images."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Another seed draws other test and validation images."""


class KFoldSplit(_Validation):
    """One of several folds is for testing; every image is tested on in one of them."""

    _draws_test: ClassVar[bool] = True

    kind: Literal["kfold"] = "kfold"
    folds: Annotated[int, Field(ge=2, le=20)] = 5
    """Number of folds."""
    fold: Annotated[int, Field(ge=0)]
    """Which one is for testing, from 0."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Another seed draws other test and validation images."""

    @model_validator(mode="after")
    def _fold_exists(self) -> Self:
        if self.fold >= self.folds:
            raise ValueError(f"fold={self.fold} of folds={self.folds}; expected 0 to {self.folds - 1}")
        return self


class ByImageSplit(_Validation):
    """Draws test images by class and ignores that some show one lesion: too optimistic.

    Only for comparison with work that split so.
    """

    _draws_test: ClassVar[bool] = True

    kind: Literal["by_image"] = "by_image"
    test_share: Annotated[float, Field(ge=0.05, le=0.5)] = 0.2
    """Share of the images, of each class, that are test images."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Another seed draws other test and validation images."""


class ColumnSplit(_Validation):
    """Takes the split that comes with the data: a csv column, or `train`, `validation` and `test` folders.

    Where it names no validation images, they are drawn from the training images.
    """

    kind: Literal["column"] = "column"
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Another seed draws other validation images."""


class NoSplit(_Validation):
    """Every image is on one side, but for validation images that are drawn from training images."""

    kind: Literal["none"] = "none"
    all: Literal["train", "validation", "test"]
    """The side that every image is on."""
    validation: Annotated[float, Field(ge=0, le=0.5)] = 0.0
    """Share of the training images, of each class, that are validation images; 0: none."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Another seed draws other validation images."""

    @model_validator(mode="after")
    def _only_training_images_are_divided(self) -> Self:
        if self.all != "train" and self.validation:
            raise ValueError(
                f"validation={self.validation:g} is a share of training images, found all: {self.all}; leave it out"
            )
        return self


SplitConfig: TypeAlias = Annotated[
    GroupedSplit | KFoldSplit | ByImageSplit | ColumnSplit | NoSplit, Field(discriminator="kind")
]

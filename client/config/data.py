"""Settings of a site's images: which files, which labels, which groups."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self, TypeAlias

from pydantic import Field, StringConstraints, field_validator, model_validator

from client.config.cells import Cell, Column
from client.config.subgroups import SubgroupColumn, SubgroupTag
from common.config import Name
from common.settings import Frozen, Renamed


class Columns(Frozen):
    """Which column of labels.csv holds what."""

    image: Column = "file"
    """Image file, relative to `images`."""
    label: Column = "label"
    """Class name, spelled as in the study."""
    patient: Column | None = None
    """Patient. Images of one patient are never on both sides of a split."""
    lesion: Column | None = None
    """Lesion. Images of one lesion are never on both sides of a split; name both where both are known."""
    group: Column | None = None
    """Any other group of images that must stay on one side, or one of which it is not known whether it is a
    patient or a lesion."""
    acquisition: Column | None = None
    """Device, clinic or collection that an image is from."""
    split: Column | None = None
    """`train` or `test`, for `split: {kind: column}`."""


class RowFilter(Frozen):
    """Rows of one site in a csv that several sites share."""

    column: Column
    """Column that is compared."""
    values: Annotated[tuple[Cell, ...], Field(min_length=1)]
    """Rows with one of these values are taken."""


class Mapped(Frozen):
    """Base of all data: how its class names become the study's, and which images are taken."""

    RENAMED: ClassVar[Mapping[str, Renamed]] = {"take": Renamed("image_list", since="0.2")}

    image_list: Path | None = None
    """A csv that `consilium-site partition` wrote: only its images are used, on its sides of the split."""
    label_map: dict[Cell, Name | None] = {}  # noqa: RUF012  (pydantic copies it)
    """Study class by the name that the data has, e.g. `{melanoma: mel, naevus: nv}`; several may become
    one, and null leaves images of a class out. A name that is not here stays as it is."""
    unknown_labels: Literal["error", "drop"] = "error"
    """What becomes of images whose class is not in the study: all are named, or left out with a count."""


class Tabled(Mapped):
    """Base of data with a table, which may know more of an image than its class."""

    subgroups: dict[Name, SubgroupColumn] = {}  # noqa: RUF012  (pydantic copies it)
    """Columns by which test images are counted for a study's `subgroups`, by the study's name: `{sex: {column: Gender,
    values: {f: female, m: male}}, age: {column: Age}}`. Without a column a study gets no such counts from here."""


class TabledApart(Tabled):
    """A kind whose table is a file beside the images, and may be left out."""

    metadata: Path | None = None

    @model_validator(mode="after")
    def _subgroups_have_a_table(self) -> Self:
        if self.subgroups and self.metadata is None:
            raise ValueError(
                "subgroups are columns of metadata, which names no table; name it, or leave them out"
            )
        return self


class CsvData(Tabled):
    """One line per image in a csv."""

    RENAMED: ClassVar[Mapping[str, Renamed]] = {
        **Mapped.RENAMED,
        "only": Renamed("row_filter", since="0.2"),
    }

    kind: Literal["csv"] = "csv"
    labels: Path
    """The csv, with a header line."""
    images: Path | None = None
    """Folder that image files are relative to; None: the folder of `labels`."""
    columns: Columns = Columns()
    """Names of the columns."""
    row_filter: RowFilter | None = None
    """Which rows of the csv are this site's; None: all."""

    @property
    def image_folder(self) -> Path:
        """Folder that image files are relative to."""
        return self.labels.parent if self.images is None else self.images


class GroupPattern(Frozen):
    """Patient of an image, as its path names it."""

    pattern: Annotated[str, StringConstraints(min_length=1)]
    """A regular expression (Python's `re`) that is searched in the path below `root`, with `/` between folders.
    Its first group in parentheses is the patient, e.g. `/(P[0-9]+)_` for `benign/P017_2.png`; without a
    group, all that it matches."""

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, pattern: str) -> str:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f"{pattern!r} is no regular expression ({error}); correct it") from error
        return pattern


class FoldersData(Mapped):
    """One folder per class, or `train` and `test` folders that hold one folder per class."""

    kind: Literal["folders"] = "folders"
    root: Path
    """The folder with the class folders, or with `train` and `test`."""
    group: GroupPattern | None = None
    """How a path names the patient. Images of one patient are never on both sides of a split."""


class Ham10000Data(Tabled):
    """HAM10000 as it is downloaded; classes akiec, bcc, bkl, df, mel, nv, vasc."""

    kind: Literal["ham10000"] = "ham10000"
    metadata: Path
    """HAM10000_metadata.csv."""
    images: tuple[Path, ...] = ()
    """The folders of part 1 and part 2; none: wherever they lie beside the metadata."""
    sources: tuple[Cell, ...] = ()
    """Only images of these sources (column `dataset`): vidir_molemax, vidir_modern, rosendahl, vienna_dias."""


class IsicData(TabledApart):
    """An ISIC challenge; classes MEL, NV, BCC, AKIEC (2018) or AK (2019), BKL, DF, VASC, and in 2019 SCC, UNK."""

    kind: Literal["isic2018", "isic2019"]
    ground_truth: Path
    """The table with a column per class."""
    images: Path
    """The folder with the images."""
    metadata: Path | None = None
    """The table with the lesion of each image. Without it, images of one lesion may come on both sides of a
    split."""


class FedIsic2019Data(TabledApart):
    """One centre of Fed-ISIC2019, on ISIC 2019's images; classes as there."""

    kind: Literal["fed_isic2019"] = "fed_isic2019"
    split_file: Path
    """FLamby's train_test_split."""
    center: Annotated[int, Field(ge=0, le=5)]
    """Which centre, as FLamby numbers them."""
    images: Path
    """The folder with ISIC 2019's images."""
    metadata: Path | None = None
    """ISIC 2019's, for the lesion of each image."""


class MostTumour(Frozen):
    """The slices of each patient that show most tumour."""

    kind: Literal["most_tumour"] = "most_tumour"
    count: Annotated[int, Field(ge=1, le=155)] = 5
    """Slices per patient."""


class EverySlice(Frozen):
    """Axial slices at a regular distance, where they show brain."""

    kind: Literal["every"] = "every"
    step: Annotated[int, Field(ge=1, le=155)]
    """Distance from one slice to the next."""


Modality = Literal["t1", "t1ce", "t2", "flair"]


class BratsData(Mapped):
    """BraTS 2018 to 2020 as slices; classes HGG, LGG."""

    kind: Literal["brats"] = "brats"
    root: Path
    """The folder with HGG and LGG (2018, 2019), or with name_mapping.csv (2020)."""
    channels: tuple[Modality, Modality, Modality] = ("t1ce", "t2", "flair")
    """Three of the four volumes, as red, green and blue: encoders take three."""
    slices: Annotated[MostTumour | EverySlice, Field(discriminator="kind")] = MostTumour()
    """Which slices of a volume become images."""


class BrainMriData(Mapped):
    """Brain-tumour MRI folders; classes glioma, meningioma, notumor, pituitary."""

    kind: Literal["brain_mri"] = "brain_mri"
    root: Path
    """The folder with Training and Testing, or with one folder per class."""


class DicomWindow(Frozen):
    """Values that become black to white, in the modality's unit (Hounsfield for CT)."""

    centre: float
    """Value that becomes mid-grey."""
    width: Annotated[float, Field(ge=1)]
    """Distance from the value that becomes black to the one that becomes white."""


class DicomColumns(Frozen):
    """Which column of the csv holds what."""

    key: Column | None = None
    """What `match` names; None: a column of that name."""
    label: Column = "label"
    """Class name, spelled as in the study."""
    split: Column | None = None
    """`train` or `test`, for `split: {kind: column}`."""


class DicomData(Tabled):
    """DICOM files anywhere under a folder, labelled by a csv."""

    kind: Literal["dicom"] = "dicom"
    root: Path
    """The folder with the files, at any depth."""
    labels: Path
    """The csv with a label for each image, series, study or patient."""
    match: Literal["SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID", "PatientID"] = "SOPInstanceUID"
    """What a line of the csv identifies."""
    columns: DicomColumns = DicomColumns()
    """Names of the csv's columns."""
    window: DicomWindow | None = None
    """None: the file's own, or else the 1st to the 99th percentile of each frame."""
    frames: Literal["all", "middle"] = "all"
    """Which images of a file with several frames."""
    subgroup_tags: dict[Name, SubgroupTag] = {}  # noqa: RUF012  (pydantic copies it)
    """As `subgroups`, from the files' headers: `{sex: {tag: PatientSex, values: {F: female, M: male}}, age: {tag:
    PatientAge}}`. A file without the tag counts as not known."""

    @model_validator(mode="after")
    def _an_attribute_has_one_source(self) -> Self:
        if both := sorted(self.subgroups.keys() & self.subgroup_tags.keys()):
            raise ValueError(
                f"{', '.join(both)}: both subgroups and subgroup_tags name it; keep the column or the tag"
            )
        return self


class MedMnistData(Mapped):
    """A MedMNIST archive of flat images, any size; classes 0, 1, ..., which `label_map` may name."""

    kind: Literal["medmnist"] = "medmnist"
    archive: Path
    """NAME.npz."""


DataConfig: TypeAlias = Annotated[
    CsvData
    | FoldersData
    | Ham10000Data
    | IsicData
    | FedIsic2019Data
    | BratsData
    | BrainMriData
    | DicomData
    | MedMnistData,
    Field(discriminator="kind"),
]

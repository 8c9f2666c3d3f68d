"""Where one hospital's images lie, what they may be used for, and with what. Never leaves the site.

What is trained is the study's business (`common/config/study.py`); nothing here is ever sent, so a
path with a patient's name in it stays where it is. Paths may be relative to the YAML's own
folder, so that a site's folder can be moved or mounted elsewhere as a whole.
"""

import re
from datetime import time
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeAlias, TypeVar, assert_never
from zoneinfo import ZoneInfo

from pydantic import Field, StringConstraints, field_validator, model_serializer, model_validator

from common.config import Name
from common.settings import Frozen, load_settings

Column = Annotated[str, StringConstraints(min_length=1)]
"""A column of a csv, spelled as in its first line."""
Cell = Annotated[str, Field(coerce_numbers_to_str=True)]
"""A value in a csv; YAML reads a bare 3 as a number."""


# --- images and labels ---------------------------------------------------------------------


class Columns(Frozen):
    """Which column of labels.csv holds what."""

    image: Column = "file"
    """Image file, relative to `images`."""
    label: Column = "label"
    """Class name, spelled as in the study."""
    patient: Column | None = None
    lesion: Column | None = None
    """Images of one patient or one lesion are never on both sides of a split; name both where both are known."""
    group: Column | None = None
    """The same for whatever else must not be torn apart, or where it is not said which of the two it is."""
    acquisition: Column | None = None
    """Device, clinic or collection that an image is from."""
    split: Column | None = None
    """`train` or `test`, for `split: {kind: column}`."""


class Only(Frozen):
    """Takes some rows of a csv that several sites share."""

    column: Column
    values: Annotated[tuple[Cell, ...], Field(min_length=1)]


class Mapped(Frozen):
    """Base of all data: how its class names become the study's, and which images are taken."""

    take: Path | None = None
    """A csv that `consilium-site partition` wrote: only its images are taken, on the sides it says."""
    label_map: dict[Cell, Name | None] = {}  # noqa: RUF012  (pydantic copies it)
    """Study class by the name that the data has, e.g. `{melanoma: mel, naevus: nv}`; several may become
    one, and null leaves images of a class out. A name that is not here stays as it is."""
    unknown_labels: Literal["error", "drop"] = "error"
    """What becomes of images whose class is not in the study: all are named, or left out with a count."""


class CsvData(Mapped):
    """One line per image in a csv."""

    kind: Literal["csv"] = "csv"
    labels: Path
    images: Path | None = None
    """Folder that image files are relative to; None: the folder of `labels`."""
    columns: Columns = Columns()
    only: Only | None = None

    @property
    def image_folder(self) -> Path:
        """Folder that image files are relative to."""
        return self.labels.parent if self.images is None else self.images


class FoldersData(Mapped):
    """One folder per class, or `train` and `test` folders that hold one folder per class."""

    kind: Literal["folders"] = "folders"
    root: Path


class Ham10000Data(Mapped):
    """HAM10000 as it is downloaded; classes akiec, bcc, bkl, df, mel, nv, vasc."""

    kind: Literal["ham10000"] = "ham10000"
    metadata: Path
    """HAM10000_metadata.csv."""
    images: tuple[Path, ...] = ()
    """The folders of part 1 and part 2; none: wherever they lie beside the metadata."""
    sources: tuple[Cell, ...] = ()
    """Only images of these sources (column `dataset`): vidir_molemax, vidir_modern, rosendahl, vienna_dias."""


class IsicData(Mapped):
    """An ISIC challenge; classes MEL, NV, BCC, AKIEC (2018) or AK (2019), BKL, DF, VASC, and in 2019 SCC, UNK."""

    kind: Literal["isic2018", "isic2019"]
    ground_truth: Path
    """The table with a column per class."""
    images: Path
    metadata: Path | None = None
    """The table with the lesion of each image; without it, images of one lesion may be torn apart."""


class FedIsic2019Data(Mapped):
    """One centre of Fed-ISIC2019, on ISIC 2019's images; classes as there."""

    kind: Literal["fed_isic2019"] = "fed_isic2019"
    split_file: Path
    """FLamby's train_test_split."""
    center: Annotated[int, Field(ge=0, le=5)]
    images: Path
    metadata: Path | None = None
    """ISIC 2019's, for the lesion of each image."""


class MostTumour(Frozen):
    """The slices of each patient that show most tumour."""

    kind: Literal["most_tumour"] = "most_tumour"
    count: Annotated[int, Field(ge=1, le=155)] = 5


class EverySlice(Frozen):
    """Every so many axial slices, where they show brain."""

    kind: Literal["every"] = "every"
    step: Annotated[int, Field(ge=1, le=155)]


Modality = Literal["t1", "t1ce", "t2", "flair"]


class BratsData(Mapped):
    """BraTS 2018 to 2020 as slices; classes HGG, LGG."""

    kind: Literal["brats"] = "brats"
    root: Path
    """The folder with HGG and LGG (2018, 2019), or with name_mapping.csv (2020)."""
    channels: tuple[Modality, Modality, Modality] = ("t1ce", "t2", "flair")
    """Three of the four volumes, as red, green and blue: encoders take three."""
    slices: Annotated[MostTumour | EverySlice, Field(discriminator="kind")] = MostTumour()


class BrainMriData(Mapped):
    """Brain-tumour MRI folders; classes glioma, meningioma, notumor, pituitary."""

    kind: Literal["brain_mri"] = "brain_mri"
    root: Path
    """The folder with Training and Testing, or with one folder per class."""


class DicomWindow(Frozen):
    """Values that become black to white, in the modality's unit (Hounsfield for CT)."""

    centre: float
    width: Annotated[float, Field(ge=1)]


class DicomColumns(Frozen):
    """Which column of the csv holds what."""

    key: Column | None = None
    """What `match` names; None: a column of that name."""
    label: Column = "label"
    split: Column | None = None
    """`train` or `test`, for `split: {kind: column}`."""


class DicomData(Mapped):
    """DICOM files anywhere under a folder, labelled by a csv."""

    kind: Literal["dicom"] = "dicom"
    root: Path
    labels: Path
    match: Literal["SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID", "PatientID"] = "SOPInstanceUID"
    """What a line of the csv speaks of."""
    columns: DicomColumns = DicomColumns()
    window: DicomWindow | None = None
    """None: the file's own, or else the 1st to the 99th percentile of each frame."""
    frames: Literal["all", "middle"] = "all"
    """Which images of a file with several."""


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


# --- train and test ------------------------------------------------------------------------


class GroupedSplit(Frozen):
    """Draws test images by class; all images of a group are on one side."""

    kind: Literal["grouped"] = "grouped"
    test_share: Annotated[float, Field(ge=0.05, le=0.5)] = 0.2
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0


class KFoldSplit(Frozen):
    """One of several folds is for testing; every image is tested on in one of them."""

    kind: Literal["kfold"] = "kfold"
    folds: Annotated[int, Field(ge=2, le=20)] = 5
    fold: Annotated[int, Field(ge=0)]
    """Which one is for testing, from 0."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0

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
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0


class ColumnSplit(Frozen):
    """Takes the split that comes with the data: a csv column, or `train` and `test` folders."""

    kind: Literal["column"] = "column"


class NoSplit(Frozen):
    """Every image is on one side."""

    kind: Literal["none"] = "none"
    all: Literal["train", "test"]


SplitConfig: TypeAlias = Annotated[
    GroupedSplit | KFoldSplit | ByImageSplit | ColumnSplit | NoSplit, Field(discriminator="kind")
]


# --- what the hospital agreed to -----------------------------------------------------------


Pattern = Annotated[str, StringConstraints(min_length=1)]
"""A name, in which `*` stands for any text: `isic-*`."""
Patterns = Annotated[tuple[Pattern, ...], Field(min_length=1)]
_CLOCK = re.compile(r"\s*(\d{1,2}):(\d{2})\s*-\s*(\d{1,2}):(\d{2})\s*")


class Hours(Frozen):
    """A part of the day, written "19:00-07:00"; it may reach past midnight."""

    opens: time
    closes: time
    """The first minute in which no plan is taken any more."""

    @model_validator(mode="before")
    @classmethod
    def _read(cls, value: Any) -> Any:
        match = _CLOCK.fullmatch(value) if isinstance(value, str) else None
        try:
            opens, closes = (time(int(h) % 24, int(m)) for h, m in (match.group(1, 2), match.group(3, 4)))  # type: ignore[union-attr]
        except (AttributeError, ValueError):
            raise ValueError(f'found {value!r}, expected two times of day like "19:00-07:00"') from None
        if opens == closes:
            raise ValueError(
                f"{value!r} opens and closes at the same time; leave hours out to allow any time"
            )
        return {"opens": opens, "closes": closes}

    @model_serializer
    def _write(self) -> str:
        return f"{self.opens:%H:%M}-{self.closes:%H:%M}"


class PolicyConfig(Frozen):
    """What this hospital agreed to. A rule that is left out allows everything.

    Names are compared as the study spells them, capitals included.
    """

    studies: Patterns | None = None
    """Names of studies that may run here."""
    encoders: Patterns | None = None
    """Encoders that may be trained here."""
    max_epochs_per_round: Annotated[float, Field(gt=0)] | None = None
    """Passes over the training images in one round; steps count as steps x batch / images."""
    max_rounds_per_day: Annotated[int, Field(ge=0)] | None = None
    """Rounds of training, of all studies together, from midnight to midnight."""
    min_train_images: Annotated[int, Field(ge=1)] | None = None
    """Fewest training images with which this site trains."""
    min_class_images: Annotated[int, Field(ge=1)] | None = None
    """Fewest training images of each class that has any."""
    min_cell: Annotated[int, Field(ge=2)] | None = None
    """Fewest groups (patients or lesions; images where no group is known) that may be counted. A class
    with fewer on one side of the split is left out there: neither counted nor trained on nor scored."""
    scores: bool = True
    """False: the model is not scored on this site's images and no test image is counted."""
    overlap: bool = True
    """False: a study that compares images between sites is refused; `overlap_secret` alone lets none."""
    tensors: Patterns | None = None
    """Tensors that may leave, by name. A study that trains others is refused."""
    heads: tuple[Pattern, ...] | None = None
    """Classical heads that may be fitted on this site's features, as `local.svm_rbf` or `federated.lda`; an
    empty list allows none. A study that lists others gets no heads from this site."""
    max_mib_down: Annotated[float, Field(gt=0)] | None = None
    """Largest plan in MiB (2**20 bytes); a round has one."""
    max_mib_up: Annotated[float, Field(gt=0)] | None = None
    """Largest answer."""
    hours: Hours | None = None
    """When plans are taken. One that was taken in time is finished, however long it takes."""
    timezone: str | None = None
    """Of `hours` and of a day, e.g. `Europe/Berlin`; None: the trainer's own, which is UTC in most containers."""
    ask: bool = False
    """A study waits until a person at this site has approved it."""

    @field_validator("timezone")
    @classmethod
    def _timezone_exists(cls, timezone: str | None) -> str | None:
        try:
            return None if timezone is None else ZoneInfo(timezone).key
        except (OSError, ValueError, KeyError):
            raise ValueError(f"found {timezone!r}, expected a name such as Europe/Berlin or UTC") from None


# --- the site ------------------------------------------------------------------------------


class CacheConfig(Frozen):
    """How much room decoded images may take, so that no epoch decodes a JPEG twice."""

    memory_mib: Annotated[int, Field(ge=0)] = 256
    """Up to here they are kept in memory and decoded at every start, above it in a file under `state_dir`,
    which is as fast to train from and outlives a restart. 256 MiB are some 1,300 images at 224 pixels."""
    disk_mib: Annotated[int, Field(ge=0)] = 20480
    """Most that such files may take together."""


class SiteConfig(Frozen):
    """One hospital's trainer."""

    name: Name
    """As the study calls this site."""
    data: DataConfig
    split: SplitConfig = GroupedSplit()
    state_dir: Path
    """Folder that the trainer may write to; it keeps decoded images and its own state there."""
    weights_dir: Path | None = None
    """Folder with weights files that studies may start from."""
    device: Annotated[str, StringConstraints(pattern=r"^(auto|cpu|cuda(:\d+)?)$")] = "auto"
    """`auto` (a GPU if there is one), `cpu`, `cuda` or `cuda:1`."""
    threads: Annotated[int, Field(ge=1)] | None = None
    """CPU threads to compute and to decode with; None: as many as there are cores."""
    cache: CacheConfig = CacheConfig()
    policy: PolicyConfig = PolicyConfig()
    overlap_secret: Path | None = None
    """File with 64 hexadecimal digits that all sites of a study share and its server must not have
    (`openssl rand -hex 32`). With it, a study can find out whether sites hold the same images."""
    socket: Path | None = None
    """Unix socket on which the trainer listens for its gateway."""

    @model_validator(mode="after")
    def _split_has_a_column(self) -> Self:
        if self.data.take is not None:
            return self  # it may say the sides, whatever kind of data it chooses from
        if isinstance(self.split, ColumnSplit) and isinstance(self.data, Ham10000Data | IsicData):
            raise ValueError(  # noqa: TRY004  (pydantic takes no other)
                f"split.kind is column, but {self.data.kind} comes without a split; use grouped"
            )
        if not isinstance(self.data, CsvData | DicomData):
            return self
        column = self.data.columns.split
        if isinstance(self.split, ColumnSplit) and column is None:
            raise ValueError("split.kind is column, but data.columns.split names none; name the csv's column")
        if not isinstance(self.split, ColumnSplit) and column is not None:
            raise ValueError(
                f"data.columns.split={column!r} is not used by split.kind={self.split.kind!r}; "
                "set split.kind to column or remove the column"
            )
        return self


def load_site(path: Path) -> SiteConfig:
    """Read a site's YAML; relative paths count from its folder. Raises ConfigError."""
    site = load_settings(path, SiteConfig, "site")
    home = path.parent.absolute()
    return _with_paths(
        site,
        data=_located(site.data, home),
        state_dir=_under(home, site.state_dir),
        weights_dir=_under(home, site.weights_dir),
        overlap_secret=_under(home, site.overlap_secret),
        socket=_under(home, site.socket),
    )


def _located(data: DataConfig, home: Path) -> DataConfig:
    data = _with_paths(data, take=_under(home, data.take))
    match data:
        case CsvData():
            return _with_paths(data, labels=_under(home, data.labels), images=_under(home, data.images))
        case FoldersData() | BratsData() | BrainMriData():
            return _with_paths(data, root=_under(home, data.root))
        case DicomData():
            return _with_paths(data, root=_under(home, data.root), labels=_under(home, data.labels))
        case MedMnistData():
            return _with_paths(data, archive=_under(home, data.archive))
        case Ham10000Data():
            images = tuple(home / folder.expanduser() for folder in data.images)
            return _with_paths(data, metadata=_under(home, data.metadata), images=images)
        case IsicData():
            return _with_paths(
                data,
                ground_truth=_under(home, data.ground_truth),
                images=_under(home, data.images),
                metadata=_under(home, data.metadata),
            )
        case FedIsic2019Data():
            return _with_paths(
                data,
                split_file=_under(home, data.split_file),
                images=_under(home, data.images),
                metadata=_under(home, data.metadata),
            )
        case _:
            assert_never(data)


def _under(home: Path, path: Path | None) -> Path | None:
    # Joining keeps an absolute `path` as it is.
    return None if path is None else home / path.expanduser()


Settings = TypeVar("Settings", bound=Frozen)


def _with_paths(settings: Settings, **changes: object) -> Settings:
    return settings.model_copy(update=changes)

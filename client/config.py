"""Where one hospital's images lie and what may be used to train on them. Never leaves the site.

What is trained is the study's business (`common/config.py`); nothing here is ever sent, so a
path with a patient's name in it stays where it is. Paths may be relative to the YAML's own
folder, so that a site's folder can be moved or mounted elsewhere as a whole.
"""

from pathlib import Path
from typing import Annotated, Literal, Self, TypeAlias, TypeVar, assert_never

from pydantic import Field, StringConstraints, model_validator

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
    group: Column | None = None
    """What must not be torn apart by a split: lesion or patient, e.g. `lesion_id`."""
    split: Column | None = None
    """`train` or `test`, for `split: {kind: column}`."""


class Only(Frozen):
    """Takes some rows of a csv that several sites share."""

    column: Column
    values: Annotated[tuple[Cell, ...], Field(min_length=1)]


class CsvData(Frozen):
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


class FoldersData(Frozen):
    """One folder per class, or `train` and `test` folders that hold one folder per class."""

    kind: Literal["folders"] = "folders"
    root: Path


DataConfig: TypeAlias = Annotated[CsvData | FoldersData, Field(discriminator="kind")]


# --- train and test ------------------------------------------------------------------------


class GroupedSplit(Frozen):
    """Draws test images by class; all images of a group are on one side."""

    kind: Literal["grouped"] = "grouped"
    test_share: Annotated[float, Field(ge=0.05, le=0.5)] = 0.2
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0


class ColumnSplit(Frozen):
    """Takes the split that comes with the data: a csv column, or `train` and `test` folders."""

    kind: Literal["column"] = "column"


class NoSplit(Frozen):
    """Every image is on one side."""

    kind: Literal["none"] = "none"
    all: Literal["train", "test"]


SplitConfig: TypeAlias = Annotated[GroupedSplit | ColumnSplit | NoSplit, Field(discriminator="kind")]


# --- the site ------------------------------------------------------------------------------


class CacheConfig(Frozen):
    """How much room decoded images may take, so that no epoch decodes a JPEG twice."""

    memory_mib: Annotated[int, Field(ge=0)] = 2048
    """Up to here they are kept in memory, above it in a file under `state_dir`."""
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
    socket: Path | None = None
    """Unix socket on which the trainer listens for its gateway."""

    @model_validator(mode="after")
    def _split_has_a_column(self) -> Self:
        if not isinstance(self.data, CsvData):
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
        socket=_under(home, site.socket),
    )


def _located(data: CsvData | FoldersData, home: Path) -> CsvData | FoldersData:
    match data:
        case CsvData():
            return _with_paths(data, labels=_under(home, data.labels), images=_under(home, data.images))
        case FoldersData():
            return _with_paths(data, root=_under(home, data.root))
        case _:
            assert_never(data)


def _under(home: Path, path: Path | None) -> Path | None:
    # Joining keeps an absolute `path` as it is.
    return None if path is None else home / path.expanduser()


Settings = TypeVar("Settings", bound=Frozen)


def _with_paths(settings: Settings, **changes: object) -> Settings:
    return settings.model_copy(update=changes)

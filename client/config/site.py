"""Where one hospital's images lie, what they may be used for, and with what. Never leaves the site.

What is trained is the study's business (`common/config/study.py`); nothing here is ever sent, so a
path with a patient's name in it stays where it is. Paths may be relative to the YAML's own
folder, so that a site's folder can be moved or mounted elsewhere as a whole.
"""

import re
from pathlib import Path
from typing import Annotated, Self, TypeAlias, TypeVar, assert_never

from pydantic import Discriminator, Field, StringConstraints, Tag, model_validator

from client.config.data import (
    BrainMriData,
    BratsData,
    CsvData,
    DataConfig,
    DicomData,
    FedIsic2019Data,
    FoldersData,
    Ham10000Data,
    IsicData,
    MedMnistData,
)
from client.config.policy import PolicyConfig
from client.config.split import ColumnSplit, GroupedSplit, SplitConfig
from common.config import Name
from common.errors import ConfigError
from common.settings import Frozen, load_settings

_CONTROL = re.compile("[\x00-\x1f\x7f]")


class CacheConfig(Frozen):
    """How much room decoded images may take, so that no epoch decodes a JPEG twice."""

    memory_mib: Annotated[int, Field(ge=0)] = 256
    """Decoded images up to this size are kept in memory and decoded at every start. Above it they are in a
    file under `state_dir`, which is as fast to train from and outlives a restart. 256 MiB are some 1,300
    images at 224 pixels."""
    disk_mib: Annotated[int, Field(ge=0)] = 20480
    """Most that such files may take together."""


DeviceSetting: TypeAlias = Annotated[str, StringConstraints(pattern=r"^(auto|cpu|cuda(:\d+)?)$")]


def _how_many(device: object) -> str:
    """So that a mistake is named once, not for each form that it might have had."""
    return "several" if isinstance(device, list | tuple) else "one"


class SiteConfig(Frozen):
    """One hospital's trainer."""

    name: Name
    """As the study calls this site."""
    data: DataConfig
    """Images and labels of this site."""
    split: SplitConfig = GroupedSplit()
    """Division of the images into training and test images."""
    state_dir: Path
    """Folder that the trainer may write to; it keeps decoded images and its own state there."""
    weights_dir: Path | None = None
    """Folder with weights files that studies may start from."""
    device: Annotated[
        Annotated[DeviceSetting, Tag("one")]
        | Annotated[tuple[DeviceSetting, ...], Field(min_length=1), Tag("several")],
        Discriminator(_how_many),
    ] = "auto"
    """`auto` (a GPU if there is one), `cpu`, `cuda` or `cuda:1`; or several GPUs, `[cuda:0, cuda:1]`, which share
    each batch."""
    threads: Annotated[int, Field(ge=1)] | None = None
    """CPU threads to compute and to decode with. None: as many as there are cores. Each of several devices has so
    many."""
    cache: CacheConfig = CacheConfig()
    """Space for decoded images."""
    policy: PolicyConfig = PolicyConfig()
    """What studies may do here. Without it every plan is taken."""
    overlap_secret: Path | None = None
    """File with 64 hexadecimal digits that all sites of a study share and its server must not have
    (`openssl rand -hex 32`). With it, a study can find out whether sites hold the same images."""
    ledger_witness: Path | None = None
    """File outside `state_dir`, on another disk or share, that keeps the number of the privacy ledger's last charge.
    With it, a `state_dir` that was put back from a backup is noticed. None: only the operator's copy of the audit log
    shows it."""
    roster: Path | None = None
    """Signing keys of all sites (`consilium-site mask-key`), for studies with secure aggregation. People compare it;
    it does not come from the server. None: no such study."""
    socket: Path | None = None
    """Unix socket on which the trainer listens for its gateway."""

    @property
    def devices(self) -> tuple[str, ...]:
        """The devices one by one, the trainer's own first."""
        return (self.device,) if isinstance(self.device, str) else self.device

    @model_validator(mode="after")
    def _witness_lies_elsewhere(self) -> Self:
        if self.ledger_witness is not None and self.ledger_witness.is_relative_to(self.state_dir):
            raise ValueError(
                f"ledger_witness={self.ledger_witness} lies in state_dir, and would be put back with it; name a file "
                "on another disk or share"
            )
        return self

    @model_validator(mode="after")
    def _devices_share_batches(self) -> Self:
        named = ["cuda:0" if device == "cuda" else device for device in self.devices]
        if len(named) == 1:
            return self
        found = f"device=[{', '.join(self.devices)}]"
        if "auto" in named:
            raise ValueError(f"{found}: auto finds one device; name each, as in [cuda:0, cuda:1]")
        if len({device.partition(":")[0] for device in named}) > 1:
            raise ValueError(
                f"{found}: a batch is shared in equal parts, so a CPU would make a GPU wait; name devices of one kind"
            )
        if named[0] != "cpu" and len(set(named)) < len(named):
            raise ValueError(
                f"{found}: a GPU is named twice, and would take each part after the other; name it once"
            )
        return self

    @model_validator(mode="after")
    def _split_has_a_column(self) -> Self:
        if self.data.image_list is not None:
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
        ledger_witness=_under(home, site.ledger_witness),
        roster=_under(home, site.roster),
        socket=_under(home, site.socket),
    )


def _located(data: DataConfig, home: Path) -> DataConfig:
    data = _with_paths(data, image_list=_under(home, data.image_list))
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
            images = tuple(_place(home, folder) for folder in data.images)
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
    return None if path is None else _place(home, path)


def _place(home: Path, path: Path) -> Path:
    """`path` as it counts from `home`. Raises ConfigError if it cannot be one."""
    if (control := _CONTROL.search(str(path))) is not None:
        what = "a line break" if control[0] in "\r\n" else f"the control character U+{ord(control[0]):04X}"
        raise ConfigError(
            f"the path {str(path)!r} has {what} in it; write it in one line, in quotes, without `|` or `>`"
        )
    try:
        return home / path.expanduser()  # joining keeps an absolute path as it is
    except RuntimeError as error:
        raise ConfigError(
            f"the path {path} begins with ~, and this machine does not know that home; write the whole path, from / on"
        ) from error


Settings = TypeVar("Settings", bound=Frozen)


def _with_paths(settings: Settings, **changes: object) -> Settings:
    return settings.model_copy(update=changes)

"""An experiment of the paper: which data sets are which sites, the grid of its studies, and what is known of it.

Each is a YAML of configs/paper. It has two sizes: `paper`, which is the paper's as far as it is known, and `small`,
which two processor cores can run and which says what it leaves out.
"""

from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeAlias

from pydantic import Field, model_validator

from common.config import Name
from common.errors import ConfigError
from common.settings import Frozen, load_settings
from server.paper.datasets import DATA_SETS
from server.simulation.axes import merged
from server.simulation.grid import Grid

Size: TypeAlias = Literal["paper", "small"]


class ExperimentSite(Frozen):
    """A site, as far as it is the same on every machine: `{ham10000}` is the folder where that data set was found."""

    data: dict[str, Any]
    """`data` of a site's YAML."""
    split: dict[str, Any] = Field(default_factory=dict)
    """`split` of a site's YAML; empty: its default."""


class Known(Frozen):
    """A figure that the paper gives."""

    rows: str
    """Rows of the table that it belongs to, as a pattern: `convnext_l-*`."""
    figure: str
    """The figure as it is printed, in percent: `F1 83.98`."""


class SmallSize(Frozen):
    """What the small size changes of the grid."""

    reduced: Annotated[str, Field(min_length=1)]
    """What is smaller than in the paper, as a sentence."""
    study: dict[str, Any] = Field(default_factory=dict)
    """Merged into the grid's study."""
    variants: dict[Name, dict[str, Any]] | None = None
    """In place of the grid's."""
    axes: dict[str, Any] = Field(default_factory=dict)
    """In place of the grid's, axis by axis."""
    exclude: tuple[dict[str, Any], ...] = ()
    """In place of the grid's."""
    presets: dict[str, dict[str, dict[str, Any]]] = Field(default_factory=dict)
    """In place of the grid's."""
    seeds: tuple[int, ...] = (0,)
    """In place of the grid's."""


class Experiment(Frozen):
    """One experiment of the paper."""

    name: Name
    """Of the experiment and of its folder under runs/."""
    title: str
    """Heading of the results."""
    sites: Annotated[dict[Name, ExperimentSite], Field(min_length=1)]
    """Sites by name, each with the images of a data set or of a part of one."""
    drop_shared: tuple[Name, ...] = ()
    """Sites that lose images which another site has, too."""
    tested_on: Name | None = None
    """Site whose test images the table is of; None: all sites together."""
    known: tuple[Known, ...] = ()
    """Figures that the paper gives; they stand beside ours."""
    grid: dict[str, Any]
    """The grid of studies, without its name, at the size of the paper."""
    small: SmallSize
    """What the size for two processor cores changes."""

    @model_validator(mode="after")
    def _names_sites_that_are_there(self) -> Self:
        named = {*self.drop_shared, *([self.tested_on] if self.tested_on else [])}
        if strange := sorted(named - self.sites.keys()):
            raise ValueError(f"{', '.join(strange)} is no site of the experiment")
        return self

    @property
    def data_sets(self) -> tuple[str, ...]:
        """Data sets that its sites are made of, in the order of names."""
        text = str([site.data for site in self.sites.values()])
        return tuple(name for name in sorted(DATA_SETS) if f"{{{name}}}" in text or f"{{{name}." in text)

    def grid_of(self, size: Size) -> Grid:
        """Its grid at this size. Raises ConfigError."""
        values = dict(self.grid)
        if size == "small":
            small = self.small
            values["study"] = merged(values["study"], small.study)
            values["axes"] = {**values.get("axes", {}), **small.axes}
            values["exclude"], values["presets"], values["seeds"] = small.exclude, small.presets, small.seeds
            if small.variants is not None:
                values["variants"] = small.variants
        return Grid.model_validate({"name": "studies", **values})


def names() -> list[str]:
    """Names of the experiments that there are."""
    return sorted(path.stem for path in _files().values())


def load(name: str) -> Experiment:
    """The experiment of this name, or of a YAML file. Raises ConfigError."""
    path = _files().get(name, Path(name))
    if path.suffix != ".yaml":
        raise ConfigError(f"there is no experiment {name}; there are {', '.join(names())}")
    return load_settings(path, Experiment, "experiment")


def _files() -> Mapping[str, Path]:
    folder = Path(str(resources.files("configs") / "paper"))
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}

"""A tiny federation that any test can have: a few coloured squares per class and site."""

import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import settings
from PIL import Image

from client.config import FoldersData, GroupedSplit, NoSplit, SiteConfig
from client.data.simulation.site_files import SIMULATED
from common.config import StudyConfig
from common.masking import roster
from common.settings import to_yaml

# Models here are tiny: threads that wait for each other cost more than they save, and on a busy
# machine a hundred times more.
torch.set_num_threads(1)

# A deadline for an example would be a test of the machine's pace.
settings.register_profile("consilium", deadline=None)
settings.load_profile("consilium")

COLOURS = {"dark": (70, 40, 30), "pale": (220, 190, 170), "red": (200, 60, 60)}

STUDY: Mapping[str, Any] = {
    "name": "tiny",
    "classes": ("dark", "pale", "red"),
    "sites": {"train": ("north", "south")},
    "model": {"encoder": "test_convnext", "image_size": 32},
    "rounds": 2,
    "local": {"batch_size": 8, "augmentation": "none", "optimizer": {"kind": "sgd", "lr": 0.05}},
    "deadlines": {"repeat_after_s": 0},
    "seed": 3,
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that take long come first: those with a time limit of their own, then whole studies, which lie on top.

    Else one test process would begin with one when the other has nothing left to do. Containers come after the longest:
    on a new machine their images are still being built.
    """

    def place(item: pytest.Item) -> tuple[float, int]:
        timeout = item.get_closest_marker("timeout")
        seconds = float(timeout.args[0]) if timeout is not None else 0.0
        if item.get_closest_marker("docker") is not None:
            seconds = min(seconds, 1500.0)
        return -seconds, len(item.path.parts)

    items.sort(key=place)  # stable: the order within a file stays


MakeSite = Callable[..., SiteConfig]
MakeStudy = Callable[..., StudyConfig]


@pytest.fixture(autouse=True)
def _the_log_is_as_it_was() -> Iterator[None]:
    """A command sends the log to the terminal; what the next test hears must not depend on it."""
    logger = logging.getLogger("consilium")
    handlers, propagate, level = logger.handlers[:], logger.propagate, logger.level
    yield
    for handler in logger.handlers:
        if handler not in handlers:
            handler.close()
    logger.handlers, logger.propagate = handlers, propagate
    logger.setLevel(level)


@pytest.fixture
def make_study() -> MakeStudy:
    """`make_study(rounds=3, ...)`: the tiny study with some settings replaced."""
    return lambda **changes: StudyConfig.model_validate({**STUDY, **changes})


@pytest.fixture
def make_site(tmp_path: Path) -> MakeSite:
    """`make_site("north", per_class=10, test_only=False)`: a site with images on disk."""

    def make(name: str, per_class: int = 10, test_only: bool = False, **settings: Any) -> SiteConfig:
        root = tmp_path / f"{name}-images"
        draws = np.random.default_rng(sum(name.encode()))
        for label, colour in COLOURS.items():
            (root / label).mkdir(parents=True, exist_ok=True)
            for number in range(per_class):
                noise = draws.normal(0, 25, (40, 40, 3))
                pixels = np.clip(np.asarray(colour) + noise, 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(root / label / f"{number}.png")
        settings.setdefault("policy", SIMULATED)
        return SiteConfig(
            name=name,
            data=FoldersData(root=root),
            split=NoSplit(all="test") if test_only else GroupedSplit(),
            state_dir=tmp_path / f"{name}-state",
            device="cpu",
            threads=1,
            **settings,
        )

    return make


@pytest.fixture
def make_rostered(make_site: MakeSite, tmp_path: Path) -> Callable[..., dict[str, SiteConfig]]:
    """`make_rostered({"east": 7, "north": 6})`: sites with so many images of each class, and a roster of their keys."""

    def make(per_class: Mapping[str, int], **settings: Any) -> dict[str, SiteConfig]:
        place = tmp_path / "roster.yaml"
        sites = {
            name: make_site(name, number, roster=place, **settings) for name, number in per_class.items()
        }
        keys = {
            name: roster.public_key(roster.load_identity(site.state_dir / roster.IDENTITY))
            for name, site in sites.items()
        }
        place.write_bytes(to_yaml({"sites": keys}))
        return sites

    return make


@pytest.fixture(scope="session")
def launchers_env(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mapping[str, str]]:
    """Environment of launchers that share templates.

    One test process has the templates of a simulation for all its studies of real processes. So they import torch and
    Flower once.
    """
    from benchmarks.faults.world import ENV, ROOT
    from common.processes import forked
    from common.processes.flower import environment
    from server.simulation.local_federation import TEMPLATES

    folder = tmp_path_factory.mktemp("templates")
    with forked.sharing(TEMPLATES, environment(folder, ENV), folder, ROOT) as shared:
        yield {**ENV, **shared}


@pytest.fixture
def _launchers_share_templates(launchers_env: Mapping[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """For a test that is the launcher itself."""
    for name, text in launchers_env.items():
        monkeypatch.setenv(name, text)

"""Folders of tiny sites, and the key that stops a grid."""

import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from client.config import SiteConfig
from common.settings import to_yaml
from server.simulation import jobs, site_command
from tests.conftest import STUDY


@pytest.fixture(autouse=True)
def asked_of_the_sites(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Arguments of `consilium-site`, which is not run: a process with torch takes seconds."""
    calls = list[list[str]]()
    monkeypatch.setattr(site_command, "call_site", calls.append)
    return calls


@pytest.fixture
def make_sites_dir(make_site: Callable[..., SiteConfig], tmp_path: Path) -> Callable[..., Path]:
    """`make_sites_dir(north=6, south=5)`: a folder of sites with so many images of each class, and one thread each."""

    def make(**per_class: int) -> Path:
        folder = tmp_path / "sites"
        folder.mkdir()
        for name, number in per_class.items():
            site = make_site(name, number).model_dump(mode="json", exclude_none=True)
            (folder / f"{name}.yaml").write_bytes(to_yaml(site))
        num_images = {name: number * len(STUDY["classes"]) for name, number in per_class.items()}
        about = {"synthetic": True, "classes": list(STUDY["classes"]), "sites": num_images}
        (folder / "federation.yaml").write_bytes(to_yaml(about))
        return folder

    return make


@pytest.fixture
def press_ctrl_c(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], bool]], list[int]]:
    """`press_ctrl_c(when)`: Ctrl-C once, when `when` is true while runs go side by side.

    It returns a list, which then gets the numbers of their processes.
    """
    sleep = time.sleep
    others = psutil.Process().children(recursive=True)  # of tests before this one, such as a shared template

    def press(when: Callable[[], bool]) -> list[int]:
        children = list[int]()

        def sleep_or_press(seconds: float) -> None:
            if not children and when():
                now = psutil.Process().children(recursive=True)
                children.extend(child.pid for child in now if child not in others)
                raise KeyboardInterrupt
            sleep(seconds)

        monkeypatch.setattr(jobs.time, "sleep", sleep_or_press)
        return children

    return press

"""Pictures of the pages that people look at, taken with headless Chromium from what the tutorials leave.

    python -m docs._generate.screenshots WORK       # runs the tutorials in WORK, unless an earlier call did
    python -m docs._generate.screenshots WORK --all # every page in light and dark, at 1280 and 400 pixels, in WORK/all

The pictures are WebP in `docs/_static/screenshots/`. All images on them are drawn by a program.
"""

import argparse
import base64
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from client.config import load_site
from client.console.app import application as site_console
from client.console.reading import PREFLIGHT
from client.governance import approval
from common import keys
from common.formats import yaml_text
from common.processes.ports import free_ports
from common.web.access import Sessions
from common.web.serve import Place, serving
from consilium_fl import read_study
from docs._generate import tutorials
from server.console.app import application as operator_console
from server.deployment import site_keys
from server.deployment.folder import ServerFolder, open_folder
from server.provisioning import startup_kit
from tests import chromium as browsers
from tests.chromium import Chromium, Tab

FOLDER = tutorials.ROOT / "docs" / "_static" / "screenshots"
WIDTHS = (1280, 400)
_TOKEN = "t" * 43
_SITES = ("north", "south", "east")


@dataclass(frozen=True)
class Page:
    """One page to take a picture of."""

    name: str
    url: str
    height: int = 900
    """Pixels from the top that the picture of the documentation shows."""
    login: str = ""
    """Address of the console that asks for a token first."""


def main() -> None:
    """Take all pictures."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("work", type=Path)
    options.add_argument("--all", action="store_true")
    chosen = options.parse_args()
    browsers._WAIT_S = 300.0  # pictures may be taken on a busy machine
    work = chosen.work.resolve()
    _run_tutorials(work)
    with consoles(work) as pages, browser(work / "profile") as chromium:
        shown = [*pages, *_files(work)]
        for page in shown:
            FOLDER.mkdir(exist_ok=True)
            tab = _opened(chromium, page, 1280)
            take(tab, FOLDER / f"{page.name}.webp", page.height)
            tab.open("about:blank")  # a live page would go on
        if chosen.all:
            for page in shown:
                _every_way(chromium, page, work / "all")


def _every_way(chromium: Chromium, page: Page, folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    for width in WIDTHS:
        for dark in (False, True):
            tab = _opened(chromium, page, width, dark=dark)
            wide = tab.run("document.documentElement.scrollWidth")
            if wide > width:
                print(f"{page.name} is {wide} pixels wide at {width}")
            take(tab, folder / f"{page.name}-{width}-{'dark' if dark else 'light'}.png", 4000)
            tab.open("about:blank")


def take(tab: Tab, path: Path, height: int) -> None:
    """The page from its top, no longer than it is."""
    size = tab.call("Page.getLayoutMetrics")["cssContentSize"]
    width = tab.run("innerWidth")
    kind = {"format": "webp", "quality": 80} if path.suffix == ".webp" else {"format": "png"}
    clip = {"x": 0, "y": 0, "width": width, "height": min(height, size["height"]), "scale": 1}
    shot = tab.call("Page.captureScreenshot", captureBeyondViewport=True, clip=clip, **kind)
    path.write_bytes(base64.b64decode(shot["data"]))


def _opened(chromium: Chromium, page: Page, width: int, *, dark: bool = False) -> Tab:
    tab = chromium.tab(width, dark=dark)
    if page.login:
        tab.open(page.login)
        if tab.run("document.querySelector('#token') !== null"):
            tab.type("#token", _TOKEN)
            tab.click("main button")
    tab.open(page.url)
    return tab


@contextmanager
def browser(profile: Path) -> Iterator[Chromium]:
    """A browser that ends with the block."""
    found = Chromium(profile)
    try:
        yield found
    finally:
        found.close()


def _run_tutorials(work: Path) -> None:
    for page in tutorials.pages():
        folder = work / page.stem
        if not (folder / "done").exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            tutorials.run(tutorials.read(page), folder)
            (folder / "done").touch()


def _files(work: Path) -> list[Page]:
    heat, run = work / "heat", work / "heads" / "runs" / "heads"
    if not heat.exists():
        images = sorted((work / "heads/sites/synthetic-images/images/east").glob("*.jpg"))[:12]
        command = ["predict", "--study", run, "--explain", heat, "--out", work / "classes.csv", *images]
        subprocess.run([sys.executable, "-m", "client.cli", *command], check=True, cwd=tutorials.ROOT)
    return [
        Page("report", (run / "report.html").as_uri(), 1400),
        Page("preflight", (work / "own-data/hospital/preflight.html").as_uri(), 445),
        Page("heat-maps", (heat / "index.html").as_uri(), 700),
    ]


@contextmanager
def consoles(work: Path) -> Iterator[list[Page]]:
    """Both consoles while the block runs, and their pages."""
    operator, site = (Place(port=port) for port in free_ports(2))
    folder = _server(work)
    settings = load_site(work / "federation/sites/north.yaml")
    waiting = read_study(work / "heads/study.yaml").model_copy(update={"name": "skin-heads"})
    approval.note(settings.state_dir, waiting, datetime.now(UTC))
    label = approval.pending(settings.state_dir)[0].label
    (settings.state_dir / PREFLIGHT).parent.mkdir(exist_ok=True)
    shutil.copy(work / "own-data/hospital/preflight.html", settings.state_dir / PREFLIGHT)
    with (
        serving(operator_console(folder, Sessions(_TOKEN), operator.address), operator),
        serving(site_console(settings, Sessions(_TOKEN), site.address), site),
    ):
        yield [
            Page("operator-study", f"{operator.url}studies/first", 1400, operator.url),
            Page("site-study", f"{site.url}studies/{label}", 1000, site.url),
            Page("site-sent", f"{site.url}sent", login=site.url),
        ]


def _server(work: Path) -> ServerFolder:
    root = work / "server"
    shutil.rmtree(root, ignore_errors=True)
    about = {"name": "skin", "server": {"hosts": ["server.example"]}, "sites": {site: {} for site in _SITES}}
    (work / "federation.yaml").write_text(yaml_text.dump(about), encoding="utf-8")
    list(startup_kit.provision(work / "federation.yaml", root))
    folder = open_folder(root)
    for site in _SITES:
        site_keys.enrol(folder, site, keys.make_site_key(work / "made" / site, "site").public)
    shutil.copytree(work / "federation/runs/first", folder.runs / "first")
    return folder


if __name__ == "__main__":
    main()

"""A first study under the kit's defaults: it waits until a person at each site has said yes, and then it runs.

Real processes on this machine, started as the pages for operators and hospitals say.
"""

import json
import re
import signal
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from benchmarks.faults.world import ENV, ROOT, START_S, soon
from common.processes.ports import accepts_connections, free_ports
from server.state import Approvals
from server.storage.status import read_status
from tests.browser import Visitor

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

OPERATOR, SITE = [sys.executable, "-m", "server.cli"], [sys.executable, "-m", "client.cli"]
SITES = ("north", "south")
COLOURS = {"dark": (70, 40, 30), "pale": (220, 190, 170)}


@dataclass
class Started:
    """A federation of two kits and what was started in it."""

    folder: Path
    env: Mapping[str, str] = field(default_factory=lambda: ENV)
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def server(self) -> Path:
        return self.folder / "server"

    def settings(self, site: str) -> Path:
        return self.folder / f"consilium-{site}" / "site.yaml"

    def type(self, *command: str | Path) -> str:
        done = subprocess.run(
            [*map(str, command)], cwd=ROOT, env=self.env, capture_output=True, text=True, timeout=START_S
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def start(self, name: str, *command: str | Path) -> None:
        with (self.folder / f"{name}.txt").open("ab") as output:
            self.processes[name] = subprocess.Popen(
                [*map(str, command)],
                cwd=ROOT,
                env=self.env,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )

    def said(self, name: str) -> str:
        return (self.folder / f"{name}.txt").read_text(errors="replace")

    def waiting(self) -> Approvals | None:
        now = read_status(self.server / "runs" / "first")
        return now.approvals if now is not None and now.status == "running" else None

    def waits_for(self, *sites: str) -> bool:
        people = self.waiting()
        answers = {} if people is None else people.sites
        return sorted(sites) == [site for site, state in answers.items() if state.answer == "undecided"]

    def end(self) -> None:
        for process in self.processes.values():
            if process.poll() is None:
                process.terminate()
        for process in self.processes.values():
            process.wait(60)


@pytest.fixture
def federation(tmp_path: Path) -> Iterator[Started]:
    """Two unpacked kits, in whose site.yaml nothing but the images was changed, and a server that knows their keys."""
    made = Started(tmp_path)
    about = {
        "name": "first-steps",
        "synthetic": True,
        "server": {"hosts": ["localhost"], "port": free_ports(1)[0]},
        "sites": {site: {} for site in SITES},
    }
    (tmp_path / "federation.yaml").write_text(yaml.safe_dump(about))
    made.type(*OPERATOR, "provision", tmp_path / "federation.yaml", "--out", made.server)
    for site in SITES:
        with zipfile.ZipFile(made.server / "kits" / f"{site}.zip") as kit:
            kit.extractall(tmp_path)
        made.type(*SITE, "key", made.settings(site).parent)
        made.type(*OPERATOR, "enrol", made.server, site, made.settings(site).parent / "site.pub")
        draw(tmp_path / "images" / site)
        text = made.settings(site).read_text()
        assert yaml.safe_load(text)["policy"]["ask"] is True
        made.settings(site).write_text(text.replace("/path/to/images", str(tmp_path / "images" / site)))
    try:
        yield made
    finally:
        made.end()


def draw(folder: Path) -> None:
    """40 squares of each of two colours: 32 to train on, 8 to test on."""
    draws = np.random.default_rng(sum(folder.name.encode()))
    for label, colour in COLOURS.items():
        (folder / label).mkdir(parents=True)
        for number in range(40):
            pixels = np.clip(np.asarray(colour) + draws.normal(0, 25, (40, 40, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / label / f"{number}.png")


def study(folder: Path, classes: Sequence[str]) -> Path:
    settings = {
        "name": "first",
        "classes": list(classes),
        "sites": {"train": list(SITES)},
        "model": {"encoder": "test_efficientnet", "image_size": 32},
        "rounds": 1,
        "local": {"batch_size": 16, "augmentation": "none"},
    }
    (folder / "study.yaml").write_text(yaml.safe_dump(settings))
    return folder / "study.yaml"


def test_a_first_study_waits_for_both_people_survives_a_killed_server_and_finishes_at_its_first_run(
    federation: Started,
) -> None:
    operators, site_port = free_ports(2)
    up = (*OPERATOR, "up", federation.server, "--console", "--console-port", str(operators))
    federation.start("up", *up)
    for site in SITES:
        federation.start(f"{site}-trainer", *SITE, "trainer", federation.settings(site))
        federation.start(f"{site}-gateway", *SITE, "gateway", federation.settings(site).parent)
    federation.start(
        "run", *OPERATOR, "run", federation.server, study(federation.folder, list(COLOURS)), "--wait"
    )
    soon(lambda: federation.waits_for("north", "south"), "two sites that wait")
    asked = federation.waiting()
    assert asked is not None
    assert "waits for approval since" in federation.type(
        *OPERATOR, "status", federation.server / "runs" / "first"
    )
    assert "first-" in federation.type(*SITE, "pending", federation.settings("north"))

    federation.processes["up"].send_signal(signal.SIGKILL)
    federation.processes["up"].wait(60)
    federation.start("up", *up)
    log = federation.server / "runs" / "first" / "server.log"
    soon(
        lambda: log.read_text().count("waiting for people to approve study first") == 2,
        "a server that waits again",
    )
    again = federation.waiting()
    assert again is not None
    assert again.since == asked.since

    # One person types, the other uses the console; the operator looks on.
    federation.start("console", *SITE, "console", federation.settings("north"), "--port", str(site_port))
    soon(lambda: accepts_connections(site_port) and accepts_connections(operators), "both consoles")
    token = federation.settings("north").parent / "state" / "console" / "token"
    with (
        Visitor(site_port, token.read_text()) as person,
        Visitor(operators, (federation.server / "console.token").read_text()) as operator,
    ):
        assert operator.get("/studies/first").text.count("waits for approval since") == 2
        label = re.search(r"/studies/(first-\w+)", person.get("/").text)
        assert label is not None
        fingerprint = re.search(r'name="fingerprint" value="(\w+)"', person.get(f"/studies/{label[1]}").text)
        assert fingerprint is not None
        answered = person.submit(f"/studies/{label[1]}", answer="yes", fingerprint=fingerprint[1])
        assert answered.status_code == 303, answered.text
        assert "approval" in person.get("/sent?lines=all").text
        soon(lambda: "approved since" in operator.get("/studies/first").text, "a yes on the operator's page")
    assert soon(lambda: federation.waits_for("south"), "a yes that is known") < 60
    federation.type(*SITE, "approve", federation.settings("south"), "first")
    assert federation.processes["run"].wait(START_S) == 0, federation.said("run")
    said = log.read_text()
    assert "still waiting for south" in said
    assert "ERROR" not in said
    assert said.count("WARNING") == 1  # the server that was killed
    with Visitor(operators, (federation.server / "console.token").read_text()) as operator:
        page = operator.get("/studies/first").text
        assert "finished" in page
        assert "report.html" in page
        assert page.count("<figure") >= 3
    orders = (federation.server / "orders.jsonl").read_text()
    assert [json.loads(line)["order"] for line in orders.splitlines()] == ["enrol", "enrol", "start"]
    audit = federation.type(*SITE, "audit", federation.settings("south"))
    assert audit.count("plan: ") < 12  # questions that were repeated stand in it once


def test_ctrl_c_ends_a_simulation_that_waits_and_the_command_that_it_shows_approves(
    tmp_path: Path,
    launchers_env: Mapping[str, str],
) -> None:
    made = Started(tmp_path, launchers_env)
    made.type(*SITE, "simulate", "--images", "20", "--threads", "1", "--out", tmp_path / "images")
    for site in SITES:
        file = tmp_path / "images" / f"{site}.yaml"
        file.write_text(yaml.safe_dump(yaml.safe_load(file.read_text()) | {"policy": {"ask": True}}))
    try:
        classes = yaml.safe_load((tmp_path / "images" / "federation.yaml").read_text())["classes"]
        made.start(
            "simulate",
            *OPERATOR,
            "simulate",
            study(tmp_path, classes),
            "--sites",
            tmp_path / "images",
            "--runs",
            tmp_path,
        )
        command = f"`consilium-site approve {tmp_path / 'images' / 'north.yaml'} first`"
        soon(lambda: command in made.said("simulate"), "the command to approve")
        made.processes["simulate"].send_signal(signal.SIGINT)
        assert made.processes["simulate"].wait(60) == 130
        assert "Traceback" not in made.said("simulate")
        approved = made.type(*SITE, "approve", tmp_path / "images" / "north.yaml", "first")
        assert approved.startswith("approved: first-")
    finally:
        made.end()

"""Institutions with kits, each in a network of its own, joined only by the server's one port.

One server's folder serves all tests, which follow each other as days at a federation do.
"""

import json
import re
import signal
import subprocess
from collections.abc import Iterator

import pytest
import yaml

from benchmarks.faults.world import soon
from server.storage.status import read_status
from tests.deploy import institutions
from tests.deploy.institutions import PORT, SERVER, Institutions

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Institutions]:
    if reason := institutions.why_not():
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("institutions")
    made = Institutions(folder)
    try:
        made.provision()
        made.make_keys()
        images = folder / "images"
        made.site("simulate", "--images", "20", "--threads", "1", "--out", str(images))
        for site, like in (("north", "north"), ("south", "south"), ("third", "east")):
            institutions.set_images(made.kit(site), images / f"{like}.yaml")
        yield made
    finally:
        made.end()


@pytest.fixture(scope="module")
def finished(world: Institutions) -> str:
    """Two sites are enrolled, one is not; a study runs while all three try. What `run --wait` showed."""
    for site in ("north", "south"):
        world.operator("enrol", str(world.server), site, str(world.kit(site) / "site.pub"))
    world.up()
    for site in world.sites:
        world.start_site(site)
    images = yaml.safe_load((world.folder / "images" / "federation.yaml").read_text())
    first = institutions.study(world.folder, "first", images["classes"])
    institutions.study(
        world.folder,
        "long",
        images["classes"],
        rounds=20,
        sites={"train": ["north", "south"], "required": 1},
        deadlines={"enrol_s": 200, "round_s": 900, "evaluate_s": 200},  # rounds are held
    )
    return world.operator("run", str(world.server), str(first), "--wait")


def fingerprint(world: Institutions, site: str) -> str:
    found = re.search(r"SHA256:\S+", world.site("key", str(world.kit(site))))
    assert found is not None
    return found[0]


def test_a_study_completes_across_three_networks(world: Institutions, finished: str) -> None:
    assert "study first finished after 2 rounds" in finished
    run_dir = world.server / "runs" / "first"
    assert (run_dir / "weights.safetensors").stat().st_size > 100_000
    assert "first" in (run_dir / "report.md").read_text()
    told = world.operator("sites", str(world.server))
    for site in ("north", "south"):
        assert re.search(
            rf"{site} \(Hospital {site}\): online, last seen .*{re.escape(fingerprint(world, site))}", told
        )
    assert "third (Hospital third): no key enrolled" in told
    assert "2 of 2 enrolled sites online" in world.operator("status", str(world.server))


def test_a_key_that_is_not_enrolled_is_refused_and_both_sides_say_so(
    world: Institutions, finished: str
) -> None:
    key = fingerprint(world, "third")
    world.wait_for_log(
        f"somebody at {world.address('third')} has a key that is not enrolled, {key}, and was turned away"
    )
    assert f"the server does not take this site's key, {key}" in world.processes["third-gateway"].said()


def test_a_site_finds_its_way_checked_while_it_is_connected_and_a_stranger_its_key_unknown(
    world: Institutions, finished: str
) -> None:
    said = world.site("check-connection", str(world.kit("north")), network="north")
    for line in (
        "certificate is good for 10.77.0.1",
        "clock is 0 s",
        "the server knows this site's key",
        "Mbit/s",
    ):
        assert line in said
    assert "north may take part" in said
    world.wait_for_log(f"somebody at {world.address('north')} checks the connection (north)")
    refused = world.site("check-connection", str(world.kit("third")), network="third", code=1)
    assert "[STOPS THE STUDY] the server does not know this site's key" in refused


def test_a_site_tells_what_has_left_it(world: Institutions, finished: str) -> None:
    said = world.site("status", str(world.kit("north") / "site.yaml"))
    assert "north: the trainer is running\nwaits for a plan" in said
    assert re.search(
        r"study first: \d answers, \d\.\d MiB, of 3 rounds, have left", said
    )  # and the closing one


def test_the_server_has_signed_heads_of_every_sites_log_and_each_is_in_it(
    world: Institutions, finished: str
) -> None:
    heads = world.server / "runs" / "first" / "audit-heads.jsonl"
    for site in ("north", "south"):
        said = world.site("audit", str(world.kit(site) / "site.yaml"), "--verify", "--signed", str(heads))
        assert f"signed heads, by {fingerprint(world, site)}" in said
    assert "audit log" not in world.server.joinpath("runs", "first", "server.log").read_text()


def test_the_server_listens_on_one_port_and_a_site_on_none(world: Institutions, finished: str) -> None:
    assert world.listening("server") == {PORT}
    for site in world.sites:
        assert world.listening(site) == set()


def test_sites_reach_the_server_and_never_each_other(world: Institutions, finished: str) -> None:
    code = "import socket; s = socket.create_server(('0.0.0.0', 7777)); print('up', flush=True)\nwhile True: s.accept()"
    listener = world.start("listener", "south", "python3", "-ISc", code)
    soon(lambda: "up" in listener.said(), "a listener at south")
    assert world.reaches("server", world.address("south"), 7777)  # there it is
    assert not world.reaches("north", world.address("south"), 7777)
    assert world.reaches("north", SERVER, PORT)
    listener.end()


def test_a_killed_server_goes_on_with_its_study_and_knows_the_keys(
    world: Institutions, finished: str
) -> None:
    gate, run_dir = world.gates["north"], world.server / "runs" / "long"
    gate.let(1)
    world.operator("run", str(world.server), str(world.folder / "long.yaml"))
    soon(lambda: gate.holds(2), "round 2 at the gate")
    world.processes["up"].end(signal.SIGKILL)
    world.up()
    world.wait_for_log("study long goes on from its last checkpoint")
    again = world.operator("run", str(world.server), str(world.folder / "long.yaml"), code=1)
    assert "a study long is running" in again
    gate.let(2)
    soon(lambda: gate.holds(3), "round 3 at the gate")
    rounds = (run_dir / "rounds.jsonl").read_text().splitlines()
    assert [json.loads(line)["round"] for line in rounds] == [1, 2]


def test_a_revoked_site_is_cut_off_at_once_and_the_study_goes_on_without(
    world: Institutions, finished: str
) -> None:
    """The study is held in its round 3; south may have answered that one, but no later one."""
    key = fingerprint(world, "south")
    told = world.operator("revoke", str(world.server), "south")
    assert f"south is cut off; its key {key} is never accepted again" in told
    world.wait_for_log(f"{world.address('south')} has the key of south that was revoked, {key}")
    gate = world.gates["north"]
    gate.let(4)
    soon(lambda: gate.holds(5), "round 5 at the gate")
    last = (world.server / "runs" / "long" / "rounds.jsonl").read_text().splitlines()[-1]
    assert json.loads(last)["round"] == 4
    assert '"site": "north", "outcome": "ok"' in last
    assert '"site": "south", "outcome": "ok"' not in last
    refused = world.operator(
        "enrol", str(world.server), "south", str(world.kit("south") / "site.pub"), code=1
    )
    assert "was revoked before and cannot come back" in refused


def test_a_study_is_stopped_and_the_server_ends_without_leaving_anything(
    world: Institutions, finished: str
) -> None:
    world.operator("stop", str(world.server))
    now = read_status(world.server / "runs" / "long")
    assert now is not None
    assert now.status == "stopped"
    assert now.reason == "stopped by the operator after round 4"
    assert world.processes["up"].end() == 0
    left = subprocess.run(["ip", "netns", "pids", world.network("server")], capture_output=True, text=True)
    assert left.stdout == ""


def test_gateways_end_when_they_are_asked_to(world: Institutions, finished: str) -> None:
    for site in world.sites:
        assert world.processes[f"{site}-gateway"].end() == 0
        left = subprocess.run(["ip", "netns", "pids", world.network(site)], capture_output=True, text=True)
        assert left.stdout == ""

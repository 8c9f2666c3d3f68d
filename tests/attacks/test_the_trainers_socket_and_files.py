"""Other users of a hospital's machine, and the gateway's own, at the trainer's socket and files."""

import os
import pwd
import re
import shutil
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from common import wire
from common.network import unix_sockets
from common.network.peer_door import PeerDoor
from common.polling import wait_until
from common.wire import codec
from tests.attacks.conftest import study

TRAINER, GATEWAY, OTHER, GROUP = 64001, 64002, 64003, 64010
"""Users and a group that no machine has."""

root = pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="takes other users' names")

AS = """
import os, sys
os.setgroups([{group}]); os.setgid({user}); os.setuid({user})
{code}
"""
CALL = """
import socket
with socket.socket(socket.AF_UNIX) as line:
    try:
        line.connect({path!r})
        line.sendall(b"a plan")
        line.shutdown(socket.SHUT_WR)
        print(line.recv(100).decode() or "closed")
    except OSError as error:
        print(type(error).__name__)
"""


def as_user(user: int, code: str, group: int = GROUP) -> str:
    program = "import socket\n" + AS.format(user=user, group=group, code=code)
    done = subprocess.run([sys.executable, "-I", "-c", program], capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.fixture
def link() -> Iterator[Path]:
    """A folder as `./site.sh users` leaves it, under a folder that every user can pass."""
    outer = unix_sockets.short_folder("link/trainer.sock")
    outer.chmod(0o711)
    folder = outer / "link"
    folder.mkdir()
    if os.geteuid() == 0:
        os.chown(folder, TRAINER, GROUP)
    folder.chmod(0o2750)
    yield folder
    shutil.rmtree(outer)


@pytest.fixture
def echo() -> Iterator[Path]:
    """A trainer that answers what it hears in capitals."""
    folder = unix_sockets.short_folder("inner.sock")
    path = folder / "inner.sock"
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(path))
    listening.listen()

    def serve() -> None:
        while True:
            try:
                line, _ = listening.accept()
            except OSError:
                return
            with line:
                heard = b""
                while data := line.recv(2**20):
                    heard += data
                line.sendall(heard.upper())

    threading.Thread(target=serve, daemon=True).start()
    yield path
    listening.close()
    shutil.rmtree(folder)


@root
def test_only_the_gateways_user_gets_through_the_door_though_its_group_could(link: Path, echo: Path) -> None:
    outer, refused, told = link / "trainer.sock", [], threading.Event()

    def note(user: int) -> None:
        refused.append(user)
        told.set()

    door = PeerDoor(outer, echo, {TRAINER, GATEWAY}, note)
    door.open()
    try:
        mode = outer.stat()
        assert stat.S_IMODE(mode.st_mode) == 0o660
        assert mode.st_gid == GROUP  # of its folder
        call = CALL.format(path=str(outer))
        assert as_user(GATEWAY, call) == "A PLAN"
        assert as_user(OTHER, call) in ("closed", "BrokenPipeError", "ConnectionResetError")
        assert told.wait(10)
        assert refused == [OTHER]
        assert as_user(OTHER, call, group=OTHER) == "PermissionError"  # not even a member of the group
    finally:
        door.close()
    assert not outer.exists()


def test_large_messages_pass_both_ways(link: Path, echo: Path) -> None:
    door = PeerDoor(link / "o.sock", echo, {os.geteuid()}, lambda _: None)
    door.open()
    data = os.urandom(3 * 2**20).hex().encode()
    with socket.socket(socket.AF_UNIX) as line:
        line.connect(str(link / "o.sock"))
        line.sendall(data)
        line.shutdown(socket.SHUT_WR)
        answer = b""
        while part := line.recv(2**20):
            answer += part
    door.close()
    assert answer == data.upper()


READ = """
try:
    print(open("/proc/{pid}/root{path}").read())
except OSError as error:
    print(type(error).__name__)
"""
# A program that is started again, as systemd starts a service: one that has only changed its user keeps the kernel's
# memory of who it was, and is protected by that.
STARTED = 'os.execv("/bin/sh", ["sh", "-c", "echo ready; read end"])'


@root
@pytest.mark.parametrize(
    ("user", "read"), [(TRAINER, "a patient"), (GATEWAY, "PermissionError"), (OTHER, "PermissionError")]
)
def test_images_are_not_read_through_the_trainers_proc_root_by_another_user(
    link: Path, user: int, read: str
) -> None:
    """systemd hides a path by mounts, which /proc/PID/root goes around; only another user is kept out by the kernel."""
    image = link / "image"
    image.write_text("a patient")
    link.chmod(0o755)
    image.chmod(0o644)  # readable: what keeps the gateway out is that the path is not there for it
    trainer = subprocess.Popen(
        [sys.executable, "-I", "-c", AS.format(user=TRAINER, group=GROUP, code=STARTED)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        assert trainer.stdout is not None
        assert trainer.stdout.readline() == b"ready\n"
        assert as_user(user, READ.format(pid=trainer.pid, path=image)) == read
    finally:
        trainer.communicate(b"\n")


KIT = Path(__file__).parents[2] / "server" / "provisioning" / "kit"


def settings_of(unit: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for line in (KIT / f"consilium-{unit}.service").read_text().splitlines():
        name, mark, value = line.partition("=")
        if mark and not line.startswith("#"):
            found.setdefault(name, []).append(value)
    return found


def test_the_units_run_gateway_and_trainer_as_two_users_who_do_not_see_each_other() -> None:
    gateway, trainer = settings_of("gateway"), settings_of("trainer")
    assert gateway["User"] != trainer["User"]
    assert gateway["ProtectProc"] == trainer["ProtectProc"] == ["invisible"]
    assert trainer["ExecStart"][0].endswith(f"--gateway-user {gateway['User'][0]}")
    assert trainer["PrivateNetwork"] == ["yes"]
    assert gateway["IPAddressDeny"] == ["any"]


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not on this machine")
@pytest.mark.parametrize(("unit", "most"), [("trainer", 5.0), ("gateway", 4.5)])
def test_systemd_understands_the_units_and_rates_them_as_restricted(
    tmp_path: Path, unit: str, most: float
) -> None:
    """Its own rating of exposure, from 0 to 10; a service without any restriction has 9.6."""
    text = (KIT / f"consilium-{unit}.service").read_text().replace("@SITE@", "north")
    text = re.sub(r"(?m)^ExecStart=\S+", "ExecStart=/bin/true", text)  # which has to be there
    file = tmp_path / f"consilium-{unit}.service"
    file.write_text(text)

    def analyzed(*arguments: str) -> str:
        done = subprocess.run(
            ["systemd-analyze", *arguments, str(file)], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    assert "Unknown" not in analyzed("verify", "--man=no")
    (rating,) = re.findall(
        r"exposure level for \S+: ([\d.]+)", analyzed("security", "--offline=true", "--no-pager")
    )
    assert float(rating) <= most


def test_plain_says_in_one_line_what_it_gives_up() -> None:
    script = (KIT / "site.sh").read_text()
    (line,) = [line for line in script.splitlines() if "gateway and trainer are one user here" in line]
    assert line.strip().endswith(">&2")
    assert "can read the images" in line


def test_the_kits_gateway_has_no_way_out_but_one_that_leads_to_the_server() -> None:
    compose = yaml.safe_load((KIT / "docker-compose.yml").read_text())
    gateway, way_out, trainer = (compose["services"][name] for name in ("gateway", "way-out", "trainer"))
    assert gateway["networks"] == ["inside"]
    inside = compose["networks"]["inside"]
    assert inside["internal"] is True
    assert inside["driver_opts"] == {"com.docker.network.bridge.inhibit_ipv4": "true"}  # nor to this machine
    assert gateway["dns"] == ["127.0.0.1"]
    assert trainer["network_mode"] == "none"
    assert gateway["command"].endswith("--through http://way-out:3128")
    held = [volume["source"] for volume in way_out["volumes"]]
    assert held == ["./gateway.yaml"]  # no key, no socket


@pytest.mark.parametrize("folder", [KIT, KIT.parents[2]], ids=["kit", "demo"])
def test_every_container_has_limits_of_memory_and_processes(folder: Path) -> None:
    services = yaml.safe_load((folder / "docker-compose.yml").read_text())["services"]
    lacking = [
        name
        for name, service in services.items()
        if not {"mem_limit", "pids_limit", "logging"} <= service.keys()
    ]
    assert not lacking


# --- the programs themselves ------------------------------------------------------------------------

TRAINER_PROGRAM = """
import os, pathlib, sys
# Before the change of user: the interpreter's files may not be readable for every user.
import encodings.ascii, encodings.idna, encodings.latin_1
import client.cli.main, client.cli.run, client.config, client.gateway.link, client.trainer
import common.network.peer_door, common.polling
client.config.load_site(pathlib.Path({settings!r}))
os.umask(0o077); os.setgroups([{group}]); os.setgid({user}); os.setuid({user})
sys.exit(client.cli.main.main(["trainer", {settings!r}, "--gateway-user", {gateway!r}]))
"""
GATEWAY_PROGRAM = """
import os, pathlib, sys
from client.gateway.link import SocketLink
from common.errors import SiteFailure
from common.wire import codec
request = pathlib.Path({request!r}).read_bytes()
os.setgroups([{group}]); os.setgid({user}); os.setuid({user})
try:
    print(codec.from_bytes(SocketLink(pathlib.Path({path!r}), connect_s=3.0).ask(request, 30)).kind)
except SiteFailure:
    print("no answer")
"""


def program(text: str, **words: object) -> list[str]:
    return [sys.executable, "-c", text.format(**words)]


@root
@pytest.mark.slow
def test_a_trainer_answers_its_gateways_user_alone(link: Path) -> None:
    """The program as the unit starts it, and plans from three users who are all in the socket's group."""
    gateway = pwd.getpwnam("daemon")
    outer = link.parent
    (outer / "images" / "a").mkdir(parents=True)
    state = outer / "state"
    state.mkdir(mode=0o700)
    os.chown(state, TRAINER, GROUP)
    settings = outer / "site.yaml"
    socket_path = link / "trainer.sock"
    settings.write_text(
        yaml.safe_dump(
            {
                "name": "north", "data": {"kind": "folders", "root": str(outer / "images")}, "device": "cpu",
                "state_dir": str(state), "socket": str(socket_path), "policy": {"ask": True},
            }
        )
    )  # fmt: skip
    settings.chmod(0o644)
    request = outer / "plan"
    request.write_bytes(codec.to_bytes(wire.ApprovalPlan(plan_id="q", site="north", study=study())))
    env = {**os.environ, "PYTHONPATH": str(KIT.parents[2])}
    command = program(
        TRAINER_PROGRAM, group=GROUP, user=TRAINER, settings=str(settings), gateway=gateway.pw_name
    )
    with (outer / "said").open("wb") as said:
        trainer = subprocess.Popen(command, env=env, stdout=said, stderr=said)

    def answer_to(user: int, group: int = GROUP) -> str:
        call = program(GATEWAY_PROGRAM, request=str(request), group=group, user=user, path=str(socket_path))
        return subprocess.run(call, env=env, capture_output=True, text=True, check=True).stdout.strip()

    try:
        assert wait_until(lambda: socket_path.exists() or trainer.poll() is not None, 120)
        assert trainer.poll() is None, (outer / "said").read_text()
        mode = socket_path.stat()
        assert (stat.S_IMODE(mode.st_mode), mode.st_uid, mode.st_gid) == (0o660, TRAINER, GROUP)
        assert answer_to(gateway.pw_uid) == "approval_answer"
        assert answer_to(OTHER) == "no answer"  # in the group, and another user
        assert answer_to(OTHER, group=OTHER) == "no answer"
        assert f"a program of user {OTHER} tried to reach the trainer" in (outer / "said").read_text()
        log = state / "audit.jsonl"
        assert as_user(gateway.pw_uid, f"print(os.access({str(log)!r}, os.R_OK))") == "False"
        assert log.stat().st_uid == TRAINER
    finally:
        trainer.terminate()
        trainer.wait(60)

"""A process that has given up its network opens Unix sockets alone, and so does every process that it starts."""

import os
import platform
import subprocess
import sys

import pytest

from common.errors import LaunchError
from common.processes import no_network
from tests.places import ROOT

on_linux = pytest.mark.skipif(
    platform.system() != "Linux" or platform.machine() not in ("x86_64", "aarch64"),
    reason="the filter is for Linux on x86-64 and arm64",
)

TRY = """
import errno, socket
for name in ("AF_INET", "AF_INET6", "AF_NETLINK", "AF_PACKET", "AF_VSOCK", "AF_ALG"):
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_RAW):
        try:
            socket.socket(getattr(socket, name), kind)
        except OSError as error:
            assert error.errno == errno.EAFNOSUPPORT, (name, kind, error)
        else:
            raise SystemExit(f"{name} can be opened")
try:
    socket.create_connection(("127.0.0.1", 9), timeout=5)
except OSError as error:
    assert error.errno == errno.EAFNOSUPPORT, error
one, other = socket.socketpair()
one.send(b"by a Unix socket")
assert other.recv(16) == b"by a Unix socket"
"""


def run(script: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


@on_linux
def test_without_a_network_unix_sockets_alone_can_be_opened() -> None:
    run(f"from common.processes.no_network import give_up_network\ngive_up_network()\n{TRY}")


@on_linux
def test_threads_that_run_already_and_processes_that_are_started_have_none_either() -> None:
    run(
        f"""
import subprocess, sys, threading
from common.processes.no_network import give_up_network

TRY, given_up, failed = {TRY!r}, threading.Event(), []

def later():
    given_up.wait()
    try:
        exec(TRY, {{}})
    except BaseException as error:
        failed.append(error)

thread = threading.Thread(target=later)
thread.start()
give_up_network()
given_up.set()
thread.join()
assert not failed, failed
subprocess.run([sys.executable, "-c", TRY], check=True)
"""
    )


@on_linux
def test_a_ring_of_requests_to_the_kernel_cannot_be_made_which_could_open_a_socket_past_the_filter() -> None:
    run(
        """
import ctypes, errno
from common.processes.no_network import give_up_network
kernel = ctypes.CDLL(None, use_errno=True)
give_up_network()
assert kernel.syscall(425, 1, ctypes.create_string_buffer(120)) == -1
assert ctypes.get_errno() == errno.EPERM
"""
    )


@on_linux
def test_a_second_filter_does_no_harm() -> None:
    run(
        f"from common.processes.no_network import give_up_network\ngive_up_network()\ngive_up_network()\n{TRY}"
    )


def test_a_machine_whose_calls_are_not_known_is_refused_with_a_way_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(platform, "system", lambda: "Linux")
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    with pytest.raises(LaunchError, match="found Linux on riscv64; run the trainer in a container"):
        no_network.give_up_network()


def test_a_socket_that_opens_in_spite_of_the_filter_stops_the_program() -> None:
    with pytest.raises(LaunchError, match="in spite of the filter"):
        no_network._require_closed()

"""Whatever an asker does, or does not live to do, the template lives on and leaves no fork behind."""

import os
import signal
import socket
from pathlib import Path

import pytest

from common.processes import forked
from common.processes import template as template_module
from common.processes.forked import CannotFork, Fork, Template
from tests.common.processes.test_launcher import soon


def ended(fork: Fork) -> int:
    """The exit code."""
    with fork.stdout:
        return fork.wait()


def asker(template: Template, env: dict[str, str], name: str, *arguments: str) -> socket.socket:
    """A connection that has asked for a fork, and has not read the answer."""
    request = template_module.Request(name, arguments, env, template_module.surroundings())
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    connection.connect(str(template.path))
    with Path(os.devnull).open("wb") as output:
        socket.send_fds(connection, [request.to_bytes()], [output.fileno()] * 2)
    return connection


def children(template: Template) -> list[int]:
    assert template.process is not None
    listed = Path(f"/proc/{template.process.pid}/task/{template.process.pid}/children")
    return [int(pid) for pid in listed.read_text().split()]


@pytest.mark.parametrize("kib", [160, 400])
def test_a_message_that_no_template_reads_is_not_sent_and_the_template_lives_on(
    template: Template, env: dict[str, str], kib: int
) -> None:
    long = env | {f"LONG_{number}": "x" * 1024 for number in range(kib)}
    with pytest.raises(
        CannotFork, match=r"take \d+ KiB, and a template reads 128 KiB at most; start it with fewer"
    ):
        template.fork("show", [], long)
    assert ended(template.fork("leave", ["3"], env)) == 3


def test_a_message_that_was_cut_is_refused_and_the_template_lives_on(
    template: Template, env: dict[str, str]
) -> None:
    """As another launcher may send it, which does not look at the length."""
    with asker(template, env | {"LONG": "x" * 160 * 1024}, "show") as connection:
        assert "is longer than 128 KiB" in connection.recv(template_module.MOST_BYTES).decode()
    assert ended(template.fork("leave", ["3"], env)) == 3


@pytest.mark.parametrize("changes", [{}, {"OMP_NUM_THREADS": "17"}], ids=["forked", "refused"])
def test_an_asker_that_is_gone_leaves_no_fork_and_the_template_lives_on(
    tmp_path: Path, env: dict[str, str], changes: dict[str, str]
) -> None:
    made = forked.start(["slow"], env, tmp_path / "template.log", tmp_path / "s")
    try:
        asker(made, env | changes, "wait", str(tmp_path / "up")).close()  # before the template reads it
        (tmp_path / "go").touch()
        assert ended(made.fork("leave", ["3"], env)) == 3
        assert soon(lambda: not children(made))
    finally:
        made.end()


def test_a_request_to_end_reaches_a_fork_that_is_no_process_of_its_own_yet(
    tmp_path: Path, env: dict[str, str]
) -> None:
    made = forked.start(["held"], env, tmp_path / "template.log", tmp_path / "s")
    try:
        fork = made.fork("leave", ["0"], env)
        assert soon(lambda: (tmp_path / "new").exists() and "\n" in (tmp_path / "new").read_text())
        os.kill(fork.pid, signal.SIGTERM)
        (tmp_path / "go").touch()
        assert ended(fork) == -signal.SIGTERM
        assert ended(made.fork("leave", ["3"], env)) == 3  # the request was not the template's
    finally:
        made.end()

"""The trainer's socket: what goes in comes out, and whoever does not answer is named in time."""

import os
import socket as sockets
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import numpy as np
import pytest

from client.gateway import link
from client.gateway.link import SocketLink, serve
from common.errors import SiteFailure, StorageError


@pytest.fixture
def socket(tmp_path: Path) -> Path:
    return tmp_path / "t.sock"


@contextmanager
def serving(answer: Callable[[bytes], bytes], socket: Path) -> Iterator[grpc.Server]:
    server = serve(answer, socket)
    try:
        yield server
    finally:
        server.stop(grace=None).wait()


def test_twenty_mebibytes_arrive_unchanged_and_so_does_the_answer(socket: Path) -> None:
    request = np.random.default_rng(0).bytes(20 * 2**20 + 7)  # 5 whole chunks of 4 MiB and 7 bytes
    with serving(lambda data: data[::-1], socket):
        assert SocketLink(socket).ask(request, timeout_s=60) == request[::-1]


@pytest.mark.parametrize(
    "folder",
    [
        "with blanks",
        "50%25",
        "a?b#c",
        'it\'s "mine"',
        "back\\slash",
        "Universitätsklinik",
        "東京",
        "M\udcfcller",
        "a:b@c",
    ],
    ids=ascii,
)
def test_a_kits_folder_may_have_any_name(tmp_path: Path, folder: str) -> None:
    """gRPC reads `unix:PATH` as a URI."""
    place = tmp_path / folder / "t.sock"
    with serving(lambda data: data[::-1], place):
        assert place.is_socket()
        assert SocketLink(place).ask(b"abc", timeout_s=30) == b"cba"


@pytest.mark.parametrize("name", ["http_proxy", "https_proxy", "grpc_proxy", "all_proxy", "HTTP_PROXY"])
def test_a_socket_is_reached_whatever_proxy_the_environment_names(
    socket: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, "http://127.0.0.1:1")
    with serving(lambda data: data, socket):
        assert SocketLink(socket).ask(b"x", timeout_s=30) == b"x"


def test_a_socket_that_may_not_be_opened_is_neither_removed_nor_called_silent(
    socket: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another user's trainer, in a folder that both may write to: it was taken for one that had exited, and removed."""

    def forbidden(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    with serving(lambda data: data, socket):
        monkeypatch.setattr(link.sockets.socket, "connect", forbidden)
        with pytest.raises(StorageError, match="cannot be made: Permission denied"):
            serve(lambda data: data, socket)
        assert socket.is_socket()
    socket.unlink(missing_ok=True)
    with pytest.raises(
        SiteFailure, match=r"cannot be opened \(Permission denied\); run gateway and trainer as the same"
    ):
        SocketLink(socket, connect_s=0.1).ask(b"x", timeout_s=1)


def test_a_trainer_with_a_full_queue_of_connections_is_not_taken_for_one_that_has_exited(
    socket: Path,
) -> None:
    with sockets.socket(sockets.AF_UNIX) as busy:
        busy.bind(str(socket))
        busy.listen(0)
        waiting = sockets.socket(sockets.AF_UNIX)
        with waiting:
            waiting.connect(str(socket))  # nothing accepts it, and there is room for no other
            with pytest.raises(SiteFailure, match="another trainer listens"):
                serve(lambda data: data, socket)
    assert socket.is_socket()


def test_an_empty_answer_is_an_answer(socket: Path) -> None:
    with serving(lambda _: b"", socket):
        assert SocketLink(socket).ask(b"x", timeout_s=30) == b""


def test_a_socket_nobody_listens_on_is_named_within_the_timeout(socket: Path) -> None:
    started = time.monotonic()
    with pytest.raises(SiteFailure, match="nothing listens on the trainer's socket"):
        SocketLink(socket).ask(b"x", timeout_s=0.3)
    assert time.monotonic() - started < 10


def test_a_trainer_that_is_gone_is_named_long_before_the_deadline_of_its_round(socket: Path) -> None:
    """An hour's deadline is for training; nobody should wait that long for a process that is not there."""
    with pytest.raises(SiteFailure, match="start the trainer"):
        SocketLink(socket, connect_s=0.2).ask(b"x", timeout_s=3600)


def test_a_trainer_that_starts_late_is_waited_for(socket: Path) -> None:
    servers: list[grpc.Server] = []
    asked = threading.Event()

    class Asking(SocketLink):
        def _pass_on_once(self, request, receive, timeout_s):
            asked.set()
            return super()._pass_on_once(request, receive, timeout_s)

    def start_late() -> None:
        asked.wait(60)
        servers.append(serve(lambda data: data, socket))

    late = threading.Thread(target=start_late)
    late.start()
    try:
        assert Asking(socket).ask(b"late", timeout_s=60) == b"late"
    finally:
        late.join()
        servers[0].stop(grace=None).wait()


def test_a_trainer_that_takes_too_long_is_given_up(socket: Path) -> None:
    go_on = threading.Event()

    def slow(data: bytes) -> bytes:
        go_on.wait(30)
        return data

    with serving(slow, socket):
        try:
            with pytest.raises(SiteFailure, match="DEADLINE_EXCEEDED"):
                SocketLink(socket).ask(b"x", timeout_s=0.5)
        finally:
            go_on.set()


_DIES = """
import os, sys
from pathlib import Path
from client.gateway.link import serve
serve(lambda _: os._exit(9), Path(sys.argv[1])).wait_for_termination()
"""


def test_a_trainer_that_dies_while_it_works_is_asked_again_when_it_is_back(socket: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", _DIES, str(socket)])
    back: list[grpc.Server] = []

    def restart() -> None:
        process.wait(60)
        back.append(serve(lambda data: data[::-1], socket))

    restarting = threading.Thread(target=restart)
    restarting.start()
    try:
        assert SocketLink(socket).ask(b"plan", timeout_s=240) == b"nalp"
    finally:
        process.kill()
        restarting.join(60)
        back[0].stop(grace=None).wait()


def test_a_trainer_that_dies_and_stays_away_is_named(socket: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", _DIES, str(socket)])
    try:
        with pytest.raises(SiteFailure, match="nothing listens on the trainer's socket"):
            _ConnectsOnce(socket).ask(b"x", timeout_s=240)
        assert process.wait(30) == 9
    finally:
        process.kill()


class _ConnectsOnce(SocketLink):
    """Waits for the first connection as long as it takes, for the next ones hardly at all."""

    def _pass_on_once(self, request, receive, timeout_s):
        try:
            return super()._pass_on_once(request, receive, timeout_s)
        finally:
            self._connect_s = 0.2


def test_a_trainer_that_dies_of_a_plan_is_not_asked_for_ever(
    socket: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bytes] = []

    def dies(_: SocketLink, request, receive, timeout_s: float) -> bytes:
        asked.append(b"".join(request()))
        raise link._ConnectionLost

    monkeypatch.setattr(SocketLink, "_pass_on_once", dies)
    with pytest.raises(SiteFailure, match="exited 3 times while it worked on a plan"):
        SocketLink(socket).ask(b"x", timeout_s=240)
    assert asked == [b"x"] * 3


def test_an_answer_that_fails_inside_the_trainer_says_nothing_of_its_text(socket: Path) -> None:
    def fails(_: bytes) -> bytes:
        raise RuntimeError("/data/MUELLER_ANNA_1961.jpg")

    with serving(fails, socket), pytest.raises(SiteFailure) as caught:
        SocketLink(socket).ask(b"x", timeout_s=30)
    assert "MUELLER" not in str(caught.value)


def test_only_the_owner_may_hand_in_plans(socket: Path) -> None:
    former = os.umask(0)
    try:
        with serving(lambda data: data, socket):
            assert socket.stat().st_mode & 0o777 == 0o600
        assert os.umask(0) == 0  # the process's own mask is as it was
    finally:
        os.umask(former)


def test_plans_are_answered_one_after_the_other(socket: Path) -> None:
    inside, most = 0, 0
    lock = threading.Lock()

    def answer(data: bytes) -> bytes:
        nonlocal inside, most
        with lock:
            inside += 1
            most = max(most, inside)
        time.sleep(0.05)  # long enough for another plan to get in, if it could
        with lock:
            inside -= 1
        return data

    with serving(answer, socket):
        asking = [
            threading.Thread(target=SocketLink(socket).ask, args=(bytes([n]), 60), daemon=True)
            for n in range(4)
        ]
        for thread in asking:
            thread.start()
        for thread in asking:
            thread.join(60)
    assert most == 1


def test_a_path_that_no_socket_can_have_says_how_long_it_may_be(tmp_path: Path) -> None:
    long = tmp_path / ("x" * 108)
    for use in (lambda: serve(bytes, long), lambda: SocketLink(long).ask(b"", 1)):
        with pytest.raises(SiteFailure, match="a Unix socket's may have 107; name a shorter one"):
            use()


def test_the_socket_of_a_trainer_that_is_gone_is_taken_over(socket: Path) -> None:
    with serving(lambda _: b"first", socket) as first:
        first.stop(grace=None).wait()
        with serving(lambda _: b"second", socket):
            assert SocketLink(socket).ask(b"", timeout_s=30) == b"second"


def test_a_second_trainer_of_a_site_is_refused_and_the_first_goes_on(socket: Path) -> None:
    with serving(lambda _: b"first", socket):
        with pytest.raises(SiteFailure, match="another trainer listens"):
            serve(lambda _: b"second", socket)
        assert SocketLink(socket).ask(b"", timeout_s=30) == b"first"


def test_a_file_in_the_way_is_never_removed(socket: Path) -> None:
    socket.write_text("a diary")
    with pytest.raises(StorageError, match="is not a socket"):
        serve(bytes, socket)
    assert socket.read_text() == "a diary"


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot be made"):
        serve(bytes, tmp_path / "file" / "t.sock")

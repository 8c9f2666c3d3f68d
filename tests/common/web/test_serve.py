"""Where a console listens, and the events of an open page."""

import asyncio
import socket
import urllib.request
from collections.abc import Iterator

import pytest
from starlette.responses import PlainTextResponse

from common.errors import ConfigError, LaunchError
from common.processes.ports import free_ports
from common.web.console import Live, changes
from common.web.serve import Place, serving, start
from server.deployment.certificates import make_server_identity


def test_an_address_that_others_reach_needs_a_certificate() -> None:
    with pytest.raises(ConfigError, match="needs TLS"):
        _ = Place("192.0.2.7").address


def test_loopback_is_found_under_its_own_names_alone() -> None:
    address = Place(port=8765).address
    assert address.hosts == ("127.0.0.1:8765", "[::1]:8765", "localhost:8765")
    assert address.scheme == "http"


def test_in_a_container_it_listens_everywhere_and_is_found_under_loopback_alone() -> None:
    place = Place(published=True)
    assert place.listen == "0.0.0.0"
    assert place.address == Place().address


def test_with_a_certificate_it_is_found_under_the_names_in_it(tmp_path) -> None:
    identity = make_server_identity(tmp_path, ["console.example", "192.0.2.7"])
    address = Place("192.0.2.7", 8443, identity.certificate, identity.key).address
    assert address.hosts == ("192.0.2.7:8443", "console.example:8443")
    assert address.scheme == "https"


def test_it_answers_on_its_port_and_no_more_after_its_end() -> None:
    [port] = free_ports(1)
    with (
        serving(PlainTextResponse("here"), Place(port=port)),
        urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=10) as answer,
    ):
        assert answer.read() == b"here"
        assert "Server" not in answer.headers
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.1", port), timeout=5)


def test_a_port_that_is_taken_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(LaunchError, match=f"127.0.0.1:{port} cannot be used for the console"):
            start(PlainTextResponse("here"), Place(port=port))


def test_an_open_page_hears_of_a_change_once_and_its_end_is_counted() -> None:
    marks: Iterator[str] = iter(["a", "a", "b", "b", "b"])
    live = Live(lambda: next(marks))

    async def hear() -> list[str]:
        stream, heard = changes(live, look_s=0.0, beat_s=10.0), []
        heard.append(await anext(stream))
        heard.append(await anext(stream))
        assert live.streams == 1
        await stream.aclose()
        return heard

    assert asyncio.run(hear()) == ["retry: 3000\n\n", "event: changed\ndata: \n\n"]
    assert live.streams == 0

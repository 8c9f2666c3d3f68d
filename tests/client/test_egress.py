"""A gateway's way out leads to its server and nowhere else."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from client import egress
from common.errors import ConfigError

Exchange = Callable[[int, bytes], Awaitable[bytes]]


async def shouting(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write((await reader.read(100)).upper())
    await writer.drain()
    writer.close()


async def said(port: int, request: bytes, then: bytes = b"") -> bytes:
    """What comes back from the way out; `then` is sent once it has answered."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    if then:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(then)
        writer.write_eof()
    answer = await asyncio.wait_for(reader.read(), 10)
    writer.close()
    return answer


def port_of(server: asyncio.Server) -> int:
    return int(server.sockets[0].getsockname()[1])


def run(scene: Callable[[int, int], Awaitable[None]]) -> None:
    """`scene(port of the server, port of the way out)` beside both."""

    async def play() -> None:
        server = await asyncio.start_server(shouting, "127.0.0.1", 0)
        way = egress.WayOut(f"127.0.0.1:{port_of(server)}", None)
        async with server, await way.listen("127.0.0.1", 0) as listening:
            await scene(port_of(server), port_of(listening))

    asyncio.run(play())


def connect(place: str) -> bytes:
    return f"CONNECT {place} HTTP/1.1\r\nHost: {place}\r\n\r\n".encode()


def test_the_server_is_reached() -> None:
    async def scene(server: int, way: int) -> None:
        assert await said(way, connect(f"127.0.0.1:{server}"), b"hello") == b"HELLO"

    run(scene)


@pytest.mark.parametrize(
    "request_line",
    [
        "CONNECT 127.0.0.1:{other} HTTP/1.1",
        "CONNECT evil.example:443 HTTP/1.1",
        "CONNECT 169.254.169.254:80 HTTP/1.1",
        "CONNECT 127.0.0.1:{server}@evil.example:443 HTTP/1.1",
        "GET http://127.0.0.1:{server}/ HTTP/1.1",
        "POST http://evil.example/ HTTP/1.1",
        "CONNECT",
        "\x00\xff",
    ],
)
def test_every_other_wish_is_refused(request_line: str) -> None:
    async def scene(server: int, way: int) -> None:
        line = request_line.format(server=server, other=server + 1).encode("latin-1")
        assert (await said(way, line + b"\r\n\r\n")).startswith(b"HTTP/1.1 403")

    run(scene)


def test_a_request_without_an_end_is_dropped() -> None:
    async def scene(_server: int, way: int) -> None:
        assert await said(way, b"C" * (egress.LONGEST_REQUEST * 3)) == b""

    run(scene)


def test_a_server_that_is_away_is_a_bad_gateway() -> None:
    async def play() -> None:
        async with await egress.WayOut("127.0.0.1:9", None).listen("127.0.0.1", 0) as listening:
            answer = await said(port_of(listening), connect("127.0.0.1:9"))
            assert answer.startswith(b"HTTP/1.1 502")

    asyncio.run(play())


def test_the_sites_own_proxy_lies_in_between() -> None:
    asked: list[bytes] = []

    async def proxy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 200 fine\r\n\r\n")
        await shouting(reader, writer)

    async def play() -> None:
        between = await asyncio.start_server(proxy, "127.0.0.1", 0)
        way = egress.WayOut("c.example:9092", f"http://me:p%40ss@127.0.0.1:{port_of(between)}")
        async with between, await way.listen("127.0.0.1", 0) as listening:
            assert await said(port_of(listening), connect("c.example:9092"), b"hello") == b"HELLO"

    asyncio.run(play())
    (head,) = asked
    assert head.startswith(b"CONNECT c.example:9092 HTTP/1.1\r\n")
    assert b"Proxy-Authorization: Basic bWU6cEBzcw==\r\n" in head  # me:p@ss


def test_a_unit_names_the_servers_addresses_and_whom_it_asks_for_them(tmp_path: Path) -> None:
    resolvers = tmp_path / "resolv.conf"
    resolvers.write_text(
        "# x\nnameserver 127.0.0.53\nnameserver fe80::1%eth0\noptions edns0\nnameserver junk\n"
    )
    text = egress.unit("c.example:9092", None, lambda host: [f"192.0.2.{len(host)}"], resolvers)
    assert [line for line in text.splitlines() if not line.startswith("#")] == [
        "[Service]", "IPAddressDeny=any", "IPAddressAllow=192.0.2.9", "IPAddressAllow=127.0.0.53",
        "IPAddressAllow=fe80::1",
    ]  # fmt: skip


def test_a_server_by_address_needs_no_resolver_and_a_proxy_is_called_in_its_place(tmp_path: Path) -> None:
    nowhere = tmp_path / "none"
    assert "IPAddressAllow=192.0.2.7\n" in egress.unit("192.0.2.7:9092", None, resolvers=nowhere)
    text = egress.unit("c.example:9092", "http://198.51.100.3:3128", resolvers=nowhere)
    assert "IPAddressAllow=198.51.100.3\n" in text
    assert "c.example" not in text


def test_a_name_without_an_address_is_a_sentence() -> None:
    with pytest.raises(ConfigError, match="has no address here"):
        egress.unit("no-such-host.invalid:9092", None)

"""The gateway's way out: to its own server, and to no other machine.

A gateway that somebody took over could call anywhere that the gateway can. Under systemd the kernel
drops what goes to other addresses. In containers the gateway has no way out at all, but for the program here in a
container of its own: it holds no key and sees no plan, and joins a connection to the server of `gateway.yaml` (by
the site's own proxy, if it names one). It is asked by CONNECT (RFC 9110, 9.3.6), as any proxy is.
"""

import asyncio
import base64
import contextlib
import ipaddress
import socket
from collections.abc import Callable, Iterable
from pathlib import Path

from common import log
from common.errors import ConfigError
from common.network import hosts, proxies
from common.text import one_line

LONGEST_REQUEST = 8192
"""Bytes of a request's lines, and of a proxy's answer."""
WAIT_S = 30.0
"""Seconds for a request to be complete, and for the server to answer."""
MOST_CONNECTIONS = 32

_CHUNK, _RESOLVERS = 2**16, Path("/etc/resolv.conf")


# --- under systemd -------------------------------------------------------------------------------

Resolve = Callable[[str], Iterable[str]]


def addresses(host: str) -> list[str]:
    """The addresses of a name, or the address itself. Raises ConfigError."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError as error:
        raise ConfigError(
            f"{host} has no address here ({error.strerror}); a unit names addresses, so run this where it has one"
        ) from error
    return sorted({str(entry[4][0]) for entry in found})


def unit(server: str, proxy: str | None, resolve: Resolve = addresses, resolvers: Path = _RESOLVERS) -> str:
    """A drop-in of the gateway's unit that lets it call `server`, HOST:PORT, or `proxy`. Raises ConfigError."""
    host, _ = hosts.divided(server) if proxy is None else proxies.place(proxy)
    allowed = list(resolve(host))
    lines = [
        f"# {host}, by its addresses of today: run `./site.sh units` again when they change.",
        "[Service]",
        "IPAddressDeny=any",
        *(f"IPAddressAllow={address}" for address in allowed),
    ]
    if not _is_address(host):
        lines += [
            "# whom it asks for the address",
            *(f"IPAddressAllow={address}" for address in _nameservers(resolvers)),
        ]
    return "\n".join(lines) + "\n"


def _nameservers(file: Path) -> list[str]:
    try:
        words = [line.split() for line in file.read_text(encoding="utf-8", errors="replace").splitlines()]
    except OSError:
        return []
    found = (line[1].partition("%")[0] for line in words if len(line) > 1 and line[0] == "nameserver")
    return [address for address in found if _is_address(address)]


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


# --- in a container of its own -------------------------------------------------------------------


class WayOut:
    """Joins connections to one server, and refuses every other wish."""

    def __init__(self, server: str, proxy: str | None) -> None:
        self._server, self._proxy = server, proxy
        self._open = 0

    async def listen(self, host: str, port: int) -> asyncio.Server:
        """Start to listen; the caller closes the server. Raises OSError."""
        return await asyncio.start_server(self._serve, host, port, limit=LONGEST_REQUEST)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open += 1
        try:
            if self._open > MOST_CONNECTIONS:
                await _answer(writer, "503 Too many connections")
                return
            async with asyncio.timeout(WAIT_S):
                wish = await _wish(reader)
            if wish != self._server:
                shown = one_line(wish or "", 100)
                log.warn(
                    f"a way to {shown or 'something else'} was asked for and refused: it leads to {self._server}"
                )
                await _answer(writer, "403 Forbidden")
                return
            try:
                async with asyncio.timeout(WAIT_S):
                    out_reader, out_writer = await self._connect()
            except (OSError, TimeoutError, EOFError) as error:
                log.warn(f"{self._server} cannot be reached: {type(error).__name__}")
                await _answer(writer, "502 Bad Gateway")
                return
            try:
                await _answer(writer, "200 Connection established")
                await asyncio.gather(_pass_on(reader, out_writer), _pass_on(out_reader, writer))
            finally:
                out_writer.close()
        except (OSError, TimeoutError, EOFError, asyncio.LimitOverrunError):
            pass
        finally:
            self._open -= 1
            writer.close()

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self._proxy is None:
            host, port = hosts.divided(self._server)
            return await asyncio.open_connection(host, port)
        reader, writer = await asyncio.open_connection(*proxies.place(self._proxy), limit=LONGEST_REQUEST)
        lines = [f"CONNECT {self._server} HTTP/1.1", f"Host: {self._server}"]
        if (who := proxies.credentials(self._proxy)) is not None:
            lines.append(f"Proxy-Authorization: Basic {base64.b64encode(who.encode()).decode()}")
        writer.write("\r\n".join([*lines, "", ""]).encode())
        await writer.drain()
        head = await reader.readuntil(b"\r\n\r\n")
        if head.split(b" ", 2)[1:2] != [b"200"]:
            writer.close()
            raise ConnectionError(f"the proxy answered {head[:60]!r}")
        return reader, writer


async def _wish(reader: asyncio.StreamReader) -> str | None:
    """HOST:PORT that a request wants to be joined to; None if it is no CONNECT."""
    head = await reader.readuntil(b"\r\n\r\n")
    words = head.split(b"\r\n", 1)[0].decode("ascii", errors="replace").split(" ")
    if len(words) != 3 or words[0] != "CONNECT" or not words[2].startswith("HTTP/1."):
        return None
    try:
        return hosts.server_address(words[1])
    except ValueError:
        return words[1]


async def _answer(writer: asyncio.StreamWriter, status: str) -> None:
    writer.write(f"HTTP/1.1 {status}\r\n\r\n".encode())
    await writer.drain()


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(_CHUNK):
            writer.write(data)
            await writer.drain()
    with contextlib.suppress(OSError, RuntimeError):
        if writer.can_write_eof():
            writer.write_eof()

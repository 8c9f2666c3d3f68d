"""Way to the server: its name, its port, perhaps a proxy in between, its certificate.

Each step is tried as the gateway will go, directly or through the proxy of `gateway.yaml`. The first obstacle is
named, with who can remove it.
"""

import base64
import socket
import ssl
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from client.preflight.findings import Finding
from common.network import proxies
from common.network.hosts import divided, joined

_SOON_DAYS, _WAIT_S = 30, 10.0
_LONGEST_ANSWER = 16 * 2**10
"""Bytes of a proxy's answer, which is a few lines."""


@dataclass(frozen=True)
class Way:
    """From this machine to a server."""

    server: str
    """HOST:PORT."""
    proxy: str | None
    """URL of the proxy in between."""
    ca: Path
    """Certificate of the authority that signs the server's."""

    @property
    def host(self) -> str:
        return divided(self.server)[0]

    @property
    def first(self) -> tuple[str, int]:
        """Host and port to which this machine itself connects."""
        return divided(self.server) if self.proxy is None else proxies.place(self.proxy)

    def dial(self) -> socket.socket:
        """A connection to the server. Raises OSError, _Refused if a proxy will not make it."""
        line = socket.create_connection(self.first, _WAIT_S)
        if self.proxy is not None:
            try:
                _ask_for_tunnel(line, self.server, proxies.credentials(self.proxy))
            except BaseException:
                line.close()
                raise
        return line


class _Refused(Exception):
    """A proxy that does not connect to the server; the text says why, and what to do."""


def check(way: Way, environ: Mapping[str, str]) -> Iterator[Finding]:
    """Every step to the server; ends at the first that stops the others."""
    yield from _environment(way, environ)
    for step in (_name, _port, _certificate):
        finding = step(way)
        yield finding
        if finding.rank == "stops":
            return


def _environment(way: Way, environ: Mapping[str, str]) -> Iterator[Finding]:
    named = proxies.named(environ)
    which = ", ".join(f"{name} ({place})" for name, place in named.items())
    if way.proxy is not None:
        others = f"; {which} of the environment is not asked" if named else ""
        yield Finding(
            "fine", f"goes through the proxy {proxies.shown(way.proxy)}, as gateway.yaml says{others}"
        )
    elif named:
        example = next((place for place in named.values() if place), "HOST:PORT")
        yield Finding(
            "look",
            f"the environment names a proxy, {which}. The gateway does not use it, whatever no_proxy says, and "
            f"connects to {way.server} directly. If only a proxy leads there, write `proxy: http://{example}` in "
            "gateway.yaml",
        )


def _name(way: Way) -> Finding:
    host, port = way.first
    try:
        entries = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        whose = (
            "or the operator for an address that is in the certificate"
            if way.proxy is None
            else "for the proxy's right name, which gateway.yaml has as `proxy`"
        )
        return Finding(
            "stops",
            f"the name {host} is not known here ({error.strerror}); ask the network people for DNS, {whose}",
        )
    addresses = sorted({str(entry[4][0]) for entry in entries})
    return Finding("fine", f"{host} is {', '.join(addresses)}")


def _port(way: Way) -> Finding:
    started, (host, port) = time.monotonic(), way.first
    try:
        way.dial().close()
    except _Refused as refused:
        return Finding("stops", str(refused))
    except OSError as error:
        why = "no answer" if isinstance(error, TimeoutError) else error.strerror or str(error)
        what = "the server" if way.proxy is None else "the proxy"
        return Finding(
            "stops",
            f"{host} cannot be reached on port {port} ({why}): either {what} is not running, or a firewall is in "
            f"between; outbound TCP to {joined(host, port)} has to be allowed",
        )
    answered = f"answers in {1000 * (time.monotonic() - started):.0f} ms"
    if way.proxy is None:
        return Finding("fine", f"port {port} {answered}")
    return Finding("fine", f"the proxy {joined(host, port)} connects to {way.server}, and {answered}")


def _certificate(way: Way) -> Finding:
    host = way.host
    try:
        context = ssl.create_default_context(cafile=str(way.ca))
        context.set_alpn_protocols(["h2"])
        with way.dial() as line, context.wrap_socket(line, server_hostname=host) as secured:
            certificate, protocol = secured.getpeercert(), secured.selected_alpn_protocol()
    except _Refused as refused:
        return Finding("stops", str(refused))
    except ssl.SSLCertVerificationError as error:
        return Finding("stops", _not_good(host, error))
    except OSError as error:
        why = "no answer" if isinstance(error, TimeoutError) else error.strerror or error
        return Finding(
            "stops",
            f"no TLS with {way.server} ({why}); something else listens there, or something in "
            "between cuts it",
        )
    if protocol != "h2":
        return Finding(
            "stops",
            f"{way.server} has the right certificate and does not speak HTTP/2; what listens there is not the server's "
            "port for sites, or something in between takes HTTP/2 away",
        )
    end = ssl.cert_time_to_seconds(str((certificate or {})["notAfter"]))
    left = timedelta(seconds=end - time.time()).days
    text = f"the server's certificate is good for {host}, for {left} more days"
    return Finding("look" if left < _SOON_DAYS else "fine", text)


_WRONG_TIME = (9, 10)
"""OpenSSL's numbers for a certificate that is not yet valid, and for one that has expired."""


def _not_good(host: str, error: ssl.SSLCertVerificationError) -> str:
    """Why the server's certificate is not taken, and who can change that."""
    what = f"the server's certificate is not good for {host}: {error.verify_message.rstrip('.')}"
    ask = "Ask the operator for the kit that is valid now"
    if error.verify_code in _WRONG_TIME:
        return (
            f"{what}, by this machine's clock, which says {datetime.now(UTC):%Y-%m-%d %H:%M} UTC. If that is wrong, "
            f"set it by NTP. If it is right: {ask}"
        )
    return f"{what}. {ask}; if a proxy of your own opens TLS connections, it has to leave this one alone"


# --- a proxy in between ----------------------------------------------------------------------


def _ask_for_tunnel(line: socket.socket, server: str, credentials: str | None) -> None:
    """Ask an HTTP proxy for a connection to `server` (RFC 9110, 9.3.6). Raises _Refused."""
    lines = [f"CONNECT {server} HTTP/1.1", f"Host: {server}"]
    if credentials is not None:
        lines.append(f"Proxy-Authorization: Basic {base64.b64encode(credentials.encode()).decode()}")
    line.sendall("\r\n".join([*lines, "", ""]).encode())
    try:
        answer = _answer(line, time.monotonic() + _WAIT_S)
    except TimeoutError as error:
        raise _Refused(
            f"the proxy took the connection, was asked for {server}, and did not answer within {_WAIT_S:.0f} s: ask "
            "the network people whether it is one, and whether it is well"
        ) from error
    line.settimeout(_WAIT_S)
    first = answer.partition(b"\r\n")[0].decode("ascii", errors="replace")
    version, _, status = first.partition(" ")
    code = status[:3]
    if not version.startswith("HTTP/") or not code.isdigit():
        raise _Refused(
            "what listens at the proxy's address is not an HTTP proxy; correct `proxy` in gateway.yaml"
        )
    if code.startswith("2"):
        return
    match code:
        case "407":
            why = "wants a user and a password: `proxy: http://USER:PASSWORD@HOST:PORT` in gateway.yaml"
        case "502" | "503" | "504":
            why = "cannot reach it: the server is not running, or the proxy's own firewall is in between"
        case _:
            why = "does not allow it: ask the network people to allow CONNECT to that host and port, unopened"
    raise _Refused(f"the proxy was asked for {server} and answered {status[:60].strip()!r}; it {why}")


def _answer(line: socket.socket, until: float) -> bytes:
    """The head of a proxy's answer. What follows it is the server's, so nothing more is read.

    Raises TimeoutError if it is not whole at the time `until`, however slowly it comes.
    """
    answer = b""
    while not answer.endswith(b"\r\n\r\n") and len(answer) < _LONGEST_ANSWER:
        if (left := until - time.monotonic()) <= 0:
            raise TimeoutError
        line.settimeout(left)
        byte = line.recv(1)
        if not byte:
            break
        answer += byte
    return answer

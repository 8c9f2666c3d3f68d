"""Check of the connection to the server: name, port, certificate, clock, key, speed; `check-connection`.

The steps come in the order of the way to the server, and the first obstacle ends the check. The server must
refuse a few calls, and the reason of its refusal answers the question. Nothing changes at the server, so this
may run while the gateway is connected:

* the clock: Flower's port does not give the time, but the server refuses a signature whose time
  differs too much from its own. The latest time that it accepts is searched by halving, to a second;
* the key: an activation with a heartbeat that no server allows is refused for its heartbeat if the key is
  enrolled, and for its key if it is not;
* the line: a call of some MiB is refused as well, but only when all of it has arrived.

The calls carry a header, so that the server's log names them a check and not an attempt.
"""

import json
import os
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import grpc
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.common.constant import PUBLIC_KEY_HEADER, SIGNATURE_HEADER, TIMESTAMP_HEADER
from flwr.proto.fleet_pb2 import ActivateNodeRequest
from flwr.supercore.error import ApiErrorCode

from client.gateway.supervisor import GatewayConfig, require_files
from client.preflight.findings import Finding
from common import keys, release
from common.errors import ConfigError
from common.spans import format_span
from common.wire import CHECK_HEADER

AHEAD_S, BEHIND_S = 5.0, 300.0
"""How far a site's clock may be from the server's: Flower's window."""
MEASURED_MIB = 3
"""Below the 4 MiB that any gRPC server takes."""
_SIZES_MIB = {"convnext_tiny": 106, "swin_base": 331, "vit_large": 1157}
"""32-bit weights, as they travel: 4 bytes each of 27.8, 86.9 and 303.3 million."""
_SLOW_S, _SOON_DAYS, _WAIT_S = 600.0, 30, 10.0
_LONGEST_AHEAD_S = 86400.0


def check(config: GatewayConfig) -> Iterator[Finding]:
    """Every step on the way to the server; ends at the first that stops the others."""
    yield _version(config)
    try:
        require_files(config)
        key = keys.read_private(config.key)
    except ConfigError as error:
        yield Finding("stops", str(error))
        return
    yield Finding("fine", f"this site's key is {keys.fingerprint(key.public_key())}")
    host, _, port = config.server.rpartition(":")
    host = host.strip("[]")
    for step in (_name, _port, _certificate):
        finding = step(config, host, int(port))
        yield finding
        if finding.rank == "stops":
            return
    with Server(config, key) as server:
        yield from _clock(server)
        yield _enrolled(server)
        yield _line(server)


def _version(config: GatewayConfig) -> Finding:
    ours = release.version()
    if config.version in ("", ours):
        kit = "the version of the start-up kit" if config.version else "the start-up kit names no version"
        return Finding("fine", f"Consilium {ours}, {kit}")
    return Finding(
        "stops",
        f"Consilium {ours} is installed, the start-up kit and the server are {config.version}; install that version, "
        "or ask the study operator for a new kit",
    )


# --- the way there ---------------------------------------------------------------------------


def _name(_config: GatewayConfig, host: str, port: int) -> Finding:
    try:
        entries = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        return Finding(
            "stops",
            f"the name {host} is not known here ({error.strerror}); ask the network people for DNS, or the operator "
            "for an address that is in the certificate",
        )
    addresses = sorted({str(entry[4][0]) for entry in entries})
    return Finding("fine", f"{host} is {', '.join(addresses)}")


def _port(_config: GatewayConfig, host: str, port: int) -> Finding:
    started = time.monotonic()
    try:
        socket.create_connection((host, port), _WAIT_S).close()
    except OSError as error:
        why = "no answer" if isinstance(error, TimeoutError) else error.strerror
        return Finding(
            "stops",
            f"{host} cannot be reached on port {port} ({why}): either the server is not running, or a firewall is in "
            f"between; outbound TCP to {host}:{port} has to be allowed",
        )
    return Finding("fine", f"port {port} answers in {1000 * (time.monotonic() - started):.0f} ms")


def _certificate(config: GatewayConfig, host: str, port: int) -> Finding:
    try:
        context = ssl.create_default_context(cafile=str(config.ca))
        context.set_alpn_protocols(["h2"])
        with (
            socket.create_connection((host, port), _WAIT_S) as line,
            context.wrap_socket(line, server_hostname=host) as secured,
        ):
            certificate = secured.getpeercert()
    except ssl.SSLCertVerificationError as error:
        return Finding(
            "stops",
            f"the server's certificate is not good for {host}: {error.verify_message}. Ask the operator for "
            "the kit that is valid now; if a proxy of your own opens TLS connections, it has to leave this one alone",
        )
    except OSError as error:
        return Finding(
            "stops",
            f"no TLS with {host}:{port} ({error.strerror or error}); something else listens there, or something in "
            "between cuts it",
        )
    end = ssl.cert_time_to_seconds(str((certificate or {})["notAfter"]))
    left = timedelta(seconds=end - time.time()).days
    text = f"the server's certificate is good for {host}, for {left} more days"
    return Finding("look" if left < _SOON_DAYS else "fine", text)


# --- the server's answers --------------------------------------------------------------------


@dataclass
class Server:
    """Calls that the server must refuse, and its answers."""

    config: GatewayConfig
    key: ec.EllipticCurvePrivateKey

    def __enter__(self) -> "Server":
        ca = grpc.ssl_channel_credentials(self.config.ca.read_bytes())
        self._channel = grpc.secure_channel(self.config.server, ca)
        return self

    def __exit__(self, *_: object) -> None:
        self._channel.close()

    def refusal(self, ahead_s: float = 0.0, padding: bytes = b"") -> tuple[str, int | None]:
        """The server's answer to a call that is signed as if the clock were `ahead_s` further.

        The message, and Flower's number of the error, if it has one. `padding` travels along and is not read.
        """
        now = (datetime.now(UTC) + timedelta(seconds=ahead_s)).isoformat()
        public = keys.flower_form(self.key.public_key())
        metadata = [
            (PUBLIC_KEY_HEADER, public),
            (TIMESTAMP_HEADER, now),
            (SIGNATURE_HEADER, self.key.sign(now.encode(), ec.ECDSA(hashes.SHA256()))),
            (CHECK_HEADER, "1"),
        ]
        request = ActivateNodeRequest(public_key=public, heartbeat_interval=0.0).SerializeToString()
        call = self._channel.unary_unary("/flwr.proto.Fleet/ActivateNode")
        try:
            call(request + _unread(padding), metadata=metadata, timeout=_WAIT_S + len(padding) / 2**15)
        except grpc.RpcError as error:
            details = error.details() or error.code().name
            return details, _number(details)
        return "taken", None  # cannot be: no server allows such a heartbeat

    def takes(self, ahead_s: float) -> bool:
        """True if a signature of that time is not refused for its time."""
        return "timestamp" not in self.refusal(ahead_s)[0]


def _unread(padding: bytes) -> bytes:
    """`padding` as an unknown protobuf field: number 100, with its length in bytes."""
    if not padding:
        return b""
    size, length = len(padding), b""
    while size > 0x7F:
        length += bytes([size & 0x7F | 0x80])
        size >>= 7
    return b"\xa2\x06" + length + bytes([size]) + padding


def _number(details: str) -> int | None:
    try:
        return int(json.loads(details)["code"])
    except (ValueError, KeyError, TypeError):
        return None


def _clock(server: Server) -> Iterator[Finding]:
    fits = server.takes(0.0)
    try:
        behind_s = clock_behind_s(server.takes)
    except ValueError:
        yield Finding("stops", "this machine's clock is more than a day from the server's; set it by NTP")
        return
    way = "behind" if behind_s >= 0 else "ahead of"
    text = f"this machine's clock is {abs(behind_s):.0f} s {way} the server's (to a second)"
    limits = f"{AHEAD_S:.0f} s ahead and {BEHIND_S:.0f} s behind are allowed"
    if not fits:
        yield Finding("stops", f"{text}; {limits}. Set it by NTP, or ask the operator to set the server's")
    elif behind_s < -AHEAD_S / 2 or behind_s > BEHIND_S / 2:
        yield Finding("look", f"{text}; {limits}. NTP would hold it")
    else:
        yield Finding("fine", text)


def clock_behind_s(takes: Callable[[float], bool]) -> float:
    """How far this clock is behind the server's, to a second; negative: ahead.

    The server takes signatures of up to AHEAD_S after its own time, and of up to BEHIND_S before it.
    `takes` says whether it takes one that is this many seconds after this clock's time. Raises ValueError if it takes
    none within a day.
    """
    step = BEHIND_S  # the window is wider than that, so no step jumps over it
    tries = int(_LONGEST_AHEAD_S / step)
    ladder = (sign * number * step for number in range(tries) for sign in (1, -1))
    inside = next((ahead_s for ahead_s in ladder if takes(ahead_s)), None)
    if inside is None:
        raise ValueError("no time is taken")
    low, high = inside, inside + BEHIND_S + 2 * AHEAD_S + 1  # taken, not taken
    while high - low > 0.5:
        middle = (low + high) / 2
        low, high = (middle, high) if takes(middle) else (low, middle)
    return (low + high) / 2 - AHEAD_S


def _enrolled(server: Server) -> Finding:
    message, number = server.refusal()
    fingerprint = keys.fingerprint(server.key.public_key())
    if number == ApiErrorCode.FLEET_INVALID_HEARTBEAT_INTERVAL:
        return Finding("fine", "the server knows this site's key")
    if number == ApiErrorCode.FLEET_NODE_ACTIVATION_FAILED:
        return Finding(
            "stops",
            f"the server does not know this site's key; read it to the study operator, who enrols it: {fingerprint}. "
            "If it was revoked, make a new one: `consilium-site key --renew`",
        )
    if "timestamp" in message:
        return Finding("look", "whether the key is enrolled cannot be known before the clock is right")
    return Finding("look", f"whether the key is enrolled cannot be known: the server said {message[:200]!r}")


def _line(server: Server) -> Finding:
    started = time.monotonic()
    server.refusal()
    empty_s = time.monotonic() - started
    started = time.monotonic()
    message, number = server.refusal(padding=os.urandom(MEASURED_MIB * 2**20))
    if number is None and "timestamp" not in message:
        return Finding("look", f"how fast the line is could not be measured: {message[:200]}")
    seconds = max(time.monotonic() - started - empty_s, 1e-3)
    mib_s = MEASURED_MIB / seconds
    times = ", ".join(
        f"{format_span(mib / mib_s)} for {name} ({mib:,} MiB)" for name, mib in _SIZES_MIB.items()
    )
    slow = max(_SIZES_MIB.values()) / mib_s > _SLOW_S
    return Finding(
        "look" if slow else "fine",
        f"{8 * mib_s * 1.048576:,.0f} Mbit/s to the server: an answer with all weights takes {times}. The way back was "
        "not measured" + ("; a study that trains the head alone sends far less" if slow else ""),
    )

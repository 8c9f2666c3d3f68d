"""Check of the connection to the server: name, port, certificate, clock, key, speed; `check-connection`.

The steps come in the order of the way to the server, and the first obstacle ends the check. The server must
refuse a few calls, and the reason of its refusal answers the question. Nothing changes at the server, so this
may run while the gateway is connected:

* the clock: Flower's port does not give the time, but the server refuses a signature whose time
  differs too much from its own. The latest time that it accepts is searched by halving, to a second;
* the key: an activation with a heartbeat that no server allows is refused for its heartbeat if the key is
  enrolled, and for its key if it is not;
* the line: a call of some MiB is refused as well, but only when all of it has arrived.

Only these refusals say anything. Every other answer, and none, is an obstacle of its own: it is named, and it stops.

The calls carry a header, so that the server's log names them a check and not an attempt.
"""

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Literal, TypeAlias

import grpc
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.common.constant import PUBLIC_KEY_HEADER, SIGNATURE_HEADER, TIMESTAMP_HEADER
from flwr.proto.fleet_pb2 import ActivateNodeRequest
from flwr.supercore.error import ApiErrorCode

from client.gateway.settings import GatewayConfig, authority, require_files
from client.preflight import way
from client.preflight.findings import Finding
from common import keys, release
from common.console.spans import format_span
from common.errors import ConfigError
from common.network import proxies
from common.wire import CHECK_HEADER

AHEAD_S, BEHIND_S = 5.0, 300.0
"""How far a site's clock may be from the server's: Flower's window."""
MEASURED_MIB = 3
"""Below the 4 MiB that any gRPC server takes."""
_SIZES_MIB = {"convnext_tiny": 106, "swin_base": 331, "vit_large": 1157}
"""32-bit weights, as they travel: 4 bytes each of 27.8, 86.9 and 303.3 million."""
_SLOW_S, _WAIT_S = 600.0, 10.0
_LONGEST_AHEAD_S = 86400.0
_WRONG_TIME = "Invalid timestamp"
"""Flower's words for a signature whose time is too far from the server's."""


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
    for finding in way.check(way.Way(config.server, config.proxy, config.ca), os.environ):
        yield finding
        if finding.rank == "stops":
            return
    with Server(config, key) as server:
        try:
            yield from _clock(server)
            yield _enrolled(server)
            yield _line(server)
        except Unknown as unknown:
            yield Finding("stops", str(unknown))


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


# --- the server's answers --------------------------------------------------------------------


Refusal: TypeAlias = Literal["heartbeat", "key", "time"]
"""Why the server refused a call: for its heartbeat alone, because the key is not enrolled, or for its time."""


class Unknown(Exception):
    """An answer that Flower's server does not give to such a call. The text says what it was."""

    def __init__(self, answer: str) -> None:
        super().__init__(
            "the connection stands, but the server did not answer as Consilium's does, so the rest cannot be checked: "
            f"{' '.join(answer.split())[:300]}. Show this to the network people and to the study operator: another "
            "version may run there, or something in between changes what passes"
        )


@dataclass
class Server:
    """Calls that the server must refuse, and its answers."""

    config: GatewayConfig
    key: ec.EllipticCurvePrivateKey

    def __enter__(self) -> "Server":
        self._stack = contextlib.ExitStack()
        self._stack.enter_context(proxies.of_this_process(self.config.proxy))
        ca = grpc.ssl_channel_credentials(authority(self.config))
        self._channel = self._stack.enter_context(grpc.secure_channel(self.config.server, ca))
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def refusal(self, ahead_s: float = 0.0, padding: bytes = b"") -> Refusal:
        """Why the server refuses a call that is signed as if the clock were `ahead_s` further.

        `padding` travels along and is not read. Raises Unknown for every other answer, and for none.
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
            return _known(error.code(), error.details() or "")
        raise Unknown("it accepted a call that it has to refuse")

    def takes(self, ahead_s: float) -> bool:
        """True if a signature of that time is not refused for its time. Raises Unknown."""
        return self.refusal(ahead_s) != "time"


def _known(code: grpc.StatusCode, details: str) -> Refusal:
    """What an error of Flower 1.39 means. Raises Unknown for any other."""
    if code == grpc.StatusCode.UNAUTHENTICATED and details == _WRONG_TIME:
        return "time"
    match _number(details):
        case ApiErrorCode.FLEET_INVALID_HEARTBEAT_INTERVAL:
            return "heartbeat"
        case ApiErrorCode.FLEET_NODE_ACTIVATION_FAILED:
            return "key"
        case _:
            raise Unknown(f"{code.name}: {details}" if details else code.name)


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
    fingerprint = keys.fingerprint(server.key.public_key())
    match server.refusal():
        case "heartbeat":
            return Finding("fine", "the server knows this site's key")
        case "key":
            return Finding(
                "stops",
                "the server does not know this site's key; read it to the study operator, who enrols it: "
                f"{fingerprint}. If it was revoked, make a new one: `consilium-site key --renew`",
            )
        case "time":
            return Finding("look", "whether the key is enrolled cannot be known before the clock is right")


def _line(server: Server) -> Finding:
    started = time.monotonic()
    server.refusal()
    empty_s = time.monotonic() - started
    started = time.monotonic()
    server.refusal(padding=os.urandom(MEASURED_MIB * 2**20))
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

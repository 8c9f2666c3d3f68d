"""Flower's SuperLink with what Consilium adds to it.

    python -m server.deployment.flower_superlink RECORD WEIGHTS SOCKET flower-superlink's options

Refused connections are written to RECORD (`access_log.py`), and beside it what gateways say of themselves. Gateways
keep a stream open, and weights go through files in the folder WEIGHTS; the ServerApp calls on the Unix socket SOCKET
(`server/transport/`). Flower's Control and Runtime APIs are for this user of the machine alone (`local_users.py`).
"""

import ctypes
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import grpc
from flwr.superlink import cli as flower_cli
from flwr.superlink.cli import flower_superlink
from uvicorn.protocols.http.auto import AutoHTTPProtocol

from server.deployment import local_users
from server.deployment.access_log import RefusalRecorder
from server.transport import flower_state, hub
from server.transport.gateway_calls import GatewayCalls, GatewayInterceptor, short_windows
from server.transport.gateway_record import FILE, GatewayRecord
from server.transport.presence import Presence
from server.transport.weight_files import WeightFiles

_M_MMAP_THRESHOLD, _M_ARENA_MAX = -3, -8  # malloc.h
MOST_ARENAS, MAPPED_BYTES = 2, 256 * 1024
"""Of malloc, and from how many bytes on it asks the system."""


def give_memory_back() -> None:
    """Give pieces of weights back to the system at once (mallopt(3)), here and in the processes that start from here.

    A thread serves each site, and glibc would keep for each what pieces once took.
    """
    os.environ |= {"MALLOC_ARENA_MAX": str(MOST_ARENAS), "MALLOC_MMAP_THRESHOLD_": str(MAPPED_BYTES)}
    if (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)) is not None:  # another libc has none
        mallopt(_M_ARENA_MAX, MOST_ARENAS)
        mallopt(_M_MMAP_THRESHOLD, MAPPED_BYTES)


def main(arguments: Sequence[str]) -> None:
    """Run the SuperLink."""
    give_memory_back()
    (record, weights, socket), sys.argv[1:] = map(Path, arguments[:3]), list(arguments[3:])
    recorder, presence, files = RefusalRecorder(record), Presence(), WeightFiles(weights)
    gateways = GatewayRecord(record.with_name(FILE))
    files.begin()
    os.environ |= {hub.SOCKET: str(socket), hub.FILES: str(weights.resolve())}  # for the ServerApp
    flower_state.install(presence)
    module: Any = sys.modules[f"{flower_cli.__name__}.flower_superlink"]
    start, serve = module._run_fleet_api_grpc_rere, module.uvicorn.run
    hubs: list[grpc.Server] = []

    def start_fleet_api(*, state_factory: Any, interceptors: Sequence[Any] | None = None, **rest: Any) -> Any:
        flower_state.clean_up(state_factory.state())
        hubs.append(hub.serve(socket, state_factory, presence))
        with short_windows():
            return start(
                state_factory=state_factory,
                interceptors=[
                    recorder,
                    GatewayCalls(presence, files, state_factory),
                    *(interceptors or []),
                    GatewayInterceptor(presence, state_factory, gateways),
                ],
                **rest,
            )

    def for_me_alone(**rest: Any) -> None:
        serve(http=local_users.only_mine(AutoHTTPProtocol, recorder.note_user), **rest)

    module._run_fleet_api_grpc_rere = start_fleet_api
    module.uvicorn.run = for_me_alone
    flower_superlink()


if __name__ == "__main__":
    main(sys.argv[1:])

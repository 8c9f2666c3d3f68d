"""Flower's own FedAvg, as its quickstart has it."""

import os
from collections.abc import Iterable, Mapping
from typing import Any

from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from benchmarks.frameworks import ROUNDS, SITES, first_arrays, note_round

server = ServerApp()
client = ClientApp()


class _Timed(FedAvg):
    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        note_round()
        return super().configure_train(server_round, arrays, config, grid)


@server.main()
def _serve(grid: Grid, context: Context) -> None:  # noqa: ARG001
    sites = int(os.environ[SITES])
    strategy = _Timed(fraction_evaluate=0.0, min_train_nodes=sites, min_available_nodes=sites)
    strategy.start(grid, _record(first_arrays()), num_rounds=int(os.environ[ROUNDS]))
    note_round()


@client.train()
def _train(message: Message, context: Context) -> Message:  # noqa: ARG001
    arrays: Any = message.content["arrays"]
    trained = {name: array.numpy() + 1e-3 for name, array in arrays.items()}
    metrics = MetricRecord({"num-examples": 8})
    return Message(RecordDict({"arrays": _record(trained), "metrics": metrics}), reply_to=message)


def _record(arrays: Mapping[str, Any]) -> ArrayRecord:
    return ArrayRecord({name: Array(array) for name, array in arrays.items()})

"""Server and client of plain Flower 1.39, as its documentation has them."""

import time

import numpy as np
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

server = ServerApp()
client = ClientApp()

WORK_S = 3.0
"""How long a site is at work, so that it can be killed meanwhile."""


@server.main()
def main(grid: Grid, _context: Context) -> None:
    strategy = FedAvg(fraction_evaluate=0.0, min_train_nodes=2, min_available_nodes=2)
    strategy.start(
        grid=grid, initial_arrays=ArrayRecord([np.zeros(1000, np.float32)]), num_rounds=4, timeout=600
    )
    print("PLAIN FLOWER ENDED", flush=True)


@client.train()
def train(message: Message, _context: Context) -> Message:
    time.sleep(WORK_S)
    arrays = message.content.array_records["arrays"]
    metrics = MetricRecord({"num-examples": 10})
    return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)

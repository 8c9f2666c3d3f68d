"""NVFLARE's FedAvg in its simulator, a process for each site; run with the Python that NVFLARE is installed in."""

import os
import sys
from pathlib import Path

import numpy as np
from nvflare.app_common.abstract.model import make_model_learnable
from nvflare.app_common.abstract.model_persistor import ModelPersistor
from nvflare.app_common.workflows.fedavg import FedAvg
from nvflare.fuel.utils.constants import FrameworkType
from nvflare.job_config.api import FedJob
from nvflare.job_config.script_runner import ScriptRunner

from benchmarks.frameworks import ROUNDS, SITES, first_arrays


class Arrays(ModelPersistor):
    """Named arrays, kept as a file of NumPy's at the end of every round that asks for it."""

    def load_model(self, fl_ctx):  # type: ignore[no-untyped-def]  # noqa: ARG002
        return make_model_learnable(weights=first_arrays(), meta_props={})

    def save_model(self, model, fl_ctx):  # type: ignore[no-untyped-def]  # noqa: ARG002
        np.savez(Path(os.environ["ROUNDS_FOLDER"]) / "model.npz", **model["weights"])


def main(folder: Path) -> None:
    sites = int(os.environ[SITES])
    job = FedJob(name="rounds", min_clients=sites)
    job.to_server(Arrays(), id="persistor")
    job.to_server(FedAvg(num_clients=sites, num_rounds=int(os.environ[ROUNDS]), persistor_id="persistor"))
    for number in range(1, sites + 1):
        runner = ScriptRunner(
            script=str(Path(__file__).with_name("nvflare_client.py")), framework=FrameworkType.NUMPY
        )
        job.to(runner, f"site-{number}")
    job.simulator_run(str(folder / "workspace"), threads=sites)


if __name__ == "__main__":
    main(Path(sys.argv[1]))

"""Seconds of a round beyond the sites' own work, in the real federation on loopback.

Two sites take one optimizer step a round on a handful of images, so a round is nearly all
transport: Flower's queues, a process per message at the gateway, the socket to the trainer. A
small and a large model are run one after the other in the same call; the machine should be idle.
"""

import statistics
import tempfile
from pathlib import Path

from client.cli.main import main as site
from common.config import StudyConfig
from server.simulation.simulate import load_federation, run_study
from server.storage.history import read_rounds

ENCODERS = ("test_efficientnet", "convnext_t")
ROUNDS = 6


def main() -> None:
    print("| encoder | MiB each way | seconds a round, median | of these at the slowest site | rest |")
    print("|---|---:|---:|---:|---:|")
    with tempfile.TemporaryDirectory() as scratch:
        sites = Path(scratch) / "sites"
        site(["simulate", "--out", str(sites), "--images", "40", "--threads", "1"])
        federation = load_federation(sites)
        for encoder in ENCODERS:
            study = StudyConfig.model_validate(
                {
                    "name": encoder,
                    "classes": federation.classes,
                    "sites": {"train": tuple(federation.sites)[:2]},
                    "model": {"encoder": encoder, "image_size": 32},
                    "rounds": ROUNDS,
                    "local": {"steps": 1, "batch_size": 8},
                }
            )
            run_dir = Path(scratch) / encoder
            outcome = run_study(study, sites, federation, run_dir)
            if not outcome.finished:
                raise SystemExit(f"{encoder}: {outcome.reason}")
            rounds = read_rounds(run_dir)[1:ROUNDS]  # the first one decodes, the last one only scores
            whole = statistics.median(record.seconds for record in rounds)
            own = statistics.median(
                max(row.train_s + row.evaluate_s for row in record.sites) for record in rounds
            )
            mib = rounds[0].sites[0].mib_down
            print(f"| {encoder} | {mib:.1f} | {whole:.1f} | {own:.1f} | {whole - own:.1f} |", flush=True)


if __name__ == "__main__":
    main()

"""`consilium-site`: what a hospital's data manager types.

Commands import what they need when they run, so `--help` answers at once and commands that
need no torch work without it.
"""

import argparse
import logging
import os
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from client.config import load_site
from client.data import discover, simulated
from common import log
from common.errors import ConfigError, ConsiliumError

GROUP_HELP = "column that must not be torn apart, e.g. lesion_id or patient_id"


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code: 0 done, 1 could not, 2 wrong usage."""
    options = _parser().parse_args(arguments)
    log.start("json" if options.json else "readable")
    try:
        code: int = options.run(options)
    except ConsiliumError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="consilium-site",
        description="One hospital of a federation: its images stay here, only what was learned leaves.",
    )
    parser.add_argument("--json", action="store_true", help="log JSON lines instead of readable ones")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    trainer = commands.add_parser(
        "trainer",
        help="run this site's trainer until it is stopped",
        description="Listens on a Unix socket for plans from this site's gateway and answers them.",
    )
    trainer.add_argument("settings", type=Path, metavar="SITE.yaml")
    trainer.add_argument("--socket", type=Path, help="Unix socket to listen on, instead of the YAML's")
    trainer.set_defaults(run=_trainer)

    sites = commands.add_parser(
        "simulate",
        help="make the settings of a simulated federation's sites",
        description="Writes one YAML per site and federation.yaml to OUT, for `consilium-server simulate`. "
        "Without --data, synthetic images are drawn first.",
    )
    sites.add_argument(
        "--data", type=Path, metavar="DIR", help="labels.csv with a site column, or SITE/CLASS/ folders"
    )
    sites.add_argument("--out", type=Path, required=True, metavar="OUT")
    sites.add_argument(
        "--images", type=int, default=300, help="synthetic images per site (default %(default)s)"
    )
    sites.add_argument("--seed", type=int, default=0, help="of the synthetic images and the split")
    sites.add_argument(
        "--weights", type=Path, metavar="DIR", help="folder with weights files that studies start from"
    )
    sites.add_argument("--threads", type=int, help="CPU threads per site")
    sites.add_argument(
        "--pooled", action="store_true", help="also a site `pooled` that holds all training images"
    )
    sites.set_defaults(run=_simulate)

    split = commands.add_parser(
        "split",
        help="add a train/test column to a labels.csv",
        description="Draws a stratified test set in which no group is torn apart, so that every "
        "study on these images is tested on the same ones.",
    )
    split.add_argument("labels", type=Path, metavar="LABELS.csv")
    split.add_argument("--out", type=Path, required=True, metavar="NEW.csv")
    split.add_argument("--label", default="label", help="column with the class (default %(default)s)")
    split.add_argument("--group", metavar="COLUMN", help=GROUP_HELP)
    split.add_argument(
        "--strata", nargs="*", default=[], metavar="COLUMN", help="further columns to stratify by"
    )
    split.add_argument("--test", type=float, default=0.2, metavar="SHARE", help="default %(default)s")
    split.add_argument("--seed", type=int, default=0)
    split.set_defaults(run=_split)
    return parser


def _trainer(options: argparse.Namespace) -> int:
    from client import link
    from client.trainer import Trainer

    site = load_site(options.settings)
    socket = options.socket or site.socket
    if socket is None:
        raise ConfigError(
            f"{options.settings} names no socket; add `socket: PATH`, or give one with --socket"
        )
    stopped = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopped.set())
    server = link.serve(Trainer(site).answer, socket)
    log.event(f"{site.name}: ready, listening on a Unix socket")
    stopped.wait()
    server.stop(grace=1.0).wait()
    socket.unlink(missing_ok=True)
    # Not `return`: Python would wait for a plan that is being worked on, and nobody asks for it any more.
    logging.shutdown()
    os._exit(0)


def _simulate(options: argparse.Namespace) -> int:
    out: Path = options.out
    synthetic = options.data is None
    data = options.data
    if synthetic:
        from client.data.synthetic import generate

        data = out / "synthetic-images"
        generate(data, images_per_site=options.images, seed=options.seed)
        log.event(f"drew SYNTHETIC images, {options.images} per site on average, to {data}")
    simulated.write_sites(
        discover.discover(data),
        out,
        synthetic=synthetic,
        weights=options.weights,
        threads=options.threads,
        seed=options.seed,
        pooled=options.pooled,
    )
    return 0


def _split(options: argparse.Namespace) -> int:
    from client.data.split import write_split

    write_split(
        options.labels,
        options.out,
        label=options.label,
        group=options.group,
        strata=options.strata,
        test_share=options.test,
        seed=options.seed,
    )
    log.event(f"wrote {options.out} with a column `split`")
    return 0


if __name__ == "__main__":
    sys.exit(main())

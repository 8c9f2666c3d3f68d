"""One run of a grid, in the process that `jobs.py` starts for it: `python -m server.simulation.one_run ASKED OUTCOME`.

ASKED and OUTCOME are JSON files. The exit code is 0 whenever OUTCOME was written, as for a run that failed.
"""

import sys
from pathlib import Path

from common import log
from common.errors import ConsiliumError, LaunchError
from common.files import read_json, write_json
from common.processes.launcher import Interrupted, interruptible
from server.simulation import engines, grid
from server.simulation.jobs import Outcome, Request, load_trainer
from server.simulation.simulate import load_federation


def main(asked: Path, outcome: Path) -> int:
    """Run it to its end; returns the exit code. A signal to end leaves no outcome."""
    try:
        with interruptible():
            request = read_json(asked, Request)
            if request is None:
                raise LaunchError(f"there is no {asked}, which says what to run")
            log.start(request.log)
            write_json(outcome, _ended(request))
    except Interrupted as interrupted:
        return interrupted.exit_code
    return 0


def _ended(request: Request) -> Outcome:
    engine = engines.engine(request.engine, lambda: load_trainer(request.open_trainer or ""))
    try:
        return grid.run_one(
            request.study, request.sites, load_federation(request.sites), request.run_dir, engine
        )
    except ConsiliumError as error:  # in a process of its own it ends this run alone
        log.warn(f"{request.study.name} failed: {error}")
        return Outcome(failure=str(error))


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))

"""`consilium-server`: the commands of a study operator and a researcher.

A command imports what it needs when it runs, so `--help` answers at once.
"""

import sys
from collections.abc import Sequence

from common.console import command_line
from common.processes.launcher import interruptible
from server.cli import console, operate, paper, provision, simulate

NAME = "consilium-server"

app = command_line.program(
    NAME, "Runs federated studies: hospitals train one image classifier, every image stays where it is."
)
# In the order of the help.
provision.add_commands(app)
operate.add_commands(app)
console.add_commands(app)
simulate.add_commands(app)
paper.add_commands(app)
provision.add_container_commands(app)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code (`common/console/command_line.py`): 0 only if the study finished."""
    with interruptible():
        return command_line.run(app, NAME, arguments)


if __name__ == "__main__":
    sys.exit(main())

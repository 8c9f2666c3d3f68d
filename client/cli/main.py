"""`consilium-site`: the commands of a hospital's data manager.

A command imports what it needs when it runs. So `--help` answers at once, and commands that need no torch
work without it.
"""

import sys
from collections.abc import Sequence

from client.cli import console, governance, model, predict, preflight, run, simulation
from common.console import command_line

NAME = "consilium-site"

app = command_line.program(
    NAME, "One hospital of a federation. Its images stay here; only what was learned leaves."
)
# In the order of the help.
preflight.add_commands(app)
run.add_commands(app)
governance.add_commands(app)
console.add_commands(app)
predict.add_commands(app)
model.add_commands(app)
simulation.add_commands(app)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 0 done, 1 could not, 2 wrong usage."""
    return command_line.run(app, NAME, arguments)


if __name__ == "__main__":
    sys.exit(main())

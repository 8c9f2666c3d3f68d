"""Other frameworks, carrying the same tensors for the same number of rounds as a study of ours.

Each runs in processes of its own on loopback. Its sites add a number to what they receive and send it back: they train
nothing, so their seconds are those of the framework alone. `TIMES` names the file to which a program appends the time
at which a round begins, one a line.
"""

import json
import os
import time
from pathlib import Path

import numpy as np
import numpy.typing as npt

SHAPES, TIMES, ROUNDS, SITES = "ROUNDS_SHAPES", "ROUNDS_TIMES", "ROUNDS_NUMBER", "ROUNDS_SITES"
"""Environment of every program here: a file of shapes by name, a file of times, the numbers of rounds and of sites."""


def first_arrays() -> dict[str, npt.NDArray[np.float32]]:
    """The tensors to begin with: those of the study's encoder in names and shapes, drawn with seed 0."""
    shapes = json.loads(Path(os.environ[SHAPES]).read_text())
    rng = np.random.default_rng(0)
    return {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}


def note_round() -> None:
    """Append the time."""
    with Path(os.environ[TIMES]).open("a") as file:
        file.write(f"{time.monotonic()}\n")

"""Detection of burned-in text: a name or a date in the picture itself, which no removal of attributes removes.

A file may declare it (BurnedInAnnotation, PS3.3 C.7.6.1.1), most do not. So the picture is searched as
well, for a pattern of writing that is rare in anatomy: rows with several strokes, white,
a few pixels wide and dark on both sides, one such row below the other. This is a suspicion, no proof: both
ultrasound images with text among pydicom's samples are detected and no other of theirs; of 681 slices of
the public brain MRI sets one is, with what may be a caption at its edge. Dark writing on a bright
ground, or writing of other colours than white and light grey, is not detected.
"""

import numpy as np
import numpy.typing as npt
from PIL import Image

_WHITE, _DARK = 224, 96
"""Of 255."""
_WIDEST, _NEAR = 6, 2
"""Width of a stroke in pixels; the distance in pixels at which both sides of it are dark."""
_STROKES, _ROWS = 4, 5
"""Strokes in a row, and rows one below the other."""

Bools = npt.NDArray[np.bool_]


def looks_written_on(picture: Image.Image) -> bool:
    """Whether there may be text in a picture of full size; a smaller one has lost it."""
    grey_HW = np.asarray(picture.convert("L"))
    strokes_H = _strokes(grey_HW >= _WHITE, grey_HW <= _DARK)
    rows_H = np.concatenate([[False], strokes_H >= _STROKES, [False]])
    edges = np.flatnonzero(np.diff(rows_H))
    return bool((edges[1::2] - edges[::2] >= _ROWS).any())


def _strokes(white_HW: Bools, dark_HW: Bools) -> npt.NDArray[np.intp]:
    """Strokes in each row."""
    height, width = white_HW.shape
    edges_HW = np.diff(np.pad(white_HW, ((0, 0), (1, 1))).astype(np.int8), axis=1)
    rows, starts = np.nonzero(edges_HW == 1)
    ends = np.nonzero(edges_HW == -1)[1]  # in the same order: runs of white, row by row
    before, after = np.zeros(len(rows), bool), np.zeros(len(rows), bool)
    for step in range(1, _NEAR + 1):
        before |= dark_HW[rows, np.maximum(starts - step, 0)]
        after |= dark_HW[rows, np.minimum(ends - 1 + step, width - 1)]
    thin = (ends - starts <= _WIDEST) & before & after
    return np.bincount(rows[thin], minlength=height)

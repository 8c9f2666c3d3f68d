"""Classical heads as numbers: their views, forms and scores."""

from common.heads.fitted import (
    ABSENT,
    LARGEST_MAP,
    FittedHead,
    Floats,
    Form,
    Fourier,
    HeadForm,
    View,
    below,
    identity,
    read_head,
    read_view,
    softmax,
    square,
    triangle,
    under,
)

__all__ = [
    "ABSENT",
    "FittedHead",
    "Floats",
    "Form",
    "Fourier",
    "HeadForm",
    "LARGEST_MAP",
    "View",
    "below",
    "identity",
    "read_head",
    "read_view",
    "softmax",
    "square",
    "triangle",
    "under",
]

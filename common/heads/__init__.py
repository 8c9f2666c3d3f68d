"""Classical heads as arrays: views of the features, fitted heads, results."""

from common.heads.fitted import (
    ABSENT,
    FittedHead,
    Form,
    HeadForm,
    read_head,
    softmax,
)
from common.heads.view import (
    LARGEST_MAP,
    Floats,
    Fourier,
    View,
    below,
    identity,
    need,
    read_view,
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
    "need",
    "read_head",
    "read_view",
    "softmax",
    "square",
    "triangle",
    "under",
]

"""How exactly a device repeats a computation: `exact` gives the same bits every time, `fast` does not wait for that.

`exact` uses deterministic kernels and float32 as it is. `fast` lets cuDNN try its kernels and take the quickest, lets
sums be added in any order, and multiplies float32 matrices in TF32 (10 bits of mantissa). On a CPU both give the same.
"""

import os

import torch

from common.config.training import Determinism


def apply(determinism: Determinism) -> None:
    """Set torch up for this process."""
    is_exact = determinism == "exact"
    # cuBLAS is deterministic only with a fixed workspace, which it reads when it starts.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    # warn_only because some backward passes (adaptive pooling on CUDA) have no deterministic form.
    torch.use_deterministic_algorithms(is_exact, warn_only=True)
    # New memory filled with NaN shows a program that reads it too early; it changes no result, and costs a pass.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = not is_exact
    torch.backends.cudnn.allow_tf32 = not is_exact
    torch.backends.cuda.matmul.allow_tf32 = not is_exact

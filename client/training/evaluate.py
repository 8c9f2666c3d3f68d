"""A model and images become counts; ratios are the server's business.

Probabilities are a float64 softmax of the logits, so that the counts of two machines differ only
where their logits do.
"""

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from client.images import Images
from client.training.out_of_memory import is_out_of_memory, take_less
from client.training.precision import Precision, autocast, weights_dtype
from common.errors import ConsiliumError
from common.metrics import Score, count, empty


def evaluate(
    model: nn.Module,
    images: Images,
    *,
    num_classes: int,
    device: torch.device,
    precision: Precision,
    batch_size: int = 64,
) -> Score:
    """Score `model` on `images`, centre-cropped; its training mode is left as it was.

    Raises ConsiliumError if an output is not finite, TooLittleMemory if not one image fits.
    """
    labels_N = images.labels_N
    if len(labels_N) == 0:
        return empty(num_classes)
    modes = {module: module.training for module in model.modules()}
    model.eval().to(device, weights_dtype(precision))
    try:
        score, start = empty(num_classes), 0
        while start < len(labels_N):
            indices_B = torch.arange(start, min(start + batch_size, len(labels_N)))
            logits_BC = _try_logits(model, images, indices_B, device, precision)
            if logits_BC is None:
                batch_size = take_less(batch_size, "scoring")
            else:
                score += _score(logits_BC, labels_N[indices_B].cpu())
                start += len(indices_B)
        return score
    finally:
        for module, mode in modes.items():  # one by one: frozen layers may be in another mode
            module.training = mode


def _try_logits(
    model: nn.Module, images: Images, indices_B: torch.Tensor, device: torch.device, precision: Precision
) -> torch.Tensor | None:
    try:
        return _logits(model, images, indices_B, device, precision)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
    return None


@torch.no_grad()  # not inference_mode: a compiled model would have to be compiled for it once more
def _logits(
    model: nn.Module, images: Images, indices_B: torch.Tensor, device: torch.device, precision: Precision
) -> torch.Tensor:
    batch_BCHW = images.batch(indices_B, None).to(device, weights_dtype(precision))
    with autocast(precision, device):
        logits_BC: torch.Tensor = model(batch_BCHW)
    return logits_BC.detach().double().cpu()


def _score(logits_BC: torch.Tensor, labels_B: torch.Tensor) -> Score:
    if not bool(torch.isfinite(logits_BC).all()):
        raise ConsiliumError(
            "the received weights give outputs that are not finite numbers on this site's images; "
            "expected finite ones. The study has diverged: lower local.optimizer.lr and start again."
        )
    loss_sum = cross_entropy(logits_BC, labels_B, reduction="sum").item()
    return count(logits_BC.softmax(dim=1).numpy(), labels_B.numpy(), loss_sum)

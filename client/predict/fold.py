"""A linear head on a network's features, written into the network's own classifier.

A head computes ((f - shift) / scale) P W + b of features f; shift, scale and the projection P are its view. That is one
linear layer, and it stands where the classifier stood. So a program that knows only timm predicts with the head.

F features, D features of the view, C classes.
"""

from typing import TypeGuard

import numpy as np
import torch
from torch import nn

from client.model.clip import Clip
from common.errors import ConfigError
from common.heads import FittedHead, Floats


def linear_layer(head: FittedHead) -> tuple[Floats, Floats]:
    """Weights (C, F) and bias (C,) of a head whose `obstacle` is empty."""
    view, weights_DC = head.view, head.parameters["weights"]
    mapped_FC = weights_DC if view.components_FK is None else view.components_FK @ weights_DC
    weights_FC = mapped_FC / view.scale_F[:, None]
    return np.ascontiguousarray(weights_FC.T), head.parameters["bias"] - view.shift_F @ weights_FC


def obstacle(model: nn.Module, head: FittedHead, layer: str | None) -> str:
    """Why the head cannot be the network's classifier; empty if it can."""
    if head.form.form != "linear" or head.view.fourier is not None:
        return "it is not linear in the features"
    if layer is not None:
        return f"it stands on the module {layer} (heads.layer), not on what the classifier sees"
    if isinstance(model, Clip):
        return "a CLIP compares with vectors of the classes and has no linear classifier"
    if not _ends_linear(model.get_classifier()):  # type: ignore[operator]
        return "the encoder's classifier is not one linear layer"
    return ""


def put_into(model: nn.Module, head: FittedHead, layer: str | None) -> None:
    """Make `head` the classifier of `model`, an adapter before it left out. Raises ConfigError."""
    if why := obstacle(model, head, layer):
        raise ConfigError(
            f"head {head.form.title} cannot be written as the network's classifier: {why}. Take `export`, which writes "
            "the head beside the network, or `--head softmax`"
        )
    classifier = model.get_classifier()  # type: ignore[operator]
    weights_CF, bias_C = linear_layer(head)
    whole = nn.Linear(weights_CF.shape[1], len(bias_C), dtype=next(model.parameters()).dtype)
    with torch.no_grad():
        whole.weight.copy_(torch.from_numpy(weights_CF))
        whole.bias.copy_(torch.from_numpy(bias_C))
    model.set_submodule(
        next(path for path, module in model.named_modules() if module is classifier), whole.eval()
    )


def _ends_linear(classifier: object) -> TypeGuard[nn.Module]:
    """A linear layer, or the adapter of `model.tuning` and a linear layer."""
    last = classifier[-1] if isinstance(classifier, nn.Sequential) and len(classifier) else classifier
    return isinstance(last, nn.Linear)

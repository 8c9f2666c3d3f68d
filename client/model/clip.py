"""CLIP with any image encoder: an image is of the class whose vector it points to.

Images become unit vectors of the text tower's width, classes are unit vectors already, and their
cosines times a learned scale are logits (Radford et al. 2021, arXiv:2103.00020, figure 3). So a
CLIP is a classifier to everything that trains and scores it. Class vectors come from a text tower
that ran once, from the study's seed, or, if the study trains the tower, from the tower
itself at every step.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

LARGEST_LOG_SCALE = math.log(100)
"""CLIP's bound (section 2.5): a temperature below 0.01 makes training unstable."""


class ClipHead(nn.Module):
    """Features to logits."""

    class_vectors_CW: Tensor
    text: nn.Module
    """Only if the text tower is trained."""

    def __init__(self, projection: nn.Module, classes: Tensor | nn.Module, temperature: float) -> None:
        """`classes` are unit vectors (C, W) that stay as they are, or a module that gives such."""
        super().__init__()
        self.projection = projection
        self.logit_scale = nn.Parameter(torch.tensor(-math.log(temperature)))
        if isinstance(classes, nn.Module):
            self.text = classes
        else:
            self.register_buffer("class_vectors_CW", classes)

    def forward(self, features_BF: Tensor) -> Tensor:
        """`logits_BC`: scaled cosines of every image with every class."""
        if self.training:
            with (
                torch.no_grad()
            ):  # the weight itself, as CLIP does: beyond the bound it would get no gradient
                self.logit_scale.clamp_(0, LARGEST_LOG_SCALE)
        projected_BW: Tensor = self.projection(features_BF)
        classes_CW: Tensor = self.text() if "text" in self._modules else self.class_vectors_CW
        dtype = self.logit_scale.dtype
        # Cosines times 100 in bf16's 8 bits would be whole numbers and halves.
        with torch.autocast(features_BF.device.type, enabled=False):
            cosines_BC = normalize(projected_BW.to(dtype), dim=1) @ classes_CW.to(dtype).T
            return self.logit_scale.clamp(0.0, LARGEST_LOG_SCALE).exp() * cosines_BC


class Clip(nn.Module):
    """An image encoder and a ClipHead."""

    def __init__(self, image: nn.Module, head: ClipHead, width: int) -> None:
        super().__init__()
        self.image = image
        self.head = head
        self.width = width
        """Length of a class's vector."""

    def features(self, images_BCHW: Tensor) -> Tensor:
        """`features_BF` before the projection to the text's width."""
        features_BF: Tensor = self.image(images_BCHW)
        return features_BF

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """`logits_BC`."""
        logits_BC: Tensor = self.head(self.features(images_BCHW))
        return logits_BC

    def get_classifier(self) -> nn.Module:
        """What is trained when only the head is; timm's name for it."""
        return self.head

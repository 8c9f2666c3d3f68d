"""What an encoder says of an image before any head: the numbers that classical heads work on.

The last layer's activations, pooled to one row an image. Of a CLIP they are the image side's, before
the learned projection to the text's width; open_clip's own towers project inside, so of them they
are what open_clip's `encode_image` gives.
"""

from torch import Tensor, nn

from client.model.clip import Clip


def features(model: nn.Module, images_BCHW: Tensor) -> Tensor:
    """`features_BF` of normalised images, in the model's mode and number format; gradients flow."""
    if isinstance(model, Clip):
        return model.features(images_BCHW)
    maps: Tensor = model.forward_features(images_BCHW)  # type: ignore[operator]
    features_BF: Tensor = model.forward_head(maps, pre_logits=True)  # type: ignore[operator]
    return features_BF

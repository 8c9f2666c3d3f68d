"""Generated images: no file is read and nothing is downloaded."""

from collections.abc import Callable

import pytest
import torch


class GeneratedImages:
    """Noise with labels in turn; augmentation adds the noise that the generator draws."""

    def __init__(self, pixels_NCHW: torch.Tensor, labels_N: torch.Tensor) -> None:
        self.pixels_NCHW, self.labels_N = pixels_NCHW, labels_N
        self.asked: list[list[int]] = []

    def batch(self, indices_B: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
        self.asked.append(indices_B.tolist())
        batch_BCHW = self.pixels_NCHW[indices_B]
        if generator is None:
            return batch_BCHW
        return batch_BCHW + 0.1 * torch.randn(batch_BCHW.shape, generator=generator)

    def part(self, start: int, stop: int) -> "GeneratedImages":
        return GeneratedImages(self.pixels_NCHW[start:stop], self.labels_N[start:stop])


def _generate(num_images: int, *, size: int = 32, num_classes: int = 3, seed: int = 0) -> GeneratedImages:
    draws = torch.Generator().manual_seed(seed)
    pixels_NCHW = torch.randn(num_images, 3, size, size, generator=draws)
    return GeneratedImages(pixels_NCHW, torch.arange(num_images) % num_classes)


@pytest.fixture
def generate_images() -> Callable[..., GeneratedImages]:
    """`generate_images(num_images, size=32, num_classes=3, seed=0)`."""
    return _generate

"""Statistics of batch normalisation measured on images without labels, by hand."""

import pytest
import torch
from torch import nn

from client.training.adapted_statistics import adapt_statistics
from common.errors import ConfigError, SiteDataError


class Numbers:
    """Images of one pixel and one channel."""

    def __init__(self, *values: float) -> None:
        self._values_N111 = torch.tensor(values).view(-1, 1, 1, 1)
        self.labels_N = torch.zeros(len(values), dtype=torch.int64)

    def batch(self, indices_B: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
        return self._values_N111[indices_B]


def measured(*values: float) -> tuple[float, float]:
    """Running mean and variance after they were adapted to these images."""
    layer = nn.BatchNorm2d(1)
    model = nn.Sequential(layer, nn.Dropout(0.5)).eval()
    assert adapt_statistics(model, Numbers(*values), torch.device("cpu"), "float32") == 1
    assert not any(part.training for part in model.modules())
    assert layer.momentum == 0.1
    assert layer.running_mean is not None
    assert layer.running_var is not None
    return float(layer.running_mean), float(layer.running_var)


def test_statistics_are_those_of_the_images() -> None:
    """Eight images of 1 and eight of 5: mean 3; variance 16 * 4 / 15, as PyTorch keeps it."""
    assert measured(*[1.0] * 8, *[5.0] * 8) == pytest.approx((3.0, 64 / 15))


def test_each_batch_counts_by_its_images() -> None:
    """65 images are taken as 33 and 32: of 0 and 65 * 32 / 65 = 32 on the mean."""
    mean, variance = measured(*[0.0] * 33, *[65.0] * 32)
    assert (mean, variance) == pytest.approx((32.0, 0.0))


def test_other_layers_and_weights_stay_as_they_are() -> None:
    model = nn.Sequential(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1)).eval()
    before = {name: value.clone() for name, value in model.named_parameters()}
    adapt_statistics(model, Numbers(*range(20)), torch.device("cpu"), "float32")
    assert all(torch.equal(value, before[name]) for name, value in model.named_parameters())


def test_only_the_tensors_that_are_named_may_change() -> None:
    """Two layers in a row: the second one's statistics stay 0 and 1."""
    model = nn.Sequential(nn.BatchNorm2d(1), nn.BatchNorm2d(1)).eval()
    images = Numbers(*[1.0] * 8, *[5.0] * 8)
    among = ("0.running_mean", "0.running_var")
    assert adapt_statistics(model, images, torch.device("cpu"), "float32", among) == 1
    found = model.state_dict()
    assert float(found["0.running_mean"]) == pytest.approx(3.0)
    assert (float(found["1.running_mean"]), float(found["1.running_var"])) == (0.0, 1.0)


def test_a_network_without_batch_normalisation_says_so() -> None:
    with pytest.raises(ConfigError, match="no batch normalisation, so there are no statistics to adapt"):
        adapt_statistics(nn.Linear(1, 1), Numbers(*range(20)), torch.device("cpu"), "float32")


def test_too_few_images_are_named() -> None:
    with pytest.raises(SiteDataError, match=r"found 3 image\(s\) to adapt to, expected 16 or more"):
        adapt_statistics(nn.BatchNorm2d(1), Numbers(1, 2, 3), torch.device("cpu"), "float32")

import math

import pytest
import torch
from torch import nn

from client.training.evaluate import evaluate
from common.errors import ConsiliumError
from common.metrics import empty, figures

CPU = torch.device("cpu")


EIGHTY_TWENTY = (math.log(0.8), math.log(0.2))


class Fixed(nn.Module):
    """Says class 0 with probability 0.8 and class 1 with 0.2, whatever it sees."""

    def __init__(self, logits=EIGHTY_TWENTY):
        super().__init__()
        self.logits_C = nn.Parameter(torch.tensor(logits))

    def forward(self, batch_BCHW):
        return self.logits_C.expand(len(batch_BCHW), -1)


def score(model, images, **settings):
    settings = {"num_classes": 2, "device": CPU, "precision": "float32"} | settings
    return evaluate(model, images, **settings)


def test_counts_follow_by_hand(generate_images):
    found = score(Fixed(), generate_images(5, num_classes=2))  # labels 0 1 0 1 0
    assert found.confusion_CC.tolist() == [[3, 0], [2, 0]]
    # three times -ln 0.8 and twice -ln 0.2
    assert found.loss_sum == pytest.approx(3 * 0.223144 + 2 * 1.609438, rel=1e-5)
    assert figures(found).accuracy == 0.6


@pytest.mark.parametrize("batch_size", [1, 2, 64])
def test_the_batch_size_changes_no_count(generate_images, batch_size):
    images = generate_images(5, num_classes=2)
    found, whole = score(Fixed(), images, batch_size=batch_size), score(Fixed(), images, batch_size=5)
    assert found.confusion_CC.tolist() == whole.confusion_CC.tolist()
    assert found.loss_sum == pytest.approx(whole.loss_sum)
    assert sum(map(len, images.asked)) == 10  # every image once per evaluation


def test_no_images_give_the_zero_of_addition(generate_images):
    assert score(Fixed(), generate_images(0), num_classes=2) == empty(2)


def test_outputs_that_are_not_finite_are_an_error(generate_images):
    with pytest.raises(ConsiliumError, match="received weights give outputs that are not finite"):
        score(Fixed(logits=(math.nan, 0.0)), generate_images(3, num_classes=2))


def test_with_privacy_an_image_that_overflows_is_one_of_which_nothing_is_known(generate_images):
    """An error would say without noise that there is such an image."""
    found = score(Fixed(logits=(0.0, math.inf)), generate_images(3, num_classes=2), private=True)
    assert found.confusion_CC.tolist() == [[2, 0], [1, 0]]  # equal probabilities: the first class
    assert found.loss_sum == pytest.approx(3 * math.log(2))


@pytest.mark.parametrize(("precision", "dtype"), [("float64", torch.float64), ("bf16", torch.float32)])
def test_other_precisions_score_as_well(generate_images, precision, dtype):
    model = Fixed()
    found = score(model, generate_images(5, num_classes=2), precision=precision)
    assert found.confusion_CC.tolist() == [[3, 0], [2, 0]]
    assert model.logits_C.dtype == dtype

import math

import pytest
import torch
from torch import nn

from client.training.evaluate import evaluate
from client.training.out_of_memory import TooLittleMemory
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


def test_dropout_is_off_and_training_modes_are_left_as_they_were(generate_images):
    model = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.BatchNorm1d(3 * 8 * 8), nn.Linear(3 * 8 * 8, 2))
    model.train()
    model[2].eval()  # as a frozen layer would be
    images = generate_images(6, size=8, num_classes=2)
    assert score(model, images) == score(model, images)
    assert [module.training for module in model] == [True, True, False, True]


def test_the_mode_is_restored_after_an_error_too(generate_images):
    model = Fixed(logits=(math.nan, 0.0)).train()
    with pytest.raises(ConsiliumError, match="received weights give outputs that are not finite"):
        score(model, generate_images(3, num_classes=2))
    assert model.training


@pytest.mark.parametrize(("precision", "dtype"), [("float64", torch.float64), ("bf16", torch.float32)])
def test_other_precisions_score_as_well(generate_images, precision, dtype):
    model = Fixed()
    found = score(model, generate_images(5, num_classes=2), precision=precision)
    assert found.confusion_CC.tolist() == [[3, 0], [2, 0]]
    assert model.logits_C.dtype == dtype


def test_evaluation_asks_for_no_augmentation(generate_images):
    images = generate_images(4, num_classes=2)
    generators = []
    batch = images.batch
    images.batch = lambda indices_B, generator: generators.append(generator) or batch(indices_B, generator)
    score(Fixed(), images)
    assert generators == [None]


def test_a_lack_of_memory_means_fewer_images_at_once_and_the_same_counts(generate_images):
    model, images = Fixed(), generate_images(5, num_classes=2)
    expected = score(model, images)

    def check(module, inputs):
        if len(inputs[0]) > room:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    model.register_forward_pre_hook(check)
    room = 2
    images.asked.clear()
    found = score(model, images, batch_size=4)
    assert found.confusion_CC.tolist() == expected.confusion_CC.tolist()
    assert images.asked == [[0, 1, 2, 3], [0, 1], [2, 3], [4]]

    room = 0
    with pytest.raises(TooLittleMemory, match="scoring does not fit into the memory"):
        score(model, images)

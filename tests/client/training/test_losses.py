"""Three images and two classes, small enough to be worked by hand."""

import math

import pytest
import torch
from torch.nn.functional import cross_entropy

from client.training.losses import (
    balanced_softmax,
    by_class,
    contrastive,
    focal,
    of_study,
    supervised_contrastive,
)
from common.config import ClassifierConfig, ClipConfig, LocalConfig, RandomText

A, B, C = 2.0, 1.0, 3.0
# Images 0 and 1 are of class 0, image 2 of class 1. Rows: images; columns: classes.
LOGITS_BC = ((A, 0.0), (B, 0.0), (0.0, C))
LABELS_B = torch.tensor([0, 0, 1])
EVEN_C = torch.ones(2, dtype=torch.float64)


def softplus(x):
    return math.log(1 + math.exp(x))


def logits():
    return torch.tensor(LOGITS_BC, dtype=torch.float64, requires_grad=True)


def test_the_class_loss_is_the_sum_of_the_images_cross_entropies():
    # Of two classes, -log softmax of the right one is log(1 + exp(wrong - right)).
    expected = softplus(-A) + softplus(-B) + softplus(-C)
    assert by_class()(logits(), LABELS_B, EVEN_C).item() == pytest.approx(expected, rel=1e-12)


def test_the_contrastive_loss_takes_an_images_own_text_only():
    """Image i against the texts of all images: row i of [[A, A, 0], [B, B, 0], [0, 0, C]]; text j: its column."""
    images = (
        math.log(2 * math.exp(A) + 1) - A + math.log(2 * math.exp(B) + 1) - B + math.log(2 + math.exp(C)) - C
    )
    over_both = math.log(math.exp(A) + math.exp(B) + 1)
    texts = (over_both - A) + (over_both - B) + math.log(2 + math.exp(C)) - C
    found = contrastive(logits(), LABELS_B, EVEN_C)
    assert found.item() == pytest.approx((images + texts) / 2, rel=1e-12)


def test_the_supervised_loss_has_only_other_classes_as_wrong_answers():
    # Image 0's only wrong text is that of image 2, for both of its right ones: log(1 + e^-A). Likewise image 1;
    # image 2 has two wrong ones. Both texts of class 0 have images 0 and 1 as right and image 2, at 0, as wrong.
    last = math.log(2 + math.exp(C)) - C
    images = softplus(-A) + softplus(-B) + last
    texts = 2 * (softplus(-A) + softplus(-B)) / 2 + last
    found = supervised_contrastive(logits(), LABELS_B, EVEN_C)
    assert found.item() == pytest.approx((images + texts) / 2, rel=1e-12)


def test_the_gradients_are_the_hand_worked_ones():
    # Image 2 and class 1: image 2 among three texts, text 2 among three images; both ask for the same.
    right = math.exp(C) / (2 + math.exp(C)) - 1
    for loss in (contrastive, supervised_contrastive):
        found = logits()
        loss(found, LABELS_B, EVEN_C).backward()
        assert found.grad[2, 1].item() == pytest.approx(right, rel=1e-12)
    found = logits()
    by_class()(found, LABELS_B, EVEN_C).backward()
    assert found.grad[0, 0].item() == pytest.approx(1 / (1 + math.exp(-A)) - 1, rel=1e-12)


def test_images_of_one_class_push_each_other_apart_only_without_supervision():
    """Three images of one class: no answer is wrong, so nothing should move."""
    same = torch.zeros(3, dtype=torch.long)
    values = torch.tensor([[2.0, 0.0], [1.0, 0.0], [0.0, 0.0]], dtype=torch.float64)
    lab, repaired = values.clone().requires_grad_(), values.clone().requires_grad_()
    contrastive(lab, same, EVEN_C).backward()
    supervised_contrastive(repaired, same, EVEN_C).backward()
    # Each of the three equal texts has softmax p over the images and asks for one of them: 3 p - 1, halved.
    p_B = torch.softmax(values[:, 0], dim=0)
    assert torch.allclose(lab.grad[:, 0], (3 * p_B - 1) / 2)
    assert torch.equal(repaired.grad, torch.zeros(3, 2, dtype=torch.float64))


@pytest.mark.parametrize("loss", [by_class(), contrastive, supervised_contrastive])
def test_a_class_that_weighs_twice_counts_twice(loss):
    twice_C = torch.tensor([2.0, 2.0], dtype=torch.float64)
    assert loss(logits(), LABELS_B, twice_C).item() == pytest.approx(
        2 * loss(logits(), LABELS_B, EVEN_C).item()
    )
    none_C = torch.tensor([1.0, 0.0], dtype=torch.float64)
    assert loss(logits(), LABELS_B, none_C) < loss(logits(), LABELS_B, EVEN_C)


def test_a_single_image_has_nothing_to_be_compared_with():
    assert contrastive(logits()[:1], LABELS_B[:1], EVEN_C).item() == 0


def test_the_study_chooses():
    clip = {
        kind: ClipConfig(encoder="x", text=RandomText(), loss=kind)
        for kind in ("contrastive", "supervised_contrastive")
    }
    assert of_study(clip["contrastive"], LocalConfig(), (2, 1)) is contrastive
    assert of_study(clip["supervised_contrastive"], LocalConfig(), (2, 1)) is supervised_contrastive
    plain = LocalConfig(loss="cross_entropy", label_smoothing=0.1)
    smooth = of_study(ClassifierConfig(encoder="x"), plain, (2, 1))
    expected = cross_entropy(logits(), LABELS_B, label_smoothing=0.1, reduction="sum")
    assert torch.equal(smooth(logits(), LABELS_B, EVEN_C), expected)


def test_a_study_that_names_no_loss_has_balanced_softmax_unless_it_evens_classes_out_otherwise():
    open_choice = of_study(ClassifierConfig(encoder="x"), LocalConfig(), (2, 1))
    expected = balanced_softmax((2, 1))(logits(), LABELS_B, EVEN_C)
    assert torch.equal(open_choice(logits(), LABELS_B, EVEN_C), expected)
    assert LocalConfig().chosen_loss == "balanced_softmax"
    assert LocalConfig(class_weights="capped").chosen_loss == "cross_entropy"
    assert LocalConfig(sampling="weighted").chosen_loss == "cross_entropy"
    assert LocalConfig(loss="focal").chosen_loss == "focal"


# --- over classes, for sites whose classes are not alike -----------------------------------------


def test_a_balanced_softmax_adds_the_logarithm_of_the_classes_images_by_hand():
    """Equal logits, 1 and 3 images: the rare class has a probability of 1/4 in training, the other 3/4."""
    logits = torch.zeros(2, 2, dtype=torch.float64)
    loss = balanced_softmax((1, 3))(logits, torch.tensor([0, 1]), torch.ones(2, dtype=torch.float64))
    assert float(loss) == pytest.approx(-math.log(1 / 4) - math.log(3 / 4))


def test_a_class_that_the_site_does_not_have_gets_no_gradient():
    logits = torch.zeros(1, 3, dtype=torch.float64, requires_grad=True)
    balanced_softmax((2, 2, 0))(logits, torch.tensor([0]), torch.ones(3, dtype=torch.float64)).backward()
    assert logits.grad is not None
    assert logits.grad.tolist() == [[-0.5, 0.5, 0.0]]


def test_a_focal_loss_by_hand():
    """A probability of 1/2: (1 - 1/2)^2 ln 2."""
    loss = focal()(torch.zeros(1, 2), torch.tensor([0]), torch.ones(2))
    assert float(loss) == pytest.approx(math.log(2) / 4)


def test_a_masked_class_is_no_possible_answer_and_its_logit_stays():
    logits_BC = torch.tensor([[1.0, 5.0, 2.0]], dtype=torch.float64, requires_grad=True)
    local = LocalConfig(absent_classes="mask", loss="cross_entropy")
    model = ClassifierConfig(encoder="test_vit", image_size=32)
    loss = of_study(model, local, (3, 0, 4))(logits_BC, torch.tensor([2]), torch.ones(3, dtype=torch.float64))
    assert loss.item() == pytest.approx(softplus(1.0 - 2.0))  # class 1 has no image here
    loss.backward()
    assert logits_BC.grad[0, 1] == 0
    plain = LocalConfig(loss="cross_entropy")
    kept = of_study(model, plain, (3, 0, 4))(logits_BC, torch.tensor([2]), torch.ones(3).double())
    assert kept.item() > 3  # of three classes, the second seems likely


def test_the_studys_prior_is_that_of_all_sites():
    model = ClassifierConfig(encoder="test_vit", image_size=32)
    local = LocalConfig(loss="balanced_softmax", prior="study")
    logits_BC = torch.zeros(1, 3, dtype=torch.float64)
    ones_C = torch.ones(3, dtype=torch.float64)
    loss = of_study(model, local, (3, 0, 4), (10, 20, 10))(logits_BC, torch.tensor([2]), ones_C)
    assert loss.item() == pytest.approx(-math.log(10 / 40))
    masked = local.model_copy(update={"absent_classes": "mask"})
    loss = of_study(model, masked, (3, 0, 4), (10, 20, 10))(logits_BC, torch.tensor([2]), ones_C)
    assert loss.item() == pytest.approx(-math.log(10 / 20))


def test_smoothed_labels_of_a_balanced_softmax_leave_absent_classes_alone():
    """A class that is left out of the softmax has no share of the smoothed label: its loss would be a huge constant."""
    loss = balanced_softmax((2, 2, 0), label_smoothing=0.1)(
        torch.zeros(1, 3, dtype=torch.float64), torch.tensor([0]), torch.ones(3, dtype=torch.float64)
    )
    assert loss.item() == pytest.approx(math.log(2))

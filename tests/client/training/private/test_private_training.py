import math
from collections import Counter

import numpy as np
import pytest
import torch
from torch import nn

from client.model.build import build
from client.model.parameters import TensorNames, partition, shared_arrays
from client.training.fit import StudyPosition, fit
from client.training.private import own_check
from client.training.private.clipped_sum import ClippedSum
from client.training.private.own_check import require_gradients_of_patients
from client.training.private.patients import Patients, capped_counts
from client.training.private.private_round import PrivateRound
from client.training.private.secure_random import SecureRandom
from common.config import ClassifierConfig, DpSgdConfig, LocalConfig, Sgd
from common.errors import ConfigError
from common.weights import subtract

CPU = torch.device("cpu")
KEY = bytes(32)
LOCAL = LocalConfig(
    steps=1,
    optimizer=Sgd(lr=1.0, momentum=0, weight_decay=0),
    loss="cross_entropy",
    augmentation="none",
    precision="float64",
)
TINY = 1e-12
"""Noise that does not show."""


def private(groups, *, noise=TINY, rate=1.0, norm=1.0, most=10, num_images=None, key=KEY):
    settings = DpSgdConfig(noise=1.0, max_grad_norm=norm, sampling_rate=rate, images_per_patient=most)
    settings = settings.model_copy(update={"noise": noise})  # less than a study may ask for
    return PrivateRound(settings, groups, num_images or len(groups), SecureRandom(key))


def delta(images, round_, local=LOCAL, encoder="test_vit", model=None):
    """The change of one round, with learning rate 1: minus the gradient."""
    if model is None:
        config = ClassifierConfig(encoder=encoder, image_size=32)
        model = build(config, 3, seed=1, weights_dir=None).model.double()
        parts = partition(model, config)
    else:
        model, parts = model
    before = shared_arrays(model, parts)
    fit(
        model, images, local, parts=parts, progress=StudyPosition(round=1, rounds=1), penalty=None, device=CPU,
        seed=7, num_classes=3, private=round_,
    )  # fmt: skip
    return subtract(shared_arrays(model, parts), before)


def length(arrays):
    return math.sqrt(sum(float(np.square(array).sum()) for array in arrays.values()))


def biases_only():
    """Three outputs that are three biases, at first 0: softmax gives 1/3 each."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 3)).double()
    nn.init.zeros_(model[1].weight)
    nn.init.zeros_(model[1].bias)
    return model, TensorNames(shared=("1.bias",), local=(), frozen=("1.weight",))


def test_a_patients_gradients_are_added_up_and_then_shrunk(generate_images):
    # The gradient of an image of class 0 is (-2/3, 1/3, 1/3), of length sqrt(6)/3 = 0.8165.
    # Patient a has images of classes 0, 1, 2, which add up to 0. Patient b has two of class 0: twice that, of length
    # 1.633, shrunk to 0.5 * (-2, 1, 1)/sqrt(6). The sum over both, divided by 5 images: a step of minus a tenth of it.
    images = generate_images(5)
    images.labels_N = torch.tensor([0, 1, 2, 0, 0])
    round_ = private(["a", "a", "a", "b", "b"], norm=0.5)
    assert delta(images, round_, model=biases_only())["1.bias"] == pytest.approx(
        [0.2 / math.sqrt(6), -0.1 / math.sqrt(6), -0.1 / math.sqrt(6)], rel=1e-5
    )


@pytest.mark.parametrize("encoder", ["test_vit", "test_convnext"])
def test_the_sum_is_the_same_whatever_the_micro_batch(generate_images, encoder):
    images = generate_images(7)
    groups = ["a", "a", "a", "b", "c", "c", "d"]  # a piece of two ends within a patient
    whole = delta(images, private(groups, norm=0.1), encoder=encoder)
    for size in (1, 2, 3):
        pieces = delta(
            images, private(groups, norm=0.1), LOCAL.model_copy(update={"micro_batch_size": size}), encoder
        )
        for name, array in whole.items():
            assert pieces[name] == pytest.approx(array, abs=1e-9)


@pytest.mark.parametrize("encoder", ["test_vit", "test_convnext"])
def test_without_noise_and_shrinking_it_is_the_gradient_of_plain_training(generate_images, encoder):
    images = generate_images(6)
    plain = LOCAL.model_copy(update={"batch_size": "all"})
    expected = delta(images, None, plain, encoder)
    found = delta(images, private(list("abcdef"), norm=1e6), encoder=encoder)
    for name, array in expected.items():
        assert found[name] == pytest.approx(array, abs=1e-4)  # noise of 1e-12 * 1e6


def test_one_patient_moves_a_step_by_no_more_than_the_norm(generate_images):
    images = generate_images(6)
    groups = ["a", "a", "b", "b", "c", "c"]
    everyone = delta(images, private(groups, norm=0.2))
    without = delta(images.part(0, 4), private(groups[:4], norm=0.2, num_images=6))
    # Both are divided by 6 images: 0.2 / 6 at most.
    assert length(subtract(everyone, without)) <= 0.2 / 6 + 1e-9
    assert length(subtract(everyone, without)) > 0.19 / 6  # this patient's gradient is longer than 0.2


def test_an_image_that_is_not_finite_adds_nothing(generate_images):
    images = generate_images(3)
    without = delta(images, private(["a", "b", "b"], norm=0.2, num_images=3), model=None)
    broken = generate_images(4)
    broken.pixels_NCHW[3] = math.nan
    found = delta(broken, private(["a", "b", "b", "c"], norm=0.2, num_images=3))
    for name, array in without.items():
        assert found[name] == pytest.approx(array, abs=1e-9)


def test_a_step_without_patients_is_noise_alone(generate_images):
    # 1e-9: no patient is drawn. Noise of 2 * 0.5, divided by max(1, 1e-9 * 6): normal numbers of deviation 1.
    found = delta(generate_images(6), private(list("abcdef"), noise=2.0, norm=0.5, rate=1e-9))
    numbers = np.concatenate([array.ravel() for array in found.values()])
    assert numbers.std() == pytest.approx(1.0, abs=0.05)
    assert abs(numbers.mean()) < 0.05


def test_two_rounds_never_have_the_same_noise_or_patients():
    first, second = SecureRandom(), SecureRandom()
    assert not np.array_equal(first.normals(100), second.normals(100))


def test_nothing_of_the_hooks_is_left(generate_images):
    model, parts = biases_only()
    delta(generate_images(3), private(list("abc")), model=(model, parts))
    assert not any(module._forward_hooks or module._backward_hooks for module in model.modules())
    assert not hasattr(model[1].bias, "grad_sample")


def test_patients_are_drawn_whole_each_with_the_same_chance():
    patients = Patients(["a", "b", "a", "c"])
    random = SecureRandom(KEY)
    draws = [patients.draw(0.25, 10, random).tolist() for _ in range(4000)]
    assert all((0 in draw) == (2 in draw) for draw in draws)
    times = Counter(image for draw in draws for image in draw)
    for image in range(4):  # 1000 expected, with a deviation of 27
        assert 890 < times[image] < 1110
    assert [] in draws  # (3/4)**3 of them


def test_of_a_patient_with_many_images_other_ones_are_drawn_each_time():
    patients = Patients(["a"] * 5)
    random = SecureRandom(KEY)
    draws = [patients.draw(1.0, 2, random).tolist() for _ in range(50)]
    assert all(len(set(draw)) == 2 for draw in draws)
    assert {image for draw in draws for image in draw} == set(range(5))


def test_counts_have_so_many_images_of_a_patient_at_most():
    # Of patient a, the first two: classes 0 and 1.
    assert capped_counts([0, 1, 1, 1, 0], ["a", "a", "a", "a", "b"], 3, most=2) == [2, 1, 0]


def test_normal_numbers_are_normal():
    from scipy.stats import kstest

    random = SecureRandom(KEY)
    numbers = random.normals(300_001)
    assert len(numbers) == 300_001
    assert numbers.std() == pytest.approx(1.0, abs=0.005)
    assert kstest(numbers, "norm").pvalue > 0.001


def test_the_key_decides_the_numbers():
    assert np.array_equal(SecureRandom(KEY).normals(5), SecureRandom(KEY).normals(5))
    assert not np.array_equal(SecureRandom(KEY).normals(5), SecureRandom(bytes([1]) * 32).normals(5))


def test_batch_normalisation_that_is_trained_is_refused_with_what_to_change():
    config = ClassifierConfig(encoder="resnet10t", image_size=32)
    model = build(config, 3, seed=1, weights_dir=None).model
    with pytest.raises(ConfigError, match=r"resnet10t trains with batch normalisation \(.*model\.tuning"):
        require_gradients_of_patients(model, partition(model, config), "resnet10t", 32)
    head = config.model_copy(update={"trainable": "head"})
    require_gradients_of_patients(model, partition(model, head), "resnet10t", 32)


@pytest.mark.parametrize("encoder", ["resnet10t", "test_efficientnet", "mobilenetv2_050"])
def test_batch_normalisation_with_frozen_statistics_has_gradients_of_single_patients(encoder):
    config = ClassifierConfig(encoder=encoder, image_size=32, batch_norm="frozen")
    model = build(config, 3, seed=1, weights_dir=None).model
    names = partition(model, config)
    require_gradients_of_patients(model, names, encoder, 32)
    assert {name for name, _ in model.named_parameters()} <= set(names.shared)  # all of it is trained


class Mixing(nn.Module):
    """Each image less the mean of its batch, then a linear layer."""

    def __init__(self):
        super().__init__()
        self.last = nn.Linear(3 * 32 * 32, 3)

    def forward(self, x_BCHW):
        return self.last((x_BCHW - x_BCHW.mean(dim=0)).flatten(1))


def test_any_layer_that_mixes_a_batch_is_refused():
    names = TensorNames(shared=("last.weight", "last.bias"), local=(), frozen=())
    with pytest.raises(ConfigError, match="mixes the images of a batch"):
        require_gradients_of_patients(Mixing(), names, "mixing", 32)


def test_a_layer_whose_gradients_of_single_images_are_wrong_is_refused(monkeypatch):
    from opacus.grad_sample import GradSampleHooks

    model, parts = biases_only()
    samplers = GradSampleHooks.GRAD_SAMPLERS
    right = samplers[nn.Linear]
    monkeypatch.setitem(
        samplers, nn.Linear, lambda *a: {name: 2 * value for name, value in right(*a).items()}
    )
    with pytest.raises(ConfigError, match=r"not what they should be in 1\.bias"):
        require_gradients_of_patients(model, parts, "biases", 32)


def test_wrong_gradients_behind_a_path_that_starts_nearly_shut_are_seen(monkeypatch):
    """ConvNeXt's LayerScale starts at 1e-6, which hides the gradients of all its blocks from a look at the whole."""
    config = ClassifierConfig(encoder="convnext_atto", image_size=32)
    model = build(config, 3, seed=1, weights_dir=None).model
    names = partition(model, config)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    require_gradients_of_patients(model, names, "convnext_atto", 32)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    right = own_check._backward

    def of_the_other_image(model, images_BCHW):
        right(model, images_BCHW)
        for name, parameter in model.named_parameters():
            if ".mlp." in name and len(images_BCHW) == 2:
                parameter.grad_sample = parameter.grad_sample.flip(0)

    monkeypatch.setattr(own_check, "_backward", of_the_other_image)
    with pytest.raises(ConfigError, match=r"not what they should be in stages"):
        require_gradients_of_patients(model, names, "convnext_atto", 32)


@pytest.mark.parametrize("encoder", ["test_vit", "test_convnext"])
def test_encoders_without_batch_normalisation_pass(encoder):
    config = ClassifierConfig(encoder=encoder, image_size=32)
    model = build(config, 3, seed=1, weights_dir=None).model
    require_gradients_of_patients(model, partition(model, config), encoder, 32)


def test_nothing_by_chance_follows_from_the_studys_seed(generate_images):
    # The server knows it. With the same seed, and another key of the site, images are cropped in other places.
    images = generate_images(3)
    seen = []
    images.batch = lambda indices_B, generator: (
        seen.append(generator.initial_seed()) or images.pixels_NCHW[indices_B]
    )
    local = LOCAL.model_copy(update={"augmentation": "paper"})
    for number in range(2):
        delta(images, private(list("abc"), key=bytes([number]) * 32), local)
    assert len(set(seen)) == 2


def test_pieces_of_patients_may_end_anywhere():
    # Gradients 3, 4 | 1 of patients 7, 7 | 7, then 10 of patient 8: 8 + 10, shrunk to 6 each.
    parameter = nn.Parameter(torch.zeros(1, dtype=torch.float64))
    clipped = ClippedSum([parameter], max_norm=6.0)
    for patients, gradients in (([7, 7], [3.0, 4.0]), ([7], [1.0]), ([8], [10.0])):
        parameter.grad_sample = torch.tensor(gradients, dtype=torch.float64)[:, None]
        clipped.add(torch.tensor(patients))
    clipped.end(noise=TINY, divisor=2.0, random=SecureRandom(KEY))
    assert parameter.grad.item() == pytest.approx(6.0, abs=1e-5)

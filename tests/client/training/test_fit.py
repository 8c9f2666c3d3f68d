import copy
import logging
import math
from itertools import chain, repeat

import numpy as np
import pytest
import torch
from torch import nn

from client.model.build import build
from client.model.parameters import TensorNames, frozen_digest, partition, shared_arrays
from client.training.fit import StudyPosition, _Losses, fit, learning_rates
from client.training.hardware.out_of_memory import MostAtOnce, TooLittleMemory
from client.training.penalty import build_penalty
from common.config import (
    AdamW,
    ClassifierConfig,
    Constant,
    Cosine,
    FedAvg,
    FedProx,
    LocalConfig,
    Sgd,
    Step,
)
from common.config.learning_rate import share_done
from common.errors import ConfigError, ConsiliumError, SiteDataError
from common.weights import norm, subtract

CPU = torch.device("cpu")
PLAIN_SGD = Sgd(lr=0.1, momentum=0, weight_decay=0)
FULL_BATCH = LocalConfig(batch_size="all", optimizer=PLAIN_SGD, augmentation="none", precision="float64")


def make(encoder="test_vit", image_size=32, **settings):
    config = ClassifierConfig(encoder=encoder, image_size=image_size, **settings)
    model = build(config, 3, seed=1, weights_dir=None).model
    return model, partition(model, config)


def train(model, parts, images, local, *, progress=None, algorithm=None, seed=7):
    return fit(
        model,
        images,
        local,
        parts=parts,
        progress=progress or StudyPosition(round=1, rounds=1),
        penalty=build_penalty(algorithm or FedAvg(), model),
        device=CPU,
        seed=seed,
        num_classes=3,
    )


def step_of(images, local, encoder="test_vit", **settings):
    """The delta of one call of `fit` from the study's first weights, and what `fit` says of it."""
    model, parts = make(encoder)
    if local.precision == "float64":
        model.double()
    received = shared_arrays(model, parts)
    fitted = train(model, parts, images, local, **settings)
    return subtract(shared_arrays(model, parts), received), fitted


def furthest(left, right):
    return max(float(np.abs(left[name] - right[name]).max()) for name in left)


def bits(arrays):
    return {name: array.tobytes() for name, array in arrays.items()}


def biases_only():
    """Three outputs that are three biases, at first 0: softmax gives 1/3 each."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 3))
    nn.init.zeros_(model[1].weight)
    nn.init.zeros_(model[1].bias)
    return model, TensorNames(shared=("1.bias",), local=(), frozen=("1.weight",))


# --- federation ------------------------------------------------------------------------------


@pytest.mark.parametrize("encoder", ["test_vit", "test_convnext"])
@pytest.mark.parametrize(("precision", "tolerance"), [("float64", 1e-9), ("float32", 1e-5)])
def test_a_round_of_one_full_batch_step_equals_one_step_on_the_union(
    generate_images, encoder, precision, tolerance
):
    union = generate_images(11)
    local = FULL_BATCH.model_copy(update={"precision": precision})
    sites = [union.part(0, 2), union.part(2, 5), union.part(5, 11)]  # 2, 3 and 6 images
    updates = [step_of(images, local, encoder, seed=site) for site, images in enumerate(sites)]
    mean = {
        name: sum(delta[name] * fitted.num_examples for delta, fitted in updates) / 11
        for name in updates[0][0]
    }
    expected, _ = step_of(union, local, encoder)
    assert norm(expected) > 0.01
    assert furthest(mean, expected) < tolerance


def test_fedprox_without_mu_equals_fedavg_bit_for_bit(generate_images):
    local = LocalConfig(epochs=2, batch_size=4)
    plain, _ = step_of(generate_images(9), local, algorithm=FedAvg())
    prox, _ = step_of(generate_images(9), local, algorithm=FedProx(mu=0))
    assert bits(plain) == bits(prox)


@pytest.mark.parametrize("squared", [True, False])
def test_fedprox_keeps_the_weights_closer_to_what_was_received(generate_images, squared):
    local = LocalConfig(epochs=3, batch_size=4, augmentation="none")
    free, free_fit = step_of(generate_images(9), local)
    held, held_fit = step_of(generate_images(9), local, algorithm=FedProx(mu=5, squared=squared))
    assert norm(held) < 0.9 * norm(free)
    assert math.isfinite(held_fit.mean_loss)
    assert held_fit.num_steps == free_fit.num_steps


def test_the_penalty_counts_once_a_step_and_not_in_the_reported_loss(generate_images):
    local = FULL_BATCH.model_copy(update={"micro_batch_size": 2})
    images = generate_images(6)
    free, free_fit = step_of(images, local)
    model, parts = make()
    model.double()
    received = shared_arrays(model, parts)
    fitted = fit(
        model,
        images,
        local,
        parts=parts,
        progress=StudyPosition(1, 1),
        penalty=lambda model: model.head.bias.sum(),
        device=CPU,
        seed=7,
        num_classes=3,
    )
    delta = subtract(shared_arrays(model, parts), received)
    # The penalty's gradient is 1 per bias, so a step of lr 0.1 goes 0.1 further down.
    assert delta["head.bias"] == pytest.approx(free["head.bias"] - 0.1)
    assert fitted.mean_loss == pytest.approx(free_fit.mean_loss)


# --- every family trains -----------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("encoder", "image_size"),
    [("test_convnext", 32), ("swin_t", 32), ("swin_v2_t", 32), ("test_maxvit", 32), ("test_vit", 32)],
)
def test_one_of_each_family_trains_a_step(generate_images, encoder, image_size):
    model, parts = make(encoder, image_size)
    received = shared_arrays(model, parts)
    local = LocalConfig(steps=1, batch_size=4, optimizer=AdamW())
    fitted = train(model, parts, generate_images(4, size=image_size), local)
    delta = subtract(shared_arrays(model, parts), received)
    assert (fitted.num_steps, fitted.num_examples, fitted.micro_batch_size) == (1, 4, 4)
    assert all(np.isfinite(array).all() for array in delta.values())
    moved = [name for name, array in delta.items() if np.abs(array).max() > 0]
    # At 32 pixels a window of swin may hold one position, whose attention has nothing to learn.
    assert len(moved) > 0.6 * len(delta)
    assert any("patch_embed" in name or "stem" in name for name in moved)


def test_training_learns(generate_images):
    local = LocalConfig(steps=1, batch_size="all", optimizer=AdamW(lr=3e-3), augmentation="none")
    images = generate_images(6)
    model, parts = make("test_vit")
    first = train(model, parts, images, local).mean_loss
    train(model, parts, images, local.model_copy(update={"steps": 25}))
    assert train(model, parts, images, local).mean_loss < 0.1 * first


# --- the same again ----------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_bits_and_another_seed_others(generate_images):
    local = LocalConfig(epochs=2, batch_size=4)
    first, _ = step_of(generate_images(9), local)
    torch.rand(5)  # whatever was drawn in between
    again, _ = step_of(generate_images(9), local)
    other, _ = step_of(generate_images(9), local, seed=8)
    assert bits(first) == bits(again)
    assert bits(first) != bits(other)


def test_dropout_follows_the_seed_and_leaves_torchs_generator_alone(generate_images):
    def once():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(3 * 32 * 32, 3))
        parts = TensorNames(shared=("2.weight", "2.bias"), local=(), frozen=())
        torch.rand(3)
        state = torch.get_rng_state()
        train(model, parts, generate_images(6), LocalConfig(batch_size=2))
        assert torch.equal(torch.get_rng_state(), state)
        return bits(shared_arrays(model, parts))

    assert once() == once()


# --- batches -----------------------------------------------------------------------------------


def test_every_epoch_shows_every_image_once_in_an_order_of_its_own(generate_images):
    images = generate_images(10)
    model, parts = biases_only()
    fitted = train(model, parts, images, LocalConfig(epochs=2, batch_size=4))
    assert list(map(len, images.asked)) == [4, 4, 2, 4, 4, 2]
    first, second = [*chain(*images.asked[:3])], [*chain(*images.asked[3:])]
    assert sorted(first) == sorted(second) == list(range(10))
    assert first != second
    assert (fitted.num_steps, fitted.num_examples) == (6, 10)


def test_one_image_left_over_joins_the_batch_before_it(generate_images):
    images = generate_images(9)
    model, parts = biases_only()
    train(model, parts, images, LocalConfig(batch_size=4))
    assert list(map(len, images.asked)) == [4, 5]


def test_a_batch_size_of_one_is_kept(generate_images):
    images = generate_images(3)
    model, parts = biases_only()
    train(model, parts, images, LocalConfig(batch_size=1))
    assert list(map(len, images.asked)) == [1, 1, 1]


@pytest.mark.parametrize(("steps", "sizes"), [(1, [4]), (2, [4, 4]), (5, [4, 4, 2, 4, 4])])
def test_steps_go_through_as_many_epochs_as_they_need(generate_images, steps, sizes):
    images = generate_images(10)
    model, parts = biases_only()
    fitted = train(model, parts, images, LocalConfig(steps=steps, batch_size=4))
    assert list(map(len, images.asked)) == sizes
    assert fitted.num_examples == 10  # the site weighs by its images, whatever a round has shown of them


def test_batch_norm_trains_on_a_remainder_of_one(generate_images):
    """At 32 pixels test_resnet ends in one value per channel and image, too few for a batch of one."""
    model, parts = make("test_resnet")
    assert train(model, parts, generate_images(5), LocalConfig(batch_size=2)).num_steps == 2


def test_no_images_are_an_error(generate_images):
    model, parts = biases_only()
    with pytest.raises(SiteDataError, match="no training images"):
        train(model, parts, generate_images(0), LocalConfig())


# --- accumulation and memory -------------------------------------------------------------------


@pytest.mark.parametrize("class_weights", ["none", "site"])
@pytest.mark.parametrize("micro_batch_size", [1, 3, 4])
def test_micro_batches_add_up_to_the_whole_batch(generate_images, class_weights, micro_batch_size):
    whole = LocalConfig(
        epochs=2,
        batch_size=7,
        optimizer=Sgd(lr=0.1),
        precision="float64",
        class_weights=class_weights,
        label_smoothing=0.1,
    )
    pieces = whole.model_copy(update={"micro_batch_size": micro_batch_size})
    images = generate_images(10)
    expected, expected_fit = step_of(images, whole)
    found, found_fit = step_of(images, pieces)
    assert furthest(found, expected) < 1e-12
    assert found_fit.mean_loss == pytest.approx(expected_fit.mean_loss, abs=1e-12)
    assert (found_fit.micro_batch_size, found_fit.num_steps) == (micro_batch_size, expected_fit.num_steps)


class Small:
    """Memory for so many images and no more."""

    def __init__(self, model, room, error=torch.OutOfMemoryError):
        self.room, self.error = room, error
        model.register_forward_pre_hook(self.check)

    def check(self, module, inputs):
        if len(inputs[0]) > self.room:
            raise self.error("CUDA out of memory. Tried to allocate 20.00 MiB.")


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, RuntimeError])
def test_a_lack_of_memory_means_smaller_micro_batches_and_the_same_weights(generate_images, caplog, error):
    local = LocalConfig(epochs=2, batch_size=8, optimizer=Sgd(lr=0.1), precision="float64")
    images = generate_images(12)
    expected, _ = step_of(images, local)

    model, parts = make()
    model.double()
    received = shared_arrays(model, parts)
    Small(model, room=3, error=error)
    with caplog.at_level(logging.WARNING, logger="consilium"):
        fitted = train(model, parts, images, local)
    assert fitted.micro_batch_size == 2  # 8, 4, 2
    assert furthest(subtract(shared_arrays(model, parts), received), expected) < 1e-12
    assert [record.getMessage().split(";")[0] for record in caplog.records] == [
        "out of memory: training continues with 4 images at once",
        "out of memory: training continues with 2 images at once",
    ]


def test_too_little_memory_for_one_image_says_what_to_do(generate_images):
    model, parts = biases_only()
    Small(model, room=0)
    with pytest.raises(TooLittleMemory, match=r"single image.*smaller model\.image_size"):
        train(model, parts, generate_images(4), LocalConfig(batch_size=4))


def test_other_errors_of_the_model_come_through(generate_images):
    model, parts = biases_only()

    def broken(module, inputs):
        raise RuntimeError("shapes do not match")

    model.register_forward_pre_hook(broken)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        train(model, parts, generate_images(4), LocalConfig())


# --- the loss, by hand ---------------------------------------------------------------------------


def biases_after(images, **settings):
    model, parts = biases_only()
    optimizer = Sgd(lr=1, momentum=0, weight_decay=0)
    fitted = train(model, parts, images, LocalConfig(optimizer=optimizer, batch_size="all", **settings))
    return shared_arrays(model, parts)["1.bias"].tolist(), fitted.mean_loss


def test_the_step_is_the_mean_gradient_over_images(generate_images):
    images = generate_images(4)
    images.labels_N = torch.tensor([0, 0, 0, 1])
    # -gradient = share of the class - 1/3: 3/4 - 1/3, 1/4 - 1/3, 0 - 1/3
    biases, loss = biases_after(images)
    assert biases == pytest.approx([5 / 12, -1 / 12, -1 / 3])
    assert loss == pytest.approx(math.log(3))


def test_balanced_classes_weigh_the_same_and_absent_ones_nothing(generate_images):
    images = generate_images(4)
    images.labels_N = torch.tensor([0, 0, 0, 1])
    # Weights 4/(2*3) = 2/3 and 4/(2*1) = 2, so 3 * 2/3 = 2 and 2: half and half.
    # -gradient: 1/2 - 1/3, 1/2 - 1/3, 0 - 1/3
    biases, loss = biases_after(images, class_weights="site")
    assert biases == pytest.approx([1 / 6, 1 / 6, -1 / 3])
    assert loss == pytest.approx(math.log(3))


def test_label_smoothing_spreads_a_share_over_all_classes(generate_images):
    images = generate_images(2)
    images.labels_N = torch.tensor([0, 0])
    # Target 0.7 + 0.3/3, 0.3/3, 0.3/3
    biases, _ = biases_after(images, label_smoothing=0.3)
    assert biases == pytest.approx([0.8 - 1 / 3, 0.1 - 1 / 3, 0.1 - 1 / 3])


def test_a_long_gradient_is_clipped_to_the_studys_length(generate_images):
    local = FULL_BATCH.model_copy(update={"clip_grad_norm": 0.02})
    delta, _ = step_of(generate_images(6), local)
    assert norm(delta) == pytest.approx(0.1 * 0.02, rel=1e-4)  # lr times the clipped length


@pytest.mark.parametrize("lr", [1e30, 1e38])
def test_a_loss_that_is_not_finite_stops_training_at_once(generate_images, lr):
    local = LocalConfig(epochs=3, batch_size=3, optimizer=Sgd(lr=lr))
    with pytest.raises(ConsiliumError, match=r"step [1-9] of this round with learning rate 1e\+3[08].*Lower"):
        step_of(generate_images(6), local)


def test_weights_that_are_not_finite_after_the_last_step_are_found_too(generate_images):
    # A weight of 1 decays by 10 * 1 * 1e38, more than float32 holds.
    local = LocalConfig(steps=1, batch_size=6, optimizer=Sgd(lr=1e38, weight_decay=10))
    with pytest.raises(ConsiliumError, match="found a weight that is not a finite number"):
        step_of(generate_images(6), local)


# --- number formats and memory layout --------------------------------------------------------------


def test_bf16_computes_differently_and_keeps_float32_weights(generate_images):
    local = LocalConfig(batch_size=4, augmentation="none")
    exact, _ = step_of(generate_images(4), local)
    rough, _ = step_of(generate_images(4), local.model_copy(update={"precision": "bf16"}))
    assert {array.dtype for array in rough.values()} == {np.dtype("float32")}
    assert bits(rough) != bits(exact)
    assert furthest(rough, exact) < 0.05 * norm(exact)


def test_a_step_that_fp16_cannot_hold_is_taken_again_with_a_smaller_scale(generate_images, monkeypatch):
    """The gradient of the first try is made infinite, as a too large loss scale would make it."""
    local = LocalConfig(steps=2, batch_size=4, optimizer=Sgd(lr=0.1))
    expected, _ = step_of(generate_images(8), local)

    monkeypatch.setattr("client.training.fit.compute_dtype", lambda precision, device: torch.float16)
    model, parts = make()
    received = shared_arrays(model, parts)
    factors = chain([math.inf], repeat(1.0))
    model.head.bias.register_hook(lambda gradient: gradient * next(factors))
    fitted = train(model, parts, generate_images(8), local)
    assert next(factors) == 1.0
    assert fitted.num_steps == 2
    assert furthest(subtract(shared_arrays(model, parts), received), expected) < 1e-6


def test_a_gradient_that_no_scale_makes_finite_stops_training(generate_images, monkeypatch):
    monkeypatch.setattr("client.training.fit.compute_dtype", lambda precision, device: torch.float16)
    model, parts = make()
    model.head.bias.register_hook(lambda gradient: gradient * math.inf)
    with pytest.raises(ConsiliumError, match="found a gradient that is not a finite number"):
        train(model, parts, generate_images(4), LocalConfig(steps=1))


def test_fp16_without_a_gpu_is_refused(generate_images):
    model, parts = biases_only()
    with pytest.raises(ConfigError, match="fp16 needs a GPU"):
        train(model, parts, generate_images(4), LocalConfig(precision="fp16"))


@pytest.mark.parametrize("encoder", ["test_convnext", "test_efficientnet"])
def test_channels_last_is_a_memory_layout_and_no_other_arithmetic(generate_images, encoder):
    first, _ = step_of(generate_images(4), FULL_BATCH.model_copy(update={"channels_last": True}), encoder)
    second, _ = step_of(generate_images(4), FULL_BATCH.model_copy(update={"channels_last": False}), encoder)
    assert furthest(first, second) < 1e-12


def test_how_many_images_fitted_is_remembered_for_the_next_round(generate_images, monkeypatch):
    """With 6 images at once out of reach, round 1 halves 8 to 4, and round 2 begins with 4."""
    model, parts = make()
    forward, asked = type(model).forward, []

    def hungry(self, batch_BCHW):
        asked.append(len(batch_BCHW))
        if len(batch_BCHW) > 5:
            raise RuntimeError("CUDA out of memory")
        return forward(self, batch_BCHW)

    monkeypatch.setattr(type(model), "forward", hungry)
    local, most = LocalConfig(batch_size=8, optimizer=PLAIN_SGD, augmentation="none"), MostAtOnce()
    for number in (1, 2):
        asked.clear()
        result = fit(
            model, generate_images(8), local, parts=parts, progress=StudyPosition(round=number, rounds=2), penalty=None,
            device=CPU, seed=7, num_classes=3, most_at_once=most,
        )  # fmt: skip
    assert result.micro_batch_size == most.training == 4
    assert asked == [4, 4]


def test_the_first_loss_that_is_not_finite_is_named_even_if_later_ones_are_looked_at_together():
    losses = _Losses(look_every=3)
    for loss in (1.0, math.nan):
        losses.append(torch.tensor(loss), 0.5)
    with pytest.raises(
        ConsiliumError, match=r"at step 2 of this round with learning rate 0\.5: found a loss of nan"
    ):
        losses.append(torch.tensor(2.0), 0.1)
    assert losses.values == [1.0]


def test_a_model_is_compiled_once_and_trained_through_it(generate_images, monkeypatch):
    """The compiler itself is torch's; here it is replaced by one that counts."""
    compiled = []

    def count(model):
        compiled.append(model)
        model._compiled_call_impl = model._call_impl

    monkeypatch.setattr(nn.Module, "compile", count)
    model, parts = biases_only()
    for _ in range(2):
        train(model, parts, generate_images(4), LocalConfig(compile=True))
    assert compiled == [model]


# --- what moves --------------------------------------------------------------------------------


def test_only_the_head_moves_when_only_the_head_is_trained(generate_images):
    model, parts = make("test_efficientnet", trainable="head")
    frozen, head = frozen_digest(model, parts), bits(shared_arrays(model, parts))
    train(model, parts, generate_images(6), LocalConfig(batch_size=3))
    assert frozen_digest(model, parts) == frozen  # running statistics included
    assert bits(shared_arrays(model, parts)) != head


def test_local_batch_norm_is_trained_where_it_stays(generate_images):
    model, parts = make("test_efficientnet", batch_norm="local")
    before = copy.deepcopy(model.state_dict())
    train(model, parts, generate_images(6), LocalConfig(batch_size=3))
    moved = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert {"bn1.weight", "bn1.bias", "bn1.running_mean"} <= moved & set(parts.local)


# --- learning rate -----------------------------------------------------------------------------


def test_a_step_stands_in_its_middle():
    # Round 3 of 4, first of two steps: two rounds and a quarter of one, of four.
    assert share_done(3, 4, 0, 2) == (2 + 0.25) / 4


@pytest.mark.parametrize(
    ("schedule", "progress", "factor"),
    [
        (Cosine(), StudyPosition(1, 1), 0.5),
        (Constant(warmup=0.5), StudyPosition(1, 4), 0.25),  # an eighth of the study, of a half
        (Step(milestones=(0.5,)), StudyPosition(2, 2), 0.1),
    ],
)
def test_a_step_is_as_long_as_the_schedule_says(generate_images, schedule, progress, factor):
    constant, _ = step_of(generate_images(4), FULL_BATCH)
    local = FULL_BATCH.model_copy(update={"schedule": schedule})
    scheduled, _ = step_of(generate_images(4), local, progress=progress)
    assert furthest(scheduled, {name: factor * array for name, array in constant.items()}) < 1e-15


def test_a_warm_up_of_each_round_starts_in_every_round():
    """Four steps, half of them rising: at 1/8 and 3/8 of the round the rate is 1/4 and 3/4."""
    local = LocalConfig(optimizer=Sgd(lr=1.0), schedule=Constant(round_warmup=0.5))
    for number in (1, 2):
        assert learning_rates(local, StudyPosition(number, 2), 4) == [0.25, 0.75, 1.0, 1.0]
    both = LocalConfig(optimizer=Sgd(lr=1.0), schedule=Constant(warmup=0.5, round_warmup=0.5))
    # the study's own warm-up is over after round 1, in which it stands at 1/8, 3/8, 5/8, 7/8
    assert learning_rates(both, StudyPosition(1, 2), 4) == [0.25 / 8, 0.75 * 3 / 8, 5 / 8, 7 / 8]

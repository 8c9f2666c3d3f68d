"""One pass over images: modes, augmentation, memory."""

import pytest
import torch
from torch import nn

from client.training.hardware.out_of_memory import MostAtOnce, TooLittleMemory
from client.training.inference import infer, usual_batch_size

CPU = torch.device("cpu")


def means(model, images, batch_size=64, precision="float32"):
    """The model's output for each batch, as lists."""
    batches = infer(
        model,
        images,
        lambda batch_BCHW: model(batch_BCHW).tolist(),
        device=CPU,
        precision=precision,
        batch_size=batch_size,
        activity="scoring",
    )
    return [row for batch in batches for row in batch]


class Mean(nn.Module):
    """The mean of every image."""

    def forward(self, batch_BCHW):
        return batch_BCHW.mean((1, 2, 3))


@pytest.mark.parametrize("batch_size", [1, 2, 64])
def test_outputs_come_in_the_order_of_the_images_whatever_the_batch_size(generate_images, batch_size):
    images = generate_images(5)
    outputs = means(Mean(), images, batch_size)
    assert outputs == pytest.approx(images.pixels_NCHW.mean((1, 2, 3)).tolist())
    assert [number for batch in images.asked for number in batch] == [0, 1, 2, 3, 4]


def test_no_images_give_no_outputs(generate_images):
    assert means(Mean(), generate_images(0)) == []


def test_dropout_is_off_and_training_modes_are_left_as_they_were(generate_images):
    model = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.BatchNorm1d(3 * 8 * 8), nn.Linear(3 * 8 * 8, 2))
    model.train()
    model[2].eval()  # as a frozen layer would be
    images = generate_images(6, size=8)
    assert means(model, images) == means(model, images)
    assert [module.training for module in model] == [True, True, False, True]


def test_the_mode_is_restored_after_an_error_too(generate_images):
    model = Mean().train()

    def broken(module, inputs):
        raise RuntimeError("shapes do not match")

    model.register_forward_pre_hook(broken)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        means(model, generate_images(3))
    assert model.training


def test_no_augmentation_and_no_gradients(generate_images):
    images = generate_images(4)
    generators = []
    batch = images.batch
    images.batch = lambda indices_B, generator: generators.append(generator) or batch(indices_B, generator)
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 1))
    model.register_forward_hook(lambda module, inputs, output: generators.append(output.requires_grad))
    means(model, images)
    assert generators == [None, False]


def test_a_lack_of_memory_means_fewer_images_at_once_and_the_same_outputs(generate_images):
    model, images = Mean(), generate_images(5)
    expected = means(model, images)

    def check(module, inputs):
        if len(inputs[0]) > room:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    model.register_forward_pre_hook(check)
    room = 2
    images.asked.clear()
    assert means(model, images, batch_size=4) == pytest.approx(expected)
    assert images.asked == [[0, 1, 2, 3], [0, 1], [2, 3], [4]]

    room = 0
    with pytest.raises(TooLittleMemory, match="scoring does not fit into the memory"):
        means(model, images)


def test_what_fitted_is_remembered_for_the_next_pass(generate_images, monkeypatch):
    model, images, most = Mean(), generate_images(8), MostAtOnce()
    forward = Mean.forward

    def hungry(self, batch_BCHW):
        if len(batch_BCHW) > 2:
            raise RuntimeError("CUDA out of memory")
        return forward(self, batch_BCHW)

    monkeypatch.setattr(Mean, "forward", hungry)
    for _ in range(2):
        images.asked.clear()
        infer(
            model,
            images,
            model,
            device=CPU,
            precision="float32",
            batch_size=8,
            activity="scoring",
            most_at_once=most,
        )
    assert most.inference == 2
    assert {len(batch) for batch in images.asked} == {2}


def test_a_cpu_takes_64_images_at_once_and_a_gpu_512(generate_images):
    assert (usual_batch_size(CPU), usual_batch_size(torch.device("cuda"))) == (64, 512)
    images = generate_images(65, size=8)
    infer(Mean(), images, lambda batch_BCHW: batch_BCHW, device=CPU, precision="float32", activity="scoring")
    assert [len(batch) for batch in images.asked] == [64, 1]

"""Iterative inversion of a step with noise: what an operator gets of one patient's image at epsilon 8 and 1.

The step is on one patient alone, the strongest case there is, and epsilon is of this one step. The attacker knows the
label. Images are smooth, 32 pixels a side.
"""

import pytest
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from client.model.build import build
from client.model.parameters import partition, shared_arrays
from client.privacy.accountant import Charge, epsilon
from client.training.fit import StudyPosition, fit
from client.training.private.private_round import PrivateRound
from common.config import ClassifierConfig, DpSgdConfig, LocalConfig, Sgd
from common.weights import subtract
from tests.attacks.gradient_inversion import Seen, inverted, likeness

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
SIZE, STEPS, DELTA = 32, 250, 1e-5
NOISE = {None: 1e-9, 8.0: 0.61, 1.0: 3.8}
"""By epsilon of one step on all patients, whose sum has this noise."""


class Drawn:
    """Smooth images, and their labels."""

    def __init__(self, seed: int, number: int) -> None:
        coarse = torch.randn(number, 3, 5, 5, generator=torch.Generator().manual_seed(seed))
        self.pixels_NCHW = interpolate(coarse, size=(SIZE, SIZE), mode="bicubic")
        self.labels_N = torch.arange(number) % 3

    def batch(self, indices_B: Tensor, generator: torch.Generator | None) -> Tensor:
        return self.pixels_NCHW[indices_B]


def found(eps: float | None, seed: int) -> tuple[float, float]:
    """Correlation of the guess with the patient's image, and the largest with eight of other patients."""
    config = ClassifierConfig(encoder="test_convnext", image_size=SIZE, head_start="library")
    model = build(config, 3, seed=seed, weights_dir=None).model.double()
    parts = partition(model, config)
    received = {name: torch.tensor(array) for name, array in shared_arrays(model, parts).items()}
    drawn = Drawn(seed, 1)
    local = LocalConfig(
        steps=1,
        optimizer=Sgd(lr=1.0, momentum=0, weight_decay=0),
        loss="cross_entropy",
        augmentation="none",
        precision="float64",
    )
    settings = DpSgdConfig(noise=1.0, sampling_rate=1.0).model_copy(update={"noise": NOISE[eps]})
    private = PrivateRound(settings, ["a"], 1)
    fit(
        model, drawn, local, parts=parts, progress=StudyPosition(1, 1), penalty=None, device=torch.device("cpu"),
        seed=0, num_classes=3, private=private,
    )  # fmt: skip
    after = shared_arrays(model, parts)
    change = subtract(after, {name: tensor.numpy() for name, tensor in received.items()})
    model.load_state_dict(received, strict=False)
    seen = Seen({name: -torch.tensor(delta) for name, delta in change.items()}, {})
    guess = inverted(model, seen, drawn.labels_N, SIZE, steps=STEPS, seed=seed)
    own = float(likeness(guess, drawn.pixels_NCHW).max())
    others = float(likeness(guess, Drawn(seed + 100, 8).pixels_NCHW).max())
    print(f"epsilon {eps}, seed {seed}: {own:.3f} own, {others:.3f} others'")
    return own, others


@pytest.mark.parametrize("eps", [8.0, 1.0])
def test_the_noise_costs_what_it_says(eps: float) -> None:
    assert eps * 0.9 < epsilon([Charge(NOISE[eps], 1.0, 1)], DELTA) <= eps


def test_noise_takes_a_patients_image_out_of_a_step() -> None:
    without, _ = found(None, 0)
    assert without > 0.6
    for eps in (8.0, 1.0):
        own, _ = found(eps, 0)
        assert own < 0.3

"""One round of differentially private training: which patients each step draws, and the noisy sum that it follows."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor, nn

from client.training.private.clipped_sum import ClippedSum
from client.training.private.patients import Patients
from client.training.private.secure_random import SecureRandom
from common.config import DpSgdConfig, LocalConfig


@dataclass(frozen=True)
class PrivateRound:
    """What `fit` needs to train a round with noise."""

    settings: DpSgdConfig
    groups_N: Sequence[str]
    """By training image: its patient, or lesion."""
    num_images: int
    """Training images as they were counted with noise: the true number would leave with the length of a step."""
    random: SecureRandom = field(default_factory=SecureRandom)

    def batches(self, local: LocalConfig) -> list[Tensor]:
        """Indices of every step of the round, patient by patient; a step may have none."""
        settings = self.settings
        patients = Patients(self.groups_N)
        return [
            patients.draw(settings.step_rate, settings.images_per_patient, self.random)
            for _ in range(settings.num_steps(local))
        ]

    def seed(self) -> int:
        """A seed for augmentation and dropout that no person knows: with a known one, a patient more or less in a batch
        would change what chance does to the others.
        """
        return self.random.seed()

    @property
    def divisor(self) -> float:
        """Images of a step to be expected: the sum over this is about the mean gradient of an image."""
        return max(1.0, self.settings.step_rate * self.num_images)


class NoisyGradient:
    """The gradient of each step of one round."""

    def __init__(
        self, private: PrivateRound, trained: Sequence[nn.Parameter], batches: Sequence[Tensor]
    ) -> None:
        self._private = private
        patients_N = Patients(private.groups_N).of_image_N
        self._patients = [patients_N[indices_B] for indices_B in batches]
        self._sum = ClippedSum(trained, private.settings.max_grad_norm)
        self._waiting = patients_N[:0]

    def begin(self, step: int) -> None:
        """A step begins, perhaps once more."""
        self._sum.begin()
        self._waiting = self._patients[step]

    def add(self, num_images: int) -> None:
        """So many more images of the step, in order, were followed back."""
        self._sum.add(self._waiting[:num_images])
        self._waiting = self._waiting[num_images:]

    def end(self) -> None:
        """Leave the noisy gradient in the parameters. A step without a patient is noise alone."""
        self._sum.end(self._private.settings.step_noise, self._private.divisor, self._private.random)


def images_at_once(trained: Sequence[nn.Parameter]) -> int:
    """Images whose gradients together are 1 GiB, one at least."""
    return max(1, 2**28 // max(1, sum(parameter.numel() for parameter in trained)))

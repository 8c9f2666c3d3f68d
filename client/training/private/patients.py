"""Draws of patients: each step takes every patient with the same chance, by itself (Poisson sampling)."""

from collections.abc import Sequence
from itertools import chain

import numpy as np
import torch
from torch import Tensor

from client.training.private.secure_random import SecureRandom


class Patients:
    """The patients behind a site's training images. N images."""

    def __init__(self, groups_N: Sequence[str]) -> None:
        """`groups_N` names each image's patient, or lesion where no patient is known."""
        numbers = {group: number for number, group in enumerate(dict.fromkeys(groups_N))}
        self.of_image_N = torch.tensor([numbers[group] for group in groups_N], dtype=torch.int64)
        self._images: list[list[int]] = [[] for _ in numbers]
        for image, group in enumerate(groups_N):
            self._images[numbers[group]].append(image)

    def draw(self, rate: float, most: int, random: SecureRandom) -> Tensor:
        """Indices of a step's images, patient by patient; perhaps none. Of a patient with more than `most` images, so
        many of them by chance.
        """
        drawn = np.flatnonzero(random.uniforms(len(self._images)) < rate)
        images = [self._some(self._images[patient], most, random) for patient in drawn]
        return torch.tensor(list(chain.from_iterable(images)), dtype=torch.int64)

    @staticmethod
    def _some(images: Sequence[int], most: int, random: SecureRandom) -> list[int]:
        if len(images) <= most:
            return list(images)
        order = np.argsort(random.uniforms(len(images)))[:most]
        return [images[place] for place in sorted(order)]


def capped_counts(labels_N: Sequence[int], groups_N: Sequence[str], num_classes: int, most: int) -> list[int]:
    """Images by class of which no patient has more than `most`: the first ones of each, in the order of the images.

    A patient who is added or removed changes these counts by `most` images in all.
    """
    taken: dict[str, int] = {}
    counts = [0] * num_classes
    for label, group in zip(labels_N, groups_N, strict=True):
        if taken.get(group, 0) < most:
            taken[group] = taken.get(group, 0) + 1
            counts[label] += 1
    return counts

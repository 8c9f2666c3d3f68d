"""Named arrays that are made when they are read, and not kept.

They stand wherever named arrays do. Going through them one after the other takes the memory of one array, whatever
the model. `Computed` calls a function for each, `Stored` maps it from a safetensors file. A reader that needs an array
twice makes it twice.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from common.formats.tensors import Place
from common.weights import Array


@dataclass(frozen=True)
class Computed(Mapping[str, Array]):
    """`compute(name)` for each of `names`, at the moment it is read."""

    names: Collection[str]
    compute: Callable[[str], Array]

    def __getitem__(self, name: str) -> Array:
        if name not in self.names:
            raise KeyError(name)
        return self.compute(name)

    def __contains__(self, name: object) -> bool:
        return name in self.names  # without computing it

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


class Stored(Mapping[str, Array]):
    """Arrays of a safetensors file, each mapped into memory when it is read; they cannot be written to.

    The file must not change. It may be removed when no further array is read: those that were read stay.
    """

    def __init__(self, path: Path, places: Mapping[str, Place]) -> None:
        self._path, self._places = path, dict(places)

    def __getitem__(self, name: str) -> Array:
        place = self._places[name]
        if 0 in place.shape:
            return np.zeros(place.shape, place.dtype)  # nothing to map
        mapped = np.memmap(self._path, place.dtype, "r", place.offset, place.shape or (1,))
        return mapped.view(np.ndarray).reshape(place.shape)

    def __contains__(self, name: object) -> bool:
        return name in self._places

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

"""Features: one row of numbers per image from the network, the input of classical heads.

They are computed with the received weights, in evaluation mode, with the batches and the number format
of scoring, so a head sees what the network's own classifier sees. That costs a pass over all
images, so features are kept on the site's disk under the hash of everything they depend on: weights,
layer, images, precision. They never leave the site.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from client.data.manifest import Side
from client.data.store import ImageStore, identity
from client.images import Images
from client.model.clip import Clip
from client.training.hardware.precision import Precision
from client.training.inference import finite, infer
from common import log
from common.errors import ConfigError, ConsiliumError, StorageError
from common.files import write_atomically
from common.weights import digest, load_file, save_file

_FORMAT = 1
_KEPT = 2
"""Files that are kept; a study that fits heads every few rounds has other weights each time."""

_INDEX = "index.json"

Rows = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Features:
    """One side of a site's split, in the manifest's order."""

    features_NF: Rows
    logits_NC: npt.NDArray[np.float64]
    """Logits of the network's own classifier, from the same pass."""
    labels_N: npt.NDArray[np.int64]
    groups_N: tuple[str, ...]
    """Group that a resampling must keep together: patient or lesion, or the image itself."""


@dataclass(frozen=True)
class Cache:
    """Where a site keeps features; a file is good for one set of weights, images, layer and precision."""

    folder: Path

    def path(self, model: nn.Module, store: ImageStore, layer: str | None, precision: Precision) -> Path:
        """The file for these; the hash covers whatever the features depend on."""
        images = identity(store.manifest.rows, store.preprocessing)
        inputs = [_FORMAT, _state_digest(model), layer, precision, images]
        return self.folder / f"{hashlib.sha256(json.dumps(inputs).encode()).hexdigest()[:32]}.safetensors"

    def remember(self, key: str, path: Path) -> None:
        """Record which file has the features of these weights, for a restarted trainer."""
        write_atomically(self.folder / _INDEX, json.dumps({**self._index(), key: path.name}).encode())

    def known(self, key: str) -> Path | None:
        """The file with the features of these weights, None if there is none."""
        name = self._index().get(key)
        path = None if name is None else self.folder / Path(name).name
        return path if path is not None and path.is_file() else None

    def _index(self) -> dict[str, str]:
        try:
            index = json.loads((self.folder / _INDEX).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return {key: name for key, name in index.items() if (self.folder / str(name)).is_file()}

    def read(self, path: Path, num_images: int) -> tuple[Rows, npt.NDArray[np.float64]] | None:
        """Features and logits; None if they are not there, or damaged."""
        if not path.is_file():
            return None
        try:
            arrays, _ = load_file(path)
        except StorageError:
            log.warn("kept features are damaged; they are computed again")
            return None
        if {*arrays} != {"features", "logits"} or not all(len(a) == num_images for a in arrays.values()):
            return None
        path.touch()
        return arrays["features"], arrays["logits"]

    def keep(self, path: Path, features_NF: Rows, logits_NC: npt.NDArray[np.float64]) -> None:
        """Write one file, and drop the oldest. Raises StorageError."""
        save_file(path, {"features": features_NF, "logits": logits_NC}, {})
        kept = sorted(self.folder.glob("*.safetensors"), key=lambda other: other.stat().st_mtime_ns)
        for old in kept[:-_KEPT]:
            old.unlink(missing_ok=True)


def of(
    model: nn.Module,
    store: ImageStore,
    cache: Cache,
    *,
    layer: str | None,
    device: torch.device,
    precision: Precision,
    private: bool = False,
) -> dict[Side, Features]:
    """Features of the images on each side, from the cache if they are there. `private` is that of `extract`.

    Raises ConsiliumError if one is not finite, ConfigError if the network has no such layer.
    """
    path = cache.path(model, store, layer, precision)
    rows = cache.read(path, len(store.manifest.rows))
    if rows is None:
        rows = extract(
            model, store.images(None), layer=layer, device=device, precision=precision, private=private
        )
        cache.keep(path, *rows)
    return sides(store, *rows)


def sides(store: ImageStore, features_NF: Rows, logits_NC: npt.NDArray[np.float64]) -> dict[Side, Features]:
    """Features of all images, in the manifest's order, by side of the split."""
    rows, labels_N = store.manifest.rows, store.images(None).labels_N.cpu().numpy()
    groups_N = [row.group or f"image {number}" for number, row in enumerate(rows)]
    return {
        side: Features(
            features_NF[places],
            logits_NC[places],
            labels_N[places],
            tuple(groups_N[place] for place in places),
        )
        for side in get_args(Side)
        for places in [[place for place, row in enumerate(rows) if row.split == side]]
    }


def extract(
    model: nn.Module,
    images: Images,
    *,
    layer: str | None,
    device: torch.device,
    precision: Precision,
    batch_size: int | None = None,
    private: bool = False,
) -> tuple[Rows, npt.NDArray[np.float64]]:
    """Features (N, F) and logits (N, C) of centre-cropped images; the model's modes are left as they were.

    `private`: an image whose numbers are not finite counts as zeros. An error would say without noise that there is
    such an image, and weights can be made for it.

    Raises ConsiliumError if one is not finite, TooLittleMemory if not one image fits.
    """

    def compute(batch_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        features_BF, logits_BC = with_logits(model, batch_BCHW, layer)
        return features_BF.float().cpu(), logits_BC.double().cpu()

    rows = infer(
        model,
        images,
        compute,
        device=device,
        precision=precision,
        batch_size=batch_size,
        activity="extracting features",
    )
    if not rows:
        return np.zeros((0, 0), np.float32), np.zeros((0, 0), np.float64)
    features_NF, logits_NC = (torch.cat(parts) for parts in zip(*rows, strict=True))
    if private:
        features_NF, logits_NC = finite(features_NF), finite(logits_NC)
    num_bad = int((~torch.isfinite(features_NF)).any(1).sum())
    if num_bad:
        raise ConsiliumError(
            f"the received weights give features that are not finite numbers on {num_bad} of {len(features_NF)} "
            "images; expected finite ones. The study has diverged, or local.precision is too narrow for it."
        )
    return features_NF.numpy(), logits_NC.numpy()


def with_logits(model: nn.Module, images_BCHW: Tensor, layer: str | None = None) -> tuple[Tensor, Tensor]:
    """(B, F) and (B, C): features and logits of one pass.

    Features are what the classifier sees, or the pooled output of the module called `layer`. Raises
    ConfigError if there is no such module, or if its output cannot be pooled.
    """
    if layer is None:
        features_BF = features(model, images_BCHW)
        classifier = model.get_classifier()  # type: ignore[operator]
        # timm's distilled models have two classifiers, and so need another pass.
        logits_BC = classifier(features_BF) if isinstance(classifier, nn.Module) else model(images_BCHW)
        return features_BF, logits_BC
    modules = dict(model.named_modules())
    if layer not in modules:
        known = [name for name in modules if name and name.count(".") < 2]
        raise ConfigError(f"heads.layer: the network has no module {layer!r}; it has {', '.join(known[:40])}")
    caught: list[Tensor] = []
    hook = modules[layer].register_forward_hook(lambda _module, _inputs, output: caught.append(output))
    try:
        logits_BC = model(images_BCHW)
    finally:
        hook.remove()
    return pooled(caught[-1], layer), logits_BC


def pooled(output: Tensor, layer: str) -> Tensor:
    """(B, F) from a module's output: the mean over places. Raises ConfigError.

    Maps come as (B, F, H, H) or, from windowed transformers, as (B, H, H, F); tokens as (B, T, F).
    """
    match tuple(output.shape) if isinstance(output, Tensor) else ():
        case (_, _):
            return output
        case (_, _, _):
            return output.mean(dim=1)
        case (_, _, height, width) if height == width:
            return output.mean(dim=(2, 3))
        case (_, height, width, _) if height == width:
            return output.mean(dim=(1, 2))
        case shape:
            raise ConfigError(
                f"heads.layer: {layer} gives {list(shape) or type(output).__name__}, expected a map with as many "
                "rows as columns, tokens or one row an image; name another module"
            )


def _state_digest(model: nn.Module) -> str:
    """Digest of every float tensor of the network: shared, local and frozen."""
    return digest(
        {
            name: tensor.detach().cpu().numpy()
            for name, tensor in model.state_dict().items()
            if tensor.is_floating_point()
        }
    )


def features(model: nn.Module, images_BCHW: Tensor) -> Tensor:
    """`features_BF` of normalised images, in the model's mode and number format; gradients flow."""
    if isinstance(model, Clip):
        return model.features(images_BCHW)
    maps: Tensor = model.forward_features(images_BCHW)  # type: ignore[operator]
    features_BF: Tensor = model.forward_head(maps, pre_logits=True)  # type: ignore[operator]
    return features_BF

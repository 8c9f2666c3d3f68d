"""The whole way from a decoded square to class probabilities as one torch module.

It is what `export` writes: cut, normalisation, network and head. LoRA's products are added to the layers beside them.
N images, S pixels a side of a square, F features, C classes, K sites that vote.
"""

import numpy as np
import torch
from torch import Tensor, nn

from client.heads.features import with_logits
from client.images import Preprocessing
from client.model import tuning
from client.predict.image_classifier import ImageClassifier, LocalHead
from common.errors import ConfigError
from common.heads import FittedHead
from common.heads.outliers import OutlierDetector
from common.heads.view import drawn


class Portable(nn.Module):
    """uint8 (N, S, S, 3) to probabilities (N, C) in float64, whose rows sum to 1."""

    mean: Tensor
    std: Tensor

    def __init__(
        self, model: nn.Module, preprocessing: Preprocessing, head: "PortableHead | None", layer: str | None
    ) -> None:
        super().__init__()
        self.model, self.head, self.layer = model, head, layer
        self.size = preprocessing.image_size
        self.start = (preprocessing.stored_size - preprocessing.image_size) // 2
        dtype = next(model.parameters()).dtype
        for name in ("mean", "std"):
            values = torch.tensor(getattr(preprocessing, name), dtype=dtype).view(3, 1, 1)
            self.register_buffer(name, values)

    def forward(self, squares: Tensor) -> Tensor:
        """Probabilities (N, C) of squares uint8 (N, S, S, 3)."""
        images_N3SS = self.images(squares)
        if self.head is None:
            logits_NC: Tensor = self.model(images_N3SS)
            return torch.softmax(logits_NC.double(), dim=-1)
        features_NF, _ = with_logits(self.model, images_N3SS, self.layer)
        probabilities_NC: Tensor = self.head(features_NF.double())
        return probabilities_NC

    def images(self, squares: Tensor) -> Tensor:
        """Normalised images (N, 3, size, size) of squares."""
        end = self.start + self.size
        middles_NSS3 = squares[:, self.start : end, self.start : end]
        return middles_NSS3.permute(0, 3, 1, 2).to(self.mean.dtype).div(255).sub(self.mean).div(self.std)


class PortableWithScores(nn.Module):
    """uint8 (N, S, S, 3) to probabilities (N, C) and outlier scores (N,), both in float64, from one pass."""

    shift: Tensor
    scale: Tensor
    whitening: Tensor
    centres: Tensor

    def __init__(self, whole: Portable, detector: OutlierDetector) -> None:
        super().__init__()
        self.whole = whole
        for name, array in detector.arrays().items():
            # The matrix is as large as some networks, and float32 is what it was kept in.
            self.register_buffer(name, torch.from_numpy(np.ascontiguousarray(array, np.float32)))

    def forward(self, squares: Tensor) -> tuple[Tensor, Tensor]:
        """Probabilities and outlier scores of squares."""
        whole = self.whole
        features_NF, logits_NC = with_logits(whole.model, whole.images(squares), whole.layer)
        probabilities_NC = (
            torch.softmax(logits_NC.double(), dim=-1)
            if whole.head is None
            else whole.head(features_NF.double())
        )
        whitened_ND = ((features_NF.float() - self.shift) / self.scale) @ self.whitening
        squared_NC = ((whitened_ND[:, None] - self.centres) ** 2).sum(dim=2)
        return probabilities_NC, squared_NC.min(dim=1).values.sqrt().double()


class PortableHead(nn.Module):
    """A head on features, as `common.heads.FittedHead` describes it, in torch."""

    shift: Tensor
    scale: Tensor

    def __init__(self, head: FittedHead) -> None:
        super().__init__()
        self.form = head.form.form
        view = head.view
        self._keep("shift", view.shift_F)
        self._keep("scale", view.scale_F)
        self.has_components = view.components_FK is not None
        if view.components_FK is not None:
            self._keep("components", view.components_FK)
        self.is_fourier = view.fourier is not None
        if view.fourier is not None:
            width = len(view.shift_F) if view.components_FK is None else view.components_FK.shape[1]
            directions, offsets = drawn(view.fourier, width)
            self._keep("directions", directions)
            self._keep("offsets", offsets)
            self.factor = float(np.sqrt(2 / view.fourier.num_components))
        for name, values in head.parameters.items():
            self._keep(name, values)

    def _keep(self, name: str, values: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> None:
        self.register_buffer(name, torch.from_numpy(np.ascontiguousarray(values, np.float64)))

    def forward(self, features_NF: Tensor) -> Tensor:
        """Probabilities (N, C) of features in float64."""
        mapped = (features_NF - self.shift) / self.scale
        if self.has_components:
            mapped = mapped @ self._of("components")
        if self.is_fourier:
            mapped = torch.cos(mapped @ self._of("directions") + self._of("offsets")) * self.factor
        match self.form:
            case "linear":
                return torch.softmax(mapped @ self._of("weights") + self._of("bias"), dim=-1)
            case "gaussian":
                variances_CD = self._of("variances")
                squared_NCD = (mapped[:, None] - self._of("means")) ** 2 / variances_CD
                constant_C = -0.5 * torch.log(2 * torch.pi * variances_CD).sum(dim=1)
                scores_NC = -0.5 * squared_NCD.sum(dim=2) + constant_C + self._of("priors")
                return torch.softmax(scores_NC, dim=-1)
            case "vote":
                each_KNC = torch.softmax(mapped @ self._of("weights") + self._of("bias")[:, None], dim=-1)
                return (each_KNC * self._of("shares")[:, None, None]).sum(dim=0)

    def _of(self, name: str) -> Tensor:
        return self.get_buffer(name)


def portable(classifier: ImageClassifier) -> Portable:
    """The classifier as one module on the CPU. Raises ConfigError for a head of scikit-learn's."""
    match classifier.head:
        case None:
            head = None
        case FittedHead():
            head = PortableHead(classifier.head)
        case LocalHead():
            raise ConfigError(
                "--head: a site's own head is scikit-learn's and cannot be exported; name a federated head or softmax"
            )
    model = tuning.merged(classifier.model.cpu()).to(memory_format=torch.contiguous_format)
    return Portable(model, classifier.preprocessing, head, classifier.layer).eval().requires_grad_(False)

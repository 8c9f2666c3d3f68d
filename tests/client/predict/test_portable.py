"""The module that is exported gives the probabilities that `predict` gives."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from client import predict
from client.predict.portable import PortableHead, PortableWithScores, portable
from common.heads import FittedHead, Fourier, HeadForm, View
from common.heads.outliers import OutlierDetector

CPU = torch.device("cpu")


def squares(size: int, number: int = 3) -> list[np.ndarray]:
    return list(np.random.default_rng(1).integers(0, 256, (number, size, size, 3), np.uint8))


@pytest.mark.parametrize("title", ["softmax", "federated.lda"])
@pytest.mark.parametrize(
    ("encoder", "model"),
    [
        ("test_convnext", {}),
        ("test_vit", {"tuning": {"kind": "lora", "rank": 2}}),
        ("test_convnext", {"kind": "clip", "text": {"kind": "random", "width": 8}}),
    ],
)
def test_one_module_does_what_predict_does(make_run, encoder, model, title):
    classifier = predict.load(make_run(encoder, **model), title, None, CPU)
    shown = squares(classifier.preprocessing.stored_size)
    expected = classifier.probabilities(shown)
    with torch.no_grad():
        found = portable(classifier)(torch.from_numpy(np.stack(shown))).numpy()
    assert found == pytest.approx(expected, abs=1e-6)
    assert found.sum(axis=1) == pytest.approx(1)


@pytest.mark.parametrize("fourier", [None, Fourier(seed=3, gamma=0.1, num_components=6)])
@pytest.mark.parametrize("components", [None, 4])
@pytest.mark.parametrize("form", ["linear", "gaussian", "vote"])
def test_heads_of_every_form_are_the_same_in_torch(form, components, fourier):
    rng = np.random.default_rng(0)
    projection = None if components is None else rng.normal(size=(5, components))
    view = View(rng.normal(size=5), rng.uniform(1, 2, 5), projection, fourier)
    width = view.width
    parameters = {
        "linear": {"weights": rng.normal(size=(width, 3)), "bias": rng.normal(size=3)},
        "gaussian": {
            "means": rng.normal(size=(3, width)),
            "variances": rng.uniform(1, 2, (3, width)),
            "priors": np.log([0.2, 0.3, 0.5]),
        },
        "vote": {
            "weights": rng.normal(size=(2, width, 3)),
            "bias": rng.normal(size=(2, 3)),
            "shares": np.array([0.25, 0.75]),
        },
    }[form]
    head = FittedHead(HeadForm(title="federated.x", form=form), view, parameters)
    features = rng.normal(size=(7, 5))
    found = PortableHead(head)(torch.from_numpy(features)).numpy()
    assert found == pytest.approx(head.probabilities(features), abs=1e-12)


@pytest.mark.parametrize("title", ["softmax", "federated.lda"])
def test_outlier_scores_in_torch_are_those_of_the_detector(make_run, title):
    classifier = predict.load(make_run(), title, None, CPU)
    shown = squares(classifier.preprocessing.stored_size)
    width, rng = classifier.model.num_features, np.random.default_rng(0)
    detector = OutlierDetector(
        View(rng.normal(size=width), rng.uniform(1, 2, width)),
        rng.normal(size=(width, width)) / width,
        rng.normal(size=(2, width)),
    )
    judged = replace(classifier, detector=detector).judge(shown)
    with torch.no_grad():
        found = PortableWithScores(portable(classifier), detector)(torch.from_numpy(np.stack(shown)))
    assert found[0].numpy() == pytest.approx(judged.probabilities_NC, abs=1e-6)
    assert found[1].numpy() == pytest.approx(judged.outlier_scores_N, rel=1e-5)

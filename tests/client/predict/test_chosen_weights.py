"""A study with a selection is tested on the weights it chose. These are the ones that predict, too."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from client import predict
from client.predict.merge import merge_run
from common.errors import SiteDataError
from common.weights import digest, load_file, save_file

MakeRun = Callable[..., Path]
CPU = torch.device("cpu")
SQUARES = [np.full((32, 32, 3), grey, np.uint8) for grey in (0, 90, 200)]


def chosen(run: Path, bias: list[float]) -> None:
    """Write best.safetensors: the run's weights with another bias of the classifier, and none of its inputs."""
    arrays, about = load_file(run / "weights.safetensors")
    other = {**arrays, "head.fc.weight": 0 * arrays["head.fc.weight"], "head.fc.bias": np.float32(bias)}
    save_file(run / "best.safetensors", other, {**about, "sha256": digest(other)})


def test_the_weights_that_the_study_chose_predict(make_run: MakeRun) -> None:
    run = make_run()
    last = predict.load(run, "softmax", None, CPU).probabilities(SQUARES)
    chosen(run, [0.0, np.log(2.0), 0.0])
    best = predict.load(run, "softmax", None, CPU).probabilities(SQUARES)
    np.testing.assert_allclose(best, [[0.25, 0.5, 0.25]] * 3, rtol=1e-6)  # 1 : 2 : 1, whatever the image
    assert not np.allclose(last, best)


def test_a_whole_model_is_of_the_weights_that_the_study_chose(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run()
    chosen(run, [1.0, 2.0, 3.0])
    merge_run(run, tmp_path / "whole.safetensors", None, "softmax")
    assert load_file(tmp_path / "whole.safetensors")[0]["head.fc.bias"].tolist() == [1, 2, 3]


def test_a_head_of_the_last_rounds_weights_does_not_go_with_those_that_were_chosen(make_run: MakeRun) -> None:
    run = make_run()
    predict.load(run, "federated.lda", None, CPU)
    chosen(run, [0.0, 0.0, 0.0])
    with pytest.raises(SiteDataError, match=r"federated\.lda"):
        predict.load(run, "federated.lda", None, CPU)

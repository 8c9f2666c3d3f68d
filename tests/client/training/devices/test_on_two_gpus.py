"""Two GPUs of one site take the steps of one."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from client.model.build import of_study
from client.model.parameters import partition, shared_arrays
from client.training.devices.group import FurtherDevices
from client.training.fit import StudyPosition, fit
from common.config import LocalConfig, Sgd, StudyConfig

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="this machine has no two CUDA devices"),
]


def test_two_gpus_take_the_steps_of_one(
    make_study: Callable[..., StudyConfig], generate_images: Callable[..., Any]
) -> None:
    local = LocalConfig(epochs=1, batch_size=5, optimizer=Sgd(lr=0.1), precision="float64")
    study = make_study(model={"encoder": "test_vit", "image_size": 32}, local=local.model_dump())
    weights = []
    for devices in ([], [torch.device("cuda:1")]):
        model = of_study(study, None).model
        names = partition(model, study.model)
        further = FurtherDevices(devices, study, None, names.trained) if devices else None
        fit(
            model,
            generate_images(11),
            local,
            parts=names,
            progress=StudyPosition(round=1, rounds=1),
            penalty=None,
            device=torch.device("cuda:0"),
            seed=7,
            num_classes=3,
            further=further,
        )
        weights.append(shared_arrays(model, names))
        if further is not None:
            further.close()
    one, two = weights
    assert max(float(np.abs(one[name] - two[name]).max()) for name in one) < 1e-9

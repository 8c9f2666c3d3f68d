"""Predictions for what a notebook holds: files, folders and pictures in memory."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from common.errors import ConfigError, SiteDataError
from consilium_fl import Predictor, Run, Unreadable, load_predictor


@pytest.fixture
def predictor(run_dir: Path) -> Predictor:
    return load_predictor(Run.open(run_dir), head="federated.lda", device="cpu")


@pytest.fixture
def images(run_dir: Path) -> Path:
    return run_dir.parent / "north-images"


def test_a_folder_is_predicted_with_all_that_is_below(predictor: Predictor, images: Path) -> None:
    records = predictor.predict(images)
    assert predictor.classes == ("dark", "pale", "red")
    assert len(records) == 30  # 3 classes of 10 images
    for record in records:
        assert sum(record.probabilities.values()) == pytest.approx(1)
        assert record.predicted == max(record.probabilities, key=record.probabilities.__getitem__)
    assert sum(Path(record.file).parent.name == record.predicted for record in records) >= 25
    frame = records.to_dataframe()
    assert list(frame.columns) == ["file", "frame", "predicted", "dark", "pale", "red"]


def test_a_picture_in_memory_is_predicted_as_its_file(predictor: Predictor, images: Path) -> None:
    path = images / "red" / "0.png"
    with Image.open(path) as picture:
        mixed = predictor.predict([str(path), picture])
    assert mixed[0].probabilities == mixed[1].probabilities
    assert [record.file for record in mixed] == [str(path), ""]
    with Image.open(path) as picture:
        assert predictor.predict(picture)[0].probabilities == mixed[0].probabilities


def test_probabilities_are_one_row_per_image(predictor: Predictor, images: Path) -> None:
    probabilities_NC = predictor.probabilities(images / "pale")
    assert probabilities_NC.shape == (10, 3)
    assert probabilities_NC.dtype == np.float64
    assert np.allclose(probabilities_NC.sum(axis=1), 1)
    assert predictor.probabilities([]).shape == (0, 3)


def test_what_is_no_image_is_an_error_that_names_it_or_is_skipped(predictor: Predictor, images: Path) -> None:
    (images / "red" / "notes.txt").write_text("not an image")
    with pytest.raises(SiteDataError, match=r"notes\.txt cannot be decoded.*skip=True"):
        predictor.predict(images / "red")
    assert len(predictor.predict(images / "red", skip=True)) == 10
    unreadable = [outcome for outcome in predictor.stream(images / "red") if isinstance(outcome, Unreadable)]
    assert [problem.path.name for problem in unreadable] == ["notes.txt"]
    tiny = Image.new("RGB", (2, 2))
    with pytest.raises(SiteDataError, match="image 1 is 2 x 2 pixels"):
        predictor.predict(tiny)


def test_the_networks_own_softmax_is_the_default_head(run_dir: Path, images: Path) -> None:
    softmax = load_predictor(run_dir, device="cpu").probabilities(images)
    assert not np.allclose(
        softmax, load_predictor(run_dir, "federated.lda", device="cpu").probabilities(images)
    )
    assert np.array_equal(
        softmax, load_predictor(str(run_dir), "softmax", device="cpu").probabilities(images)
    )


def test_a_head_that_is_not_there_is_refused(run_dir: Path) -> None:
    with pytest.raises(ConfigError, match=r"holds no head 'federated\.svm'; it holds federated\.lda"):
        load_predictor(run_dir, "federated.svm", device="cpu")

"""A study's text tower is asked once, and its answer is written into the study or the grid."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from client.cli.main import main
from client.model.embed_prompts import embed_file
from common.config import ClipConfig, StudyConfig, prompts
from common.errors import ConfigError
from common.settings import load_settings
from server.simulation.grid import Grid, studies

TINY = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 16, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 12, "vocab_size": 49408, "width": 16, "heads": 1, "layers": 1},
}


@pytest.fixture(scope="module")
def tower(tmp_path_factory):
    """A text side of a CLIP with random weights, small enough for a test."""
    import open_clip

    path = tmp_path_factory.mktemp("open_clip") / "tiny-prompts-clip.json"
    path.write_text(json.dumps(TINY))
    open_clip.add_model_config(path)
    return {"kind": "open_clip", "architecture": path.stem, "weights": {"kind": "seed"}}


def study_of(tower, **changes):
    return {
        "name": "x",
        "classes": ["mel", "nv"],
        "class_names": {"mel": "melanoma"},
        "sites": {"train": ["north"]},
        "model": {"kind": "clip", "encoder": "test_convnext", "text": tower},
        "rounds": 1,
    } | changes


def write(path: Path, settings) -> Path:
    path.write_text(yaml.safe_dump(settings))
    return path


def test_the_command_writes_a_study_that_needs_no_tower(tower, tmp_path, capsys):
    source = write(tmp_path / "x.yaml", study_of(tower))
    assert main(["embed-prompts", str(source), "--out", str(tmp_path / "new.yaml")]) == 0
    study = load_settings(tmp_path / "new.yaml", StudyConfig, "study")
    study.require_vectors()
    assert isinstance(study.model, ClipConfig)
    assert study.model.vectors is not None
    assert prompts.unpack(study.model.vectors.float32, 2).shape == (2, 16)
    # Seven kilobytes would do for the paper's seven classes at 256 numbers; here 2 x 16 x 4 bytes as base64.
    assert len(study.model.vectors.float32) == 172
    said = capsys.readouterr().out
    assert "2 classes x 16 numbers; closest: " in said
    assert "RANDOM" in said


def test_a_study_that_was_asked_before_is_asked_again(tower, tmp_path):
    source = write(tmp_path / "x.yaml", study_of(tower))
    embed_file(source, tmp_path / "one.yaml", None)
    changed = yaml.safe_load((tmp_path / "one.yaml").read_text()) | {"class_names": {"mel": "a mole"}}
    write(tmp_path / "one.yaml", changed)
    with pytest.raises(ConfigError, match="other prompts"):
        load_settings(tmp_path / "one.yaml", StudyConfig, "study")
    embed_file(tmp_path / "one.yaml", tmp_path / "two.yaml", None)
    load_settings(tmp_path / "two.yaml", StudyConfig, "study").require_vectors()


def test_a_grid_is_asked_variant_by_variant(tower, tmp_path):
    base = study_of(tower, model={"encoder": "test_convnext"})
    del base["name"]
    clip = study_of(tower)["model"]
    variants = {"plain": {}, "clip": {"model": clip}, "two": {"model": clip, "classes": ["nv", "mel"]}}
    source = write(tmp_path / "grid.yaml", {"name": "grid", "study": base, "variants": variants})
    done = embed_file(source, tmp_path / "new.yaml", None)
    assert [embedded.place for embedded in done] == ["variant clip", "variant two"]
    assert np.allclose(done[0].vectors_CW[::-1], done[1].vectors_CW, atol=1e-6)
    grid = load_settings(tmp_path / "new.yaml", Grid, "grid")
    for study in studies(grid, "new.yaml").values():
        study.require_vectors()


def test_a_study_without_a_text_tower_has_nothing_to_ask(tmp_path):
    source = write(tmp_path / "x.yaml", study_of(None, model={"encoder": "test_convnext"}))
    with pytest.raises(ConfigError, match="no text tower to ask"):
        embed_file(source, tmp_path / "new.yaml", None)
    assert not (tmp_path / "new.yaml").exists()


def test_all_mistakes_of_the_study_are_reported(tower, tmp_path):
    source = write(tmp_path / "x.yaml", study_of(tower | {"templates": ["a mole"]}, rounds=-1))
    with pytest.raises(ConfigError) as caught:
        embed_file(source, tmp_path / "new.yaml", None)
    assert "without {class}" in str(caught.value)
    assert "rounds: " in str(caught.value)


def test_a_key_that_stands_twice_is_an_error_with_its_lines(tmp_path):
    (tmp_path / "x.yaml").write_text("name: x\nmodel: {kind: clip}\nmodel: {kind: classifier}\n")
    with pytest.raises(
        ConfigError, match=r"model stands twice, in line 2 and line 3; .*; give a study's file"
    ):
        embed_file(tmp_path / "x.yaml", tmp_path / "y.yaml", None)

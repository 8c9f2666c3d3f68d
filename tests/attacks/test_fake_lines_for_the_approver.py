"""A server that draws lines of its own on the screen of the person who approves a study."""

import json

import pytest

from common import wire
from common.config import StudyConfig
from common.errors import WireError
from common.wire import codec

STUDY = {
    "name": "skin",
    "classes": ["benign", "melanoma"],
    "class_names": {"benign": "a benign one"},
    "sites": {"train": ["north"], "evaluate": ["south"]},
    "model": {
        "kind": "clip",
        "encoder": "convnext_tiny",
        "text": {"kind": "open_clip", "architecture": "RN50", "weights": {"kind": "hub", "tag": "openai"}},
    },
    "heads": {"layer": "stages.3", "local": [{"kind": "knn", "name": "near"}]},
    "rounds": 500,
}
FAKE = [
    "convnext_tiny, classes benign\n  3 rounds of 1 epoch(s), fedavg\n  trains: south\x1b[8m",
    "convnext_tiny\r  3 rounds",
    "convnext_tiny\x1b[8m",
    "convnext_tiny\x9b8m",
    "convnext_tiny\u2028  3 rounds",
    "convnext_tiny\u202e",
    "x" * 5000,
    "convnext_tiny" + " " * 60 + "3 rounds of 1 epoch(s)",
]
PLACES = [
    "name",
    "classes.0",
    "class_names.benign",
    "sites.train.0",
    "sites.evaluate.0",
    "model.encoder",
    "model.text.architecture",
    "model.text.weights.tag",
    "model.text.templates.0",
    "heads.layer",
    "heads.local.0.name",
]
PROSE = {"class_names.benign", "model.text.templates.0"}
"""Places that hold a sentence, in which spaces are as they should be."""


def with_text(place: str, text: str) -> bytes:
    """An enrolment plan as bytes, with `text` at one place of its study."""
    study = StudyConfig.model_validate(STUDY)
    plan = wire.EnrolPlan(plan_id="e", site="north", study=study, want_weights=False)
    header, arrays = codec.split(codec.to_bytes(plan))
    fields = json.loads(header)
    *way, last = (int(part) if part.isdigit() else part for part in place.split("."))
    inner = fields["study"]
    for part in way:
        inner = inner[part]
    inner[last] = f"{{}} {text}" if place in PROSE else text
    return codec.join(json.dumps(fields), arrays)


# A sentence of blanks is a sentence.
@pytest.mark.parametrize(
    ("place", "text"),
    [
        (place, text)
        for place in PLACES
        for text in FAKE
        if not (place in PROSE and text.isprintable() and len(text) < 200)
    ],
)
def test_a_plan_with_more_than_a_plain_word_is_refused_before_anyone_sees_it(place, text):
    with pytest.raises(WireError) as refused:
        codec.from_bytes(with_text(place, text))
    assert str(refused.value).isprintable()
    assert len(str(refused.value)) < 2000


def test_the_same_plan_with_plain_words_is_read():
    plan = codec.from_bytes(with_text("model.encoder", "convnext_tiny"))
    assert isinstance(plan, wire.EnrolPlan)
    assert plan.study.model.encoder == "convnext_tiny"


@pytest.mark.parametrize(
    "encoder",
    [
        "convnext_t",
        "vit_tiny_patch16_224.augreg_in21k",
        "hf-hub:timm/eva02_base.clip",
        "ViT-B-32",
        "hf_hub:a/b@main",
    ],
)
def test_names_that_libraries_use_are_plain_words(encoder):
    plan = codec.from_bytes(with_text("model.encoder", encoder))
    assert plan.study.model.encoder == encoder

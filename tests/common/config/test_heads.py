"""What a study may say of heads, and what it is told when it says something else."""

import pytest

from common.config import StudyConfig
from common.errors import ConfigError
from common.settings import parse_settings

STUDY = """
name: demo
classes: [benign, malignant]
sites: {train: [north]}
model: {encoder: convnext_t}
rounds: 1
heads:
"""


def read(text: str) -> StudyConfig:
    return parse_settings(STUDY + text, StudyConfig, "study", "study.yaml")


def test_one_value_or_several_to_choose_from():
    study = read("  local: [{kind: svm_rbf, c: 10}, {kind: knn, neighbours: [5, 15], name: near}]")
    assert study.heads is not None
    assert study.heads.local[0].c == (10,)
    assert study.heads.local[1].neighbours == (5, 15)
    assert study.heads.titles == ("local.svm_rbf", "local.near")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (
            "  local: [{kind: perceptron}]",
            "heads.local.0.kind: found 'perceptron', expected one of",
        ),
        (
            "  federated: [{kind: knn}]",
            "heads.federated.0.kind: found 'knn', expected one of",
        ),
        (
            "  federated: [{kind: lda}, {kind: lda}]",
            "federated.lda is listed twice; give each a `name` of its own",
        ),
        ("  every: 2", "names no head; list some under local or federated"),
        ("  federated: [{kind: ridge, alpa: 2}]", "no such setting; did you mean heads.federated.alpha"),
    ],
)
def test_a_mistake_is_named(text, told):
    with pytest.raises(ConfigError) as caught:
        read(text)
    assert told in str(caught.value)

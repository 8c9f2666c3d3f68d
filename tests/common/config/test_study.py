"""The study: its defaults, its rules, and every study that is shipped."""

import json

import numpy as np
import pytest
from pydantic import ValidationError

from common.config import (
    ClassifierConfig,
    ClipConfig,
    LocalConfig,
    SitesConfig,
    StudyConfig,
    aggregation,
    prompts,
    training,
)
from common.errors import ConfigError
from common.settings import load_settings, parse_settings
from tests.places import CONFIGS

SHIPPED = sorted((CONFIGS / "study").rglob("*.yaml"))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_study_loads(path):
    study = load_settings(path, StudyConfig, "study")
    assert StudyConfig.model_validate_json(study.model_dump_json()) == study


def study(**changes) -> StudyConfig:
    settings = {
        "name": "demo",
        "classes": ["benign", "malignant"],
        "sites": {"train": ["north", "south"], "evaluate": ["east"]},
        "model": {"encoder": "convnext_t"},
        "rounds": 3,
    }
    return StudyConfig.model_validate(settings | changes)


def test_a_study_cannot_be_changed():
    with pytest.raises(ValidationError, match="frozen"):
        study().rounds = 4


def test_a_class_that_may_be_untrained_is_one_of_the_study():
    assert study(untrained_classes=["benign"]).untrained_classes == ("benign",)
    with pytest.raises(
        ValidationError, match="untrained_classes names benin, expected some of benign, malignant"
    ):
        study(untrained_classes=["benin"])


def test_the_fingerprint_is_the_same_for_the_same_study():
    assert study().fingerprint == study(seed=0).fingerprint
    assert study().fingerprint == StudyConfig.model_validate_json(study().model_dump_json()).fingerprint


@pytest.mark.parametrize(
    "changes",
    [{"seed": 1}, {"rounds": 4}, {"classes": ["malignant", "benign"]}, {"local": {"batch_size": 33}}],
)
def test_the_fingerprint_differs_for_any_other_study(changes):
    assert study(**changes).fingerprint != study().fingerprint


def test_the_quorum_is_all_training_sites_unless_it_is_given():
    assert SitesConfig(train=("a", "b", "c"), evaluate=("d",)).quorum == 3
    assert SitesConfig(train=("a", "b", "c"), required=2).quorum == 2
    assert SitesConfig(train=("b", "a"), evaluate=("c",)).all == ("b", "a", "c")


@pytest.mark.parametrize(
    ("kind", "settings", "sentence"),
    [
        (SitesConfig, {"train": ["a", "b"], "required": 3}, "required=3 can never be met by 2 training"),
        (SitesConfig, {"train": ["a"], "evaluate": ["a"]}, "a is named twice"),
        (SitesConfig, {"train": []}, "at least 1 item"),
        (SitesConfig, {"train": ["../etc"]}, "should match pattern"),
        (LocalConfig, {"epochs": 1, "steps": 2}, "epochs=1 and steps=2 contradict each other"),
        (LocalConfig, {"batch_size": 0}, "greater than or equal to 1"),
        (ClassifierConfig, {"encoder": ""}, "should match pattern"),
        (ClassifierConfig, {"encoder": "x", "trainable": {"last_blocks": 0}}, "greater than or equal to 1"),
        (
            ClassifierConfig,
            {"encoder": "x", "weights": {"kind": "file", "name": "w", "sha256": "1"}},
            "pattern",
        ),
    ],
)
def test_settings_that_contradict_each_other_are_refused(kind, settings, sentence):
    with pytest.raises(ValidationError, match=sentence):
        kind.model_validate(settings)


def test_two_classes_of_one_name_are_refused():
    with pytest.raises(ValidationError, match="nv is named twice; every class needs a name of its own"):
        study(classes=["nv", "mel", "nv"])


def of_five(**changes) -> StudyConfig:
    return study(sites={"train": list("abcde"), "required": changes.pop("required", 5)}, **changes)


@pytest.mark.parametrize(
    ("rule", "required", "sentence"),
    [
        ({"kind": "trimmed_mean", "trim": 0.2}, 4, r"drops 0 of 4 site\(s\) at each end; it takes at least 1/4"),
        ({"kind": "trimmed_mean", "trim": 0.49}, 2, r"trim=0.49 drops 0 of 2 site\(s\) at each end\. A round"),
        ({"kind": "trimmed_mean", "trim": 0.5}, 5, "less than 0.5"),
        ({"kind": "trimmed_mean", "trim": 0}, 5, "greater than 0"),
        ({"kind": "median"}, 2, "kind=median needs 3 sites to outvote one, found 2"),
        ({"kind": "geometric_median"}, 2, "kind=geometric_median needs 3 sites to outvote one, found 2"),
        ({"kind": "krum"}, 4, r"num_byzantine=1 needs 2 \* 1 \+ 3 = 5 sites, found 4"),
        ({"kind": "krum", "num_byzantine": 2}, 5, r"num_byzantine=2 needs 2 \* 2 \+ 3 = 7 sites, found 5"),
        ({"kind": "multi_krum", "num_selected": 1}, 4, r"needs 2 \* 1 \+ 3 = 5 sites, found 4"),
        ({"kind": "multi_krum", "num_selected": 5}, 5, r"num_selected=5 of 5 takes in one of 1 bad .* 5 - 1 = 4"),
        ({"kind": "mean", "norm_clip": 0}, 5, "greater than 0"),
        ({"kind": "geometric_median", "iterations": 10**9}, 5, "less than or equal to 10000"),
    ],
)  # fmt: skip
def test_a_rule_that_cannot_work_on_the_smallest_round_is_refused(rule, required, sentence):
    with pytest.raises(ValidationError, match=sentence):
        of_five(aggregation=rule, required=required)


@pytest.mark.parametrize(
    "rule",
    [
        {"kind": "trimmed_mean", "trim": 0.2, "norm_clip": 2.5},
        {"kind": "median"},
        {"kind": "krum"},
        {"kind": "multi_krum", "num_selected": 4},
        {"kind": "geometric_median"},
    ],
)
def test_five_sites_can_have_any_rule_and_it_is_part_of_the_study(rule):
    robust = of_five(aggregation=rule)
    assert robust.fingerprint != of_five().fingerprint
    assert StudyConfig.model_validate_json(robust.model_dump_json()) == robust


def test_a_study_takes_the_weighted_mean_of_usual_norms_and_sets_nobody_aside_unless_it_says_so():
    assert study().aggregation == aggregation.Mean(norm_clip=None)
    assert study().admission.model_dump() == {
        "max_norm": None, "max_norm_ratio": 100.0, "set_aside_after": None,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("rule", "num_sites", "share"),
    [
        ({"kind": "mean"}, 2, 1.0),
        ({"kind": "mean"}, 3, 0.5),
        ({"kind": "mean", "max_share": 0.4}, 2, 0.4),
        ({"kind": "mean", "max_share": 1}, 5, 1.0),
        ({"kind": "geometric_median"}, 5, 1 / 3),
        ({"kind": "geometric_median", "max_share": 0.45}, 5, 0.45),
        ({"kind": "median"}, 5, 1.0),
    ],
)
def test_a_sites_share_of_the_weight_is_limited_where_three_train(rule, num_sites, share):
    names = [f"site{number}" for number in range(num_sites)]
    assert study(sites={"train": names}, aggregation=rule).largest_share == share


def test_sums_for_heads_are_limited_whatever_the_rule_for_updates_is():
    assert of_five(aggregation={"kind": "median"}).largest_share_of_sums == 0.5
    assert of_five(aggregation={"kind": "mean", "max_share": 1}).largest_share_of_sums == 1.0


def test_a_site_trains_one_epoch_unless_epochs_or_steps_are_given():
    assert LocalConfig().num_epochs == 1
    assert LocalConfig(epochs=5).num_epochs == 5
    assert LocalConfig(steps=7).num_epochs is None


def test_optimizers_start_from_the_settings_of_the_papers_script():
    assert training.Sgd().model_dump() == {"kind": "sgd", "lr": 0.01, "momentum": 0.9, "weight_decay": 5e-4}
    adam = {"kind": "adam", "lr": 1e-3, "betas": (0.9, 0.98), "weight_decay": 0.02}
    assert training.Adam().model_dump() == adam
    assert training.AdamW().model_dump() == adam | {"kind": "adamw", "weight_decay": 0.01}
    assert training.Adadelta().model_dump() == {"kind": "adadelta", "lr": 1e-3, "weight_decay": 5e-4}


def test_a_study_names_no_path_of_anybody():
    # What crosses to the sites must not grow a field that only makes sense on one machine.
    text = json.dumps(StudyConfig.model_json_schema())
    assert not any(word in text for word in ('"path"', '"folder"', '"directory"'))


# --- kinds of models -----------------------------------------------------------------------------


def test_a_model_without_a_kind_is_a_classifier(make_study):
    study = make_study(model={"encoder": "convnext_t"})
    assert study.model == ClassifierConfig(encoder="convnext_t")
    assert make_study(model={"kind": "classifier", "encoder": "convnext_t"}) == study


def test_a_clip_study_survives_the_wire(make_study):
    study = make_study(model={"kind": "clip", "encoder": "convnext_t", "text": {"kind": "random"}})
    assert isinstance(study.model, ClipConfig)
    assert StudyConfig.model_validate_json(study.model_dump_json()) == study


MINILM = {"kind": "hugging_face", "weights": {"kind": "file", "name": "minilm", "sha256": "0" * 64}}


def clip_study(make_study, text=MINILM, local=None, class_names=None, **model):
    model = {"kind": "clip", "encoder": "convnext_t", "text": text} | model
    return make_study(model=model, local=local or {}, class_names=class_names or {})


def test_prompts_are_the_templates_with_the_full_names(make_study):
    text = MINILM | {"templates": ["a picture of a {class}", "{class}"]}
    study = clip_study(make_study, text=text, class_names={"red": "haemangioma"})
    assert study.class_prompts[1:] == (
        ("a picture of a pale", "pale"),
        ("a picture of a haemangioma", "haemangioma"),
    )


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"text": MINILM | {"templates": ["a mole"]}}, r"'a mole' without \{class\}"),
        ({"text": MINILM | {"templates": []}}, "at least 1 item"),
        ({"text": MINILM | {"weights": {"kind": "hub"}}}, "needs weights.tag"),
        ({"library": "open_clip", "weights": {"kind": "hub"}}, "open_clip has several"),
        ({"class_names": {"blue": "naevus"}}, "class_names has blue, expected classes of the study: dark"),
        ({"loss": "contrastive", "local": {"batch_size": 1}}, "compares the images of a batch"),
        ({"loss": "contrastive", "local": {"label_smoothing": 0.1}}, "label_smoothing=0.1 is for"),
        ({"tuning": {"kind": "lora"}, "trainable": "head"}, "both say what is trained"),
        ({"temperature": 0.001}, "greater than or equal to 0.01"),
        ({"vectors": {"asked": "0" * 64, "float32": ""}}, "another tower or other prompts"),
        ({"text": {"kind": "random"}, "vectors": {"asked": "0" * 64, "float32": ""}}, "remove vectors"),
    ],
)
def test_a_clip_study_that_cannot_be_meant_is_refused(make_study, changes, said):
    with pytest.raises(ValidationError, match=said):
        clip_study(make_study, **changes)


def test_vectors_hold_for_the_prompts_they_were_made_of_and_no_others(make_study):
    study = clip_study(make_study)
    assert study.lacks_vectors
    with pytest.raises(ConfigError, match="embed-prompts"):
        study.require_vectors()
    vectors = {"asked": study.asked, "float32": prompts.pack(np.eye(3, 4, dtype=np.float32))}
    clip_study(make_study, vectors=vectors).require_vectors()
    with pytest.raises(ValidationError, match="other prompts; run `consilium-site embed-prompts` again"):
        clip_study(make_study, text=MINILM | {"templates": ["a {class}"]}, vectors=vectors)


@pytest.mark.parametrize(
    ("packed", "said"),
    [
        ("nonsense!", "not base64"),
        (prompts.pack(np.ones((2, 2), np.float32)), "4 numbers, which are no 3 vectors"),
        (prompts.pack(np.full((3, 2), np.nan, np.float32)), "length nan, nan, nan, expected 1"),
        (prompts.pack(np.ones((3, 1), np.float32) * 2), "length 2, 2, 2, expected 1"),
    ],
)
def test_vectors_that_are_none_are_refused(make_study, packed, said):
    asked = clip_study(make_study).asked
    with pytest.raises(ValidationError, match=said):
        clip_study(make_study, vectors={"asked": asked, "float32": packed})


def test_mistakes_of_a_clip_are_named_as_they_were_written():
    text = """
    name: x
    classes: [a, b]
    sites: {train: [north]}
    rounds: 1
    model: {kind: clip, encoder: convnext_t, text: {kind: random, wdth: 3}, tuning: {kind: lora, rnk: 2}}
    """
    with pytest.raises(ConfigError) as caught:
        parse_settings(text, StudyConfig, "study", name="x.yaml")
    assert str(caught.value).splitlines()[1:] == [
        "  model.tuning.rnk: no such setting; did you mean model.tuning.rank?",
        "  model.text.wdth: no such setting; did you mean model.text.width?",
    ]
    with pytest.raises(
        ConfigError, match=r"model\.kind: found 'segmenter', expected one of classifier, clip"
    ):
        parse_settings(text.replace("kind: clip", "kind: segmenter"), StudyConfig, "study", name="x.yaml")

"""One site's trainer, asked in bytes: what it answers, and above all what it never says."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from client.config import CsvData, FoldersData, NoSplit, PolicyConfig, SiteConfig
from client.trainer import Trainer
from client.training import fit
from common import wire
from common.config import StudyConfig
from common.weights import digest
from common.wire import Sizes, codec

MakeSite = Callable[..., SiteConfig]
MakeStudy = Callable[..., StudyConfig]

PATIENT = "MUELLER_ANNA_1961"


@pytest.fixture(autouse=True)
def _log_to_caplog(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging.getLogger("consilium"), "propagate", True)
    logging.getLogger("consilium").setLevel(logging.INFO)


def enrol(study: StudyConfig, site: str = "north", plan_id: str = "e", **changes: Any) -> bytes:
    plan = wire.EnrolPlan(plan_id=plan_id, site=site, study=study, want_weights=True)
    return codec.to_bytes(plan.model_copy(update=changes))


def enrolled(trainer: Trainer, study: StudyConfig, site: str = "north") -> wire.Enrolment:
    answer = codec.from_bytes(trainer.answer(enrol(study, site)))
    assert isinstance(answer, wire.Enrolment), answer
    return answer


def round_plan(study: StudyConfig, weights: object, **changes: Any) -> bytes:
    plan = wire.RoundPlan(plan_id="r", site="north", study=study, round=1, train=True, weights=weights)
    return codec.to_bytes(plan.model_copy(update=changes))


def failure(data: bytes) -> wire.Failure:
    answer = codec.from_bytes(data)
    assert isinstance(answer, wire.Failure), answer
    return answer


# --- what it answers -------------------------------------------------------------------------


def test_an_enrolment_lists_the_tensors_the_counts_and_hashes(
    make_site: MakeSite, make_study: MakeStudy
) -> None:
    answer = enrolled(Trainer(make_site("north", per_class=10)), make_study())
    # 10 images of each of 3 classes, a fifth of them for testing
    assert (answer.train_counts, answer.test_counts) == ((7, 7, 7), (2, 2, 2))
    assert answer.validation_counts == (1, 1, 1)  # 0.15 of eight, to the nearest
    assert answer.weights.keys() == answer.layout.keys()
    assert {name: list(array.shape) for name, array in answer.weights.items()} == {
        name: list(spec.shape) for name, spec in answer.layout.items()
    }
    assert digest(answer.weights) == answer.weights_digest
    assert answer.device == "cpu"
    assert answer.preprocessing["image_size"] == 32


def test_an_enrolment_tells_sizes_that_enough_patients_share_and_the_mean_colour(
    make_site: MakeSite, make_study: MakeStudy, tmp_path: Path
) -> None:
    site = make_site("north", per_class=10)
    with Image.open(tmp_path / "north-images/red/0.png") as image:
        image.resize((90, 50)).save(tmp_path / "north-images/red/0.png")
    told = enrolled(Trainer(site), make_study()).images
    assert told is not None
    assert told.sizes == Sizes(width=(40, 90), height=(40, 50))
    # dark (70, 40, 30), pale (220, 190, 170), red (200, 60, 60), of 255, in equal parts, with some noise cut off
    assert np.allclose(told.mean, np.array([490, 290, 260]) / 3 / 255, atol=0.01)
    guarded = site.model_copy(update={"policy": PolicyConfig(min_cell=2)})
    told = enrolled(Trainer(guarded), make_study()).images
    assert told is not None
    assert told.sizes == Sizes(width=(40, 40), height=(40, 40))


def test_weights_are_sent_only_if_they_are_asked_for(make_site: MakeSite, make_study: MakeStudy) -> None:
    reply = Trainer(make_site("north")).answer(enrol(make_study(), want_weights=False))
    answer = codec.from_bytes(reply)
    assert isinstance(answer, wire.Enrolment)
    assert answer.weights == {}
    assert len(reply) < 100_000


def test_the_same_plan_twice_trains_once(
    make_site: MakeSite, make_study: MakeStudy, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    fitted = fit.fit
    monkeypatch.setattr(fit, "fit", lambda *a, **k: (calls.append(1), fitted(*a, **k))[1])
    study, trainer = make_study(), Trainer(make_site("north"))
    plan = round_plan(study, enrolled(trainer, study).weights)
    first, again = trainer.answer(plan), trainer.answer(plan)
    assert first == again
    assert len(calls) == 1
    trainer.answer(round_plan(study, wire.arrays_of(codec.from_bytes(plan)), plan_id="another"))
    assert len(calls) == 2


def test_a_plan_that_failed_may_be_tried_again(
    make_site: MakeSite, make_study: MakeStudy, monkeypatch: pytest.MonkeyPatch
) -> None:
    study, trainer = make_study(), Trainer(make_site("north"))
    plan = round_plan(study, enrolled(trainer, study).weights)
    with monkeypatch.context() as broken:
        broken.setattr(fit, "fit", lambda *_, **__: (_ for _ in ()).throw(OSError("disk")))
        assert failure(trainer.answer(plan)).error == "internal"
    assert isinstance(codec.from_bytes(trainer.answer(plan)), wire.RoundAnswer)


# --- what it refuses -------------------------------------------------------------------------


def test_a_plan_for_another_site_is_refused(make_site: MakeSite, make_study: MakeStudy) -> None:
    study = make_study()
    answer = failure(Trainer(make_site("north")).answer(enrol(study, "south")))
    assert answer.error == "policy"
    assert answer.plan_id == "e"


def test_an_answer_is_no_plan(make_site: MakeSite) -> None:
    sent = wire.Failure(plan_id="1", site="north", error="internal", case="1", advice="-")
    assert failure(Trainer(make_site("north")).answer(codec.to_bytes(sent))).error == "policy"


@pytest.mark.parametrize(
    "garbage",
    [
        b"",
        b"\0" * 8,
        b"GET / HTTP/1.1\r\n\r\n",
        b"\xff" * 4096,
        codec.join("{}", {}),
        codec.join("[" * 5000, {}),
    ],
    ids=["empty", "zeros", "http", "ones", "no schema", "deep"],
)
def test_bytes_that_are_no_plan_are_answered_with_a_failure(make_site: MakeSite, garbage: bytes) -> None:
    answer = failure(Trainer(make_site("north")).answer(garbage))
    assert (answer.error, answer.plan_id, answer.site) == ("message", "unknown", "north")


def test_a_message_of_another_version_is_named_as_such(make_site: MakeSite, make_study: MakeStudy) -> None:
    header, arrays = codec.split(enrol(make_study()))
    newer = json.dumps(json.loads(header) | {"schema": codec.SCHEMA + 1})
    assert failure(Trainer(make_site("north")).answer(codec.join(newer, arrays))).error == "message"


@pytest.mark.parametrize(
    "model",
    [
        {"encoder": "resnet9000"},
        {"encoder": "test_convnext", "trainable": {"last_blocks": 99}},
    ],
    ids=["unknown encoder", "too many blocks"],
)
def test_a_model_that_cannot_be_built_is_the_studys_mistake(
    make_site: MakeSite, make_study: MakeStudy, model: dict[str, Any]
) -> None:
    assert failure(Trainer(make_site("north")).answer(enrol(make_study(model=model)))).error == "study"


def test_weights_that_are_not_numbers_are_answered_not_crashed_on(
    make_site: MakeSite, make_study: MakeStudy
) -> None:
    study, trainer = make_study(), Trainer(make_site("north"))
    weights = enrolled(trainer, study).weights
    poisoned = {name: np.full_like(array, np.nan) for name, array in weights.items()}
    answer = codec.from_bytes(trainer.answer(round_plan(study, poisoned)))
    assert isinstance(answer, wire.Failure), answer
    assert answer.error == "weights"
    healthy = codec.from_bytes(trainer.answer(round_plan(study, weights, round=2, plan_id="next")))
    assert isinstance(healthy, wire.RoundAnswer)
    assert all(np.isfinite(array).all() for array in healthy.delta.values())


@pytest.mark.parametrize("change", ["missing", "shape"])
def test_weights_of_another_model_are_refused(
    make_site: MakeSite, make_study: MakeStudy, change: str
) -> None:
    study, trainer = make_study(), Trainer(make_site("north"))
    weights = dict(enrolled(trainer, study).weights)
    name = sorted(weights)[0]
    if change == "missing":
        del weights[name]
    else:
        weights[name] = weights[name][..., None]
    assert failure(trainer.answer(round_plan(study, weights))).error in ("weights", "message")


def test_a_site_without_images_of_one_class_takes_part_and_one_without_any_does_not(
    make_site: MakeSite, make_study: MakeStudy, tmp_path: Path
) -> None:
    site = make_site("north")
    for path in (tmp_path / "north-images" / "red").iterdir():
        path.unlink()
    assert enrolled(Trainer(site), make_study()).train_counts == (7, 7, 0)
    for label in ("dark", "pale"):
        for path in (tmp_path / "north-images" / label).iterdir():
            path.unlink()
    assert failure(Trainer(site).answer(enrol(make_study()))).error == "data"


@pytest.mark.parametrize("allows", [True, False])
def test_sums_over_patients_come_with_the_final_test_alone(
    allows: bool, make_site: MakeSite, make_study: MakeStudy, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("client.answers.intervals", "client.governance.policy.answers"):
        monkeypatch.setattr(f"{name}.least_patients", lambda _: 2)
    site = make_site("north")
    site = site.model_copy(update={"policy": site.policy.model_copy(update={"intervals": allows})})
    study, trainer = make_study(rounds=1), Trainer(site)
    weights = enrolled(trainer, study).weights
    trained = codec.from_bytes(trainer.answer(round_plan(study, weights)))
    assert isinstance(trained, wire.RoundAnswer)
    assert trained.replicates is None
    last: dict[str, Any] = {"plan_id": "t", "round": 2, "train": False, "score": ("validation", "test")}
    tested = codec.from_bytes(trainer.answer(round_plan(study, weights, **last)))
    assert isinstance(tested, wire.RoundAnswer), tested
    assert (tested.replicates is not None) is allows
    if tested.replicates is not None:
        assert (
            tested.replicates.num_patients == tested.scores["test"].num_images
        )  # no patient is known: images
        assert tested.replicates.num_columns == 3 * 3 + 1


def test_a_site_with_test_images_only_says_so_when_it_is_asked_to_train(
    make_site: MakeSite, make_study: MakeStudy
) -> None:
    study, trainer = make_study(), Trainer(make_site("north", test_only=True))
    answer = enrolled(trainer, study)
    assert answer.train_counts == (0, 0, 0)
    assert failure(trainer.answer(round_plan(study, answer.weights))).error == "data"


# --- what never leaves -----------------------------------------------------------------------


def _folders(root: Path, num_images: int = 4) -> Path:
    """Images in class folders; every folder and file above them is named like a patient."""
    draws = np.random.default_rng(1)
    for label in ("dark", "pale", "red"):
        (root / label / PATIENT).mkdir(parents=True)
        for number in range(num_images):
            pixels = draws.integers(0, 255, (40, 40, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / label / PATIENT / f"{PATIENT}-{number}.jpg")
    return root


def _csv(root: Path, lines: list[str]) -> CsvData:
    labels = root / f"{PATIENT}.csv"
    labels.write_text("\n".join(["file,label", *lines]) + "\n")
    return CsvData(labels=labels)


def _truncated(root: Path) -> CsvData | FoldersData:
    victim = next(_folders(root).rglob("*.jpg"))
    victim.write_bytes(victim.read_bytes()[:200])
    return FoldersData(root=root)


def _not_an_image(root: Path) -> CsvData | FoldersData:
    next(_folders(root).rglob("*.jpg")).write_text(f"letter about {PATIENT}")
    return FoldersData(root=root)


def _missing_file(root: Path) -> CsvData | FoldersData:
    _folders(root)
    return _csv(root, [f"{PATIENT}/gone.jpg,dark"])


def _unknown_label(root: Path) -> CsvData | FoldersData:
    path = next(_folders(root).rglob("*.jpg")).relative_to(root)
    return _csv(root, [f"{path},{PATIENT}"])


def _class_folder(root: Path) -> CsvData | FoldersData:
    (_folders(root) / "red").rename(root / PATIENT)
    return FoldersData(root=root)


def _no_column(root: Path) -> CsvData | FoldersData:
    _folders(root)
    labels = root / f"{PATIENT}.csv"
    labels.write_text(f"{PATIENT},other\n1,2\n")
    return CsvData(labels=labels)


def _not_text(root: Path) -> CsvData | FoldersData:
    _folders(root)
    labels = root / f"{PATIENT}.csv"
    labels.write_bytes(b"file,label\n\xff\xfe\x00")
    return CsvData(labels=labels)


def _no_folder(root: Path) -> CsvData | FoldersData:
    return FoldersData(root=root / "not mounted")


BROKEN: dict[str, Callable[[Path], CsvData | FoldersData]] = {
    "truncated image": _truncated,
    "not an image": _not_an_image,
    "missing file": _missing_file,
    "unknown label": _unknown_label,
    "unknown class folder": _class_folder,
    "no column": _no_column,
    "csv that is no text": _not_text,
    "no folder": _no_folder,
}

EXPECTED_FAILURE = {"kind", "plan_id", "site", "error", "case", "advice", "reason", "schema"}


def assert_nothing_of_the_patient_in(reply: bytes, tmp_path: Path) -> None:
    lowered = reply.lower()
    for secret in (PATIENT, "mueller", "anna", "1961", str(tmp_path), ".jpg", ".csv", "Traceback", "Error:"):
        assert secret.lower().encode() not in lowered, secret


@pytest.mark.parametrize("kind", BROKEN)
def test_of_a_data_set_named_like_a_patient_nothing_leaves_and_the_sites_log_tells_all(
    make_study: MakeStudy, tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    data = BROKEN[kind](tmp_path / f"Archive {PATIENT}")
    site = SiteConfig(
        name="north",
        data=data,
        split=NoSplit(all="train"),
        state_dir=tmp_path / PATIENT,
        device="cpu",
        threads=1,
    )
    reply = Trainer(site).answer(enrol(make_study()))
    assert_nothing_of_the_patient_in(reply, tmp_path)
    answer = failure(reply)
    assert answer.error == "data"
    assert set(json.loads(codec.split(reply)[0])) == EXPECTED_FAILURE
    assert PATIENT in caplog.text
    assert answer.case in caplog.text


@pytest.mark.parametrize("kind", ["no folder", "missing file", "wrong checksum", "no safetensors"])
def test_of_a_weights_folder_named_like_a_patient_nothing_leaves(
    make_site: MakeSite, make_study: MakeStudy, tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    folder = tmp_path / PATIENT
    sha256 = "0" * 64
    if kind != "no folder":
        folder.mkdir()
    if kind == "wrong checksum":
        (folder / "start.safetensors").write_bytes(b"x")
    if kind == "no safetensors":
        (folder / "start.safetensors").write_bytes(b"")
        sha256 = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"  # of no bytes
    start = {"kind": "file", "name": "start.safetensors", "sha256": sha256}
    study = make_study(model={"encoder": "test_convnext", "image_size": 32, "weights": start})
    reply = Trainer(make_site("north", weights_dir=folder)).answer(enrol(study))
    assert_nothing_of_the_patient_in(reply, tmp_path)
    assert failure(reply).error == "data"
    assert PATIENT in caplog.text


def test_a_disk_that_cannot_be_written_is_reported_without_its_name(
    make_site: MakeSite, make_study: MakeStudy, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / PATIENT).write_text("a file where a folder should be")
    model = {"encoder": "test_efficientnet", "image_size": 32, "batch_norm": "local"}
    study = make_study(model=model)
    site = make_site("north").model_copy(update={"state_dir": tmp_path / PATIENT})
    reply = Trainer(site).answer(enrol(study))
    assert_nothing_of_the_patient_in(reply, tmp_path)
    assert failure(reply).error == "storage"
    assert PATIENT in caplog.text


def test_what_an_unforeseen_exception_says_stays_at_the_site(
    make_site: MakeSite,
    make_study: MakeStudy,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise KeyError(f"{tmp_path}/{PATIENT}.jpg")

    monkeypatch.setattr(fit, "fit", fails)
    study, trainer = make_study(), Trainer(make_site("north"))
    weights = enrolled(trainer, study).weights
    reply = trainer.answer(round_plan(study, weights))
    assert_nothing_of_the_patient_in(reply, tmp_path)
    assert failure(reply).error == "internal"
    assert PATIENT in caplog.text


def test_a_healthy_site_named_like_a_patient_sends_nothing_of_it_either(
    make_study: MakeStudy, tmp_path: Path
) -> None:
    data = FoldersData(root=_folders(tmp_path / PATIENT, num_images=6))
    site = SiteConfig(name="north", data=data, state_dir=tmp_path / "state", device="cpu", threads=1)
    study, trainer = make_study(), Trainer(site)
    reply = trainer.answer(enrol(study))
    answer = codec.from_bytes(reply)
    assert isinstance(answer, wire.Enrolment)
    for data_out in (reply, trainer.answer(round_plan(study, answer.weights))):
        assert_nothing_of_the_patient_in(codec.split(data_out)[0].encode(), tmp_path)


# --- a site of two devices -------------------------------------------------------------------


def test_a_device_whose_process_is_killed_costs_the_site_one_answer(
    make_site: MakeSite, make_study: MakeStudy, caplog: pytest.LogCaptureFixture
) -> None:
    study = make_study(model={"encoder": "test_vit", "image_size": 32})
    trainer = Trainer(make_site("north").model_copy(update={"device": ("cpu", "cpu")}))
    enrolment = enrolled(trainer, study)
    assert enrolment.device == "2 x cpu"
    assert isinstance(
        codec.from_bytes(trainer.answer(round_plan(study, enrolment.weights))), wire.RoundAnswer
    )
    assert trainer._setup is not None
    assert trainer._setup.further is not None
    trainer._setup.further._processes[0]._process.kill()
    failed = failure(trainer.answer(round_plan(study, enrolment.weights, plan_id="again")))
    assert failed.error == "device"
    assert "next round starts its process again" in failed.advice
    assert "was ended by signal 9" in caplog.text
    trainer._setup.further.close()

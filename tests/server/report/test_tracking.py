"""Figures at TensorBoard and MLflow are those of rounds.jsonl, once each, however often a study is resumed."""

import json
from dataclasses import replace

import pytest

from common.errors import ConfigError
from server.config import FederationConfig, ServerConfig
from server.report import tracking
from server.report.tracking import following, values
from server.report.write import append_round
from server.storage import history


@pytest.fixture
def config(tmp_path):
    def make(*trackers):
        return ServerConfig(
            study=tmp_path / "study.yaml", run_dir=tmp_path / "run", node_ids={"north": 1}, tracking=trackers
        )

    return make


def conducted(config, study, random_state, rounds, after=0):
    """A server that conducts these rounds, having started from the checkpoint after round `after`."""
    with following(config, study, after) as track:
        for number in rounds:
            append_round(config.run_dir, random_state(number), study)
            track()


def test_every_finite_figure_of_a_line_is_a_value(tmp_path, random_state, study):
    append_round(tmp_path, random_state(2), study)
    (record,) = history.read_rounds(tmp_path)
    found = {(one.tag, one.step): one.value for one in values(record)}
    assert found["round/seconds", 2] == 4.25
    assert found["train/north/loss", 2] == 0.75  # 1.5 / 2
    assert found["validation/pooled/accuracy", 1] == record.validation.pooled.figures.accuracy
    assert ("train/unseen/loss", 2) not in found
    nothing = replace(record, seconds=float("nan"))
    assert "round/seconds" not in {one.tag for one in values(nothing)}


def scalars(folder):
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    loaded = reader.EventAccumulator(str(folder)).Reload()
    return {
        tag: {event.step: event.value for event in loaded.Scalars(tag)} for tag in loaded.Tags()["scalars"]
    }


def on_record(run_dir):
    lines = [json.loads(line) for line in (run_dir / "rounds.jsonl").read_text().splitlines()]
    return {
        line["validation"]["model_after_round"]: line["validation"]["pooled"]["accuracy"] for line in lines
    }


@pytest.mark.filterwarnings("ignore")  # of the library's
def test_tensorboard_has_the_figures_of_the_file_once_after_a_resumption(
    config, tmp_path, random_state, study
):
    pytest.importorskip("tensorboard")
    here = config({"kind": "tensorboard", "dir": tmp_path / "boards"})
    conducted(here, study, random_state, (1, 2, 3))
    (tmp_path / "boards/demo/other.txt").write_text("the operator's own")
    conducted(here, study, random_state, (2, 3, 4), after=1)
    found = scalars(tmp_path / "boards/demo")["validation/pooled/accuracy"]
    assert found == pytest.approx(on_record(here.run_dir))
    assert len(list((tmp_path / "boards/demo").glob("events.*"))) == 1
    assert (tmp_path / "boards/demo/other.txt").exists()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the library's
def test_mlflow_has_one_run_that_a_resumed_study_goes_on_in(config, tmp_path, random_state, study):
    mlflow = pytest.importorskip("mlflow")
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    here = config({"kind": "mlflow", "uri": uri})
    conducted(here, study, random_state, (1, 2, 3))
    conducted(here, study, random_state, (3, 4), after=2)
    client = mlflow.MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("consilium")
    (run,) = client.search_runs([experiment.experiment_id])
    history_ = client.get_metric_history(run.info.run_id, "validation/pooled/accuracy")
    assert [one.step for one in history_] == [0, 1, 2, 3]
    assert {one.step: one.value for one in history_} == pytest.approx(on_record(here.run_dir))
    assert run.info.status == "FINISHED"
    assert run.data.params["fingerprint"] == study.fingerprint


def test_a_tracker_that_fails_is_left_out_and_the_study_goes_on(
    config, tmp_path, random_state, study, monkeypatch, caplog
):
    class Broken:
        def add(self, record):
            raise OSError("no space left")

        def end(self, *, finished):
            raise AssertionError("it was left out")

    monkeypatch.setattr(tracking, "_started", lambda *_: Broken())
    conducted(config({"kind": "tensorboard", "dir": tmp_path}), study, random_state, (1, 2))
    assert len(history.read_rounds(tmp_path / "run")) == 2


def test_a_library_that_is_missing_is_named_before_a_site_is_asked(config, tmp_path, monkeypatch):
    monkeypatch.setattr(tracking, "find_spec", lambda _: None)
    tracking.require_libraries(config())
    with pytest.raises(ConfigError, match="needs the package tensorboard, which is not installed"):
        tracking.require_libraries(config({"kind": "tensorboard", "dir": tmp_path}))


@pytest.mark.parametrize(
    ("trackers", "reason"),
    [
        ([{"kind": "tensorboard", "dir": "boards"}], "expected an absolute path"),
        ([{"kind": "mlflow", "uri": "mlflow.example.org"}], "with its scheme"),
        ([{"kind": "mlflow", "uri": "https://me:secret@mlflow.example.org"}], "found a user in the address"),
        (
            [{"kind": "tensorboard", "dir": "/a"}, {"kind": "tensorboard", "dir": "/b"}],
            "two entries of one kind",
        ),
    ],
)
def test_settings_that_cannot_work_are_named(trackers, reason):
    about = {"name": "x", "server": {"hosts": ["example.org"]}, "sites": {"north": {}}, "tracking": trackers}
    with pytest.raises(ValueError, match=reason):
        FederationConfig.model_validate(about)

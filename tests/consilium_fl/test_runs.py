"""A run's folder as Python records."""

import json
import math
import sys
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

from common.errors import ConfigError
from consilium_fl import Records, RoundRecord, Run, ScoreRecord


def test_a_run_says_how_it_ended_and_where_its_files_are(run_dir: Path) -> None:
    run = Run.open(str(run_dir))
    assert run.finished
    assert run.status == "finished"
    assert run.reason == "1 rounds"
    assert run.synthetic
    assert run.study.name == "tiny"
    assert run.weights.is_file()
    assert run.report.is_file()
    assert "SYNTHETIC" in run.describe()
    assert str(run.report) in run.describe()


def test_a_failed_run_says_why(run_dir: Path) -> None:
    status = json.loads((run_dir / "status.json").read_text())
    (run_dir / "status.json").write_text(json.dumps({**status, "status": "failed", "reason": "no quorum"}))
    run = Run.open(run_dir)
    assert not run.finished
    assert run.describe() == f"The study did NOT finish: no quorum\nLogs: {run_dir}"


def test_an_incomplete_run_is_neither_finished_nor_without_files(run_dir: Path) -> None:
    status = json.loads((run_dir / "status.json").read_text())
    changes = {
        "status": "finished, incomplete",
        "reason": "1 rounds; no south",
        "absent": {"south": "no key"},
    }
    (run_dir / "status.json").write_text(json.dumps(status | changes))
    run = Run.open(run_dir)
    assert (run.finished, run.incomplete, run.absent) == (False, True, {"south": "no key"})
    assert run.describe().splitlines()[0] == "The study finished, but it is INCOMPLETE: 1 rounds; no south"
    assert str(run.weights) in run.describe()


def test_sites_that_took_no_part_are_named_whatever_the_end(run_dir: Path) -> None:
    status = json.loads((run_dir / "status.json").read_text()) | {"absent": {"west": "no key"}}
    (run_dir / "status.json").write_text(json.dumps(status))
    assert "west took no part: no key" in Run.open(run_dir).describe().splitlines()
    (run_dir / "status.json").write_text(json.dumps(status | {"status": "failed", "reason": "no quorum"}))
    assert "west took no part: no key" in Run.open(run_dir).describe().splitlines()


@pytest.mark.parametrize("kind", ["no folder", "an empty folder"])
def test_what_is_no_run_is_refused(tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "gone" if kind == "no folder" else tmp_path
    with pytest.raises(ConfigError, match=r"not a folder|study\.yaml cannot be read"):
        Run.open(folder)


def test_rounds_have_a_record_per_site(run_dir: Path) -> None:
    records = Run.open(run_dir).rounds()
    assert [(r.round, r.closing, r.site, r.outcome) for r in records] == [
        (1, False, "north", "ok"),
        (2, True, "north", "ok"), (2, True, "south", "ok"),
    ]  # fmt: skip
    north, _, south = records
    assert (
        north.num_examples == 21
    )  # 3 classes of 10 images: two for testing, one of the others for validation
    assert north.num_steps == 3  # batches of 8
    assert north.train_loss > 0
    assert north.attempts == 1
    assert north.mib_up > 0
    assert south.num_examples == 0
    assert math.isnan(south.train_loss)


def test_scores_have_a_record_per_site_and_the_pooled_one_last(run_dir: Path) -> None:
    records = Run.open(run_dir).scores()
    assert [(r.after_round, r.side, r.scope, r.site, r.num_images) for r in records] == [
        (0, "validation", "site", "north", 3), (0, "validation", "pooled", "", 3),
        (1, "validation", "site", "north", 3), (1, "validation", "pooled", "", 3),
        (1, "test", "site", "north", 6), (1, "test", "site", "south", 12),
        (1, "test", "training sites", "", 6), (1, "test", "pooled", "", 18),
    ]  # fmt: skip
    north, south, _, pooled = records[4:]
    assert pooled.accuracy == pytest.approx((6 * north.accuracy + 12 * south.accuracy) / 18)
    assert pooled.accuracy_low <= pooled.accuracy <= pooled.accuracy_high


def test_classes_have_a_record_each(run_dir: Path) -> None:
    run = Run.open(run_dir)
    records = [r for r in run.class_scores() if r.side == "test" and r.scope == "pooled"]
    assert [(r.class_name, r.num_images) for r in records] == [("dark", 6), ("pale", 6), ("red", 6)]
    # The balanced accuracy is the mean recall.
    assert np.mean([r.recall for r in records]) == pytest.approx(run.scores()[-1].balanced_accuracy)


def test_heads_have_a_record_per_site(run_dir: Path) -> None:
    records = Run.open(run_dir).head_scores()
    assert {(r.site, r.head) for r in records} >= {
        ("north", "softmax"), ("north", "federated.lda"), ("north", "local.naive_bayes"),
        ("south", "softmax"), ("south", "federated.lda"),
    }  # fmt: skip
    assert {r.after_round for r in records} == {1}
    (softmax,) = (r for r in records if (r.site, r.head) == ("south", "softmax"))
    assert softmax.num_images == 12
    assert math.isnan(softmax.gain)  # nothing to compare it with


def test_a_run_that_has_just_begun_has_no_records(run_dir: Path) -> None:
    for name in ("rounds.jsonl", "heads.json", "status.json"):
        (run_dir / name).unlink()
    run = Run.open(run_dir)
    assert run.rounds() == run.scores() == run.class_scores() == run.head_scores() == ()
    assert run.status == "unknown"
    assert not run.finished


def test_a_report_is_written_again(run_dir: Path) -> None:
    run = Run.open(run_dir)
    first = run.report.read_text()
    run.report.unlink()
    assert run.write_report() == run.report
    assert "Synthetic images" in first
    assert run.report.read_text().startswith(first[:200])


def test_records_become_a_dataframe(run_dir: Path) -> None:
    run = Run.open(run_dir)
    rounds, scores = run.rounds().to_dataframe(), run.scores().to_dataframe()
    assert len(rounds) == 3
    assert rounds.loc[rounds.site == "north", "num_examples"].tolist() == [21, 0]
    assert list(scores.columns) == [field.name for field in fields(ScoreRecord)]
    assert len(scores) == 8
    assert scores.accuracy.iloc[-1] == run.scores()[-1].accuracy
    assert len(Records[RoundRecord]().to_dataframe()) == 0


def test_without_pandas_the_error_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(
        ModuleNotFoundError, match=r"to_dataframe needs the package pandas.*extra `dataframe`"
    ):
        Records[RoundRecord]().to_dataframe()

"""The demo as it is shipped: every hospital gains by it."""

from pathlib import Path

import pytest

from client.cli.main import main as site
from server.cli.main import main as server
from server.storage import history
from tests.places import ROOT


@pytest.mark.slow  # a whole study, 20 s on one core
def test_every_site_of_the_demo_gains_and_none_ends_worse_than_after_round_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("common.log.start", lambda *_: None)
    sites, study = str(tmp_path / "sites"), str(ROOT / "configs/study/demo.yaml")
    assert site(["simulate", "--out", sites, "--threads", "1"]) == 0
    runs = ["--runs", str(tmp_path / "runs"), "--engine", "inline"]
    assert server(["simulate", study, "--sites", sites, "--adopt", *runs]) == 0
    curves: dict[str, dict[int, float]] = {}
    losses: dict[str, dict[int, float]] = {}
    for record in history.read_rounds(tmp_path / "runs" / "demo"):
        assert record.validation is not None
        for name, scored in record.validation.sites.items():
            value = scored.figures.balanced_accuracy
            assert value is not None
            curves.setdefault(name, {})[record.validation.after_round] = value
            losses.setdefault(name, {})[record.validation.after_round] = scored.figures.loss
    assert sorted(curves) == ["east", "north", "south"]
    for name, curve in curves.items():
        last = curve[max(curve)]
        assert last > curve[0] + 0.1, name
        assert last > curve[2], name
        assert losses[name][max(curve)] < losses[name][2], name

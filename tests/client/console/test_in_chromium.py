"""The site's console in a real browser and as a process of its own: an approval is given and seen in the audit log."""

import os
import signal
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from client.governance import approval, audit
from common.formats import yaml_text
from common.polling import wait_until
from common.processes.ports import accepts_connections, free_ports
from tests.chromium import PROGRAM, Chromium
from tests.places import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.skipif(PROGRAM is None, reason="this machine has no Chromium")]


def test_a_person_reads_a_study_approves_it_and_finds_that_in_the_log(tmp_path: Path, make_study) -> None:
    study, state, [port] = make_study(), tmp_path / "state", free_ports(1)
    about = {"name": "north", "data": {"kind": "folders", "root": str(tmp_path)}, "state_dir": str(state)}
    (tmp_path / "site.yaml").write_text(yaml_text.dump(about))
    approval.note(state, study, datetime(2026, 3, 1, tzinfo=UTC))
    console = subprocess.Popen(
        [sys.executable, "-m", "client.cli", "console", tmp_path / "site.yaml", "--port", str(port)],
        cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    browser = Chromium(tmp_path / "profile")
    try:
        assert wait_until(lambda: accepts_connections(port), 60)
        tab, watcher = browser.tab(), browser.tab(400, dark=True)
        base = f"http://127.0.0.1:{port}"
        tab.open(f"{base}/studies")
        assert "tiny" not in tab.text()
        tab.type("#token", (state / "console" / "token").read_text().strip())
        tab.click("main button")
        assert "1 study waits for a person here" in tab.text()
        watcher.open(f"{base}/sent?lines=all")
        watcher.wait_for("Live.")
        tab.click("p.note a")
        assert study.fingerprint in tab.text()
        tab.click("button[value=yes]")
        assert "The study is approved" in tab.text()
        watcher.wait_for("approval")
        assert not watcher.run("document.documentElement.scrollWidth > innerWidth")
        asked = [
            e["params"]["request"]["url"]
            for e in browser.events
            if e["method"] == "Network.requestWillBeSent"
        ]
        assert {url.split("/")[2] for url in asked} == {f"127.0.0.1:{port}"}
    finally:
        browser.close()
        console.send_signal(signal.SIGTERM)
        said = console.communicate(timeout=60)[0].decode()
    assert console.returncode == 0, said
    assert (state / "console" / "token").read_text().strip() not in said  # no terminal
    assert approval.decision(state, study).answer == "yes"
    assert [fields["event"] for fields in audit.events(state / audit.FILE)] == ["approval"]

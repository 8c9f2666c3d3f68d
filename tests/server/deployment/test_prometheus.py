"""Prometheus metrics, and that the dashboard and the rules use no others."""

import json
import re
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import yaml
from prometheus_client import CollectorRegistry, generate_latest

from common import keys
from common.config import StudyConfig
from common.errors import ConfigError, LaunchError
from common.metrics import count
from common.processes.ports import free_ports, obstacle
from server.cli import operate
from server.cli.main import main
from server.deployment import prometheus, queue, site_keys
from server.deployment.folder import ServerFolder, open_folder
from server.provisioning import startup_kit
from server.report import write
from server.state import Progress, RoundState, SiteRound
from server.storage.status import set_absent, set_progress, set_status
from tests.places import ROOT

MONITORING = ROOT / "configs" / "monitoring"
GIVEN_BY_PROMETHEUS = {"up"}
OF_EACH_FILE = (
    'consilium_site_online{site="north"} 0.0',
    'consilium_certificate_ends_timestamp_seconds{certificate="server"}',
    "consilium_studies_waiting 1.0",
    'consilium_study_running{study="demo"} 1.0',
    'consilium_round_duration_seconds{study="demo"} 5.0',
)
"""A line that each file of the server gives."""


@pytest.fixture
def folder(tmp_path: Path, study: StudyConfig) -> ServerFolder:
    """Two sites, of which one has answered in round 1; each scored four images."""
    about = {"name": "f", "server": {"hosts": ["s.example"]}, "sites": {"north": {}, "south": {}}}
    (tmp_path / "federation.yaml").write_text(yaml.safe_dump(about))
    list(startup_kit.provision(tmp_path / "federation.yaml", tmp_path))
    made = open_folder(tmp_path)
    for site in ("north", "south"):
        site_keys.enrol(made, site, keys.make_site_key(tmp_path / "made" / site, "site").public)
    queue.put(made, study.model_copy(update={"name": "later"}))
    run_dir = made.runs / "demo"
    run_dir.mkdir(parents=True)
    set_status(run_dir, "running", "study demo")
    set_progress(
        run_dir,
        Progress.model_validate(
            {"round": 2, "rounds": 3, "closing": False, "attempt": 1, "since": "2026-01-01T00:00:00Z",
             "deadline_s": 60, "sites": {}}
        ),
    )  # fmt: skip
    # 3 of 4 right; recalls 1, 1/2, 1: balanced accuracy (1 + 0.5 + 1) / 3
    score = count(np.eye(3)[[0, 1, 0, 2]], np.array([0, 1, 1, 2]), loss_sum=4.0)
    rows = (
        SiteRound("north", "ok", num_examples=8, train_loss=0.5, answered_after_s=4.0, train_s=3.0,
                  mib_down=2.0, mib_up=1.0),
        SiteRound("south", "missing", reason="no answer", mib_down=2.0),
    )  # fmt: skip
    state = RoundState(1, {}, {}, {}, sites=rows, scores={"north": score}, seconds=5.0)
    write.append_round(run_dir, state, study)
    return made


def scrape(folder: ServerFolder) -> str:
    registry = CollectorRegistry()
    registry.register(prometheus.FolderCollector(folder))
    return generate_latest(registry).decode()


@pytest.fixture
def metrics(folder: ServerFolder) -> str:
    return scrape(folder)


@pytest.mark.parametrize(
    "line",
    [
        'consilium_site_online{site="north"} 0.0',
        "consilium_studies_waiting 1.0",
        'consilium_study_info{stage="running",study="demo"} 1.0',
        'consilium_study_running{study="demo"} 1.0',
        'consilium_round{study="demo"} 2.0',
        'consilium_rounds{study="demo"} 3.0',
        'consilium_round_duration_seconds{study="demo"} 5.0',
        'consilium_site_answer_seconds{site="north",study="demo"} 4.0',
        'consilium_site_train_seconds{site="north",study="demo"} 3.0',
        'consilium_train_loss{site="north",study="demo"} 0.5',
        'consilium_sent_bytes_total{site="south",study="demo"} 2.097152e+06',
        'consilium_received_bytes_total{site="north",study="demo"} 1.048576e+06',
        'consilium_answers_total{outcome="missing",site="south",study="demo"} 1.0',
        'consilium_balanced_accuracy{site="north",study="demo"} 0.8333333333333334',
        'consilium_balanced_accuracy{site="all",study="demo"} 0.8333333333333334',
        'consilium_accuracy{site="all",study="demo"} 0.75',
    ],
)
def test_a_round_is_exported(metrics: str, line: str) -> None:
    assert line in metrics.splitlines()


def names(expression: str) -> set[str]:
    """Metrics that a PromQL expression names: words that are not functions, labels or words of the language."""
    bare = re.sub(r'"[^"]*"|\{[^}]*\}|\[[^\]]*\]', "", expression)
    return {
        word
        for word in re.findall(r"[a-z_:]+(?!\w*\s*\()", bare)
        if "consilium" in word or word in GIVEN_BY_PROMETHEUS
    }


def exported(metrics: str) -> set[str]:
    """Names of series; those that have none yet are named by their TYPE line."""
    return set(re.findall(r"^# TYPE (\S+)", metrics, re.MULTILINE)) | GIVEN_BY_PROMETHEUS


def test_every_metric_of_the_dashboard_is_exported(metrics: str) -> None:
    dashboard = json.loads((MONITORING / "grafana" / "dashboards" / "consilium.json").read_text())
    asked = {
        name for panel in dashboard["panels"] for target in panel["targets"] for name in names(target["expr"])
    }
    assert len(asked) > 10
    assert asked <= exported(metrics)


def test_every_metric_of_the_rules_is_exported(metrics: str) -> None:
    rules = yaml.safe_load((MONITORING / "rules.yml").read_text())["groups"][0]["rules"]
    asked = {name for rule in rules for name in names(rule["expr"])}
    assert len(asked) > 3
    assert asked <= exported(metrics)


def test_every_label_that_a_legend_shows_is_there(metrics: str) -> None:
    dashboard = json.loads((MONITORING / "grafana" / "dashboards" / "consilium.json").read_text())
    labels = set(re.findall(r'(\w+)="', metrics)) | {"process"}  # no process of this server runs
    for panel in dashboard["panels"]:
        for target in panel["targets"]:
            assert set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])) <= labels, panel["title"]


def test_grafana_finds_its_source_and_its_dashboard() -> None:
    sources = yaml.safe_load((MONITORING / "grafana/provisioning/datasources/prometheus.yml").read_text())
    dashboard = json.loads((MONITORING / "grafana" / "dashboards" / "consilium.json").read_text())
    assert {panel["datasource"]["uid"] for panel in dashboard["panels"]} == {sources["datasources"][0]["uid"]}


def test_a_server_without_any_run_exports_its_sites(folder: ServerFolder) -> None:
    for path in sorted((folder.runs / "demo").rglob("*"), reverse=True):
        path.unlink()
    assert 'consilium_site_online{site="south"} 0.0' in scrape(folder)


@pytest.mark.parametrize(
    ("kind", "file", "lost"),
    [
        ("site_key", "sites/south.pub", 'consilium_site_online{site="south"} 0.0'),
        ("database", "flower/superlink.db", 'consilium_site_online{site="north"} 0.0'),
        ("certificate", "keys/ca.pem", 'consilium_certificate_ends_timestamp_seconds{certificate="ca"}'),
        ("status", "runs/demo/status.json", 'consilium_study_running{study="demo"} 1.0'),
        ("rounds", "runs/demo/rounds.jsonl", 'consilium_round_duration_seconds{study="demo"} 5.0'),
    ],
)
def test_an_unreadable_file_costs_its_own_figures_and_no_others(
    folder: ServerFolder, metrics: str, caplog: pytest.LogCaptureFixture, kind: str, file: str, lost: str
) -> None:
    (folder.root / file).parent.mkdir(parents=True, exist_ok=True)
    (folder.root / file).write_text("neither a key nor JSON")
    registry = CollectorRegistry()
    registry.register(prometheus.FolderCollector(folder))
    now = generate_latest(registry).decode()
    assert lost in metrics
    assert lost not in now
    assert f'consilium_unreadable{{kind="{kind}"}} 1.0' in now
    others = [line for line in OF_EACH_FILE if not line.startswith(lost.partition("{")[0])]
    assert all(line in now for line in others)
    generate_latest(registry)
    assert caplog.text.count(str(folder.root / file)) == 1  # logged once, not at every scrape


def test_prometheus_is_answered_on_loopback_and_a_taken_port_is_named(folder: ServerFolder) -> None:
    (port,) = free_ports(1)
    stop = prometheus.serve(folder, "localhost", port)
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
            assert 'consilium_round{study="demo"} 2.0' in answer.read().decode()
        with pytest.raises(LaunchError, match=f"127.0.0.1:{port} cannot be used for --metrics-port"):
            operate._serve_metrics(folder, "127.0.0.1", port)
    finally:
        stop()


@pytest.mark.parametrize("host", ["", " ", "http://127.0.0.1", "127.0.0.1:9464", "10.0.0.0/8"])
def test_metrics_are_served_on_no_address_that_cannot_be_meant(folder: ServerFolder, host: str) -> None:
    """An empty one would be every address of the machine, and there is no password."""
    (port,) = free_ports(1)
    with pytest.raises(ConfigError, match="--metrics-host: "):
        operate._serve_metrics(folder, host, port)
    assert obstacle(port) is None


@pytest.mark.parametrize("port", ["0", "65536", "-1"])
def test_a_number_that_is_no_port_is_wrong_usage(folder: ServerFolder, port: str) -> None:
    assert main(["up", str(folder.root), "--metrics-port", port]) == 2


def test_the_profile_mounts_what_is_there_and_no_site_reaches_the_metrics() -> None:
    compose = yaml.safe_load((MONITORING.parents[1] / "docker-compose.yml").read_text())
    services = compose["services"]
    profiled = {name for name, service in services.items() if "monitoring" in service.get("profiles", ())}
    assert profiled == {"prometheus", "grafana"}
    for name in profiled:
        for mount in services[name]["volumes"]:
            source = mount.split(":")[0]
            assert not source.startswith(".") or (MONITORING.parents[1] / source).exists(), mount
    (target,) = yaml.safe_load((MONITORING / "prometheus.yml").read_text())["scrape_configs"][0][
        "static_configs"
    ][0]["targets"]
    host, port = target.split(":")
    assert f"--metrics-port {port} --metrics-host {host}" in services["server"]["command"]
    assert services["server"]["networks"]["monitoring"] == {"aliases": [host]}
    on_it = {name for name, service in services.items() if "monitoring" in service.get("networks", ())}
    assert on_it == {"server", "prometheus", "grafana"}
    assert compose["networks"]["monitoring"]["internal"]


def test_absent_sites_and_incomplete_studies_are_exported(folder: ServerFolder) -> None:
    assert "consilium_site_absent{" not in scrape(folder)
    assert 'consilium_study_incomplete{study="demo"} 0.0' in scrape(folder)
    set_absent(folder.runs / "demo", {"south": "no key"})
    set_status(folder.runs / "demo", "finished, incomplete", "3 rounds")
    lines = scrape(folder).splitlines()
    assert 'consilium_site_absent{site="south",study="demo"} 1.0' in lines
    assert 'consilium_study_incomplete{study="demo"} 1.0' in lines
    assert 'consilium_study_info{stage="finished, incomplete",study="demo"} 1.0' in lines
    assert 'consilium_study_running{study="demo"} 0.0' in lines

"""The commands that serve the operator's console."""

import urllib.request
from pathlib import Path

import pytest
import yaml

from common.processes.launcher import Interrupted
from common.processes.ports import free_ports
from common.web import serve
from server.cli import console, main
from server.deployment import daemon
from server.deployment.study_runner import StudyEnd
from server.provisioning import startup_kit


@pytest.fixture
def root(tmp_path: Path) -> Path:
    about = {"name": "f", "server": {"hosts": ["s.example"]}, "sites": {"north": {}}}
    (tmp_path / "federation.yaml").write_text(yaml.safe_dump(about))
    list(startup_kit.provision(tmp_path / "federation.yaml", tmp_path / "server"))
    return tmp_path / "server"


def login_page(port: int) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=10) as answer:
        return answer.read().decode()


@pytest.mark.parametrize("is_terminal", [True, False])
def test_the_token_is_printed_once_and_to_a_person_alone(root, monkeypatch, capsys, is_terminal) -> None:
    [port], pages = free_ports(1), []

    def wait() -> None:
        pages.append(login_page(port))
        raise Interrupted(2)

    monkeypatch.setattr(console, "_wait", wait)
    monkeypatch.setattr(console, "is_terminal", lambda: is_terminal)
    printed = []
    for _ in range(2):
        assert main.main(["console", str(root), "--port", str(port)]) == 0
        printed.append((root / "console.token").read_text().strip() in capsys.readouterr().out)
    assert printed == [is_terminal, False]
    assert all("Consilium server f" in page and "Log in" in page for page in pages)


def test_up_serves_the_console_while_it_runs(root, monkeypatch) -> None:
    [port], pages = free_ports(1), []

    def up(*_: object, **__: object) -> StudyEnd:
        pages.append(login_page(port))
        return StudyEnd(True, "")

    monkeypatch.setattr(daemon, "up", up)
    assert main.main(["up", str(root), "--console", "--console-port", str(port), "--exit-when-done"]) == 0
    assert "Log in" in pages[0]


@pytest.mark.parametrize(("published", "host"), [((), "127.0.0.1"), (("--console-published",), "0.0.0.0")])
def test_in_a_container_the_console_can_listen_on_every_address(root, monkeypatch, published, host) -> None:
    places = []
    monkeypatch.setattr(serve, "start", lambda _app, place: places.append(place) or (lambda: None))
    monkeypatch.setattr(daemon, "up", lambda *_, **__: StudyEnd(True, ""))
    assert main.main(["up", str(root), "--console", *published, "--exit-when-done"]) == 0
    [place] = places
    assert (place.listen, place.url) == (host, "http://127.0.0.1:8765/")


def test_another_address_is_refused_without_a_certificate(root, capsys) -> None:
    assert main.main(["console", str(root), "--host", "192.0.2.7"]) == 1
    assert "needs TLS" in capsys.readouterr().err
    assert not (root / "console.token").exists()

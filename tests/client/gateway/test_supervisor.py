"""The gateway's settings, what its ends mean, and that it comes back and goes when it is told to."""

import logging
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from client.cli.main import main
from client.gateway import supervisor
from common import keys
from common.errors import ConfigError
from common.processes.launcher import Processes
from common.processes.restarts import Supervision
from tests.places import ROOT


@pytest.fixture
def kit(tmp_path: Path) -> Path:
    keys.make_site_key(tmp_path, "site")
    (tmp_path / "ca.pem").write_text("a certificate")
    (tmp_path / "gateway.yaml").write_text("site: north\nserver: c.example:9092\nsocket: link/t.sock\n")
    return tmp_path


def test_paths_count_from_the_kits_folder(kit: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FLWR_HOME", raising=False)
    config = supervisor.load_gateway(kit)
    assert config == supervisor.load_gateway(kit / "gateway.yaml")
    assert (config.ca, config.key, config.socket) == (
        kit / "ca.pem",
        kit / "site.key",
        kit / "link" / "t.sock",
    )
    assert config.flwr_home == kit / "gateway-state"


def test_a_container_says_where_flower_may_write(kit: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLWR_HOME", "/tmp/flower")
    assert supervisor.load_gateway(kit).flwr_home == Path("/tmp/flower")


@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        (lambda kit: (kit / "site.key").unlink(), "`consilium-site key` makes this site's key"),
        (lambda kit: (kit / "ca.pem").unlink(), "comes with the start-up kit"),
        (lambda kit: (kit / "site.key").chmod(0o644), "can be read by other users; `chmod 600` it"),
    ],
)
def test_what_is_missing_is_named_before_anything_starts(kit: Path, spoil, complaint: str) -> None:
    spoil(kit)
    with pytest.raises(ConfigError, match=complaint):
        supervisor.run(supervisor.load_gateway(kit))


def test_a_server_without_a_port_is_refused(kit: Path) -> None:
    (kit / "gateway.yaml").write_text("site: north\nserver: c.example\n")
    with pytest.raises(ConfigError, match="server: "):
        supervisor.load_gateway(kit)


@pytest.mark.parametrize(
    ("said", "means"),
    [
        ("...\n[code: 2004] Failed to activate SuperNode.\n", "does not take this site's key, SHA256:x"),
        (
            "SuperNode terminated gracefully.",
            "either this machine's clock is not the server's, or the key was revoked",
        ),
        ("Ssl handshake failed: CERTIFICATE_VERIFY_FAILED", "does not fit ca.pem"),
        (
            "Invalid timestamp, then Failed to activate SuperNode",
            "does not take this site's key",
        ),  # the last word
    ],
)
def test_flowers_words_are_put_into_plain_ones(said: str, means: str) -> None:
    assert means in supervisor.reason(said, "SHA256:x")


def test_an_end_that_nobody_knows_is_not_explained() -> None:
    assert supervisor.reason("Traceback ...", "SHA256:x") == ""


def test_a_gateway_is_never_given_up() -> None:
    supervision = Supervision(most=None, longest_pause_s=30.0)
    pauses = []
    for at in range(0, 2000, 40):
        (ended,) = supervision.see({"gateway": 1}, float(at))
        assert not ended.is_final
        pauses.append(ended.pause_s)
        supervision.due(at + 31.0)
    assert pauses[:6] == [1, 2, 4, 8, 16, 30]
    assert set(pauses[6:]) == {30}


SUPERNODE = """
import os, sys, time
from pathlib import Path
log = Path({log!r})
with log.open("a") as file:
    file.write(f"{{os.getpid()}}\\n")
print("SuperNode starts", flush=True)
time.sleep(600)
"""


def test_it_starts_its_supernode_again_and_ends_it_on_sigterm(kit: Path, tmp_path: Path) -> None:
    """Flower's SuperNode is a program that sleeps, here."""
    started = tmp_path / "pids"
    code = (
        "import sys\nfrom client.gateway import supervisor\nfrom client.cli.main import main\n"
        f"supervisor.command = lambda config: [sys.executable, '-c', {SUPERNODE.format(log=str(started))!r}]\n"
        f"sys.exit(main(['gateway', {str(kit)!r}]))"
    )
    env = os.environ | {"FLWR_HOME": str(tmp_path / "h")}
    with (tmp_path / "said").open("wb") as said:
        process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=said, stderr=said, env=env)

    def pids(count: int) -> list[int]:
        until = time.monotonic() + 60
        while True:
            found = [int(line) for line in started.read_text().split()] if started.exists() else []
            if len(found) >= count:
                return found
            assert time.monotonic() < until
            assert process.poll() is None, (tmp_path / "said").read_text()
            time.sleep(0.05)

    try:
        os.kill(pids(1)[0], signal.SIGKILL)
        second = pids(2)[1]
        process.terminate()
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait()
    assert not Path(f"/proc/{second}").exists()
    told = (tmp_path / "said").read_text()
    assert "the gateway was ended by SIGKILL; starting it again in 1 s" in told
    assert "north: the gateway has ended" in told
    assert told.count("SuperNode starts") == 2


def test_a_sites_key_is_made_once_and_renewed_when_asked(tmp_path: Path, capsys) -> None:
    kit = tmp_path / "kit"
    assert main(["key", str(kit)]) == 0
    first, told = keys.fingerprint_of_private(kit / "site.key"), capsys.readouterr().out
    assert first in told
    assert "PRIVATE" not in told
    assert (kit / "site.key").stat().st_mode & 0o777 == 0o600
    assert main(["key", str(kit)]) == 0
    assert keys.fingerprint_of_private(kit / "site.key") == first
    assert main(["key", str(kit), "--renew"]) == 0
    assert keys.fingerprint_of_private(kit / "site.key") != first


@pytest.mark.parametrize(
    "module", ["client.gateway.supervisor", "client.preflight.connection", "client.cli.main"]
)
def test_a_gateways_image_has_neither_torch_nor_pillow(module: str) -> None:
    code = f"import sys, {module}; sys.exit(bool({{'torch', 'PIL', 'pandas'}} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


LONG = "d" * 200


@pytest.mark.parametrize(
    ("lines", "complaint"),
    [
        ("server: c.example\n", "server: 'c.example' has no port; write HOST:PORT"),
        ("server: https://c.example:9092\n", "server: 'https://c.example:9092' is a URL"),
        ("server: c.example:0\n", "server: '0' is not a port"),
        ("server: c.example:70000\n", "server: '70000' is not a port"),
        ("server: '2001:db8::1:9092'\n", "stands in brackets"),
        ("server: c.example:9092\nproxy: https://p:3128\n", "proxy: a proxy by https:// cannot be used"),
        ("server: c.example:9092\nproxy: p\n", "proxy: the proxy is not HOST:PORT"),
        (
            "server: 127.0.0.1:9092\nproxy: http://p:3128\n",
            "127.0.0.1 is this machine, and no proxy leads there",
        ),
        ("server: '[::1]:9092'\nproxy: http://p:3128\n", "::1 is this machine"),
    ],
)
def test_an_address_that_cannot_be_meant_is_refused_when_the_settings_are_read(
    kit: Path, lines: str, complaint: str
) -> None:
    (kit / "gateway.yaml").write_text(f"site: north\n{lines}")
    with pytest.raises(ConfigError, match=re.escape(complaint)):
        supervisor.load_gateway(kit)


def test_all_wrong_addresses_are_reported_at_once(kit: Path) -> None:
    (kit / "gateway.yaml").write_text("site: north\nserver: c.example\nproxy: p\n")
    with pytest.raises(ConfigError, match=r"(?s)server: .*proxy: "):
        supervisor.load_gateway(kit)


def test_a_server_is_brought_into_the_form_of_its_certificate(kit: Path) -> None:
    (kit / "gateway.yaml").write_text("site: north\nserver: ' Klinik-MÜNCHEN.de:9092'\n", encoding="utf-8")
    assert supervisor.load_gateway(kit).server == "xn--klinik-mnchen-3ob.de:9092"


def test_a_socket_with_too_long_a_path_is_named_before_anything_starts(
    kit: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (kit / "gateway.yaml").write_text(f"site: north\nserver: c.example:9092\nsocket: {LONG}/t.sock\n")
    assert main(["gateway", str(kit)]) == 1
    assert "a Unix socket's may have 107" in capsys.readouterr().err
    assert not (kit / "gateway-state").exists()


class Started(Exception):
    """In place of the gateway."""


@pytest.mark.parametrize(
    ("proxy", "given"),
    [
        ("", {}),
        (
            "proxy: http://u:secret@p:3128\n",
            {"grpc_proxy": "http://u:secret@p:3128", "no_grpc_proxy": "127.0.0.1,::1"},
        ),
    ],
    ids=["directly", "through a proxy"],
)
def test_a_gateway_goes_the_way_that_its_settings_name_and_says_so(
    kit: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    proxy: str,
    given: dict[str, str],
) -> None:
    monkeypatch.setattr(logging.getLogger("consilium"), "propagate", True)
    logging.getLogger("consilium").setLevel(logging.INFO)
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("https_proxy", "http://v:hidden@web.example:8080")
    seen: list[dict[str, str]] = []

    def keep(_config: object, processes: Processes, _until: object) -> None:
        seen.append({name: value for name, value in processes.env.items() if "proxy" in name.lower()})
        raise Started

    monkeypatch.setattr(supervisor, "_keep", keep)
    (kit / "gateway.yaml").write_text(f"site: north\nserver: c.example:9092\n{proxy}")
    with pytest.raises(Started):
        supervisor.run(supervisor.load_gateway(kit))
    assert seen == [given]
    way = " through the proxy p:3128" if proxy else ""
    assert f"the gateway connects to c.example:9092{way}\n" in caplog.text
    assert "https_proxy (web.example:8080) is not used" in caplog.text
    assert "secret" not in caplog.text
    assert "hidden" not in caplog.text

"""The gateway's settings, and the site's key."""

import logging
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from client.cli.main import main
from client.gateway import relay, settings
from common import keys
from common.errors import ConfigError
from tests.client.preflight.test_connection import self_signed
from tests.places import ROOT


@pytest.fixture
def kit(tmp_path: Path) -> Path:
    keys.make_site_key(tmp_path, "site")
    (tmp_path / "ca.pem").write_bytes(self_signed(["c.example"])[0])
    (tmp_path / "gateway.yaml").write_text("site: north\nserver: c.example:9092\nsocket: link/t.sock\n")
    return tmp_path


def test_paths_count_from_the_kits_folder(kit: Path) -> None:
    config = settings.load_gateway(kit)
    assert config == settings.load_gateway(kit / "gateway.yaml")
    assert (config.ca, config.key, config.socket) == (
        kit / "ca.pem",
        kit / "site.key",
        kit / "link" / "t.sock",
    )


@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        (lambda kit: (kit / "site.key").unlink(), "`consilium-site key` makes this site's key"),
        (lambda kit: (kit / "ca.pem").unlink(), "comes with the start-up kit"),
        (
            lambda kit: (kit / "ca.pem").write_text("<html>"),
            "ca.pem is no certificate in PEM; copy ca.pem from",
        ),
        (lambda kit: (kit / "site.key").chmod(0o644), "can be read by other users; `chmod 600` it"),
    ],
)
def test_what_is_missing_is_named_before_anything_starts(kit: Path, spoil, complaint: str) -> None:
    spoil(kit)
    with pytest.raises(ConfigError, match=complaint):
        relay.run(settings.load_gateway(kit))


def test_a_server_without_a_port_is_refused(kit: Path) -> None:
    (kit / "gateway.yaml").write_text("site: north\nserver: c.example\n")
    with pytest.raises(ConfigError, match="server: "):
        settings.load_gateway(kit)


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


@pytest.mark.parametrize("module", ["client.gateway.relay", "client.preflight.connection", "client.cli.main"])
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
        settings.load_gateway(kit)


def test_all_wrong_addresses_are_reported_at_once(kit: Path) -> None:
    (kit / "gateway.yaml").write_text("site: north\nserver: c.example\nproxy: p\n")
    with pytest.raises(ConfigError, match=r"(?s)server: .*proxy: "):
        settings.load_gateway(kit)


def test_a_server_is_brought_into_the_form_of_its_certificate(kit: Path) -> None:
    (kit / "gateway.yaml").write_text("site: north\nserver: ' Klinik-MÜNCHEN.de:9092'\n", encoding="utf-8")
    assert settings.load_gateway(kit).server == "xn--klinik-mnchen-3ob.de:9092"


def test_a_socket_with_too_long_a_path_is_named_before_anything_starts(
    kit: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (kit / "gateway.yaml").write_text(f"site: north\nserver: c.example:9092\nsocket: {LONG}/t.sock\n")
    assert main(["gateway", str(kit)]) == 1
    assert "a Unix socket's may have 107" in capsys.readouterr().err


@pytest.mark.parametrize(
    "proxy", ["", "proxy: http://u:secret@p:3128\n"], ids=["directly", "through a proxy"]
)
def test_a_gateway_goes_the_way_that_its_settings_name_and_says_so(
    kit: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, proxy: str
) -> None:
    monkeypatch.setattr(logging.getLogger("consilium"), "propagate", True)
    logging.getLogger("consilium").setLevel(logging.INFO)
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("https_proxy", "http://v:hidden@web.example:8080")
    seen: list[dict[str, str]] = []

    def start(self: relay.Relay) -> None:
        seen.append({name: value for name, value in os.environ.items() if name.lower().endswith("_proxy")})

    monkeypatch.setattr(relay.Relay, "start", start)
    (kit / "over").touch()
    (kit / "gateway.yaml").write_text(f"site: north\nserver: c.example:9092\n{proxy}")
    relay.run(settings.load_gateway(kit), until=kit / "over")
    chosen = {"grpc_proxy": "http://u:secret@p:3128", "no_grpc_proxy": "127.0.0.1,::1"}
    assert seen == [chosen if proxy else {}]
    way = " through the proxy p:3128" if proxy else ""
    assert f"the gateway connects to c.example:9092{way}\n" in caplog.text
    assert "https_proxy (web.example:8080) is not used" in caplog.text
    assert "secret" not in caplog.text
    assert "hidden" not in caplog.text

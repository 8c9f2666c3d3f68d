"""Environment of Flower's processes."""

from pathlib import Path

from common.processes import flower


def test_nothing_is_sent_to_third_parties_and_flowers_files_stay_in_the_run(tmp_path: Path) -> None:
    env = flower.environment(
        tmp_path / "runs" / "a" / "federation" / "flower", {"HOME": "/home/x", "PATH": "/bin"}
    )
    assert env["FLWR_TELEMETRY_ENABLED"] == "0"
    assert env["FLWR_DISABLE_UPDATE_CHECK"] == "1"
    assert env["FLWR_HOME"] == str(tmp_path / "runs" / "a" / "federation" / "flower")
    assert env["PATH"].endswith(":/bin")
    assert env["HOME"] == "/home/x"


PROXIES = {
    "https_proxy": "http://p:1",
    "HTTP_PROXY": "http://p:1",
    "ALL_PROXY": "socks5://p:1",
    "NO_PROXY": "x",
}


def test_no_proxy_of_the_environment_reaches_flowers_programs(tmp_path: Path) -> None:
    env = flower.environment(tmp_path, {"PATH": "/bin", **PROXIES})
    assert not [name for name in env if "proxy" in name.lower()]

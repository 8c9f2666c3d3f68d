"""Environment of Flower's processes, and the SuperNode's command."""

from pathlib import Path

from flwr.common.config import parse_config_args

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


def test_a_proxy_that_is_named_on_purpose_is_the_only_one_and_spares_loopback(tmp_path: Path) -> None:
    env = flower.environment(tmp_path, PROXIES, "http://p.example:3128")
    assert {name: value for name, value in env.items() if "proxy" in name.lower()} == {
        "grpc_proxy": "http://p.example:3128",
        "no_grpc_proxy": "127.0.0.1,::1",
    }


def test_a_trainers_path_may_have_any_character() -> None:
    command = flower.supernode_command(
        site="north", superlink="s:1", ca=Path("c"), key=Path("k"), trainer=Path('/a "b\\c/t.sock'), port=1
    )
    config = command[command.index("--node-config") + 1]
    assert parse_config_args([str(config)]) == {"site": "north", "trainer": '/a "b\\c/t.sock'}


def test_a_supernode_shows_the_sites_key_and_knows_its_trainer() -> None:
    command = [
        str(part)
        for part in flower.supernode_command(
            site="north",
            superlink="s.example:9092",
            ca=Path("ca.pem"),
            key=Path("site.key"),
            trainer=Path("trainer.sock"),
            port=7000,
        )
    ]
    assert command[0].endswith("/flower-supernode")
    options = dict(zip(command[1::2], command[2::2], strict=True))
    assert options == {
        "--root-certificates": "ca.pem",
        "--superlink": "s.example:9092",
        "--auth-supernode-private-key": "site.key",
        "--node-config": 'site="north" trainer="trainer.sock"',
        "--host": "127.0.0.1",
        "--port": "7000",
    }

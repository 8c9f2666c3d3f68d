"""Environment of Flower's processes, and the SuperNode's command."""

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

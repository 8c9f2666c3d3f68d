"""What gateways say of themselves: kept in one file, and checked before it is."""

from pathlib import Path

import pytest

from server.transport.gateway_record import GatewayFacts, GatewayRecord, read


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "gateways.json"


def test_version_and_round_trip_of_each_node_are_in_the_file(file: Path) -> None:
    seconds = [0.0]
    record = GatewayRecord(file, lambda: seconds[0])
    record.connected(11, "0.2.0")
    record.connected(2**64 - 1, "0.1.9")
    seconds[0] = 5.0
    record.timed(11, "23")
    assert read(file) == {
        11: GatewayFacts(version="0.2.0", round_trip_ms=23),
        2**64 - 1: GatewayFacts(version="0.1.9"),
    }


def test_the_file_is_written_every_five_seconds_at_most(file: Path) -> None:
    seconds = [0.0]
    record = GatewayRecord(file, lambda: seconds[0])
    record.connected(11, "0.2.0")
    for now, kept in ((1.0, None), (4.9, None), (5.0, 500), (9.9, 500), (10.0, 1000)):
        seconds[0] = now
        record.timed(11, str(int(now * 100)))
        assert read(file)[11].round_trip_ms == kept, now


def test_a_new_connection_forgets_the_old_ones_round_trip_and_a_restart_of_the_server_does_not(
    file: Path,
) -> None:
    record = GatewayRecord(file, lambda: 100.0)
    record.timed(11, "23")
    assert GatewayRecord(file)._nodes == {11: GatewayFacts(round_trip_ms=23)}
    record.connected(11, "0.2.0")
    assert read(file) == {11: GatewayFacts(version="0.2.0")}


@pytest.mark.parametrize("version", ["", "<b>1</b>", "1" * 41, "1\n2", "\u0661", "0.2.0 "])
def test_a_version_that_is_no_plain_word_is_not_kept(file: Path, version: str) -> None:
    GatewayRecord(file).connected(11, version)
    assert read(file) == {11: GatewayFacts()}


@pytest.mark.parametrize("text", ["", "-1", "1.5", "60001", "9" * 400, "\u0661", "1e3", "nan"])
def test_a_round_trip_that_is_no_number_of_milliseconds_within_a_minute_is_ignored(
    file: Path, text: str
) -> None:
    record = GatewayRecord(file, lambda: 100.0)
    record.timed(11, "7")
    record.timed(11, text)
    assert record._nodes[11].round_trip_ms == 7


def test_a_damaged_file_is_as_none_and_is_written_again(file: Path) -> None:
    file.write_text('{"nodes": {"11": {"ver')
    assert read(file) == {}
    GatewayRecord(file).connected(11, "0.2.0")
    assert read(file) == {11: GatewayFacts(version="0.2.0")}


def test_a_folder_that_cannot_be_written_costs_no_connection(tmp_path: Path) -> None:
    (tmp_path / "not-a-folder").touch()
    record = GatewayRecord(tmp_path / "not-a-folder" / "gateways.json")
    record.connected(11, "0.2.0")
    record.timed(11, "7")

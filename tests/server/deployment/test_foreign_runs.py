"""Runs of Flower that the server did not start are ended, and named once."""

import logging
import sqlite3
from pathlib import Path

import pytest

from server.deployment import site_keys
from server.deployment.daemon import Host


@pytest.fixture
def database(tmp_path: Path) -> Path:
    """A SuperLink's database with the tables that count: run 1 has ended, 2 and -1 have not."""
    path = tmp_path / "superlink.db"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE run (run_id INTEGER, primary_task_id INTEGER)")
        connection.execute(
            "CREATE TABLE task (task_id INTEGER, finished_at TEXT, sub_status TEXT, details TEXT)"
        )
        connection.executemany("INSERT INTO run VALUES (?, ?)", [(1, 10), (2, 20), (-1, 30)])
        tasks = [(10, "now", "failed", "no module"), (20, None, "", ""), (30, None, "", "")]
        connection.executemany("INSERT INTO task VALUES (?, ?, ?, ?)", tasks)
    connection.close()
    return path


def test_unfinished_runs_have_flowers_own_numbers(database: Path, tmp_path: Path) -> None:
    assert site_keys.unfinished_runs(database) == {2, 2**64 - 1}  # the database keeps them with a sign
    assert site_keys.unfinished_runs(tmp_path / "none.db") == set()


def test_a_failed_run_has_flowers_reason(database: Path, tmp_path: Path) -> None:
    assert site_keys.failed_run(database, 1) == "no module"
    assert site_keys.failed_run(database, 2**64 - 1) is None
    assert site_keys.failed_run(tmp_path / "none.db", 1) is None


def test_a_strange_run_is_ended_and_named_once(
    database: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(logging.getLogger("consilium"), "propagate", True)
    ended: list[int] = []

    class Folder:
        pass

    host = object.__new__(Host)
    host.folder = Folder()  # type: ignore[assignment]
    host.folder.database = database  # type: ignore[misc]
    host._known_runs = {2}
    monkeypatch.setattr(host, "_end_run", ended.append)
    host._end_strange_runs()
    host._end_strange_runs()
    assert ended == [2**64 - 1]
    assert caplog.text.count("was not started by this server and is ended") == 1

"""Which keys may connect, and what the SuperLink's database says of them."""

import contextlib
import sqlite3
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from common import keys
from common.errors import ConfigError, LaunchError
from server.config import Address, FederationConfig, SiteEntry
from server.deployment import site_keys
from server.deployment.folder import ServerFolder


@pytest.fixture
def folder(tmp_path: Path) -> ServerFolder:
    (tmp_path / "sites").mkdir()
    config = FederationConfig(
        name="f", server=Address(hosts=("s.example",)), sites={"north": SiteEntry(), "south": SiteEntry()}
    )
    return ServerFolder(tmp_path, config)


@pytest.fixture
def public(tmp_path: Path):
    """The public half of a new key."""

    def make(name: str) -> Path:
        return keys.make_site_key(tmp_path / "made" / name, "site").public

    return make


def test_an_enrolled_key_is_known_by_the_fingerprint_that_the_site_read_out(folder, public) -> None:
    path = public("a")
    told = site_keys.enrol(folder, "north", path)
    assert told.fingerprint == keys.fingerprint_of_private(path.with_name("site.key"))
    assert {site: key.fingerprint for site, key in site_keys.enrolled(folder).items()} == {
        "north": told.fingerprint
    }


def test_to_enrol_the_same_key_twice_changes_nothing(folder, public) -> None:
    path = public("a")
    assert site_keys.enrol(folder, "north", path).pem == site_keys.enrol(folder, "north", path).pem


@pytest.mark.parametrize(
    ("site", "key", "complaint"),
    [
        ("west", "a", "names no site west, only north, south"),
        ("south", "north's", "is already the key of north"),
        ("north", "b", "north has another key, SHA256:.*revoke that first"),
    ],
)
def test_a_key_that_does_not_fit_is_not_enrolled(folder, public, site, key, complaint) -> None:
    first = public("north's")
    site_keys.enrol(folder, "north", first)
    before = sorted(path.name for path in folder.sites.iterdir())
    with pytest.raises(ConfigError, match=complaint):
        site_keys.enrol(folder, site, first if key == "north's" else public(key))
    assert sorted(path.name for path in folder.sites.iterdir()) == before


def test_a_private_key_that_was_sent_by_mistake_is_called_one(folder, public) -> None:
    path = public("a").with_name("site.key")
    with pytest.raises(ConfigError, match="a private key, which must stay at the site"):
        site_keys.enrol(folder, "north", path)


def test_a_revoked_key_never_comes_back_and_a_new_one_of_the_site_does(folder, public) -> None:
    old = public("old")
    told = site_keys.enrol(folder, "north", old)
    site_keys.revoke(folder, "north")
    assert site_keys.enrolled(folder) == {}
    assert site_keys.revoked(folder) == {told.fingerprint: "north"}
    with pytest.raises(ConfigError, match="was revoked before and cannot come back"):
        site_keys.enrol(folder, "north", old)
    site_keys.enrol(folder, "north", public("new"))
    with pytest.raises(ConfigError, match="south has no key here; enrolled are north"):
        site_keys.revoke(folder, "south")


def test_flowers_database_says_who_is_online_and_since_when(tmp_path: Path) -> None:
    now = datetime.now(UTC)
    database = tmp_path / "superlink.db"
    assert site_keys.nodes(database) == {}
    connection = sqlite3.connect(database)
    connection.execute("CREATE TABLE other (a INTEGER)")
    connection.commit()
    assert site_keys.nodes(database) == {}  # Flower has not made its tables yet
    connection.execute(
        "CREATE TABLE node (public_key BLOB, node_id INTEGER, registered_at TEXT, status TEXT, online_until REAL, "
        "last_activated_at TEXT, last_deactivated_at TEXT, heartbeat_interval REAL)"
    )
    begun = (now - timedelta(hours=2)).isoformat()
    rows = [
        # seen 10 s ago: online until 50 s from now, two heartbeats of 30 s after it
        (b"here", -1, begun, "online", now.timestamp() + 50, begun, None, 30.0),
        (b"gone", 2, begun, "online", now.timestamp() - 5, begun, None, 30.0),  # not noticed yet
        (
            b"off",
            3,
            begun,
            "offline",
            now.timestamp() - 60,
            begun,
            (now - timedelta(hours=1)).isoformat(),
            30.0,
        ),
        (b"never", 4, begun, "registered", None, None, None, 30.0),
        (b"revoked", 5, begun, "unregistered", None, begun, None, 30.0),
    ]
    connection.executemany("INSERT INTO node VALUES (?, ?, ?, ?, ?, ?, ?, ?)", rows)
    connection.commit()
    connection.close()
    nodes = site_keys.nodes(database)
    assert {key: node.online for key, node in nodes.items()} == {
        b"here": True, b"gone": False, b"off": False, b"never": False,
    }  # fmt: skip
    assert nodes[b"here"].node_id == 2**64 - 1  # Flower keeps it as a signed number
    seen = nodes[b"here"].seen
    assert seen is not None
    assert abs((now - seen).total_seconds() - 10) < 1
    assert nodes[b"here"].since == now - timedelta(hours=2)
    assert nodes[b"gone"].since is None
    assert nodes[b"off"].seen == now - timedelta(hours=1)
    assert nodes[b"never"].seen is None


def test_a_database_that_cannot_be_read_now_is_not_taken_for_an_empty_one(
    tmp_path: Path, monkeypatch
) -> None:
    database = tmp_path / "superlink.db"
    with contextlib.closing(sqlite3.connect(database)) as writer:
        writer.execute("CREATE TABLE node (public_key BLOB)")
        writer.commit()
        writer.execute("BEGIN EXCLUSIVE")
        monkeypatch.setattr(site_keys, "_DATABASE_TIMEOUT_S", 0.05)
        with pytest.raises(LaunchError, match=r"superlink\.db cannot be read now: database is locked"):
            site_keys.nodes(database)

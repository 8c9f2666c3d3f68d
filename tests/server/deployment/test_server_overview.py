"""State of a server whose files can be read only in part."""

from datetime import UTC, datetime
from pathlib import Path

import pytest
import yaml

from common import keys
from common.config import StudyConfig
from common.files import write_json
from server.cli import tables
from server.deployment import queue, site_keys
from server.deployment.folder import ServerFolder, open_folder
from server.deployment.server_overview import describe_server, read_server, read_sites
from server.provisioning import startup_kit
from server.transport.gateway_record import GatewayFacts, GatewayFile


@pytest.fixture
def folder(tmp_path: Path) -> ServerFolder:
    """Two sites with keys; the file of south is damaged."""
    about = {"name": "f", "server": {"hosts": ["s.example"]}, "sites": {"north": {}, "south": {}}}
    (tmp_path / "federation.yaml").write_text(yaml.safe_dump(about))
    list(startup_kit.provision(tmp_path / "federation.yaml", tmp_path))
    made = open_folder(tmp_path)
    for site in ("north", "south"):
        site_keys.enrol(made, site, keys.make_site_key(tmp_path / "made" / site, "site").public)
    (made.sites / "south.pub").write_text("not a key")
    return made


def test_a_damaged_key_file_is_named_and_the_other_sites_are_listed(
    folder: ServerFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    tables.print_sites(read_sites(folder))
    north, south = capsys.readouterr().out.splitlines()
    assert north.startswith("north: offline")
    assert south.startswith(f"south: {folder.sites / 'south.pub'} is not a public key")


def test_the_list_of_sites_has_the_gateways_version_and_round_trip(
    folder: ServerFolder, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    key, now = site_keys.read_key_files(folder).keys["north"], datetime.now(UTC)
    monkeypatch.setattr(site_keys, "nodes", lambda _: {key.pem: site_keys.Node(1, now, True, now, now)})
    monkeypatch.setattr(ServerFolder, "is_up", True)
    write_json(folder.gateways, GatewayFile(nodes={1: GatewayFacts(version="0.2.0", round_trip_ms=23)}))
    tables.print_sites(read_sites(folder))
    assert ", gateway 0.2.0, 23 ms, enrolled " in capsys.readouterr().out


def test_the_state_of_a_server_names_what_cannot_be_read(folder: ServerFolder) -> None:
    folder.database.parent.mkdir(exist_ok=True)
    folder.database.write_text("not a database, but long enough to have a header" * 100)
    (folder.runs / "demo").mkdir(parents=True)
    (folder.runs / "demo" / "status.json").write_text("{")
    now = read_server(folder)
    assert now.enrolled == ("north", "south")
    assert [problem.partition(" ")[0] for problem in now.problems] == [
        str(folder.sites / "south.pub"),
        str(folder.database),
        str(folder.runs / "demo" / "status.json"),
    ]
    assert describe_server(now).endswith("\n".join(now.problems))


def test_a_key_is_revoked_beside_a_damaged_file(folder: ServerFolder) -> None:
    site_keys.revoke(folder, "north")
    assert not (folder.sites / "north.pub").exists()


def test_a_file_that_is_no_entry_does_not_stop_the_queue(folder: ServerFolder, study: StudyConfig) -> None:
    entry = queue.put(folder, study)
    (entry.path.parent / "my-study.yaml").write_text("")
    assert queue.waiting(folder) == [entry]

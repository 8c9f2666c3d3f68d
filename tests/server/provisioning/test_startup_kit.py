"""A server's folder and the sites' kits: made once, changed only where the federation changed."""

import hashlib
import re
import zipfile
from pathlib import Path

import pytest
import yaml
from cryptography import x509

from common import keys
from common.errors import ConfigError
from server.deployment import certificates, site_keys
from server.deployment.folder import open_folder
from server.provisioning import startup_kit
from tests.places import CONFIGS


def write(path: Path, sites: list[str], hosts: list[str]) -> Path:
    about = {
        "name": "skin",
        "server": {"hosts": hosts, "port": 9443},
        "sites": {site: {"institution": f"Hospital {site}"} for site in sites},
    }
    path.write_text(yaml.safe_dump(about))
    return path


@pytest.fixture
def made(tmp_path: Path) -> Path:
    federation = write(tmp_path / "federation.yaml", ["north", "south"], ["c.example", "192.0.2.10"])
    list(startup_kit.provision(federation, tmp_path / "server"))
    return tmp_path / "server"


def files(kit: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(kit) as archive:
        return {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}


def state(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_kit_has_what_a_hospital_needs_and_its_own_names_in_it(made: Path) -> None:
    kit = files(made / "kits" / "north.zip")
    assert kit.keys() == {
        "README.md", "SHA256SUMS", "ca.pem", "consilium-gateway.service", "consilium-trainer.service",
        "docker-compose.gpu.yml", "docker-compose.yml", "gateway.yaml", "site.sh", "site.yaml",
    }  # fmt: skip
    assert yaml.safe_load(kit["gateway.yaml"])["server"] == "c.example:9443"
    assert yaml.safe_load(kit["site.yaml"])["name"] == "north"
    assert b"Start-up kit of north: Hospital north" in kit["README.md"]
    for name, data in kit.items():
        assert not re.search(rb"@[A-Z_]+@", data), name


def test_a_kits_checksums_are_those_of_its_files(made: Path) -> None:
    kit = files(made / "kits" / "north.zip")
    sums = dict(reversed(line.split("  ")) for line in kit.pop("SHA256SUMS").decode().splitlines())
    assert sums == {name: hashlib.sha256(data).hexdigest() for name, data in kit.items()}


def test_no_kit_holds_a_secret_and_secrets_are_their_owners_only(made: Path) -> None:
    secrets = [path for path in made.rglob("*") if path.is_file() and b"PRIVATE KEY" in path.read_bytes()]
    assert {path.name for path in secrets} == {"ca.key", "server.key"}
    assert {path.stat().st_mode & 0o777 for path in secrets} == {0o600}
    assert (made / "keys").stat().st_mode & 0o777 == 0o700
    for kit in (made / "kits").iterdir():
        assert not any(b"PRIVATE KEY" in data for data in files(kit).values())


def test_a_kits_trainer_has_no_network_and_no_key_and_its_gateway_no_images(made: Path) -> None:
    compose = yaml.safe_load(files(made / "kits" / "north.zip")["docker-compose.yml"])
    trainer, gateway = compose["services"]["trainer"], compose["services"]["gateway"]
    for service in (trainer, gateway):
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
    version = files(made / "kits" / "north.zip")["gateway.yaml"].decode().split("version: ")[1].strip()
    assert trainer["image"] == f"consilium-trainer:{version}"
    assert gateway["image"] == f"consilium-gateway:{version}"
    assert trainer["network_mode"] == "none"
    mounts = {
        name: {mount["source"]: mount.get("read_only", False) for mount in service["volumes"]}
        for name, service in compose["services"].items()
    }
    assert mounts["trainer"] == {
        "./site.yaml": True, "./weights": True, "./state": False, "./link": False,
    }  # fmt: skip
    assert mounts["gateway"] == {
        "./gateway.yaml": True, "./ca.pem": True, "./site.key": True, "./link": False,
    }  # fmt: skip


def test_a_kits_console_sees_neither_images_nor_the_trainers_files_and_is_on_loopback(made: Path) -> None:
    compose = yaml.safe_load(files(made / "kits" / "north.zip")["docker-compose.yml"])
    console = compose["services"]["console"]
    assert {mount["source"]: mount.get("read_only", False) for mount in console["volumes"]} == {
        "./site.yaml": True, "./state/audit.jsonl": False, "./state/approvals": False, "./state/console": False,
    }  # fmt: skip
    assert console["ports"] == ["127.0.0.1:8766:8766"]
    assert console["profiles"] == ["console"]
    assert console["read_only"] is True
    assert console["cap_drop"] == ["ALL"]
    assert not {"inside", "outside"} & set(console["networks"])


def test_to_provision_again_changes_nothing(made: Path, tmp_path: Path) -> None:
    before = state(made)
    told = list(startup_kit.provision(tmp_path / "federation.yaml", made))
    assert state(made) == before
    assert "north.zip is as it was" in told
    assert any(
        re.fullmatch(r"server\.pem is valid until 20\d\d-\d\d-\d\d, 82\d days from now", line)
        for line in told
    )


def test_a_site_comes_and_another_goes_and_the_third_keeps_its_kit(made: Path, tmp_path: Path) -> None:
    key = keys.make_site_key(tmp_path / "south", "site")
    told = site_keys.enrol(open_folder(made), "south", key.public)
    before = state(made)
    federation = write(tmp_path / "federation.yaml", ["north", "west"], ["c.example", "192.0.2.10"])
    said = list(startup_kit.provision(federation, made))
    after = state(made)
    unchanged = ("kits/north.zip", "keys/ca.pem", "keys/ca.key", "keys/server.pem", "keys/server.key")
    assert {name: after[name] for name in unchanged} == {name: before[name] for name in unchanged}
    assert {path.name for path in (made / "kits").iterdir()} == {"north.zip", "west.zip"}
    assert "south is no longer in the federation; its key is revoked" in said
    assert site_keys.revoked(open_folder(made)) == {told.fingerprint: "south"}


def test_a_new_host_needs_a_new_certificate_and_no_site_a_new_kit(made: Path, tmp_path: Path) -> None:
    before = state(made)
    hosts = ["c.example", "192.0.2.10", "c2.example"]
    list(startup_kit.provision(write(tmp_path / "federation.yaml", ["north", "south"], hosts), made))
    after = state(made)
    assert {name for name in after if after[name] != before.get(name)} == {
        "federation.yaml", "keys/server.pem", "keys/server.key",
    }  # fmt: skip
    certificate = x509.load_pem_x509_certificate(after["keys/server.pem"])
    assert {*hosts, *startup_kit.ALWAYS} == set(certificates.hosts_of(certificate))
    authority = x509.load_pem_x509_certificate(after["keys/ca.pem"])
    certificate.verify_directly_issued_by(authority)


def test_without_the_cas_key_nothing_is_signed_and_it_says_what_to_do(made: Path, tmp_path: Path) -> None:
    (made / "keys" / "ca.key").unlink()
    list(startup_kit.provision(tmp_path / "federation.yaml", made))  # nothing to sign
    federation = write(tmp_path / "federation.yaml", ["north", "south"], ["other.example"])
    with pytest.raises(ConfigError, match=r"ca\.key cannot be read .* put it back"):
        list(startup_kit.provision(federation, made))


def test_a_certificate_that_is_about_to_end_is_renewed(made: Path, tmp_path: Path) -> None:
    authority = certificates.load_authority(made / "keys")
    certificates.issue(
        authority, made / "keys", ["c.example", "192.0.2.10", *startup_kit.ALWAYS], valid_days=60
    )
    told = list(startup_kit.provision(tmp_path / "federation.yaml", made))
    assert any("the old one ends in 59 days" in line for line in told)
    assert any("server.pem is valid until" in line and "82" in line for line in told)


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("server.pem", b"", "server.pem is no certificate in PEM"),
        ("server.key", b"", "server.key is no private key"),
        ("server.key", None, "server.key cannot be read"),
    ],
)
def test_a_damaged_certificate_or_key_of_the_server_is_replaced(
    made: Path, tmp_path: Path, name: str, content: bytes | None, reason: str
) -> None:
    path = made / "keys" / name
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    lines = list(startup_kit.provision(tmp_path / "federation.yaml", made))
    assert any("made the server's certificate" in line and reason in line for line in lines)
    certificates.require_usable(certificates.identity_in(made / "keys"))


def test_a_ca_that_ends_within_a_year_is_spoken_of(made: Path, tmp_path: Path) -> None:
    assert not any("new CA" in line for line in startup_kit.provision(tmp_path / "federation.yaml", made))
    certificates.keep_authority(certificates.make_authority(valid_days=300), made / "keys")
    assert any(
        "plan for a new CA" in line for line in startup_kit.provision(tmp_path / "federation.yaml", made)
    )


def test_the_shipped_federation_can_be_provisioned(tmp_path: Path) -> None:
    list(startup_kit.provision(CONFIGS / "server" / "federation.yaml", tmp_path))
    assert open_folder(tmp_path).config.server.hosts[0] == "consilium.example.org"


# --- addresses -------------------------------------------------------------------------------


def test_all_wrong_hosts_are_reported_at_once_and_nothing_is_made(tmp_path: Path) -> None:
    hosts = [
        "https://c.example",
        "c.example:9092",
        "",
        "10.0.0.0/8",
        "c_1.example",
        "*.example",
        "good.example",
    ]
    federation = write(tmp_path / "federation.yaml", ["north"], hosts)
    with pytest.raises(ConfigError) as caught:
        list(startup_kit.provision(federation, tmp_path / "server"))
    lines = str(caught.value).splitlines()[1:]
    assert [line.strip().partition(":")[0] for line in lines] == [
        f"server.hosts.{number}" for number in range(6)
    ]
    assert not (tmp_path / "server").exists()


def test_a_wrong_port_and_a_wrong_address_to_listen_on_are_reported_with_the_hosts(tmp_path: Path) -> None:
    about = {"hosts": ["a b"], "port": 0, "listen": "c.example"}
    federation = tmp_path / "federation.yaml"
    federation.write_text(yaml.safe_dump({"name": "skin", "server": about, "sites": {"north": {}}}))
    with pytest.raises(ConfigError, match=r"(?s)server\.hosts\.0: .*server\.port: .*server\.listen: "):
        list(startup_kit.provision(federation, tmp_path / "server"))


@pytest.mark.parametrize(
    ("host", "server"),
    [
        ("[2001:DB8::1]", "[2001:db8::1]:9443"),
        ("klinik-münchen.de ", "xn--klinik-mnchen-3ob.de:9443"),
        ("C.Example.", "c.example:9443"),
    ],
)
def test_kit_and_certificate_have_a_host_in_the_same_form(tmp_path: Path, host: str, server: str) -> None:
    federation = write(tmp_path / "federation.yaml", ["north"], [host, host.upper()])
    list(startup_kit.provision(federation, tmp_path / "server"))
    kit = files(tmp_path / "server" / "kits" / "north.zip")
    assert yaml.safe_load(kit["gateway.yaml"])["server"] == server
    certificate = x509.load_pem_x509_certificate((tmp_path / "server/keys/server.pem").read_bytes())
    plain = server.removesuffix(":9443").strip("[]")
    assert sorted(certificates.hosts_of(certificate)) == sorted([plain, *startup_kit.ALWAYS])
    told = list(startup_kit.provision(federation, tmp_path / "server"))
    assert not any("the hosts have changed" in line for line in told)


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "[::1]", "127.1.2.3"])
def test_a_kit_that_leads_a_site_to_itself_is_spoken_of(tmp_path: Path, host: str) -> None:
    federation = write(tmp_path / "federation.yaml", ["north"], [host, "c.example"])
    said = list(startup_kit.provision(federation, tmp_path / "server"))
    assert any("which is each site's own machine; put the server's name first" in line for line in said)
    federation = write(tmp_path / "federation.yaml", ["north"], ["c.example", host])
    assert not any("own machine" in line for line in startup_kit.provision(federation, tmp_path / "server"))


def test_a_single_host_need_not_be_a_list(tmp_path: Path) -> None:
    (tmp_path / "federation.yaml").write_text(
        "name: skin\nserver: {hosts: c.example, port: 9443}\nsites: {north: {}}\n"
    )
    list(startup_kit.provision(tmp_path / "federation.yaml", tmp_path / "server"))
    assert open_folder(tmp_path / "server").config.server.hosts == ("c.example",)


# --- names --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["No", "on", "007", "1e3", "2020-01-01", "1.10", "Klinik_Nord.2"])
def test_a_site_of_any_name_has_it_in_its_kit_as_text_and_a_project_name_that_compose_takes(
    tmp_path: Path, name: str
) -> None:
    federation = tmp_path / "federation.yaml"
    federation.write_text(f'name: f\nserver: {{hosts: [c.example]}}\nsites: {{"{name}": {{}}}}\n')
    list(startup_kit.provision(federation, tmp_path / "server"))
    kit = files(tmp_path / "server" / "kits" / f"{name}.zip")
    assert yaml.safe_load(kit["site.yaml"])["name"] == name
    assert yaml.safe_load(kit["gateway.yaml"])["site"] == name
    assert re.fullmatch("[a-z0-9][a-z0-9_-]*", yaml.safe_load(kit["docker-compose.yml"])["name"])


def test_a_site_that_stands_twice_in_federation_yaml_is_not_made_once(tmp_path: Path) -> None:
    federation = tmp_path / "federation.yaml"
    federation.write_text(
        "name: f\nserver: {hosts: [c.example]}\nsites:\n  north: {institution: A}\n  north: {}\n"
    )
    with pytest.raises(ConfigError, match=r"sites\.north stands twice, in line 4 and line 5"):
        list(startup_kit.provision(federation, tmp_path / "server"))


def test_one_key_file_that_cannot_be_read_is_named_and_stops_nothing(made: Path, tmp_path: Path) -> None:
    (made / "sites" / "north.pub").write_text("no key")
    said = list(startup_kit.provision(tmp_path / "federation.yaml", made))
    assert any(line.startswith("north: ") and line.endswith("the file is left as it is") for line in said)
    assert (made / "sites" / "north.pub").read_text() == "no key"


def test_the_servers_folder_is_its_users_alone_even_if_it_was_not(tmp_path: Path) -> None:
    out = tmp_path / "server"
    out.mkdir(mode=0o755)
    federation = write(tmp_path / "federation.yaml", ["north"], ["c.example"])
    lines = list(startup_kit.provision(federation, out))
    assert lines[0].startswith(f"{out} could be entered by other users")
    assert out.stat().st_mode & 0o777 == (out / "keys").stat().st_mode & 0o777 == 0o700
    assert not any("could be entered" in line for line in startup_kit.provision(federation, out))


def test_the_hash_of_each_kit_is_there_to_be_read_out(tmp_path: Path) -> None:
    federation = write(tmp_path / "federation.yaml", ["north"], ["c.example"])
    for _ in range(2):  # also for a kit that is as it was
        lines = list(startup_kit.provision(federation, tmp_path / "server"))
        digest = hashlib.sha256((tmp_path / "server" / "kits" / "north.zip").read_bytes()).hexdigest()
        (line,) = [line for line in lines if "sha256sum north.zip" in line]
        assert line.rpartition(": ")[2].replace(" ", "") == digest

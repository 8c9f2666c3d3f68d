"""What docker-compose.yml needs besides the engine: keys, a study that fits, more sites."""

from pathlib import Path

import pytest
import yaml

from client.gateway.settings import load_gateway
from common.config import StudyConfig
from common.errors import ConfigError, LaunchError
from common.lock import held
from common.settings import load_settings, to_yaml
from server.cli.main import main
from server.config import SimulatedSites
from server.deployment import daemon
from server.deployment.folder import open_folder
from server.deployment.site_keys import enrolled
from server.deployment.study_runner import StudyEnd
from server.provisioning import compose as containers
from tests.places import ROOT

COMPOSE = (ROOT / "docker-compose.yml").read_text()
STUDY = {
    "name": "tiny",
    "classes": ["mel", "nv"],
    "sites": {"train": ["a", "b"], "evaluate": ["c"]},
    "model": {"encoder": "test_convnext", "image_size": 32},
    "rounds": 2,
    "local": {"batch_size": 8, "optimizer": {"kind": "sgd", "lr": 0.05}},
}


def federation(*sites: str, classes: tuple[str, ...] = ("mel", "nv")) -> SimulatedSites:
    return SimulatedSites(synthetic=True, classes=classes, sites=dict.fromkeys(sites, 10))


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """What the services `prepare` and `keys` leave, for sites a, b and c."""
    (tmp_path / "sites").mkdir()
    (tmp_path / "sites" / "federation.yaml").write_bytes(
        to_yaml(federation("a", "b", "c").model_dump(mode="json"))
    )
    (tmp_path / "study.yaml").write_bytes(to_yaml(STUDY))
    set_up(tmp_path)
    return tmp_path


def set_up(folder: Path) -> None:
    places = {name: folder / name for name in ("sites", "server", "keys", "over")}
    options = [part for name, path in places.items() for part in (f"--{name}", str(path))]
    assert main(["containers", "--study", str(folder / "study.yaml"), *options]) == 0


# --- before the server starts --------------------------------------------------------------


def test_each_site_gets_its_own_key_and_the_server_knows_them_all(made: Path) -> None:
    server = open_folder(made / "server")
    assert list(enrolled(server)) == ["a", "b", "c"]
    for number, site in (("1", "a"), ("2", "b"), ("3", "c")):
        folder = made / "keys" / number
        assert {path.name for path in folder.iterdir()} == {"ca.pem", "site.key", "gateway.yaml"}
        assert (folder / "site.key").stat().st_mode & 0o777 == 0o600
        settings = load_gateway(folder)
        assert (settings.site, settings.server) == (site, "server:9092")
        assert (settings.key, settings.socket) == (folder / "site.key", Path("/link/trainer.sock"))
    private = [path.read_bytes() for path in (made / "keys").rglob("site.key")]
    assert len(set(private)) == 3
    assert not list((made / "server").rglob("site.key"))


def test_a_second_time_makes_other_keys_and_keeps_the_runs(made: Path) -> None:
    run, before = made / "server" / "runs" / "tiny" / "report.md", (made / "keys/1/site.key").read_bytes()
    run.parent.mkdir(parents=True)
    run.write_text("figures")
    (made / "server" / "queue").mkdir()
    (made / "server" / "queue" / "1-tiny.yaml").touch()
    (made / "over").touch()
    set_up(made)
    assert (made / "keys/1/site.key").read_bytes() != before
    assert run.read_text() == "figures"
    assert not (made / "server" / "queue").exists()
    assert not (made / "over").exists()


def test_a_study_that_fits_the_images_is_left_as_it_is() -> None:
    study = StudyConfig.model_validate(STUDY)
    assert containers.fit(study, federation("a", "b", "c", "d")) is study


@pytest.mark.parametrize(
    "images", [federation("x", "y"), federation("a", "b", "c", classes=("mel", "nv", "df"))]
)
def test_a_study_of_other_sites_or_classes_takes_those_of_the_images(images: SimulatedSites) -> None:
    fitted = containers.fit(StudyConfig.model_validate(STUDY), images)
    assert fitted.sites.train == tuple(images.sites)
    assert fitted.classes == images.classes


# --- two federations on one engine ---------------------------------------------------------


def test_a_second_up_of_the_same_project_takes_nothing_from_the_one_that_runs(
    made: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of another checkout, perhaps: both are called consilium, and share their volumes."""
    running = made / "server" / "running" / "17-demo.yaml"
    running.parent.mkdir()
    running.touch()
    before = (made / "keys/1/site.key").read_bytes()
    places = {name: str(made / name) for name in ("sites", "server", "keys", "over")}
    options = [part for name, path in places.items() for part in (f"--{name}", path)]
    with held(made / "server" / "up.lock", "consilium-server up"):
        assert main(["containers", "--study", str(made / "study.yaml"), *options]) == 1
    said = capsys.readouterr().err
    assert "the study demo is running in this Compose project already" in said
    assert "COMPOSE_PROJECT_NAME=second" in said
    assert (made / "keys/1/site.key").read_bytes() == before
    assert running.exists()
    set_up(made)  # it has ended
    assert (made / "keys/1/site.key").read_bytes() != before


def test_everything_that_an_engine_has_once_can_be_named_from_outside() -> None:
    """So that a second federation, or a test, neither overwrites the first one's images nor meets its ports."""
    compose = yaml.safe_load(COMPOSE)
    services = compose["services"].values()
    own = [service["image"] for service in services if service["image"].startswith("consilium-")]
    assert len(own) >= 10
    assert all(image.endswith(":${CONSILIUM_TAG:-latest}") for image in own)
    assert [port for service in services for port in service.get("ports", ())] == [
        "127.0.0.1:${GRAFANA_PORT:-3000}:3000"
    ]
    fixed = {"container_name", "hostname", "external"}
    assert not [service for service in services if fixed & service.keys()]
    named = [part for kind in ("networks", "volumes") for part in compose[kind].values() if part]
    assert not [part for part in named if {"name", "external"} & part.keys()]


# --- a server that is started again --------------------------------------------------------


@pytest.mark.parametrize(
    ("outcome", "told"),
    [(StudyEnd(True, "2 rounds"), "finished\n"), (StudyEnd(False, "no quorum"), "failed: no quorum\n")],
)
def test_a_study_that_is_over_is_not_run_again(
    made: Path, monkeypatch: pytest.MonkeyPatch, outcome: StudyEnd, told: str
) -> None:
    asked: list[StudyConfig | None] = []

    def up(_folder: object, *, study: StudyConfig | None, once: bool) -> StudyEnd:
        asked.append(study)
        return outcome

    monkeypatch.setattr(daemon, "up", up)
    command = ["up", str(made / "server"), "--study", str(made / "server" / "study.yaml")]
    command += ["--exit-when-done", "--over", str(made / "over")]
    assert main(command) == 0
    assert (made / "over").read_text() == told
    assert main(command) == 0
    assert asked == [load_settings(made / "study.yaml", StudyConfig, "study")]  # once, not twice


def test_a_server_that_cannot_start_says_so_to_those_who_wait(
    made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def up(_folder: object, *, study: StudyConfig | None, once: bool) -> StudyEnd:
        raise LaunchError("the port is taken")

    monkeypatch.setattr(daemon, "up", up)
    assert main(["up", str(made / "server"), "--exit-when-done", "--over", str(made / "over")]) == 0
    assert (made / "over").read_text() == "failed: the port is taken\n"


# --- more sites, or fewer ------------------------------------------------------------------


def test_a_further_site_gets_the_same_message_with_its_own_number() -> None:
    added = yaml.safe_load(containers.override(COMPOSE, 4))
    assert set(added["services"]) == {"prepare", "keys", "server", "gateway-4", "trainer-4"}
    assert "--containers 4 " in added["services"]["prepare"]["command"]
    assert added["services"]["keys"] == {"volumes": ["key-4:/keys/4"]}
    assert added["services"]["server"] == {"networks": ["site-4"]}
    assert added["networks"] == {"site-4": yaml.safe_load(COMPOSE)["networks"]["site-3"]}
    assert added["networks"]["site-4"]["internal"] is True
    assert added["volumes"] == {"key-4": None, "link-4": None}
    base = yaml.safe_load(COMPOSE)["services"]
    for role in ("gateway", "trainer"):
        last, new = (yaml.safe_dump(part) for part in (base[f"{role}-3"], added["services"][f"{role}-4"]))
        pairs = list(zip(last.splitlines(), new.splitlines(), strict=True))
        assert {line for line in pairs if line[0] != line[1]} == {
            line for line in pairs if line[0].replace("3", "4") == line[1] and "3" in line[0]
        }
        assert "link-4:/link" in new


def test_every_site_gets_the_same_message_but_for_its_number() -> None:
    base = yaml.safe_load(COMPOSE)["services"]
    for role in ("gateway", "trainer"):
        first, *others = (
            yaml.safe_dump({key: value for key, value in base[f"{role}-{n}"].items() if key != "build"})
            for n in (1, 2, 3)
        )
        for number, other in enumerate(others, start=2):
            for what in ("site-", "key-", "link-", "/sites/"):
                other = other.replace(f"{what}{number}", f"{what}1")
            assert other == first


def test_the_right_number_of_sites_needs_no_change_and_fewer_take_some_away() -> None:
    assert set(yaml.safe_load(containers.override(COMPOSE, 3))["services"]) == {"prepare"}
    text = containers.override(COMPOSE, 2)
    assert "gateway-3: !reset 'null'" in text
    assert "trainer-3: !reset 'null'" in text


def test_trainers_are_dealt_out_over_the_gpus() -> None:
    services = yaml.safe_load(containers.override(COMPOSE, 4, num_gpus=2))["services"]
    devices = [
        services[f"trainer-{number}"]["deploy"]["resources"]["reservations"]["devices"][0]
        for number in (1, 2, 3, 4)
    ]
    assert [device["device_ids"] for device in devices] == [["0"], ["1"], ["0"], ["1"]]


@pytest.mark.parametrize(
    ("text", "sites", "said"),
    [("services: {web: {}}", 4, "trainer-1"), (COMPOSE, 101, "1 to 100"), (COMPOSE, 0, "1 to 100")],
)
def test_what_cannot_be_made_is_said(text: str, sites: int, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        containers.override(text, sites)


def test_a_compose_file_with_a_key_that_stands_twice_is_refused() -> None:
    with pytest.raises(ConfigError, match="services stands twice, in line 1 and line 2"):
        containers.override("services: {}\nservices: {}\n", 3)

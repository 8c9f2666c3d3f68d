"""A server's folder with two sites and a study that ran two rounds, and a browser that is logged in."""

from pathlib import Path

import pytest
import yaml

from common import keys
from common.config import StudyConfig
from common.settings import to_yaml
from common.web.access import Sessions
from common.web.serve import Place
from server.console.app import application
from server.deployment import site_keys
from server.deployment.folder import ServerFolder, open_folder
from server.provisioning import startup_kit
from server.storage import checkpoint, history
from server.storage.status import set_status
from tests.browser import ORIGIN, TOKEN, Browser


@pytest.fixture
def folder(tmp_path: Path) -> ServerFolder:
    about = {"name": "f", "server": {"hosts": ["s.example"]}, "sites": {"north": {}, "south": {}}}
    (tmp_path / "federation.yaml").write_text(yaml.safe_dump(about))
    list(startup_kit.provision(tmp_path / "federation.yaml", tmp_path / "server"))
    made = open_folder(tmp_path / "server")
    for site in ("north", "south"):
        site_keys.enrol(made, site, keys.make_site_key(tmp_path / "made" / site, "site").public)
    return made


@pytest.fixture
def small_study(study: StudyConfig) -> StudyConfig:
    sites = study.sites.model_copy(update={"train": ("north", "south"), "evaluate": (), "required": 1})
    return study.model_copy(update={"sites": sites})


@pytest.fixture
def run_dir(folder, random_state, small_study) -> Path:
    """The study `demo`, stopped after its second round."""
    run = folder.runs / "demo"
    for number in (1, 2):
        history.append_round(run, random_state(number))
        checkpoint.save(run, random_state(number), small_study)
    (run / "study.yaml").write_bytes(to_yaml(small_study.model_dump(mode="json")))
    set_status(run, "stopped", "stopped by the operator after round 2")
    return run


@pytest.fixture
def stranger(folder) -> Browser:
    app = application(folder, Sessions(TOKEN), Place().address)
    return Browser(app, base_url=ORIGIN, follow_redirects=False)


@pytest.fixture
def browser(stranger) -> Browser:
    assert stranger.post("/login", data={"token": TOKEN}, headers={"origin": ORIGIN}).status_code == 303
    return stranger

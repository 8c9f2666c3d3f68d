"""The Flower app that the server ships to the gateways: only what a gateway needs to see.

Flower bundles a folder. Bundling the project would ship tests, docs and the trainer to every
gateway, so the few files are staged: the server's package, the common one, and the three
files of the client that run in a gateway.
"""

import shutil
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import common
import server
from common import release
from common.errors import LaunchError

GATEWAY_FILES = ("__init__.py", "gateway/__init__.py", "gateway/app.py", "gateway/link.py")
"""Files of `client/` that run in a gateway."""

_PYPROJECT = """\
[project]
name = "{name}"
version = "{version}"
license = {{ file = "LICENSE" }}
dependencies = ["flwr=={flwr}"]

[tool.flwr.app]
publisher = "consilium"

[tool.flwr.app.components]
serverapp = "server.app:app"
clientapp = "client.gateway.app:app"

[tool.flwr.app.config]
server = ""
"""

_LICENSE = "Licensed under the Apache License, Version 2.0: http://www.apache.org/licenses/LICENSE-2.0\n"


def stage(folder: Path) -> Path:
    """Write the app to `folder`, which `flwr run` takes as its argument."""
    for package in (server, common):
        home = Path(str(package.__file__)).parent
        shutil.copytree(
            home, folder / home.name, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__")
        )
    for name in GATEWAY_FILES:
        staged = folder / "client" / name
        staged.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(_client_folder() / name, staged)
    project = _PYPROJECT.format(name=release.DISTRIBUTION, version=release.version(), flwr=version("flwr"))
    (folder / "pyproject.toml").write_text(project, encoding="utf-8")
    (folder / "LICENSE").write_text(_LICENSE, encoding="utf-8")
    return folder


def _client_folder() -> Path:
    """Where the client package lies; found, not imported: the server never imports the client."""
    spec = find_spec("client")
    if spec is None or spec.origin is None:
        raise LaunchError("the package `client` is not installed beside `server`; install Consilium again")
    return Path(spec.origin).parent

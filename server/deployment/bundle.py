"""The Flower app: the code that the ServerApp runs from. It stays on the server.

Flower bundles a folder. Bundling the project would pack tests, docs and the sites' code as well, so the server's
package and the common one are staged. Sites never fetch the app; Flower only wants a ClientApp to be named.
"""

import shutil
from importlib.metadata import version
from pathlib import Path

import common
import server
from common import release

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
clientapp = "server.transport.no_client_app:app"

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
    project = _PYPROJECT.format(name=release.DISTRIBUTION, version=release.version(), flwr=version("flwr"))
    (folder / "pyproject.toml").write_text(project, encoding="utf-8")
    (folder / "LICENSE").write_text(_LICENSE, encoding="utf-8")
    return folder

"""The name and the version under which this program is installed.

`consilium` on the package index is another project's program, so the distribution has a name of its own
(docs/decisions/0013). The version stands in pyproject.toml alone; everything else asks here.
"""

import importlib.metadata

DISTRIBUTION = "consilium-fl"
"""Name of the distribution, as in pyproject.toml; its Python interface is the package `consilium_fl`."""


def version() -> str:
    """The installed version.

    Raises importlib.metadata.PackageNotFoundError where the code runs without being installed, as in
    Flower's app bundle.
    """
    return importlib.metadata.version(DISTRIBUTION)

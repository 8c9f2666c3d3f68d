"""Reading of a site's settings."""

from os import PathLike
from pathlib import Path

from client.config import SiteConfig, load_site


def read_site(path: str | PathLike[str]) -> SiteConfig:
    """The settings of one site; relative paths in the file count from its folder.

    Raises ConsiliumError (its subclass ConfigError) that lists every mistake of the file.

        >>> site = read_site("configs/site/example.yaml")
        >>> site.name, site.policy.min_train_images
        ('north', 100)
    """
    return load_site(Path(path))

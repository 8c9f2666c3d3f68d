"""Commands of `consilium-site` in a process of their own: the server's side knows no image and no network."""

import subprocess
import sys

from common.errors import ConfigError


def call_site(arguments: list[str]) -> None:
    """Run `consilium-site ARGUMENTS`. Raises ConfigError with what it wrote if it fails."""
    done = subprocess.run(
        [sys.executable, "-m", "client.cli", *arguments], stderr=subprocess.PIPE, text=True, check=False
    )
    if done.returncode:
        raise ConfigError(f"`consilium-site {arguments[0]}` failed:\n{done.stderr.strip()[-3000:]}")

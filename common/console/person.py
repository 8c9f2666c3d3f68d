"""The person who gives an order on this machine, for a log."""

import getpass
import os


def user_name() -> str:
    """Name of the user of this process."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        return f"uid {os.getuid()}"

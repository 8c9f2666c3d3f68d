"""What the SuperLink's door writes down of whom it turned away."""

from datetime import datetime

from common.settings import Frozen


class Refusal(Frozen):
    """One line of the record."""

    time: datetime
    address: str
    """Of the caller, without its port."""
    fingerprint: str
    """Of the key that it showed; empty if it showed none."""
    clock_s: float | None
    """How far its clock was behind this machine's; negative: ahead."""
    what: str
    """In Flower's words."""
    check: bool = False
    """It says that it only tries the connection: `consilium-site check-connection`."""

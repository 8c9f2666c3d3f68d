"""Places that tests read: the checkout, its settings, and real data beside it where there are any."""

from pathlib import Path

ROOT = Path(__file__).parents[1]
CONFIGS = ROOT / "configs"
SHARED = ROOT.parent / "shared"
"""Real images and weights; tests that read them are skipped where it is not."""
DATA = SHARED / "data"

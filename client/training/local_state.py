"""Local state of a study: what a site keeps between rounds, on its own disk.

Layers that stay local (batch norm under `batch_norm: local`) are trained round after round
and must survive a restart of the trainer. They are kept by round: a server that lost its last
round and asks for it again must get the same answer, so the site starts that round from
the layers it had then. Files are replaced whole, never edited.
"""

import re
from pathlib import Path

from common.config import StudyConfig
from common.weights import Array, Arrays, load_file, save_file

_KEPT = 3
"""Rounds whose layers are kept; a server resumes from its last checkpoint, at most one back."""


class SiteState:
    """The folder of one study under the site's `state_dir`."""

    def __init__(self, state_dir: Path, study: StudyConfig) -> None:
        self.folder = state_dir / f"{study.name}-{study.fingerprint[:12]}"

    def local_arrays(self, before_round: int) -> dict[str, Array] | None:
        """The local layers as the last round before `before_round` left them, None without one."""
        earlier = [number for number in self._rounds() if number < before_round]
        return load_file(self._path(max(earlier)))[0] if earlier else None

    def keep_local(self, number: int, arrays: Arrays) -> None:
        """Keep the local layers after round `number`. Raises StorageError; former ones are then still there."""
        save_file(self._path(number), arrays, {})
        for old in sorted(self._rounds())[:-_KEPT]:
            self._path(old).unlink(missing_ok=True)

    def forget(self) -> None:
        """Start over: a study that begins again must not find the layers of its former run."""
        for number in self._rounds():
            self._path(number).unlink(missing_ok=True)

    def _path(self, number: int) -> Path:
        return self.folder / f"local-{number:05d}.safetensors"

    def _rounds(self) -> list[int]:
        names = (path.name for path in self.folder.glob("local-*.safetensors"))
        return [int(match[1]) for name in names if (match := re.fullmatch(r"local-(\d+)\.safetensors", name))]

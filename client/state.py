"""What a site keeps of a study between rounds, on its own disk.

Layers that stay local (batch norm under `batch_norm: local`) are trained round after round
and must survive a restart of the trainer. Files are replaced whole, never edited.
"""

from pathlib import Path

from common.config import StudyConfig
from common.errors import StorageError
from common.weights import Array, Arrays, load_file, save_file


class SiteState:
    """The folder of one study under the site's `state_dir`."""

    def __init__(self, state_dir: Path, study: StudyConfig) -> None:
        self._local = state_dir / f"{study.name}-{study.fingerprint[:12]}" / "local.safetensors"

    def local_arrays(self) -> dict[str, Array] | None:
        """The local layers as the last round left them, None before the first."""
        return load_file(self._local)[0] if self._local.exists() else None

    def keep_local(self, arrays: Arrays) -> None:
        """Replace the local layers. Raises StorageError, and the former ones are then still there."""
        save_file(self._local, arrays, {})

    def forget(self) -> None:
        """Start over: a study that begins again must not find the layers of its former run.

        Raises StorageError.
        """
        try:
            self._local.unlink(missing_ok=True)
        except OSError as error:
            raise StorageError(
                f"{self._local} cannot be removed: {error.strerror}; make state_dir a folder that the trainer "
                "may write to"
            ) from error

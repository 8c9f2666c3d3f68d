"""Files that are either whole or absent."""

import os
from pathlib import Path

from common.errors import StorageError


def write_atomically(path: Path, content: bytes, *, private: bool = False) -> None:
    """Write beside `path`, flush to disk, then rename. Raises StorageError.

    What is `private` only its owner may read, from the first byte on.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            if private:
                os.fchmod(file.fileno(), 0o600)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise StorageError(
            f"{path.name} could not be written to {path.parent}: {error.strerror} "
            f"({len(content) / 2**20:.1f} MiB needed); nothing written before is lost. "
            "Free some space there or choose another folder."
        ) from error

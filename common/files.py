"""Files that are either whole or absent, and records of one pydantic model in them."""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, TypeVar

from pydantic import BaseModel

from common.errors import StorageError
from common.formats import json_text

Record = TypeVar("Record", bound=BaseModel)


def write_atomically(path: Path, content: bytes, *, private: bool = False) -> None:
    """Write beside `path`, flush to disk, then rename. Raises StorageError.

    What is `private` only its owner may read, from the first byte on.
    """
    with written_atomically(path, len(content), private=private) as file:
        file.write(content)


@contextmanager
def written_atomically(path: Path, num_bytes: int, *, private: bool = False) -> Iterator[BinaryIO]:
    """A file beside `path` to write about `num_bytes` to, which takes its place at the end. Raises StorageError."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            if private:
                os.fchmod(file.fileno(), 0o600)
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise StorageError(
            f"{path.name} could not be written to {path.parent}: {error.strerror} "
            f"({num_bytes / 2**20:.1f} MiB needed); nothing written before is lost. "
            "Free some space there or choose another folder."
        ) from error
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal digits; the file is read in pieces. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_json(path: Path, record: BaseModel) -> None:
    """Write `record` as JSON, atomically. Raises StorageError."""
    write_atomically(path, record.model_dump_json(indent=1).encode())


def read_json(path: Path, kind: type[Record]) -> Record | None:
    """The record that `write_json` wrote, None without a file. Raises StorageError."""
    try:
        content = path.read_bytes()
        record = kind.model_validate_json(content)
        json_text.loads(content)  # which refuses a key that stands twice
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise StorageError(f"{path} cannot be read ({type(error).__name__}); remove it") from error
    return record


def make_private(folder: Path) -> bool:
    """Make `folder`, which its owner alone may enter; True if others could enter it before. Raises StorageError."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not folder.stat().st_mode & 0o077:
            return False
        folder.chmod(0o700)
    except OSError as error:
        raise StorageError(
            f"{folder} cannot be made a folder of this user alone: {error.strerror}; give a folder of your own"
        ) from error
    return True


@contextmanager
def private_files() -> Iterator[None]:
    """Files and folders that this process makes within are for its user alone, and those of its children are."""
    former = os.umask(0o077)
    try:
        yield
    finally:
        os.umask(former)

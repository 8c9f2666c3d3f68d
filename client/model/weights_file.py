"""Verification of a weights file: its checksum is the one in the study, or the site refuses it."""

from pathlib import Path

from common.config import FileWeights
from common.errors import SiteDataError
from common.files import sha256_of


def verified(wanted: FileWeights, weights_dir: Path | None, inside: str | None = None) -> Path:
    """Where the file lies. Raises SiteDataError if it is not there or has another checksum.

    With `inside`, the study names a folder, and the checksum is of that file in it.
    """
    if weights_dir is None:
        raise SiteDataError(
            f"the study starts from the file {wanted.name}, but this site has no weights_dir; "
            "put the file in a folder and name the folder in the site's settings."
        )
    path = weights_dir / wanted.name
    if inside is not None:
        path = path / inside
    try:
        checksum = sha256_of(path)
    except OSError as error:
        raise SiteDataError(
            f"{path} cannot be read ({error.strerror}); the study starts from it. Fetch it from the "
            "study operator and put it there."
        ) from error
    if checksum != wanted.sha256:
        raise SiteDataError(
            f"{path} has SHA-256 {checksum}, expected {wanted.sha256}; it is another file or was damaged "
            "on the way. Fetch it again from the study operator."
        )
    return path

"""Images among the files and folders that a person names: references to each, and the files that are none."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from client.data.decoding import dicom
from client.data.references import BadImage, DicomFrame, ImageReference, PictureFile

_DICOM_MARK = b"DICM"
_HIDDEN = "."


@dataclass(frozen=True)
class Unreadable:
    """A file that is not an image that can be used; `reason` ends the sentence that begins with the path."""

    path: Path
    reason: str


def references(paths: Sequence[Path]) -> Iterator[tuple[Path, ImageReference] | Unreadable]:
    """Every image in files and folders (all that is below, without hidden files), each frame of a DICOM.

    A file that cannot be opened as an image comes as `Unreadable`, and the rest follows.
    """
    for path in paths:
        if path.is_dir():
            inside = sorted(p for p in path.rglob("*") if p.is_file() and not p.name.startswith(_HIDDEN))
            if not inside:
                yield Unreadable(path, "holds no files")
            for file in inside:
                yield from _of_file(file)
        else:
            yield from _of_file(path)


def _of_file(path: Path) -> Iterator[tuple[Path, ImageReference] | Unreadable]:
    try:
        with path.open("rb") as file:
            is_dicom = file.read(132)[128:] == _DICOM_MARK
    except OSError as error:
        yield Unreadable(path, f"cannot be read ({error.strerror})")
        return
    if not is_dicom:
        yield path, PictureFile(path)
        return
    try:
        num_frames = dicom.num_frames(dicom.read_header(path))
    except BadImage as bad:
        yield Unreadable(path, str(bad))
        return
    for frame in range(num_frames):
        yield path, DicomFrame(path, frame)

"""Images among the files and folders that a person names: references to each, and the files that are none."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from client.data.decoding import dicom
from client.data.decoding.dicom_kind import other_than_image, with_article
from client.data.readers.scan import SPECIAL, USUAL, every_file, is_dicom
from client.data.references import BadImage, DicomFrame, ImageReference, PictureFile


@dataclass(frozen=True)
class Unreadable:
    """A file that is not an image that can be used; `reason` ends the sentence that begins with the path."""

    path: Path
    reason: str
    is_usual: bool = False
    """True for hidden files and those of the operating system, which lie in most folders."""


def references(paths: Sequence[Path]) -> Iterator[tuple[Path, ImageReference] | Unreadable]:
    """Every image in files and folders, all that is below and what links lead to, each frame of a DICOM.

    A file that is no image comes as `Unreadable`, and the rest follows.
    """
    for path in paths:
        if path.is_dir():
            yield from _of_folder(path)
        else:
            yield from _of_file(path)


def _of_folder(folder: Path) -> Iterator[tuple[Path, ImageReference] | Unreadable]:
    passed_over: defaultdict[str, list[str]] = defaultdict(list)
    try:
        files = every_file(folder, passed_over)
    except OSError as error:
        yield Unreadable(Path(error.filename or folder), f"cannot be read ({error.strerror})")
        return
    if not files:
        yield Unreadable(folder, "holds no files")
    for file in files:
        yield from _of_file(file)
    for kind, names in passed_over.items():
        for name in names:
            yield Unreadable(folder / name, f"is one of the {kind}", is_usual=kind in USUAL)


def _of_file(path: Path) -> Iterator[tuple[Path, ImageReference] | Unreadable]:
    if path.exists() and not path.is_file():  # to open a pipe may take forever
        yield Unreadable(path, f"is one of the {SPECIAL}")
        return
    try:
        with path.open("rb") as file:
            marked = is_dicom(file.read(132))
    except OSError as error:
        yield Unreadable(path, f"cannot be read ({error.strerror})")
        return
    if not marked:
        yield path, PictureFile(path)
        return
    try:
        header = dicom.read_header(path)
        kind = other_than_image(header)
        num_frames = 0 if kind else dicom.num_frames(header)
    except BadImage as bad:
        yield Unreadable(path, str(bad))
        return
    if kind:
        yield Unreadable(path, f"is {with_article(kind)} and no image")
    for frame in range(num_frames):
        yield path, DicomFrame(path, frame)

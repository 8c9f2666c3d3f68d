"""Scan of a folder for image files, that also says what lies there and is no image.

Hospitals' folders hold more than images: files of the operating system, masks, tables, links. Whatever a scan
passes over is named with its kind, because a person cannot miss what is passed over in silence.

Links are followed, each folder once. A file is an image by its ending, or by its first bytes if it has no
ending. Masks that lie beside their images under the same name are not images of a class.
"""

import re
from collections import defaultdict, deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from client.data.readers.rows import Unused, by_kind

SUFFIXES = frozenset(
    [
        ".jpg",
        ".jpeg",
        ".jpe",
        ".jfif",
        ".jif",
        ".png",
        ".apng",
        ".tif",
        ".tiff",
        ".bmp",
        ".dib",
        ".webp",
        ".gif",
        ".ppm",
        ".pgm",
        ".pbm",
        ".pnm",
        ".jp2",
        ".j2k",
        ".jpf",
        ".jpx",
        ".jpc",
        ".j2c",
        ".mpo",
    ]
)
"""Endings of image files, in small letters."""

_SYSTEM = frozenset(
    [
        "thumbs.db",
        "ehthumbs.db",
        "desktop.ini",
        ".ds_store",
        "__macosx",
        "@eadir",
        "$recycle.bin",
        ".trashes",
        ".spotlight-v100",
        ".fseventsd",
        ".appledouble",
        ".temporaryitems",
        "lost+found",
    ]
) | {"system volume information", "icon\r", "#recycle"}
SYSTEM = "files of the operating system"
HIDDEN = "hidden files, whose names start with a dot"
LINKS = "links that lead nowhere"
SPECIAL = "pipes, sockets and devices"
AGAIN = "links to a folder that is read already"
DICOMS = "DICOM files, which `data.kind: dicom` reads"
MASKS = "masks beside their images"
_OTHERS = "files with"
LOOSE = "image files that lie in no folder of a class"
USUAL = frozenset({SYSTEM, HIDDEN})

_STARTS = (
    b"\xff\xd8\xff",
    b"\x89PNG\r\n\x1a\n",
    b"II*\0",
    b"MM\0*",
    b"GIF8",
    b"BM",
    b"\0\0\0\x0cjP  ",
    b"\xff\x4f\xff\x51",
)
_DICOM_MARK = b"DICM"
_HEAD = 132
_BARE_DICOM = re.compile(
    rb"\x02\0[\0-\x03]\0(?:UL|OB|UI|[\x02-\x40]\0\0\0)|\x08\0[\0\x01\x05\x08\x12\x14\x16\x18]\0(?:UL|CS|DA|TM|UI|[\x02-\x40]\0\0\0)"
)
"""The first element of a file without its mark: of the file's own group, or of that which names the image."""
_MASK = re.compile(
    r"(?P<image>.+?)[ _-]*(?:mask|seg|segmentation|annotation|groundtruth|label|gt)s?(?:[ _-]?\d+)?$",
    re.IGNORECASE,
)
_MASK_FOLDER = re.compile(
    r"(?:.*[ _-])?(?:masks?|segs?|segmentations?|annotations?|ground[ _-]?truths?|gt)$", re.IGNORECASE
)


@dataclass(frozen=True)
class Scan:
    """Image files under a folder, and everything else."""

    images: tuple[Path, ...]
    """In the order of their names."""
    unused: tuple[Unused, ...]
    """Names are relative to the folder."""


def scan(folder: Path) -> Scan:
    """All files under `folder`, however deep. Raises OSError if a folder cannot be read."""
    images: list[Path] = []
    names: defaultdict[str, list[str]] = defaultdict(list)
    for path in every_file(folder, names):
        kind = kind_of(path)
        if kind is None:
            images.append(path)
        else:
            names[kind].append(path.relative_to(folder).as_posix())
    masks = masks_among(images)
    names[MASKS] += [path.relative_to(folder).as_posix() for path in images if path in masks]
    return Scan(tuple(path for path in images if path not in masks), tuple(by_kind(names, USUAL)))


def every_file(root: Path, names: defaultdict[str, list[str]]) -> list[Path]:
    """Every file below, links followed, in the order of names; `names` gets what is passed over. Raises OSError.

    Folders come before links to folders, so that a folder is read where it really lies.
    """
    files: list[Path] = []
    read: set[tuple[int, int]] = set()
    waiting, links = deque([root]), deque[Path]()
    while waiting or links:
        folder = (waiting or links).popleft()
        status = folder.stat()
        if (identity := (status.st_dev, status.st_ino)) in read:
            names[AGAIN].append(folder.relative_to(root).as_posix())
            continue
        read.add(identity)
        for path in sorted(folder.iterdir()):
            name = path.relative_to(root).as_posix()
            if (kind := passed_over(path)) is not None:
                names[kind].append(name + ("/" if path.is_dir() else ""))
            elif path.is_dir():
                (links if path.is_symlink() else waiting).append(path)
            else:
                files.append(path)
    return sorted(files)


def folders_in(folder: Path) -> list[Path]:
    """Folders directly in `folder`, links to folders among them, in the order of their names."""
    return sorted(path for path in folder.iterdir() if path.is_dir() and not is_aside(path.name))


def beside_folders(folder: Path) -> list[Unused]:
    """What lies directly in `folder` and is not one of `folders_in`."""
    names: defaultdict[str, list[str]] = defaultdict(list)
    for path in sorted(folder.iterdir()):
        if (kind := passed_over(path)) is not None:
            names[kind].append(path.name)
        elif path.is_file():
            names[kind_of(path) or LOOSE].append(path.name)
    return list(by_kind(names, USUAL))


def merged(parts: Sequence[tuple[str, Sequence[Unused]]]) -> list[Unused]:
    """Unused files of several folders, each with the folder's name, as one list by kind."""
    merged_by_kind: dict[str, Unused] = {}
    for home, unused in parts:
        for entry in unused:
            names = tuple(f"{home}/{name}" if home else name for name in entry.names)
            before = merged_by_kind.get(entry.kind, replace(entry, names=()))
            merged_by_kind[entry.kind] = replace(before, names=(*before.names, *names))
    return [entry for _, entry in sorted(merged_by_kind.items())]


def passed_over(path: Path) -> str | None:
    """Kind of an entry of a folder that is neither a folder nor a file to look at; None for these."""
    if is_aside(path.name):
        return _aside(path.name)
    if not path.exists():
        return LINKS
    # Whatever it is called: to open a pipe may take forever.
    return None if path.is_dir() or path.is_file() else SPECIAL


def is_aside(name: str) -> bool:
    """True for a hidden file or folder, and for what an operating system leaves."""
    return name.startswith(".") or name.casefold() in _SYSTEM


def kind_of(path: Path) -> str | None:
    """Kind of an ordinary file that is no image, as a plural noun; None for an image."""
    suffix = path.suffix.lower()
    has_ending = bool(suffix) and not suffix[1:].isdigit()  # a DICOM's UID, or IMG.0001
    if suffix in SUFFIXES:
        return None
    try:
        start = _first_bytes(path)
    except OSError as error:
        if has_ending:
            return f"files that cannot be read ({error.strerror})"
        raise  # it may be an image
    if is_dicom(start):
        return DICOMS
    if start.startswith(_STARTS) or (start[:4] == b"RIFF" and start[8:12] == b"WEBP"):
        return f"image files under the ending {suffix}" if has_ending else None
    return f"{_OTHERS} the ending {suffix}" if has_ending else f"{_OTHERS}out an ending that hold no image"


def is_no_image(kind: str) -> bool:
    """True for a kind of `kind_of` whose files hold no image of any sort."""
    return kind.startswith(_OTHERS)


def is_dicom(start: bytes) -> bool:
    """True for the first 132 bytes or more of a DICOM file (PS3.10 7.1), and of one that begins without them."""
    return start[_HEAD - 4 : _HEAD] == _DICOM_MARK or bool(_BARE_DICOM.match(start))


def masks_among(images: Sequence[Path]) -> set[Path]:
    """Images that are masks of others.

    `a_mask.png` beside `a.png`, and `masks/a.png` with `a.jpg` or `images/a.jpg` in the folder above.
    """
    stems: defaultdict[str, set[Path]] = defaultdict(set)
    for path in images:
        stems[path.stem].add(path.parent)
    masks = set()
    for path in images:
        match = _MASK.fullmatch(path.stem)
        if match and path.parent in stems.get(match["image"], ()):
            masks.add(path)
        elif _MASK_FOLDER.fullmatch(path.parent.name):
            near = {
                path.parent.parent,
                *(home for home in stems[path.stem] if home.parent == path.parent.parent),
            }
            near = {home for home in near if not _MASK_FOLDER.fullmatch(home.name)}
            base = match["image"] if match else path.stem
            if near & (stems[path.stem] | stems.get(base, set())):
                masks.add(path)
    return masks


def _aside(name: str) -> str:
    return SYSTEM if name.casefold() in _SYSTEM or name.startswith("._") else HIDDEN


def _first_bytes(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(_HEAD)

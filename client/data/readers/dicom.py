"""DICOM files as a PACS exports them, labelled by a csv.

Files are recognised anywhere under `root` by their header, whatever they are called; a csv says the
label by SOPInstanceUID (an image), SeriesInstanceUID, StudyInstanceUID or PatientID. A file with
several frames is several images of one label, or its middle one. Files that no line speaks of are
left out with a count. So are objects that are no images (masks, dose grids, reports, ...), whatever a line says, and
the scouts of a study or patient that a line labels as a whole; a line that nothing else belongs to is a
problem. Files that cannot be read are problems, because their patients are not known.

What a DICOM says of a person stays in this file: rows carry keyed hashes of PatientID (or of the
study, where the patient is not named), and messages name files and lines, never values.

One image that lies there twice (one SOPInstanceUID) counts once. Two images under one are a problem if the table
labels images by it.
"""

import contextlib
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import pydicom
from pydicom.uid import UID

from client.config import DicomData
from client.data.decoding.dicom import num_frames, read_header
from client.data.decoding.dicom_extent import same_pixels
from client.data.decoding.dicom_frame import Frame, text
from client.data.decoding.dicom_kind import other_than_image, with_article
from client.data.manifest import ImageRow
from client.data.progress import shown
from client.data.pseudonyms import hidden
from client.data.readers.patients import (
    SEVERAL_SPELLINGS,
    TAKEN_AS_ONE,
    is_placeholder,
    one_spelling,
    spelling,
)
from client.data.readers.rows import ReadRows, Unused, by_kind
from client.data.readers.scan import USUAL, every_file, is_dicom, kind_of
from client.data.readers.subgroups import attributes, require_subgroups
from client.data.readers.table import ROUNDED, ROUNDED_BY, CsvTable, read_table, require_columns
from client.data.references import BadImage, DicomFrame, Window
from common.errors import SiteDataError

_INDEX = "indexes of a disc (DICOMDIR)"
_SCOUT = "localizer (scout)"
_OF_A_WHOLE = ("StudyInstanceUID", "PatientID")
"""What labels images that were not looked at one by one, scouts among them."""


_COPY = "copies of a DICOM image that is used, with its SOPInstanceUID and its pixels"
_OTHER_PIXELS = "image with the SOPInstanceUID of another file and other pixels"
_OTHER_PATIENT = "image with the SOPInstanceUID and the pixels of another file, but another PatientID"


@dataclass(frozen=True)
class _Owner:
    """Who an image belongs to, in clear."""

    kind: Literal["patient", "study"]
    identifier: str


@dataclass(frozen=True)
class _Line:
    source: str
    label: str
    split: str | None
    attributes: Mapping[str, str]


def read_dicom(config: DicomData, secret: bytes) -> ReadRows:
    """Rows, problems and unused files. Raises SiteDataError if the folder, the table or its columns are not there."""
    if not config.root.is_dir():
        raise SiteDataError(
            f"{config.root} is not a folder; point data.root at the folder of the DICOM files"
        )
    lines, problems = _lines(read_table(config.labels), config)
    files, unused = _files(config.root)
    export = _Export(config, lines)
    for path in shown(files, len(files), "DICOM headers read"):
        export.add(path)
    rows, joined = _with_patients(export.rows, export.owners, secret)
    problems += [*export.problems, *export.lines_without_images()]
    return ReadRows(rows, problems, [*unused, *export.unused(), *joined])


class _Export:
    """Contents of the files that were added so far."""

    def __init__(self, config: DicomData, lines: Mapping[str, _Line]) -> None:
        self.rows: list[ImageRow] = []
        self.owners: list[_Owner] = []
        """Of each row."""
        self.problems: list[str] = []
        self._config, self._lines = config, lines
        self._met: set[str] = set()
        self._others: defaultdict[str, Counter[str]] = defaultdict(Counter)
        self._left_out: defaultdict[str, list[str]] = defaultdict(list)
        self._alike: defaultdict[str, list[str]] = defaultdict(list)
        self._nearly: list[str] = []
        self._first_of: dict[str, tuple[Path, _Owner]] = {}
        self._captures: defaultdict[str, list[str]] = defaultdict(list)
        """Secondary captures, and ..."""
        self._studies: set[str] = set()
        """... the studies that hold other images."""
        spellings = Counter(map(spelling, lines)) if config.match == "PatientID" else Counter[str]()
        self._by_spelling = {
            spelling(identifier): identifier for identifier in lines if spellings[spelling(identifier)] == 1
        }

    def add(self, path: Path) -> None:
        """Read one file's header."""
        name, identifier = path.relative_to(self._config.root).as_posix(), ""
        try:
            header = read_header(path)
            identifier = self._identifier(header, name)
            kind = other_than_image(header)
            line = self._lines.get(identifier)
            if kind is None and line is not None:
                kind = self._add_image(path, name, header, line)
        except BadImage as bad:
            self.problems.append(f"{name} {bad}")
            self._met.add(identifier)
            return
        if kind is not None:
            self._left_out[f"DICOM files with {with_article(kind)} instead of an image"].append(name)
            self._others[identifier][kind] += 1
        elif line is None:
            self._left_out[f"DICOM files that have no line in {self._config.labels.name}"].append(name)
        else:
            self._met.add(identifier)

    def _identifier(self, header: pydicom.Dataset, name: str) -> str:
        """That of the file's line, if a patient's has one in another spelling."""
        identifier = text(header, self._config.match)
        if identifier in self._lines or spelling(identifier) not in self._by_spelling:
            return identifier
        self._nearly.append(name)
        return self._by_spelling[spelling(identifier)]

    def _add_image(self, path: Path, name: str, header: pydicom.Dataset, line: _Line) -> str | None:
        """Add the file's images; returns what it is if there are none. Raises BadImage."""
        rows = list(_rows(path, header, line, self._config))
        if not rows:
            return _SCOUT
        owner = _owner(header)
        if (again := _again(path, header, owner, self._first_of)) == _COPY:
            self._left_out[again].append(name)
            return None
        if again is not None and self._config.match == "SOPInstanceUID":
            raise BadImage(f"is an {again}; keep the one that counts")
        if again is not None:
            self._alike[f"DICOM files, each an {again}"].append(name)
        self.rows += rows
        self.owners += [owner] * len(rows)
        study = text(header, "StudyInstanceUID")
        if "SecondaryCapture" in UID(text(header, "SOPClassUID")).keyword:
            self._captures[study].append(name)
        else:
            self._studies.add(study)
        return None

    def lines_without_images(self) -> Iterator[str]:
        """Problems of the table's lines."""
        match = self._config.match
        for identifier, line in self._lines.items():
            if identifier in self._met:
                continue
            if found := self._others.get(identifier):
                kinds = ", ".join(f"{count} x {kind}" for kind, count in sorted(found.items()))
                yield (
                    f"{line.source}: this {match} has no image, only {kinds}; name the image that it was made of, "
                    "or remove the line"
                )
            elif ROUNDED.fullmatch(identifier):
                yield f"{line.source}: no file has this {match}, which {ROUNDED_BY}"
            else:
                yield f"{line.source}: no file has this {match}"

    def unused(self) -> Iterator[Unused]:
        """Files of which no image was made, and files that a person should look at."""
        yield from by_kind(self._left_out)
        for entry in by_kind(self._alike):
            yield replace(entry, what="taken as images of their own")
        captures = [
            name for study, names in self._captures.items() if study in self._studies for name in names
        ]
        if captures and self._config.match in _OF_A_WHOLE:
            kind = (
                "secondary captures in studies with other images, such as screenshots and reports of a dose"
            )
            yield Unused(kind, tuple(captures), what="taken as images")
        if self._nearly:
            kind = f"DICOM files whose PatientID is that of a line {SEVERAL_SPELLINGS}"
            yield Unused(kind, tuple(self._nearly), what="found nearly")


def _again(
    path: Path, header: pydicom.Dataset, owner: _Owner, first_of: dict[str, tuple[Path, _Owner]]
) -> str | None:
    """What a file is whose SOPInstanceUID another has; None for the first with one. Raises BadImage."""
    identifier = text(header, "SOPInstanceUID")
    if not identifier:
        return None
    first, first_owner = first_of.setdefault(identifier, (path, owner))
    if first == path:
        return None
    if not same_pixels(first, path):
        return _OTHER_PIXELS
    return _COPY if owner == first_owner else _OTHER_PATIENT


def _with_patients(
    rows: Sequence[ImageRow], owners: Sequence[_Owner], secret: bytes
) -> tuple[list[ImageRow], list[Unused]]:
    """Rows with the keyed hash of their patient, or else of their study, and the patients in several spellings."""
    spelled = one_spelling(owner.identifier for owner in owners if owner.kind == "patient")
    result, joined = [], []
    for row, owner in zip(rows, owners, strict=True):
        identifier = spelled[owner.identifier] if owner.kind == "patient" else owner.identifier
        if identifier != owner.identifier:
            joined.append(row.image.name)
        result.append(replace(row, patient=hidden(secret, owner.kind, identifier) if identifier else None))
    by_study = [
        row.image.name
        for row, owner in zip(rows, owners, strict=True)
        if owner.kind == "study" and owner.identifier
    ]
    several = f"images whose PatientID is that of other images {SEVERAL_SPELLINGS}"
    unknown = "images whose PatientID is empty or a placeholder, so that two studies of one patient are two patients"
    found = [
        Unused(several, tuple(joined), what=TAKEN_AS_ONE),
        Unused(unknown, tuple(by_study), what="grouped by their study"),
    ]
    return result, [entry for entry in found if entry.names]


def _lines(table: CsvTable, config: DicomData) -> tuple[dict[str, _Line], list[str]]:
    columns = config.columns
    wanted = [columns.key or config.match, columns.label, *([columns.split] if columns.split else [])]
    require_columns(table, wanted, "as data.columns and data.match of the site's YAML say")
    require_subgroups(table, config)
    lines: dict[str, _Line] = {}
    problems = list(table.problems)
    for number, cells in table.rows:
        source = f"{table.path.name} row {number}"
        identifier, label = cells.get(wanted[0], ""), cells.get(columns.label, "")
        split = cells.get(columns.split, "") or None if columns.split else None
        line = _Line(source, label, split, attributes(cells, config))
        if not identifier or not label:
            problems.append(f"{source}: no {'label' if identifier else config.match}")
        elif (earlier := lines.setdefault(identifier, line)) != line and (
            (earlier.label, earlier.split, earlier.attributes) != (line.label, line.split, line.attributes)
        ):
            problems.append(
                f"{source}: the {config.match} of {earlier.source} with another label, split or subgroup"
            )
    return lines, problems


def _files(root: Path) -> tuple[list[Path], list[Unused]]:
    """DICOM files and files that are called so, in the order of their names, and what is neither."""
    names: defaultdict[str, list[str]] = defaultdict(list)
    files = []
    for path in every_file(root, names):
        if path.name.upper() == "DICOMDIR":
            names[_INDEX].append(path.relative_to(root).as_posix())
        elif path.suffix.lower() in (".dcm", ".dicom", ".ima") or _is_marked(path):
            files.append(path)
        else:
            names[kind_of(path) or "image files that are no DICOM"].append(path.relative_to(root).as_posix())
    return files, list(by_kind(names, (*USUAL, _INDEX)))


def _is_marked(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return is_dicom(file.read(132))
    except OSError:
        return True  # reading its header will say why it cannot be opened


def _owner(header: pydicom.Dataset) -> _Owner:
    patient = text(header, "PatientID")
    if patient and not is_placeholder(patient):
        return _Owner("patient", patient)
    return _Owner("study", text(header, "StudyInstanceUID"))


def _rows(path: Path, header: pydicom.Dataset, line: _Line, config: DicomData) -> Iterator[ImageRow]:
    window = None if config.window is None else Window(config.window.centre, config.window.width)
    device = f"{text(header, 'Manufacturer')} {text(header, 'ManufacturerModelName')}".strip()
    frames = num_frames(header)
    chosen = list(range(frames))
    if config.match in _OF_A_WHOLE:
        chosen = [number for number in chosen if not Frame(header, number, frames).is_localizer]
    known = {**line.attributes, **_tagged(header, config)}
    for frame in chosen if config.frames == "all" else chosen[len(chosen) // 2 :][:1]:
        yield ImageRow(
            image=DicomFrame(path, frame, window),
            label=line.label,
            group=None,
            split=line.split,
            source=line.source,
            acquisition=device or None,
            attributes=known,
        )


def _tagged(header: pydicom.Dataset, config: DicomData) -> dict[str, str]:
    """What the header says for the study's subgroups; without tags that are missing or broken."""
    found = {}
    for name, source in config.subgroup_tags.items():
        with contextlib.suppress(
            BadImage
        ):  # a broken tag takes an image out of a row, and not out of the study
            if value := text(header, source.tag):
                found[name] = value
    return found

"""DICOM files as a PACS exports them, labelled by a csv.

Files are recognised anywhere under `root` by their header, whatever they are called; a csv says the
label by SOPInstanceUID (an image), SeriesInstanceUID, StudyInstanceUID or PatientID. A file with
several frames is several images of one label, or its middle one. Files that no line speaks of are
left out with a count. So are objects that are no images (masks, dose grids, reports, ...), whatever a line says, and
the scouts of a study or patient that a line labels as a whole; a line that nothing else belongs to is a
problem. Files that cannot be read are problems, because their patients are not known.

What a DICOM says of a person stays in this file: rows carry keyed hashes of PatientID (or of the
study, where the patient is not named), and messages name files and lines, never values.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pydicom

from client.config import DicomData
from client.data.decoding.dicom import num_frames, read_header
from client.data.decoding.dicom_frame import Frame, text
from client.data.decoding.dicom_kind import other_than_image, with_article
from client.data.manifest import ImageRow
from client.data.progress import shown
from client.data.pseudonyms import hidden
from client.data.readers.patients import is_placeholder
from client.data.readers.rows import ReadRows, Unused, by_kind
from client.data.readers.scan import USUAL, every_file, is_dicom, kind_of
from client.data.readers.table import CsvTable, read_table, require_columns
from client.data.references import BadImage, DicomFrame, Window
from common.errors import SiteDataError

_INDEX = "indexes of a disc (DICOMDIR)"
_SCOUT = "localizer (scout)"
_OF_A_WHOLE = ("StudyInstanceUID", "PatientID")
"""What labels images that were not looked at one by one, scouts among them."""


@dataclass(frozen=True)
class _Line:
    source: str
    label: str
    split: str | None


def read_dicom(config: DicomData, secret: bytes) -> ReadRows:
    """Rows, problems and unused files. Raises SiteDataError if the folder, the table or its columns are not there."""
    if not config.root.is_dir():
        raise SiteDataError(
            f"{config.root} is not a folder; point data.root at the folder of the DICOM files"
        )
    table = read_table(config.labels)
    lines, problems = _lines(table, config)
    rows: list[ImageRow] = []
    met: set[str] = set()
    others: defaultdict[str, Counter[str]] = defaultdict(Counter)
    left_out: defaultdict[str, list[str]] = defaultdict(list)
    files, unused = _files(config.root)
    for path in shown(files, len(files), "DICOM headers read"):
        name, identifier = path.relative_to(config.root).as_posix(), ""
        try:
            header = read_header(path)
            identifier = text(header, config.match)
            kind = other_than_image(header)
            line = lines.get(identifier)
            if kind is None and line is not None:
                of_file = list(_rows(path, header, line, config, secret))
                rows += of_file
                kind = None if of_file else _SCOUT
        except BadImage as bad:
            problems.append(f"{name} {bad}")
            met.add(identifier)
            continue
        if kind is not None:
            left_out[f"DICOM files with {with_article(kind)} instead of an image"].append(name)
            others[identifier][kind] += 1
        elif line is None:
            left_out[f"DICOM files that have no line in {config.labels.name}"].append(name)
        else:
            met.add(identifier)
    problems += _without_images(lines, met, others, config)
    return ReadRows(rows, problems, [*unused, *by_kind(left_out)])


def _without_images(
    lines: Mapping[str, _Line], met: set[str], others: Mapping[str, Counter[str]], config: DicomData
) -> Iterator[str]:
    for identifier, line in lines.items():
        if identifier in met:
            continue
        if found := others.get(identifier):
            kinds = ", ".join(f"{count} x {kind}" for kind, count in sorted(found.items()))
            yield (
                f"{line.source}: this {config.match} has no image, only {kinds}; name the image that it was made of, "
                "or remove the line"
            )
        else:
            yield f"{line.source}: no file has this {config.match}"


def _lines(table: CsvTable, config: DicomData) -> tuple[dict[str, _Line], list[str]]:
    columns = config.columns
    wanted = [columns.key or config.match, columns.label, *([columns.split] if columns.split else [])]
    require_columns(table, wanted, "as data.columns and data.match of the site's YAML say")
    lines: dict[str, _Line] = {}
    problems = list(table.problems)
    for number, cells in table.rows:
        source = f"{table.path.name} row {number}"
        identifier, label = cells.get(wanted[0], ""), cells.get(columns.label, "")
        line = _Line(source, label, cells.get(columns.split, "") or None if columns.split else None)
        if not identifier or not label:
            problems.append(f"{source}: no {'label' if identifier else config.match}")
        elif (earlier := lines.setdefault(identifier, line)) != line and (
            (earlier.label, earlier.split) != (line.label, line.split)
        ):
            problems.append(f"{source}: the {config.match} of {earlier.source} with another label or split")
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


def _rows(
    path: Path, header: pydicom.Dataset, line: _Line, config: DicomData, secret: bytes
) -> Iterator[ImageRow]:
    window = None if config.window is None else Window(config.window.centre, config.window.width)
    patient, study = text(header, "PatientID"), text(header, "StudyInstanceUID")
    patient = "" if is_placeholder(patient) else patient
    device = f"{text(header, 'Manufacturer')} {text(header, 'ManufacturerModelName')}".strip()
    kind, identifier = ("patient", patient) if patient else ("study", study)
    frames = num_frames(header)
    chosen = list(range(frames))
    if config.match in _OF_A_WHOLE:
        chosen = [number for number in chosen if not Frame(header, number, frames).is_localizer]
    for frame in chosen if config.frames == "all" else chosen[len(chosen) // 2 :][:1]:
        yield ImageRow(
            image=DicomFrame(path, frame, window),
            label=line.label,
            group=None,
            split=line.split,
            source=line.source,
            patient=hidden(secret, kind, identifier) if identifier else None,
            acquisition=device or None,
        )

"""BraTS 2018 to 2020: brain tumours in four MRI volumes each, as slices that an image encoder can take.

Layouts: 2018 and 2019 `HGG/Brats18_X_1/Brats18_X_1_{t1,t1ce,t2,flair,seg}.nii.gz` and the same under
`LGG/`; 2020 `BraTS20_Training_001/BraTS20_Training_001_{...}.nii` with the grades in
`name_mapping.csv`. Classes: HGG (high grade), LGG (low grade); 2018: 210 and 75 patients, 2019: 259
and 76, 2020: 293 and 76.

Encoders take three channels, so three of the four volumes become red, green and blue: by default T1ce,
T2 and FLAIR, which show enhancing core, oedema and extent. The patient is the group: slices of
one head are nearly the same picture. Grades say something of the head, not of the slice, so
slices that show no tumour are taken only if the settings say so.

Menze et al. 2015, doi:10.1109/TMI.2014.2377694; Bakas et al. 2017, doi:10.1038/sdata.2017.117; Bakas
et al. 2018, arXiv:1811.02629. Free for research after registration (CBICA, University of Pennsylvania).
"""

import filecmp
import itertools
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from client.config import BratsData, MostTumour
from client.data.decoding import nifti
from client.data.manifest import ImageRow
from client.data.progress import shown
from client.data.readers.rows import ReadRows, Unused, by_kind
from client.data.readers.scan import USUAL, beside_folders, folders_in, merged, passed_over
from client.data.readers.table import read_table, require_columns
from client.data.references import BadImage, NiftiSlice
from common.errors import SiteDataError

GRADES = ("HGG", "LGG")
_ENDINGS = (".nii", ".nii.gz")
_MODALITIES = ("t1", "t1ce", "t2", "flair", "seg")
_TUMOUR, _MOST_LABEL, _MOST_TUMOUR = 0.5, 255, 0.5
"""The smallest value of a segmentation that is tumour, the largest that a label has, the largest share of a volume."""
_ROUNDING, _FEW = 0.1, 0.01
"""How far a label may lie from a whole number, and the share of labels that may lie further."""
_LEFT_OUT = "volumes of patients that data.channels and data.slices do not ask for"
_NO_VOLUME = "files of patients that are no volume by their name"
_INSIDE = "folders inside of patients' folders"


@dataclass(frozen=True)
class _Subject:
    folder: Path
    grade: str
    collection: str | None
    """The institution in names such as Brats18_CBICA_AAB_1."""


def read_brats(config: BratsData) -> ReadRows:
    """Rows and problems; reads one volume a patient to choose its slices. Raises SiteDataError."""
    if not config.root.is_dir():
        raise SiteDataError(
            f"{config.root} is not a folder; point data.root at the folder with HGG and LGG, or with "
            "name_mapping.csv"
        )
    rows: list[ImageRow] = []
    problems: list[str] = []
    segmentations: set[Path] = set()
    subjects = list(_subjects(config.root, problems))
    problems += _under_two_grades(subjects)
    for subject in shown(subjects, len(subjects), "patients read"):
        try:
            channels = [_volume(subject.folder, modality) for modality in config.channels]
            # Named one by one: mypy cannot see that three modalities are three paths.
            red, green, blue = channels
            nifti.check_one_grid(channels)
            _check_different(channels)
            chosen = _slices(config, subject.folder, red, segmentations)
        except BadImage as bad:
            problems.append(f"{subject.folder.relative_to(config.root)} {bad}")
            continue
        rows += [
            ImageRow(
                image=NiftiSlice((red, green, blue), index),
                label=subject.grade,
                group=None,
                split=None,
                source=f"{subject.folder.relative_to(config.root)} slice {index}",
                patient=subject.folder.name,
                acquisition=subject.collection,
            )
            for index in chosen
        ]
    used = {path for row in rows for path in row.image.files} | segmentations
    return ReadRows(rows, problems, _unused(config, subjects, used))


def _under_two_grades(subjects: Sequence[_Subject]) -> Iterator[str]:
    grade: dict[str, str] = {}
    for subject in subjects:
        if (before := grade.setdefault(subject.folder.name, subject.grade)) != subject.grade:
            yield f"{subject.folder.name} lies under {before} and under {subject.grade}; keep the right one"


def _unused(config: BratsData, subjects: list[_Subject], used_files: set[Path]) -> list[Unused]:
    """Folders that are no patient of a grade, files beside the folders, and what no image of a patient was made of."""
    root = config.root
    used = {subject.folder for subject in subjects}
    homes = {folder.parent for folder in used} | {root}
    left = sorted(
        folder.relative_to(root).as_posix()
        for home in homes
        for folder in folders_in(home)
        if folder not in used | homes
    )
    beside = [
        entry
        for entry in merged(
            [("" if home == root else home.name, beside_folders(home)) for home in sorted(homes)]
        )
        if not entry.kind.endswith(".csv")
    ]
    of_patients = _unused_of_patients(root, sorted(used), used_files)
    return [
        *([Unused("folders that are no patient with a grade", tuple(left))] if left else []),
        *merged([("", beside), ("", of_patients)]),
    ]


def _unused_of_patients(root: Path, folders: Sequence[Path], used: set[Path]) -> list[Unused]:
    names: defaultdict[str, list[str]] = defaultdict(list)
    for folder in folders:
        volumes = {path for modality in _MODALITIES for path in _called(folder, modality)}
        for path in sorted(folder.iterdir()):
            kind = passed_over(path) or (
                _INSIDE if path.is_dir() else _LEFT_OUT if path in volumes else _NO_VOLUME
            )
            if path not in used:
                names[kind].append(path.relative_to(root).as_posix())
    return list(by_kind(names, (*USUAL, _LEFT_OUT)))


# --- patients --------------------------------------------------------------------------------


def _subjects(root: Path, problems: list[str]) -> Iterator[_Subject]:
    by_grade = [folder for folder in folders_in(root) if folder.name.upper() in GRADES]
    if by_grade:
        for home in by_grade:
            for folder in folders_in(home):
                yield _Subject(folder, home.name.upper(), _collection(folder.name))
        return
    mapping = root / "name_mapping.csv"
    if not mapping.is_file():
        raise SiteDataError(
            f"{root} has neither folders HGG and LGG (2018, 2019) nor name_mapping.csv (2020), but "
            f"{', '.join(path.name for path in folders_in(root)[:5]) or 'no folder'}; point data.root at the training "
            "data of one BraTS challenge"
        )
    table = read_table(mapping)
    require_columns(table, ("Grade", "BraTS_2020_subject_ID"), "expected the name_mapping.csv of BraTS 2020")
    problems += table.problems
    there = {folder.name for folder in folders_in(root)}
    for number, cells in table.rows:
        source, name = f"{mapping.name} row {number}", cells.get("BraTS_2020_subject_ID", "")
        grade = cells.get("Grade", "")
        if not name or grade not in GRADES or Path(name).name != name:
            problems.append(f"{source}: found grade {grade!r}, expected HGG or LGG and a subject's name")
        elif name not in there:
            problems.append(f"{source}: no folder {name}")
        else:
            yield _Subject(root / name, grade, _collection(cells.get("BraTS_2019_subject_ID", "")))


def _collection(name: str) -> str | None:
    fields = name.split("_")
    return fields[1] if len(fields) >= 4 else None


def _volume(folder: Path, modality: str) -> Path:
    found = _called(folder, modality)
    if not found:
        stem = f"{folder.name}_{modality}.".lower()
        others = sorted(path.name for path in folder.iterdir() if path.name.lower().startswith(stem))
        if others:
            raise BadImage(f"has {', '.join(others)}, but no {stem}nii or .nii.gz; convert it")
        raise BadImage(f"has no {folder.name}_{modality}.nii or .nii.gz; copy it again")
    return _the_only(found)


def _segmentation(folder: Path) -> Path:
    # One patient of 2020 has its segmentation under the name that it had at its hospital.
    found = _called(folder, "seg") or [path for path in _volumes(folder) if "seg" in path.name.lower()]
    if not found:
        raise BadImage(f"has no {folder.name}_seg.nii or .nii.gz; copy it again")
    return _the_only(found)


def _called(folder: Path, modality: str) -> list[Path]:
    names = {f"{folder.name}_{modality}{ending}".lower() for ending in _ENDINGS}
    return [path for path in _volumes(folder) if path.name.lower() in names]


def _volumes(folder: Path) -> list[Path]:
    return sorted(
        path
        for path in folder.iterdir()
        if path.name.lower().endswith(_ENDINGS) and not path.name.startswith(".") and path.is_file()
    )


def _check_different(channels: Sequence[Path]) -> None:
    for one, other in itertools.combinations(channels, 2):
        if one.stat().st_size == other.stat().st_size and filecmp.cmp(one, other, shallow=False):
            raise BadImage(f"has {one.name} and {other.name}, which are the same; fetch the right one")


def _the_only(found: list[Path]) -> Path:
    if len(found) > 1:
        raise BadImage(f"has {' and '.join(path.name for path in found)}; keep the one that counts")
    return found[0]


# --- which slices ----------------------------------------------------------------------------


def _slices(config: BratsData, folder: Path, first_channel: Path, segmentations: set[Path]) -> list[int]:
    """Slices to take; `segmentations` gets the file that they were chosen by. Raises BadImage."""
    match config.slices:
        case MostTumour(count=count):
            segmentation = _segmentation(folder)
            segmentations.add(segmentation)
            nifti.check_one_grid([first_channel, segmentation])
            chosen = _with_most(_labels(segmentation), count)
            nothing = "has no tumour in its segmentation; leave this patient out"
        case every:
            shown = np.flatnonzero((nifti.intensities(first_channel) != 0).any(axis=(0, 1)))
            chosen = [int(index) for index in shown if index % every.step == 0]
            nothing = f"shows brain on none of every {every.step} slices; take more slices"
    if not chosen:
        raise BadImage(nothing)
    return chosen


def _labels(segmentation: Path) -> npt.NDArray[np.float32]:
    """Labels, which some programs write as floating-point numbers near whole ones. Raises BadImage."""
    labels_XYZ = nifti.load(segmentation)
    most = float(labels_XYZ.max())
    if most > _MOST_LABEL:
        raise BadImage(
            f"has values up to {most:,.0f} in {segmentation.name}; expected the labels of a segmentation"
        )
    labelled = labels_XYZ[np.abs(labels_XYZ) > _ROUNDING]
    odd = labelled[(np.abs(labelled - np.rint(labelled)) > _ROUNDING) | (labelled < 0)]
    if odd.size > _FEW * labelled.size:
        raise BadImage(
            f"has values such as {odd[0]:.3g} in {segmentation.name}; expected the labels of a segmentation, which are "
            "whole numbers from 0"
        )
    share = float((labels_XYZ >= _TUMOUR).mean())
    if share > _MOST_TUMOUR:
        raise BadImage(
            f"has tumour in {share:.0%} of {segmentation.name}, as a mask of the head has; fetch its segmentation"
        )
    return labels_XYZ


def _with_most(tumour_XYZ: npt.NDArray[np.float32], count: int) -> list[int]:
    """The slices with the largest tumour, from below; of two alike the lower one."""
    area_Z = (tumour_XYZ >= _TUMOUR).sum(axis=(0, 1))
    best = np.argsort(-area_Z, kind="stable")[:count]
    return sorted(int(index) for index in best if area_Z[index])

"""Published data sets by the files that they come with, found below one folder. Nothing is fetched."""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from common.errors import ConfigError

DEPTH = 4
"""Folders below the one that is given."""


@dataclass(frozen=True)
class DataSet:
    """A data set, as it lies on a disk after it was unpacked."""

    title: str
    published: str
    """Where it can be had."""
    holds: Mapping[str, tuple[str, ...]]
    """What one folder must hold, by the name under which an experiment uses it: paths of which one is enough."""

    def describe(self) -> str:
        """What is expected, as the end of a sentence."""
        return ", ".join(" or ".join(names) for names in self.holds.values())


DATA_SETS: Mapping[str, DataSet] = {
    "ham10000": DataSet(
        "HAM10000",
        "Harvard Dataverse, doi:10.7910/DVN/DBW86T (its table HAM10000_metadata has the column `dataset`)",
        {"metadata": ("HAM10000_metadata.csv", "HAM10000_metadata", "HAM10000_metadata.tab")},
    ),
    "isic2018_validation": DataSet(
        "ISIC 2018 Task 3, validation",
        "challenge.isic-archive.com/data, 2018, Task 3",
        {
            "truth": (
                "ISIC2018_Task3_Validation_GroundTruth/ISIC2018_Task3_Validation_GroundTruth.csv",
                "ISIC2018_Task3_Validation_GroundTruth.csv",
            ),
            "images": ("ISIC2018_Task3_Validation_Input",),
        },
    ),
    "isic2018_test": DataSet(
        "ISIC 2018 Task 3, test",
        "challenge.isic-archive.com/data, 2018, Task 3",
        {
            "truth": (
                "ISIC2018_Task3_Test_GroundTruth/ISIC2018_Task3_Test_GroundTruth.csv",
                "ISIC2018_Task3_Test_GroundTruth.csv",
            ),
            "images": ("ISIC2018_Task3_Test_Input",),
        },
    ),
    "brats2019": DataSet(
        "BraTS 2019, training data",
        "www.med.upenn.edu/cbica/brats2019 (registration needed)",
        {"high": ("HGG",), "low": ("LGG",)},
    ),
    "brain_mri": DataSet(
        "Brain tumour MRI (M. Nickparvar)",
        "Kaggle, masoudnickparvar/brain-tumor-mri-dataset",
        {
            f"{side}_{label}".lower(): (f"{side}/{label}",)
            for side in ("Training", "Testing")
            for label in ("glioma", "meningioma", "notumor", "pituitary")
        },
    ),
}


def find(wanted: tuple[str, ...], folder: Path) -> dict[str, str]:
    """Paths by placeholder: `ham10000` is the folder in which HAM10000 lies, `ham10000.metadata` its table.

    Raises ConfigError that names every data set that is missing, half there or there twice.
    """
    if not folder.is_dir():
        raise ConfigError(
            f"--data {folder}: there is no such folder; give the one below which the data sets lie"
        )
    folders = list(_folders(folder, DEPTH))
    found, problems = dict[str, str](), list[str]()
    for name in wanted:
        data = DATA_SETS[name]
        places = {place: _held(data, place) for place in folders}
        whole = [place for place, held in places.items() if len(held) == len(data.holds)]
        empty = [path for place in whole for path in places[place].values() if _is_empty(path)]
        if empty:
            problems.append(f"  {data.title} is half there: there is no file in {', '.join(map(str, empty))}")
        elif len(whole) == 1:
            found[name] = str(whole[0].absolute())
            found |= {f"{name}.{key}": str(path.absolute()) for key, path in places[whole[0]].items()}
        else:
            problems.append(_problem(data, places, whole))
    if problems:
        raise ConfigError("\n".join([f"not all data sets lie below {folder}:", *problems]))
    return found


def _problem(data: DataSet, places: Mapping[Path, Mapping[str, Path]], whole: list[Path]) -> str:
    if whole:
        return (
            f"  {data.title} is there {len(whole)} times: {', '.join(map(str, whole))}; give one with --data"
        )
    most, held = max(places.items(), key=lambda place: len(place[1]))
    if held:
        lacking = [" or ".join(names) for key, names in data.holds.items() if key not in held]
        return f"  {data.title} is half there: {most} lacks {', '.join(lacking)}"
    return (
        f"  {data.title} is not there: no folder holds {data.describe()}. It is published at {data.published}"
    )


def _held(data: DataSet, folder: Path) -> dict[str, Path]:
    held = {}
    for key, names in data.holds.items():
        if path := next((folder / name for name in names if (folder / name).exists()), None):
            held[key] = path
    return held


def _is_empty(path: Path) -> bool:
    """True for a folder without a file in it or below it."""
    return path.is_dir() and not any(files for _, _, files in os.walk(path))


def _folders(top: Path, depth: int) -> Iterator[Path]:
    """`top` and the folders below it, in the order of names; hidden ones and what cannot be opened are left out."""
    yield top
    if depth == 0:
        return
    try:
        with os.scandir(top) as entries:
            below = sorted(
                entry.name for entry in entries if entry.is_dir() and not entry.name.startswith(".")
            )
    except OSError:
        return
    for name in below:
        yield from _folders(top / name, depth - 1)

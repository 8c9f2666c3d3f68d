"""Reading of a study's settings."""

from os import PathLike
from pathlib import Path

from common.config import StudyConfig
from common.settings import load_settings


def read_study(path: str | PathLike[str]) -> StudyConfig:
    """The study in a YAML file, with every default filled in.

    Raises ConsiliumError (its subclass ConfigError) that lists every mistake of the file.

        >>> study = read_study("configs/study/demo.yaml")
        >>> study.name, study.local.batch_size
        ('demo', 32)
        >>> longer = study.model_copy(update={"name": "longer", "rounds": 20})
    """
    return load_settings(Path(path), StudyConfig, "study")

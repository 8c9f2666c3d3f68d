"""The encoders of many studies, asked for once before the first run.

A site that cannot build an encoder says no more than `check encoder, image_size and precision`, and every run of a grid
would end with it. On this machine the sites' own library can be asked, on shapes alone.
"""

from collections.abc import Iterable

from common import log
from common.config import ClipConfig, StudyConfig
from common.errors import ConfigError
from server.report.text import counted
from server.simulation import site_command


def require(studies: Iterable[StudyConfig], name: str) -> None:
    """Ask for every distinct encoder, size and library of `studies`, those of the grid or experiment `name`.

    Raises ConfigError that names all that cannot be built.
    """
    by_library = dict[str, dict[str, None]]()
    for study in studies:
        model = study.model
        library: str = model.library if isinstance(model, ClipConfig) else "timm"
        size = "" if model.image_size is None else f":{model.image_size}"
        by_library.setdefault(library, {})[f"{model.encoder}{size}"] = None
    problems = []
    for library, encoders in by_library.items():
        log.event(f"asking {library} for {counted(len(encoders), 'encoder')}: {', '.join(encoders)}")
        try:
            site_command.call_site(["check-encoders", *encoders, "--library", library])
        except ConfigError as error:
            problems.append(str(error))
    if problems:
        raise ConfigError(
            "\n".join([f"{name} has encoders that no site could build; nothing was run", *problems])
        )

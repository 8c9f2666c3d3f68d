"""The run's `calibration.json`: made of the sites' counts when the study has chosen its weights."""

from pathlib import Path

from common import log
from common.calibration import FILE, Calibration, fit_temperature
from common.calibration.conformal import of_counts
from common.config import StudyConfig
from common.files import read_json, write_json
from common.weights import digest
from server.state import RoundState


def made_of(state: RoundState, study: StudyConfig) -> Calibration | None:
    """Calibration of the weights that the closing evaluation tested; None if the study does not ask for one."""
    if study.calibration is None or state.chosen is None:
        return None
    counts = {site: one for site, one in state.calibration.items() if one.num_images}
    num_images = sum(one.num_images for one in counts.values())
    is_enough = num_images >= study.calibration.least_images
    return Calibration(
        weights_sha256=digest(state.chosen.weights),
        after_round=state.chosen.round,
        fitted=fit_temperature(list(counts.values())) if is_enough else None,
        sites={site: of_counts(one) for site, one in sorted(counts.items())},
        without=tuple(site for site in study.sites.train if site not in counts),
    )


def keep(run_dir: Path, state: RoundState, study: StudyConfig) -> None:
    """Write the file at the end of a study with `calibration`. Raises StorageError."""
    made = made_of(state, study)
    if made is None:
        return
    write_json(run_dir / FILE, made)
    log.event(f"calibration: {made.describe()}")


def load(run_dir: Path) -> Calibration | None:
    """The calibration of a run, or None. Raises StorageError."""
    return read_json(run_dir / FILE, Calibration)

"""The Python interface of Consilium: run studies, read runs, predict with what was trained.

    >>> import consilium_fl as fl
    >>> study = fl.read_study("study.yaml")                     # doctest: +SKIP
    >>> run = fl.simulate(study, "sites")                       # doctest: +SKIP
    >>> run.scores().to_dataframe()                             # doctest: +SKIP
    >>> fl.load_predictor(run).predict("images")                # doctest: +SKIP

The commands `simulate`, `resume`, `compare` and `report` of `consilium-server`, and `predict` of
`consilium-site`, call these functions. Names are loaded when they are first used: the import itself needs
neither torch nor Flower nor matplotlib. So a server without torch can run studies and read runs.

Nothing here writes to the terminal. `logging.getLogger("consilium")` has the log.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from client.config import SiteConfig
    from common.config import StudyConfig
    from common.errors import ConsiliumError
    from consilium_fl.prediction import Prediction, Predictor, Unreadable, load_predictor
    from consilium_fl.records import ClassScore, HeadScore, Record, Records, RoundRecord, ScoreRecord
    from consilium_fl.runs import Run
    from consilium_fl.simulation import Comparison, Variant, compare, resume, simulate
    from consilium_fl.sites import read_site
    from consilium_fl.studies import read_study

_HOMES = {
    "ClassScore": "consilium_fl.records",
    "Comparison": "consilium_fl.simulation",
    "ConsiliumError": "common.errors",
    "HeadScore": "consilium_fl.records",
    "Prediction": "consilium_fl.prediction",
    "Predictor": "consilium_fl.prediction",
    "Record": "consilium_fl.records",
    "Records": "consilium_fl.records",
    "RoundRecord": "consilium_fl.records",
    "Run": "consilium_fl.runs",
    "ScoreRecord": "consilium_fl.records",
    "SiteConfig": "client.config",
    "StudyConfig": "common.config",
    "Unreadable": "consilium_fl.prediction",
    "Variant": "consilium_fl.simulation",
    "compare": "consilium_fl.simulation",
    "load_predictor": "consilium_fl.prediction",
    "read_site": "consilium_fl.sites",
    "read_study": "consilium_fl.studies",
    "resume": "consilium_fl.simulation",
    "simulate": "consilium_fl.simulation",
}
"""Module of every public name."""

__all__ = [
    "ClassScore",
    "Comparison",
    "ConsiliumError",
    "HeadScore",
    "Prediction",
    "Predictor",
    "Record",
    "Records",
    "RoundRecord",
    "Run",
    "ScoreRecord",
    "SiteConfig",
    "StudyConfig",
    "Unreadable",
    "Variant",
    "compare",
    "load_predictor",
    "read_site",
    "read_study",
    "resume",
    "simulate",
]


def __getattr__(name: str) -> Any:
    """Load a public name from its module (PEP 562), or the version from the installed package."""
    if name == "__version__":
        from common import release

        return release.version()
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        value = getattr(importlib.import_module(_HOMES[name]), name)
    except ModuleNotFoundError as error:
        from consilium_fl.extras import missing

        raise missing(name, error) from error
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "__version__"})

"""A run of a study: its folder, and what the study left there.

The folder is the one source. A run is read from it again and again, so a study that still runs can be watched.
"""

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from os import PathLike
from pathlib import Path
from typing import Any

from common.config import StudyConfig
from common.errors import ConfigError
from common.metrics import Figures
from common.settings import load_settings
from consilium_fl.extras import missing
from consilium_fl.records import ClassScore, HeadScore, Records, RoundRecord, Scope, ScoreRecord
from server.config import ServerConfig
from server.heads import record
from server.storage import history, status


@dataclass(frozen=True)
class Run:
    """One run of a study.

    >>> run = Run.open("runs/demo")                         # doctest: +SKIP
    >>> run.finished                                        # doctest: +SKIP
    True
    >>> run.scores()[-1].balanced_accuracy                  # doctest: +SKIP
    0.526
    """

    folder: Path
    study: StudyConfig
    """As it was run, with every default."""

    @classmethod
    def open(cls, folder: str | PathLike[str]) -> "Run":
        """The run in `folder`, for example `runs/demo`. Raises ConfigError if no study was run there."""
        path = Path(folder)
        if not path.is_dir():
            raise ConfigError(f"{path} is not a folder; give the folder of one run, for example runs/demo")
        return cls(path, load_settings(path / "study.yaml", StudyConfig, "study"))

    @property
    def status(self) -> str:
        """`starting`, `running`, `crashed`, `stopped`, `failed`, `finished` or `finished, incomplete`.

        `unknown` without status.json.
        """
        found = status.read_status(self.folder)
        return "unknown" if found is None else found.or_died().status

    @property
    def finished(self) -> bool:
        """True if every round and the closing evaluation were done, and no site's score is missing."""
        return self.status == "finished"

    @property
    def incomplete(self) -> bool:
        """True if every round was done, and the final model lacks the score of a site that was to evaluate."""
        return self.status == status.INCOMPLETE

    @property
    def absent(self) -> dict[str, str]:
        """Sites that the study names and that did not enrol at its last start, each with the reason."""
        found = status.read_status(self.folder)
        return {} if found is None else dict(found.absent)

    @property
    def reason(self) -> str:
        """Why the run has its status, in words."""
        found = status.read_status(self.folder)
        return "" if found is None else found.or_died().reason

    @property
    def synthetic(self) -> bool:
        """True if the images were generated, so that the figures say nothing about medicine."""
        return load_settings(self.folder / "server.yaml", ServerConfig, "server").synthetic

    @property
    def weights(self) -> Path:
        """File of the final weights; there once the study has finished."""
        return self.folder / "weights.safetensors"

    @property
    def report(self) -> Path:
        """File of the report; there once the study is over."""
        return self.folder / "report.md"

    def rounds(self) -> Records[RoundRecord]:
        """One record per round and site, in order. Raises StorageError if rounds.jsonl is damaged.

        >>> {record.site: record.train_loss for record in run.rounds()}     # doctest: +SKIP
        {'east': 1.62, 'north': 1.71, 'south': 1.58}
        """
        return Records(
            RoundRecord(
                round=line.round,
                closing=line.closing,
                round_s=line.seconds,
                attempts=line.attempts,
                **{name: _number(value) for name, value in asdict(site).items()},
            )
            for line in history.read_rounds(self.folder)
            for site in line.sites
        )

    def scores(self) -> Records[ScoreRecord]:
        """One record per scored model, for each site and pooled. Raises StorageError if rounds.jsonl is damaged.

        Pooled figures are those of all images together, not means of the sites' figures. The last records are those of
        the chosen weights on test images, the pooled one last.

            >>> run.scores().to_dataframe().pivot(                              # doctest: +SKIP
            ...     index="after_round", columns="site", values="accuracy")
        """
        return Records(
            ScoreRecord(
                after_round=model.after_round,
                side=model.side,
                scope=scope,
                site=site,
                accuracy_low=scored.accuracy_interval[0],
                accuracy_high=scored.accuracy_interval[1],
                **{name: getattr(scored.figures, name) for name in _FIGURES},
            )
            for model, scope, site, scored in self._scored()
        )

    def class_scores(self) -> Records[ClassScore]:
        """One record per scored model, site and class. Raises StorageError if rounds.jsonl is damaged."""
        return Records(
            ClassScore(
                after_round=model.after_round,
                side=model.side,
                scope=scope,
                site=site,
                class_name=name,
                num_images=figures.support_C[place],
                recall=figures.recall_C[place],
                precision=figures.precision_C[place],
                f1=figures.f1_C[place],
                auroc=figures.auroc_C[place],
            )
            for model, scope, site, scored in self._scored()
            for figures in (scored.figures,)
            for place, name in enumerate(self.study.classes)
        )

    def head_scores(self) -> Records[HeadScore]:
        """One record per site and head, of the last weights with heads; empty if the study has none.

        Raises StorageError if heads.json is damaged.
        """
        table = record.read(self.folder)
        if table is None:
            return Records()
        return Records(
            HeadScore(
                after_round=table.round,
                site=site,
                head=head,
                **{name: _number(value) for name, value in vars(cell).items()},
            )
            for site, row in table.cells.items()
            for head, cell in row.items()
        )

    def write_report(self) -> Path:
        """Write report.md with its pictures, and report.html, from what is on record; returns report.md.

        Raises StorageError if a record is damaged, ModuleNotFoundError without matplotlib.
        """
        from server.report import write

        config = load_settings(self.folder / "server.yaml", ServerConfig, "server")
        try:
            return write.write_report(
                self.folder, self.study, synthetic=config.synthetic, start_from=config.start_from
            )
        except ModuleNotFoundError as error:
            raise missing("write_report", error) from error

    def describe(self) -> str:
        """How the run ended and where its files are, for a terminal."""
        absent = [f"{site} took no part: {reason}" for site, reason in self.absent.items()]
        if not self.finished and not self.incomplete:
            return "\n".join([f"The study did NOT finish: {self.reason}", *absent, f"Logs: {self.folder}"])
        lines = [
            *([f"The study finished, but it is INCOMPLETE: {self.reason}"] if self.incomplete else absent),
            f"Report: {self.report}",
            f"Weights: {self.weights}",
            f"Rounds: {self.folder / history.FILE}",
            f"The study as run: {self.folder / 'study.yaml'}",
        ]
        if self.synthetic:
            lines.append("The images were SYNTHETIC: the figures say nothing about medicine.")
        return "\n".join(lines)

    def _scored(self) -> Iterator[tuple[history.ScoredModel, Scope, str, history.Scored]]:
        for line in history.read_rounds(self.folder):
            for model in filter(None, (line.validation, line.test)):
                for site, scored in model.sites.items():
                    yield model, "site", site, scored
                if model.pooled_training is not None:
                    yield model, "training sites", "", model.pooled_training
                yield model, "pooled", "", model.pooled


_FIGURES = {field.name for field in fields(ScoreRecord)} & {field.name for field in fields(Figures)}


def _number(value: Any) -> Any:
    """`value` with NaN for a number that is not known."""
    return math.nan if value is None else value

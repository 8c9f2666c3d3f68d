"""Local state of a study: what a site keeps between rounds, on its own disk.

An optimizer's running means and layers that stay local (batch norm under `batch_norm: local`) go on from round to
round and must survive a restart of the trainer. They are kept by round: a server that lost its last
round and asks for it again must get the same answer, so the site starts that round from
the layers it had then. Files are replaced whole, never edited.
"""

import re
from pathlib import Path
from typing import Literal, TypeAlias, get_args

from pydantic import TypeAdapter

from common.config import OwnModel, StudyConfig
from common.errors import StorageError, WeightsMissing
from common.log import warn
from common.weights import Array, Arrays, Layout, TensorSpec, digest, load_file, save_file

Kind: TypeAlias = Literal[
    "local",
    "optimizer",
    "control",
    "personal",
    "personal-optimizer",
    "alone",
    "alone-optimizer",
    "rest",
    "received",
]

_LAYOUT: TypeAdapter[dict[str, TensorSpec]] = TypeAdapter(dict[str, TensorSpec])

_KEPT = 3
"""Rounds whose layers are kept, and weights for which some were measured. A server resumes from its last checkpoint, at
most one back.
"""
_KEPT_OPTIMIZERS = 2
"""Rounds whose optimizer is kept. It is twice as large as the model."""
_MEASURED = "measured-*.safetensors"
"""Files of local layers that no round left: they were measured for given weights and images, whose hash is the name."""


class SiteState:
    """The folder of one study under the site's `state_dir`."""

    def __init__(self, state_dir: Path, study: StudyConfig) -> None:
        self.folder = state_dir / f"{study.name}-{study.fingerprint[:12]}"

    def local_arrays(self, before_round: int) -> dict[str, Array] | None:
        """The local layers as the last round before `before_round` left them, None without one."""
        earlier = [number for number in self._rounds() if number < before_round]
        return load_file(self._path(max(earlier)))[0] if earlier else None

    def keep_local(self, number: int, arrays: Arrays, best: int | None = None) -> None:
        """Keep the local layers after round `number`, and those after the best round so far: its weights may be the
        ones that are tested. Raises StorageError; former ones are then still there.
        """
        self._keep("local", number, arrays, best)

    def own_arrays(self, name: OwnModel, before_round: int) -> dict[str, Array] | None:
        """A model of the site's own, as the last round before `before_round` left it, None without one."""
        earlier = [number for number in self._rounds(name) if number < before_round]
        return load_file(self._path(max(earlier), name))[0] if earlier else None

    def keep_own(self, name: OwnModel, number: int, arrays: Arrays, best: int | None = None) -> None:
        """Keep a model of the site's own after round `number`, as `keep_local` does."""
        self._keep(name, number, arrays, best)

    def _keep(self, kind: Kind, number: int, arrays: Arrays, best: int | None) -> None:
        save_file(self._path(number, kind), arrays, {})
        rounds = sorted(self._rounds(kind))
        # A site that missed the best round is tested with what the round before it left.
        tested = max((old for old in rounds if best is not None and old <= best), default=None)
        for old in rounds[:-_KEPT]:
            if old != tested:
                self._path(old, kind).unlink(missing_ok=True)

    def optimizer_arrays(self, before_round: int, of: OwnModel | None = None) -> dict[str, Array] | None:
        """State of the optimizer as the round just before left it. None in the first round, and with a warning
        after rounds that this site missed. `of`: that of a model of the site's own.
        """
        kind = _optimizer(of)
        rounds = self._rounds(kind)
        if before_round - 1 in rounds:
            return load_file(self._path(before_round - 1, kind))[0]
        if earlier := [number for number in rounds if number < before_round]:
            warn(
                f"round {before_round}: the optimizer starts fresh, because this site's last round was {max(earlier)}",
                round=before_round,
            )
        return None

    def keep_optimizer(self, number: int, arrays: Arrays, of: OwnModel | None = None) -> None:
        """Keep the optimizer's state after round `number`. Raises StorageError; former ones are then still there."""
        kind = _optimizer(of)
        save_file(self._path(number, kind), arrays, {"sha256": digest(arrays)})
        for old in sorted(self._rounds(kind))[:-_KEPT_OPTIMIZERS]:
            self._path(old, kind).unlink(missing_ok=True)

    def rest(self, before_round: int) -> dict[str, Array] | None:
        """What the round just before left out of its answer by rounding. None in the first round, and with a warning
        after rounds that this site missed.
        """
        rounds = self._rounds("rest")
        if before_round - 1 in rounds:
            return load_file(self._path(before_round - 1, "rest"))[0]
        if earlier := [number for number in rounds if number < before_round]:
            warn(
                f"round {before_round}: what rounding left out earlier is dropped, because this site's last round was "
                f"{max(earlier)}",
                round=before_round,
            )
        return None

    def keep_rest(self, number: int, arrays: Arrays) -> None:
        """Keep what round `number` left out. Raises StorageError; former ones are then still there."""
        self._keep_two("rest", number, arrays, {"sha256": digest(arrays)})

    def received(self, number: int, expected: str) -> tuple[dict[str, Array], Layout]:
        """The weights that came for round `number`, and their layout. Raises WeightsMissing if those of this digest
        are not here.
        """
        try:
            arrays, metadata = load_file(self._path(number, "received"))
        except StorageError as error:
            raise WeightsMissing(f"the weights of round {number} are not kept at this site") from error
        if metadata.get("sha256") != expected:
            raise WeightsMissing(f"the weights of round {number} that are kept at this site are others")
        return arrays, _LAYOUT.validate_json(metadata["layout"])

    def keep_received(self, number: int, arrays: Arrays, layout: Layout, arrays_digest: str) -> None:
        """Keep the weights that came for round `number`. Raises StorageError."""
        metadata = {"sha256": arrays_digest, "layout": _LAYOUT.dump_json(dict(layout)).decode()}
        self._keep_two("received", number, arrays, metadata)

    def _keep_two(self, kind: Kind, number: int, arrays: Arrays, metadata: dict[str, str]) -> None:
        save_file(self._path(number, kind), arrays, metadata)
        for old in sorted(self._rounds(kind))[:-_KEPT_OPTIMIZERS]:
            self._path(old, kind).unlink(missing_ok=True)

    def measured(self, key: str) -> dict[str, Array] | None:
        """The local layers that were measured under this key; None without any, and with a warning if damaged."""
        path = self._measured(key)
        if not path.is_file():
            return None
        try:
            arrays, _ = load_file(path)
        except StorageError:
            warn("kept statistics of batch normalisation are damaged; they are measured again")
            return None
        path.touch()
        return arrays

    def keep_measured(self, key: str, arrays: Arrays) -> None:
        """Keep local layers that were measured, and drop the oldest. Raises StorageError."""
        save_file(self._measured(key), arrays, {})
        kept = sorted(self.folder.glob(_MEASURED), key=lambda path: path.stat().st_mtime_ns)
        for old in kept[:-_KEPT]:
            old.unlink(missing_ok=True)

    def control_variate(self, after_round: int) -> dict[str, Array]:
        """SCAFFOLD's control variate of this site as round `after_round` left it; empty for round 0, and with a
        warning if it is no longer on the disk.
        """
        if after_round == 0:
            return {}
        if after_round in self._rounds("control"):
            return load_file(self._path(after_round, "control"))[0]
        warn(
            f"SCAFFOLD's control variate of round {after_round} is no longer in {self.folder}: this site starts from "
            "none, and the study may end beside its optimum",
            round=after_round,
        )
        return {}

    def keep_control_variate(self, number: int, arrays: Arrays, before: int) -> None:
        """Keep the control variate after round `number`, which began with that of round `before`. Raises StorageError.

        That one stays until a later round counts, and those of the two before it, which a server that lost a
        round may name again.
        """
        save_file(self._path(number, "control"), arrays, {"sha256": digest(arrays)})
        rounds = sorted(self._rounds("control"))
        counted = [kept for kept in rounds if kept <= before][-_KEPT:]
        for old in rounds:
            if old < number and old not in counted:
                self._path(old, "control").unlink(missing_ok=True)

    def forget(self) -> None:
        """Start over: a study that begins again must not find the layers of its former run."""
        for kind in get_args(Kind):
            for number in self._rounds(kind):
                self._path(number, kind).unlink(missing_ok=True)
        for path in self.folder.glob(_MEASURED):
            path.unlink(missing_ok=True)

    def _measured(self, key: str) -> Path:
        return self.folder / _MEASURED.replace("*", key[:32])

    def _path(self, number: int, kind: Kind = "local") -> Path:
        return self.folder / f"{kind}-{number:05d}.safetensors"

    def _rounds(self, kind: Kind = "local") -> list[int]:
        names = (path.name for path in self.folder.glob(f"{kind}-*.safetensors"))
        return [
            int(match[1]) for name in names if (match := re.fullmatch(rf"{kind}-(\d+)\.safetensors", name))
        ]


def _optimizer(of: OwnModel | None) -> Kind:
    match of:
        case None:
            return "optimizer"
        case "personal":
            return "personal-optimizer"
        case "alone":
            return "alone-optimizer"

"""Small cells: images of classes with too few patients, which stay at the site.

Small cells are left out, not masked: images of a class with too few patients are neither
counted, trained on nor scored. Withholding the count alone would not help, because a delta
shows which classes it was trained on. Images left out everywhere also keep the sums
consistent, so the server can compare scores with the enrolled counts.

Small cells of validation images are given back to training: nothing else is lost by that.
"""

from collections.abc import Container
from dataclasses import replace

from client.config import PolicyConfig
from client.data.manifest import ImageRow, Manifest


def withholds(policy: PolicyConfig) -> bool:
    """Whether counts may leave something out. Depends on the policy alone, so it reveals nothing about the images."""
    return policy.min_cell is not None or not policy.scores


def usable(manifest: Manifest, policy: PolicyConfig, *, tests: bool = False) -> Manifest:
    """The images of a split manifest that may be counted, trained on and scored.

    Validation images that may not be scored train: all of them where no scores leave, else those of classes with too
    few patients on their side, together with all that their patients have there. `tests`: test images are kept
    nevertheless, because their scores have noise.
    """
    if not withholds(policy):
        return manifest
    if not policy.scores:
        manifest = _trained(manifest, {row.group_key for row in manifest.on("validation")})
    while policy.min_cell is not None:
        few = {
            label
            for (label, side), on in _cells(manifest).items()
            if side == "validation" and len(on) < policy.min_cell
        }
        if not few:
            break
        manifest = _trained(
            manifest, {row.group_key for row in manifest.on("validation") if row.label in few}
        )
    cells = _cells(manifest)

    def stays(row: ImageRow) -> bool:
        is_small = policy.min_cell is not None and len(cells[row.label, row.split]) < policy.min_cell
        return not is_small and (policy.scores or tests or row.split != "test")

    return replace(manifest, rows=tuple(row for row in manifest.rows if stays(row)))


def _cells(manifest: Manifest) -> dict[tuple[str, str | None], set[str]]:
    """Patients by class and side."""
    cells: dict[tuple[str, str | None], set[str]] = {}
    for row in manifest.rows:
        cells.setdefault((row.label, row.split), set()).add(row.group_key)
    return cells


def _trained(manifest: Manifest, patients: Container[str]) -> Manifest:
    """The manifest with the validation images of these patients on the training side."""
    return replace(
        manifest,
        rows=tuple(
            replace(row, split="train") if row.split == "validation" and row.group_key in patients else row
            for row in manifest.rows
        ),
    )

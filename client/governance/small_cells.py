"""Small cells: images of classes with too few patients, which stay at the site.

Small cells are left out, not masked: images of a class with too few patients are neither
counted, trained on nor scored. Withholding the count alone would not help, because a delta
shows which classes it was trained on. Images left out everywhere also keep the sums
consistent, so the server can compare scores with the enrolled counts.
"""

from dataclasses import replace

from client.config import PolicyConfig
from client.data.manifest import ImageRow, Manifest


def withholds(policy: PolicyConfig) -> bool:
    """Whether counts may leave something out. Depends on the policy alone, so it reveals nothing about the images."""
    return policy.min_cell is not None or not policy.scores


def usable(manifest: Manifest, policy: PolicyConfig) -> Manifest:
    """The images of a split manifest that may be counted, trained on and scored."""
    if not withholds(policy):
        return manifest
    cells: dict[tuple[str, str | None], set[object]] = {}
    for number, row in enumerate(manifest.rows):
        cells.setdefault((row.label, row.split), set()).add(row.group or number)

    def stays(row: ImageRow) -> bool:
        is_small = policy.min_cell is not None and len(cells[row.label, row.split]) < policy.min_cell
        return not is_small and (policy.scores or row.split != "test")

    return replace(manifest, rows=tuple(row for row in manifest.rows if stays(row)))

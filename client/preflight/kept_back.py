"""Findings about images that the site's own policy keeps from a study: they are not what the split says.

A kit's policy lets no class with fewer than `min_cell` patients on a side be counted there. So a site may have fewer
test images than its split has, and no validation images at all. `check` says so before a study does.
"""

from collections import Counter
from collections.abc import Iterator

from client.config import PolicyConfig
from client.data.manifest import Manifest
from client.governance import small_cells
from client.preflight.findings import Finding


def used(manifest: Manifest, policy: PolicyConfig) -> Manifest:
    """The images that a study may count, train on and score; without sides, as it is."""
    if all(row.split is None for row in manifest.rows):
        return manifest
    return small_cells.usable(manifest, policy)


def findings(manifest: Manifest, policy: PolicyConfig) -> Iterator[Finding]:
    """What the policy changes of a split manifest, by side and class."""
    left = used(manifest, policy)
    kept = {row.image.key: row.split for row in left.rows}
    moved = Counter(row.label for row in manifest.rows if kept.get(row.image.key, row.split) != row.split)
    out = Counter((row.split, row.label) for row in manifest.rows if row.image.key not in kept)
    why = "; ".join(_reasons(policy))
    if moved:
        rest = len(left.on("validation"))
        yield Finding(
            "look",
            f"{moved.total()} validation images train instead, and {rest or 'none'} are left to validate on. {why}",
            tuple(f"{label}: {number} validation images" for label, number in moved.items()),
        )
    if out:
        yield Finding(
            "look",
            f"{out.total()} of {len(manifest.rows)} images are not used: neither counted, trained on nor scored. {why}",
            tuple(f"{label}: {number} {side} images" for (side, label), number in out.items()),
        )
    if manifest.on("train") and not left.on("train"):
        yield Finding("stops", f"the policy leaves no image to train on. {why}")


def _reasons(policy: PolicyConfig) -> Iterator[str]:
    if policy.min_cell is not None:
        yield f"policy.min_cell is {policy.min_cell}, and of these classes fewer patients or lesions are on that side"
    if not policy.scores:
        yield "policy.scores is false, so nothing is scored here"

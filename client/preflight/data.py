"""Preflight: reads everything that a site would train on, once, and reports every problem with it.

A data manager repairs a data set in one go or loses a day, so all findings come at once, ranked by
what they mean: `stops` keeps the site out of a study, `look` is for a person to judge, `fine` is
a count or a check without a problem. Nothing is trained, nothing is written, nothing leaves.
"""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import get_args

from client.config import SiteConfig
from client.data.manifest import ImageRow, Manifest, Side
from client.data.progress import shown
from client.data.readers import read
from client.preflight import classes_and_split, copies, decoding_cost, images, kept_back
from client.preflight.findings import Finding, Rank, may_take_part, ranked
from client.preflight.inspection import InspectedImage, inspect
from common.errors import SiteDataError

USUAL_SIDE = 256
"""Pixels a side that training keeps of an image for an encoder of 224."""


@dataclass(frozen=True)
class Report:
    """All findings about a site, with the images they are about."""

    site: str
    findings: tuple[Finding, ...]
    """The worst first."""
    manifest: Manifest
    """The rows that could be read; without sides if no split is possible."""
    images: tuple[InspectedImage, ...] = ()
    used: Manifest | None = None
    """The rows that a study would use: the site's policy may keep some back. None: as `manifest`."""

    @property
    def may_take_part(self) -> bool:
        """False if something stops the site."""
        return may_take_part(self.findings)

    @property
    def readable(self) -> tuple[InspectedImage, ...]:
        """Images without a problem of their own."""
        return tuple(image for image in self.images if not image.problem)


def check(site: SiteConfig, classes: Sequence[str] | None = None, stored_side: int = USUAL_SIDE) -> Report:
    """All findings. Without `classes`, those that the data has are taken.

    `stored_side` is what training will keep of an image, in pixels a side.
    """
    try:
        survey = read.survey(site.data, classes)
    except SiteDataError as error:
        return Report(site.name, (Finding("stops", str(error)),), Manifest((), tuple(classes or ())))
    if not survey.manifest.rows and not survey.problems:
        nothing = Finding("stops", read.no_images(survey))
        return Report(site.name, ranked([nothing, *_unused(survey)]), survey.manifest)
    num_threads = site.threads or os.cpu_count() or 1
    inspected = _open(survey.manifest.rows, stored_side, num_threads)
    manifest, split_findings = classes_and_split.on_sides(survey.manifest, site)
    used = kept_back.used(manifest, site.policy)
    findings = [
        *_read(survey),
        *_unused(survey),
        *images.findings(inspected),
        *copies.findings(inspected, manifest),
        *classes_and_split.of_classes(manifest, site.data),
        *split_findings,
        *kept_back.findings(manifest, site.policy),
        *decoding_cost.space(len(manifest.rows), site, stored_side),
    ]
    if inspected:
        findings.append(_summary(manifest, used, inspected))
        findings.append(decoding_cost.speed(inspected, stored_side, num_threads))
    return Report(site.name, ranked(findings), manifest, tuple(inspected), used)


def _open(rows: Sequence[ImageRow], side: int, num_threads: int) -> list[InspectedImage]:
    # Pillow decodes and resizes without the interpreter's lock, so threads do.
    with ThreadPoolExecutor(num_threads, "check") as pool:
        return list(shown(pool.map(lambda row: inspect(row, side), rows), len(rows), "images read"))


def _read(survey: read.Survey) -> Iterator[Finding]:
    if survey.problems:
        yield Finding(
            "stops",
            f"{len(survey.problems)} problem(s) in {survey.where.name}; correct it or the images it names",
            survey.problems,
        )
    if survey.num_repeats:
        yield Finding("look", f"{survey.num_repeats} row(s) repeat another row and count once")


def _unused(survey: read.Survey) -> Iterator[Finding]:
    """What lies in the data set and is not used."""
    for unused in survey.unused:
        rank: Rank = "fine" if unused.is_usual else "look"
        yield Finding(rank, f"{unused.what}: {len(unused.names)} {unused.kind}", unused.names)


def _summary(manifest: Manifest, used: Manifest, inspected: Sequence[InspectedImage]) -> Finding:
    readable = [image for image in inspected if not image.problem]
    counts = ", ".join(f"{n} {c}" for n, c in zip(manifest.classes, manifest.class_counts(), strict=True))
    sizes = [image.size for image in readable] or [(0, 0)]
    num_groups = len({row.group_key for row in manifest.rows})
    return Finding(
        "fine",
        f"{len(manifest.rows)} images of {num_groups} patients or lesions ({counts}); "
        f"{', '.join(f'{len(used.on(side))} {side}' for side in get_args(Side))}; "
        f"{min(w for w, _ in sizes)} x {min(h for _, h in sizes)} to {max(w for w, _ in sizes)} x "
        f"{max(h for _, h in sizes)} pixels",
    )

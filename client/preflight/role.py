"""Findings about a site's role in a study: whether the study names it, and whether its split suits what it does there.

A site that trains needs training images. A site that only scores needs test images, and its training images are of
no use to anybody: in a study on five institutions, such a site had a split that could not be drawn, and was missed.
"""

from collections.abc import Iterator
from typing import get_args

from client.config import ByImageSplit, ColumnSplit, GroupedSplit, KFoldSplit, NoSplit, SiteConfig
from client.data.manifest import Manifest, Side
from client.preflight.findings import Finding
from common.config import StudyConfig

_ALL_TEST = "set `split: {kind: none, all: test}` in the site's YAML"


def findings(study: StudyConfig, site: SiteConfig, manifest: Manifest) -> Iterator[Finding]:
    """Findings about this site in this study; `manifest` has its images on the sides that the study would use."""
    if site.name in study.sites.evaluate:
        yield from _scores(study, site, manifest)
    elif site.name in study.sites.train:
        yield from _trains(study, manifest)
    else:
        yield Finding(
            "stops",
            f"study {study.name} does not name this site, {site.name}, so it will not ask it: it names "
            f"{', '.join(study.sites.all)}. Compare `name` in the site's YAML with the study, and ask the study "
            "operator",
        )


def _scores(study: StudyConfig, site: SiteConfig, manifest: Manifest) -> Iterator[Finding]:
    role = f"study {study.name} asks this site only to score the model"
    num_train, num_validation, num_test = (len(manifest.on(side)) for side in get_args(Side))
    num_scored = num_validation + num_test
    if not manifest.rows:
        return
    if not num_train and not num_scored:
        # No split could be drawn; another finding says why, and what that would take at a site that trains.
        yield Finding("stops", f"{role}, which takes no split at all: {_ALL_TEST}")
    elif not num_scored:
        yield Finding("stops", f"{role}, but none of its {num_train} images is a test image: {_ALL_TEST}")
    elif num_train:
        yield Finding(
            "look",
            f"{role}: it tests on {num_test} images, and {num_train} on the training side stay unused. To test on "
            f"all of them, {_ALL_TEST}{_unless(site)}",
        )
    elif num_validation:
        yield Finding(
            "look",
            f"{role}: on {num_validation} validation images in the rounds and {num_test} test images at the end. To "
            f"test on all of them, {_ALL_TEST}",
        )
    else:
        yield Finding("fine", f"{role}: all {num_test} images are test images")


def _unless(site: SiteConfig) -> str:
    match site.split:
        case ColumnSplit():
            return ", unless patients or lesions of the training side are at another site, too"
        case GroupedSplit() | KFoldSplit() | ByImageSplit() | NoSplit():
            return ""


def _trains(study: StudyConfig, manifest: Manifest) -> Iterator[Finding]:
    role = f"study {study.name} asks this site to train"
    num_train, num_validation, num_test = (len(manifest.on(side)) for side in get_args(Side))
    if not num_train and not num_validation and not num_test:
        return  # another finding says why there is no split, or no image
    if not num_train:
        yield Finding(
            "stops",
            f"{role}, but none of its {num_validation + num_test} images is a training image. Change "
            "`split` in the site's YAML, or ask the study operator to name the site under `sites.evaluate`",
        )
    elif not num_test:
        yield Finding(
            "look", f"{role}, and it does: on {num_train} images. It has no test image, so it tests nothing"
        )
    else:
        chooses = f"to choose by {num_validation}" if num_validation else "to choose by none"
        yield Finding(
            "fine", f"{role}: on {num_train} images, {chooses}, and to test the model on {num_test}"
        )

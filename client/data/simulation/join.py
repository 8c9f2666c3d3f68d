"""Joining of data sets into one simulated federation: each a site, read by its own YAML.

Public data sets overlap: ISIC 2018's training images are HAM10000's. A site that tests on an image that another
one trains on measures memory, so shared images are found before anything is trained. Two images are the same if
their files are, or if they have one name and look alike (a resized or recompressed copy).
"""

import hashlib
import itertools
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from client.config import SiteConfig, load_site
from client.data import duplicates
from client.data.decoding import decode
from client.data.manifest import ImageRow, refuse
from client.data.readers import read
from client.data.readers.image_list import write_list
from client.data.references import BadImage
from client.data.simulation.discover import FoundFederation, FoundSite
from common import log
from common.errors import ConfigError, SiteDataError

_SIZE = 64
"""Pixels a side of the pictures that are compared."""
_SHOWN = 3

_Image: TypeAlias = tuple[str, ImageRow]
"""An image and its site."""


@dataclass(frozen=True)
class _Part:
    """One data set."""

    name: str
    config: SiteConfig
    rows: tuple[ImageRow, ...]


def join(
    parts: Mapping[str, Path],
    out: Path,
    *,
    classes: Sequence[str] | None = None,
    drop_shared: Collection[str] = (),
) -> FoundFederation:
    """The federation whose sites are these data sets, by name of the site: the path of a site's YAML.

    `classes` are the study's; None: those that every data set has. Images that other sites have, too, are left out of
    the sites in `drop_shared`, whose remaining images are listed below OUT. Raises ConfigError for a YAML that cannot
    be read, SiteDataError for data sets that do not fit together.
    """
    if strange := sorted(set(drop_shared) - set(parts)):
        raise ConfigError(f"--drop-shared {' '.join(strange)}: the joined sites are {', '.join(parts)}")
    configs = {name: load_site(path) for name, path in parts.items()}
    names = tuple(classes) if classes else _common_classes(configs)
    joined = [
        _Part(name, config, read.read(config.data, names, config.state_dir).rows)
        for name, config in configs.items()
    ]
    _log_absent_classes(joined, names)
    shared = _shared(joined)
    _require_apart(pair for pair in shared if not {pair[0][0], pair[1][0]} & set(drop_shared))
    kept = [
        _without(part, {row.image.key for pair in shared for site, row in pair if site == part.name}, out)
        if part.name in drop_shared
        else part
        for part in joined
    ]
    groups = [_groups(part.rows) for part in kept]
    return FoundFederation(
        classes=names,
        sites=tuple(
            FoundSite(part.name, part.config.data, part.config.split, len(part.rows)) for part in kept
        ),
        has_groups=all(row.group is not None for part in kept for row in part.rows),
        num_shared_groups=len(
            {group for place, mine in enumerate(groups) for other in groups[:place] for group in mine & other}
        ),
        class_images={part.name: _class_images(part, names) for part in kept},
    )


def _common_classes(configs: Mapping[str, SiteConfig]) -> tuple[str, ...]:
    own = {name: read.labels(config.data) for name, config in configs.items()}
    every = sorted(set().union(*own.values()))
    if any(set(labels) != set(every) for labels in own.values()):
        refuse(
            "the data sets have different classes",
            [f"{name}: {', '.join(labels) or '(none)'}" for name, labels in own.items()],
            "Name the study's classes with --classes. In a site's YAML, `label_map` renames classes, and "
            "`unknown_labels: drop` leaves images of other classes out.",
        )
    return tuple(every)


def _class_images(part: _Part, classes: Sequence[str]) -> dict[str, int]:
    """Images by class, 0 for a class without any."""
    counts = Counter(row.label for row in part.rows)
    return {name: counts[name] for name in classes}


def _log_absent_classes(parts: Sequence[_Part], classes: Sequence[str]) -> None:
    for part in parts:
        there = {row.label for row in part.rows}
        if absent := [name for name in classes if name not in there]:
            log.warn(f"{part.name} has no image of {', '.join(absent)}", site=part.name)


# --- images that several sites have --------------------------------------------------------------


def _shared(parts: Sequence[_Part]) -> list[tuple[_Image, _Image]]:
    """Pairs of images of two sites that are the same. Raises SiteDataError for one that cannot be read."""
    images = [(part.name, row) for part in parts for row in part.rows]
    with ThreadPoolExecutor() as pool:
        digests = list(pool.map(lambda image: _digest(image[1]), images))
    by_digest, by_name = defaultdict[str, list[_Image]](list), defaultdict[str, list[_Image]](list)
    for image, digest in zip(images, digests, strict=True):
        by_digest[digest].append(image)
        by_name[_image_name(image[1])].append(image)
    equal = (pair for same in by_digest.values() for pair in _of_two_sites(same))
    return [*equal, *_alike(by_name.values())]


def _of_two_sites(images: Sequence[_Image]) -> Iterator[tuple[_Image, _Image]]:
    return (pair for pair in itertools.combinations(images, 2) if pair[0][0] != pair[1][0])


def _alike(same_name: Iterable[Sequence[_Image]]) -> Iterator[tuple[_Image, _Image]]:
    """Pairs of images of one name that look alike. Raises SiteDataError for one that cannot be read."""
    looks: dict[tuple[str, str], int] = {}

    def look(image: _Image) -> int:
        site, row = image
        if (site, row.image.key) not in looks:
            try:
                picture = decode.decode(row.image, _SIZE, "bilinear")
            except BadImage as error:
                raise SiteDataError(f"{site}: {row.source}: {row.image.name} {error}") from error
            looks[site, row.image.key] = duplicates.fingerprint(picture)
        return looks[site, row.image.key]

    for images in same_name:
        for one, other in _of_two_sites(images):
            if (look(one) ^ look(other)).bit_count() <= duplicates.NEAR:
                yield one, other


def _digest(row: ImageRow) -> str:
    """The same for images of the same files: SHA-256 of their bytes, and the part of them that is meant."""
    digest = hashlib.sha256()
    try:
        for path in row.image.files:
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    except OSError as error:
        raise SiteDataError(f"{row.source}: {row.image.name} cannot be read: {error.strerror}") from error
    _, _, part = Path(row.image.key).name.partition("#")
    return f"{digest.hexdigest()}#{part}"


def _image_name(row: ImageRow) -> str:
    """The image's name without folder and ending, in one spelling."""
    name, _, part = Path(row.image.key).name.partition("#")
    return unicodedata.normalize("NFC", f"{Path(name).stem}#{part}").casefold()


def _without(part: _Part, keys: Collection[str], out: Path) -> _Part:
    """The data set without the images of these keys; the others are listed below OUT."""
    rows = tuple(row for row in part.rows if row.image.key not in keys)
    if len(rows) == len(part.rows):
        return part
    if not rows:
        raise SiteDataError(
            f"{part.name}: all {len(part.rows)} images are another site's, too; leave the data set out, or leave the "
            "shared images out of another site"
        )
    path = (out / "lists" / f"{part.name}.csv").absolute()
    write_list(path, rows)
    log.event(
        f"{part.name}: {len(part.rows) - len(rows)} images that other sites have are left out", site=part.name
    )
    data = part.config.data.model_copy(update={"image_list": path})
    return _Part(part.name, part.config.model_copy(update={"data": data}), rows)


def _require_apart(pairs: Iterable[tuple[_Image, _Image]]) -> None:
    """Raise SiteDataError if two sites have an image in common."""
    by_sites = defaultdict[tuple[str, str], list[str]](list)
    for (site, row), (other, _) in pairs:
        by_sites[site, other].append(row.image.name)
    if by_sites:
        refuse(
            "sites share images, so one would test on what another trains on",
            [
                f"{site} and {other}: {len(set(names))}, such as {', '.join(sorted(set(names))[:_SHOWN])}"
                for (site, other), names in by_sites.items()
            ],
            f"Leave them out of one site, as in --drop-shared {next(iter(by_sites))[1]}.",
        )


def _groups(rows: Sequence[ImageRow]) -> set[str]:
    return {row.group for row in rows if row.group is not None}

"""Images that sites share, judged from keyed hashes that the server cannot invert.

It decides which pairs of sites share hashes, and whether the study may go on. An image at both a training
site and an `evaluate` site makes the latter a test of memory, so the study stops. Two training sites with the
same image only weigh it twice, so this is a warning. Equal perceptual hashes (`similar`) may be chance and are
a warning, too. A site that cannot be compared proves nothing.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

from common.config import StudyConfig
from common.files import read_json, write_json
from common.settings import Frozen

FILE = "overlap.json"


@dataclass(frozen=True)
class Hashes:
    """Keyed hashes that one site sent."""

    check: str
    same: frozenset[str]
    similar: frozenset[str]


class Pair(Frozen):
    """Two sites that share something; the one that only scores comes second."""

    one: str
    other: str
    same: int
    """Images with the same pixels."""
    similar: int
    """Images with the same perceptual hash; those with the same pixels are among them."""


class Overlap(Frozen):
    """Result of the comparison."""

    compared: dict[str, int]
    """Number of images by site."""
    not_compared: dict[str, str]
    """By site: why it was not compared."""
    pairs: tuple[Pair, ...]


def compared(
    study: StudyConfig,
    hashes: Mapping[str, Hashes],
    num_images: Mapping[str, int],
    refused: Mapping[str, str],
) -> Overlap:
    """All pairs of sites; `num_images` are those enrolled, `refused` says why a site sent nothing."""
    reasons = dict(refused)
    for site, sent in hashes.items():
        if not len(sent.same) == len(sent.similar) == num_images[site]:
            reasons[site] = (
                f"it sent {len(sent.same)} and {len(sent.similar)} different hashes of {num_images[site]} images"
            )
    reasons |= _strangers({site: sent.check for site, sent in hashes.items() if site not in reasons})
    able = [site for site in study.sites.all if site in hashes and site not in reasons]
    pairs = []
    for one, other in combinations(able, 2):  # sites that train come first, as in `sites.all`
        same = len(hashes[one].same & hashes[other].same)
        similar = len(hashes[one].similar & hashes[other].similar)
        if same or similar:
            pairs.append(Pair(one=one, other=other, same=same, similar=similar))
    return Overlap(
        compared={site: num_images[site] for site in able},
        not_compared={site: reasons[site] for site in study.sites.all if site in reasons},
        pairs=tuple(pairs),
    )


def _strangers(checks: Mapping[str, str]) -> dict[str, str]:
    """Sites whose secret is not that of most, each with the reason."""
    sites_of: dict[str, list[str]] = {}
    for site in sorted(checks):
        sites_of.setdefault(checks[site], []).append(site)
    if len(sites_of) < 2:
        return {}
    largest = max(sites_of.values(), key=len)
    if sum(len(sites) == len(largest) for sites in sites_of.values()) > 1:
        largest = []  # a tie: which secret is the right one cannot be known
    others = ", ".join(largest)
    reason = f"its overlap_secret is not that of {others}" if largest else "the sites' overlap_secrets differ"
    return {site: reason for site in checks if site not in largest}


def is_leak(study: StudyConfig, pair: Pair) -> bool:
    """Whether one site of the pair trains and the other must score unseen images."""
    return pair.one in study.sites.train and pair.other in study.sites.evaluate


def shared_with_training(study: StudyConfig, hashes: Mapping[str, Hashes], site: str) -> tuple[str, ...]:
    """Hashes of an `evaluate` site that a training site sent, too."""
    train = [hashes[other] for other in study.sites.train if other in hashes]
    mine = hashes[site]
    return tuple(
        sorted(
            (mine.same & frozenset[str]().union(*(sent.same for sent in train)))
            | (mine.similar & frozenset[str]().union(*(sent.similar for sent in train)))
        )
    )


def problems(study: StudyConfig, result: Overlap) -> list[str]:
    """Why images of the `evaluate` sites are not known to be unseen; empty if they are."""
    shared = [
        f"{pair.other} shares {_images(pair.same)} with the training site {pair.one}"
        for pair in result.pairs
        if is_leak(study, pair) and pair.same
    ]
    return shared + [
        f"{site} could not be compared: {reason}" for site, reason in result.not_compared.items()
    ]


def proved(study: StudyConfig, result: Overlap) -> str:
    """What the comparison proves if there are no problems."""
    num_sites = len(result.compared)
    sites = f"{num_sites} site{'' if num_sites == 1 else 's'}"
    compared = f"{sum(result.compared.values())} images of {sites} were compared"
    unseen = [site for site in study.sites.evaluate if site in result.compared]
    return f"{compared}: none that {', '.join(unseen)} scores is at a training site" if unseen else compared


def remarks(study: StudyConfig, result: Overlap) -> list[str]:
    """Warnings about shared or similar images; they do not stop the study."""
    sentences = []
    for pair in result.pairs:
        if not is_leak(study, pair) and pair.same:
            sentences.append(f"{pair.one} and {pair.other} share {_images(pair.same)}, which count twice")
        if pair.similar > pair.same:
            sentences.append(
                f"{pair.one} and {pair.other} have {_images(pair.similar)} that look alike from afar, of which "
                f"{pair.same} are the same; the others may be copies in worse quality, or chance"
            )
    return sentences


def _images(number: int) -> str:
    return f"{number} image{'' if number == 1 else 's'}"


# --- file ----------------------------------------------------------------------------------------


def save(run_dir: Path, result: Overlap) -> None:
    """Write it to the run's folder. Raises StorageError."""
    write_json(run_dir / FILE, result)


def load(run_dir: Path) -> Overlap | None:
    """What is on record, None if nothing was compared. Raises StorageError."""
    return read_json(run_dir / FILE, Overlap)

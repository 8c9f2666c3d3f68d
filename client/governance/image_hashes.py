"""Keyed image hashes: this site's answer when a study checks whether sites hold the same images.

Two hashes of each image are keyed (HMAC-SHA256, RFC 2104) with a secret that the sites share and the
server does not: of the pixels, which detects a file that was renamed or saved again without
loss, and of the perceptual hash, which detects most images that were shrunk or compressed again and
sometimes confuses two images. Without the secret, no one can test whether an image is at this site;
docs/decisions/0008 has the reasons.

Every study has its own key, so that hashes of two studies cannot be linked.
They are cut to 128 bits: that two of a million different images have the same one by chance has
odds of 1 to 10**26. There are as many as images were enrolled, sorted: where two images of the site
are alike, fillers take the place of the second, so that not even this shows.
"""

import csv
import hashlib
import hmac
import io
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from client.data import duplicates
from client.data.decoding import decode
from client.data.manifest import ImageRow, refuse
from client.data.references import BadImage
from common import log, wire
from common.config import StudyConfig
from common.errors import PolicyRefusal, SiteDataError, StorageError
from common.files import write_atomically

FILE = "overlap.csv"
"""In `state_dir`: this site's images that a training site holds as well."""
_TOKEN, _CHECK = 32, 16
_WHOLE = 2**15
"""Pixels a side that no picture has, so that none is decoded smaller than it is."""
_WINDOW = 256
_SECRET = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Shown:
    """One image and the two hashes of what it shows, not keyed: they stay here."""

    row: ImageRow
    pixels: str
    looks: str


# --- the key -----------------------------------------------------------------------------------


def key(secret: Path | None, study: StudyConfig) -> bytes:
    """This study's key. Raises PolicyRefusal if the site has no secret, or none that can be one."""
    problem = "site.yaml names no `overlap_secret`"
    if secret is not None:
        try:
            text = secret.read_text(encoding="ascii").strip().lower()
            if _SECRET.fullmatch(text):
                _warn_of_readers(secret)
                return _keyed(bytes.fromhex(text), f"consilium overlap {study.fingerprint}")
            problem = f"{secret} does not hold 64 hexadecimal digits; make one with `openssl rand -hex 32`"
        except OSError as error:
            problem = f"{secret} cannot be read: {error.strerror}"
        except UnicodeDecodeError:
            problem = f"{secret} is no text; it should hold 64 hexadecimal digits"
    raise PolicyRefusal(
        f"the study compares images between sites, and {problem}. All sites need a file with the same secret, which "
        "the server must not have",
        reason="overlap_secret: the study compares images between sites, and this site has no secret for it",
    )


def _warn_of_readers(secret: Path) -> None:
    if secret.stat().st_mode & 0o007:
        log.warn("overlap_secret may be read by every user of this machine; take the right away (chmod o=)")


def check(key: bytes) -> str:
    """The same for the same key, and of no other use."""
    return _keyed(key, "check").hex()[:_CHECK]


def tokens(key: bytes, site: str, hashes: Sequence[str]) -> tuple[str, ...]:
    """As many keyed hashes as `hashes`, in their own order; fillers stand for those that come again."""
    hashed = {token(key, name) for name in hashes}
    fillers = (token(key, f"filler {site} {number}") for number in range(len(hashes) - len(hashed)))
    return tuple(sorted([*hashed, *fillers]))


def token(key: bytes, name: str) -> str:
    """One keyed hash."""
    return _keyed(key, name).hex()[:_TOKEN]


def _keyed(key: bytes, text: str) -> bytes:
    return hmac.new(key, text.encode(errors="surrogateescape"), hashlib.sha256).digest()


# --- hashes of an image -----------------------------------------------------------------------


def shown(rows: Sequence[ImageRow], num_threads: int | None) -> tuple[Shown, ...]:
    """Every image, decoded as a whole. Raises SiteDataError that names every bad one."""
    if len(rows) > wire.MOST_TOKENS:
        raise SiteDataError(f"{len(rows):,} images cannot be compared; expected at most {wire.MOST_TOKENS:,}")
    images: list[Shown] = []
    problems: list[str] = []
    with ThreadPoolExecutor(num_threads or os.cpu_count(), "compare") as pool:
        for start in range(0, len(rows), _WINDOW):
            for outcome in pool.map(_look, rows[start : start + _WINDOW]):
                if isinstance(outcome, Shown):
                    images.append(outcome)
                else:
                    problems.append(outcome)
    if problems:
        refuse("images cannot be compared with other sites'", problems, "Fix, replace or remove these.")
    return tuple(images)


def _look(row: ImageRow) -> Shown | str:
    try:
        picture = np.asarray(decode.load(row.image, _WHOLE))
    except (BadImage, MemoryError) as error:
        return f"{row.source}: {row.image.name} {error or 'is too large for the memory'}"
    except (Image.DecompressionBombError, OSError, ValueError, SyntaxError) as error:
        return f"{row.source}: {row.image.name} cannot be decoded ({type(error).__name__})"
    size = f"{picture.shape[1]} x {picture.shape[0]}"
    digest = hashlib.sha256(size.encode() + picture.tobytes()).hexdigest()
    return Shown(row, f"pixels {digest}", f"looks {duplicates.fingerprint(picture):016x}")


# --- the answer ----------------------------------------------------------------------------------


def answer(plan: wire.OverlapPlan, key: bytes, images: Sequence[Shown]) -> wire.OverlapAnswer:
    """The hashes of these images; none if the plan already lists the shared ones."""
    listed: Sequence[Shown] = () if plan.shared else images
    return wire.OverlapAnswer(
        plan_id=plan.plan_id,
        site=plan.site,
        check=check(key),
        same=tokens(key, plan.site, [image.pixels for image in listed]),
        similar=tokens(key, plan.site, [image.looks for image in listed]),
    )


def list_shared(
    state_dir: Path, key: bytes, images: Sequence[Shown], shared: Sequence[str]
) -> Mapping[str, int]:
    """Write which of these images are meant, or remove an older list; returns how many, by match.

    Raises StorageError.
    """
    path, lines = state_dir / FILE, list(_matching(key, images, set(shared)))
    if not lines:
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise StorageError(f"{path} cannot be removed: {error.strerror}; remove it by hand") from error
        return {}
    text = io.StringIO()
    table = csv.writer(text)
    table.writerow(["match", "label", "image", "source"])
    table.writerows(lines)
    write_atomically(path, text.getvalue().encode(errors="surrogateescape"))
    matches = [line[0] for line in lines]
    return {match: matches.count(match) for match in ("same", "similar") if match in matches}


def _matching(key: bytes, images: Sequence[Shown], shared: set[str]) -> Iterator[tuple[str, str, str, str]]:
    for image in images:
        for match, name in (("same", image.pixels), ("similar", image.looks)):
            if token(key, name) in shared:
                yield match, image.row.label, image.row.image.name, image.row.source
                break

"""The masks of one round at one site (Bonawitz et al. 2017, figure 4), and the rules that keep them from being misused.

A server must not learn one site's numbers. It would, if a site masked the same numbers twice among different sites, or
if it gave both kinds of share of one site: of the seed, with which that site masked its own answer, and of the key,
from which the masks of pairs follow. So each round has one list of sites, one masked answer and one list of survivors.
Whatever is asked first is kept on disk before it is answered, and the same question gets the same answer again. Until
a round's sum was opened its masks may be made again from new secrets: a server that was killed does that. More than
half of the sites are needed to open a sum, so a round is opened once at most. Sites that work together with the server
help with two openings, so as many more are needed.

Sums for heads are of the same images, one after the other. Two of them of different sites would show the difference,
so all are of the sites of the first one that was opened.

Masks are for one question and one set of numbers. A site that is asked something else under the same masks refuses,
and also if it would answer the same question with other numbers: the difference of two answers has no mask.
"""

import hashlib
import secrets
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pydantic import Field

from common.config import Name
from common.config.types import MaskPhase
from common.errors import ConsiliumError, PolicyRefusal
from common.files import read_json, write_atomically
from common.masking import agreement, grid, roster, sharing
from common.masking.roster import Announcement
from common.masking.stream import UPDATE, Words, apply, stream_of
from common.masking.tables import IMAGES
from common.settings import Frozen
from common.weights import Array, Arrays, digest
from common.wire.mask_steps import Envelopes, MaskShares

FILE = "masks.json"


def file_of(phase: MaskPhase) -> str:
    """Name of the file with the masks of one phase."""
    return FILE if phase == "training" else f"masks-{phase}.json"


class Shares(Frozen):
    """Shares of one site's secrets that this site holds."""

    seed: str
    key: str


class Session(Frozen):
    """One round's masks so far. Secrets are hexadecimal digits."""

    round: int
    mask_key: str
    """Private."""
    envelope_key: str
    """Private."""
    seed: str
    announced: Announcement
    """Of this site."""
    announcements: dict[Name, Announcement] = Field(default_factory=dict)
    """Of all sites of the session, once they came."""
    envelopes: Envelopes = Field(default_factory=dict)
    """That this site sealed for the others."""
    own: Shares | None = None
    """Of this site's own secrets."""
    shares: dict[Name, Shares] = Field(default_factory=dict)
    """By site that this site's answer is masked with, its own included; empty before its answer."""
    survivors: tuple[Name, ...] = ()
    """Sites whose sum was opened; empty before that."""
    question: str = ""
    """Digest of what was asked under these masks; empty before the answer."""
    numbers: str = ""
    """SHA-256 of the numbers that were masked; empty before that."""
    cohort: tuple[Name, ...] = ()
    """In the phase `heads`: sites of the first sum that was opened; empty before that."""


class Masks:
    """Masks of a study's rounds at one site. They are kept in the study's folder."""

    def __init__(
        self,
        folder: Path,
        site: str,
        fingerprint: str,
        threshold: int,
        *,
        sites: Collection[str],
        least: int = 0,
        colluding: int = 0,
        phase: MaskPhase = "training",
        random: Callable[[int], bytes] = secrets.token_bytes,
    ) -> None:
        """`threshold` of the study's training `sites` or more open a sum, and `least` must be in it. As many sites as
        `colluding` says may work together with the server. `random` gives so many bytes that are hard to guess. Each
        phase has secrets of its own.
        """
        self._path, self._phase = folder / file_of(phase), phase
        self._what = "step" if phase == "heads" else "round"
        self._site, self._fingerprint, self._threshold = site, fingerprint, threshold
        self._least, self._random = max(threshold, least, colluding + 2), random
        self._sites, self._colluding = frozenset(sites), colluding
        self._kept = read_json(self._path, Session)

    # --- before the round --------------------------------------------------------------------

    def announce(self, number: int, identity: Ed25519PrivateKey) -> Announcement:
        """Fresh keys for round `number`. Raises PolicyRefusal and StorageError."""
        kept = self._kept
        if kept is not None and number < kept.round:
            raise _refusal(f"masks of {self._what} {number} are asked for after {self._what} {kept.round}")
        if kept is not None and kept.round == number:
            if kept.survivors:
                raise _refusal(f"the sum of {self._what} {number} was opened, its masks are not made again")
            if not kept.announcements:
                return kept.announced
        mask_key, envelope_key = self._random(agreement.KEY_BYTES), self._random(agreement.KEY_BYTES)
        announced = roster.announce(
            identity,
            agreement.public(mask_key),
            agreement.public(envelope_key),
            self._fingerprint,
            number,
            self._site,
            self._phase,
        )
        self._keep(
            Session(
                round=number,
                mask_key=mask_key.hex(),
                envelope_key=envelope_key.hex(),
                seed=self._random(sharing.SECRET_BYTES).hex(),
                announced=announced,
                cohort=_cohort(kept) if kept is not None and self._phase == "heads" else (),
            )
        )
        return announced

    def seal(
        self, number: int, announcements: Mapping[str, Announcement], known: Mapping[str, str]
    ) -> Envelopes:
        """Shares of this site's secrets, sealed for each of these sites. `known` are the roster's keys by site.

        Raises PolicyRefusal and StorageError.
        """
        session = self._session(number)
        if session.announcements:
            if session.announcements != announcements:
                raise _refusal(f"{self._what} {number} has masks with other sites or keys")
            return session.envelopes
        for site, announced in sorted(announcements.items()):
            if site not in self._sites:
                raise _refusal(f"{site} is no training site of the study")
            if site not in known:
                raise _refusal(f"{site} is not in this site's roster")
            if not announced.is_signed_by(known[site], self._fingerprint, number, site, self._phase):
                raise _refusal(f"the keys of {site} are not signed with its key of the roster")
        if announcements.get(self._site) != session.announced:
            raise _refusal("this site's own keys are missing or replaced")
        self._require_enough(announcements)
        if (
            len(announcements) + self._colluding >= 2 * self._threshold
        ):  # two halves could open one round twice
            others = f" while {self._colluding} of them may help the server" if self._colluding else ""
            raise _refusal(
                f"masks of {len(announcements)} sites are asked for, too many for {self._threshold} to open{others}"
            )
        places = sharing.places(announcements)
        seeds = sharing.split(bytes.fromhex(session.seed), self._threshold, len(places))
        keys = sharing.split(bytes.fromhex(session.mask_key), self._threshold, len(places))
        own = Shares(seed=seeds[places[self._site]].hex(), key=keys[places[self._site]].hex())
        envelopes = {
            site: agreement.seal(
                bytes.fromhex(session.envelope_key),
                bytes.fromhex(announcements[site].envelope_key),
                self._about(announcements, number),
                self._site,
                seeds[place] + keys[place],
            ).hex()
            for site, place in places.items()
            if site != self._site
        }
        changes = {"announcements": dict(announcements), "envelopes": envelopes, "own": own}
        self._keep(session.model_copy(update=changes))
        return envelopes

    # --- the round -----------------------------------------------------------------------------

    def mask(
        self,
        number: int,
        question: str,
        envelopes: Envelopes,
        delta: Arrays,
        count: int,
        tables: Mapping[str, Words] | None = None,
    ) -> dict[str, Array]:
        """`count * delta` as whole numbers (2, ...) modulo 2**64, under the masks of this site and of each pair, and
        beside an update its `count` as the table `IMAGES`. `tables` are whole numbers already, and are masked each by
        streams of its name.

        `question` is a digest of what the sum asks of all sites, and `envelopes` are from the others. Raises
        PolicyRefusal, StorageError, WireError for an envelope that is not for this site, and ConsiliumError for numbers
        that a sum has no room for.
        """
        session = self._session(number)
        if session.own is None:
            raise _refusal(f"{self._what} {number} has no masks yet")
        if self._site in envelopes or (strange := envelopes.keys() - session.announcements.keys()):
            raise _refusal(f"envelopes of sites without masks came along: {', '.join(sorted(strange))[:200]}")
        peers = {*envelopes, self._site}
        if session.shares and session.shares.keys() != peers:
            raise _refusal(f"{self._what} {number} was masked before, with other sites")
        if session.question not in ("", question):
            raise _refusal(f"{self._what} {number} was masked before, for another question")
        self._require_enough(peers)
        _require_room(delta, count)
        private, about = bytes.fromhex(session.envelope_key), self._about(session.announcements, number)
        opened = {
            site: agreement.unseal(
                private,
                bytes.fromhex(session.announcements[site].envelope_key),
                about,
                site,
                bytes.fromhex(sealed),
            )
            for site, sealed in sorted(envelopes.items())
        }
        half = sharing.SECRET_BYTES
        shares = {
            site: Shares(seed=text[:half].hex(), key=text[half:].hex()) for site, text in opened.items()
        }
        numbers = _digest(delta, count, tables or {})
        if session.numbers not in ("", numbers):
            raise _refusal(
                f"the part in {self._what} {number} was masked before, and is of other numbers now; it needs new masks"
            )
        changes = {"shares": {**shares, self._site: session.own}, "question": question, "numbers": numbers}
        session = session.model_copy(update=changes)
        self._keep(session)
        images = {IMAGES: np.array([count], np.uint64)} if delta else {}
        return self._masked(session, sorted(envelopes), delta, count, {**images, **(tables or {})}, about)

    def _masked(
        self,
        session: Session,
        others: Collection[str],
        delta: Arrays,
        count: int,
        tables: Mapping[str, Words],
        about: bytes,
    ) -> dict[str, Array]:
        assert not delta.keys() & tables.keys(), "a table has the name of a tensor"
        private = bytes.fromhex(session.mask_key)
        own = bytes.fromhex(session.seed)
        pairs = {
            site: agreement.pair_seed(
                private, bytes.fromhex(session.announcements[site].mask_key), about, session.question
            )
            for site in others
        }

        def hide(use: str, numbers: Iterable[tuple[str, Words]]) -> dict[str, Array]:
            """These numbers under the masks of one use, edited in place."""
            masks = {site: stream_of(seed, use) for site, seed in pairs.items()}
            added = [stream_of(own, use), *(masks[site] for site in masks if self._site < site)]
            subtracted = [masks[site] for site in masks if self._site > site]
            hidden: dict[str, Array] = {}
            for name, words in numbers:
                apply(words, added, subtracted)
                hidden[name] = words
            return hidden

        masked = hide(
            UPDATE,
            ((name, grid.words(delta[name], count)) for name in sorted(delta)),
        )
        for name in sorted(tables):
            masked |= hide(name, [(name, tables[name].copy())])
        return masked

    # --- after the round -----------------------------------------------------------------------

    def reveal(self, number: int, survivors: tuple[str, ...]) -> tuple[MaskShares, MaskShares]:
        """Shares that take the masks off the sum of `survivors`: of their seeds, and of the others' mask keys.

        Raises PolicyRefusal and StorageError.
        """
        session = self._session(number)
        if not session.shares:
            raise _refusal(
                f"the sum of {self._what} {number} is to be opened, and this site has no part in it"
            )
        if session.survivors not in ((), survivors):
            raise _refusal(f"the sum of {self._what} {number} was opened before, of other sites")
        if self._site not in survivors or not session.shares.keys() >= set(survivors):
            raise _refusal(
                f"the sum of {self._what} {number} is to be opened of other sites than it was masked for"
            )
        self._require_enough(set(survivors))
        if session.cohort not in ((), survivors):
            raise _refusal(
                f"the sum of step {number} is to be opened of other sites than the first one for heads, which would "
                "show the difference"
            )
        self._keep(session.model_copy(update={"survivors": survivors}))
        gone = session.shares.keys() - set(survivors)
        return (
            {site: session.shares[site].seed for site in survivors},
            {site: session.shares[site].key for site in sorted(gone)},
        )

    # --- shared --------------------------------------------------------------------------------

    def _session(self, number: int) -> Session:
        if self._kept is None or self._kept.round != number:
            found = "none" if self._kept is None else f"those of {self._what} {self._kept.round}"
            raise _refusal(f"masks of {self._what} {number} are needed, and this site has {found}")
        return self._kept

    def _about(self, announcements: Mapping[str, Announcement], number: int) -> bytes:
        return roster.session(announcements, self._fingerprint, number, self._phase)

    def _require_enough(self, sites: Collection[str]) -> None:
        if len(sites) < self._least:
            raise _refusal(
                f"a sum of {len(sites)} site(s) is asked for, which is too few for the study or this site"
            )

    def _keep(self, session: Session) -> None:
        write_atomically(self._path, session.model_dump_json(indent=1).encode(), private=True)
        self._kept = session


def _cohort(kept: Session) -> tuple[Name, ...]:
    """Sites of the first sum that was opened, as of this session."""
    return kept.cohort or kept.survivors


def _digest(delta: Arrays, count: int, tables: Mapping[str, Words]) -> str:
    parts = (digest(delta), str(count), digest(tables))
    return hashlib.sha256(" ".join(parts).encode()).hexdigest()


def _require_room(delta: Arrays, count: int) -> None:
    """The server cannot check what it cannot see."""
    for name, array in sorted(delta.items()):
        if not np.isfinite(array).all():
            raise ConsiliumError(f"entries of {name} are not finite; nothing is masked")
        if array.size and count * float(np.abs(array).max()) > grid.LARGEST:
            raise ConsiliumError(f"entries of {name} times {count} images are more than a sum has room for")


def _refusal(text: str) -> PolicyRefusal:
    return PolicyRefusal(f"secure aggregation: {text}", reason=f"secure_aggregation: {text}")

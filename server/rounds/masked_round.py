"""Secure aggregation of one round, or of the census, on the server's side: keys and shares before it, the sum opened
after it.

Bonawitz et al. 2017, figure 4. The server passes messages on and adds up. It learns seeds of the sites whose answers
it added, and mask keys of sites that dropped out, from as many sites as the study's threshold says. Sites check what
it passes on (`client/masking/session.py`).

A site opens one sum a round. So before the server asks for that, it keeps on disk which one it is: killed and started
again, it collects the same answers under the same masks, and opens the same sum.
"""

import hashlib
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from common import log, wire
from common.config import Name, StudyConfig
from common.config.types import MaskPhase
from common.errors import QuorumNotMet
from common.files import read_json, write_json
from common.masking import agreement, roster, sharing
from common.masking.roster import Announcement
from common.settings import Frozen
from common.wire.mask_steps import Envelopes, MaskStep
from server.rounds.failures import failure_sentence
from server.rounds.sites import Deadline, Sites

HEADS_AGAIN = "The weights are kept, and resume fits the heads again."


class Opening(Frozen):
    """The sum that is opened, and the masks on it. Nothing of it is secret: shares are sealed for their sites."""

    study: str
    """Fingerprint."""
    phase: MaskPhase = "training"
    round: int
    """In the phase `heads` the number of the sum."""
    announcements: dict[Name, Announcement]
    envelopes: dict[Name, Envelopes]
    survivors: tuple[Name, ...]


class Masked(Protocol):
    """A sum under masks."""

    def unmask(self, added: Collection[bytes], subtracted: Collection[bytes]) -> None:
        """Take masks off: those of seeds that sites `added`, and that they `subtracted`. Raises QuorumNotMet."""


class MaskedRound:
    """The masks of one round, from the keys to the opened sum."""

    def __init__(
        self,
        study: StudyConfig,
        sites: Sites,
        number: int,
        pause: Callable[[float], None] = time.sleep,
        record: Path | None = None,
        phase: MaskPhase = "training",
    ) -> None:
        """`record` is a file that outlives this process; None: a sum that this process does not open is lost."""
        self._study, self._sites, self._number, self._pause = study, sites, number, pause
        self._phase, self._threshold = phase, study.mask_threshold_of(phase)
        self._what = {"census": "census", "heads": f"heads, step {number}"}.get(phase, f"round {number}")
        self._record = None if record is None else _of_phase(record, phase)
        self._began = _opening(self._record, study, number, phase)
        self._kept = {"census": "", "heads": f" {HEADS_AGAIN}"}.get(
            phase, f" The weights after round {number - 1} are kept."
        )
        self._announcements: dict[str, Announcement] = {}
        self.envelopes: dict[str, Envelopes] = {}
        """Shares for each site that has masks, by the site that sealed them."""
        self.lacking: dict[str, str] = {}
        """Sites that have no masks, each with the reason."""

    def prepare(self, names: Collection[str], *, all_of_them: bool = False) -> None:
        """Have these sites make masks with each other. Raises QuorumNotMet if too few do, or not all that must."""
        if self._began is not None:
            self._go_on_with(self._began)
            return
        needed = len(names) if all_of_them else max(self._threshold, self._study.sites.quorum)
        few = ""
        for attempt in range(1, self._study.deadlines.repeats + 2):
            self._prepare(names)
            few = f"{len(self.envelopes or self._announcements)} site(s) have masks, {needed} are required"
            if len(self.envelopes) >= needed:
                return
            if attempt <= self._study.deadlines.repeats:
                log.warn(
                    f"{self._what}: {few}; asking again in {self._study.deadlines.repeat_after_s:.0f} s",
                    round=self._number,
                )
                self._pause(self._study.deadlines.repeat_after_s)
        why = "; ".join(f"{site}: {reason}" for site, reason in sorted(self.lacking.items()))
        raise QuorumNotMet(f"{self._what}: {few} ({why}).{self._kept}")

    def _go_on_with(self, began: Opening) -> None:
        self._announcements = began.announcements
        self.envelopes = {site: began.envelopes[site] for site in began.survivors}
        self.lacking = dict.fromkeys(
            began.envelopes.keys() - self.envelopes.keys(),
            "the sum was being opened without it when the server ended",
        )
        log.event(
            f"{self._what}: the sum of {', '.join(began.survivors)} was being opened when the server ended; "
            "their answers are collected again",
            round=self._number,
        )

    def _prepare(self, names: Collection[str]) -> None:
        self.lacking, self.envelopes = {}, {}
        self._announcements = {
            site: answer.keys
            for site, answer in self.ask(dict.fromkeys(names, wire.KeysStep())).items()
            if answer.keys is not None
        }
        if len(self._announcements) < self._threshold:
            return
        step = wire.SharesStep(announcements=self._announcements)
        answers = self.ask(dict.fromkeys(self._announcements, step))
        sealed = {
            site: answer.envelopes
            for site, answer in answers.items()
            if answer.envelopes.keys() == self._announcements.keys() - {site}
        }
        for site in answers.keys() - sealed.keys():
            self.lacking[site] = "it sealed shares for other sites than were named"
        self.envelopes = {
            site: {other: sealed[other][site] for other in sealed if other != site} for site in sorted(sealed)
        }

    def open(self, survivors: tuple[str, ...], sums: Sequence[Masked], question: str) -> None:
        """Take the masks off the sums of these sites, in the order of names. Raises QuorumNotMet if too few help.

        `question` is what all sites were asked (`common/wire/questions.py`).
        """
        threshold = self._threshold
        began = self._begin(survivors)
        answers: dict[str, wire.MaskAnswer] = {}
        step = wire.RevealStep(survivors=survivors)
        for attempt in range(1, self._study.deadlines.repeats + 2):
            asked = [site for site in survivors if site not in answers]
            answers |= self.ask(dict.fromkeys(asked, step))
            if len(answers) >= threshold:
                break
            if attempt > self._study.deadlines.repeats:
                raise QuorumNotMet(
                    f"{self._what}: {len(answers)} site(s) helped to open the sum, {threshold} are required."
                    f"{self._kept}"
                )
            self._pause(self._study.deadlines.repeat_after_s)
        places = sharing.places(self._announcements)
        helpers = sorted(answers)[:threshold]
        seeds = {
            site: _combined({places[one]: answers[one].seed_shares.get(site) for one in helpers})
            for site in survivors
        }
        added, subtracted = list(seeds.values()), list[bytes]()
        about = roster.session(self._announcements, self._study.fingerprint, self._number, self._phase)
        for gone in began.envelopes.keys() - set(survivors):
            key = _combined({places[one]: answers[one].key_shares.get(gone) for one in helpers})
            if agreement.public(key).hex() != self._announcements[gone].mask_key:
                raise QuorumNotMet(
                    f"{self._what}: the shares of the key of {gone} do not fit together; a site sent wrong ones"
                )
            for site in survivors:
                public = bytes.fromhex(self._announcements[site].mask_key)
                (added if site < gone else subtracted).append(
                    agreement.pair_seed(key, public, about, question)
                )
        for total in sums:
            total.unmask(added, subtracted)
        log.event(
            f"{self._what}: the sum of {', '.join(survivors)} is opened, with shares of {len(helpers)} of them",
            round=self._number,
        )

    def _begin(self, survivors: tuple[str, ...]) -> Opening:
        """What is opened; it is on disk from now on. Raises QuorumNotMet if it is not what was begun before."""
        if self._began is not None:
            if missing := set(self._began.survivors) - set(survivors):
                raise QuorumNotMet(
                    f"{self._what}: its sum was being opened when the server ended, and can be opened with all "
                    f"of its sites alone; the answer of {', '.join(sorted(missing))} is missing now. Resume the study "
                    f"when they are connected.{self._kept}"
                )
            return self._began
        began = Opening(
            study=self._study.fingerprint,
            phase=self._phase,
            round=self._number,
            announcements=self._announcements,
            envelopes=self.envelopes,
            survivors=survivors,
        )
        if self._record is not None:
            write_json(self._record, began)
        return began

    def ask(self, steps: Mapping[str, MaskStep]) -> dict[str, wire.MaskAnswer]:
        """Answers by site; why a site has none is in `lacking`."""
        plans = {site: self._plan(site, step) for site, step in steps.items()}
        answers: dict[str, wire.MaskAnswer] = {}
        for reply in self._sites.ask(plans, Deadline(self._study.deadlines.evaluate_s)):
            if reply.late or reply.site not in plans:
                continue
            match reply.answer:
                case wire.MaskAnswer() as answer if answer.plan_id == plans[reply.site].plan_id:
                    answers[reply.site] = answer
                case wire.Failure() as failure:
                    self._lacks(reply.site, failure_sentence(failure))
                case other:
                    self._lacks(reply.site, f"its answer is of kind {other.kind}, expected one about masks")
        for site in plans.keys() - answers.keys() - self.lacking.keys():
            self._lacks(site, f"no answer about masks within {self._study.deadlines.evaluate_s:.0f} s")
        return answers

    def _lacks(self, site: str, reason: str) -> None:
        self.lacking[site] = reason
        log.warn(f"{self._what}  {site}: {reason}", round=self._number, site=site, outcome="failed")

    def _plan(self, site: str, step: MaskStep) -> wire.MaskPlan:
        # Equal for equal questions, so that a site repeats its answer to a server that was killed. Keys alone are
        # asked for afresh: with them a session begins.
        work = f"{self._study.fingerprint} {self._phase} {self._number} {site} {step.model_dump_json()}"
        if isinstance(step, wire.KeysStep):
            work += f" {time.time_ns()}"
        plan_id = hashlib.sha256(work.encode()).hexdigest()[:32]
        return wire.MaskPlan(
            plan_id=plan_id,
            site=site,
            study=self._study,
            round=self._number,
            phase=self._phase,
            step=step,
        )


def with_envelopes(plan: wire.RoundPlan, envelopes: Envelopes) -> wire.RoundPlan:
    """The plan with the shares for its site. It has another number: an answer under other masks is another answer."""
    text = f"{plan.plan_id} {sorted(envelopes.items())}"
    return plan.model_copy(
        update={"plan_id": hashlib.sha256(text.encode()).hexdigest()[:32], "envelopes": envelopes}
    )


def last_of_heads(study: StudyConfig, record: Path | None) -> tuple[int, tuple[str, ...]]:
    """Number of the last sum for heads that was to be opened, and its sites; 0 and none before the first. Raises
    StorageError.
    """
    found = None if record is None else read_json(_of_phase(record, "heads"), Opening)
    if found is None or found.study != study.fingerprint:
        return 0, ()
    return found.round, found.survivors


def _of_phase(record: Path, phase: MaskPhase) -> Path:
    """The file of one phase, so that no other one takes its place."""
    return record if phase == "training" else record.with_name(f"{record.stem}-{phase}{record.suffix}")


def _opening(record: Path | None, study: StudyConfig, number: int, phase: MaskPhase) -> Opening | None:
    """The sum of this round that a server before this one was about to open. Raises StorageError."""
    found = read_json(record, Opening) if record is not None else None
    same = (study.fingerprint, phase, number)
    return found if found is not None and (found.study, found.phase, found.round) == same else None


def _combined(shares: Mapping[int, str | None]) -> bytes:
    """The secret. Raises QuorumNotMet if a site left its share out."""
    found = {place: bytes.fromhex(share) for place, share in shares.items() if share is not None}
    if len(found) < len(shares):
        raise QuorumNotMet("a site left shares out that the round's sum needs; nothing of the round is used")
    return sharing.combine(found)

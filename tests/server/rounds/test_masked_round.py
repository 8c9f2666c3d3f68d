"""The server's side of secure aggregation with sites that lie: nothing of such a round is used."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from client.masking.session import Masks
from common import wire
from common.config import StudyConfig
from common.errors import QuorumNotMet
from common.masking import roster
from common.masking.tables import IMAGES
from common.weights import TensorSpec
from server.aggregation.masked_mean import MaskedMean
from server.aggregation.update import AdmittedUpdate
from server.rounds.masked_round import MaskedRound
from server.rounds.sites import Deadline, Reply

NAMES = ("a", "b", "c")
ASKED = "c0ffee"
STUDY: dict[str, Any] = {
    "sites": {"train": NAMES, "required": 2},
    "secure_aggregation": {"threshold": 2},
    "admission": {"max_norm_ratio": None},
    "deadlines": {"repeats": 0},
}
Lie = Callable[[wire.MaskAnswer], wire.MaskAnswer]


class MaskingSites:
    """Sites with masks and nothing else; the answers of `b` pass through `lie`."""

    def __init__(self, folder: Path, study: StudyConfig, lie: Lie) -> None:
        self.identities = {
            name: Ed25519PrivateKey.from_private_bytes(bytes([number] * 32))
            for number, name in enumerate(NAMES, 1)
        }
        self.masks = {name: Masks(folder / name, name, study.fingerprint, 2, sites=NAMES) for name in NAMES}
        self.lie = lie

    def online(self) -> set[str]:
        return set(NAMES)

    def ask(self, plans: Mapping[str, wire.Plan], deadline: Deadline) -> Iterator[Reply]:
        for site, plan in plans.items():
            assert isinstance(plan, wire.MaskPlan)
            answer = self.answer(site, plan)
            yield Reply(site, self.lie(answer) if site == "b" else answer, 0.0)

    def answer(self, site: str, plan: wire.MaskPlan) -> wire.MaskAnswer:
        masks, answer = self.masks[site], wire.MaskAnswer(plan_id=plan.plan_id, site=site, round=plan.round)
        match plan.step:
            case wire.KeysStep():
                return answer.model_copy(update={"keys": masks.announce(plan.round, self.identities[site])})
            case wire.SharesStep(announcements=announcements):
                known = {name: roster.public_key(identity) for name, identity in self.identities.items()}
                return answer.model_copy(update={"envelopes": masks.seal(plan.round, announcements, known)})
            case wire.RevealStep(survivors=survivors):
                seeds, keys = masks.reveal(plan.round, survivors)
                return answer.model_copy(update={"seed_shares": seeds, "key_shares": keys})


def opened(folder: Path, study: StudyConfig, lie: Lie, survivors: tuple[str, ...] = NAMES) -> list[float]:
    """The mean of the updates [1, 2], [2, 4] and [3, 6] of those sites, after lies of `b`."""
    sites = MaskingSites(folder, study, lie)
    masks = MaskedRound(study, sites, 1)
    masks.prepare(NAMES)
    total = MaskedMean({"w": TensorSpec(shape=(2,), dtype="float32")})
    for number, name in enumerate(NAMES, 1):
        delta = {"w": np.array([number, 2 * number], np.float32)}
        masked = (
            sites.masks[name].mask(1, ASKED, masks.envelopes[name], delta, 1)
            if name in masks.envelopes
            else {}
        )
        if masked and name in survivors:
            total.add(AdmittedUpdate(name, 1, masked))
    masks.open(total.sites, [total], ASKED)
    return [float(entry) for entry in total.result()["w"]]


def test_an_honest_round_gives_the_mean_of_those_who_stayed(tmp_path: Path, make_study: Any) -> None:
    study = make_study(**STUDY)
    assert opened(tmp_path / "all", study, lambda answer: answer) == [2.0, 4.0]
    assert opened(tmp_path / "two", study, lambda answer: answer, ("a", "b")) == [1.5, 3.0]


def _with(**changes: Any) -> Lie:
    def lie(answer: wire.MaskAnswer) -> wire.MaskAnswer:
        return answer.model_copy(
            update={name: change for name, change in changes.items() if getattr(answer, name)}
        )

    return lie


@pytest.mark.parametrize(
    ("lie", "survivors", "sentence"),
    [
        (
            _with(seed_shares=dict.fromkeys(NAMES, "00" * 32)),
            NAMES,
            "masks of the round's sum do not come off",
        ),
        (_with(seed_shares={"a": "00" * 32}), NAMES, "left shares out"),
        (_with(key_shares={"c": "00" * 32}), ("a", "b"), "shares of the key of c do not fit together"),
        (_with(key_shares={"a": "00" * 32}), ("a", "b"), "left shares out"),
    ],
    ids=["wrong seeds", "missing seeds", "wrong key", "key of another site"],
)
def test_a_round_with_wrong_shares_is_not_used(
    lie: Lie, survivors: tuple[str, ...], sentence: str, tmp_path: Path, make_study: Any
) -> None:
    with pytest.raises(QuorumNotMet, match=sentence):
        opened(tmp_path, make_study(**STUDY), lie, survivors)


def test_a_site_that_seals_for_other_sites_has_no_masks(tmp_path: Path, make_study: Any) -> None:
    lie = _with(envelopes={"a": "00", "z": "00"})
    assert opened(tmp_path, make_study(**STUDY), lie) == [2.0, 4.0]
    study = make_study(**STUDY)
    masks = MaskedRound(study, MaskingSites(tmp_path / "again", study, lie), 1)
    masks.prepare(NAMES)
    assert masks.lacking == {"b": "it sealed shares for other sites than were named"}


def test_an_update_of_no_number_of_images_is_not_used() -> None:
    """Without masks: 2 sites that say 0 and 1 images, and one that says 2**63."""
    for images, is_wrong in (((0, 1), True), ((1, 1), False), ((1, 2**63), True)):
        total = MaskedMean({})
        for site, number in zip("ab", images, strict=True):
            total.add(AdmittedUpdate(site, 0, {IMAGES: np.array([number], np.uint64)}))
        if is_wrong:
            with pytest.raises(QuorumNotMet, match="numbers of images add up to none"):
                total.unmask([], [])
        else:
            total.unmask([], [])
            assert total.num_examples == 2

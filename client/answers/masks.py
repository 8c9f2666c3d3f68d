"""The answer to a step of secure aggregation, and the masks of a round's update and scores."""

from collections.abc import Callable, Mapping
from pathlib import Path

from client.config import SiteConfig
from client.masking.session import Masks
from client.training.state.local_state import SiteState
from common import log, wire
from common.config.types import ScoredSide
from common.errors import ConfigError
from common.masking import roster
from common.masking.stream import Words
from common.masking.tables import CENSUS, SCORES, score_words
from common.metrics import Score
from common.weights import Array, Arrays

IDENTITY = "mask-identity"
"""File in `state_dir` with the private half of this site's key of the roster."""


def identity_file(site: SiteConfig) -> Path:
    """Where the private half of this site's key lies."""
    return site.state_dir / IDENTITY


def answer(plan: wire.MaskPlan, site: SiteConfig, census: Callable[[], Words]) -> wire.MaskAnswer:
    """This site's part in one step. `census` gives its counts of images. Raises PolicyRefusal, ConfigError without a
    roster, and StorageError.
    """
    masks, answered = (
        _masks(plan, site),
        wire.MaskAnswer(plan_id=plan.plan_id, site=plan.site, round=plan.round),
    )
    match plan.step:
        case wire.KeysStep():
            identity = roster.load_identity(identity_file(site))
            known = _roster(site).sites.get(site.name)
            if known != roster.public_key(identity):
                raise ConfigError(
                    f"the roster has {'another' if known else 'no'} key for {site.name}; `consilium-site mask-key` "
                    "prints this site's, and all sites must have the same roster"
                )
            return answered.model_copy(update={"keys": masks.announce(plan.round, identity)})
        case wire.SharesStep():
            envelopes = masks.seal(plan.round, plan.step.announcements, _roster(site).sites)
            return answered.model_copy(update={"envelopes": envelopes})
        case wire.CensusStep():
            hidden = masks.mask(plan.round, plan.step.envelopes, {}, 0, {CENSUS: census()})
            return answered.model_copy(update={"census": tuple(hidden[CENSUS].tolist())})
        case wire.RevealStep():
            seed_shares, key_shares = masks.reveal(plan.round, plan.step.survivors)
            what = "census" if plan.phase == "census" else f"round {plan.round}"
            log.event(
                f"{what}: the sum of {', '.join(plan.step.survivors)} may be read, and no site's own part"
            )
            return answered.model_copy(update={"seed_shares": seed_shares, "key_shares": key_shares})


def masked(
    plan: wire.RoundPlan, site: SiteConfig, delta: Arrays, count: int, scores: Mapping[ScoredSide, Score]
) -> dict[str, Array]:
    """`delta`, times `count`, and tables of the scores, masked as the plan says. Raises what `Masks.mask` raises."""
    assert plan.envelopes is not None, "the contract refuses a round without masks in a study that has them"
    tables = {f"{SCORES}/{side}": score_words(score) for side, score in scores.items()}
    return _masks(plan, site).mask(plan.round, plan.envelopes, delta, count, tables)


def _masks(plan: wire.MaskPlan | wire.RoundPlan, site: SiteConfig) -> Masks:
    study = plan.study
    return Masks(
        SiteState(site.state_dir, study).folder,
        plan.site,
        study.fingerprint,
        study.mask_threshold_of(plan.phase),
        least=site.policy.min_cohort or 0,
        phase=plan.phase,
    )


def _roster(site: SiteConfig) -> roster.Roster:
    if site.roster is None:
        raise ConfigError(
            "the study has secure aggregation, and site.yaml names no `roster` of the sites' keys"
        )
    return roster.load_roster(site.roster)

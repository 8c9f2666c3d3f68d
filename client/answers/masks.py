"""The answer to a step of secure aggregation, and the masks of a round's update and scores, and of sums for heads."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from client.config import SiteConfig
from client.masking.session import Masks
from client.training.state.local_state import SiteState
from common import log, wire
from common.config.types import ScoredSide
from common.errors import ConfigError, PolicyRefusal
from common.masking import roster
from common.masking.stream import Words
from common.masking.tables import CENSUS, OUTLIERS, SCORES, TRAIN, UNSCORED, num_words, score_words, sum_words
from common.metrics import NUM_BINS, Score
from common.weights import Array, Arrays
from common.wire import questions
from common.wire.head_steps import OutliersStep, ScoreStep


def identity_file(site: SiteConfig) -> Path:
    """Where the private half of this site's key lies."""
    return site.state_dir / roster.IDENTITY


def require_roster(site: SiteConfig) -> roster.Roster:
    """Keys of all sites, this one's among them. Raises PolicyRefusal if there are none, and StorageError."""
    problem = "site.yaml names no `roster`"
    if site.roster is not None:
        try:
            found = roster.load_roster(site.roster)
            own = roster.public_key(roster.load_identity(identity_file(site)))
        except ConfigError as error:
            problem = str(error)
        else:
            known = found.sites.get(site.name)
            if known == own:
                return found
            problem = f"{site.roster.name} has {'another' if known else 'no'} key for {site.name}"
    raise PolicyRefusal(
        f"the study has secure aggregation, and {problem}. `consilium-site mask-key` prints this site's line; all "
        "sites must have the same roster",
        reason="roster: the study has secure aggregation, and this site has no list of the sites' keys with its own in "
        "it",
    )


def answer(plan: wire.MaskPlan, site: SiteConfig, census: Callable[[], Words]) -> wire.MaskAnswer:
    """This site's part in one step. `census` gives its counts of images. Raises PolicyRefusal, also without a
    roster, and StorageError.
    """
    masks, answered = (
        _masks(plan, site),
        wire.MaskAnswer(plan_id=plan.plan_id, site=plan.site, round=plan.round),
    )
    match plan.step:
        case wire.KeysStep():
            require_roster(site)
            identity = roster.load_identity(identity_file(site))
            return answered.model_copy(update={"keys": masks.announce(plan.round, identity)})
        case wire.SharesStep():
            envelopes = masks.seal(plan.round, plan.step.announcements, require_roster(site).sites)
            return answered.model_copy(update={"envelopes": envelopes})
        case wire.CensusStep():
            hidden = masks.mask(plan.round, questions.CENSUS, plan.step.envelopes, {}, 0, {CENSUS: census()})
            return answered.model_copy(update={"census": tuple(hidden[CENSUS].tolist())})
        case wire.RevealStep():
            seed_shares, key_shares = masks.reveal(plan.round, plan.step.survivors)
            what = {"census": "census", "heads": f"heads, step {plan.round}"}.get(
                plan.phase, f"round {plan.round}"
            )
            log.event(
                f"{what}: the sum of {', '.join(plan.step.survivors)} may be read, and no site's own part"
            )
            return answered.model_copy(update={"seed_shares": seed_shares, "key_shares": key_shares})


def masked(
    plan: wire.RoundPlan,
    weights_digest: str,
    site: SiteConfig,
    delta: Arrays,
    count: int,
    scores: Mapping[ScoredSide, Score],
) -> dict[str, Array]:
    """`delta`, times `count`, and tables of the scores, masked as the plan says. Raises what `Masks.mask` raises.

    `weights_digest` is that of the weights that came.
    """
    assert plan.envelopes is not None, "the contract refuses a round without masks in a study that has them"
    tables = {f"{SCORES}/{side}": score_words(score) for side, score in scores.items()}
    question = questions.of_round(plan, weights_digest)
    return _masks(plan, site).mask(plan.round, question, plan.envelopes, delta, count, tables)


def masked_heads(plan: wire.HeadPlan, site: SiteConfig, answer: wire.HeadAnswer) -> wire.HeadAnswer:
    """The answer to a step towards heads with its sums, counts and scores as tables under masks, and without what one
    site's numbers alone say: comparisons with the softmax, seconds. Raises what `Masks.mask` raises.
    """
    assert plan.envelopes is not None, "the contract refuses a step without masks in a study that has them"
    tables = {name: sum_words(name, array) for name, array in answer.arrays.items()}
    if tables:
        tables[TRAIN] = np.array(answer.train_counts, np.uint64)
    bins: int | None = None
    match plan.step:
        case ScoreStep(heads=heads):
            found = {result.title: result.score for result in answer.results}
            scores = {head.title: found.get(head.title) for head in heads}
            # The network's own score is in the test's sum already, perhaps of other sites.
            tables |= {
                f"{SCORES}/{title}": np.zeros(num_words(len(plan.study.classes)), np.uint64)
                if score is None
                else score_words(score)
                for title, score in scores.items()
            }
            tables[UNSCORED] = np.array([score is None for score in scores.values()], np.uint64)
            # The policy's number also where no head could be scored: a default would say that.
            bins = site.policy.histogram_bins
        case OutliersStep():
            tables[OUTLIERS] = np.array(_in_all_bins(answer.outliers or ()), np.uint64)
        case _:
            pass
    question = questions.of_heads(plan.round, plan.weights_digest, plan.step, plan.inputs)
    return answer.model_copy(
        update={
            "train_counts": (),
            "results": (),
            "outliers": None,
            "seconds": coarse(answer.seconds),
            "score_bins": bins,
            "arrays": _masks(plan, site).mask(plan.mask_number, question, plan.envelopes, {}, 0, tables),
        }
    )


def _in_all_bins(images_B: Sequence[int]) -> list[int]:
    """Counts of a site's bins in as many as all sites have: each at the upper end of its bin, so no image is taken for
    less far than it is.
    """
    spread = [0] * NUM_BINS
    for place, images in enumerate(images_B):
        spread[-(-(place + 1) * NUM_BINS // len(images_B)) - 1] += images
    return spread


def coarse(seconds: float) -> float:
    """Seconds as they may leave with privacy or masks."""
    return math.ceil(seconds / _COARSE_S) * _COARSE_S


_COARSE_S = 10.0
"""Seconds to which times are rounded up: they say how many patients were drawn, or how many images there are."""


def _masks(plan: wire.MaskPlan | wire.RoundPlan | wire.HeadPlan, site: SiteConfig) -> Masks:
    study = plan.study
    return Masks(
        SiteState(site.state_dir, study).folder,
        plan.site,
        study.fingerprint,
        study.mask_threshold_of(plan.phase),
        sites=study.sites.train,
        least=max(study.sites.quorum, site.policy.min_cohort or 0),
        colluding=site.policy.max_colluding,
        phase=plan.phase,
    )

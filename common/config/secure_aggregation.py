"""Settings of secure aggregation."""

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from common.config.aggregation import Mean
from common.config.heads import Vote
from common.config.personalisation import own_models
from common.settings import Frozen

if TYPE_CHECKING:
    from common.config.study import StudyConfig


class SecureAggregationConfig(Frozen):
    """The server learns the sums of the sites' updates, scores, counts of images and sums for heads, and no site's own
    (Bonawitz et al. 2017).

    Images by class are counted once, before round 1. A site that misses that takes no part in the study.
    """

    threshold: Annotated[int, Field(ge=2)] | None = None
    """Sites that a sum must be of, and that must be there to take its masks off. More than half of the training sites
    of a round, so that the server cannot have one round opened twice. None: more than two thirds."""

    def threshold_of(self, num_sites: int) -> int:
        """The threshold where `num_sites` training sites are asked in a round."""
        return min(num_sites, 2 * num_sites // 3 + 1) if self.threshold is None else self.threshold


def wrong_masks(masks: SecureAggregationConfig, study: "StudyConfig") -> str | None:
    """Why a study with these settings cannot have masks, or None."""
    return _wrong_threshold(masks, study) or _wrong_updates(study) or _wrong_scores(study)


def _wrong_threshold(masks: SecureAggregationConfig, study: "StudyConfig") -> str | None:
    sites = study.sites
    asked, threshold = sites.num_per_round, masks.threshold_of(sites.num_per_round)
    if asked < 2:
        return f"needs two training sites or more in a round, found {asked}"
    if not asked < 2 * threshold <= 2 * asked:
        return f"threshold={threshold} must be more than half of the {asked} training sites of a round, and no more"
    if sites.quorum < threshold:
        return (
            f"threshold={threshold} is more than the {sites.quorum} site(s) with which a round goes on; raise "
            "sites.required or lower the threshold"
        )
    return None


def _wrong_updates(study: "StudyConfig") -> str | None:
    """What looks at one site's update."""
    aggregation, admission, algorithm = study.aggregation, study.admission, study.algorithm
    unseen = "the server sees no site's own update"
    if not isinstance(aggregation, Mean) or aggregation.norm_clip is not None:
        return f"goes with aggregation.kind=mean without norm_clip alone, because {unseen}"
    if aggregation.weigh_sites_by != "images" or aggregation.max_share not in (None, 1):
        return (
            "weighs a site by its images without a limit: leave aggregation.weigh_sites_by and max_share out, because "
            f"{unseen}"
        )
    if admission.max_norm is not None or admission.max_norm_ratio is not None:
        return (
            f"cannot compare norms, because {unseen}: leave admission.max_norm out and set admission.max_norm_ratio: "
            "null"
        )
    if algorithm.kind in ("scaffold", "fednova"):
        return f"does not go with algorithm={algorithm.kind}, which looks at each site's update"
    if study.transport is not None:
        return "does not go with transport: masked numbers cannot be rounded; leave transport out"
    return None


def _wrong_scores(study: "StudyConfig") -> str | None:
    """What looks at one site's scores, or at its images in another way."""
    unseen = "the server sees no site's own scores"
    if study.sites.evaluate:
        return (
            f"does not go with sites.evaluate, because {unseen}; score the final weights there in a study of its own, "
            "with start_from and rounds: 0"
        )
    if study.selection is not None and study.selection.sites is not None:
        return (
            f"chooses by the pooled scores of all training sites: leave selection.sites out, because {unseen}"
        )
    if own := own_models(study.personalisation):
        return f"does not go with models of a site's own ({', '.join(own)}), because {unseen}"
    if (problem := _wrong_heads(study)) is not None:
        return problem
    if study.subgroups is not None:
        return f"does not go with subgroups, whose counts are of each site, because {unseen}"
    if study.overlap is not None:
        return "does not go with overlap, which compares hashes of each site's images"
    return None


def _wrong_heads(study: "StudyConfig") -> str | None:
    """What of the heads is one site's own: only sums can be masked."""
    heads = study.heads
    if heads is None:
        return None
    if heads.local:
        return (
            f"does not go with local heads ({', '.join(head.title for head in heads.local)}), which are each site's "
            "own; leave heads.local out, or fit them in a study without masks"
        )
    if votes := [head.title for head in heads.federated if isinstance(head, Vote)]:
        return (
            f"does not go with a vote ({', '.join(votes)}), which is made of each site's own head; take heads that are "
            "made of sums"
        )
    if heads.every is not None:
        return (
            "does not go with heads.every: all sums for heads are of the same sites, and a site that is lost early "
            "would end them; leave it out, and heads are fitted once, at the end"
        )
    if study.privacy is not None and study.privacy.heads is not None:
        return "does not go with privacy.heads, whose sums have noise and no masks; leave one of the two out"
    return None

"""Settings of secure aggregation."""

from typing import Annotated

from pydantic import Field

from common.config.aggregation import AdmissionConfig, Aggregation, Algorithm, Mean
from common.config.heads import HeadsConfig
from common.config.rounds import SitesConfig
from common.config.transport import TransportConfig
from common.settings import Frozen


class SecureAggregationConfig(Frozen):
    """The server learns the sum of the sites' updates, and no site's own (Bonawitz et al. 2017).

    Scores and the counts of the enrolment are as without masks.
    """

    threshold: Annotated[int, Field(ge=2)] | None = None
    """Sites that a sum must be of, and that must be there to take its masks off. More than half of the training sites
    of a round, so that the server cannot have one round opened twice. None: more than two thirds."""

    def threshold_of(self, num_sites: int) -> int:
        """The threshold where `num_sites` training sites are asked in a round."""
        return min(num_sites, 2 * num_sites // 3 + 1) if self.threshold is None else self.threshold


def wrong_masks(
    masks: SecureAggregationConfig,
    sites: SitesConfig,
    aggregation: Aggregation,
    admission: AdmissionConfig,
    algorithm: Algorithm,
    transport: TransportConfig | None,
    heads: HeadsConfig | None,
) -> str | None:
    """Why a study with these settings cannot have masks, or None."""
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
    if transport is not None:
        return "does not go with transport: masked numbers cannot be rounded; leave transport out"
    if heads is not None and heads.federated:
        return (
            "does not go with heads.federated, whose sums are not masked; fit them in a study without masks"
        )
    return None

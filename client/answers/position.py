"""Where in its study a round stands."""

from client.training import fit
from common import seeds, wire


def position(plan: wire.RoundPlan) -> fit.StudyPosition:
    """Round, number of rounds, and the seed of the order in which images are passed."""
    return fit.StudyPosition(
        plan.round, plan.study.rounds, seeds.derive(plan.study.seed, plan.site, "passes")
    )

"""Drawing of the training sites of a round, for studies that do not ask all of them each time.

The draw depends on the study's seed, the round and the sites that can be asked, and on nothing else. So a study that is
repeated or resumed asks the same sites (client sampling: McMahan et al. 2017, arXiv:1602.05629).
"""

import random
from collections.abc import Collection

from common import seeds
from common.config import StudyConfig


def drawn(study: StudyConfig, able: Collection[str], number: int) -> set[str]:
    """The sites of `able` that are asked in round `number`: `sites.per_round` of them, or all."""
    most = study.sites.per_round
    if most is None or len(able) <= most:
        return set(able)
    draws = random.Random(seeds.derive(study.seed, "sites of a round", number))
    return set(draws.sample(sorted(able), most))

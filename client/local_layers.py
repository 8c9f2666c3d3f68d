"""Layers that stay at a site (`model.batch_norm: local` and `local_statistics`), put into the study's network.

A training site has what its last round left. A site that only scores has trained nothing: with `local_statistics` it
measures its own on all of its images, without labels (SiloBN, Andreux et al. 2020, arXiv:2008.07424).
"""

from client.model import parameters
from client.study_setup import StudySetup
from client.training.adapted_statistics import adapt_statistics


def load(setup: StudySetup, site: str, *, before_round: int) -> None:
    """Put the layers that `site` kept before this round into the setup's network, whose shared tensors are loaded.

    Raises SiteDataError if a site that only scores has too few images to measure statistics on.
    """
    study, kept = setup.study, setup.state.local_arrays(before_round=before_round)
    parameters.load_local(setup.model, setup.parts, kept or setup.first_local)
    only_scores = site not in study.sites.train
    if study.model.batch_norm == "local_statistics" and setup.parts.local and only_scores:
        setup.model.eval()
        device = next(setup.model.parameters()).device
        adapt_statistics(
            setup.model, setup.store.images(None), device, study.local.precision, among=setup.parts.local
        )

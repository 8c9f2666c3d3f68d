"""Layers that stay at a site (`model.batch_norm: local` and `local_statistics`), put into the study's network.

A training site has what its last round left. With `local_statistics`, a site that has trained nothing measures its own,
without labels (SiloBN, Andreux et al. 2020, arXiv:2008.07424): one that only scores on all of its images, one that
trains on its training images. What was measured is kept on disk until the weights are others.
"""

import hashlib
import json

from client.data.manifest import Side
from client.data.store import identity
from client.model import parameters
from client.study_setup import StudySetup
from client.training.adapted_statistics import adapt_statistics
from common import log
from common.errors import SiteDataError
from common.weights import digest


def load(setup: StudySetup, site: str, *, before_round: int, trains: bool = False) -> None:
    """Put the layers that `site` kept before this round into the setup's network, whose shared tensors are loaded.

    `trains`: the plan asks for training, which begins even if there are too few images to measure on. Raises
    SiteDataError if a site that has to score has too few, StorageError if what was measured cannot be kept.
    """
    kept = setup.state.local_arrays(before_round=before_round)
    parameters.load_local(setup.model, setup.parts, kept or setup.first_local)
    if setup.study.model.batch_norm != "local_statistics" or not setup.parts.local:
        return
    if site not in setup.study.sites.train:
        _measure(setup, None)
    elif kept is None and _trained_elsewhere(setup, before_round):
        try:
            _measure(setup, "train")
        except SiteDataError as error:
            if not trains:
                raise
            log.warn(f"training begins with the first means and variances of batch normalisation: {error}")


def _trained_elsewhere(setup: StudySetup, before_round: int) -> bool:
    """True if the loaded weights are not those that were built here, whose statistics were built with them."""
    return before_round > 1 or setup.study.start_from is not None


def _measure(setup: StudySetup, side: Side | None) -> None:
    """Measure the statistics on the images of one side, or of all, or take what was measured for these weights."""
    precision = setup.study.local.precision
    rows = setup.store.manifest.rows if side is None else setup.store.manifest.on(side)
    inputs = [
        digest(parameters.shared_arrays(setup.model, setup.parts)),
        identity(rows, setup.preprocessing),
        precision,
    ]
    key = hashlib.sha256(json.dumps(inputs).encode()).hexdigest()
    setup.model.eval()
    known = setup.state.measured(key)
    if known is not None and known.keys() == set(setup.parts.local):
        parameters.load_local(setup.model, setup.parts, known)
        return
    device = next(setup.model.parameters()).device
    adapt_statistics(setup.model, setup.store.images(side), device, precision, among=setup.parts.local)
    setup.state.keep_measured(key, parameters.local_arrays(setup.model, setup.parts))

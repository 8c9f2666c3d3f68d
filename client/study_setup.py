"""The setup of one study at a site: model, images, split and what of the model travels.

Building it costs seconds to minutes: images are read and decoded, weights are loaded. So the trainer keeps
it from round to round, and every step that depends on the study alone is here.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import nn

from client.config import PolicyConfig, SiteConfig
from client.data.readers import read
from client.data.splitting import kept_split
from client.data.store import ImageStore
from client.governance import small_cells
from client.images import Preprocessing
from client.model import build, parameters
from client.training import mixing
from client.training.devices.group import FurtherDevices
from client.training.devices.refusals import require_parts
from client.training.hardware import determinism
from client.training.hardware.out_of_memory import MostAtOnce
from client.training.private.own_check import require_gradients_of_patients
from client.training.state.local_state import SiteState
from common import log
from common.config import StudyConfig
from common.errors import SiteDataError
from common.weights import Array, Arrays, digest


@dataclass(frozen=True)
class StudySetup:
    """One study set up at this site: a model, its images and what is shared of it."""

    study: StudyConfig
    model: nn.Module
    preprocessing: Preprocessing
    parts: parameters.TensorNames
    store: ImageStore
    state: SiteState
    first_local: Arrays
    """Layers that stay at the site, as built, before any round."""
    weights_digest: str
    """Of the shared tensors as built, before any round."""
    frozen_digest: str
    is_private: bool = False
    """Whether what leaves this site in the study has noise for differential privacy."""
    most_at_once: MostAtOnce = field(default_factory=MostAtOnce)
    """How many images the device took at once in this study."""
    further: FurtherDevices | None = None
    """Devices that share each batch with the trainer's own."""

    def rules(self, policy: PolicyConfig) -> PolicyConfig:
        """The policy by which images are left out."""
        return _rules(policy, is_private=self.is_private)


def set_up(
    study: StudyConfig, site: SiteConfig, device: torch.device, further: Sequence[torch.device] = ()
) -> StudySetup:
    """Build the model and read the images that the site's policy allows. `further` devices share each batch.

    Raises SiteDataError if the images or labels are unusable, PolicyRefusal if too few are left, and
    ConfigError if the study's weights are not those of its model, or its batches cannot be shared by devices.
    """
    determinism.apply(study.local.determinism)
    built = build.of_study(study, site.weights_dir)
    log.event(f"built {study.model.encoder}: {built.report.source}")
    chosen = parameters.partition(built.model, study.model)
    parameters.freeze(built.model, chosen)
    if study.privacy is not None:
        size = built.preprocessing.image_size
        require_gradients_of_patients(built.model, chosen, study.model.encoder, size)
    if study.local.mixstyle > 0:
        mixing.places(built.model)  # before the images: an encoder without such places is refused
    if further and site.name in study.sites.train:
        require_parts(study, built.model, chosen)
    rows = read.read(site.data, study.classes, site.state_dir)
    try:
        split = kept_split.kept(rows, site.split, site.state_dir)
    except SiteDataError as error:
        if site.name not in study.sites.evaluate:
            raise
        raise SiteDataError(
            f"{error} But study {study.name} asks this site only to score the model, which takes no split: set "
            "`split: {kind: none, all: test}`."
        ) from error
    is_private = study.privacy is not None and site.name in study.sites.train
    if is_private and site.split.deals_patients:
        log.warn(
            "privacy: the split deals patients by what the others are, so one patient more can move others, and "
            "epsilon is for one patient in a split as it is; `split.stratified: false` draws each by itself"
        )
    tests = (
        is_private and study.privacy is not None and study.privacy.scores is not None and site.policy.scores
    )
    manifest = small_cells.usable(split, _rules(site.policy, is_private=is_private), tests=tests)
    if num_left_out := len(split.rows) - len(manifest.rows):
        log.event(f"policy: {num_left_out} of {len(split.rows)} images are left out")
    store = ImageStore.build(manifest, built.preprocessing, site.cache, site.state_dir, site.threads)
    model = built.model.to(device)
    if study.local.channels_last:
        # From the start: a layout that changes with the first training would change the last
        # bits of a score, and a restarted trainer would not repeat its answers.
        model = model.to(memory_format=torch.channels_last)
    if study.local.precision == "float64":
        model = model.double()
    return StudySetup(
        study=study,
        model=model,
        preprocessing=built.preprocessing,
        parts=chosen,
        store=store,
        state=SiteState(site.state_dir, study),
        first_local=parameters.local_arrays(model, chosen),
        weights_digest=digest(parameters.shared_arrays(model, chosen)),
        frozen_digest=parameters.frozen_digest(model, chosen),
        further=FurtherDevices(further, study, site.weights_dir, chosen.trained) if further else None,
        is_private=is_private,
    )


def _rules(policy: PolicyConfig, *, is_private: bool) -> PolicyConfig:
    """With noise, whether a patient's images are used must not depend on how many others there are, and nothing is
    scored without noise: validation images train, test images rest if the study does not pay for their scores.
    """
    return policy.model_copy(update={"min_cell": None, "scores": False}) if is_private else policy


def first_weights(setup: StudySetup, site: SiteConfig) -> dict[str, Array]:
    """The shared tensors before any training, by name.

    They are built again: the model of `setup` may have been trained since, by an earlier run of the same study.
    """
    study = setup.study
    model = build.of_study(study, site.weights_dir).model
    if study.local.precision == "float64":
        model = model.double()
    return parameters.shared_arrays(model, setup.parts)

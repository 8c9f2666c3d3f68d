"""Summary of a study for the person who approves it: everything that the approval binds, in a few lines."""

from collections.abc import Iterator
from typing import assert_never

from common.config import (
    DpSgdConfig,
    FileWeights,
    HubWeights,
    LocalConfig,
    SeedWeights,
    StudyConfig,
    own_models,
)
from common.config.subgroups import titles
from common.heads import travelling


def lines(study: StudyConfig) -> Iterator[str]:
    """What is trained, how, by whom, and what is asked of a site."""
    model, sites = study.model, study.sites
    tuned = "" if model.tuning is None else f" by {model.tuning.kind}"
    yield f"{model.kind} {model.encoder}{tuned}, classes {', '.join(study.classes)}"
    yield f"starts from {_start(study)}; trains and sends {_trained(study) if study.rounds else 'NOTHING'}"
    if study.start_from is not None:
        given = study.start_from
        yield f"the server SENDS the first weights: {given.name} (hash {given.sha256[:12]})"
    if study.rounds:
        yield f"{study.rounds} rounds of {_work(study.local)}, {study.algorithm.kind}"
        yield (
            _steps(study.local) if study.privacy is None else _steps(study.local, "patients drawn by chance")
        )
    else:
        yield "no rounds: the first weights are scored, and no network is trained"
    yield (
        f"trains: {', '.join(sites.train)}; scores only: {', '.join(sites.evaluate) or 'none'}; goes on with "
        f"{sites.quorum} training site(s)"
        + (f", of {sites.per_round} that are drawn for each round" if sites.per_round is not None else "")
    )
    tested = "one of them" if study.curves_on == "validation" else "each"
    yield f"scores up to {study.rounds + 1} sets of weights on validation images, {tested} on test images"
    for name, attribute in (study.subgroups or {}).items():
        values = ", ".join(titles(attribute))
        yield f"COUNTS the test images by {name} ({values}), where this site's YAML names a column for it"
    if study.asks_for_intervals:
        yield (
            "sends sums over test patients once, each with a random number that stays at the site, for intervals of "
            "the figures"
        )
    if own := own_models(study.personalisation):
        yield f"trains models that stay at the site: {', '.join(own)}; their scores on test images leave at the end"
    if study.calibration is not None:
        yield "counts once how surely validation images are classified, to calibrate the model's probabilities"
    if study.out_of_distribution is not None:
        yield "counts once how far validation images are from the training images' features, for an outlier score"
    if study.heads is None:
        yield "fits no classical heads"
    else:
        every = "" if study.heads.every is None else f", every {study.heads.every} rounds"
        yield f"fits classical heads on features: {', '.join(study.heads.titles)}{every}"
        yield from _travelling(study)
    if study.secure_aggregation is None:
        yield "the server sees this site's own updates"
    else:
        least = max(study.mask_threshold, study.sites.quorum)
        yield (
            "MASKS updates, scores, counts of images and sums for heads: the server learns sums of "
            f"{least} or more sites, and what two sums of different sites differ by"
        )
        yield (
            f"its masks hold while {study.colluding_sites} other site(s) at most work together with the server"
        )
    if study.privacy is None:
        yield "puts no noise on what leaves: a single patient may show in it"
    else:
        yield "; ".join(_noise(study, study.privacy))
    if study.overlap is None:
        yield "compares no images between sites"
    else:
        yield "COMPARES images between sites, as keyed hashes of each image"


def _noise(study: StudyConfig, privacy: DpSgdConfig) -> Iterator[str]:
    """Where noise is put, in the order of what it costs."""
    if study.rounds:
        yield (
            f"NOISE {privacy.step_noise:g} on gradients of patients shrunk to {privacy.max_grad_norm:g}, each drawn "
            f"with a chance of {privacy.step_rate:g}, {privacy.num_steps(study.local)} steps a round"
        )
    if privacy.heads is not None:
        bound = privacy.heads.max_feature_norm
        yield f"NOISE {privacy.heads.noise:g} on sums of features shrunk to {bound:g}, once, for all heads"
    if privacy.scores is None:
        yield "no score of a training site leaves"
    else:
        yield f"NOISE {privacy.scores.noise:g} on scores of the final weights on test images, once"


def _travelling(study: StudyConfig) -> Iterator[str]:
    """What leaves a site that trains with its own heads, and what it takes to keep it."""
    heads = travelling.asked(study.heads)
    for holds, what in (
        (False, "made of sums over a class's images"),
        (True, "made of FEATURES OF SINGLE PATIENTS"),
    ):
        named = [
            f"local.{head.title} ({head.kind})" for head in heads if travelling.holds_features(head) == holds
        ]
        if named:
            yield (
                f"a training site SENDS its own heads, which all sites score: {', '.join(named)}, {what}; only kinds "
                "that policy.heads_may_leave lists leave"
            )


def _work(local: LocalConfig) -> str:
    return f"{local.num_epochs:g} epoch(s)" if local.num_epochs is not None else f"{local.steps} steps"


def _steps(local: LocalConfig, who: str = "") -> str:
    size = who or ("all images" if local.batch_size == "all" else f"{local.batch_size} images")
    optimizer = local.optimizer
    mixed = "".join(
        f", {name} {share:g}"
        for name, share in (("mixstyle", local.mixstyle), ("amplitude_mix", local.amplitude_mix))
        if share > 0
    )
    return (
        f"steps on {size}, {optimizer.kind} with learning rate {optimizer.lr:g}, {local.schedule.kind} schedule, "
        f"precision {local.precision}, augmentation {local.augmentation}{mixed}"
    )


def _start(study: StudyConfig) -> str:
    match study.model.weights:
        case SeedWeights():
            return "random weights"
        case FileWeights(name=name):
            return f"the file {name}"
        case HubWeights():
            return "weights of a public hub, which this site FETCHES"
        case _:
            assert_never(study.model.weights)


def _trained(study: StudyConfig) -> str:
    model = study.model
    if model.tuning is not None:
        return f"what {model.tuning.kind} adds, and the classifier"
    match model.trainable:
        case "all":
            return "all layers"
        case "head":
            return "the classifier alone"
        case last:
            return f"the classifier and the last {last.last_blocks} groups of layers"

"""Units of settings that are numbers.

Most units follow from a name's ending (`_s`, `_mib`). The rest stand here by the field's name, with
the model's name before it where one name has two units. A test holds that every number has an entry.
"""

from pydantic import BaseModel

_BY_ENDING = {"_s": "seconds", "_mib": "MiB (2^20 bytes)"}

PURE = ""
"""A number without a unit: a coefficient, a seed, an index."""

_SHARE = "share, 0 to 1"

_BY_NAME = {
    "alpha": PURE,
    "amplitude_mix": "probability",
    "beta1": PURE,
    "beta2": PURE,
    "betas": PURE,
    "c": PURE,
    "clip_grad_norm": "Euclidean norm of the gradient",
    "class_weight_cap": "factor",
    "dropout": _SHARE,
    "factor": PURE,
    "final": "share of `lr`",
    "gamma": PURE,
    "Step.gamma": "factor",
    "label_smoothing": _SHARE,
    "least_images": "images",
    "learning_rate": PURE,
    "lr": PURE,
    "max_norm": "Euclidean norm of a delta",
    "max_norm_ratio": "factor",
    "max_share": _SHARE,
    "max_step": "factor",
    "decay": PURE,
    "min_gain": "as the metric",
    "mixstyle": "probability",
    "momentum": PURE,
    "mu": PURE,
    "norm_clip": "Euclidean norm of a delta",
    "percentile": "percent",
    "priors": PURE,
    "ratio": _SHARE,
    "server_lr": PURE,
    "shrinkage": _SHARE,
    "smoothing": PURE,
    "tau": PURE,
    "top_k": "share of a tensor's entries",
    "temperature": PURE,
    "test_share": "share of the images",
    "validation": "share of the images that are not for testing",
    "tolerance": "share of the first gradient",
    "trim": "share of the sites",
    "warmup": "share of the study",
    "round_warmup": "share of the round",
    "milestones": "shares of the study",
    "weight_decay": PURE,
    "count_noise": "standard deviations, in `images_per_patient`",
    "delta": "probability",
    "least_noise": "standard deviations, in `max_grad_norm`",
    "max_epsilon": "epsilon",
    "max_grad_norm": "Euclidean norm of a patient's gradient",
    "max_feature_norm": "Euclidean norm of an image's features",
    "noise": "standard deviations, in what one patient can change",
    "sampling_rate": "probability",
    # counts
    "batch_size": "images",
    "center": "number of the centre",
    "context_length": "tokens",
    "count": "slices",
    "epochs": "passes over the images",
    "evaluate_every": "rounds",
    "every": "rounds",
    "fold": "number of the fold",
    "folds": "folds",
    "image_size": "pixels a side",
    "images_per_patient": "images",
    "iterations": "steps",
    "LocalBoosting.iterations": "trees",
    "keep_checkpoints": "rounds",
    "last_blocks": "groups of layers",
    "max_epochs_per_round": "passes over the training images",
    "max_mib_down": "MiB (2^20 bytes)",
    "max_mib_up": "MiB (2^20 bytes)",
    "max_rounds_per_day": "rounds",
    "micro_batch_size": "images",
    "histogram_bins": "bins",
    "max_device_minutes_per_day": "minutes",
    "max_evaluations_per_day": "sets of weights",
    "max_runs": "runs",
    "max_patient_share": "share",
    "max_weight_change": "share of the Euclidean norm",
    "min_batch": "patients or lesions",
    "min_cell": "patients or lesions",
    "min_cohort": "sites",
    "threshold": "sites",
    "min_score_cell": "patients or lesions",
    "min_subgroup": "patients or lesions",
    "bands": "as the column, e.g. years",
    "min_class_images": "images",
    "min_train_images": "images",
    "most_messages": "messages to each site",
    "neighbours": "images",
    "node_ids": "number of the Flower node",
    "num_byzantine": "sites",
    "num_components": "features",
    "num_selected": "sites",
    "patience": "scored rounds",
    "pca": "components",
    "port": "TCP port",
    "rank": PURE,
    "reduction": "factor",
    "repeats": "repetitions",
    "per_round": "sites",
    "required": "sites",
    "rounds": "rounds",
    "seed": PURE,
    "seeds": PURE,
    "set_aside_after": "answers",
    "step": "slices",
    "steps": "optimizer steps",
    "threads": "threads",
    "trees": "trees",
    "centre": "the modality's unit",
    "width": "the modality's unit",
    "RandomText.width": "numbers in a vector",
}


def unit(model: type[BaseModel], field: str) -> str | None:
    """The unit of a number, PURE for one without; None: no unit is known for this field."""
    for owner in model.__mro__:
        if (own := _BY_NAME.get(f"{owner.__name__}.{field}")) is not None:
            return own
    by_ending = next((words for ending, words in _BY_ENDING.items() if field.endswith(ending)), None)
    return by_ending or _BY_NAME.get(field)

"""Export of a finished run as one whole model: LoRA's products are added to the encoder's own weights.

A study writes only the tensors that travelled, and its federated heads apart. Use outside of Consilium needs the whole
model, under the names that timm or open_clip give it, with the head that the study ends with as its classifier.
"""

from collections.abc import Sequence
from pathlib import Path

import torch

from client.model import tuning
from client.predict import fold
from client.predict.image_classifier import LocalHead, load, weights_of
from common.errors import ConfigError
from common.weights import load_file, save_file


def merge_run(
    run_dir: Path,
    out: Path,
    weights_dir: Path | None,
    title: str | None = None,
    adapt_to: Sequence[Path] = (),
) -> tuple[int, str]:
    """Write the whole model of a finished run to `out`; returns how many tensors it has and the title of its head.

    `weights_dir` holds the file that the study started from. `title` is a federated head or `softmax`, None: the head
    that the study ends with. `adapt_to` as for `load`. Raises ConfigError, SiteDataError, StorageError.
    """
    classifier = load(run_dir, title, weights_dir, torch.device("cpu"), adapt_to=adapt_to)
    _, metadata = load_file(weights_of(run_dir))
    whole = tuning.merged(classifier.model)
    if isinstance(classifier.head, LocalHead):
        raise ConfigError(
            "--head: a site's own head is scikit-learn's and cannot be merged; name a federated head or softmax"
        )
    if classifier.head is not None:
        fold.put_into(whole, classifier.head, classifier.layer)
    tensors = {name: tensor.numpy() for name, tensor in whole.state_dict().items()}
    save_file(out, tensors, metadata | {"head_title": classifier.head_title})
    return len(tensors), classifier.head_title

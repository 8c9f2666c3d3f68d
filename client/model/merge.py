"""Export of a finished run as one whole model: LoRA's products are added to the encoder's own weights.

A study writes only the tensors that travelled. Use outside of Consilium needs the whole model, under the
names that timm or open_clip give it.
"""

from pathlib import Path

from client.model import build, parameters, tuning
from common.config import StudyConfig
from common.errors import ConfigError, StorageError, WireError
from common.settings import load_settings
from common.weights import load_file, save_file


def merge_run(run_dir: Path, out: Path, weights_dir: Path | None) -> int:
    """Write the whole model of a finished run to `out`; returns how many tensors it has.

    `weights_dir` holds the file that the study started from. Raises ConfigError, SiteDataError, StorageError.
    """
    study = load_settings(run_dir / "study.yaml", StudyConfig, "study")
    try:
        arrays, metadata = load_file(run_dir / "weights.safetensors")
    except StorageError as error:
        raise ConfigError(f"{error}; give the folder of a finished run") from error
    model = build.of_study(study, weights_dir).model
    try:
        parameters.load_shared(model, parameters.partition(model, study.model), arrays)
    except WireError as error:
        raise ConfigError(
            f"{run_dir.name}: {error}; study.yaml and weights.safetensors are of two studies"
        ) from error
    whole = tuning.merged(model)
    tensors = {name: tensor.numpy() for name, tensor in whole.state_dict().items()}
    save_file(out, tensors, metadata)
    return len(tensors)

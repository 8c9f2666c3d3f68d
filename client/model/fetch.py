"""Weights from a public hub, for a folder that hospitals copy: the files, their hash, licence and origin.

Nothing in a study runs this. A person with the internet does, and carries the folder to where it is needed. Three kinds
of names: an encoder of timm or of the paper, a CLIP of open_clip with its tag, and a folder of Hugging Face's hub.
Files keep the bytes that the hub has, and each file is compared with the hub's own hash of it.
"""

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from common.errors import ConfigError, SiteDataError, StorageError
from common.files import sha256_of, write_atomically
from common.settings import to_yaml

if TYPE_CHECKING:
    from huggingface_hub.hf_api import ModelInfo

Library = Literal["timm", "open_clip", "hugging_face"]
_TOWER = ("config.json", "model.safetensors", "tokenizer*", "vocab*", "merges.txt", "special_tokens_map.json")
"""Files of a text tower: weights, settings and tokenizer."""
_BLOCK = 2**20
_CACHE = ".hub"
"""Where a download that breaks off goes on; gone when the weights are whole."""


@dataclass(frozen=True)
class Fetched:
    """Weights that lie in a folder now."""

    path: Path
    """The file, or the folder of a text tower."""
    stanza: dict[str, Any]
    """What a study writes about them."""
    origin: str
    """The hub's name of the repository."""
    revision: str
    """The hub's commit."""
    licence: str
    sha256: str

    def describe(self) -> str:
        """For a terminal: what it is, and what to write into a study."""
        return (
            f"{self.path}\n  from {self.origin} at {self.revision}, licence: {self.licence}\n\n{self.yaml()}"
        )

    def yaml(self) -> str:
        """The part of a study's YAML."""
        return to_yaml(self.stanza).decode()


def fetch(
    encoder: str, out: Path, *, library: Library = "timm", tag: str | None = None, endpoint: str | None = None
) -> Fetched:
    """Fetch the weights of `encoder` into the folder `out`, with NAME.origin.json beside them.

    `tag` names the weights of open_clip, and may name those of timm. `endpoint` is the address of the hub; None takes
    Hugging Face's, or HF_ENDPOINT. Raises ConfigError for a name that there is not, SiteDataError if the hub does not
    give it or gives other bytes than it says, StorageError.
    """
    repository, file = _repository(encoder, library, tag)
    found = _asked(repository, endpoint)
    name = f"{repository.rpartition('/')[2]}" + (".safetensors" if file else "")
    path = out / name
    if file is None:
        _fetch_tower(found, out / name, endpoint)
        sha256 = sha256_of(path / "model.safetensors")
    else:
        if file not in _hashes(found):
            raise SiteDataError(
                f"{repository} has no {file}, only {', '.join(sorted(_hashes(found)))}; fetch a file of pickles by "
                "hand and give it to `consilium-site import-weights`"
            )
        sha256 = _fetch_file(found, file, path, endpoint)
    fetched = Fetched(
        path=path,
        stanza=_stanza(encoder, library, name, sha256),
        origin=repository,
        revision=str(found.sha),
        licence=_licence(encoder, library, found),
        sha256=sha256,
    )
    keep_origin(fetched)
    return fetched


def keep_origin(fetched: Fetched) -> None:
    """Write NAME.origin.json beside the weights. Raises StorageError."""
    about = {name: value for name, value in asdict(fetched).items() if name not in ("path", "stanza")}
    about["encoder"] = fetched.stanza["model"].get("encoder")
    write_atomically(
        fetched.path.with_name(f"{fetched.path.name}.origin.json"), json.dumps(about, indent=1).encode()
    )


def _repository(encoder: str, library: Library, tag: str | None) -> tuple[str, str | None]:
    """The hub's repository, and the file in it; None for a whole folder. Raises ConfigError."""
    match library:
        case "timm":
            return _of_timm(encoder, tag), "model.safetensors"
        case "open_clip":
            return _of_open_clip(encoder, tag), "open_clip_model.safetensors"
        case "hugging_face":
            if encoder.count("/") != 1:
                raise ConfigError(f"found {encoder!r}, expected a name of the hub as OWNER/NAME")
            return encoder, None


def _of_timm(encoder: str, tag: str | None) -> str:
    from timm.models import get_pretrained_cfg

    from client.model.encoders import timm_name

    name = timm_name(encoder if tag is None else f"{timm_name(encoder).partition('.')[0]}.{tag}")
    config = get_pretrained_cfg(name)
    repository = None if config is None else config.hf_hub_id
    if not repository:
        raise ConfigError(f"timm has no weights of {name} on the hub; take another encoder")
    return str(repository)


def _of_open_clip(encoder: str, tag: str | None) -> str:
    import open_clip

    tags = open_clip.list_pretrained_tags_by_model(encoder)
    if not tags:
        raise ConfigError(f"open_clip has no weights of {encoder!r}; `ViT-B-32` is such a name")
    if tag not in tags:
        raise ConfigError(f"found --tag {tag}, expected one of {', '.join(tags)}")
    repository = str(open_clip.get_pretrained_cfg(encoder, tag).get("hf_hub", "")).strip("/")
    if not repository:
        raise ConfigError(f"open_clip's weights {encoder}/{tag} are on no hub; take another tag")
    return repository


def _asked(repository: str, endpoint: str | None) -> "ModelInfo":
    from huggingface_hub import HfApi

    try:
        return HfApi(endpoint=endpoint).model_info(repository, files_metadata=True)
    except (
        Exception
    ) as error:  # the hub's client, its HTTP library and the network each have their own errors
        raise SiteDataError(
            f"the hub does not tell about {repository} ({type(error).__name__}: {' '.join(str(error).split())}); check "
            "the name and the connection. HF_ENDPOINT names another hub"
        ) from error


def _hashes(found: "ModelInfo") -> dict[str, str | None]:
    """By file: the hub's SHA-256, None for small files, which it has none of."""
    return {one.rfilename: None if one.lfs is None else str(one.lfs.sha256) for one in found.siblings or ()}


def _fetch_file(found: "ModelInfo", file: str, path: Path, endpoint: str | None) -> str:
    """One file of the repository, at `path`; returns its SHA-256. Raises SiteDataError, StorageError."""
    from huggingface_hub import HfApi

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        cached = HfApi(endpoint=endpoint).hf_hub_download(
            found.id, file, revision=found.sha, cache_dir=path.parent / _CACHE
        )
    except OSError as error:
        raise StorageError(f"{file} of {found.id} could not be written: {error}") from error
    except Exception as error:  # as above
        raise SiteDataError(
            f"{file} of {found.id} could not be fetched ({type(error).__name__}: {' '.join(str(error).split())}); run "
            "the command again, it goes on where it stopped"
        ) from error
    sha256, said = sha256_of(Path(cached)), _hashes(found).get(file)
    if said is not None and sha256 != said:
        raise SiteDataError(
            f"{file} of {found.id} has the SHA-256 {sha256}, the hub says {said}; it was damaged on the way. Remove "
            f"{cached} and fetch it again"
        )
    try:
        _copy(Path(cached), path)
        shutil.rmtree(path.parent / _CACHE, ignore_errors=True)
    except OSError as error:
        raise StorageError(
            f"{path} could not be written: {error.strerror}; what was there is still there"
        ) from error
    return sha256


def _fetch_tower(found: "ModelInfo", folder: Path, endpoint: str | None) -> None:
    wanted = list(_matching(found))
    if "model.safetensors" not in wanted:
        raise SiteDataError(
            f"{found.id} has no model.safetensors, only {', '.join(sorted(_hashes(found)))}; a file of pickles is not "
            "read. Many repositories have the safetensors in a pull request: ask for it there"
        )
    for file in wanted:
        _fetch_file(found, file, folder / file, endpoint)


def _matching(found: "ModelInfo") -> Iterator[str]:
    from fnmatch import fnmatchcase

    for file in _hashes(found):
        if any(fnmatchcase(file, pattern) for pattern in _TOWER):
            yield file


def _copy(source: Path, path: Path) -> None:
    partial = path.with_name(f".{path.name}.partial")
    with source.open("rb") as from_file, partial.open("wb") as to_file:
        while block := from_file.read(_BLOCK):
            to_file.write(block)
        to_file.flush()
        os.fsync(to_file.fileno())
    partial.replace(path)


def _licence(encoder: str, library: Library, found: "ModelInfo") -> str:
    """As the hub says; else as timm does."""
    said = None if found.card_data is None else found.card_data.get("license")
    if said is None and library == "timm":
        from timm.models import get_pretrained_cfg

        from client.model.encoders import timm_name

        config = get_pretrained_cfg(timm_name(encoder))
        said = None if config is None else config.license
    return str(said) if said else "not stated: ask the authors before you use it"


def _stanza(encoder: str, library: Library, name: str, sha256: str) -> dict[str, Any]:
    weights = {"kind": "file", "name": name, "sha256": sha256}
    match library:
        case "timm":
            return {"model": {"encoder": encoder, "weights": weights}}
        case "open_clip":
            return {"model": {"kind": "clip", "library": "open_clip", "encoder": encoder, "weights": weights}}
        case "hugging_face":
            return {"model": {"kind": "clip", "text": {"kind": "hugging_face", "weights": weights}}}

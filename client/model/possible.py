"""Encoders and image sizes that cannot be built, all at once: asked before many studies are run."""

from collections.abc import Sequence
from typing import Literal, TypeAlias

from client.model import encoders, open_clip
from common.config import ClassifierConfig, ClipConfig
from common.errors import ConfigError
from common.settings import validate_settings

Library: TypeAlias = Literal["timm", "open_clip"]


def require(wanted: Sequence[str], library: Library) -> None:
    """Try each of `wanted`, which are `ENCODER` or `ENCODER:PIXELS`, on shapes alone.

    Raises ConfigError that lists all that cannot be built.
    """
    problems = []
    for one in wanted:
        try:
            _require(one, library)
        except ConfigError as error:
            problems.append(f"  {one}: {error}")
    if problems:
        raise ConfigError(
            "\n".join([f"{len(problems)} of {len(wanted)} encoders cannot be built:", *problems])
        )


def _require(one: str, library: Library) -> None:
    name, colon, pixels = one.rpartition(":")
    if not (colon and pixels.isdecimal()):
        name, pixels = one, ""
    settings = {"encoder": name, **({"image_size": int(pixels)} if pixels else {})}
    if library == "open_clip":
        clip = settings | {"kind": "clip", "library": library, "text": {"kind": "random", "width": 8}}
        open_clip.require_image_tower(validate_settings(clip, ClipConfig, "model", one))
    else:
        encoders.architecture(validate_settings(settings, ClassifierConfig, "model", one), 2, "meta")

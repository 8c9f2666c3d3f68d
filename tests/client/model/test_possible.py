"""Encoders that are asked for before many studies are run."""

import pytest

from client.cli.main import main
from client.model import possible
from common.errors import ConfigError


def test_all_encoders_and_sizes_that_cannot_be_built_are_named() -> None:
    """A patch of test_vit2 has 16 pixels a side, and it takes no 30, which are no multiple of that."""
    with pytest.raises(ConfigError) as caught:
        possible.require(["test_convnext:32", "nosuchnet", "test_vit2:30"], "timm")
    first, second, third = str(caught.value).splitlines()
    assert first == "2 of 3 encoders cannot be built:"
    assert second.startswith("  nosuchnet: model.encoder: timm ")
    assert "has no encoder 'nosuchnet'" in second
    assert "  test_vit2:30: model.image_size: test_vit2 cannot take 30 pixels a side; it can take" in third


def test_clip_towers_are_asked_of_open_clip() -> None:
    possible.require(["ViT-B-32", "ViT-B-32:64", "RN50:96"], "open_clip")
    with pytest.raises(
        ConfigError,
        match=r"(?s)ViT-B-3: .*has no model 'ViT-B-3'.*ViT-B-32:16: .*cannot take 16 pixels.*made for 224",
    ):
        possible.require(["ViT-B-3", "ViT-B-32:16", "RN50"], "open_clip")


def test_the_command_fails_with_what_cannot_be_built(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check-encoders", "test_convnext", "test_vit2:2000"]) != 0
    assert "1 of 2 encoders cannot be built" in capsys.readouterr().err
    assert main(["check-encoders", "test_convnext"]) == 0

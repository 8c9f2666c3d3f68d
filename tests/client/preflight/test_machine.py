"""What a machine brings: a device, room on the disk, memory."""

import shutil
import sys
from collections import namedtuple
from pathlib import Path

import pytest
import torch

from client.config import CacheConfig, FoldersData, SiteConfig
from client.preflight import machine

Usage = namedtuple("Usage", "total used free")


def site(tmp_path: Path, **changes: object) -> SiteConfig:
    values = {
        "name": "north", "data": FoldersData(root=tmp_path), "state_dir": tmp_path / "state",
        "cache": CacheConfig(memory_mib=1, disk_mib=2048),
    }  # fmt: skip
    return SiteConfig.model_validate(values | changes)


def ranks(made: SiteConfig) -> list[str]:
    return [finding.rank for finding in machine.check(made)]


@pytest.mark.parametrize(
    ("free_mib", "rank"), [(100_000, "fine"), (3_000, "fine"), (1_500, "look"), (500, "stops")]
)
def test_a_full_disk_stops_and_a_nearly_full_one_is_worth_a_look(
    tmp_path, monkeypatch, free_mib, rank
) -> None:
    """2,048 MiB may be taken by decoded images; less than 1,024 is too little for anything."""
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(0, 0, free_mib * 2**20))
    assert ranks(site(tmp_path))[1] == rank


def test_a_folder_that_cannot_be_written_stops(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    findings = list(machine.check(site(tmp_path, state_dir=tmp_path / "file" / "state")))
    assert findings[1].rank == "stops"
    assert "cannot be written" in findings[1].text


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_no_gpu_is_worth_a_look_unless_the_cpu_was_asked_for(tmp_path: Path) -> None:
    assert ranks(site(tmp_path, device="auto"))[0] == "look"
    assert ranks(site(tmp_path, device="cpu"))[0] == "fine"
    assert ranks(site(tmp_path, device="cuda"))[0] == "stops"


def test_a_socket_with_too_long_a_path_stops(tmp_path: Path) -> None:
    """`check` passed it, and the trainer failed on it."""
    found = [*machine.check(site(tmp_path, socket=tmp_path / ("d" * 110) / "trainer.sock"))]
    (line,) = [finding.text for finding in found if finding.rank == "stops"]
    assert "the path of the socket trainer.sock has" in line
    assert "may have 107" in line


def test_a_socket_with_a_short_path_is_not_spoken_of(tmp_path: Path) -> None:
    assert not any(
        "the path of the socket" in finding.text
        for finding in machine.check(site(tmp_path, socket=Path("/run/t.sock")))
    )


@pytest.mark.parametrize(
    ("encoding", "is_named"), [("utf-8", False), ("UTF8", False), ("iso8859-1", True), ("ascii", True)]
)
def test_a_shell_whose_names_are_in_another_encoding_than_site_yaml_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoding: str, is_named: bool
) -> None:
    monkeypatch.setattr(sys, "getfilesystemencoding", lambda: encoding)
    said = [finding for finding in machine.check(site(tmp_path)) if "names of files" in finding.text]
    assert [(finding.rank, encoding in finding.text) for finding in said] == [("look", True)] * is_named

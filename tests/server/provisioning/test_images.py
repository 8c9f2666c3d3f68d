"""What a kit's programs are made of, saved with a `docker` that only pretends."""

import gzip
import hashlib
import zipfile
from pathlib import Path

import pytest
import yaml

from common import release
from common.errors import ConfigError, LaunchError
from server.cli.main import main
from server.provisioning import images, startup_kit

VERSION = release.version()
WHEEL = f"consilium_fl-{VERSION}-py3-none-any.whl"
BUNDLE = f"consilium-images-{VERSION}.tar.gz"

DOCKER = """#!/bin/sh
echo "docker $*" >>"$CALLS"
case "$1" in
image) cat "$IDS" || { echo 'Error: No such image' >&2; exit 1; } ;;
save) printf 'layers'; exit ${SAVE:-0} ;;
esac
"""


@pytest.fixture
def docker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file with the ids of the images that this Docker has; its calls are in the file `calls`."""
    place = tmp_path / "bin"
    place.mkdir()
    (place / "docker").write_text(DOCKER)
    (place / "docker").chmod(0o755)
    ids = tmp_path / "ids"
    ids.write_text("sha256:1\nsha256:2\n")
    monkeypatch.setenv("PATH", f"{place}:/usr/bin:/bin")
    monkeypatch.setenv("IDS", str(ids))
    monkeypatch.setenv("CALLS", str(tmp_path / "calls"))
    return ids


@pytest.fixture
def federation(tmp_path: Path) -> Path:
    path = tmp_path / "federation.yaml"
    path.write_text(yaml.safe_dump({"name": "f", "server": {"hosts": ["c.example"]}, "sites": {"north": {}}}))
    return path


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    """A wheel of this version and its lock file, as `make wheel` leaves them."""
    (tmp_path / "dist").mkdir()
    (tmp_path / "dist" / "requirements.lock").write_bytes(b"torch==2.9")
    path = tmp_path / "dist" / WHEEL
    path.write_bytes(b"a wheel")
    return path


def files(kit: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(kit) as archive:
        return {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}


def test_the_images_are_saved_once_for_all_sites_and_each_kit_has_their_digest(
    tmp_path: Path, federation: Path, docker: Path
) -> None:
    out = tmp_path / "server"
    lines = list(startup_kit.provision(federation, out, with_images=True))
    bundle = out / "kits" / BUNDLE
    before, after = (number for number, line in enumerate(lines) if BUNDLE in line)
    assert "which takes minutes" in lines[before]
    assert "made" in lines[after]
    assert gzip.decompress(bundle.read_bytes()) == b"layers"
    kit = files(out / "kits" / "north.zip")
    digest = hashlib.sha256(bundle.read_bytes()).hexdigest()
    assert kit["images.sha256"].decode() == f"{digest}  {BUNDLE}\n"
    assert b"images.sha256" in kit["SHA256SUMS"]
    names = f"consilium-gateway:{VERSION} consilium-trainer:{VERSION}"
    assert (tmp_path / "calls").read_text().splitlines() == [
        f"docker image inspect --format {{{{.Id}}}} {names}", f"docker save {names}",
    ]  # fmt: skip


def test_the_same_images_are_not_saved_again_and_other_ones_are(
    tmp_path: Path, federation: Path, docker: Path
) -> None:
    out = tmp_path / "server"
    list(startup_kit.provision(federation, out, with_images=True))
    told = list(startup_kit.provision(federation, out, with_images=True))
    assert f"{BUNDLE} is as it was" in told
    assert "north.zip is as it was" in told
    assert "north.zip is as it was" in list(
        startup_kit.provision(federation, out)
    )  # the digest stays in the kit
    docker.write_text("sha256:1\nsha256:3\n")
    list(startup_kit.provision(federation, out, with_images=True))
    assert (tmp_path / "calls").read_text().count("docker save") == 2


def test_images_that_are_not_there_are_named_with_the_command_that_builds_them(
    tmp_path: Path, docker: Path
) -> None:
    docker.unlink()
    with pytest.raises(
        LaunchError, match=r"No such image. Start Docker; `make images` in a checkout of version"
    ):
        list(images.save(tmp_path / "kits"))


def test_a_save_that_breaks_off_leaves_no_file(
    tmp_path: Path, docker: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SAVE", "1")
    with pytest.raises(LaunchError, match=r"`docker save consilium-gateway:.*` failed: it says nothing"):
        list(images.save(tmp_path / "kits"))
    assert list((tmp_path / "kits").iterdir()) == []


def test_without_docker_it_says_what_to_do_instead(
    tmp_path: Path, federation: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    typed = ["provision", str(federation), "--out", str(tmp_path / "server"), "--with-images"]
    assert main(typed) == 1
    assert "there is no program `docker` here" in capsys.readouterr().err


def test_a_wheel_and_its_lock_file_are_in_every_kit_from_then_on(
    tmp_path: Path, federation: Path, wheel: Path
) -> None:
    out = tmp_path / "server"
    list(startup_kit.provision(federation, out, wheel=wheel))
    list(startup_kit.provision(federation, out))
    kit = files(out / "kits" / "north.zip")
    assert (kit[WHEEL], kit["requirements.lock"]) == (b"a wheel", b"torch==2.9")
    assert WHEEL.encode() in kit["SHA256SUMS"]


def test_a_wheel_of_another_version_is_refused(tmp_path: Path, wheel: Path) -> None:
    other = wheel.rename(wheel.with_name("consilium_fl-0.0.1-py3-none-any.whl"))
    with pytest.raises(ConfigError, match=rf"is not the wheel of this version, expected {WHEEL}"):
        list(images.add_wheel(other, tmp_path / "kits"))
    with pytest.raises(ConfigError, match=r"is not there; `make wheel` in a checkout makes"):
        list(images.add_wheel(wheel, tmp_path / "kits"))


def test_a_wheel_without_its_lock_file_is_refused(tmp_path: Path, wheel: Path) -> None:
    wheel.with_name("requirements.lock").unlink()
    with pytest.raises(ConfigError, match=r"requirements.lock is not there"):
        list(images.add_wheel(wheel, tmp_path / "kits"))


def test_images_and_wheels_belong_to_kits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["provision", "--example", "--out", str(tmp_path), "--with-images"]) == 1
    assert "--with-images and --wheel belong to the kits" in capsys.readouterr().err

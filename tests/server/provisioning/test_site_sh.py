"""The kit's one command, run with programs that only note how they were called."""

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from server.config import Address, FederationConfig, SiteEntry
from server.deployment import certificates
from server.provisioning import startup_kit

NOTE = '#!/bin/sh\necho "$(basename "$0") $*" >>"$CALLS"\nexit ${EXIT:-0}\n'


@pytest.fixture
def kit(tmp_path: Path) -> Path:
    certificates.keep_authority(certificates.make_authority(), tmp_path / "keys")
    config = FederationConfig(
        name="f", server=Address(hosts=("c.example",)), sites={"north": SiteEntry(institution="Hospital")}
    )
    folder = tmp_path / "consilium-north"
    folder.mkdir()
    for name, data in startup_kit.kit(config, "north", (tmp_path / "keys" / "ca.pem").read_bytes()).items():
        (folder / name).write_bytes(data)
    (tmp_path / "my images").mkdir()
    set_folder(folder, str(tmp_path / "my images"))
    return folder


def set_folder(kit: Path, path: str) -> None:
    lines = (kit / "site.yaml").read_text().splitlines()
    changed = [f'  root: "{path}"   # here' if line.startswith("  root:") else line for line in lines]
    (kit / "site.yaml").write_text("\n".join(changed) + "\n")


@pytest.fixture
def site_sh(kit: Path, tmp_path: Path) -> Callable[..., tuple[int, str, list[str]]]:
    """`site_sh("up", docker=True)`: exit code, what it said, what it called."""
    places = {}
    for name, programs in (("docker", ["docker", "consilium-site"]), ("plain", ["consilium-site"])):
        places[name] = tmp_path / name
        places[name].mkdir()
        for program in programs:
            (places[name] / program).write_text(NOTE)
            (places[name] / program).chmod(0o755)
        for tool in (
            "sh",
            "sed",
            "id",
            "grep",
            "dirname",
            "basename",
            "mkdir",
            "chown",
            "head",
            "sleep",
            "cat",
        ):
            found = shutil.which(tool)
            assert found is not None
            (places[name] / tool).symlink_to(found)

    def run(*arguments: str, docker: bool, code: int = 0) -> tuple[int, str, list[str]]:
        calls = tmp_path / "calls"
        calls.unlink(missing_ok=True)
        env = {"PATH": str(places["docker" if docker else "plain"]), "CALLS": str(calls), "EXIT": str(code)}
        done = subprocess.run(
            ["sh", str(kit / "site.sh"), *arguments], env=env, capture_output=True, text=True, timeout=60
        )
        made = calls.read_text().splitlines() if calls.exists() else []
        return done.returncode, done.stdout + done.stderr, made

    return run


def env_of(kit: Path) -> dict[str, str]:
    lines = (kit / ".env").read_text().splitlines()
    return {name: value.strip("'") for name, value in (line.split("=", 1) for line in lines)}


def test_with_docker_it_says_where_the_images_are_and_starts_both(site_sh, kit: Path, tmp_path: Path) -> None:
    code, said, calls = site_sh("up", docker=True)
    assert (code, calls) == (0, ["docker compose up -d"]), said
    env = env_of(kit)
    assert env["IMAGES"] == str(tmp_path / "my images")
    assert env["COMPOSE_FILE"] == "docker-compose.yml"
    # root's containers run as a user without rights, everybody else's as they themselves
    mine = "10001:10001" if os.geteuid() == 0 else f"{os.getuid()}:{os.getgid()}"
    assert env["SITE_USER"] == mine
    assert {(kit / name).stat().st_mode & 0o777 for name in ("state", "link", "weights")} == {0o700}


def test_a_gpu_is_given_where_site_yaml_asks_for_one(site_sh, kit: Path) -> None:
    settings = kit / "site.yaml"
    settings.write_text(settings.read_text().replace("device: auto", "device: cuda:1"))
    site_sh("up", docker=True)
    assert env_of(kit)["COMPOSE_FILE"] == "docker-compose.yml:docker-compose.gpu.yml"


def test_a_table_of_images_gives_its_folder(site_sh, kit: Path, tmp_path: Path) -> None:
    (tmp_path / "my images" / "labels.csv").touch()
    set_folder(kit, str(tmp_path / "my images" / "labels.csv"))
    site_sh("up", docker=True)
    assert env_of(kit)["IMAGES"] == str(tmp_path / "my images")


def test_a_folder_that_is_not_there_is_named_and_nothing_starts(site_sh, kit: Path) -> None:
    set_folder(kit, "/path/to/images")
    code, said, calls = site_sh("up", docker=True)
    assert code != 0
    assert "/path/to/images, the folder of images in site.yaml, is not there" in said
    assert calls == []


def test_without_docker_it_runs_the_programs_themselves(site_sh) -> None:
    assert site_sh("key", docker=False)[2] == ["consilium-site key ."]
    assert site_sh("status", docker=False)[2] == ["consilium-site status site.yaml"]
    assert site_sh("approve", "skin", docker=False)[2] == ["consilium-site approve site.yaml skin"]
    code, _, calls = site_sh("up", docker=False)
    assert code == 1  # both have ended at once
    assert sorted(calls) == ["consilium-site gateway .", "consilium-site trainer site.yaml"]


@pytest.mark.parametrize("docker", [True, False])
def test_a_check_tries_everything_even_if_the_first_fails(site_sh, docker: bool) -> None:
    code, _, calls = site_sh("check", docker=docker, code=1)
    assert code == 1
    gateway = "docker compose run --rm -T gateway check-connection /site/gateway.yaml"
    trainer = "docker compose run --rm -T trainer check /site/site.yaml"
    plain = ["consilium-site check-connection .", "consilium-site check site.yaml"]
    assert calls == ([gateway, trainer] if docker else plain)


def test_without_a_word_it_says_what_there_is(site_sh) -> None:
    code, said, calls = site_sh(docker=True)
    assert (code, calls) == (2, [])
    assert "./site.sh check" in said

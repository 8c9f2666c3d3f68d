"""The kit's one command, run with programs that only note how they were called.

Only what is asked of site.yaml is answered by the real program, as the trainer's image would.
"""

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from common import release
from server.config import Address, FederationConfig, SiteEntry
from server.deployment import certificates
from server.provisioning import startup_kit
from tests.places import ROOT

NOTE = """\
#!/bin/sh
[ "$1" != image ] || exit ${NO_IMAGES:-0}
echo "$(basename "$0") $*" >>"$CALLS"
[ "$1" = run ] || [ "$1" = mounts ] || exit ${EXIT:-0}
while [ "$1" != mounts ]; do shift || exit 0; done
exec "$PYTHON" -m client.cli "$@"
"""


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
            "mv",
            "sha256sum",
        ):
            found = shutil.which(tool)
            assert found is not None
            (places[name] / tool).symlink_to(found)

    def run(
        *arguments: str,
        docker: bool,
        code: int = 0,
        has_images: bool = True,
        at: Path | None = None,
        **more: str,
    ) -> tuple[int, str, list[str]]:
        calls = tmp_path / "calls"
        calls.unlink(missing_ok=True)
        env = {
            "PATH": str(places["docker" if docker else "plain"]),
            "CALLS": str(calls),
            "EXIT": str(code),
            "PYTHON": sys.executable,
            "PYTHONPATH": str(ROOT),
        }
        env |= more if has_images else more | {"NO_IMAGES": "1"}
        done = subprocess.run(
            ["sh", str((at or kit) / "site.sh"), *arguments],
            env=env,
            capture_output=True,
            text=True,
            timeout=60,
        )
        made = calls.read_text().splitlines() if calls.exists() else []
        asked = [call for call in made if call.startswith("docker run") and " mounts - --kit " in call]
        made = [call for call in made if call not in asked]
        assert len(asked) <= 1, "one question is enough"
        return done.returncode, done.stdout + done.stderr, made

    return run


def env_of(kit: Path) -> dict[str, str]:
    lines = (kit / ".env").read_text().splitlines()
    return {name: value.strip("'") for name, value in (line.split("=", 1) for line in lines)}


def mounted(kit: Path) -> list[str]:
    """What compose would mount beside the kit's own folders."""
    found = yaml.safe_load((kit / "docker-compose.mounts.yml").read_text(encoding="utf-8"))
    return [volume["source"].replace("$$", "$") for volume in found["services"]["trainer"]["volumes"]]


def test_with_docker_it_says_where_the_images_are_and_starts_both(site_sh, kit: Path, tmp_path: Path) -> None:
    code, said, calls = site_sh("up", docker=True)
    assert (code, calls) == (0, ["docker compose up -d"]), said
    env = env_of(kit)
    assert mounted(kit) == [str(tmp_path / "my images")]
    assert env["COMPOSE_FILE"] == "docker-compose.yml:docker-compose.mounts.yml"
    # root's containers run as a user without rights, everybody else's as they themselves
    mine = "10001:10001" if os.geteuid() == 0 else f"{os.getuid()}:{os.getgid()}"
    assert env["SITE_USER"] == mine
    assert {(kit / name).stat().st_mode & 0o777 for name in ("state", "link", "weights")} == {0o700}


@pytest.mark.parametrize(
    "line",
    [
        "device: cuda:1",
        "device: 'cuda'",
        'device:   "cuda" # both',
        "device: cuda\r",
        "&d device: !!str cuda",
    ],
)
def test_a_gpu_is_given_where_site_yaml_asks_for_one(site_sh, kit: Path, line: str) -> None:
    settings = kit / "site.yaml"
    settings.write_text(settings.read_text().replace("device: auto", line), newline="")
    code, said, _ = site_sh("up", docker=True)
    assert code == 0, said
    assert env_of(kit)["COMPOSE_FILE"].endswith(":docker-compose.mounts.yml:docker-compose.gpu.yml")


@pytest.mark.parametrize("line", ["device: cpu", "# device: cuda", "device: auto  # or\n# device: cuda"])
def test_no_gpu_is_given_where_only_a_comment_speaks_of_one(site_sh, kit: Path, line: str) -> None:
    settings = kit / "site.yaml"
    settings.write_text(settings.read_text().replace("device: auto", line))
    site_sh("up", docker=True)
    assert "gpu" not in env_of(kit)["COMPOSE_FILE"]


def write_data(kit: Path, data: str) -> None:
    """Replace `data:` of site.yaml, whose next block begins with the device."""
    old = (kit / "site.yaml").read_text()
    text = f"{old[: old.index('data:')]}{data}\n{old[old.index('device:') :]}"
    (kit / "site.yaml").write_text(text, newline="")


def test_both_image_folders_and_a_table_that_lies_elsewhere_are_mounted(
    site_sh, kit: Path, tmp_path: Path
) -> None:
    """HAM10000 and ISIC 2018 as people unpack them; of the folders only the first was mounted."""
    for name in ("part_1", "part_2", "tables", "Input"):
        (tmp_path / name).mkdir()
    (tmp_path / "tables" / "m.csv").touch()
    images = f"{tmp_path}/part_1, {tmp_path}/part_2"
    write_data(kit, f"data: {{kind: ham10000, metadata: {tmp_path}/tables/m.csv, images: [{images}]}}")
    assert site_sh("up", docker=True)[0] == 0
    assert mounted(kit) == [f"{tmp_path}/{name}" for name in ("part_1", "part_2", "tables/m.csv")]
    write_data(
        kit,
        f"data:\n  kind: isic2018\n  ground_truth: {tmp_path}/tables/m.csv\n  images: {tmp_path}/Input\n"
        f"  metadata: {tmp_path}/tables/m.csv\n",
    )
    assert site_sh("up", docker=True)[0] == 0
    assert mounted(kit) == [f"{tmp_path}/{name}" for name in ("Input", "tables/m.csv")]


ODD = (
    "with blanks", "Bilder Köln", "it's", 'say "so"', "$HOME", "a:b", "a,b", "a\\b", "100%", "a #1", "'", "`id`",
    "$(id)", "{a}", "[b]", "*", "ends ",
)  # fmt: skip


def test_folders_of_any_name_are_mounted(site_sh, kit: Path, tmp_path: Path) -> None:
    folders = sorted(str(tmp_path / "odd" / name) for name in ODD)
    for folder in folders:
        Path(folder).mkdir(parents=True)
    quoted = ", ".join(f"'{folder}'" for folder in (folder.replace("'", "''") for folder in folders))
    write_data(kit, f"data: {{kind: ham10000, metadata: '{kit}/weights/m.csv', images: [{quoted}]}}")
    (kit / "weights").mkdir()
    (kit / "weights" / "m.csv").touch()
    code, said, calls = site_sh("up", docker=True)
    assert (code, calls) == (0, ["docker compose up -d"]), said
    assert set(mounted(kit)) == {*folders, f"{kit}/weights/m.csv"}


@pytest.mark.parametrize(
    "data",
    [
        "data:\n  kind: folders\n  root: {}\n",
        "data:\r\n  kind: folders\r\n  root: {}   # here\r\n",
        "data:\n    root:   '{}'\n    kind: folders\n",
        'data:\n  kind: folders\n  root:\n    "{}"\n',
        "data:\n  kind: folders\n  # root: /somewhere/else\n  root: >-\n    {}\n",
        'data: {{"kind": "folders", "root": "{}"}}\n',
        'data: &here {{"kind": folders,\n  root: {}}}\n',
    ],
)
def test_a_folder_is_found_however_the_yaml_is_written(site_sh, kit: Path, tmp_path: Path, data: str) -> None:
    write_data(kit, data.format(tmp_path / "my images"))
    code, said, _ = site_sh("up", docker=True)
    assert code == 0, said
    assert mounted(kit) == [str(tmp_path / "my images")]


def test_every_folder_that_is_not_there_is_named_and_nothing_starts(site_sh, kit: Path) -> None:
    write_data(kit, "data: {kind: ham10000, metadata: /no/table.csv, images: [/no/part 1, /no/part 2]}")
    code, said, calls = site_sh("up", docker=True)
    assert code != 0
    for path in ("/no/table.csv", "/no/part 1", "/no/part 2"):
        assert f"{path}, which site.yaml names, is not there" in said
    assert calls == []


def test_a_site_yaml_that_cannot_be_read_says_why_and_nothing_starts(site_sh, kit: Path) -> None:
    with (kit / "site.yaml").open("a") as file:
        file.write("policy: {min_cell: 5}\n")
    for command in ("up", "status", "pending", "audit"):
        code, said, calls = site_sh(command, docker=True)
        assert code != 0
        assert "site.yaml is not valid YAML: policy stands twice" in said
        assert calls == []


def test_a_site_yaml_of_another_site_is_found_out(site_sh, kit: Path) -> None:
    settings = kit / "site.yaml"
    settings.write_text(settings.read_text().replace('name: "north"', "name: south"))
    code, said, calls = site_sh("up", docker=True)
    assert (code, calls) == (1, [])
    assert "name: found south, but this kit is of north" in said


def test_the_connection_is_tried_even_if_the_folder_is_not_there(site_sh, kit: Path) -> None:
    set_folder(kit, "/path/to/images")
    code, said, calls = site_sh("check", docker=True)
    assert code == 1
    assert "/path/to/images, which site.yaml names, is not there" in said
    assert calls == [
        "docker compose run --rm -T gateway check-connection /site/gateway.yaml --through http://way-out:3128"
    ]
    assert env_of(kit)["COMPOSE_FILE"] == "docker-compose.yml"


def test_units_without_docker_get_what_site_yaml_names(site_sh, kit: Path, tmp_path: Path) -> None:
    code, said, _ = site_sh("units", docker=False)
    assert code == 0, said
    images = tmp_path / "my images"
    assert f'BindReadOnlyPaths="-{images}"' in (kit / "consilium-trainer.service.d" / "site.conf").read_text()
    assert f'InaccessiblePaths="-{images}"' in (kit / "consilium-gateway.service.d" / "site.conf").read_text()


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
    gateway = (
        "docker compose run --rm -T gateway check-connection /site/gateway.yaml --through http://way-out:3128"
    )
    trainer = "docker compose run --rm -T trainer check /site/site.yaml"
    plain = ["consilium-site check-connection .", "consilium-site check site.yaml"]
    assert calls == ([gateway, trainer] if docker else plain)


@pytest.mark.parametrize("what", ["key", "check", "up", "status", "pending", "approve", "audit", "units"])
def test_a_program_that_is_not_installed_is_named_with_the_way_to_it(
    site_sh, tmp_path: Path, what: str
) -> None:
    (tmp_path / "plain" / "consilium-site").unlink()
    code, said, calls = site_sh(what, docker=False)
    assert (code, calls) == (1, [])
    assert "the program consilium-site is not found: install it as README.md says" in said
    assert "export PATH=/opt/consilium/venv/bin:$PATH" in said


@pytest.mark.parametrize(
    ("what", "instead"), [("down", "end `up` with Ctrl-C"), ("logs", "journalctl -u consilium-trainer")]
)
def test_what_only_an_engine_can_do_says_what_to_do_without_one(site_sh, what: str, instead: str) -> None:
    for plain in ({"docker": False}, {"docker": True, "PLAIN": "1"}):
        code, said, calls = site_sh(what, **plain)
        assert (code, calls) == (1, [])
        assert f"without Docker there is no `{what}`: " in said
        assert instead in said
    assert site_sh(what, docker=True)[2] == [f"docker compose {what}"]


def test_a_check_ends_with_one_verdict_on_everything(site_sh) -> None:
    verdict = "north may NOT take part yet"
    assert site_sh("check", docker=False, code=1)[1].rstrip().splitlines()[-1].startswith(verdict)
    assert verdict not in site_sh("check", docker=False)[1]


@pytest.mark.parametrize("name", ['say "so", Köln', "it's $HOME `id`", "-x"])
def test_a_kit_works_in_a_folder_of_any_name(site_sh, kit: Path, tmp_path: Path, name: str) -> None:
    there = tmp_path / "odd" / name
    shutil.copytree(kit, there)
    (call,) = site_sh("key", docker=True, at=there)[2]
    doubled = str(there).replace('"', '""')  # as a cell of a csv, which is what Docker reads
    assert f'--mount type=bind,"source={doubled}",target=/site' in call
    code, said, calls = site_sh("up", docker=True, at=there)
    assert (code, calls) == (0, ["docker compose up -d"]), said
    assert (there / ".env").exists()


def test_a_folder_of_the_same_name_that_the_shell_would_look_for_first_is_not_taken(
    site_sh, kit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "elsewhere" / kit.name
    other.mkdir(parents=True)
    monkeypatch.chdir(kit.parent)
    site_sh("status", docker=True, at=Path(kit.name), CDPATH=str(other.parent))
    assert not list(other.iterdir())
    assert (kit / ".env").exists()


@pytest.mark.parametrize("what", ["key", "check", "up", "status", "pending", "approve", "audit"])
def test_images_that_are_not_there_are_asked_for_by_name(site_sh, what: str) -> None:
    code, said, calls = site_sh(what, docker=True, has_images=False)
    assert (code, calls) == (1, [])
    assert (
        f"put consilium-images-{release.version()}.tar.gz, which the operator gives you, beside site.sh"
        in said
    )
    assert f"Without Docker: PLAIN=1 ./site.sh {what}" in said


def test_images_beside_the_kit_are_checked_and_loaded(site_sh, kit: Path) -> None:
    bundle = f"consilium-images-{release.version()}.tar.gz"
    (kit / bundle).write_bytes(b"layers")
    code, said, calls = site_sh("up", docker=True, has_images=False)
    assert (code, calls) == (1, [])
    assert "this kit has no images.sha256" in said
    (kit / "images.sha256").write_text(f"{hashlib.sha256(b'layers').hexdigest()}  {bundle}\n")
    assert site_sh("up", docker=True, has_images=False)[2] == [
        f"docker load --input {bundle}",
        "docker compose up -d",
    ]
    assert site_sh("up", docker=True)[2] == ["docker compose up -d"]  # they are there already


def test_images_that_are_not_those_of_the_kit_are_not_loaded(site_sh, kit: Path) -> None:
    bundle = f"consilium-images-{release.version()}.tar.gz"
    (kit / bundle).write_bytes(b"other layers")
    (kit / "images.sha256").write_text(f"{hashlib.sha256(b'layers').hexdigest()}  {bundle}\n")
    code, said, calls = site_sh("up", docker=True, has_images=False)
    assert (code, calls) == (1, [])
    assert f"{bundle} is damaged, or of another kit: it was not loaded" in said


def test_without_a_word_it_says_what_there_is(site_sh) -> None:
    code, said, calls = site_sh(docker=True)
    assert (code, calls) == (2, [])
    assert "./site.sh check" in said


def test_the_key_for_masks_is_made_where_the_images_are(site_sh) -> None:
    assert site_sh("mask-key", docker=False)[2] == ["consilium-site mask-key site.yaml"]
    calls = site_sh("mask-key", docker=True)[2]
    assert "docker compose run --rm -T trainer mask-key /site/site.yaml" in calls


def test_the_console_is_served_with_docker_and_without(kit: Path, site_sh) -> None:
    assert site_sh("console", docker=False) == (0, "", ["consilium-site console site.yaml"])
    code, said, calls = site_sh("console", docker=True)
    assert code == 0
    assert "http://127.0.0.1:8766/" in said
    assert calls == ["docker compose run --rm --service-ports console"]
    assert (kit / "state" / "audit.jsonl").read_bytes() == b""
    assert (kit / "state" / "console").is_dir()

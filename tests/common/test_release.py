"""The program has one name and one version, and no page sends a reader to another project's program."""

import re
import subprocess
import tomllib
from pathlib import Path

import pytest

from common import release
from tests.places import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
# By a bare name, with or without quotes or an extra. A path (`./dist/...`) or `.` is fine.
BY_NAME = re.compile(r"pip install\s[^\n]*?(?<![\w./@-])consilium|\bconsilium\[", re.IGNORECASE)


def tracked_texts() -> dict[str, str]:
    """Every text file that git tracks, by its path; this file holds examples of what it forbids."""
    done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, timeout=60)
    if done.returncode:
        pytest.skip("not a git checkout")
    texts = {}
    for name in done.stdout.split("\0"):
        path = ROOT / name
        if path.is_file() and path != Path(__file__):
            data = path.read_bytes()
            if b"\0" not in data:
                texts[name] = data.decode("utf-8", errors="replace")
    return texts


@pytest.mark.parametrize(
    "line",
    [
        "pip install consilium",
        "pip install 'consilium-fl[server]'",
        'pip install -U "consilium"',
        "get consilium[x]",
    ],
)
def test_an_installation_by_name_is_recognised(line: str) -> None:
    assert BY_NAME.search(line)


@pytest.mark.parametrize(
    "line",
    [
        "pip install './dist/consilium_fl-0.2.0-py3-none-any.whl[server]'",
        "uv pip install --constraint requirements.lock --editable '.[server]'",
        "/opt/consilium/venv/bin/pip install ./consilium_fl-0.2.0-py3-none-any.whl",
    ],
)
def test_an_installation_from_a_file_is_fine(line: str) -> None:
    assert not BY_NAME.search(line)


def test_no_page_installs_by_a_name_from_the_package_index() -> None:
    texts = tracked_texts()
    assert len(texts) > 200
    wrong = {name: hit.group() for name, text in texts.items() if (hit := BY_NAME.search(text))}
    assert not wrong


def test_the_distribution_is_named_once_and_its_package_after_it() -> None:
    assert PROJECT["name"] == release.DISTRIBUTION
    assert (ROOT / release.DISTRIBUTION.replace("-", "_") / "__init__.py").is_file()


def test_the_installed_version_is_that_of_the_project() -> None:
    assert release.version() == PROJECT["version"]


def test_the_changelog_begins_with_this_version() -> None:
    headings = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    headings = [heading for heading in headings if heading != "Unreleased"]
    assert headings[0] == PROJECT["version"]
    assert headings == sorted(
        headings, key=lambda text: [int(part) for part in text.split(".")], reverse=True
    )

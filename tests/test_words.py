"""Words that make a reader translate: none stands in the code, the command lines or the documentation.

`BANNED` gives the plain word for each.
"""

import re
import subprocess

import pytest

from tests.places import ROOT

BANNED = {
    "anew": "again",
    "cannot be had": "is not available",
    "could not be had": "could not be fitted, read, reached ...",
    "doorkeeper": "access log",
    "for want of": "no ... is available",
    "gone home": "exited",
    "mended": "fixed",
    "nobody": "no site, no person",
    "told": "message, description",
    "whim": "arbitrary",
    "whoever": "the person who, the process that",
    "who knocked": "refused connections",
    "whom to expect": "expected sites",
}
"""By banned word: what to write in its place."""

LEFT_OUT = ("tests/", "docs/results/", "CHANGELOG.md", "requirements.lock", "configs/schema/")
"""Tests are read by developers alone; results and the changelog quote versions that used the words."""

TEXT = {".py", ".md", ".sh", ".yaml", ".yml", ".toml", ".html", ".service", ""}


def tracked() -> list[str]:
    done = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
    )
    return [
        name
        for name in done.stdout.split("\0")
        if name and not name.startswith(LEFT_OUT) and (ROOT / name).suffix in TEXT and (ROOT / name).is_file()
    ]


@pytest.mark.parametrize("word", sorted(BANNED))
def test_a_word_that_must_be_translated_stands_nowhere(word: str) -> None:
    pattern = re.compile(rf"(?<![A-Za-z]){re.escape(word)}(?![A-Za-z])", re.IGNORECASE)
    places = [
        f"{name}:{number}: {line.strip()[:100]}"
        for name in tracked()
        for number, line in enumerate((ROOT / name).read_text(encoding="utf-8").splitlines(), 1)
        if pattern.search(line)
    ]
    assert not places, f"write {BANNED[word]!r} instead of {word!r}:\n" + "\n".join(places)


def test_the_name_of_a_test_needs_no_translation() -> None:
    words = [word.replace(" ", "_") for word in sorted(BANNED) if word != "nobody"]
    pattern = re.compile(rf"def (test_(?:\w+_)?(?:{'|'.join(words)})(?:_\w+)?)\(")
    files = sorted((ROOT / "tests").rglob("test_*.py"))
    assert len(files) > 100
    names = [found[1] for file in files for found in pattern.finditer(file.read_text(encoding="utf-8"))]
    assert not names

"""The commands of governance; what they decide is tested beside their modules."""

import io
import json
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest
import yaml
from cryptography.hazmat.primitives.asymmetric import ec

from client.cli.main import main
from client.config import load_site
from client.governance import approval
from common import keys
from common.config import StudyConfig
from common.wire.signed_heads import sign

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)


class Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def site(tmp_path: Path, make_study) -> Path:
    """A site whose policy asks, with one study that waits."""
    path = tmp_path / "site.yaml"
    about = {
        "name": "north",
        "data": {"kind": "folders", "root": str(tmp_path)},
        "state_dir": str(tmp_path / "state"),
    }
    path.write_text(yaml.safe_dump(about))
    study: StudyConfig = make_study()
    approval.note(tmp_path / "state", study, NOW)
    return path


def test_a_study_is_listed_approved_and_listed_no_more(
    site: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["pending", str(site)]) == 0
    first, *about = capsys.readouterr().out.splitlines()
    assert first.startswith("tiny-")
    assert first.endswith(": asked 2026-03-01T12:00:00+00:00")
    assert len(about) == 11
    assert main(["approve", str(site), "tiny"]) == 0
    assert capsys.readouterr().out.startswith("approved: tiny-")
    assert main(["pending", str(site)]) == 0
    assert capsys.readouterr().out == "no study waits\n"


def test_a_study_can_be_refused_with_a_reason_and_approved_after_all(
    site: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["approve", str(site), "tiny", "--refuse", "--reason", "no ethics vote"]) == 0
    assert capsys.readouterr().out.startswith("refused: tiny-")
    assert main(["pending", str(site)]) == 0
    assert capsys.readouterr().out == "no study waits\n"
    assert main(["approve", str(site), "tiny"]) == 0
    assert main(["audit", str(site)]) == 0
    declined, approved = capsys.readouterr().out.splitlines()[-2:]
    assert "decline: study tiny" in declined
    assert "reason no ethics vote" in declined
    assert "approval: study tiny" in approved


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (["--reason", "because"], "--reason is for a refusal; add --refuse"),
        (
            ["--refuse", "--reason", "x" * 301],
            "the reason has 301 characters, expected one line of at most 300",
        ),
        (
            ["--refuse", "--reason", "two\nlines"],
            "the reason has 9 characters, expected one line of at most 300",
        ),
    ],
)
def test_a_reason_that_cannot_be_sent_is_named_and_nothing_is_decided(
    site: Path, capsys: pytest.CaptureFixture[str], typed: list[str], said: str
) -> None:
    assert main(["approve", str(site), "tiny", *typed]) == 1
    assert said in capsys.readouterr().err
    assert main(["pending", str(site)]) == 0
    assert "tiny-" in capsys.readouterr().out


def test_on_a_terminal_the_studies_that_wait_are_a_table(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("TERM", "xterm"), ("COLUMNS", "160"), ("NO_COLOR", "1")):
        monkeypatch.setenv(name, value)
    screen = Screen()
    monkeypatch.setattr(sys, "stdout", screen)
    assert main(["pending", str(site)]) == 0
    rows = [" ".join(line.split()) for line in screen.getvalue().splitlines() if line.strip()]
    assert rows[0] == "study asked about"
    assert "2026-03-01T12:00:00+00:00" in rows[2]
    assert rows[2].startswith("tiny-")


def test_a_site_to_which_nothing_came_has_no_log_and_no_fault(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = tmp_path / "new.yaml"
    settings.write_text("name: north\ndata: {kind: folders, root: images}\nstate_dir: untouched\n")
    assert main(["audit", str(settings)]) == 0
    assert capsys.readouterr().out == (
        f"there is no log at {tmp_path}/untouched/audit.jsonl: no plan has come to this site, and nothing has left it\n"
    )
    assert main(["audit", str(settings), "--verify"]) == 1  # a log that is gone is no whole log


def test_a_hash_is_only_expected_when_the_log_is_checked(
    site: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["audit", str(site), "--expect", "ab"]) == 1
    assert "--expect and --signed are for checking; add --verify" in capsys.readouterr().err


def test_the_log_is_checked_against_heads_that_this_sites_key_signed(
    site: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["approve", str(site), "tiny"]) == 0
    log = next(tmp_path.rglob("audit.jsonl"))
    last = json.loads(log.read_bytes().splitlines()[-1])["hash"]
    key = ec.generate_private_key(ec.SECP384R1())
    heads, typed = tmp_path / "audit-heads.jsonl", ["audit", str(site), "--verify", "--signed"]
    name = load_site(site).name
    heads.write_text(sign(name, last, key).model_dump_json())
    assert main([*typed, str(heads)]) == 0
    assert f"1 signed heads, by {keys.fingerprint(key.public_key())}" in capsys.readouterr().out
    heads.write_text(sign(name, "ab" * 32, key).model_dump_json())
    assert main([*typed, str(heads)]) == 1
    assert "EDITED OR CUT: 1 of 1 signed heads are in no line" in capsys.readouterr().err


def test_a_site_prints_its_line_of_a_roster_and_the_rosters_fingerprint(
    site: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["mask-key", str(site)]) == 0
    line = capsys.readouterr().out
    name, key = line.split(": ")
    assert (name, len(key.strip())) == ("north", 66)
    roster = site.parent / "roster.yaml"
    roster.write_text(f'sites:\n  {line}  south: "{"0" * 64}"\n')
    site.write_text(site.read_text() + "roster: roster.yaml\n")
    assert main(["mask-key", str(site)]) == 0
    again = capsys.readouterr()
    assert again.out == line
    assert again.err.startswith("fingerprint of roster.yaml: ")

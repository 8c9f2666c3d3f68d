"""Signed heads of audit logs, as the server keeps them."""

import json
import logging
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from common import keys
from common.wire.signed_heads import SignedHead, sign
from server.storage.audit_heads import FILE, AuditHeads

KEY, OTHER = (ec.generate_private_key(ec.SECP384R1()) for _ in range(2))
HEAD = sign("north", "ab" * 32, KEY)
NOON = datetime(2026, 11, 26, 12, tzinfo=UTC)


@pytest.fixture
def heads(tmp_path: Path) -> AuditHeads:
    return AuditHeads(tmp_path, {"north": keys.fingerprint(KEY.public_key())}, lambda: NOON)


def kept(heads: AuditHeads) -> list[dict[str, str]]:
    path = heads.run_dir / FILE
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_a_head_is_kept_with_its_time_its_plan_and_its_key(heads: AuditHeads) -> None:
    heads.keep("north", "p1", HEAD)
    heads.keep("north", "p2", sign("north", "cd" * 32, KEY))
    first, second = kept(heads)
    assert first["time"] == "2026-11-26T12:00:00.000+00:00"
    assert (first["site"], first["plan_id"], first["head"]) == ("north", "p1", "ab" * 32)
    assert second["head"] == "cd" * 32
    assert SignedHead.model_validate({name: first[name] for name in SignedHead.model_fields}).is_right()


@pytest.mark.parametrize(
    ("signed", "said"),
    [
        (None, "no signed head"),
        (HEAD.model_copy(update={"head": "cd" * 32}), "not signed as it should be"),
        (sign("south", "ab" * 32, KEY), "not signed as it should be"),  # another site's
        (HEAD.model_copy(update={"key": "no key"}), "not signed as it should be"),
        (HEAD.model_copy(update={"signature": "00" * 20}), "not signed as it should be"),
        (sign("north", "ab" * 32, OTHER), "with another key than the enrolled one"),
    ],
)
def test_a_head_that_proves_nothing_is_reported_once_and_not_kept(
    heads: AuditHeads, signed: SignedHead | None, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "consilium"):
        heads.keep("north", "p1", signed)
        heads.keep("north", "p2", signed)
    assert kept(heads) == []
    assert caplog.text.count(said) == 1


def test_a_full_disk_costs_the_head_and_not_the_study(
    heads: AuditHeads, caplog: pytest.LogCaptureFixture
) -> None:
    (heads.run_dir / FILE).mkdir()
    with caplog.at_level(logging.WARNING, "consilium"):
        heads.keep("north", "p1", HEAD)
    assert "is lost" in caplog.text


def test_a_signature_of_another_purpose_is_none_of_a_head() -> None:
    """The key also signs the time of each call."""
    from cryptography.hazmat.primitives import hashes

    signature = KEY.sign(("ab" * 32).encode(), ec.ECDSA(hashes.SHA256())).hex()
    assert not HEAD.model_copy(update={"signature": signature}).is_right()

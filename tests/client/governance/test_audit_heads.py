"""The audit log beside the heads that its site's key has signed."""

import json
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from client.governance.audit import FILE, Audit, verify
from client.governance.audit_heads import compare
from common import keys
from common.errors import StorageError
from common.wire.signed_heads import sign

KEY = ec.generate_private_key(ec.SECP384R1())


def logged(folder: Path, events: int, name: str = "heads") -> tuple[Path, Path]:
    """A log with so many lines, and the head after each as a server keeps it."""
    log, lines = Audit(folder), []
    for number in range(events):
        log.append("sent", {"bytes": number})
        lines.append(json.dumps({"time": "t", "plan_id": "p", **sign("north", log.head, KEY).model_dump()}))
    (folder / name).write_text("".join(f"{line}\n" for line in lines))
    return folder / FILE, folder / name


def test_a_log_that_nobody_touched_has_every_head_that_was_signed(tmp_path: Path) -> None:
    compared = compare(*_with_site(logged(tmp_path, 3)))
    assert (compared.num_heads, compared.num_missing, compared.num_forged, compared.problem) == (
        3,
        0,
        0,
        None,
    )
    assert compared.keys == (keys.fingerprint(KEY.public_key()),)


def test_a_log_that_was_cut_is_a_right_chain_and_lacks_a_signed_head(tmp_path: Path) -> None:
    log, heads = logged(tmp_path, 3)
    log.write_bytes(b"".join(log.read_bytes().splitlines(keepends=True)[:2]))
    assert verify(log).problem is None
    assert "1 of 3 signed heads are in no line" in str(compare(log, "north", heads).problem)


def test_a_log_that_was_written_again_lacks_them_all(tmp_path: Path) -> None:
    log, heads = logged(tmp_path, 2)
    log.unlink()
    logged(tmp_path, 2, "others")  # the same lines, but for their random bytes
    assert verify(log).problem is None
    assert "2 of 2 signed heads are in no line" in str(compare(log, "north", heads).problem)


def test_a_hospital_is_not_held_to_heads_that_its_key_did_not_sign(tmp_path: Path) -> None:
    """An operator who writes a head of his own into the file has no signature for it."""
    log, heads = logged(tmp_path, 1)
    line = json.loads(heads.read_text())
    heads.write_text(json.dumps(line) + "\n" + json.dumps(line | {"head": "ab" * 32}) + "\n")
    compared = compare(log, "north", heads)
    assert (compared.num_missing, compared.num_forged) == (0, 1)
    assert "1 of 2 heads are not signed" in str(compared.problem)


def test_a_file_without_a_head_of_this_site_proves_nothing(tmp_path: Path) -> None:
    log, heads = logged(tmp_path, 1)
    assert compare(log, "south", heads).problem == "the file has no signed head of this site"


@pytest.mark.parametrize("text", ["{", "{}", "[]", '{"site": 1}'])
def test_another_file_is_refused_as_such(tmp_path: Path, text: str) -> None:
    log, heads = logged(tmp_path, 1)
    heads.write_text(text)
    with pytest.raises(StorageError, match="ask the study operator"):
        compare(log, "north", heads)
    with pytest.raises(StorageError, match="cannot be read"):
        compare(log, "north", tmp_path / "nowhere")


def _with_site(files: tuple[Path, Path]) -> tuple[Path, str, Path]:
    return files[0], "north", files[1]

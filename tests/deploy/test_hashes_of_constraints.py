"""Hashes of the lock file are enforced where it is given as constraints: `uv pip install --constraint`."""

import base64
import hashlib
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

UV = Path(sys.executable).parent / "uv"
NAME = "tiny_thing-1.0-py3-none-any.whl"


def make_wheel(folder: Path) -> str:
    """A package without content; returns its SHA-256."""
    info = "tiny_thing-1.0.dist-info"
    files = {
        "tiny_thing.py": b"",
        f"{info}/METADATA": b"Metadata-Version: 2.1\nName: tiny-thing\nVersion: 1.0\n",
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: t\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = ""
    with zipfile.ZipFile(folder / NAME, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
            digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).decode().rstrip("=")
            record += f"{name},sha256={digest},{len(data)}\n"
        archive.writestr(f"{info}/RECORD", f"{record}{info}/RECORD,,\n")
    return hashlib.sha256((folder / NAME).read_bytes()).hexdigest()


def install(folder: Path, digest: str) -> subprocess.CompletedProcess[str]:
    (folder / "lock.txt").write_text(f"tiny-thing==1.0 \\\n    --hash=sha256:{digest}\n")
    command = [
        UV,
        "pip",
        "install",
        "--python",
        sys.executable,
        "--no-cache",
        "--no-index",
        "--find-links",
        folder,
    ]
    command += ["--target", folder / "out", "--constraint", folder / "lock.txt", "tiny-thing"]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.skipif(not UV.exists(), reason="uv is not installed beside this Python")
def test_a_package_with_another_hash_than_the_constraints_is_not_installed(tmp_path: Path) -> None:
    digest = make_wheel(tmp_path)
    wrong = install(tmp_path, "0" * 64)
    assert wrong.returncode != 0
    assert "Hash mismatch" in wrong.stderr
    right = install(tmp_path, digest)
    assert right.returncode == 0, right.stderr
    assert (tmp_path / "out" / "tiny_thing.py").exists()

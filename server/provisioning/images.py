"""What a kit's programs are made of, for hospitals that get everything from the operator: images, or a wheel.

The images of gateway and trainer are saved once for all sites, because they are gigabytes. They lie
beside the kits, and each kit holds their SHA-256, which `site.sh` checks before it loads them. A wheel is
small and goes into each kit.
"""

import gzip
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from common import release
from common.errors import ConfigError, LaunchError, StorageError
from common.files import sha256_of, write_atomically

IMAGES = ("consilium-gateway", "consilium-trainer")
DIGEST = "images.sha256"
"""Name in a kit of the file with the digest of the saved images."""
LOCK = "requirements.lock"

_PIECE = 2**20
_LEVEL = 3
"""Of gzip: most of a layer is compressed libraries, which more effort hardly shrinks."""


def bundle_name() -> str:
    """Name of the file with the saved images of this version."""
    return f"consilium-images-{release.version()}.tar.gz"


def save(kits: Path) -> Iterator[str]:
    """Save the images of this version to the folder of the kits; yields what was done.

    The same images are saved only once. Raises LaunchError without Docker or the images, StorageError.
    """
    names = [f"{image}:{release.version()}" for image in IMAGES]
    ids = _docker("image", "inspect", "--format", "{{.Id}}", *names)
    bundle = kits / bundle_name()
    noted, digest = bundle.with_suffix(".ids"), _digest_file(kits)
    if bundle.exists() and digest.exists() and noted.exists() and noted.read_text() == ids:
        yield f"{bundle.name} is as it was"
        return
    kits.mkdir(parents=True, exist_ok=True)
    yield f"saving {' and '.join(names)} to {bundle.name}: gigabytes, which takes minutes"
    part = bundle.with_suffix(".part")
    try:
        value = _save(names, part)
        part.rename(bundle)
    except OSError as error:
        raise StorageError(
            f"{bundle} could not be written: {error.strerror}; free some space there"
        ) from error
    finally:
        part.unlink(missing_ok=True)
    write_atomically(digest, f"{value}  {bundle.name}\n".encode())
    write_atomically(noted, ids.encode())
    yield (
        f"{bundle} made, {bundle.stat().st_size / 2**20:,.0f} MiB: give it to each site that has Docker, beside its kit"
    )


def add_wheel(wheel: Path, kits: Path) -> Iterator[str]:
    """Keep a wheel of this version, and the lock file beside it, for every kit. Raises ConfigError."""
    expected = f"consilium_fl-{release.version()}-py3-none-any.whl"
    if not wheel.is_file():
        raise ConfigError(f"{wheel} is not there; `make wheel` in a checkout makes {expected}")
    if wheel.name != expected:
        raise ConfigError(f"{wheel} is not the wheel of this version, expected {expected}")
    lock = wheel.with_name(LOCK)
    if not lock.is_file():
        raise ConfigError(
            f"{lock} is not there; copy the checkout's {LOCK} beside the wheel, as `make wheel` does"
        )
    kits.mkdir(parents=True, exist_ok=True)
    for file in (wheel, lock):
        shutil.copyfile(file, kits / file.name)
    yield f"{wheel.name} and {LOCK} are in every kit"


def for_kit(kits: Path) -> dict[str, bytes]:
    """Files that `save` and `add_wheel` left for every kit of this version, by name in the kit."""
    files = {}
    if (digest := _digest_file(kits)).exists():
        files[DIGEST] = digest.read_bytes()
    for wheel in kits.glob(f"consilium_fl-{release.version()}-*.whl"):
        files |= {wheel.name: wheel.read_bytes(), LOCK: (kits / LOCK).read_bytes()}
    return files


def _digest_file(kits: Path) -> Path:
    return kits / f"{bundle_name()}.sha256"


def _save(names: list[str], part: Path) -> str:
    """Compress what `docker save` writes into `part`; returns the SHA-256 of the file."""
    command = ["docker", "save", *names]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        with gzip.open(part, "wb", compresslevel=_LEVEL) as file:
            shutil.copyfileobj(process.stdout, file, _PIECE)
        complaint = process.stderr.read()
    if process.returncode:
        raise _failed(command, complaint.decode(errors="replace"))
    return sha256_of(part)


def _docker(*arguments: str) -> str:
    command = ["docker", *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise LaunchError(
            "--with-images needs Docker, and there is no program `docker` here; run it where the images are, "
            "or give hospitals the wheel (--wheel)"
        ) from error
    if done.returncode:
        raise _failed(command, done.stderr)
    return done.stdout


def _failed(command: list[str], complaint: str) -> LaunchError:
    last = (complaint.strip().splitlines() or ["it says nothing"])[-1]
    return LaunchError(
        f"`{' '.join(command[:3])}` failed: {last}. Start Docker; `make images` in a checkout of version "
        f"{release.version()} builds the images"
    )

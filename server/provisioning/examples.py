"""The example settings that come with the program, for a server's folder that is still empty.

An installed wheel has no checkout beside it. So the example of a federation, the example studies and the
settings for Prometheus and Grafana travel in the package `configs` and are copied out of it. A file that is
already there is never overwritten: it may hold somebody's addresses.
"""

from collections.abc import Iterator
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path, PurePosixPath

from common.files import write_atomically

FOLDERS = ("study", "site", "monitoring", "schema")
"""Folders of `configs` that an operator needs beside federation.yaml; the schemas are for editors."""


def federation_yaml() -> str:
    """The example `federation.yaml`; valid as it is, with reserved host names (RFC 2606)."""
    return _shipped().joinpath("server", "federation.yaml").read_text(encoding="utf-8")


def write_examples(out: Path) -> Iterator[str]:
    """Write federation.yaml to the folder `out`, and every other example to `out`/examples.

    Yields a line for each file, and at the end the next steps.
    """
    beside = federation_yaml().replace("$schema=../schema/", "$schema=examples/schema/")
    yield _write(out / "federation.yaml", beside.encode())
    for folder in FOLDERS:
        for name, file in _files(_shipped() / folder, PurePosixPath(folder)):
            yield _write(out / "examples" / name, file.read_bytes())
    federation = out / "federation.yaml"
    yield f"next: put your hosts and sites into {federation}"
    yield f"then: consilium-server provision {federation} --out {out}"


def _shipped() -> Traversable:
    return resources.files("configs")


def _files(folder: Traversable, name: PurePosixPath) -> Iterator[tuple[PurePosixPath, Traversable]]:
    for entry in sorted(folder.iterdir(), key=lambda entry: entry.name):
        if entry.is_dir():
            yield from _files(entry, name / entry.name)
        elif entry.name.endswith((".yaml", ".yml", ".json")):
            yield name / entry.name, entry


def _write(path: Path, data: bytes) -> str:
    if path.exists():
        return f"{path} is there already and stays as it is"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, data)
    return f"wrote {path}"

"""The arrows of the design hold: who imports whom, read from the source.

server → common ← client; torch only under client/; flwr only where messages are packed, sent
and launched; the gateway, which talks to the outside, never loads torch. Imports inside
functions count like those at the top, those for type checkers only do not.
"""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.places import ROOT

PACKAGES = ("common", "client", "server")
FLWR = {
    "common/wire/messages.py",
    "client/gateway/app.py",
    "server/app.py",
    "server/rounds/flower_sites.py",
    "server/deployment/access_log.py",
    "client/preflight/connection.py",
}
GATEWAY = ("client.gateway.app", "client.gateway.link")
# Leaves of the server are a fan around app and rounds; these few arrows between them carry a type
# from where it is made to where it is read.
LEAVES = {
    "aggregation": {f"rules.{name}" for name in ("clip", "coordinates", "distances", "mean", "update")},
    "rules.update": set(),
    "rules.clip": {"rules.update"},
    "rules.coordinates": {"rules.update"},
    "rules.distances": {"rules.update"},
    "rules.mean": {"rules.update"},
    "optimizer": set(),
    "admission": {"aggregation"},
    "standing": set(),
    "absence": set(),
    "lateness": set(),
    "selection": {"scores"},
    "wishes": set(),
    "scores": set(),
    "checkpoint": set(),
    "history": {"scores"},
    "pictures": {"history"},
    "census": {"scores"},
    "overlap": set(),
    "quasi_newton": set(),
    "head_solvers": {"quasi_newton"},
    "head_record": set(),
    "document": {"history", "pictures", "census", "overlap", "head_record"},
    "report": {"history", "pictures", "document", "census", "overlap", "head_record"},
}
SHARED = {"state"}


def modules() -> dict[str, Path]:
    """Every module of the three packages by its dotted name."""
    found = {}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def _type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def _statements(node: ast.AST) -> Iterator[ast.Import | ast.ImportFrom]:
    for inner in ast.iter_child_nodes(node):
        if isinstance(inner, ast.Import | ast.ImportFrom):
            yield inner
        elif _type_checking(inner):
            yield from (found for branch in inner.orelse for found in _statements(branch))
        else:
            yield from _statements(inner)


def imports(name: str) -> set[str]:
    """Dotted names that a module imports; `from a import b` counts as a.b where that is a module."""
    found = set()
    for statement in _statements(ast.parse(MODULES[name].read_text(encoding="utf-8"))):
        if isinstance(statement, ast.Import):
            found |= {alias.name for alias in statement.names}
            continue
        assert statement.level == 0, f"{name} imports relatively; name the whole module"
        whole = f"{statement.module}"
        inner = {f"{whole}.{alias.name}" for alias in statement.names}
        found |= (inner & MODULES.keys()) | {whole}
    return found


def top(names: set[str]) -> set[str]:
    return {name.partition(".")[0] for name in names}


def reachable(start: str) -> dict[str, str]:
    """Own modules that importing `start` loads, packages above included, each with who asked for it."""
    asked = {start: "the test"}
    queue = [start]
    while queue:
        here = queue.pop()
        parts = here.split(".")
        above = {".".join(parts[:n]) for n in range(1, len(parts))}
        for name in sorted((imports(here) | above) & MODULES.keys()):
            if name not in asked:
                asked[name] = here
                queue.append(name)
    return asked


every_module = pytest.mark.parametrize("name", sorted(MODULES))


@every_module
def test_packages_point_at_common_and_never_at_each_other(name):
    package = name.partition(".")[0]
    allowed = {"common": {"common"}, "client": {"client", "common"}, "server": {"server", "common"}}[package]
    assert (top(imports(name)) & set(PACKAGES)) <= allowed


@every_module
def test_torch_is_only_used_at_the_sites(name):
    heavy = {"torch", "torchvision", "timm", "open_clip", "sklearn"}
    assert name.startswith("client.") or not top(imports(name)) & heavy


@every_module
def test_flower_is_only_used_where_messages_are_packed_sent_and_launched(name):
    path = MODULES[name].relative_to(ROOT).as_posix()
    allowed = path in FLWR or path.startswith("server/fleet")
    assert allowed or "flwr" not in top(imports(name))


@pytest.mark.parametrize("start", GATEWAY)
def test_nothing_that_the_gateway_reaches_imports_torch(start):
    guilty = {name: asked for name, asked in reachable(start).items() if "torch" in top(imports(name))}
    assert not guilty, f"imported by: {guilty}"


@pytest.mark.parametrize("start", [*GATEWAY, "server.app"])
def test_a_process_without_images_starts_without_torch(start):
    code = f"import sys, {start}; sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=120, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_matplotlib_waits_until_a_picture_is_drawn():
    code = "import sys, server.report.write; sys.exit('matplotlib' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=120, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("leaf", sorted(LEAVES))
def test_leaves_of_the_server_know_no_more_of_each_other_than_is_drawn(leaf):
    known = {name.removeprefix("server.") for name in imports(f"server.{leaf}") if name.startswith("server.")}
    assert known <= LEAVES[leaf] | SHARED


@every_module
def test_every_module_says_what_it_decides(name):
    docstring = ast.get_docstring(ast.parse(MODULES[name].read_text(encoding="utf-8")))
    assert docstring, f"{name} has no docstring"

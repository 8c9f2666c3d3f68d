"""Meanings of settings: the string that stands under each field in the source.

pydantic can read these strings itself (`use_attribute_docstrings`). That costs every process a
third of its start, because each class is parsed when it is made. Only the documentation needs them,
so they are read here, once a file.
"""

import ast
import inspect
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from pydantic import BaseModel


def meaning(model: type[BaseModel], field: str) -> str | None:
    """The text under `field` where `model` or the nearest of its bases declares it; None without one."""
    for owner in model.__mro__:
        if field in vars(owner).get("__annotations__", {}):
            return _of_file(inspect.getfile(owner)).get((owner.__qualname__, field))
    return None


@cache
def _of_file(name: str) -> dict[tuple[str, str], str]:
    tree = ast.parse(Path(name).read_text(encoding="utf-8"))
    classes = [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    return {(node.name, field): text for node in classes for field, text in _of_class(node)}


def _of_class(node: ast.ClassDef) -> Iterator[tuple[str, str]]:
    waiting: list[str] = []  # fields that stand together share the text under the last of them
    for statement in node.body:
        match statement:
            case ast.AnnAssign(target=ast.Name(id=field)):
                waiting = [field]
            case ast.Expr(value=ast.Constant(value=str(text))):
                yield from ((field, inspect.cleandoc(text)) for field in waiting)
                waiting = []
            case _:
                waiting = []

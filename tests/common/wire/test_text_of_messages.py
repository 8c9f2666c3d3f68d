"""Every text of a message has a length or a pattern, also in a field that is added later."""

from collections.abc import Iterator
from typing import Annotated, Any, get_args, get_origin

import pytest
from pydantic import BaseModel

from common import wire
from common.wire.fields import Message

UNSHOWN = {"ClassVectors.float32"}
"""Base64 of a known number of bytes, which is checked where it is unpacked and shown to no one."""


def limited(metadata: tuple[Any, ...]) -> bool:
    names = ("pattern", "max_length")
    return any(
        getattr(one, name, None) is not None or limited(tuple(getattr(one, "metadata", ())))
        for one in metadata
        for name in names
    )


def texts(annotation: Any, metadata: tuple[Any, ...], seen: set[type]) -> Iterator[str]:
    """Places of texts without a limit, as the model and field that hold them."""
    if annotation is str:
        if not limited(metadata):
            yield ""
    elif get_origin(annotation) is Annotated:
        inner, *more = get_args(annotation)
        yield from texts(inner, (*metadata, *more), seen)
    elif isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield from of_model(annotation, seen)
    else:
        for inner in get_args(annotation):
            yield from texts(inner, (), seen)


def of_model(model: type[BaseModel], seen: set[type]) -> Iterator[str]:
    if model in seen:
        return
    seen.add(model)
    for name, field in model.model_fields.items():
        for place in texts(field.annotation, tuple(field.metadata), seen):
            yield place or f"{model.__name__}.{name}"


@pytest.mark.parametrize("message", Message.__subclasses__(), ids=lambda message: message.__name__)
def test_no_text_of_a_message_is_without_a_limit(message: type[BaseModel]) -> None:
    assert set(of_model(message, set())) <= UNSHOWN


def test_the_search_finds_what_it_looks_for() -> None:
    class Bad(BaseModel):
        plain: str
        listed: tuple[str, ...]
        fine: wire.Token
        maybe: wire.Token | None

    assert set(of_model(Bad, set())) == {"Bad.plain", "Bad.listed"}

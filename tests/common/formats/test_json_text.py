import pytest

from common.formats import json_text


def test_json_is_read_as_usual():
    assert json_text.loads('{"a": [1, {"b": null}], "c": NaN}')["a"] == [1, {"b": None}]


@pytest.mark.parametrize(
    "text", ['{"a": 1, "a": 1}', '{"x": [{"secret": 1, "secret": 2}]}', b'{"a": 1, "\\u0061": 2}']
)
def test_a_key_that_stands_twice_is_refused_without_being_quoted(text):
    with pytest.raises(ValueError, match=r"a key stands twice in one object$"):
        json_text.loads(text)

"""A stranger's text is one plain line: nothing in it moves, hides or turns what stands beside it."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.text import one_line, require_line, squeezed


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("plain, with ä, 漢 and a \\ as they are", "plain, with ä, 漢 and a \\ as they are"),
        ("a\nb\r\nc\td", "a\\nb\\r\\nc\\td"),
        ("\x1b[2J\x07\x00", "\\x1b[2J\\x07\\x00"),
        ("\x9b31m\x85", "\\x9b31m\\x85"),  # the one-character forms of ESC [ and of a new line
        ("a\u2028b\u2029c\x0bd\x0ce", "a\\u2028b\\u2029c\\x0bd\\x0ce"),
        ("safe\u202eexe\u2066\u200b\ufeff", "safe\\u202eexe\\u2066\\u200b\\ufeff"),
        ("half \udcff", "half \\udcff"),
        ("tag \U000e0041", "tag \\U000e0041"),
    ],
)
def test_what_does_not_print_is_written_as_its_escape(text, line):
    assert one_line(text) == line


@given(st.text(st.characters(), max_size=50))
@settings(derandomize=True, deadline=None)
def test_any_text_becomes_one_line_that_prints(text):
    line = one_line(text)
    assert line.isprintable()
    assert len(line.splitlines()) <= 1
    assert one_line(line) == line
    assert len(one_line(text, 20)) <= 20


def test_many_spaces_do_not_push_the_rest_to_a_line_of_its_own():
    assert squeezed("a" + " " * 200 + "b\n  c") == "a b\\n c"


def test_a_line_is_required_with_the_place_of_what_is_wrong():
    assert require_line("as it is") == "as it is"
    with pytest.raises(ValueError, match=r"^character 3 is \\x1b, expected one line of plain text"):
        require_line("ab\x1b[8m")

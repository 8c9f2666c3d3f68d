"""YAML that could be read in two ways is refused with its line; what is read can be written and read again."""

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from common.formats import yaml_text
from common.formats.yaml_scalars import Unclear, as_written
from common.formats.yaml_text import YamlError


def problem(text: str) -> str:
    with pytest.raises(YamlError) as caught:
        yaml_text.load(text)
    return str(caught.value)


# --- keys that stand twice -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: 1\nb: 2\na: 3\n", "a stands twice, in line 1 and line 3"),
        ("a: 1\na: 1\na: 1\n", "a stands 3 times, in line 1, line 2 and line 3"),
        ("p:\n  ask: true\n  q:\n    x: 1\n    x: 2\n", "p.q.x stands twice, in line 4 and line 5"),
        ("a:\n  - {b: 1}\n  - {b: 1,\n     b: 2}\n", "a.1.b stands twice, in line 3 and line 4"),
        ('"a": 1\na: 2\n', "a stands twice, in line 1 and line 2"),
        ('1: a\n"1": b\n', "1 stands twice, in line 1 and line 2"),
        ('no: a\n"no": b\n', "no stands twice, in line 1 and line 2"),
        ("2020-01-01: a\n'2020-01-01': b\n", "2020-01-01 stands twice, in line 1 and line 2"),
        ("no: a\nFALSE: b\n", "no and FALSE, in line 1 and line 2, are read as one key"),
        ("1: a\non: b\n", "1 and on, in line 1 and line 2, are read as one key"),
        ("1: a\n1.0: b\n", "1 and 1.0, in line 1 and line 2, are read as one key"),
        ("~: a\nnull: b\n", "~ and null, in line 1 and line 2, are read as one key"),
        ("x: &x {a: 1,\n  a: 2}\ny: {<<: *x}\nz: *x\n", "x.a stands twice, in line 1 and line 2"),
        ("x: &x {a: 1}\ny:\n  <<: *x\n  <<: *x\n", "y.<< stands twice, in line 3 and line 4"),
        ("{a: 1, a: 2}", "a stands twice, in line 1 and line 1"),
        ("---\r\na: 1\r\na: 2\r\n", "a stands twice, in line 2 and line 3"),
    ],
)
def test_a_key_that_stands_twice_is_an_error_with_both_lines(text, said):
    assert problem(text).startswith(said)
    assert "\n" not in problem(text)


def test_all_keys_that_stand_twice_are_named_at_once():
    assert problem("a: 1\nb: {c: 1, c: 2}\na: 2\n").splitlines() == [
        "b.c stands twice, in line 2 and line 2; keep one of them",
        "a stands twice, in line 1 and line 3; keep one of them",
    ]


def test_a_mapping_may_replace_what_it_merges_because_that_is_what_merging_is_for():
    text = "x: &x {a: 1, b: 1}\ny: &y {b: 2, c: 2}\nz:\n  <<: [*x, *y]\n  c: 3\n"
    assert yaml_text.load(text)["z"] == yaml.safe_load(text)["z"] == {"a": 1, "b": 1, "c": 3}


def test_names_that_only_begin_alike_or_differ_in_case_are_two_keys():
    assert yaml_text.load("a: 1\nA: 2\na1: 3\n007: 4\n7: 5\n") == {
        "a": 1,
        "A": 2,
        "a1": 3,
        Unclear("007", 4): 4,
        7: 5,
    }


# --- what is no settings file ----------------------------------------------------------------

LAUGHS = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 10)
)
MERGED_LAUGHS = "a0: &a0 {x: 1}\n" + "".join(
    f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 10)}]}}\n" for n in range(1, 10)
)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: 1\n---\nb: 2\n", "a second document begins in line 2"),
        ("a:\n\tb: 1\n", "line 2 has a tab where YAML takes only spaces"),
        ("a:\tb\n", "line 1 has a tab where YAML takes only spaces"),
        ("a: b\t# c\n", "line 1 has a tab where YAML takes only spaces"),
        ("a: 1\nb: \0", "line 2 has a NUL character"),
        ("a: 1\r\nb: \x1b[0m", "line 2 has the control character U+001B"),
        ("a: 1 # was\u2028b: 2\n", "line 1 has the character U+2028, at which a line ends for some programs"),
        ("a: 1\nb: 2 # was\u0085c: 3\n", "line 2 has the character U+0085, at which a line ends for some programs"),
        ("a:\n\u00a0 b: 1\n", "line 2 begins with a blank that is no space (U+00A0)"),
        ("a: 1\nb: “x”\n", "line 2 has the quotation marks “”"),
        ("[" * 3000, "line 1 has more than 50 levels inside each other"),
        ("\n".join(" " * n + "a:" for n in range(60)), "line 50 has more than 50 levels inside each other"),
        ("- " * 3000 + "a", "line 1 has more than 50 levels inside each other"),
        (LAUGHS, "line 6 has more than 500,000 values once its aliases (`*name`) are written out"),
        (MERGED_LAUGHS, "line 7 has more than 500,000 values once its aliases (`*name`) are written out"),
        ("a: &a [*a]\n", "line 1 contains itself, by an alias"),
        ("a: &a {b: {<<: *a}}\n", "line 1 contains itself, by an alias"),
        ("a: {{ path }}\n", "line 1 has a mapping as a key, expected a name"),
        ("? [a, b]\n: 1\n", "line 1 has a list as a key, expected a name"),
        ("a: !!int seven\n", "line 1 has the tag !!int, which does not fit there"),
        ("a: !!bool perhaps\n", "line 1 has the tag !!bool, which does not fit there"),
        ("a: !!timestamp today\n", "line 1 has the tag !!timestamp, which does not fit there"),
        ("a: !!binary aGk=\n", "line 1 has the tag !!binary, which does not fit there"),
        ("a: !!set {b, b}\n", "line 1 has the tag !!set, which does not fit there"),
        ("a: !!omap [b: 1]\n", "line 1 has the tag !!omap, which does not fit there"),
        ("a: !!python/object/apply:os.getcwd []\n", "line 1 has the tag !!python/object/apply:os.getcwd"),
        ("a: !reset null\n", "line 1 has the tag !reset"),
        ("a: {<<: 3}\n", "line 1: `<<` takes a mapping"),
        ("%YAML 2.0\n---\na: 1\n", "found incompatible YAML document (version 1.* is required) in line 1"),
    ],
    ids=lambda text: text[:20].encode("unicode_escape").decode(),
)  # fmt: skip
def test_what_is_no_settings_file_gets_a_sentence_with_its_line(text, said):
    assert problem(text).startswith(said)


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("studies: [*]\n", "a value that begins with * needs quotes"),
        ("studies: *skin\n", "a value that begins with * needs quotes"),
        ("name: @north\n", "a value that begins so needs quotes"),
        ('root: "C:\\Data"\n', "a text with backslashes needs single quotes"),
        ("institution: Hospital: north\n", "a value with a colon and a blank in it needs quotes"),
    ],
)
def test_a_fault_that_quotes_would_mend_says_so(text, hint):
    assert "line 1" in problem(text)
    assert problem(text).endswith(hint)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ("name: nörth\n".encode("utf-16"), "it is UTF-16 text"),
        ("name: north\n".encode("utf-16-le"), "it is UTF-16 text"),
        ("name: north\n".encode("utf-16-be"), "it is UTF-16 text"),
        ("name: a\nroot: Münster\n".encode("cp1252"), "it is not UTF-8 text (line 2 has the byte 0xFC)"),
    ],
)
def test_text_in_another_encoding_says_how_to_save_it(data, said):
    with pytest.raises(YamlError) as caught:
        yaml_text.load(data)
    assert str(caught.value).startswith(said)
    assert str(caught.value).endswith("save it as UTF-8")


def test_a_byte_order_mark_and_line_ends_of_other_systems_change_nothing():
    expected = {"a": {"b": "x"}, "c": [1]}
    for text in ("a:\n  b: x\nc: [1]\n", "a:\r\n  b: x\r\nc: [1]\r\n", "a:\r  b: x\rc: [1]\r"):
        assert yaml_text.load(text.encode("utf-8-sig")) == yaml_text.load(text) == expected


# --- words that are not what they look like --------------------------------------------------


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("3", 3), ("-3", -3), ("1_000", 1000), ("0x1F", 31), ("1.10", 1.1), ("1e3", 1000.0), ("1e-3", 0.001),
        ("1E+3", 1000.0), (".5", 0.5), ("5.", 5.0), ("1.5e3", 1500.0), ("NO", False), ("on", True), ("~", None),
        ("1.2.3", "1.2.3"), ("=", "="), ("0x", "0x"), ("y", "y"), ("n", "n"), ("e3", "e3"), ("1e", "1e"), ("_1", "_1"),
    ],
)  # fmt: skip
def test_a_word_without_quotes_is_a_number_a_truth_value_or_text(word, value):
    read = yaml_text.load(f"a: {word}")["a"]
    assert (read, isinstance(read, bool)) == (value, isinstance(value, bool))
    if isinstance(value, int | float) and not isinstance(value, bool):
        assert as_written(read) == word


@pytest.mark.parametrize(
    "word",
    ["007", "0o17", "010", "0b11", "12:30", "1:30:59", "190:20.5", "2020-01-01", "2020-13-45", "2020-1-1 10:00",
     "2020-01-01T10:00:00Z"],
)  # fmt: skip
def test_a_word_that_programs_read_differently_is_neither_number_nor_text(word):
    assert yaml_text.load(f"a: {word}")["a"] == Unclear(word, 1)
    assert yaml_text.load(f"a: '{word}'")["a"] == word


def test_a_number_of_thousands_of_digits_is_text_and_no_traceback():
    assert yaml_text.load(f"a: {'9' * 5000}")["a"] == "9" * 5000


def test_what_was_read_is_written_as_it_stood_in_the_file():
    text = "- 007\n- 1.10\n- 1e3\n- 1_000\n- 2020-01-01\n- 12:30\n- 0x1F\n"
    assert yaml_text.dump(yaml_text.load(text)) == text


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text("aNO01eE-:._~ \"'#", max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("aNO01e-:.~", max_size=5), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip


@given(values)
def test_what_is_written_is_read_back_as_the_same(value):
    assert yaml_text.load(yaml_text.dump(value)) == value


def test_other_programs_read_back_what_is_written():
    value = {"a": ["1e3", "007", "NO", "12:30", "2020-01-01", "=", "<<", "~", "1_000", "x"], "1": 1.5}
    assert yaml.safe_load(yaml_text.dump(value)) == value


# --- places ----------------------------------------------------------------------------------


def test_every_key_and_value_knows_its_line():
    document = yaml_text.read("x: &x\n  deep: NO\ny:\n  <<: *x\n  z: [1, 0x10]\n")
    assert document.place(("y", "union-tag", "z", 1)) == yaml_text.Place(5, "0x10", 16)
    assert document.place(("y", "deep")) == yaml_text.Place(2, "NO", False)
    assert document.key_place(("y", "z")) == yaml_text.Place(5, "z", "z")
    assert document.place(("nowhere",)) is None
    assert document.known(("y", "union-tag", "z", 1)) == ("y", "z", "1")


def test_what_has_nothing_behind_its_colon_is_listed():
    document = yaml_text.read("a:\nb:\n  c: ~\n  d:\n  e: ''\n  f: [x, ]\ng: [{h: }]\n")
    assert list(document.without_value()) == [("a", 1), ("b.d", 4), ("g.0.h", 7)]

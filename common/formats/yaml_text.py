"""YAML text: the one reader and the one writer of every YAML that the program has to do with.

Stricter than YAML: a key may stand once in a mapping, because the second would take the place of the first
without a word, and a rule of a hospital would be gone. Every value knows its line, so that a message can
name it. What cannot be a settings file (deep nesting, aliases that multiply, several documents) is
refused before anything is built.
"""

import codecs
import re
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from common.formats import yaml_scalars
from common.formats.yaml_scalars import MERGE, NULL, UNCLEAR, Unclear, WrittenFloat, WrittenInt

MOST_DEPTH = 50
"""Mappings and lists inside each other. Settings need fewer than ten."""
MOST_VALUES = 500_000
"""Values after every alias is written out. A file of a few lines can otherwise fill the memory."""

_MAP, _SEQ = "tag:yaml.org,2002:map", "tag:yaml.org,2002:seq"
_UNPRINTABLE = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_BLANK_INDENT = re.compile("^[ \t]*[\u00a0\u2000-\u200b\u202f\u3000]", re.MULTILINE)
_LINE_ENDS = re.compile("[\x85\u2028\u2029]")
"""A comment would end there, unseen, and what follows would be a setting."""
_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_CURLY = re.compile("[“”„‟«»].*[“”„‟«»]\\Z")


_HINTS = {
    "alias": "a value that begins with * needs quotes",
    "that cannot start any token": "a value that begins so needs quotes",
    "unknown escape character": "a text with backslashes needs single quotes",
    "mapping values are not allowed here": "either the line is indented differently from its neighbours, or a value "
    "with a colon and a blank in it needs quotes",
}
"""What most likely mends a fault, by words of PyYAML's message."""


class YamlError(ValueError):
    """Text that cannot be read as YAML, or not in one way only; one problem a line."""


@dataclass(frozen=True)
class Place:
    """Where a key or a value stands in a file, and how."""

    line: int
    written: str
    """Its text, without quotes; empty for a mapping or a list."""
    value: object
    """What it was read as, None for a mapping or a list."""
    is_nothing: bool = False
    """Nothing stands there, not even quotes."""


@dataclass(frozen=True)
class Document:
    """A file's values, and where each of them stands."""

    values: Any
    root: yaml.Node | None

    def place(self, way: Sequence[int | str]) -> Place | None:
        """Where the value at `way` stands: keys and numbers of list items from the top.

        Parts that the file does not have, such as names that a union of models adds, are passed over.
        """
        node, found = self.root, False
        for part in way:
            below = _below(node, part)
            node, found = (node, found) if below is None else (below[1], True)
        return _place(node) if found and node is not None else None

    def known(self, way: Sequence[int | str]) -> tuple[str, ...]:
        """The parts of `way` that the file has, as it spells them."""
        node, parts = self.root, []
        for part in way:
            below = _below(node, part)
            if below is not None:
                parts.append(str(part) if isinstance(node, yaml.SequenceNode) else str(below[0].value))
                node = below[1]
        return tuple(parts)

    def key_place(self, way: Sequence[int | str]) -> Place | None:
        """Where the last key of `way` stands."""
        *parents, key = way
        node = self.root
        for part in parents:
            below = _below(node, part)
            node = node if below is None else below[1]
        below = _below(node, key)
        return None if below is None else _place(below[0])

    def without_value(self) -> Iterator[tuple[str, int]]:
        """Path and line of every key and list item after which nothing is written."""
        seen: set[int] = set()
        return _empty(self.root, "", seen)


def decode(data: bytes) -> str:
    """The text of a file. Raises YamlError that says how to save it."""
    if data.startswith(_UTF16) or b"\0" in data[:2]:
        raise YamlError('it is UTF-16 text, which some editors call "Unicode"; save it as UTF-8')
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise YamlError(
            f"it is not UTF-8 text (line {line} has the byte 0x{data[error.start]:02X}); save it as UTF-8"
        ) from error


def read(text: str) -> Document:
    """Values and places of one YAML document. Raises YamlError."""
    _refuse_characters(text)
    try:
        loader = _Loader(text)
        root = loader.get_single_node()
    except yaml.MarkedYAMLError as error:
        raise YamlError(_explain(error, text)) from error
    except yaml.YAMLError as error:
        raise YamlError(" ".join(str(error).split())) from error
    if root is None:
        return Document(None, None)
    _refuse_many(root)
    builder = _Builder()
    values = builder.build(root, "")
    if builder.problems:
        raise YamlError("\n".join(builder.problems))
    return Document(values, root)


def load(text: str | bytes) -> Any:
    """The values of one YAML document. Raises YamlError."""
    return read(decode(text) if isinstance(text, bytes) else text).values


def dump(values: object, *, width: int = 80) -> str:
    """YAML text of `values` in their order, that `read` and other programs read back as the same."""
    text: str = yaml.dump(values, Dumper=Dumper, sort_keys=False, allow_unicode=True, width=width)
    return text


# --- PyYAML, with our own words -----------------------------------------------------------------


class _Loader(yaml.SafeLoader):
    """Composes nodes and constructs nothing."""

    yaml_implicit_resolvers: dict[Any, Any] = {}  # noqa: RUF012  (PyYAML's own way)
    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        self.depth += 1
        if self.depth > MOST_DEPTH:
            raise yaml.composer.ComposerError(
                None,
                None,
                f"more than {MOST_DEPTH} levels inside each other",
                self.peek_event().start_mark,  # type: ignore[no-untyped-call]
            )
        node: yaml.Node | None = super().compose_node(parent, index)
        self.depth -= 1
        return node


class Dumper(yaml.SafeDumper):
    """Writes what `read` reads back: a text that looks like a number or a truth value gets quotes."""

    yaml_implicit_resolvers: dict[Any, Any] = {}  # noqa: RUF012


for _tag, _words in yaml_scalars.RESOLVERS:
    _Loader.add_implicit_resolver(_tag, _words, None)
    Dumper.add_implicit_resolver(_tag, _words, None)


Dumper.add_implicit_resolver("tag:yaml.org,2002:value", re.compile(r"=\Z"), None)  # other programs stop at it


def _as_in_the_file(dumper: Any, value: Any) -> yaml.Node:
    tags = {WrittenInt: yaml_scalars.INT, WrittenFloat: yaml_scalars.FLOAT, Unclear: UNCLEAR}
    node: yaml.Node = dumper.represent_scalar(tags[type(value)], value.written)
    return node


for _kind in (WrittenInt, WrittenFloat, Unclear):
    Dumper.add_representer(_kind, _as_in_the_file)


# --- what is refused before anything is built ---------------------------------------------------


def _refuse_characters(text: str) -> None:
    if match := _UNPRINTABLE.search(text):
        what = "a NUL character" if match[0] == "\0" else f"the control character U+{ord(match[0]):04X}"
        raise YamlError(
            f"line {_line_at(text, match.start())} has {what}; remove it, or save the file again as text"
        )
    if match := _LINE_ENDS.search(text):
        raise YamlError(
            f"line {_line_at(text, match.start())} has the character U+{ord(match[0]):04X}, at which a line ends for "
            "some programs and for others not; remove it"
        )
    if match := _BLANK_INDENT.search(text):
        raise YamlError(
            f"line {_line_at(text, match.start())} begins with a blank that is no space (U+{ord(match[0][-1]):04X}), "
            "as web pages and word processors have it; type spaces instead"
        )


def _line_at(text: str, position: int) -> int:
    return len(re.findall(r"\r\n|\r|\n", text[:position])) + 1


def _explain(error: yaml.MarkedYAMLError, text: str) -> str:
    problem, mark = error.problem or "", error.problem_mark
    line = 0 if mark is None else mark.line + 1
    if "'\\t'" in problem or (mark is not None and text[mark.index : mark.index + 1] == "\t"):
        return f"line {line} has a tab where YAML takes only spaces; write spaces"
    if "single document" in (error.context or ""):
        return f"a second document begins in line {line} (`---`); one file holds one, so remove the line or the rest"
    if "levels inside each other" in problem:
        return f"line {line} has {problem}; a settings file has fewer than ten"
    if "duplicate anchor" in problem:
        return f"line {line}: {problem}; give each anchor (`&name`) a name of its own"
    said = " ".join(str(error).replace(' in "<unicode string>",', " in").split())
    return said + next((f"; {hint}" for mark_of, hint in _HINTS.items() if mark_of in said), "")


def _refuse_many(root: yaml.Node) -> None:
    """Aliases count as often as they are used, because a walk through the values meets them so often."""
    sizes: dict[int, int] = {}

    def size(node: yaml.Node) -> int:
        line = node.start_mark.line + 1
        if id(node) in sizes:
            if not sizes[id(node)]:
                raise YamlError(f"line {line} contains itself, by an alias (`*name`); write its values out")
            return sizes[id(node)]
        sizes[id(node)] = 0
        match node:
            case yaml.MappingNode():
                number = 1 + sum(size(key) + size(value) for key, value in node.value)
            case yaml.SequenceNode():
                number = 1 + sum(map(size, node.value))
            case _:
                number = 1
        if number > MOST_VALUES:
            raise YamlError(
                f"line {line} has more than {MOST_VALUES:,} values once its aliases (`*name`) are written out; "
                "a settings file has fewer"
            )
        sizes[id(node)] = number
        return number

    size(root)


# --- from nodes to values -----------------------------------------------------------------------


class _Builder:
    """Values of nodes, and every problem on the way."""

    def __init__(self) -> None:
        self.problems: list[str] = []
        self._built: dict[int, Any] = {}

    def build(self, node: yaml.Node, way: str) -> Any:
        # What an alias repeats is built once, so a problem in it is named once.
        if id(node) not in self._built:
            self._built[id(node)] = self._build(node, way)
        return self._built[id(node)]

    def _build(self, node: yaml.Node, way: str) -> Any:
        match node:
            case yaml.MappingNode(tag=tag) if tag == _MAP:
                return self._mapping(node, way)
            case yaml.SequenceNode(tag=tag) if tag == _SEQ:
                return [self.build(item, _join(way, str(place))) for place, item in enumerate(node.value)]
            case yaml.ScalarNode():
                return self._scalar(node)
            case _:
                return self._refuse_tag(node)

    def _scalar(self, node: yaml.ScalarNode) -> Any:
        text = node.value
        if not node.style and _CURLY.match(text):
            self.problems.append(
                f"line {_line(node)} has the quotation marks {text[0]}{text[-1]}; YAML has \" and '"
            )
            return text
        try:
            return yaml_scalars.construct(node.tag, text, _line(node))
        except ValueError:
            return self._refuse_tag(node)

    def _refuse_tag(self, node: yaml.Node) -> None:
        tag = str(node.tag).replace("tag:yaml.org,2002:", "!!")
        self.problems.append(f"line {_line(node)} has the tag {tag}, which does not fit there; remove it")

    def _mapping(self, node: yaml.MappingNode, way: str) -> dict[Any, Any]:
        own: dict[Any, Any] = {}
        merged: dict[Any, Any] = {}
        standing: dict[Hashable, list[yaml.Node]] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                what = "a mapping" if isinstance(key_node, yaml.MappingNode) else "a list"
                self.problems.append(
                    f"line {_line(key_node)} has {what} as a key, expected a name; braces need quotes"
                )
                continue
            if key_node.tag == MERGE:
                key: Any = "<<"
                for inner in self._merged(value_node, way):
                    merged = {**inner, **merged}
            else:
                key = self._scalar(key_node)
                own[key] = self.build(value_node, _join(way, key_node.value))
            # Two keys are one if they are equal, or if they are one text: a mapping by names takes 1 for "1".
            same = next((held for held in ((key,), key_node.value) if held in standing), None)
            nodes = [*standing[same]] if same is not None else []
            standing[(key,)] = standing[key_node.value] = [*nodes, key_node]
        repeated = {id(nodes[0]): nodes for nodes in sorted(standing.values(), key=len) if len(nodes) > 1}
        self.problems += [_twice(way, nodes) for nodes in repeated.values()]
        return merged | own

    def _merged(self, node: yaml.Node, way: str) -> Iterator[dict[Any, Any]]:
        """The mappings that `<<` names, the first of which wins."""
        for inner in node.value if isinstance(node, yaml.SequenceNode) else [node]:
            if isinstance(inner, yaml.MappingNode):
                built = self.build(inner, way)
                if isinstance(built, dict):
                    yield built
            else:
                self.problems.append(f"line {_line(inner)}: `<<` takes a mapping, such as *name")


def _twice(way: str, nodes: list[yaml.Node]) -> str:
    lines = [f"line {_line(node)}" for node in nodes]
    listed = f"{', '.join(lines[:-1])} and {lines[-1]}"
    if len({node.value for node in nodes}) == 1:
        return f"{_join(way, nodes[0].value)} stands {_times(len(nodes))}, in {listed}; keep one of them"
    spelled = " and ".join(str(node.value) for node in nodes)
    return f"{_join(way, spelled)}, in {listed}, are read as one key; keep one of them, or put them in quotes"


def _times(number: int) -> str:
    return "twice" if number == 2 else f"{number} times"


# --- finding a place ----------------------------------------------------------------------------


def _below(node: yaml.Node | None, part: int | str) -> tuple[yaml.Node, yaml.Node] | None:
    """Key and value of one step down; of a list both are the item."""
    match node:
        case yaml.SequenceNode() if isinstance(part, int) and 0 <= part < len(node.value):
            return node.value[part], node.value[part]
        case yaml.MappingNode():
            merged: list[yaml.Node] = []
            for key, value in node.value:
                if key.tag == MERGE:
                    merged += value.value if isinstance(value, yaml.SequenceNode) else [value]
                elif _is(key, part):
                    return key, value
            return next((found for inner in merged if (found := _below(inner, part))), None)
        case _:
            return None


def _is(key: yaml.ScalarNode, part: int | str) -> bool:
    value = yaml_scalars.construct(key.tag, key.value, 0)
    return part in (
        key.value,
        value,
        str(value),
    )  # pydantic's part of the key `no` is 0, of 1.10 the text 1.1


def _place(node: yaml.Node) -> Place:
    if not isinstance(node, yaml.ScalarNode):
        return Place(_line(node), "", None)
    value = yaml_scalars.construct(node.tag, node.value, _line(node))
    return Place(_line(node), node.value, value, is_nothing=not node.value and not node.style)


def _empty(node: yaml.Node | None, way: str, seen: set[int]) -> Iterator[tuple[str, int]]:
    if id(node) in seen:
        return
    seen.add(id(node))
    match node:
        case yaml.MappingNode():
            for key, value in node.value:
                yield from _empty(value, _join(way, key.value), seen)
        case yaml.SequenceNode():
            for place, item in enumerate(node.value):
                yield from _empty(item, _join(way, str(place)), seen)
        case yaml.ScalarNode(tag=tag, value="") if tag == NULL and not node.style and way:
            yield way, _line(node)


def _join(way: str, part: str) -> str:
    return f"{way}.{part}" if way else part


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1

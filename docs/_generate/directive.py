"""The Sphinx directive `settings`: every setting of one YAML file, from its model.

```{settings} study
```
"""

import inspect
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import ClassVar

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from common.config import StudyConfig
from common.settings import Frozen
from docs._generate.fields import Section, Setting, sections
from docs._generate.files import FILES


class SettingsDirective(SphinxDirective):
    """Sections and definition lists: a table would be too wide for a telephone."""

    required_arguments = 1
    has_content = False
    option_spec: ClassVar = {}
    _anchors: Mapping[tuple[str, tuple[str, ...]], str]

    def run(self) -> list[nodes.Node]:
        """One docutils section for each mapping of the file, nested like the YAML."""
        name = self.arguments[0]
        for source in _sources(FILES[name].model):
            self.env.note_dependency(source)
        top, *rest = sections(FILES[name].model)
        self._anchors = {
            (one.path, one.inside): anchor(name, one.path, None, one.inside) for one in rest if not one.kind
        }
        page = nodes.container()
        page += self._body(name, top)
        path: list[tuple[int, nodes.Element]] = [(0, page)]
        for section in rest:
            while path[-1][0] >= section.depth:
                path.pop()
            node = self._section(name, section)
            path[-1][1].append(node)
            path.append((section.depth, node))
        return list(page.children)

    def _section(self, name: str, section: Section) -> nodes.section:
        place = anchor(name, section.path, section.kind, section.inside)
        node = nodes.section(ids=[place], names=[place])
        heading = nodes.title()
        if section.kind is None:
            heading += nodes.literal(section.path, section.path)
        else:
            written = section.kind if section.kind.startswith("{") else f"kind: {section.kind}"
            heading += nodes.literal(written, written)
        if section.inside:
            around = ", ".join(section.inside)
            heading += nodes.Text(f" (in {around})")
        node += heading
        node += self._body(name, section)
        return node

    def _body(self, name: str, section: Section) -> list[nodes.Node]:
        body: list[nodes.Node] = [self._paragraph(text) for text in _paragraphs(section.meaning)]
        settings = section.settings
        if section.shared:
            body.append(self._paragraph(f"Every kind of `{section.path}` has:"))
            settings = section.shared
        elif not section.meaning:
            body.append(self._paragraph(f"`{section.path}` is one of these:"))
        elif not settings:
            body.append(self._paragraph("It has no settings of its own."))
        if settings:
            listed = nodes.definition_list(classes=["settings"])
            listed += [self._item(name, section, setting) for setting in settings]
            body.append(listed)
        return body

    def _item(self, name: str, section: Section, setting: Setting) -> nodes.definition_list_item:
        kinds = section.inside if section.kind is None else (*section.inside, section.kind)
        place = anchor(name, setting.path, None, kinds) + "-setting"
        term = nodes.term(ids=[place])
        term += nodes.literal(setting.path, setting.path)
        term += nodes.reference("", "#", refid=place, classes=["headerlink"])
        definition = nodes.definition()
        facts = self._paragraph("; ".join(_facts(setting)) + ".")
        facts["classes"].append("setting-facts")
        for below in ("", "[]", ".NAME"):
            if (place := self._anchors.get((setting.path + below, kinds))) is not None:
                facts += [nodes.Text(" "), nodes.reference("", "Its settings", refid=place), nodes.Text(".")]
        definition += facts
        definition += [self._paragraph(text) for text in _paragraphs(setting.meaning)]
        return nodes.definition_list_item("", term, definition)

    def _paragraph(self, text: str) -> nodes.paragraph:
        inner, messages = self.parse_inline(text)
        return nodes.paragraph(text, "", *inner, *messages)


def _sources(model: type[Frozen]) -> Iterator[Path]:
    """Files after whose change a page has to be built again."""
    for owner in (model, StudyConfig):
        yield from Path(inspect.getfile(owner)).parent.glob("*.py")
    yield from Path(__file__).parent.glob("*.py")


def anchor(file: str, path: str, kind: str | None, inside: tuple[str, ...]) -> str:
    """The address of a setting within its page: `study-adam-local-optimizer-lr`."""
    words = [file, *inside, *([kind] if kind else []), *path.split(".")]
    return re.sub(r"[^a-z0-9]+", "-", " ".join(words).lower()).strip("-")


def _facts(setting: Setting) -> list[str]:
    facts = [setting.type[:1].upper() + setting.type[1:]]
    if setting.unit:
        facts.append(f"unit: {setting.unit}")
    match setting.default:
        case None:
            facts.append("**required**")
        case "none" | "those of its settings":
            facts.append(f"default: {setting.default}")
        case default:
            facts.append(f"default: `{default}`")
    return facts


def _paragraphs(text: str) -> list[str]:
    return [" ".join(part.split()) for part in text.split("\n\n") if part.strip()]


def setup(app: Sphinx) -> dict[str, bool]:
    """Called by Sphinx."""
    app.add_directive("settings", SettingsDirective)
    return {"parallel_read_safe": True}

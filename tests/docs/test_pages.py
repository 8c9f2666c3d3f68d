"""Every link of the documentation leads somewhere, and every path that it names exists."""

import re
import subprocess
from collections import Counter
from functools import cache
from pathlib import Path
from urllib.parse import unquote

import pytest
from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").rglob("*.md")]
)
PAGES = [page for page in PAGES if "_build" not in page.parts]
# `server/rounds/loop.py` is a path, `server/...` and `server.port` are not.
NAMED = re.compile(r"(?:common|client|server|configs|docs|tests|benchmarks|consilium_fl)/[\w./*-]*")

every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())


@cache
def tokens(page: Path) -> tuple[Token, ...]:
    parser = MarkdownIt("commonmark").enable("table")
    flat = []
    for token in parser.parse(page.read_text(encoding="utf-8")):
        flat += [token, *(token.children or ())]
    return tuple(flat)


def links(page: Path) -> list[str]:
    """Targets of links and pictures; those of other sites are left out."""
    targets = [str(token.attrs.get("href") or token.attrs.get("src") or "") for token in tokens(page)]
    return [target for target in targets if target and not re.match(r"[a-z]+:", target)]


def heading_anchors(page: Path) -> set[str]:
    """Addresses of headings, by the rule of repositories' websites, which MyST follows to level 3."""
    seen: Counter[str] = Counter()
    anchors = set()
    found = tokens(page)
    for here, token in enumerate(found):
        if token.type == "heading_open" and token.tag in ("h1", "h2", "h3"):
            words = "".join(part.content for part in found[here + 1].children or ())
            slug = re.sub(r"[^\w\- ]", "", words.lower()).replace(" ", "-")
            anchors.add(f"{slug}-{seen[slug]}" if seen[slug] else slug)
            seen[slug] += 1
    return anchors


def test_anchors_are_those_of_repositories_websites(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# What a site allows: `policy:` in site.yaml\n## Ports\n## Ports\n#### Deep\n", "utf-8")
    assert heading_anchors(page) == {"what-a-site-allows-policy-in-siteyaml", "ports", "ports-1"}


@every_page
def test_every_link_within_the_repository_works(page: Path) -> None:
    broken = []
    for link in links(page):
        path, _, anchor = unquote(link).partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and anchor not in heading_anchors(target)):
            broken.append(link)
    assert not broken


@every_page
def test_a_page_links_to_pages_and_not_to_folders(page: Path) -> None:
    # The site has no page for a folder.
    folders = [
        link for link in links(page) if (page.parent / link.partition("#")[0]).is_dir() and link[0] != "#"
    ]
    assert not folders


@every_page
def test_every_path_that_a_page_names_exists(page: Path) -> None:
    code = [token.content for token in tokens(page) if token.type == "code_inline"]
    named = {path for text in code for path in NAMED.findall(text) if text.startswith(path)}
    missing = {path for path in named if "..." not in path and not list(ROOT.glob(path.rstrip("./") or "."))}
    assert missing <= {"docs/_build/"}  # `make docs` writes it


def test_a_table_of_contents_lists_every_page() -> None:
    """What `make docs` warns of, without a build."""
    listed = set()
    for page in PAGES:
        for block in re.findall(r"```\{toctree\}\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL):
            for line in block.splitlines():
                name = re.sub(r".*<(.*)>", r"\1", line.strip())
                if name and not name.startswith(":"):
                    listed |= {path.resolve() for path in page.parent.glob(f"{name}.md")}
    pages = {page for page in PAGES if page.is_relative_to(ROOT / "docs")}
    assert listed == pages - {ROOT / "docs" / "index.md"}


def test_the_built_site_is_not_under_version_control() -> None:
    done = subprocess.run(
        ["git", "check-ignore", "docs/_build/index.html"],
        cwd=ROOT,
        timeout=60,
        capture_output=True,
        check=False,
    )
    if done.returncode == 128:
        pytest.skip("not a git checkout")
    assert done.returncode == 0


def test_what_the_build_of_the_pages_writes_is_no_part_of_the_repository() -> None:
    """Else a second `make lint` would look at it, and a second build would take it for pages."""
    written = ["docs/_build/index.html", "docs/jupyter_execute/tutorials/heads.ipynb"]
    done = subprocess.run(
        ["git", "check-ignore", "--no-index", *written], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.stdout.split() == written

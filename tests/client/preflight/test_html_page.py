"""The preflight's page: every value is text, long lists are folded and cut, and a page without images is a page."""

from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from client.data.manifest import ImageRow, Manifest
from client.data.references import PictureFile
from client.preflight.data import Report
from client.preflight.findings import Finding
from client.preflight.html_page import page
from tests.chromium import PROGRAM, Chromium

NOW = datetime(2026, 1, 2, 3, 4, tzinfo=UTC)
SCRIPT = "<script>alert('x')</script>"
ESCAPED = "&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt;"


def row(folder: Path, name: str, label: str, split: str | None = None) -> ImageRow:
    path = folder / name
    Image.fromarray(np.full((40, 40, 3), 99, np.uint8)).save(path, "PNG")
    return ImageRow(PictureFile(path), label, None, split, f"labels.csv: {name}")


def test_a_class_called_like_a_script_is_text_wherever_it_stands(tmp_path: Path) -> None:
    mine = row(tmp_path, "1.png", SCRIPT, "train")
    finding = Finding("stops", f"no class {SCRIPT}", (SCRIPT,), (mine,))
    html = page(Report("north", (finding,), Manifest((mine,), (SCRIPT,))), NOW)
    assert "<script" not in html
    # the finding, its line, its picture's caption, the table of classes, the samples
    assert html.count(ESCAPED) == 5


def test_a_file_called_like_markup_is_text(tmp_path: Path) -> None:
    mine = row(tmp_path, '"><img src=x>&.png', "mel")
    html = page(Report("north", (), Manifest((mine,), ("mel",))), NOW)
    assert "<img src=x" not in html
    assert (
        html.count("&#34;&gt;&lt;img src=x&gt;&amp;.png") == 4
    )  # alt, title, the caption's title, the caption


def test_a_name_that_turns_what_follows_around_is_written_as_its_escape(tmp_path: Path) -> None:
    mine = row(tmp_path, "gnp.\u202elem.png", "mel")
    html = page(
        Report("north", (Finding("look", "small", ("gnp.\u202elem.png",)),), Manifest((mine,), ("mel",))), NOW
    )
    assert "\u202e" not in html
    assert html.count("gnp.\\u202elem.png") == 5  # the finding's line, and the picture's four


@pytest.mark.parametrize(
    ("num_lines", "is_folded", "more"), [(8, False, ""), (9, True, ""), (1201, True, "1,001")]
)
def test_a_long_list_is_folded_and_its_end_is_counted(num_lines: int, is_folded: bool, more: str) -> None:
    finding = Finding("look", "rows repeat", tuple(f"row {number}" for number in range(num_lines)))
    html = page(Report("north", (finding,), Manifest((), ())), NOW)
    assert (f"<summary>{num_lines:,} lines</summary>" in html) is is_folded
    assert html.count("<li>row ") == min(num_lines, 200)
    assert (f"<li>... and {more} more</li>" in html) is bool(more)


def test_a_site_without_images_has_a_page_of_findings_alone() -> None:
    html = page(Report("north", (Finding("stops", "labels.csv is empty"),), Manifest((), ("mel",))), NOW)
    assert "<h3><pre>Labels.csv is empty</pre></h3>" in html
    assert html.startswith("<!doctype html>")
    assert [heading for heading in ("Classes", "Sizes", "Samples") if f"<h2>{heading}" in html] == []


def test_bars_are_shares_of_the_largest_class_on_their_sides(tmp_path: Path) -> None:
    rows = [
        row(tmp_path, f"{number}.png", label, side)
        for number, (label, side) in enumerate([("mel", "train")] * 3 + [("mel", "test"), ("nv", "test")])
    ]
    html = page(Report("north", (), Manifest(tuple(rows), ("mel", "nv"))), NOW)
    # Four melanomas are the most: 3/4 and 1/4; one naevus is 1/4.
    none = '<i class="validation" style="width:0.00%"></i>'
    assert (
        f'<i class="train" style="width:75.00%"></i>{none}<i class="test" style="width:25.00%"></i>' in html
    )
    assert f'<i class="train" style="width:0.00%"></i>{none}<i class="test" style="width:25.00%"></i>' in html


def test_without_a_split_images_are_counted_in_one_column(tmp_path: Path) -> None:
    html = page(Report("north", (), Manifest((row(tmp_path, "1.png", "mel"),), ("mel",))), NOW)
    assert '<tr><th>class</th><th class="n">images</th>' in html
    assert '<i class="plain" style="width:100.00%"></i>' in html
    assert 'class="key' not in html


@pytest.mark.slow
@pytest.mark.skipif(PROGRAM is None, reason="this machine has no Chromium")
def test_the_page_is_no_wider_than_a_telephone(tmp_path: Path) -> None:
    rows = tuple(row(tmp_path, f"{name}.png", name) for name in ("melanoma", "squamous cell carcinoma"))
    path = tmp_path / "page.html"
    path.write_text(page(Report("north", (), Manifest(rows, tuple(r.label for r in rows))), NOW), "utf-8")
    browser = Chromium(tmp_path / "profile")
    try:
        tab = browser.tab(400)
        tab.open(path.as_uri())
        assert tab.run("document.querySelector('table').scrollWidth > 340")  # it scrolls within its card
        assert tab.run("document.documentElement.scrollWidth") == 400
    finally:
        browser.close()

"""The page is one file that fetches nothing, says what the Markdown says, and shows what a site wrote as text."""

import base64
import hashlib
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from server.report.html import page
from server.report.html.text import section
from server.report.markdown import markdown
from server.report.plots import SYNTHETIC
from server.report.write import append_round, write_report
from server.state import SiteRound
from server.storage import last_scores
from server.storage.last_scores import LastScores

VOID = {"meta", "br", "hr", "line", "path", "circle", "img", "input", "link"}


class Tags(HTMLParser):
    """Every tag with its attributes; `text` is what a reader sees; `unclosed` should be empty."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.unclosed: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.unclosed.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.unclosed.pop() == tag

    def handle_data(self, data):
        if self.unclosed[-1:] != ["style"]:
            self.text += data


@pytest.fixture
def kept(tmp_path, random_state, study) -> LastScores:
    folder = tmp_path / "kept"
    for number in range(1, 5):
        append_round(folder, random_state(number), study)
    return last_scores.load(folder)


def test_the_page_fetches_nothing_and_runs_nothing(make_outcome, kept, tmp_path):
    html = page(make_outcome(), kept, tmp_path)
    tags = Tags(html)
    assert tags.unclosed == []
    assert not {"script", "img", "link", "iframe", "object", "base", "form"} & {tag for tag, _ in tags.tags}
    attributes = {name for _, attrs in tags.tags for name in attrs}
    assert not {name for name in attributes if name.startswith("on")} | (
        attributes & {"src", "style", "xlink:href"}
    )
    assert all(attrs["href"].startswith("#") for _, attrs in tags.tags if "href" in attrs)
    assert "url(" not in html
    assert "@import" not in html


def test_the_policy_lets_the_style_through_by_its_hash_and_nothing_else(make_outcome, kept, tmp_path):
    html = page(make_outcome(), kept, tmp_path)
    policy = next(
        a["content"] for t, a in Tags(html).tags if a.get("http-equiv") == "Content-Security-Policy"
    )
    style = re.search(r"<style>(.*)</style>", html, re.DOTALL)[1]
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert policy == f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"


def test_html_in_a_reason_is_shown_as_it_was_written(make_outcome, kept, tmp_path):
    reason = "<script>alert(1)</script> <img src=x onerror=alert(2)> &amp; [x](javascript:alert(3)) **b** |"

    def break_north(state):
        rows = tuple(SiteRound(r.site, "failed", reason) if r.site == "north" else r for r in state.sites)
        return replace(state, sites=rows)

    tags = Tags(page(make_outcome(break_north, absent={"west": reason}), kept, tmp_path))
    assert reason in tags.text
    assert not {"script", "img"} & {tag for tag, _ in tags.tags}


def test_every_sentence_of_the_markdown_is_on_the_page(make_outcome, kept, tmp_path):
    outcome = make_outcome()
    text = " ".join(Tags(page(outcome, kept, tmp_path)).text.split())
    for title in re.findall(r"^#+ (.*)$", markdown(outcome), re.MULTILINE):
        assert title in text
    assert "Sites work at the same time, so seconds do not add up over sites." in text
    assert study_seed(outcome) in text


def study_seed(outcome) -> str:
    return outcome.study.fingerprint


def test_tables_have_headings_and_figures_have_words(make_outcome, kept, tmp_path):
    tags = Tags(page(make_outcome(), kept, tmp_path)).tags
    assert all("scope" in attrs for tag, attrs in tags if tag == "th")
    drawn = [attrs for tag, attrs in tags if tag == "svg"]
    assert all(attrs.get("aria-label") or attrs.get("aria-hidden") == "true" for attrs in drawn)
    # Three over the rounds, three of the classes, two by site for each of three classes.
    assert sum(attrs.get("role") == "img" for attrs in drawn) == 3 + 3 + 2 * 3
    ids = [attrs["id"] for _, attrs in tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    assert {attrs["href"][1:] for tag, attrs in tags if tag == "a"} <= set(ids)


def test_a_run_without_histograms_says_what_is_missing(make_outcome, tmp_path):
    tags = Tags(page(make_outcome(), LastScores(), tmp_path))
    assert (
        "ROC, precision over recall, reliability and thresholds: the score histograms of this model are not"
        in (tags.text)
    )
    assert sum(attrs.get("role") == "img" for tag, attrs in tags.tags if tag == "svg") == 3


def test_a_study_without_any_round_has_a_page(tmp_path, study):
    write_report(tmp_path, study)
    text = Tags((tmp_path / "report.html").read_text()).text
    assert "No site scored the model" in text
    assert "Every figure of the model: no site scored it." in text


def test_synthetic_images_are_named_on_top(make_outcome, kept, tmp_path):
    text = Tags(page(replace(make_outcome(), synthetic=True), kept, tmp_path)).text.lower()
    assert text.index(SYNTHETIC) < text.index("the model after round")


def test_digests_of_the_records_are_named(make_outcome, kept, tmp_path):
    (tmp_path / "weights.safetensors").write_bytes(b"abc")
    text = Tags(page(make_outcome(), kept, tmp_path)).text
    assert hashlib.sha256(b"abc").hexdigest() in text


def test_the_first_cell_of_a_row_is_its_heading_and_numbers_stand_right():
    found = section("## Rows\n\n| site | images |\n| :--- | ---: |\n| north | 3 |\n")
    assert found.title == "Rows"
    assert '<th scope="row">north</th>' in found.body
    assert '<td class="n">3</td>' in found.body
    assert "style=" not in found.body

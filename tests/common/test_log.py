"""One event a line, readable or as JSON, with the site's name and never twice."""

import json
import logging
from datetime import datetime

import pytest

from common import bounded_log, log


@pytest.fixture(autouse=True)
def _quiet_afterwards():
    before = log.logger.handlers[:], log.logger.propagate, log.logger.level
    log.logger.handlers = []
    yield
    for handler in log.logger.handlers:
        handler.close()
    log.logger.handlers, log.logger.propagate = before[0], before[1]
    log.logger.setLevel(before[2])


def test_a_person_reads_the_clock_and_the_sentence(capsys):
    log.start()
    log.event("north trained 12 steps", site="north", steps=12)
    clock, sentence = capsys.readouterr().err.strip().split("  ", maxsplit=1)
    assert datetime.strptime(clock, "%H:%M:%S").second < 60
    assert sentence == "north trained 12 steps"


def test_what_needs_a_look_carries_its_level(capsys):
    log.start()
    log.warn("south is missing", site="south")
    assert capsys.readouterr().err.endswith("  WARNING: south is missing\n")


def test_a_machine_reads_fields_and_needs_no_sentence(capsys):
    log.start("json")
    log.warn("south is late: Übertragung", site="south", round=3, loss=0.5, sites=["south"], done=None)
    line = json.loads(capsys.readouterr().err)
    assert datetime.fromisoformat(line.pop("time")).utcoffset().total_seconds() == 0
    assert line == {
        "level": "warning",
        "message": "south is late: Übertragung",
        "site": "south",
        "round": 3,
        "loss": 0.5,
        "sites": ["south"],
        "done": None,
    }


def test_every_event_is_one_line_of_json_even_with_line_breaks(capsys):
    log.start("json")
    log.event("one\ntwo")
    assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.parametrize("form", ["readable", "json"])
def test_an_event_is_one_plain_line_whatever_it_quotes(form, capsys):
    log.start(form)
    log.event("site says: \x1b[2J\n10:00:00  ERROR\u202e", site="a\nb", sites=["c\x9bd"])
    (line,) = capsys.readouterr().err.splitlines()
    assert line.isprintable()
    message = r"site says: \x1b[2J\n10:00:00  ERROR\u202e"
    if form == "json":
        assert (fields := json.loads(line))["message"] == message
        assert (fields["site"], fields["sites"]) == (r"a\nb", [r"c\x9bd"])
    else:
        assert line.endswith(f"  {message}")


@pytest.mark.parametrize("form", ["readable", "json"])
def test_a_table_of_our_own_stands_below_its_event_indented(form, capsys):
    log.start(form)
    log.lines("round 1\nsite  images\nnorth\x1b      3", level=logging.WARNING)
    told = capsys.readouterr().err
    if form == "json":
        fields = json.loads(told)
        assert (fields["message"], fields["below"]) == ("round 1", "    site  images\n    north\\x1b      3")
    else:
        first, *rest = told.splitlines()
        assert first.endswith("  WARNING: round 1")
        assert rest == ["    site  images", "    north\\x1b      3"]


def test_no_line_of_an_errors_story_looks_like_an_event(capsys):
    log.start()
    log.logger.error("case 1", exc_info=ValueError("x\n10:00:00  all is well\x1b[2J"))
    first, *story = capsys.readouterr().err.splitlines()
    assert first.endswith("ERROR: case 1")
    assert story
    assert all(line.startswith("    ") and line.isprintable() for line in story)


@pytest.mark.parametrize("form", ["readable", "json"])
def test_the_details_of_an_error_stand_in_the_log(form, capsys):
    log.start(form)
    try:
        int("no such lesion")
    except ValueError:
        log.logger.exception("case 1a2b")
    told = capsys.readouterr().err
    assert "case 1a2b" in told
    assert "ValueError: invalid literal" in told


def test_events_also_go_to_the_file_whose_folder_is_made(tmp_path, capsys):
    file = tmp_path / "run" / "server.log"
    log.start(file=file)
    log.event("round 1")
    assert file.read_text() == capsys.readouterr().err


@pytest.mark.parametrize("form", ["readable", "json"])
def test_a_file_of_events_stops_growing_and_says_so_in_its_own_form(tmp_path, monkeypatch, form):
    monkeypatch.setattr(bounded_log, "MOST_BYTES", 300)
    file = tmp_path / "server.log"
    log.start(form, file=file)
    for number in range(20):
        log.event(f"round {number} of the study")
    first, *others = file.read_text().splitlines()
    assert (tmp_path / "server.log.1").stat().st_size <= 300 + 200  # the first line
    assert len(others) < 20
    if form == "json":
        assert json.loads(first)["message"].startswith("the lines before this one are in server.log.1")
    else:
        assert "  the lines before this one are in server.log.1" in first


def test_starting_twice_says_everything_once(capsys):
    log.start()
    log.start()
    log.event("round 1")
    assert capsys.readouterr().err.count("round 1") == 1


def test_events_do_not_climb_to_handlers_of_others(capsys):
    log.start()
    others = logging.StreamHandler()
    logging.getLogger().addHandler(others)
    try:
        log.event("round 1")
    finally:
        logging.getLogger().removeHandler(others)
    assert capsys.readouterr().err.count("round 1") == 1

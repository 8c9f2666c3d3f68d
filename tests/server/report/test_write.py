"""A line per round that reads the same after a restart, and a report made from the lines alone."""

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from common.metrics.pooling import pooled
from server.report.markdown import markdown
from server.report.outcome import Outcome
from server.report.plots import SYNTHETIC
from server.report.write import append_round, write_report
from server.state import SiteRound
from server.storage import history
from tests.places import ROOT

PNG = b"\x89PNG\r\n\x1a\n"


def lines_of(run_dir) -> list[dict]:
    return [json.loads(line) for line in (run_dir / "rounds.jsonl").read_text().splitlines()]


@pytest.fixture
def finished(tmp_path, random_state, study) -> Path:
    """The folder of a study after all its rounds and the closing evaluation."""
    for number in range(1, study.rounds + 2):
        append_round(tmp_path, random_state(number), study)
    return tmp_path


def text_of(run_dir, study, preprocessing=None) -> str:
    """The report's text without its pictures, which take a second each time."""
    return markdown(Outcome(study, history.read_rounds(run_dir), preprocessing, synthetic=False))


def section(report: str, title: str) -> str:
    return re.split(r"^## ", report.split(f"## {title}", maxsplit=1)[1], flags=re.MULTILINE)[0]


def rows_of(text: str) -> list[list[str]]:
    table = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table[2:]]


# --- rounds.jsonl ----------------------------------------------------------------------------


def test_histograms_stay_out_of_the_file(finished):
    assert "histogram" not in (finished / "rounds.jsonl").read_text()


# --- report.md -------------------------------------------------------------------------------


def test_the_report_has_every_site_and_the_pool_of_the_final_model(finished, study, random_state):
    text = text_of(finished, study)
    rows = rows_of(section(text, "The model after round 3"))
    assert [row[0] for row in rows] == [
        "north",
        "south",
        "unseen (only scores)",
        "west",
        "**pooled**",
        "**pooled, training sites**",
    ]
    f = pooled(random_state(4).scores)
    row = rows[4]
    assert row[1] == str(f.num_images)
    assert row[2].startswith(f"{100 * f.accuracy:.1f} (")
    assert row[3] == f"{100 * f.balanced_accuracy:.1f}"
    assert row[10] == f"{100 * f.avg_acc_bacc_pre_rec_f1:.1f}"
    assert row[11] == f"{100 * f.avg_acc_bacc_pre_rec_f1_auroc:.1f}"


def test_both_readings_of_avg_carry_names_that_say_which(finished, study):
    text = text_of(finished, study)
    assert "AVG (ACC, BACC, PRE, REC, F1)" in text
    assert "AVG (the same and AUROC)" in text


def test_the_confusion_matrix_is_that_of_all_sites(finished, study, random_state):
    text = text_of(finished, study)
    total_CC = sum(score.confusion_CC for score in random_state(4).scores.values())
    rows = rows_of(section(text, "Confusion matrix"))
    assert [[int(cell) for cell in row[1:]] for row in rows] == total_CC.tolist()
    assert [row[0] for row in rows] == [f"**{name}**" for name in study.classes]


def test_every_class_has_its_recall_precision_f1_auroc_and_support(finished, study, random_state):
    text = text_of(finished, study)
    f = pooled(random_state(4).scores)
    for place, row in enumerate(rows_of(section(text, "Per class"))):
        shares = (f.recall_C[place], f.precision_C[place], f.f1_C[place], f.auroc_C[place])
        assert row == [study.classes[place], str(f.support_C[place]), *(f"{100 * x:.1f}" for x in shares)]


def test_a_round_stands_beside_the_scores_of_the_model_it_made(finished, study, random_state):
    text = text_of(finished, study)
    rows = rows_of(section(text, "Rounds"))
    assert [row[0] for row in rows] == ["0, before training", "1", "2", "3"]
    before = pooled(random_state(1).scores)
    assert rows[0][1:6] == ["-", "-", "-", f"{before.loss:.3f}", f"{100 * before.accuracy:.1f}"]
    assert rows[1][1:4] == ["3", "70", "1.500"]  # north 10, south 20, west 40; loss 1.5 / 1
    after_first = pooled(random_state(2).scores)
    assert rows[1][4:7] == [
        f"{after_first.loss:.3f}",
        f"{100 * after_first.accuracy:.1f}",
        f"{100 * after_first.balanced_accuracy:.1f}",
    ]


def test_what_a_site_sent_and_received_is_added_up(finished, study):
    rows = rows_of(section(text_of(finished, study), "What it cost"))
    # Four messages of 0.5 MiB down, three of 0.5 up, 2 s training and 1 s scoring in each.
    assert rows[0] == ["north", "2.0", "1.5", "8.0", "4.0"]


def test_a_quiet_study_says_that_nothing_went_wrong(finished, study):
    assert "Nothing: every site answered" in text_of(finished, study)


def test_refusals_failures_and_missing_sites_are_listed(tmp_path, random_state, study):
    rows = (
        SiteRound("north", "refused", "3 of 9 entries of head.bias are not finite"),
        SiteRound("south", "failed", "not enough memory | see\ncase 1a2b"),
        SiteRound("west", "missing", "no answer within 9 s"),
    )
    append_round(tmp_path, replace(random_state(1), sites=rows), study)
    append_round(tmp_path, replace(random_state(4), sites=rows[2:]), study)
    text = section(text_of(tmp_path, study), "What went wrong")
    assert "| 1 | north | refused | 3 of 9 entries of head.bias are not finite |" in text
    assert r"| 1 | south | failed | not enough memory \| see case 1a2b |" in text
    assert "| closing | west | missing | no answer within 9 s |" in text


def test_a_study_that_stopped_early_says_so(tmp_path, random_state, study):
    for number in (1, 2):
        append_round(tmp_path, random_state(number), study)
    text = text_of(tmp_path, study)
    assert "## The model after round 1, of 3 planned" in text
    assert rows_of(section(text, "Rounds"))[2][4:7] == ["-", "-", "-"]


def test_a_study_without_any_round_has_a_report_too(tmp_path, study):
    text = write_report(tmp_path, study).read_text()
    assert "No site scored the model" in text
    assert (tmp_path / "curves.png").read_bytes().startswith(PNG)
    assert not (tmp_path / "confusion.png").exists()


def test_the_model_card_says_what_the_model_is_and_what_it_is_not_for(finished, study):
    text = section(text_of(finished, study, preprocessing={"image_size": 64}), "Model card")
    assert "research only" in text
    assert "`convnext_t`" in text
    assert '{"image_size": 64}' in text
    assert "bkl, mel, nv" in text
    # Most images in a round, and the rounds that contributed.
    assert rows_of(text) == [["north", "10", "3"], ["south", "20", "3"], ["west", "40", "3"]]


def test_real_images_carry_no_banner_and_synthetic_ones_do(finished, study):
    assert SYNTHETIC not in write_report(finished, study).read_text().lower()
    plain = (finished / "curves.png").read_bytes(), (finished / "confusion.png").read_bytes()
    text = write_report(finished, study, synthetic=True).read_text().lower()
    assert text.index(SYNTHETIC) < text.index("##")
    assert SYNTHETIC in section(text, "model card")
    banner = (finished / "curves.png").read_bytes(), (finished / "confusion.png").read_bytes()
    assert plain[0] != banner[0]
    assert plain[1] != banner[1]


def test_the_pictures_that_the_report_shows_are_there(finished, study):
    text = write_report(finished, study).read_text()
    for name in re.findall(r"!\[.*?\]\((.*?)\)", text):
        assert (finished / name).read_bytes().startswith(PNG)
    assert {path.name for path in finished.iterdir()} == {
        "rounds.jsonl",
        "scores.json",
        "report.md",
        "report.html",
        "model-card.md",
        "curves.png",
        "confusion.png",
    }


def test_the_report_is_the_same_when_it_is_written_again(finished, study):
    first = write_report(finished, study).read_bytes(), (finished / "curves.png").read_bytes()
    assert (write_report(finished, study).read_bytes(), (finished / "curves.png").read_bytes()) == first


def test_nothing_is_written_outside_the_folder_of_the_run(finished, study, tmp_path_factory):
    # A process of its own, with an empty home: matplotlib chooses its cache when first imported.
    home = tmp_path_factory.mktemp("home")
    (finished / "study.json").write_text(study.model_dump_json())
    code = (
        "import sys; from pathlib import Path; from common.config import StudyConfig; "
        "from server.report.write import write_report; run = Path(sys.argv[1]); "
        "write_report(run, StudyConfig.model_validate_json((run / 'study.json').read_text()))"
    )
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("XDG_", "MPL", "TMP"))}
    environment |= {"HOME": str(home), "TMPDIR": str(home), "PYTHONDONTWRITEBYTECODE": "1"}
    subprocess.run(
        [sys.executable, "-c", code, str(finished)], cwd=ROOT, env=environment, check=True, timeout=120
    )
    assert list(home.rglob("*")) == []
    assert not [path for path in finished.iterdir() if path.name.startswith(".")]


def test_drawing_leaves_the_environment_as_it_was(finished, study, monkeypatch):
    monkeypatch.setenv("MPLCONFIGDIR", "somewhere")
    write_report(finished, study)
    assert os.environ["MPLCONFIGDIR"] == "somewhere"
    monkeypatch.delenv("MPLCONFIGDIR")
    write_report(finished, study)
    assert "MPLCONFIGDIR" not in os.environ


# --- kinds of models -----------------------------------------------------------------------------


def of_model(study, **model):
    return study.model_validate(study.model_dump() | {"model": {"encoder": "convnext_t"} | model})


def test_a_clip_says_where_its_class_vectors_come_from_and_a_random_one_that_it_is(finished, study):
    card = section(text_of(finished, of_model(study, kind="clip", text={"kind": "random"})), "Model card")
    assert "Class vectors**: RANDOM directions of 512 numbers" in card
    tower = {"kind": "open_clip", "architecture": "RN50", "weights": {"kind": "seed"}}
    report = text_of(finished, of_model(study, kind="clip", text=tower, loss="supervised_contrastive"))
    assert "A CLIP with the image encoder `convnext_t`, trained by its supervised contrastive loss" in report
    assert "`RN50` with RANDOM weights, asked once: " in report
    assert f"{study.classes[0]} “a picture of a {study.classes[0]}”" in report


@pytest.mark.parametrize(
    ("tuning", "said"),
    [
        ({"kind": "linear_probe"}, "trained: the head only"),
        ({"kind": "bitfit"}, "every bias"),
        ({"kind": "lora", "rank": 4}, "products of rank 4 beside linear layers"),
        ({"kind": "adapter", "reduction": 2}, "2 times narrower"),
    ],
)
def test_the_card_says_what_was_trained(finished, study, tuning, said):
    assert said in section(text_of(finished, of_model(study, tuning=tuning)), "Model card")

"""A site that is enrolled and means harm: its counts, its words and its sums against the real server code."""

import io
import json
import logging

import numpy as np
import pytest

from common import log, wire
from common.config import StudyConfig
from common.metrics import count
from common.weights import TensorSpec, digest
from common.wire import codec
from server.aggregation.tally import build_tally
from server.enrolment.cohort import enrol
from server.report.text import escaped
from server.rounds.admission import admit
from server.rounds.sites import InProcessSites
from server.state import Cohort

STUDY = StudyConfig.model_validate(
    {
        "name": "tiny",
        "classes": ["a", "b"],
        "sites": {"train": ["evil", "good1", "good2"], "required": 2},
        "model": {"encoder": "test_vit"},
        "rounds": 2,
        "deadlines": {"repeats": 0},
    }
)
LAYOUT = {"w": TensorSpec(shape=(2,), dtype="float64")}
WEIGHTS = {"w": np.zeros(2)}
FAKE_LINE = "\n12:00:00  good2: REVOKED"
HOSTILE = [
    FAKE_LINE,
    "x\r12:00:00  good2 enrolled: 0 images",
    "\x1b[2J\x1b]0;owned\x07",
    "\x9b2J",
    "\u2028 12:00:00 good2",
    "safe\u202etxt.exe",
    "\u200b\ufeff",
    "half \udcff",
    "x" * 10_000,
]


@pytest.fixture
def server_log(monkeypatch):
    """What server.log would hold."""
    written = io.StringIO()
    handler = logging.StreamHandler(written)
    handler.setFormatter(log.ReadableFormatter())
    log.logger.addHandler(handler)
    monkeypatch.setattr(log.logger, "level", logging.INFO)
    yield written
    log.logger.removeHandler(handler)


def enrolling(**changes):
    """A site's answer to its enrolment as bytes, with fields that no honest program writes."""

    def answer(request: bytes) -> bytes:
        plan = codec.from_bytes(request)
        honest = wire.Enrolment(
            plan_id=plan.plan_id, site=plan.site, layout=LAYOUT, weights_digest=digest(WEIGHTS),
            frozen_digest="b", preprocessing={"mean": (0.5, 0.5, 0.5), "interpolation": "bicubic"},
            train_counts=(100, 100), validation_counts=(1, 1), test_counts=(1, 1), device="cpu",
            weights=WEIGHTS if plan.want_weights else {},
        )  # fmt: skip
        return forged(honest, **changes)

    return answer


def failing(**changes):
    def answer(request: bytes) -> bytes:
        plan = codec.from_bytes(request)
        honest = wire.Failure(plan_id=plan.plan_id, site=plan.site, error="data", case="1", advice="x")
        return forged(honest, **changes)

    return answer


def forged(message, **changes) -> bytes:
    header, arrays = codec.split(codec.to_bytes(message))
    fields = json.loads(header)
    for path, value in changes.items():
        *way, last = path.split("__")
        inner = fields
        for step in way:
            inner = inner[step]
        inner[last] = value
    return codec.join(json.dumps(fields), arrays)


def cohort(**evil) -> Cohort:
    sites = {"good1": enrolling(), "good2": enrolling(train_counts=[150, 100]), "evil": enrolling(**evil)}
    return enrol(STUDY, InProcessSites(sites), None, pause=lambda _: None)


def update(site: str, num_examples: int, x: float):
    score = count(np.eye(2), np.array([0, 1]), 0.0)
    return wire.RoundAnswer(
        plan_id="r", site=site, round=1, scores={"validation": score}, num_examples=num_examples, num_steps=1,
        train_loss=0.5, train_s=0, evaluate_s=0, delta={"w": np.array([x, -x])},
    )  # fmt: skip


@pytest.mark.parametrize("claimed", [[10**9, 10**9], [10**400, 0], [-1, 5], [1.5, 2]])
def test_a_census_beyond_what_a_hospital_can_have_is_refused(claimed, server_log):
    assert sorted(cohort(train_counts=claimed).enrolments) == ["good1", "good2"]
    assert "evil cannot take part" in server_log.getvalue()


def test_a_site_with_a_hundred_million_claimed_images_does_not_decide_the_mean():
    there = cohort(train_counts=[10**8, 10**8])
    tally = build_tally(STUDY.aggregation, side_by_side=True, max_share=STUDY.largest_share)
    # same norm, within every bound: 0.1 from two hospitals, -0.1 from the site with the claim
    for site, examples, x in (("good1", 200, 0.1), ("good2", 250, 0.1), ("evil", 2 * 10**8, -0.1)):
        tally.add(
            admit(
                update(site, examples, x), site=site, plan_id="r", round=1, layout=LAYOUT,
                train_count=there.train_count(site), max_norm=0.2,
            )
        )  # fmt: skip
    # half and half; it was -0.1
    assert tally.result()["w"] == pytest.approx([0.0, 0.0], abs=1e-12)


@pytest.mark.parametrize("text", HOSTILE)
@pytest.mark.parametrize(
    "path",
    ["device", "preprocessing__interpolation", "weights_digest", "frozen_digest", "plan_id", "site"],
)
def test_no_line_of_the_log_is_an_enrolling_sites(path, text, server_log):
    assert "evil" not in cohort(**{path: f"cpu{text}"}).enrolments
    assert_clean(server_log.getvalue())


@pytest.mark.parametrize(
    ("evil", "said"),
    [
        (
            {"layout__w__shape": [3]},
            "its first weights do not fit its own description (w is float64[2], expected",
        ),
        ({"weights_digest": "abc"}, "it built other first weights than good1"),
        ({"frozen_digest": "abc"}, "its frozen weights differ from good1's"),
    ],
)
def test_the_site_that_builds_first_cannot_end_the_study_for_the_others(evil, said, server_log):
    there = cohort(**evil)  # evil is the first by name, and so the builder
    assert sorted(there.enrolments) == ["good1", "good2"]
    assert there.weights["w"].tolist() == [0.0, 0.0]
    assert said in server_log.getvalue() or "its model differs" in server_log.getvalue()


@pytest.mark.parametrize("text", HOSTILE)
@pytest.mark.parametrize("path", ["case", "advice", "reason"])
def test_no_line_of_the_log_is_a_failing_sites(path, text, server_log):
    sites = {"good1": enrolling(), "good2": enrolling(), "evil": failing(**{path: f"x{text}"})}
    enrol(STUDY, InProcessSites(sites), None, pause=lambda _: None)
    assert_clean(server_log.getvalue())


@pytest.mark.parametrize("text", HOSTILE)
def test_a_made_up_field_or_tensor_name_is_not_quoted_as_it_is(text, server_log):
    cohort(**{f"field{text.replace('__', '')}": 1})
    cohort(**{f"layout__{text.replace('__', '')}": {"shape": [2], "dtype": "float64"}})
    assert_clean(server_log.getvalue())


def assert_clean(written: str) -> None:
    lines = written.rstrip("\n").split("\n")
    assert all(line.isprintable() for line in lines)
    assert all("  good2: REVOKED" not in line[:30] for line in lines)
    assert max(map(len, lines)) < 2000


@pytest.mark.parametrize("text", HOSTILE)
def test_the_log_cleans_whatever_reaches_it(text):
    # Formatted here, not logged: half a character in pytest's own capture breaks the report of a parallel run.
    fault = ValueError(f"quoted {text[:50]}")
    records = [
        logging.LogRecord("consilium", logging.INFO, "", 0, f"advice: {text[:50]}", None, None),
        logging.LogRecord("consilium", logging.ERROR, "", 0, "case 7", None, (ValueError, fault, None)),
    ]
    lines = "\n".join(map(log.ReadableFormatter().format, records)).split("\n")
    assert all(line.isprintable() for line in lines)
    events = [line for line in lines if not line.startswith("    ")]
    assert len(events) == 2


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("x <img src=https://evil/x.png> y", "x &lt;img src=https&#58;&#47;&#47;evil/x.png&gt; y"),
        ("[Update now](https://evil/a.sh)", r"\[Update now\](https&#58;&#47;&#47;evil/a.sh)"),
        ("![x](y)", r"\!\[x\](y)"),
        ("a | b", r"a \| b"),
        (r"a \| b", r"a \\\| b"),
        ("`code` **bold** _it_ ~~no~~", r"\`code\` \*\*bold\*\* \_it\_ \~\~no\~\~"),
        ("www.evil.example or me@evil.example", "&#119;&#119;&#119;&#46;evil.example or me&#64;evil.example"),
        ("&lt;script&gt;", "&amp;lt;script&amp;gt;"),
        ("a\nb\x1b[2J\u202ec", r"a b\\x1b\[2J\\u202ec"),
    ],
)
def test_a_cell_of_the_report_shows_text_and_never_markup(text, shown):
    assert escaped(text) == shown

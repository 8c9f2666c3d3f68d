"""Why no sums over patients came, as far as the server can know."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from common.config import StudyConfig
from common.metrics import Figures
from common.metrics.replicates import least_patients
from common.settings import to_yaml
from server.report.comparison_row import Row
from server.report.missing_sums import reasons
from server.storage.history import RoundRecord, Scored, ScoredModel

MakeStudy = Callable[..., StudyConfig]
LEAST = least_patients(3)


def run(folder: Path, study: StudyConfig, images: int, variant: str = "federated") -> Row:
    """A finished run whose only site, north, tested so many images and sent no sums."""
    folder.mkdir(exist_ok=True)
    (folder / "study.yaml").write_bytes(to_yaml(study.model_dump(mode="json")))
    names = [name for name in Figures.__dataclass_fields__ if name != "num_images"]
    figures = Figures(num_images=images, **dict.fromkeys(names, math.nan))
    scored = Scored(figures, (math.nan, math.nan), ((images, 0, 0), (0, 0, 0), (0, 0, 0)))
    model = ScoredModel("test", 1, scored, None, {"north": scored})
    return Row(variant, 0, (RoundRecord(2, 1.0, 1, True, None, (), None, model),), None, folder)


def test_too_few_images_are_too_few_patients(make_study: MakeStudy, tmp_path: Path) -> None:
    rows = [run(tmp_path / name, make_study(), LEAST - 1, name) for name in ("federated", "local-north")]
    assert reasons(rows) == [
        f"north tested {LEAST - 1} images, and sums leave a site from {LEAST} test patients on, with 3 classes "
        "(models: federated and local-north)."
    ]


def test_of_many_images_the_reason_is_the_sites_own(make_study: MakeStudy, tmp_path: Path) -> None:
    (said,) = reasons([run(tmp_path / "run", make_study(), LEAST)])
    assert (
        f"north sent none: its {LEAST} test images are of fewer than {LEAST} patients, or its policy" in said
    )


@pytest.mark.parametrize(
    ("settings", "cause"),
    [
        ({"intervals": False}, "it has `intervals: false`"),
        (
            {
                "secure_aggregation": {},
                "admission": {"max_norm_ratio": None},
                "sites": {"train": ("a", "b", "c")},
            },
            "it has `secure_aggregation`, and no masks are on these sums",
        ),
    ],
)
def test_a_study_that_does_not_ask_says_which_setting_it_is(
    make_study: MakeStudy, tmp_path: Path, settings: dict[str, Any], cause: str
) -> None:
    (said,) = reasons([run(tmp_path / "run", make_study(**settings), 99)])
    assert said == f"The study asks no site for sums over patients: {cause} (models: federated)."


def test_a_run_that_failed_or_was_not_tested_has_no_reason(make_study: MakeStudy, tmp_path: Path) -> None:
    row = run(tmp_path / "run", make_study(), 5)
    assert (
        reasons([Row("a", 0, row.rounds, "it broke off", row.run_dir), Row("b", 0, (), None, tmp_path)]) == []
    )

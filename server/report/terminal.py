"""Tables of scores for the log and the terminal."""

import math
from collections.abc import Collection, Mapping

from common.config import StudyConfig
from common.metrics import Figures, Score
from common.metrics.pooling import POOLED, per_site, pooled
from server.state import RoundState


def table(scores: Mapping[str, Score], evaluate: Collection[str] = ()) -> str:
    """A table for the terminal: a row per site and one pooled; `-` where the counts cannot say.

    Sites named in `evaluate` are marked `*`, and kept out of a second pooled row: an unseen
    domain answers another question than the test images of the sites that train.
    """
    head = ["site", "images", "loss", "accuracy", "balanced", "F1 weighted", "AUROC", "ECE", "AVG of 5"]
    body = [[_mark(site, evaluate), *_figures(f)] for site, f in per_site(scores).items()]
    return aligned(head, body, [[name, *_figures(f)] for name, f in _pools(scores, evaluate).items()])


def round_table(study: StudyConfig, state: RoundState, *, synthetic: bool = False) -> str:
    """What a round did, a row per site: training, the score of the weights it started from, costs."""
    evaluate = study.sites.evaluate
    closing = state.closing
    title = "closing evaluation" if closing else f"round {state.round} of {study.rounds}"
    title += f" of {study.name} took {state.seconds:.1f} s"
    after = state.round - 1 if state.chosen is None else state.chosen.round
    scores, side = (state.test_scores, "test") if closing else (state.scores, "validation")
    if closing and not _has_images(scores):
        scores, side, after = state.scores, "validation", state.round - 1
    title += (
        f"; scores are of the model after round {after} on {side} images"
        if _has_images(scores)
        else "; no site scored"
    )
    title += "; SYNTHETIC images" if synthetic else ""
    if closing and scores:
        silent = [
            f"{_mark(row.site, evaluate)} did not score: {row.outcome.replace('_', ' ')}, {row.reason}"
            for row in state.sites
            if row.site not in scores and row.outcome != "ok"
        ]
        return "\n".join([title, table(scores, evaluate), *silent])
    head = ["site", "outcome", "trained on", "train loss", "images", "loss", "accuracy", "balanced"]
    head += ["seconds", "MiB down", "MiB up"]
    sites = per_site(scores)
    body = []
    for row in state.sites:
        figures = _figures(sites[row.site])[:4] if row.site in sites else ["-"] * 4
        trained = [str(row.num_examples or "-"), _cell(row.train_loss)]
        costs = [f"{row.answered_after_s:.1f}", f"{row.mib_down:.1f}", f"{row.mib_up:.1f}"]
        body.append([_mark(row.site, evaluate), row.outcome, *trained, *figures, *costs])
    pools = _pools(scores, evaluate) if scores else {}
    foot = [[name, "", "", "", *_figures(f)[:4], "", "", ""] for name, f in pools.items()]
    return f"{title}\n{aligned(head, body, foot)}"


def _has_images(scores: Mapping[str, Score]) -> bool:
    return any(score.num_images for score in scores.values())


def _pools(scores: Mapping[str, Score], evaluate: Collection[str]) -> dict[str, Figures]:
    seen = {site: score for site, score in scores.items() if site not in evaluate}
    both = {POOLED if POOLED in scores else "pooled": pooled(scores)}
    return both | ({"pooled without *": pooled(seen)} if 0 < len(seen) < len(scores) else {})


def _figures(f: Figures) -> list[str]:
    shares = (f.accuracy, f.balanced_accuracy, f.f1_weighted, f.auroc_macro, f.ece)
    return [
        str(f.num_images),
        _cell(f.loss),
        *(_cell(share) for share in shares),
        _cell(f.avg_acc_bacc_pre_rec_f1),
    ]


def _mark(site: str, evaluate: Collection[str]) -> str:
    return f"{site} *" if site in evaluate else site


def _cell(value: float | None) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:.3f}"


def aligned(head: list[str], body: list[list[str]], foot: list[list[str]]) -> str:
    """Columns as wide as their widest cell; names to the left, figures to the right."""
    widths = [max(map(len, column)) for column in zip(head, *body, *foot, strict=True)]
    rule = "-" * (sum(widths) + 2 * (len(widths) - 1))

    def line(row: list[str]) -> str:
        first, *rest = (
            cell.rjust(width) if place else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        return "  ".join([first, *rest]).rstrip()

    return "\n".join([line(head), rule, *map(line, body), *([rule] if foot else []), *map(line, foot)])

"""Runs in; the figures of their table out, as text: before and after for one, side by side for several."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from score_openrlhf.config.evaluation import evaluation_keys
from score_openrlhf.report.evaluations import half_widths, half_widths_of_change
from score_openrlhf.report.names import COMPARED
from score_openrlhf.report.run_data import RunData
from score_openrlhf.report.trajectories import read_rows
from score_openrlhf.rollout.metric_table import METRICS

TILES = ("acc_t1", "acc_t2", "i2c", "c2i")
Rows = tuple[list[dict[str, Any]], list[dict[str, Any]]]  # trajectories of the first and of the last evaluation


@dataclass(frozen=True)
class Measure:
    """One metric of one run, as the page writes it; a spread that is not known is empty."""

    before: str
    after: str
    spread: str  # half of the 95 % interval of `after`
    change: str
    spread_of_change: str
    verdict: str  # of the change: better, worse or same
    best: bool  # of all runs, where one way is better


def evaluation_rows(run: RunData) -> Rows:
    """The trajectories behind the run's table; empty lists where there are no two evaluations with such files."""
    if run.figures.files is None:
        return [], []
    first, last = (run.folder / "trajectories" / f"{name}.jsonl" for name in run.figures.files)
    if not (first.is_file() and last.is_file()):
        return [], []
    return list(read_rows(first)), list(read_rows(last))


def measures(runs: Sequence[RunData], all_rows: Sequence[Rows]) -> list[tuple[str, str, list[Measure]]]:
    """The table's rows: metric, meaning and a measure for each run."""
    figures = [run.figures for run in runs]
    spreads = [(half_widths(after), half_widths_of_change(before, after)) for before, after in all_rows]
    shown = [found.after for found in figures] + ([figures[0].before] if len(runs) == 1 else [])
    table = []
    for key in COMPARED:
        if all(metrics.get(key) is None for metrics in shown):
            continue
        best = _best(key, [value for found in figures if (value := found.after.get(key)) is not None])
        row = []
        for found, (of_value, of_change) in zip(figures, spreads, strict=True):
            before, after = found.before.get(key), found.after.get(key)
            change, verdict = change_of(key, before, after, of_change.get(key))
            spread, spread_of_change = (_spread(key, widths.get(key)) for widths in (of_value, of_change))
            texts = _number(key, before), _number(key, after), spread, change, spread_of_change
            row.append(Measure(*texts, verdict, best=best is not None and after == best))
        table.append((key, METRICS[key].meaning, row))
    return table


def incomparable(runs: Sequence[RunData]) -> list[str]:
    """What makes the figures of several runs differ for another reason than training."""
    keys = [key for key in evaluation_keys() if len({str(run.config[key]) for run in runs if key in run.config}) > 1]
    return keys + ["the problems of their figures"] * (len({run.figures.source for run in runs}) > 1)


def change_of(key: str, before: float | None, after: float | None, spread: float | None) -> tuple[str, str]:
    """The change and its verdict: better or worse if it is known to be beyond `spread` and one way is better."""
    if before is None or after is None:
        return "–", "same"
    change, verdict = after - before, "same"
    if spread is not None and abs(change) > spread and METRICS[key].better:
        verdict = "better" if (change < 0) == (METRICS[key].better == "less") else "worse"
    return _number(key, change, "+"), verdict


def _best(key: str, values: Sequence[float]) -> float | None:
    if not METRICS[key].better or len(set(values)) < 2:
        return None
    return min(values) if METRICS[key].better == "less" else max(values)


def _number(key: str, value: float | None, form: str = "") -> str:
    if value is None:
        return "–"
    # z: what rounds to nothing has no sign
    digits = 1 if METRICS[key].unit in ("tokens", "count") else 3
    return format(value, f"{form}z.{digits}f").replace("-", "−")


def _spread(key: str, spread: float | None) -> str:
    return "" if spread is None or math.isnan(spread) else _number(key, spread)

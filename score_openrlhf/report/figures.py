"""Runs in; the table before and after of one, or of several side by side, as HTML, out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import Any

from score_openrlhf.report.evaluations import half_widths, half_widths_of_change
from score_openrlhf.report.markup import colour, table
from score_openrlhf.report.names import LOWER_IS_BETTER, MEANINGS, NOT_FRACTIONS, UNDIRECTED
from score_openrlhf.report.run_data import RunData
from score_openrlhf.report.trajectories import read_rows

TILES = ("acc_t1", "acc_t2", "i2c", "c2i")
# What has to agree before figures of two runs can be compared.
EVALUATION_KEYS = (
    "task.name",
    "data.eval",
    "data.max_eval_problems",
    "eval.temperature",
    "eval.num_samples",
    "eval.seed",
)

Rows = tuple[list[dict[str, Any]], list[dict[str, Any]]]  # trajectories of the first and of the last evaluation


def evaluation_rows(run: RunData) -> Rows:
    """The trajectories behind the run's table; empty lists where there are no two evaluations with such files."""
    if run.figures.files is None:
        return [], []
    first, last = (run.folder / "trajectories" / f"{name}.jsonl" for name in run.figures.files)
    if not (first.is_file() and last.is_file()):
        return [], []
    return list(read_rows(first)), list(read_rows(last))


def before_and_after(run: RunData, rows: Rows) -> str:
    """Four figures at a glance, then the table of all, of one run."""
    found = run.figures
    if not found.after:
        return '<p class="empty">No step is done yet.</p>'
    spreads, spreads_of_change = half_widths(rows[1]), half_widths_of_change(*rows)
    tiles, lines = [], []
    for key, meaning in _shown([found.before, found.after]):
        before, after, spread = found.before.get(key), found.after.get(key), spreads_of_change.get(key)
        change = _change(key, before, after, spread)
        lines.append(
            f"<th scope=row>{_name(key)}</th><td>{_number(key, before)}</td>"
            f"<td>{_number(key, after)}{_plus_minus(key, spreads.get(key))}</td>"
            f'<td>{change}{_plus_minus(key, spread)}</td><td class="text">{escape(meaning)}</td>'
        )
        if key in TILES:
            tiles.append(
                f'<div class="tile"><p>{escape(meaning)}</p><strong>{_number(key, after)}</strong>'
                f"<small>{_number(key, before)} {escape(found.before_label)}, {change}</small></div>"
            )
    caption = found.source
    if rows[0]:
        caption += (
            ". ± is half of a 95 % interval over problems; that of the change is paired by problem, and a change "
            "beyond it is in colour."
        )
    head = ["metric", escape(found.before_label), escape(found.after_label), "change", "meaning"]
    return f'<div class="tiles">{"".join(tiles)}</div>' + table("single", head, lines, caption=escape(caption))


def comparison(runs: Sequence[RunData], all_rows: Sequence[Rows]) -> str:
    """The final figures of several runs side by side; each metric's best is set in bold where one is better."""
    found = [run.figures for run in runs]
    spreads = [half_widths_of_change(*rows) for rows in all_rows]
    lines = []
    for key, meaning in _shown([figures.after for figures in found]):
        values = [figures.after.get(key) for figures in found]
        best = _best(key, [value for value in values if value is not None])
        line = f"<th scope=row>{_name(key)}<small>{escape(meaning)}</small></th>"
        for figures, value, spread in zip(found, values, spreads, strict=True):
            shown = f"<b>{_number(key, value)}</b>" if best is not None and value == best else _number(key, value)
            line += f"<td>{shown}<small>{_change(key, figures.before.get(key), value, spread.get(key))}</small></td>"
        lines.append(line)
    head = ["metric"] + [
        f"{colour(index)}{escape(run.name)}<small>{escape(run.method)}, {escape(figures.after_label)}</small>"
        for index, (run, figures) in enumerate(zip(runs, found, strict=True))
    ]
    caption = " / ".join(sorted({figures.source for figures in found}))
    caption += "; the best in bold; below each its change in the run, in colour if beyond its 95 % interval"
    return _comparability(runs) + table("compare", head, lines, caption=escape(caption))


def _comparability(runs: Sequence[RunData]) -> str:
    different = [key for key in EVALUATION_KEYS if len({str(run.config.get(key)) for run in runs}) > 1]
    if len({run.figures.source for run in runs}) > 1:
        different.append("the problems of their figures")
    if not different:
        return ""
    return f'<p class="note">Compare with care: the runs differ in {escape(", ".join(different))}.</p>'


def _shown(found: Sequence[dict[str, Any]]) -> list[tuple[str, str]]:
    return [(key, meaning) for key, meaning in MEANINGS.items() if any(m.get(key) is not None for m in found)]


def _name(key: str) -> str:
    """A metric's name that may break after its slash."""
    return f"<code>{key.replace('/', '/<wbr>')}</code>"


def _best(key: str, values: Sequence[float]) -> float | None:
    if key in UNDIRECTED or len(set(values)) < 2:
        return None
    return min(values) if key in LOWER_IS_BETTER else max(values)


def _number(key: str, value: float | None, form: str = "") -> str:
    if value is None:
        return "–"
    # z: what rounds to nothing has no sign
    return format(value, f"{form}z.1f" if key in NOT_FRACTIONS else f"{form}z.3f").replace("-", "−")


def _change(key: str, before: float | None, after: float | None, spread: float | None) -> str:
    """The change, coloured as better or worse if it is known to be beyond `spread` and one way is better."""
    if before is None or after is None:
        return '<span class="same">–</span>'
    change = after - before
    verdict = "same"
    if spread is not None and abs(change) > spread and key not in UNDIRECTED:
        verdict = "better" if (change < 0) == (key in LOWER_IS_BETTER) else "worse"
    return f'<span class="{verdict}">{_number(key, change, "+")}</span>'


def _plus_minus(key: str, spread: float | None) -> str:
    if spread is None or math.isnan(spread):
        return ""
    return f"<small>± {_number(key, spread)}</small>"

"""Two evaluations' trajectories in; how sure their differences are and what the hints say, before and after, out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from score_openrlhf.evaluation.statistics import bootstrap, bootstrap_change

MAX_HINTS = 12


@dataclass(frozen=True)
class HintUse:
    """How often one hint was given, as a share of all hints, and what came of it on wrong attempts."""

    text: str
    before: float
    after: float
    num_wrong: int  # wrong attempts that got it, after training
    num_fixed: int  # of those, how many became right


def half_widths(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Half of the 95 % interval of each metric; all samples of a problem are one draw."""
    problems = _problems(rows)
    return {metric: bootstrap(_groups(of, problems)).half_width for metric, of in _by_problem(rows).items()}


def half_widths_of_change(before: Sequence[dict[str, Any]], after: Sequence[dict[str, Any]]) -> dict[str, float]:
    """The same of the change, the same problems drawn from both."""
    old, new, problems = _by_problem(before), _by_problem(after), _problems([*before, *after])
    return {
        metric: bootstrap_change(_groups(old[metric], problems), _groups(new[metric], problems)).half_width
        for metric in old.keys() & new.keys()
    }


def hint_uses(before: Sequence[dict[str, Any]], after: Sequence[dict[str, Any]]) -> list[HintUse]:
    """The hints given most often in either evaluation; empty if hardly any is given twice, as with free text."""
    old, new = _hints(before), _hints(after)
    repeated = sum(count for count in new.values() if count > 1)
    if not new or repeated < new.total() / 2:
        return []
    share_old, share_new = ({h: n / max(uses.total(), 1) for h, n in uses.items()} for uses in (old, new))
    repeated_hints = [hint for hint, count in (old | new).items() if count > 1]
    most = sorted(repeated_hints, key=lambda h: (-max(share_old.get(h, 0), share_new.get(h, 0)), h))[:MAX_HINTS]
    wrong = [row for row in after if row["guidance"] and row["revision"] and row["grade_t1"] != "right"]
    given = Counter(_hint(row) for row in wrong)
    fixed = Counter(_hint(row) for row in wrong if row["grade_t2"] == "right")
    uses = [HintUse(h, share_old.get(h, 0.0), share_new.get(h, 0.0), given[h], fixed[h]) for h in most]
    return sorted(uses, key=lambda use: -use.after)


def _hint(row: dict[str, Any]) -> str:
    return " ".join(row["guidance"]["text"].split())


def _hints(rows: Iterable[dict[str, Any]]) -> Counter[str]:
    return Counter(_hint(row) for row in rows if row["guidance"])


def _problems(rows: Iterable[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(row["problem_id"] for row in rows))


def _groups(values: dict[str, list[float]], problems: Sequence[str]) -> list[list[float]]:
    return [values.get(problem, []) for problem in problems]


def _by_problem(rows: Iterable[dict[str, Any]]) -> dict[str, dict[str, list[float]]]:
    """Metric -> problem -> the values of those of the problem's trajectories that count for the metric."""
    values: dict[str, dict[str, list[float]]] = {}
    for row in rows:
        for metric, value in _values(row).items():
            values.setdefault(metric, {}).setdefault(row["problem_id"], []).append(float(value))
    return values


def _values(row: dict[str, Any]) -> dict[str, float]:
    """What one trajectory counts for in each metric that is a mean (`rollout/metrics.py` defines them)."""
    values: dict[str, float] = {f"guidance/{name}": value for name, value in row["hint_metrics"].items()}
    for part, name in (("attempt", "t1"), ("guidance", "guidance"), ("revision", "t2")):
        if row[part]:
            values[f"truncated_{name}"] = row[part]["truncated"]
    if row["guidance"]:
        values |= {
            "guidance/leak": row["leak"],
            "guidance/leak_unjudged": row.get("leak_unjudged", False),  # not in older files
            "guidance/length": len(row["guidance"]["token_ids"]),
        }
    # what failed is wrong
    right1, right2 = row["grade_t1"] == "right", row["grade_t2"] == "right" and not row["failure"]
    return values | {
        "rollout/failed": bool(row["failure"]),
        "acc_t1": right1,
        "acc_t2": right2,
        "delta": right2 - right1,
        "i2c": right2 and not right1,
        "c2i": right1 and not right2,
        "break_rate" if right1 else "fix_rate": right1 != right2,
    }

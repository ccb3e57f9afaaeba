"""The files of finished arms in; every figure of the page of results, as one dictionary that goes to JSON, out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.arms import ABLATIONS, ARMS, BASE, METHODS
from score_openrlhf.evaluation.conditions import ALONE, FIXED, OWN, SHUFFLED
from score_openrlhf.report.evaluations import half_widths, half_widths_of_change, hint_uses

MODELS = (BASE, *METHODS)
GAP, RIGHT_COLUMN_GAIN, SHUFFLED_LEAD, STANDARD_ERRORS = 0.10, 0.30, 0.03, 2.0
HALF_WIDTH = 1.96  # of a 95 % interval, in standard errors
TOLD = {
    "guidance/error_information_bits": "bits that the hint tells about the error, above the start",
    "guidance/distinct_2_across": "diversity of the hints (distinct-2 over problems), above the start",
}


def collect(root: Path, seeds: Sequence[int]) -> dict[str, Any]:
    """What the page shows; seeds and arms that are not finished are left out. Raises ValueError if nothing is."""
    found = {seed: {arm: figures for arm in (BASE, *ARMS) if (figures := of_arm(root, seed, arm))} for seed in seeds}
    found = {seed: arms for seed, arms in found.items() if len(arms) > 1}
    if not found:
        raise ValueError(f"{root.absolute()} holds no finished arm of seeds {list(seeds)}; run `make evidence`")
    ablated = next((seed for seed, arms in found.items() if any(arm in arms for arm in ABLATIONS)), None)
    return {
        "seeds": list(found),
        "arms": {str(seed): arms for seed, arms in found.items()},
        "gaps": [gap for seed, arms in found.items() for gap in gaps(root, seed, arms)],
        "claims": [claim for seed, arms in found.items() for claim in claims(root, seed, arms)],
        "hints": hints(root, found),
        "ablated_seed": ablated,
    }


def of_arm(root: Path, seed: int, arm: str) -> dict[str, Any] | None:
    """One arm's evaluation and what its training took; None if it is not finished."""
    folder = root / f"seed_{seed}" / arm
    path = folder / "evaluation" / "evaluation.json"
    if not path.is_file():
        return None
    results = json.loads(path.read_text())
    conditions = results["conditions"]
    metrics = {name: each["value"] for name, each in conditions[results["main_condition"]]["metrics"].items()}
    metrics |= {f"guidance/{name}": value for name, value in results.get("guidance", {}).items() if value is not None}
    figures: dict[str, Any] = {"num_problems": results["num_problems"], "metrics": metrics}
    figures["acc_t2_under"] = {
        name: each["metrics"]["acc" if name == ALONE else "acc_t2"]["value"] for name, each in conditions.items()
    }
    if arm != BASE:
        summary = json.loads((folder / "summary.json").read_text())
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        figures["training"] = {
            "steps": summary["steps"],
            "seconds": summary["wall_seconds"],
            "startup_seconds": summary["seconds_by_phase"]["startup"],
            "solver_tokens": sum(line["solver/sampled_tokens"] or 0 for line in lines),
            "guidance_tokens": sum(line.get("guidance/sampled_tokens") or 0 for line in lines),
            "peak_memory_gib": summary["peak_memory_gib"],
        }
        figures["curves"] = {
            name: [line.get(name) for line in lines] for name in ("acc_t2", "guidance/right_column_rate")
        }
    return figures


def trajectories(root: Path, seed: int, arm: str, condition: str) -> list[dict[str, Any]]:
    """The evaluation's trajectories under one condition, as trajectories.jsonl holds them."""
    path = root / f"seed_{seed}" / arm / "evaluation" / "trajectories.jsonl"
    rows = map(json.loads, path.read_text().splitlines())
    return [row for row in rows if row["condition"] == condition]


def gaps(root: Path, seed: int, arms: dict[str, Any]) -> list[dict[str, Any]]:
    """acc_t2 of rl_guided_score less that of the other methods, paired by problem, with half of its 95 % interval."""
    best = METHODS[-1]
    rows = []
    for other in METHODS[:-1]:
        if best in arms and other in arms:
            theirs = trajectories(root, seed, other, FIXED if other == "score" else OWN)
            width = half_widths_of_change(theirs, trajectories(root, seed, best, OWN))["acc_t2"]
            gap = arms[best]["metrics"]["acc_t2"] - arms[other]["metrics"]["acc_t2"]
            rows.append({"seed": seed, "over": other, "gap": gap, "half_width": width})
    return rows


def claims(root: Path, seed: int, arms: dict[str, Any]) -> list[dict[str, Any]]:
    """What training the guidance model is said to do, each with this seed's figure, its limit and whether it holds."""
    best = METHODS[-1]
    if best not in arms or BASE not in arms:
        return []
    trained, start = arms[best], arms[BASE]
    rows = [
        {
            "claim": f"acc_t2 above {gap['over']}", "seed": seed, "value": gap["gap"], "limit": GAP,
            "holds": gap["gap"] >= GAP,
        }
        for gap in gaps(root, seed, arms)
    ]  # fmt: skip

    def add(claim: str, value: float, limit: float, holds: bool) -> None:
        rows.append({"claim": claim, "seed": seed, "value": value, "limit": limit, "holds": holds})

    key = "guidance/right_column_rate"
    gain = trained["metrics"][key] - start["metrics"][key]
    add("right-column rate above the start", gain, RIGHT_COLUMN_GAIN, gain >= RIGHT_COLUMN_GAIN)
    spoilt = trained["metrics"]["c2i"] - start["metrics"]["c2i"]
    pair = [half_widths(trajectories(root, seed, arm, OWN))["c2i"] for arm in (best, BASE)]
    limit = STANDARD_ERRORS * sum((width / HALF_WIDTH) ** 2 for width in pair) ** 0.5
    add("c2i above the start, at most 2 standard errors", spoilt, limit, spoilt <= limit)
    under = trained["acc_t2_under"]
    lead = under[SHUFFLED] - under[FIXED]
    add("guidance of another problem above the fixed text, at most", lead, SHUFFLED_LEAD, lead <= SHUFFLED_LEAD)
    for metric, claim in TOLD.items():
        more = trained["metrics"][metric] - start["metrics"][metric]
        add(claim, more, 0.0, more > 0)
    return rows


def hints(root: Path, found: dict[int, dict[str, Any]]) -> dict[str, Any]:
    """What the hints of the first seed's rl_guided_score say before and after training."""
    seed = next((seed for seed, arms in found.items() if METHODS[-1] in arms and BASE in arms), None)
    if seed is None:
        return {}
    uses = hint_uses(trajectories(root, seed, BASE, OWN), trajectories(root, seed, METHODS[-1], OWN))
    return {"seed": seed, "uses": [vars(use) for use in uses]}


def spread(found: dict[str, Any], arm: str, metric: str) -> tuple[float, float, float] | None:
    """Mean, least and largest of a metric over the seeds that have the arm; None where none has."""
    values = [
        arms[arm]["metrics"][metric]
        for arms in found["arms"].values()
        if arm in arms and metric in arms[arm]["metrics"]
    ]
    return (fmean(values), min(values), max(values)) if values else None


def mean_curve(curves: Sequence[Sequence[float | None]], window: int) -> list[float]:
    """The mean over curves of one length at each step, over the last `window` steps up to it."""
    steps = range(min(len(curve) for curve in curves))
    points = [[value for curve in curves if (value := curve[step]) is not None] for step in steps]
    return [fmean(v for near in points[max(0, step - window + 1) : step + 1] for v in near) for step in steps]

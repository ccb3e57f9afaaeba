"""Runs in; what each section of the page shows out, as plain values: `assets/page.html` makes HTML of them."""

from __future__ import annotations

import math
from collections.abc import Sequence

from score_openrlhf.console.progress import clock
from score_openrlhf.report.run_data import RunData

OUTCOMES = (("stays right", "rr"), ("wrong to right", "wr"), ("right to wrong", "rw"), ("stays wrong", "ww"))
# Keys that differ between any two runs and say nothing about what was compared.
OWN_KEYS = {"run_name", "output_dir", "checkpoint_path", "project_name"}
MAX_STEPS_NAMED = 5
NUM_COLOURS = 10  # --c0 ... --c9 and p0 ... p9 in assets/report.css

Part = tuple[str, str, float]  # of a bar: name, class, share; the shares of a bar add up to 1


def facts(run: RunData) -> list[str]:
    """Method, state and settings of a run."""
    found = [run.method, _state(run)]
    if run.wall_seconds:
        found.append(f"{clock(run.wall_seconds)} wall time")
    named = (("seed", "seed"), ("model_path", "model"))
    return found + [f"{name} {run.config[key]}" for key, name in named if key in run.config]


def _state(run: RunData) -> str:
    if run.summary:
        return f"finished, {run.summary['steps']} steps"
    if not run.planned_steps:
        return f"{run.last_step} steps"
    return f"unfinished, {run.last_step} of {run.planned_steps} steps"


def notes(run: RunData) -> list[str]:
    """What a reader should know about the run's files; what is not finite is a gap in a curve, so it is named here."""
    steps: dict[str, list[int]] = {}
    for line in run.lines:
        for key, value in line.items():
            if isinstance(value, float) and not math.isfinite(value):
                steps.setdefault(key, []).append(line["step"])
    found = list(run.notes)
    for key, at in steps.items():
        more = f" and {len(at) - MAX_STEPS_NAMED} more" if len(at) > MAX_STEPS_NAMED else ""
        found.append(f"{key} is not finite at step {', '.join(map(str, at[:MAX_STEPS_NAMED]))}{more}")
    return found


def outcomes(runs: Sequence[RunData]) -> list[tuple[int, str, list[Part]]]:
    """Bars of what becomes of an answer between attempt and revision: index of the run, before or after, parts."""
    bars = []
    for index, run in enumerate(runs):
        found = run.figures
        for when, metrics in ((found.before_label, found.before), (found.after_label, found.after)):
            if {"acc_t1", "i2c", "c2i"} <= metrics.keys():
                kept, fixed, broken = metrics["acc_t1"] - metrics["c2i"], metrics["i2c"], metrics["c2i"]
                shares = (kept, fixed, broken, 1 - kept - fixed - broken)
                parts = [(*outcome, share) for outcome, share in zip(OUTCOMES, shares, strict=True)]
                bars.append((index, when, parts))
    return bars


def phases(runs: Sequence[RunData]) -> dict[str, str]:
    """The phases of all runs, and the class that colours each."""
    names = dict.fromkeys(phase for run in runs for phase in run.seconds_by_phase)
    return {name: f"p{index % NUM_COLOURS}" for index, name in enumerate(names)}


def settings(runs: Sequence[RunData]) -> dict[str, list[str]]:
    """The settings in which the runs differ, and each run's value."""
    keys = sorted({key for run in runs for key in run.config} - OWN_KEYS)
    values = {key: [str(run.config[key]) if key in run.config else "–" for run in runs] for key in keys}
    return {key: found for key, found in values.items() if len(set(found)) > 1}

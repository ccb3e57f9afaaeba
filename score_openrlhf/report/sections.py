"""Runs in; the parts of the page that need no script, as HTML, out. Every text of a run passes through `escape`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from score_openrlhf.report.evaluations import hint_uses
from score_openrlhf.report.figures import Rows
from score_openrlhf.report.markup import NUM_COLOURS, bar, colour, table
from score_openrlhf.report.progress import clock
from score_openrlhf.report.run_data import RunData

OUTCOMES = (("stays right", "rr"), ("wrong to right", "wr"), ("right to wrong", "rw"), ("stays wrong", "ww"))
# Keys that differ between any two runs and say nothing about what was compared.
OWN_KEYS = {"run_name", "output_dir", "checkpoint_path", "project_name"}
MAX_STEPS_NAMED = 5


def header(runs: Sequence[RunData]) -> str:
    """Name, method and state of each run, and what a reader should know about its files."""
    cards = []
    for index, run in enumerate(runs):
        facts = [run.method, _state(run)]
        if run.wall_seconds:
            facts.append(f"{clock(run.wall_seconds)} wall time")
        facts += [
            f"{name} {run.config[key]}"
            for key, name in (("seed", "seed"), ("model_path", "model"))
            if key in run.config
        ]
        notes = "".join(f'<p class="note">{escape(note)}</p>' for note in run.notes + _not_finite(run))
        cards.append(
            f'<div class="run"><h2>{_label(runs, index)}</h2>'
            f'<p class="facts">{" <b>·</b> ".join(escape(fact) for fact in facts)}</p>{notes}</div>'
        )
    return f'<div class="runs">{"".join(cards)}</div>'


def _label(runs: Sequence[RunData], index: int) -> str:
    """The run's name, with its colour where there are several."""
    return (colour(index) if len(runs) > 1 else "") + escape(runs[index].name)


def _state(run: RunData) -> str:
    if run.summary:
        return f"finished, {run.summary['steps']} steps"
    if not run.planned_steps:
        return f"{run.last_step} steps"
    return f"unfinished, {run.last_step} of {run.planned_steps} steps"


def _not_finite(run: RunData) -> list[str]:
    """Values that are no numbers are gaps in a curve, so they are named here."""
    steps: dict[str, list[int]] = {}
    for line in run.lines:
        for key, value in line.items():
            if isinstance(value, float) and not math.isfinite(value):
                steps.setdefault(key, []).append(line["step"])
    notes = []
    for key, at in steps.items():
        more = f" and {len(at) - MAX_STEPS_NAMED} more" if len(at) > MAX_STEPS_NAMED else ""
        notes.append(f"{key} is not finite at step {', '.join(map(str, at[:MAX_STEPS_NAMED]))}{more}")
    return notes


def outcomes(runs: Sequence[RunData]) -> str:
    """What becomes of an answer between attempt and revision, before and after, as bars."""
    bars = []
    for index, run in enumerate(runs):
        found = run.figures
        for when, metrics in ((found.before_label, found.before), (found.after_label, found.after)):
            if {"acc_t1", "i2c", "c2i"} <= metrics.keys():
                kept, fixed, broken = metrics["acc_t1"] - metrics["c2i"], metrics["i2c"], metrics["c2i"]
                shares = (kept, fixed, broken, 1 - kept - fixed - broken)
                label = f"{_label(runs, index)}, {escape(when)}" if len(runs) > 1 else escape(when)
                bars.append(bar(label, [(*outcome, share) for outcome, share in zip(OUTCOMES, shares, strict=True)]))
    if not bars:
        return ""
    legend = "".join(f'<span><i class="swatch {kind}"></i>{name}</span>' for name, kind in OUTCOMES)
    return (
        "<h3>From the attempt to the revision</h3>"
        f'<p class="legend">{legend}</p><div class="bars">{"".join(bars)}</div>'
    )


def hints(runs: Sequence[RunData], all_rows: Sequence[Rows]) -> str:
    """The hints given most, before and after training, with what came of them."""
    parts = []
    for index, (run, rows) in enumerate(zip(runs, all_rows, strict=True)):
        uses = hint_uses(*rows)
        lines = [
            f'<th scope=row class="sample">{escape(use.text) or "<i>empty</i>"}</th>'
            f"{_share(use.before)}{_share(use.after)}"
            f"<td>{f'{use.num_fixed} of {use.num_wrong}' if use.num_wrong else '–'}</td>"
            for use in uses
        ]
        if lines:
            name = f"{_label(runs, index)}: " if len(runs) > 1 else ""
            head = [
                "hint",
                escape(run.figures.before_label),
                escape(run.figures.after_label),
                "wrong attempts it fixed",
            ]
            parts.append(table("hints", head, lines, caption=f"{name}the hints given most, as shares of all hints"))
    if parts:
        return "".join(parts)
    if any(row["guidance"] for _, after in all_rows for row in after):
        return '<p class="empty">Hardly any hint is given twice word for word; read them among the trajectories.</p>'
    return '<p class="empty">No evaluated hints: no guidance model, or no evaluation before and after.</p>'


def _share(share: float) -> str:
    return f'<td class="share"><span style="--share:{share:.4f}"></span>{share:.1%}</td>'


def time(runs: Sequence[RunData]) -> str:
    """Where the wall time went, and the memory."""
    all_phases = [run.seconds_by_phase for run in runs]
    names = list(dict.fromkeys(phase for phases in all_phases for phase in phases))
    if not names:
        return '<p class="empty">No step is done yet.</p>'
    kinds = {name: f"p{index % NUM_COLOURS}" for index, name in enumerate(names)}
    bars = []
    for index, (run, phases) in enumerate(zip(runs, all_phases, strict=True)):
        total = sum(phases.values())
        memory = f"peak memory {run.summary['peak_memory_gib']:.1f} GiB" if run.summary else "so far"
        name = f"{_label(runs, index)}, " if len(runs) > 1 else ""
        bars.append(
            bar(f"{name}{clock(total)}, {memory}", [(escape(p), kinds[p], s / total) for p, s in phases.items()])
        )
    lines = [
        f'<th scope=row><i class="swatch {kind}"></i>{escape(name)}</th>'
        + "".join(_seconds(phases.get(name), sum(phases.values())) for phases in all_phases)
        for name, kind in kinds.items()
    ]
    head = ["phase"] + [_label(runs, index) if len(runs) > 1 else "time" for index in range(len(runs))]
    return f'<div class="bars">{"".join(bars)}</div>{table("time", head, lines)}'


def _seconds(seconds: float | None, total: float) -> str:
    if seconds is None:
        return "<td>–</td>"
    shown = clock(seconds) if seconds >= 60 else f"{seconds:.1f} s"
    return f"<td>{shown}<small>{seconds / total:.0%}</small></td>"


def configuration(runs: Sequence[RunData]) -> str:
    """The settings in which several runs differ, and each run's resolved configuration."""
    parts = []
    if len(runs) > 1:
        keys = sorted({key for run in runs for key in run.config} - OWN_KEYS)
        settings = {key: [str(run.config[key]) if key in run.config else "–" for run in runs] for key in keys}
        lines = [
            f"<th scope=row><code>{escape(key)}</code></th>" + "".join(f"<td>{escape(v)}</td>" for v in values)
            for key, values in settings.items()
            if len(set(values)) > 1
        ]
        head = ["setting", *(_label(runs, index) for index in range(len(runs)))]
        caption = "settings in which the runs differ"
        parts.append(
            table("settings", head, lines, caption=caption) if lines else "<p>All runs have the same settings.</p>"
        )
    for run in runs:
        if run.config_text:
            title, text = f"{escape(run.name)}: config.yaml", escape(run.config_text)
            parts.append(f"<details><summary>{title}</summary><pre>{text}</pre></details>")
    return "".join(parts) or '<p class="empty">The run left no config.yaml.</p>'

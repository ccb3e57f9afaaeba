"""Runs in; one HTML page that holds everything it shows, and asks nothing of any network, out.

Texts of models are hostile: on their way into the HTML the template escapes them, on their way to the script they
travel as base64, the script puts them into text nodes only, and the page's policy lets no other script run. The curves
are SVG that `assets/charts.js` draws, since a chart library inlined in the page would weigh more than all else in it.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from score_openrlhf.console.progress import clock
from score_openrlhf.report import figures, sections
from score_openrlhf.report.evaluations import hint_uses
from score_openrlhf.report.names import AXES, CHARTS, Chart
from score_openrlhf.report.run_data import RunData
from score_openrlhf.report.trajectories import embed

SCRIPTS = ("dom.js", "charts.js", "difference.js", "browser.js", "main.js")  # in this order
SIGNIFICANT_DIGITS = 6


def render(runs: Sequence[RunData], *, max_trajectories: int) -> str:
    """The page as text; at most `max_trajectories` trajectories are in it, shared equally by the runs."""
    rows = [figures.evaluation_rows(run) for run in runs]
    script = "".join(_asset(name) for name in SCRIPTS)
    script = f'"use strict";\n(() => {{\n{script}\n}})();'
    return _template().render(
        runs=runs,
        figures=figures.measures(runs, rows),
        tiles=figures.TILES,
        paired=bool(rows[0][0]),
        sources=sorted({run.figures.source for run in runs}),
        incomparable=figures.incomparable(runs),
        outcome_names=sections.OUTCOMES,
        outcomes=sections.outcomes(runs),
        hints=[(index, uses) for index, pair in enumerate(rows) if (uses := hint_uses(*pair))],
        hints_are_evaluated=any(row["guidance"] for _, after in rows for row in after),
        phases=sections.phases(runs),
        settings=sections.settings(runs),
        curves_data=_pack({"charts": _charts(runs), "runs": [curves(run) for run in runs]}),
        trajectories_data=_pack([embed(run.folder, max_trajectories // len(runs)) for run in runs]),
        style=_asset("report.css"),
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def curves(run: RunData) -> dict[str, Any]:
    """The run's numbers by metric: `steps`, `stages`, `series` a step and the same of its evaluations."""
    keys = sorted({key for line in run.lines for key, value in line.items() if _is_number(value)} - AXES)
    evaluated = sorted({key for e in run.evaluations for key in e.metrics})
    return {
        "name": run.name,
        "steps": [line["step"] for line in run.lines],
        "stages": [line.get("stage") for line in run.lines],
        "series": {key: [line.get(key) for line in run.lines] for key in keys if not key.startswith("eval/")},
        "evaluations": {
            "steps": [e.step for e in run.evaluations],
            "series": {key: [e.metrics.get(key) for e in run.evaluations] for key in evaluated},
        },
    }


def _charts(runs: Sequence[RunData]) -> list[dict[str, Any]]:
    """The named charts, then one for each metric that none of them shows; the page leaves out those without data."""
    named = {metric for chart in CHARTS for metric, _ in chart.series}
    found = {key for run in runs for line in run.lines for key, value in line.items() if _is_number(value)}
    rest = sorted(key for key in found - named - AXES if not key.startswith("eval/"))
    return [asdict(chart) for chart in (*CHARTS, *(Chart("Everything else", key, ((key, key),), "") for key in rest))]


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _pack(value: Any) -> str:
    """JSON, gzip, base64: small, and no text in it can end the element that holds it."""
    text = json.dumps(_finite(value), separators=(",", ":"), allow_nan=False)
    return base64.b64encode(gzip.compress(text.encode(), 6, mtime=0)).decode()


def _finite(value: Any) -> Any:
    """Numbers rounded to what a reader can see, and null for those that JSON has no word for."""
    if isinstance(value, float):
        return float(f"{value:.{SIGNIFICANT_DIGITS}g}") if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value


def _asset(name: str) -> str:
    return (files("score_openrlhf.report") / "assets" / name).read_text(encoding="utf-8")


def _template() -> Template:
    loader = PackageLoader("score_openrlhf.report", "assets")
    page = Environment(
        loader=loader,
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=["jinja2.ext.do"],
    )
    page.filters |= {"facts": sections.facts, "notes": sections.notes, "clock": clock}
    return page.get_template("page.html")

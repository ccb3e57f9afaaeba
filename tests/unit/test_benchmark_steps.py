"""The shares of a step's phases, from a run's files."""

from __future__ import annotations

import json

import pytest

from benchmarks.steps import of_run


def test_shares_of_the_phases_make_the_whole_step(tmp_path):
    steps = [(9.0, 9.0, 20.0), (1.0, 0.5, 2.0), (3.0, 0.5, 4.0)]  # the first warms up
    lines = [
        {"timing/rollout": a, "timing/solver_train": b, "timing/guidance_train": None, "timing/total": total}
        for a, b, total in steps
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "summary.json").write_text(json.dumps({"seconds_by_phase": {"startup": 7.0}}))
    figures = of_run(tmp_path)
    assert figures["total"] == 3.0 and figures["startup"] == 7.0
    assert figures["phases"]["rollout"] == {"median": 2.0, "share": pytest.approx(4 / 6)}
    assert figures["phases"]["other"]["share"] == pytest.approx(1 / 6)
    assert "guidance_train" not in figures["phases"]
    assert sum(each["share"] for each in figures["phases"].values()) == pytest.approx(1)

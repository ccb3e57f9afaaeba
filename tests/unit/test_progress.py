"""What long work shows: a bar that lives on a terminal, plain lines elsewhere."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from score_openrlhf.cli.evaluate import _progress
from score_openrlhf.console.progress import Progress
from score_openrlhf.evaluation.conditions import FIXED, OWN

METRICS = {
    "stage": 2, "acc_t1": 0.5, "acc_t2": 0.75, "i2c": 0.3, "c2i": 0.05, "solver/reward": 1.25, "guidance/reward": 0.75,
    "tokens_per_second": 1234.4, "timing/total": 2.0,
}  # fmt: skip


def steps(*, terminal: bool, metrics=METRICS) -> str:
    file = io.StringIO()
    progress = Progress(60, 0, Console(file=file, force_terminal=terminal, width=80, color_system=None))
    progress.phase("rollout", 0)
    progress.step(1, metrics)
    progress.phase("guidance log-probs", 1)
    if progress.bars:
        progress.bars.refresh()
    progress.close()
    return file.getvalue()


def test_bar_says_step_phase_rewards_speed_and_time_left():
    bar = steps(terminal=True).splitlines()
    last = next(line for line in reversed(bar) if "guidance log-probs" in line)
    assert "step 2/60 guidance log-probs" in last
    assert re.search(r"solver 1\.25 guidance 0\.75 1234 tok/s left \d+:\d\d", last), last  # whole, at 80 characters


def test_a_method_without_guidance_shows_one_reward():
    last = steps(terminal=True, metrics={k: v for k, v in METRICS.items() if k != "guidance/reward"})
    assert "solver 1.25 1234 tok/s" in last and "guidance 0" not in last


def test_elsewhere_each_step_is_one_plain_line():
    (line,) = steps(terminal=False).splitlines()
    assert line.startswith("step 1/60 stage 2  acc 0.500 -> 0.750") and "\x1b" not in line


@pytest.mark.parametrize("terminal", [True, False])
def test_evaluation_counts_every_condition(terminal):
    """Conditions run side by side; a second seed goes on in the same bar."""
    file = io.StringIO()
    with _progress(Console(file=file, force_terminal=terminal, width=100, color_system=None)) as report:
        advance = [report(OWN, 2), report(FIXED, 2), report(OWN, 2)]
        for each in advance[:2]:
            each()
            each()
        advance[2]()
    shown = file.getvalue()
    if terminal:
        assert "3/4" in shown and "2/2" in shown
    else:
        assert [line.split(":")[0] for line in shown.splitlines()] == ["its own guidance", "the fixed text"]

"""What models, rows and errors say is shown and never obeyed: no way to the terminal lets a control character through.

`solve`, which writes while it samples, has its own tests (test_solve_streaming.py); for HTML see test_report.py.
"""

from __future__ import annotations

import io
import json
import re

import pytest
from rich.console import Console

from score_openrlhf.cli import evaluate, main
from score_openrlhf.config.schema import Config
from score_openrlhf.console.progress import Progress
from score_openrlhf.console.summary import show_summary
from score_openrlhf.errors import RunError, status_of
from score_openrlhf.evaluation.results import summarise
from score_openrlhf.rollout.metrics import trajectory_metrics
from score_openrlhf.tasks.base import Problem
from score_openrlhf.tasks.math import MathTask
from tests.support.fakes import trajectory

# clears the screen, sets the title, rings, goes back, turns the direction round; and looks like rich's markup
HOSTILE = "a\x1b[2J\x1b]0;title\x07 b\r\x08\u202ec\x9b31m [red]d[/red] [/nothing]"
OBEYED = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]")


def plain(write) -> str:
    """What `write(console)` writes where there is no colour, so that every escape is the text's own."""
    out = io.StringIO()
    write(Console(file=out, width=3000, color_system=None))
    return out.getvalue()


def hostile_row(**more) -> dict:
    sample = {"text": HOSTILE}
    return {"group": 0, "problem": HOSTILE, "answer": HOSTILE, "attempt": sample, "guidance": sample,
            "revision": sample, "grade_t1": "wrong", "grade_t2": "right", **more}  # fmt: skip


def summary_of_a_run(console, folder):
    for name, grade in (("eval_before", "wrong"), ("eval_after", "right")):
        path = folder / "trajectories" / f"{name}.jsonl"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(hostile_row(grade_t2=grade)) + "\n")
    before = trajectory_metrics([trajectory(0)], failed_is_wrong=True) | {"num_problems": 1}
    summary = {"method": "score", "steps": 3, "before": before, "after": before, "seconds_by_phase": {}}
    summary |= {"wall_seconds": 1.0, "peak_memory_gib": 1.0, "solver_path": None, "guidance_path": None, "best": None}
    show_summary(console, Config(output_dir=str(folder)), summary)


def evaluation(console, folder):
    own = [trajectory(0, r1=1.0, r2=1.0), trajectory(1, failure=f"revise: {HOSTILE}", revision=None)]
    equal = lambda pairs: [False for _ in pairs]  # noqa: E731
    results = summarise(MathTask(), {"own": {0: own}}, "own", greedy=True, equal=equal)
    results |= {"temperature": 0, "samples": 1, "seeds": [0], "seconds": {"sampling": 1, "startup": 1}}
    evaluate.show(console, results, folder)


def note_of_a_run(console, folder):
    Progress(3, console=console).note(HOSTILE)


@pytest.mark.parametrize("write", [summary_of_a_run, evaluation, note_of_a_run])
def test_what_a_run_shows(write, tmp_path):
    text = plain(lambda console: write(console, tmp_path))
    assert "[red]d[/red] [/nothing]" in text and not OBEYED.search(text)


@pytest.mark.parametrize("options", [[], ["--explain"]])
def test_graded_attempts(tmp_path, capsys, monkeypatch, options):
    monkeypatch.setenv("COLUMNS", "400")
    monkeypatch.setenv("NO_COLOR", "1")
    row = {"attempt": f"The answer is 4. {HOSTILE}", "answer": "5", "is_correct": True}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    main(["grade", str(tmp_path / "rows.jsonl"), "--processes", "1", *options])
    text = capsys.readouterr().out
    assert "[red]d[/red] [/nothing]" in text and not OBEYED.search(text)


def test_an_error_that_quotes_them(capsys):
    def fails() -> int:
        error = RunError(f"the row {HOSTILE}")
        error.add_note(HOSTILE)
        raise error

    assert status_of(fails) == 1
    text = capsys.readouterr().err
    assert text.count("[red]d[/red] [/nothing]") == 2 and not OBEYED.search(text)


def test_rows_that_are_left_out(tmp_path, monkeypatch):
    from benchmarks.tiny_models import make_model
    from score_openrlhf.preflight.ask import ask
    from score_openrlhf.tasks import make_task

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    cfg = Config(method="score", model_path=str(make_model(tmp_path / "model")))
    cfg.data.max_len, cfg.task.grader_processes, cfg.data.on_bad_row = 1000, 1, "skip"
    cfg.rollout.attempt_max_tokens = cfg.rollout.revision_max_tokens = 100
    rows = [Problem("rows:1", "1 plus 2?", "3", {}), Problem(f"rows:{HOSTILE}", "2 plus 2?", "$", {})]
    templates = make_task("math").templates
    text = plain(lambda console: ask(cfg, templates, {"data.train": rows}, console))
    assert "1 of 2 rows cannot be used" in text and not OBEYED.search(text)

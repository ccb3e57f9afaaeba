"""`score-openrlhf grade`: what it prints for people and for programs."""

import json
import subprocess
import sys

import pytest

from score_openrlhf.cli import main

ROWS = [
    {"problem": "9 * 2?", "attempt": "A: 18", "answer": "18", "is_correct": True},
    {"problem": "9 * 2?", "attempt": "A: 19", "answer": 18, "is_correct": False},
    {"problem": "9 * 2?", "attempt": "A: 19", "answer": "18", "is_correct": True},  # a published verdict that is wrong
    {"problem": "9 * 2?", "attempt": "", "answer": "18"},
]


@pytest.fixture
def attempts(tmp_path):
    path = tmp_path / "attempts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


def test_json_holds_counts_agreement_and_the_rows_that_differ(attempts, capsys):
    assert main(["grade", str(attempts), "--json", "--processes", "1"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary.pop("wall_seconds") > 0
    (difference,) = summary.pop("disagreements")
    assert difference["line"] == 3
    assert (difference["status"], difference["is_correct"]) == ("wrong", True)
    assert summary == {
        "count": 4, "right": 1, "wrong": 2, "unparsable": 1, "timeout": 0, "error": 0,
        "accuracy": 0.25, "published": 3, "agreement": pytest.approx(2 / 3),
    }  # fmt: skip


def test_the_table_shows_counts_and_differences(attempts, capsys):
    assert main(["grade", str(attempts), "--processes", "1"]) == 0
    shown = capsys.readouterr().out
    assert "agrees with the published verdict on 2 of 3" in shown
    assert "disagreements" in shown


def test_bad_rows_and_options_are_told_with_their_line(attempts, tmp_path, capsys):
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"attempt": 1, "answer": "1", "is_correct": "yes"}\n{"answer": "1"}\n')
    assert main(["grade", str(bad)]) == 2
    error = capsys.readouterr().err
    assert f"{bad}:1: 'is_correct' is 'yes'; it must be true or false" in error
    assert f"{bad}:2: no key 'attempt'; the row has 'answer'" in error
    assert main(["grade", str(attempts), "--processes", "0"]) == 2
    assert "processes is 0; it must be above 0" in capsys.readouterr().err
    assert main(["grade", str(attempts), "--task", "meth"]) == 2
    assert "did you mean 'math'" in capsys.readouterr().err


def test_the_command_imports_no_torch_ray_or_vllm():
    program = (
        "import sys, score_openrlhf.cli.grade, score_openrlhf.tasks.pool;"
        "print({'torch', 'ray', 'vllm', 'sympy', 'datasets'} & set(sys.modules))"
    )
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert shown.stdout == "set()\n"

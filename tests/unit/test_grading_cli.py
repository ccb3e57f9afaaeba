"""`score-openrlhf grade`: what it prints for people and for programs."""

import json
import subprocess
import sys
from concurrent.futures import Future

import pytest

from score_openrlhf.cli import grade, main
from score_openrlhf.tasks.pool import GradingPool

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


@pytest.fixture
def long_file(attempts, tmp_path, monkeypatch):
    """A file that counts as long, and Ctrl-C after three grades."""
    monkeypatch.setattr(grade, "KEPT_FROM_ROWS", 4)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return attempts


def interrupt_after(monkeypatch, num_grades: int | None):
    """Ctrl-C comes while that grade is waited for; returns the texts that are graded."""
    texts: list[str] = []
    real = GradingPool.grade

    def graded(self, text, answer, **others):
        texts.append(text)
        future = real(self, text, answer, **others)
        if num_grades is not None and len(texts) > num_grades:
            future = Future()
            future.set_exception(KeyboardInterrupt())
        return future

    monkeypatch.setattr(GradingPool, "grade", graded)
    return texts


def test_a_long_file_goes_on_where_ctrl_c_stopped_it(long_file, tmp_path, monkeypatch, capsys):
    words = ["grade", str(long_file), "--json", "--processes", "1"]
    with monkeypatch.context() as patched:
        assert main(words) == 0
        whole = json.loads(capsys.readouterr().out)
        assert list((tmp_path / "cache" / "score_openrlhf").iterdir()) == []  # nothing is left of what is finished
        interrupt_after(patched, 3)
        assert main(words) == 130
    out, err = capsys.readouterr()
    assert out == "" and "interrupted: 3 of 4 grades are kept in" in err and "the same command goes on" in err
    assert len(err.strip().splitlines()) == 1
    with monkeypatch.context() as patched:
        texts = interrupt_after(patched, None)
        assert main(words) == 0
    assert texts == [""]  # the last row alone
    out, err = capsys.readouterr()
    assert "going on: 3 of 4 grades" in err
    again = json.loads(out)
    assert {**again, "wall_seconds": 0} == {**whole, "wall_seconds": 0}


def test_grades_of_another_deadline_are_not_taken(long_file, monkeypatch, capsys):
    words = ["grade", str(long_file), "--json", "--processes", "1"]
    with monkeypatch.context() as patched:
        interrupt_after(patched, 3)
        assert main(words) == 130
    with monkeypatch.context() as patched:
        texts = interrupt_after(patched, None)
        assert main([*words, "--timeout-seconds", "4"]) == 0
    assert len(texts) == len(ROWS)


def test_a_file_is_graded_where_nothing_can_be_kept(long_file, tmp_path, monkeypatch, capsys):
    (tmp_path / "cache").write_text("a file where the folder should be")
    assert main(["grade", str(long_file), "--json", "--processes", "1"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["count"] == 4 and "set XDG_CACHE_HOME" in err

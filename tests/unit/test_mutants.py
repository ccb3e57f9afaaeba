"""The table of faults fits the code, and what `make mutants` says of those that are seen or survive."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import mutants
from tests.mutants import Mutant, check, load, run

CODE = "def half(number):\n    return number / 2\n"
TEST = "from score_openrlhf.half import half\n\n\ndef test_half():\n    assert half(4) == 2\n"


def test_every_fault_of_the_table_fits_the_code():
    table = load()
    check(table)
    assert len(table) >= 64
    assert all(mutant.survives is None or len(mutant.survives) > 20 for mutant in table)


def fault(name: str, old: str, new: str, survives: str | None = None) -> Mutant:
    return Mutant("score_openrlhf/half.py", name, old, new, ("unit/test_half.py",), survives)


SEEN, UNSEEN = ("/ 2", "/ 3"), ("number / 2", "2 if number == 4 else number / 2")


@pytest.fixture
def tree(tmp_path) -> Path:
    for file, text in {"score_openrlhf/half.py": CODE, "tests/unit/test_half.py": TEST}.items():
        (tmp_path / file).parent.mkdir(parents=True)
        (tmp_path / file).write_text(text)
    (tmp_path / "score_openrlhf/__init__.py").touch()
    return tmp_path


@pytest.mark.parametrize(
    ("one", "message"),
    [
        (fault("gone", "* 2", "* 3"), "stands there 0 times instead of once: '\\* 2'"),
        (fault("twice", "number", "other"), "stands there 2 times"),
        (fault("same", "/ 2", "/  2"), "the new text is the same code"),
        (fault("broken", "/ 2", "/ "), "invalid syntax"),
        (Mutant("score_openrlhf/half.py", "untested", "/ 2", "/ 3", ("test_gone.py",)), "no tests/test_gone.py"),
        (Mutant("score_openrlhf/gone.py", "nowhere", "/ 2", "/ 3", ("unit/test_half.py",)), "No such file"),
    ],
)  # fmt: skip
def test_a_fault_that_does_not_fit_is_named(tree, one, message):
    with pytest.raises(ValueError, match=message):
        check([one], tree)


def test_a_survivor_that_is_not_in_the_table_is_named(tmp_path):
    (tmp_path / "table.toml").write_text('[survivors]\n"a fault" = "why"\n')
    with pytest.raises(ValueError, match="not in the table: a fault"):
        load(tmp_path / "table.toml")


def test_faults_that_are_seen_or_listed_with_a_reason_are_fine(tree, capsys):
    faults = [fault("thirds", *SEEN), fault("a constant", *UNSEEN, survives="one case is all there is")]
    assert run(faults, root=tree, ahead=()) == 0
    said = capsys.readouterr().out
    assert "killed" in said and "tests/unit/test_half.py::test_half" in said and "one case is all there is" in said
    assert (tree / "score_openrlhf/half.py").read_text() == CODE  # faults are put into a copy


def test_survivors_and_what_proves_nothing_end_with_status_1(tree, capsys):
    faults = [
        fault("a constant", *UNSEEN),
        fault("not to be imported", "def half", "import nothing_of_that_name\ndef half"),
        fault("no process left", "return number", "__import__('os')._exit(0)\n    return number"),
        fault("seen after all", *SEEN, survives="nobody looks"),
    ]
    assert run(faults, root=tree, ahead=()) == 1
    said = capsys.readouterr().out.split("faults, ")[1]
    assert "  survived: half.py: a constant\n    - number / 2\n    + 2 if number == 4" in said
    assert "  pytest ended with status 2: half.py: not to be imported" in said
    assert "  the test process died: half.py: no process left" in said
    assert "  listed as a survivor, but killed: half.py: seen after all" in said


def test_tests_that_fail_without_a_fault_prove_nothing(tree, capsys):
    (tree / "tests/unit/test_half.py").write_text(TEST.replace("== 2", "== 3"))
    assert run([fault("thirds", *SEEN)], root=tree, ahead=()) == 1
    assert "without any fault, tests fail: unit/test_half.py" in capsys.readouterr().out


def test_faults_are_chosen_by_words(monkeypatch):
    chosen: list[Mutant] = []
    monkeypatch.setattr(mutants, "run", lambda picked, **options: chosen.extend(picked) or 0)
    assert mutants.main(["purpose", "trainer/stages.py", "--jobs", "1"]) == 0
    assert {one.file for one in chosen} == {"score_openrlhf/rollout/executor.py", "score_openrlhf/trainer/stages.py"}

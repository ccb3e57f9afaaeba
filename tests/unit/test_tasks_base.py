"""Templates, their filling and checks, the grade, and how a task is found by name."""

import pytest

from score_openrlhf.tasks import make_task
from score_openrlhf.tasks.base import Grade, Task, Templates, check_template, fill
from score_openrlhf.tasks.math import MathTask


def test_fill_replaces_named_fields_once_and_leaves_every_other_brace():
    template = r"Solve {problem}, write \boxed{answer} or {x}."
    assert fill(template, problem=r"\frac{1}{2} {attempt}", attempt="never") == (
        r"Solve \frac{1}{2} {attempt}, write \boxed{answer} or {x}."
    )


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{probelm}", r"guidance: unknown field \{probelm\}; did you mean \{problem\}"),
        ("{problem} only", r"guidance: the field \{attempt\} is missing"),
        ("{problem} {attempt} {answer}", r"unknown field \{answer\}"),
    ],
)
def test_templates_with_wrong_fields_are_refused_by_name(template, message):
    with pytest.raises(ValueError, match=message):
        check_template(template, ("problem", "attempt"), ("problem", "attempt"), name="guidance")


def test_latex_braces_in_a_template_are_no_fields():
    check_template(r"{problem} Write \boxed{answer}, \frac{a}{b}, x^{n} or x_{n}.", ("problem",), ("problem",))


def test_templates_check_themselves():
    good = MathTask.templates
    with pytest.raises(ValueError, match=r"revision: the field \{guidance\} is missing"):
        Templates(good.system, good.attempt, "Try again.", good.static_revision, None, good.guidance)


def test_the_reward_follows_the_status_unless_the_grader_gives_one():
    rewards = [Grade(status).reward for status in ("right", "wrong", "unparsable", "timeout", "error")]
    assert rewards == [1.0, 0.0, 0.0, 0.0, 0.0]
    assert Grade("wrong", score=0.4).reward == 0.4


def test_math_templates_hold_score_s_final_answer_form():
    closing = 'the form "Final Answer: The final answer is $answer$. I hope it is correct."'
    templates = MathTask.templates
    assert all(closing in text for text in (templates.attempt, templates.revision, templates.static_revision))


def test_tasks_are_made_by_name_or_from_a_file(tmp_path):
    (tmp_path / "mine.py").write_text(
        "from score_openrlhf.tasks.math import MathTask\nclass Mine(MathTask):\n    name = 'mine'\n"
    )
    assert make_task("math").name == "math"
    assert make_task("playground").name == "playground"
    own = make_task(f"{tmp_path}/mine.py:Mine")
    assert isinstance(own, Task)
    assert own.name == "mine"


def test_names_that_are_no_task_are_refused_with_what_there_is(tmp_path):
    (tmp_path / "mine.py").write_text("from score_openrlhf.tasks.math import MathTask\nnumber = 3\n")
    with pytest.raises(ValueError, match="unknown task 'maths'; did you mean 'math'"):
        make_task("maths")
    with pytest.raises(ValueError, match=f"{tmp_path}/none.py does not exist"):
        make_task(f"{tmp_path}/none.py:Mine")
    with pytest.raises(ValueError, match="defines no subclass of Task called 'number'; it has: none"):
        make_task(f"{tmp_path}/mine.py:number")

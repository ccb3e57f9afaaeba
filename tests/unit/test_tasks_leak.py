"""When a guidance states the answer, and where in the text it does."""

import pytest

from score_openrlhf.tasks.leak import answer_spans, expressions
from score_openrlhf.tasks.math import MathTask

TASK = MathTask()
PROBLEM, ATTEMPT = "Ducks lay 16 eggs, 3 are eaten, the rest sell at $2.", "16 - 3 = 13, so 13 * 2 = 26. A: 26"


@pytest.mark.parametrize(
    ("guidance", "answer"),
    [
        ("Check the total: it should be 18.", "18"),
        ("You should get $18, not $26.", "18"),
        ("Recall that $x = 9 \\cdot 2$.", "18"),
        (r"The result is \boxed{18}.", "18"),
        (r"It is \frac{36}{2} dollars.", "18"),
        ("It is 1/2 of that.", r"\frac12"),
        ("So the sum is 1,234 in all.", "1234"),
        ("The slowest runner is Evelyn.", r"\text{Evelyn}"),
        ("Then you get p - q.", "p - q"),
    ],
)
def test_guidance_that_states_the_answer_leaks(guidance, answer):
    assert TASK.states_answer(guidance, PROBLEM, ATTEMPT, answer)


@pytest.mark.parametrize(
    ("guidance", "answer"),
    [
        ("Look again at how many eggs are left to sell.", "18"),
        ("Check the 16 in the first line.", "18"),
        ("Look at the term $18x$ and at x18.", "18"),
        ("The 26 in the last line is not right.", "26"),  # the attempt has it already
        ("Start from the 16 eggs.", "16"),  # the problem has it already
        ("", "18"),
        ("Is x what a sum can be?", "x"),  # a letter is in almost any sentence
    ],
)
def test_guidance_that_only_points_does_not(guidance, answer):
    assert not TASK.states_answer(guidance, PROBLEM, ATTEMPT, answer)


def test_spans_cover_the_words_that_state_the_answer():
    text = r"First 3, then $x = 18$, that is \boxed{18} or 36/2 dollars."
    spans = answer_spans(text, "18", lambda expression: TASK.equals(expression, "18"))
    assert sorted({text[start:end] for start, end in spans}) == ["18", "36/2", r"\boxed{18}", "x = 18"]


def test_expressions_of_broken_latex_are_those_that_can_be_read():
    found = [expression for _, _, expression in expressions(r"\frac{1}{ then 5 and $7, \boxed{9} \sqrt[3]{8}")]
    assert found == ["5", "7", "9", r"\sqrt[3]{8}"]


@pytest.mark.parametrize(
    ("guidance", "problem", "leaks"),
    [
        ("The result is 5.", "What is $18 - 13$?", True),  # the problem's expression does not state its value
        ("Work out $18 - 13$ once more.", "What is $18 - 13$?", False),
        ("Work out $10 - 5$ instead.", "What is $18 - 13$?", True),
        ("The result is 5.", "Is 18 - 13 equal to 5?", False),
    ],
)
def test_an_expression_left_to_be_worked_out_states_nothing_in_the_problem(guidance, problem, leaks):
    assert TASK.states_answer(guidance, problem, "I get 6.", "5") == leaks

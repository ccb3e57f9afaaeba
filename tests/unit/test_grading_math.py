"""The answer that a solution states, and whether it is the gold one."""

import time

import pytest

from score_openrlhf.tasks.answers.stated import stated_answer
from score_openrlhf.tasks.latex import brace_fractions, last_boxed
from score_openrlhf.tasks.math import MathTask

TASK = MathTask()
CLOSE = "I hope it is correct."


@pytest.mark.parametrize(
    ("text", "stated"),
    [
        (f"Final Answer: The final answer is $\\frac{{1}}{{2}}$. {CLOSE}", r"$\frac{1}{2}$"),
        (f"The final answer is $3$. {CLOSE}\nThe final answer is $4$. {CLOSE}", "$4$"),
        (f"The final answer is 3? No. Final Answer: The final answer is $4$. {CLOSE}", "$4$"),
        (f"The final answer is $\\boxed{{12}}$. {CLOSE}", "12"),
        (f"So \\boxed{{7}}. Final Answer: The final answer is $8$. {CLOSE}", "$8$"),
        (r"So \boxed{\frac{1}{2}}, as the answer is 3.", r"\frac{1}{2}"),
        (r"\boxed{1} and later \boxed{2}", "2"),
        (r"$\boxed{1}$ and $\boxed{2}$", "1, 2"),
        ("5 + 13 = 18\n#### 1,018", "1,018"),
        ("She makes 13 * 2 = $26\nA: 26", "26"),
        ("The answer is 3.5. She is glad.", "3.5"),
        ("**Answer:** 18 apples", "18 apples"),
        ("**Final Answer**\n\n$x = 5$", "$x = 5$"),
        ("The answer is\n\\[\n\\frac{1}{2}\n\\]\nas was to be shown", "\\[\n\\frac{1}{2}\n\\]"),
        ("5 + 13 = 18", None),
        (f"I get 18. Final Answer: The final answer is . {CLOSE}", ""),
        (f"So \\boxed{{18}}. Final Answer: The final answer is $$. {CLOSE}", ""),
        (r"I get 18, so \boxed{}", ""),
        (r"I get 18, so \boxed{1", ""),
        ("I get 18\n#### ", ""),
        ("I get 18. The answer is .", ""),
    ],
)
def test_stated_answer(text, stated):
    assert stated_answer(text) == stated


@pytest.mark.parametrize(
    ("text", "gold"),
    [
        ("The answer is $\\frac12$.", "1/2"),
        ("The answer is 0.5.", r"\frac12"),
        (r"\boxed{\dfrac{1}2}", r"\frac 12"),
        (r"\boxed{\frac \pi4 + 2}", r"\frac{\pi}{4}+2"),
        (r"\boxed{\frac{12}{5525}}", r"\frac{12}{5,\!525}"),
        (r"so x = \frac12", "0.5"),
        ("A: 1,234", "1234"),
        ("The answer is $18.", "18"),
        ("The answer is 18 dollars per day.", "18"),
        ("The answer is 3/4 cup.", "0.75"),
        (r"\boxed{18 \text{ dollars}}", "18"),
        (r"\boxed{\$32,348}", r"\$32{,}348"),
        ("The answer is 44%.", r"44\%"),
        (r"\boxed{44}", r"44\%"),
        (r"\boxed{x = 5}", "5"),
        (r"\boxed{5, 3}", "3,5"),
        (r"\boxed{6\text{ and }7}", "6,7"),
        ("The answer is [-2,7]", r"x \in [-2,7]"),
        ("The answer is Evelyn.", r"\text{Evelyn}"),
        (r"\boxed{90\text{ square units}}", "90\\text{ square\nunits}"),
        (r"\boxed{2516_{8}}", "2516_8"),
        (r"\boxed{\begin{pmatrix} 1 \\ 2 \end{pmatrix}}", r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}"),
        (r"\boxed{72}", "He sold 48/2 = 24.\nTogether 72.\n#### 72"),
        ("5 + 13 = 18", "18"),
    ],
)
def test_right(text, gold):
    assert TASK.grade(text, gold).status == "right"


@pytest.mark.parametrize(
    ("text", "gold"),
    [
        ("The answer is 1.", r"\frac12"),  # the first number of the gold is not the gold
        (r"\boxed{12}", r"\frac12"),
        ("The answer is 3 or 5.", "5"),  # a choice left open is no answer
        ("The answer is sqrt(5).", "5"),
        ("I had 18, but the answer is 20.", "18"),
        (r"\boxed{(1, 2)}", "(2, 1)"),
        (r"\boxed{2516_7}", "2516_8"),
        (f"Final Answer: The final answer is $answer$. {CLOSE}", "18"),
    ],
)
def test_wrong(text, gold):
    assert TASK.grade(text, gold).status == "wrong"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "I do not know.",
        f"I get 18. Final Answer: The final answer is . {CLOSE}",
        f"So \\boxed{{18}}. Final Answer: The final answer is $$. {CLOSE}",
        r"I get 18, so \boxed{",
        r"\boxed{\frac{}}",
        "\\boxed{\x00\ud800}",
    ],
)
def test_unparsable_is_apart_from_wrong(text):
    assert TASK.grade(text, "18").status == "unparsable"


def test_a_gold_answer_with_nothing_in_it_is_an_error_that_names_it():
    with pytest.raises(ValueError, match="'####' holds nothing to compare with"):
        TASK.grade("The answer is 18.", "####")


def test_fractions_are_braced_as_tex_reads_them():
    assert brace_fractions(r"\frac12 \dfrac1{72} \frac \pi4 \frac{\frac12}3") == (
        r"\frac{1}{2} \frac{1}{72} \frac{\pi}{4} \frac{\frac{1}{2}}{3}"
    )
    assert brace_fractions(r"\frac{1") == r"\frac{1"


def test_boxes_nest_and_may_be_without_braces():
    assert last_boxed(r"\boxed{\frac{1}{\sqrt{2}}} end") == r"\frac{1}{\sqrt{2}}"
    assert last_boxed(r"\boxed{\{1, 2\}}") == r"\{1, 2\}"
    assert last_boxed(r"\boxed 5") == "5"
    assert last_boxed("no box") is None


def test_what_cannot_be_read_here_is_compared_by_math_verify():
    gold = r"\frac{d}{dx} x^2"
    assert TASK.grade(r"\boxed{\frac{d}{dx} (x^2)}", gold).status == "right"
    assert TASK.grade(r"\boxed{\frac{d}{dx} x^3}", gold).status == "wrong"


HUGE = [
    "9^{9^{9^9}}",
    "99999999!",
    r"\binom{1000000000}{500000000}",
    "9" * 15000,
    "(" * 3000 + "5" + ")" * 3000,
    "{" * 2000 + "5" + "}" * 2000,
    "1+" * 700 + "1",
    r"\sqrt{" * 400 + "5" + "}" * 400,
    "5," * 5000 + "5",
    "((((1+1)^9)^9)^9)^9",
    r"\sin(10^{100})",
    "e^{e^{e^{e^{10}}}}",
    "2" + "!" * 20,
    r"\sqrt[1000]{10^{1000}}",
    "1e9999",
    r"\text{a}" * 2000,
]


@pytest.mark.parametrize("text", HUGE, ids=[text[:12] for text in HUGE])
def test_what_is_too_large_to_compute_is_wrong_at_once(text):
    started = time.process_time()
    assert TASK.grade(rf"\boxed{{{text}}}", "5").status in ("wrong", "unparsable")
    assert time.process_time() - started < 1.0


@pytest.mark.parametrize(
    ("text", "correct"),
    [
        ("18 - 13", False),
        ("I think 18 - 13", False),
        ("18 - 13 = undecided, a special way", False),
        ("So we get 18 - 13 = 5", True),
        ("It is 5 apples", True),
        ("5 or 6", False),
        ("5 6 7 8", False),
        (r"\boxed{5} \boxed{6}", False),
        (r"\boxed{6}, \boxed{5}", False),
        (r"\boxed{6}. No: \boxed{5}", True),
        (r"\boxed{\text{either } 5 \text{ or } 6}", False),
        (r"\boxed{18-13=6}", False),
        (r"\boxed{\phantom{6}5}", True),
        (r"\boxed{\textcolor{white}{6}5}", False),
        ("The answer is not 5.", False),
        ("The answer is either 5 or 6.", False),
        ("The answer is $5 or $6.", False),
        ("The answer is the number you get from 18 - 13.", False),
        ("The answer is 5 because 18 - 13 = 5.", True),
        ("The answer is 5, I guess 6.", False),
        ("A: 6 A: 5", False),
    ],
)
def test_whole_texts_that_try_to_be_paid(text, correct):
    assert TASK.grade(text, "5", problem="What is 18 - 13?").correct == correct


def test_notes_say_what_a_right_answer_leans_on():
    def notes(text, gold, problem="x"):
        return TASK.grade(text, gold, problem=problem).notes

    assert notes(r"\boxed{5}", "5") == ()
    assert notes(r"\boxed{18 - 13 = 5}", "5", "What is 18 - 13?") == ("repeats",)
    assert notes(r"\boxed{6}. No: \boxed{5}", "5") == ("several",)
    assert notes(r"\boxed{50\text{ mm}}", "5 cm", "How many mm?") == ("unit",)
    assert notes(r"\boxed{0.333333}", "1/3") == ("tolerance",)


def test_unevaluated_right_goes_by_value():
    task = MathTask()
    task.unevaluated = "right"
    assert task.grade(r"\boxed{18 - 13}", "5", problem="What is 18 - 13?").correct
    assert not task.grade(r"\boxed{18 - 12}", "5").correct

"""Rows as data sets have them: whose columns they are, what of a row is the problem, what the gold answer."""

import json

import pytest

from score_openrlhf.tasks.columns import RowRules, alternatives
from score_openrlhf.tasks.loading import content_digest, load_problems
from score_openrlhf.tasks.math import MathTask

KEYS = {"split": "train", "problem_key": "problem", "answer_key": "answer"}
ASKED = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "1+1?"}]
GSM8K = "She has 1 and gets 1 more.\n1+1=<<1+1=2>>2\n#### 2"


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.mark.parametrize(
    ("row", "name", "problem", "answer"),
    [
        (
            {"data_source": "x", "prompt": ASKED, "reward_model": {"style": "rule", "ground_truth": "2"}},
            "verl",
            "1+1?",
            "2",
        ),
        ({"question": "1+1?", "answer": GSM8K}, "gsm8k", "1+1?", "2"),
        ({"problem": "1+1?", "solution": r"It is $\boxed{2}$.", "level": "Level 1"}, "math", "1+1?", "2"),
        ({"input": "1+1?", "label": 2}, "openrlhf", "1+1?", "2"),
        ({"context_messages": ASKED, "label": "2"}, "openrlhf", "1+1?", "2"),
        ({"prompt": ASKED, "solution": r"\boxed{2}"}, "trl", "1+1?", "2"),
        (
            {"prompt": [{"role": "user", "content": [{"type": "text", "text": "1+1?"}]}], "answer": "2"},
            "trl",
            "1+1?",
            "2",
        ),
        ({"problem": "1+1?", "answer": GSM8K}, None, "1+1?", "2"),
    ],
)
def test_the_columns_of_known_data_sets_are_recognised_and_said(tmp_path, row, name, problem, answer):
    problems = load_problems(write(tmp_path / "a.jsonl", row), **KEYS)
    assert [(one.text, one.answer) for one in problems] == [(problem, answer)]
    assert any(f"read as {name} rows" in line for line in problems.said) == (name is not None)


@pytest.mark.parametrize(
    ("format", "row"),
    [
        ("trl", {"prompt": ASKED, "solution": "2"}), ("trl", {"prompt": ASKED, "answer": "2"}),
        ("trl", {"prompt": ASKED, "ground_truth": "2"}), ("openrlhf", {"input": "1+1?", "label": "2"}),
        ("openrlhf", {"context_messages": ASKED, "label": "2"}),
    ],
)  # fmt: skip
def test_a_format_by_name_is_any_of_its_forms_before_the_configured_keys(tmp_path, format, row):
    row = row | {"problem": "no"}
    (one,) = load_problems(write(tmp_path / "a.jsonl", row), **KEYS, rules=RowRules(format=format))
    assert (one.text, one.answer) == ("1+1?", "2")


def test_a_format_by_name_says_which_column_its_rows_lack(tmp_path):
    with pytest.raises(ValueError, match="no key 'prompt'; the row has 'problem', 'answer'"):
        load_problems(write(tmp_path / "a.jsonl", {"problem": "1+1?", "answer": "2"}), **KEYS, rules=RowRules("trl"))


def test_a_system_message_of_the_rows_is_said_to_be_left_out(tmp_path):
    rows = [{"problem": ASKED, "answer": "2"}, {"problem": ASKED[1:], "answer": "2"}, {"problem": "1?", "answer": "1"}]
    problems = load_problems(write(tmp_path / "a.jsonl", *rows), **KEYS)
    (line,) = problems.said
    assert (
        "1 rows have a system message, which is not used (the first: 'Be brief.')" in line
        and "templates.system" in line
    )


def test_configured_keys_come_first_and_may_be_dotted(tmp_path):
    row = {"prompt": "no", "solution": "no", "a": {"q": "1+1?", "gold": [2]}, "b.c": "literal"}
    keys = KEYS | {"problem_key": "a.q", "answer_key": "a.gold"}
    (problem,) = load_problems(write(tmp_path / "a.jsonl", row), **keys)
    assert (problem.text, problem.answer) == ("1+1?", "2")
    assert load_problems(write(tmp_path / "b.jsonl", row), **keys | {"problem_key": "b.c"})[0].text == "literal"
    with pytest.raises(ValueError, match="no key 'problem'"):
        load_problems(write(tmp_path / "c.jsonl", row), **KEYS, rules=RowRules(format="columns"))


def test_a_list_of_answers_means_any_or_all_of_them(tmp_path):
    file = write(tmp_path / "a.jsonl", {"problem": "Roots?", "answer": ["1/2", "-3"]})
    problems = load_problems(file, **KEYS)
    assert alternatives(problems[0].answer) == ["1/2", "-3"] and "any of which is right" in problems.said[0]
    task = MathTask()
    assert (
        task.grade(r"\boxed{0.5}", problems[0].answer).correct
        and task.grade(r"\boxed{-3}", problems[0].answer).correct
    )
    assert not task.grade(r"\boxed{3}", problems[0].answer).correct
    assert task.states_answer("It is 0.5.", "Roots?", "I get 4.", problems[0].answer)
    both = load_problems(file, **KEYS, rules=RowRules(list_answers="all"))[0].answer
    assert task.grade(r"\boxed{-3, \frac12}", both).correct and not task.grade(r"\boxed{-3}", both).correct


def test_numbers_keep_their_value(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"problem": "x", "answer": 1e-07}\n{"problem": "x", "answer": 1e22}\n')
    small, large = load_problems(str(tmp_path / "a.jsonl"), **KEYS)
    assert MathTask().grade(r"\boxed{0.0000001}", small.answer).correct
    assert MathTask().grade(r"\boxed{10^{22}}", large.answer).correct


BAD = [
    ([{"role": "user", "content": "1?"}, {"role": "assistant", "content": "2"}], "messages of user, assistant"),
    ([{"role": "user", "content": [{"type": "image", "url": "x"}]}], "parts of type 'image'"),
    (["1?"], "a list of messages with role and content"),
    ([], "a list of messages with role and content"),
]


@pytest.mark.parametrize(("prompt", "message"), BAD)
def test_messages_that_are_no_one_problem_are_named(tmp_path, prompt, message):
    with pytest.raises(ValueError, match=message):
        load_problems(write(tmp_path / "a.jsonl", {"problem": prompt, "answer": "2"}), **KEYS)


def test_bad_rows_are_left_out_by_choice_and_counted_with_file_and_line(tmp_path):
    rows = [{"problem": "1?", "answer": "1"}, {"problem": "1?"}, {"problem": "", "answer": "1"}]
    file = write(tmp_path / "a.jsonl", *rows)
    problems = load_problems(file, **KEYS, rules=RowRules(on_bad_row="skip"))
    assert len(problems) == 1
    assert (
        "2 rows left out (data.on_bad_row=skip)" in problems.said[0]
        and f"{file}:2: no key 'answer'" in problems.said[0]
    )
    with pytest.raises(ValueError, match="2 bad rows"):
        load_problems(file, **KEYS)
    with pytest.raises(ValueError, match="2 bad rows"):  # nothing is left
        load_problems(write(tmp_path / "b.jsonl", *rows[1:]), **KEYS, rules=RowRules(on_bad_row="skip"))


def test_the_digest_is_of_texts_and_answers_in_order(tmp_path):
    one, two = {"problem": "1?", "answer": "1"}, {"problem": "2?", "answer": "2"}

    def digest(name, *rows):
        return content_digest(load_problems(write(tmp_path / name, *rows), **KEYS))

    assert digest("a.jsonl", one, two) == digest("b.jsonl", one | {"level": 3}, two)
    assert len({digest("a.jsonl", one, two), digest("c.jsonl", two, one), digest("d.jsonl", one)}) == 3


@pytest.mark.parametrize(
    "gold", ["proof", r"\text{Proof.}", "notfound", "N/A", "$", "####", ".", r"\boxed{}", "see solution"]
)
def test_golds_that_stand_for_a_missing_answer_are_faults(gold):
    assert MathTask().gold_fault(gold, "Show it.")


@pytest.mark.parametrize(
    "gold", ["18", r"\frac12", r"\text{east}", "C", "(1,2)", "no solution", "x=5", 'any of ["1", "2"]']
)
def test_golds_that_can_be_compared_are_none(gold):
    assert MathTask().gold_fault(gold, "x") is None

"""What is right and what is wrong, kind by kind, in rows written by hand: `grading_rows.jsonl` beside this file.

`score-openrlhf grade tests/unit/grading_rows.jsonl --explain` prints each with the reason.
"""

import json
from pathlib import Path

import pytest

from score_openrlhf.tasks.math import MathTask

TASK = MathTask()
ROWS = [json.loads(line) for line in Path(__file__).with_name("grading_rows.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    "row", [pytest.param(row, id=f"{row['kind']}-{number}") for number, row in enumerate(ROWS, 1)]
)
def test_the_verdict_is_that_of_the_table(row):
    grade = TASK.grade(row["attempt"], row["answer"], problem=row["problem"])
    assert grade.correct == row["is_correct"], (row, grade)
    assert grade.status in ("right", "wrong", "unparsable")

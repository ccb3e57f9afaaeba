"""A row of a dataset and a model's text in; a problem, the prompts it is asked with, and a grade out.

A `Task` says what a problem is: how it is loaded, how the solver and the guidance model are asked, and when an answer
is right. This module imports neither torch nor ray, so that grading processes start fast.
"""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import re
from abc import ABC, abstractmethod
from collections.abc import Collection
from typing import Any, Literal

from score_openrlhf.errors import UserError
from score_openrlhf.tasks import leak
from score_openrlhf.tasks.columns import RowRules

GradeStatus = Literal["right", "wrong", "unparsable", "timeout", "error"]
GRADE_STATUSES: tuple[GradeStatus, ...] = ("right", "wrong", "unparsable", "timeout", "error")

# repeats: it also writes down the problem's own expression; several: more than one answer stands in the text;
# unit: right by a conversion; tolerance: right as a rounded decimal
GRADE_NOTES = ("repeats", "several", "unit", "tolerance")

NO_ERROR = "none"  # what `Task.error_of` says of a right attempt

FIELD = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]*)\}")
# What stands before a brace that is LaTeX's and no field: \text{x}, \frac{a}{b}, x^{n}, x_{n}, \sqrt[3]{n}.
LATEX_ARGUMENT_BEFORE = re.compile(r"(\\[A-Za-z]+|[}\]^_])$")


@dataclasses.dataclass(frozen=True)
class Problem:
    """One problem with its gold answer."""

    id: str  # stable between runs: the row's own id, or "train.jsonl:17"
    text: str
    answer: str
    extra: dict[str, Any] = dataclasses.field(default_factory=dict)  # the row's other columns


@dataclasses.dataclass(frozen=True)
class Grade:
    """The verdict on one answer; `detail` holds the cause of an error or what was compared."""

    status: GradeStatus
    detail: str = ""
    score: float | None = None  # a reward in [0, 1] where the grader gives one; None: follows from the status
    notes: tuple[str, ...] = ()  # what a right answer owes its verdict to, of GRADE_NOTES: what a reward hack leans on

    @property
    def failed(self) -> bool:
        """Whether the grader failed: the answer is neither right nor wrong, and its reward is not known."""
        return self.status in ("timeout", "error")

    @property
    def correct(self) -> bool:
        return self.status == "right"

    @property
    def reward(self) -> float:
        """`r1` or `r2`: the grader's own score, else 1.0 if right and 0.0 for every other status."""
        return float(self.correct) if self.score is None else self.score


@dataclasses.dataclass(frozen=True)
class Templates:
    """The texts both models are asked with; checked when made, so a misspelled field fails before anything runs."""

    system: str | None  # the solver's system message
    attempt: str  # turn 1, with {problem}
    revision: str  # turn 2 with the guidance model's hint, with {guidance}
    static_revision: str  # turn 2 without a guidance model, the same for every problem
    guidance_system: str | None  # the guidance model's system message
    guidance: str  # what the guidance model is asked, with {problem} and {attempt}

    def __post_init__(self) -> None:
        for name, fields in TEMPLATE_FIELDS.items():
            template = getattr(self, name)
            if template is not None:
                check_template(template, fields, fields, name=name)


TEMPLATE_FIELDS: dict[str, tuple[str, ...]] = {
    "system": (),
    "attempt": ("problem",),
    "revision": ("guidance",),
    "static_revision": (),
    "guidance_system": (),
    "guidance": ("problem", "attempt"),
}


class Task(ABC):
    """What a problem is; subclass it and name it `path/to/file.py:Class` in the configuration to bring your own."""

    name: str
    templates: Templates
    rows: RowRules = RowRules()  # `data.format`, `data.on_bad_row`, `data.list_answers`
    unevaluated: str = "wrong"  # `task.unevaluated`: whether 18 - 13 is an answer to what is 5

    def load(
        self, source: str, *, split: str, problem_key: str, answer_key: str, limit: int | None = None
    ) -> list[Problem]:
        """The problems of `source` (.jsonl, .json, .parquet or a hub name), at most `limit`; UserError if bad."""
        from score_openrlhf.tasks.loading import load_problems  # not at the top: loading needs this module's Problem

        return load_problems(
            source,
            split=split,
            problem_key=problem_key,
            answer_key=answer_key,
            limit=limit,
            rules=self.rows,
        )

    @abstractmethod
    def grade(self, text: str, answer: str) -> Grade:
        """The verdict on a model's `text` against the gold `answer`; runs in a grading process, under its deadline.

        A task may take the problem's text too, as a third argument called `problem`.
        """

    def grade_for(self, problem: str, text: str, answer: str) -> Grade:
        """`grade`, with the problem's text if this task's `grade` takes it."""
        if "problem" in inspect.signature(self.grade).parameters:
            return self.grade(text, answer, problem=problem)  # type: ignore[call-arg]
        return self.grade(text, answer)

    def equals(self, expression: str, answer: str) -> bool:
        """Whether one expression by itself, `3/4` say, is the gold `answer`; by default whether it grades right."""
        return self.grade(expression, answer).correct

    def states(self, expression: str, answer: str) -> bool:
        """Whether one expression of the problem or attempt states the answer: as `equals`, worked out."""
        return self.equals(expression, answer)

    def gold_fault(self, answer: str, problem: str = "") -> str | None:
        """Why nothing can be graded against this gold answer, such as "'proof' stands for ..."; None if it can."""
        return None

    def states_answer(self, guidance: str, problem: str, attempt: str, answer: str) -> bool:
        """Whether the guidance leaks: an expression in it equals gold `answer`, and none in problem or attempt does.

        Runs in a grading process.
        """
        return leak.states_answer(
            guidance,
            problem,
            attempt,
            answer,
            lambda text: self.equals(text, answer),
            lambda text: self.states(text, answer),
        )

    def stated_answer(self, text: str) -> str:
        """What `text` gives as its answer, to tell whether two texts answer alike; cheap; here all of the text."""
        return " ".join(text.split())

    def error_of(self, problem: Problem, attempt: str) -> str | None:
        """The error of an attempt as a name (NO_ERROR if it is right); None where the task does not know it."""
        return None

    def approves(self, guidance: str) -> bool | None:
        """Whether a hint says that the attempt is right; None where the task cannot tell."""
        return None

    def describe_guidance(self, problem: Problem, attempt: str, guidance: str) -> dict[str, float]:
        """Metrics of one guidance where the task knows the error, e.g. `{"hint_accuracy": 1.0}`; cheap, in process."""
        return {}


def fill(template: str, **fields: str) -> str:
    """The template with each `{name}` of `fields` replaced, once; every other brace stays, also those in values."""
    return FIELD.sub(lambda match: fields.get(match.group(1), match.group(0)), template)


def check_template(
    template: str, required_fields: Collection[str], allowed_fields: Collection[str], *, name: str = "template"
) -> None:
    """Raises UserError if `template` lacks a required field or has an unknown one; names it and the nearest.

    `{name}` straight after a LaTeX command or argument, as in `\\boxed{answer}`, is text unless it is allowed.
    """
    found = set()
    for match in FIELD.finditer(template):
        field = match.group(1)
        if field in allowed_fields:
            found.add(field)
        elif not LATEX_ARGUMENT_BEFORE.search(template, 0, match.start()):
            near = difflib.get_close_matches(field, allowed_fields, n=1, cutoff=0.5)
            known = ", ".join(f"{{{known}}}" for known in allowed_fields) or "no field at all"
            hint = f"did you mean {{{near[0]}}}? " if near else ""
            raise UserError(f"{name}: unknown field {{{field}}}; {hint}it may have {known}")
    missing = [field for field in required_fields if field not in found]
    if missing:
        listed = ", ".join(f"{{{field}}}" for field in missing)
        raise UserError(f"{name}: the field {listed} is missing; the text is put there, so add it to {template!r}")

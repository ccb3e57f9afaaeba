"""A solution in words and LaTeX in; the answer it states, compared with gold, out.

text -> answers/stated.py (the final-answer form) -> answers/reading.py (what kind of answer) -> answers/compare.py
"""

from __future__ import annotations

from score_openrlhf.errors import UserError
from score_openrlhf.tasks.answers.compare import Verdict, judge, too_much
from score_openrlhf.tasks.answers.golds import gold_fault
from score_openrlhf.tasks.answers.reading import readings
from score_openrlhf.tasks.answers.stated import last_expression, several_stated, stated_answer
from score_openrlhf.tasks.base import Grade, Task, Templates
from score_openrlhf.tasks.columns import alternatives

FINAL_FORM = 'write it in the form "Final Answer: The final answer is $answer$. I hope it is correct."'


class MathTask(Task):
    """Mathematics with a final answer, graded by `answers/`; prompts and final-answer form as in SCoRe.

    Kumar et al. 2024, arXiv 2409.12917, appendix: the zero-shot MATH prompt and the self-correction instruction.
    """

    name = "math"
    templates = Templates(
        system=None,
        attempt="You are a math expert. When you respond, respond only with the Solution of the final Problem, "
        f"thinking step by step. At the end of the Solution, when you give your final answer, {FINAL_FORM}"
        "\n\nProblem: {problem}",
        revision="A tutor has read the solution above and gives you this instruction:\n\n{guidance}\n\n"
        "There might be an error in the solution above. Follow the instruction where it helps, correct the error, if "
        "any, and rewrite the solution. Only output the final solution! At the end of the Solution, when you give "
        f"your final answer, {FINAL_FORM}",
        static_revision="There might be an error in the solution above because of lack of understanding of the "
        "question. Please correct the error, if any, and rewrite the solution. Only output the final solution! At the "
        f"end of the Solution, when you give your final answer, {FINAL_FORM}",
        guidance_system=None,
        guidance="You are a math tutor. A student has written a solution to a problem. Find where it first goes "
        "wrong, or what is most worth checking if nothing does.\n\nProblem: {problem}\n\n"
        "The student's solution: {attempt}\n\n"
        "Write one specific instruction to the student, in one or two sentences, about where in the solution to look "
        "and what to check or redo there. Do not solve the problem, do not state the answer or any corrected value, "
        "and do not write a solution.",
    )

    def stated_answer(self, text: str) -> str:
        """The content of the last final-answer form of `text`, or the whole text where it has none."""
        stated = stated_answer(text)
        return " ".join((text if stated is None else stated).split())

    def grade(self, text: str, answer: str, problem: str = "") -> Grade:
        """The verdict on the answer that `text` states; of several gold answers (`any of [...]`) one is enough."""
        grades = []
        for gold in alternatives(answer):
            grades.append(self._grade(text, gold, problem))
            if grades[-1].correct:
                return grades[-1]
        return grades[0]

    def _grade(self, text: str, answer: str, problem: str) -> Grade:
        """The verdict on the answer that `text` states; `unparsable` if it states none that can be read.

        A text that uses none of the final-answer forms is read by its last expression. A form with nothing in it
        (`The final answer is . I hope it is correct.`) states no answer: nothing else is read in its place.
        """
        gold = _gold_text(answer)
        if not readings(gold):
            raise UserError(f"gold answer {answer!r} holds nothing to compare with; correct the row or leave it out")
        stated = stated_answer(text)
        form = stated is not None
        if not form:
            stated = last_expression(text)
        excess = too_much(stated or "", gold)
        if excess:
            return Grade("wrong", excess)
        if not stated or not readings(stated):
            return Grade("unparsable", "the final-answer form is empty" if form else "no answer in the text")
        verdict = judge(stated, gold, problem, self.unevaluated)
        if verdict.right:
            notes = verdict.notes | ({"several"} if several_stated(text) else set())
            return Grade("right", verdict.why, notes=tuple(sorted(notes)))
        if all(reading.kind == "other" for reading in readings(stated)):
            return Grade("unparsable", f"{stated[:200]!r}: {verdict.why}")
        return Grade("wrong", f"{stated[:200]!r}: {verdict.why}")

    def equals(self, expression: str, answer: str) -> bool:
        """Whether one expression is worth the gold answer, worked out or not: a hint that gives 9 * 2 tells 18."""
        return any(self._compared(expression, gold, "right").right for gold in alternatives(answer))

    def states(self, expression: str, answer: str) -> bool:
        return any(self._compared(expression, gold, "wrong").right for gold in alternatives(answer))

    def gold_fault(self, answer: str, problem: str = "") -> str | None:
        return next(filter(None, (gold_fault(_gold_text(gold)) for gold in alternatives(answer))), None)

    @staticmethod
    def _compared(expression: str, answer: str, unevaluated: str) -> Verdict:
        gold = _gold_text(answer)
        if excess := too_much(expression, gold):
            return Verdict(False, excess)
        if not readings(expression):
            return Verdict(False, "nothing in it")
        return judge(expression, gold, unevaluated=unevaluated)


def _gold_text(answer: str) -> str:
    """The gold answer itself: data sets store it bare or as a whole solution that ends in a final-answer form."""
    stated = stated_answer(answer)
    return answer if stated is None else stated

"""Problem, attempt and guidance texts in; token ids of prompts out, built through the tokenizer's chat template.

Two promises hold for every model. Turn 2's ids extend turn 1's exactly: the sampled ids stay as they were sampled and
only what stands between the answers is added. And text that comes from a problem or from the other model is encoded so
that nothing in it becomes a special token: a guidance that says `<|im_end|>` does not end the solver's turn.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import Any

from score_openrlhf.rollout.chat import Chat, ChatTemplateError, Dialogue, Prompting
from score_openrlhf.rollout.encoding import encode_template, encode_text, special_ids
from score_openrlhf.tasks.base import Templates, fill

__all__ = ["ChatTemplateError", "GuidancePrompts", "SolverPrompts", "encode_text"]


class _Prompts:
    """What both models' prompts have in common: the first user turn, how an answer ends, where reasoning does."""

    def __init__(self, tokenizer: Any, templates: Templates, chat: Chat, system: str | None):
        self.tokenizer = tokenizer
        self.templates = Prompting.of(templates)
        self._dialogue = Dialogue(tokenizer, chat, system)
        before, after = self._dialogue.first_turn()
        self._before, self._before_space = _without_last_space(before)
        self._before_ids = encode_template(tokenizer, self._before, first=True)
        self._after_ids = encode_template(tokenizer, after)
        self._reasoning = self._dialogue.reasoning
        self._begins_reasoning = self._reasoning is not None and after.rstrip().endswith(self._reasoning[0])

    def _first_turn_ids(self, content: str) -> list[int]:
        text = self._before_space + self._dialogue.system_in_user_turn + content
        return self._before_ids + encode_text(self.tokenizer, text) + self._after_ids

    def split_reasoning(self, token_ids: Sequence[int]) -> tuple[int, str | None]:
        """(number of tokens spent on reasoning, text of the answer after it) of what the model sampled.

        (0, None) where there is no reasoning in it; an answer cut before its reasoning came to an end is empty.
        """
        if self._reasoning is None:
            return 0, None
        opening, closing = self._reasoning

        def count(length: int) -> int:
            return self.tokenizer.decode(token_ids[:length], skip_special_tokens=False).count(closing)

        if total := count(len(token_ids)):
            end = bisect_left(range(len(token_ids) + 1), total, key=count)
            return end, self.tokenizer.decode(token_ids[end:], skip_special_tokens=True).lstrip()
        text = self.tokenizer.decode(token_ids, skip_special_tokens=False)
        return (len(token_ids), "") if self._begins_reasoning or opening in text else (0, None)


class SolverPrompts(_Prompts):
    """The solver's contexts: `attempt_ids` for turn 1 and `bridge_ids` for what stands between the two answers."""

    def __init__(self, tokenizer: Any, templates: Templates, chat: Chat | None = None):
        """`chat` is the solver's unless it is given. Raises ChatTemplateError if no turn 2 can follow turn 1."""
        super().__init__(tokenizer, templates, chat or Prompting.of(templates).solver_chat, templates.system)
        pieces = self._dialogue.pieces()
        between, self._between_space = _without_last_space(pieces.between)
        self._between_ids = encode_template(tokenizer, between)
        self._after_second_ids = encode_template(tokenizer, pieces.after_second)
        self._end = _end_of_turn(tokenizer, self._between_ids)
        self.differs = pieces.differs

    @property
    def end_of_turn_id(self) -> int | None:
        """The special token the chat template closes an answer with, if it does: sampling must stop there."""
        return None if self._end is None else self._between_ids[self._end]

    def attempt_ids(self, problem: str) -> list[int]:
        """Ids of turn 1's prompt."""
        return self._first_turn_ids(fill(self.templates.attempt, problem=problem))

    def bridge_ids(self, attempt_ids: list[int], guidance: str | None) -> list[int]:
        """Ids between attempt and revision: the turn's end if it was not sampled, and the turn-2 instruction.

        `attempt_ids` are the sampled ids of turn 1; `guidance` is the hint's text, or None for the static instruction.
        """
        if guidance is None:
            instruction = self.templates.static_revision
        else:
            instruction = fill(self.templates.revision, guidance=guidance)
        between = self._between_ids
        if (
            self._end is not None
            and attempt_ids
            and attempt_ids[-1] in (self.end_of_turn_id, self.tokenizer.eos_token_id)
        ):
            between = between[self._end + 1 :]  # an end was sampled: it is an action and stands there already
        text = encode_text(self.tokenizer, self._between_space + instruction)
        return between + text + self._after_second_ids


class GuidancePrompts(_Prompts):
    """The guidance model's context: `guidance_ids(problem, attempt)`."""

    def __init__(self, tokenizer: Any, templates: Templates):
        """Raises ChatTemplateError if the chat template does not carry the message."""
        chat = Prompting.of(templates).guidance_chat
        super().__init__(tokenizer, templates, chat, templates.guidance_system)
        ids = encode_template(tokenizer, self._dialogue.ends())
        end = _end_of_turn(tokenizer, ids)
        self.end_of_turn_id: int | None = None if end is None else ids[end]

    def guidance_ids(self, problem: str, attempt: str) -> list[int]:
        """Ids of the prompt that shows problem and attempt and asks for a hint."""
        return self._first_turn_ids(fill(self.templates.guidance, problem=problem, attempt=attempt))


def _without_last_space(text: str) -> tuple[str, str]:
    """A piece without the space at its end, and that space: most tokenizers have it in the next word's first token."""
    return (text[:-1], " ") if text.endswith(" ") and not text[:-1].endswith(" ") else (text, "")


def _end_of_turn(tokenizer: Any, between: Sequence[int]) -> int | None:
    """Where the token that ends an answer stands in what follows it: first, or after blanks; None if none does."""
    special = special_ids(tokenizer)
    place = next((n for n, number in enumerate(between) if number in special), None)
    return place if place is not None and not tokenizer.decode(list(between[:place])).strip() else None

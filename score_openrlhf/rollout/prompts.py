"""Problem, attempt and guidance texts in; token ids of prompts out, built through the tokenizer's chat template.

Two promises hold for every model. Turn 2's ids extend turn 1's exactly: the sampled ids stay as they were sampled and
only what stands between the answers is added. And text that comes from a problem or from the other model is encoded so
that nothing in it becomes a special token: a guidance that says `<|im_end|>` does not end the solver's turn.
"""

from __future__ import annotations

from typing import Any

from score_openrlhf.tasks.base import Templates, fill

# Stand for message contents while the chat template is rendered; plain letters, so that no template rewrites them.
MARKERS = ("ZQXJCONTENTAZQXJ", "ZQXJCONTENTBZQXJ", "ZQXJCONTENTCZQXJ")


class ChatTemplateError(ValueError):
    """The tokenizer's chat template cannot carry a second turn that extends the first."""


def encode_text(tokenizer: Any, text: str) -> list[int]:
    """Ids of `text` in which no special token can appear, whatever the text says."""
    return tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]


def encode_template(tokenizer: Any, text: str) -> list[int]:
    """Ids of a piece of the rendered chat template, special tokens included."""
    return tokenizer(text, add_special_tokens=False)["input_ids"] if text else []


def _render(tokenizer: Any, messages: list[dict[str, str]], name: str) -> str:
    if not getattr(tokenizer, "chat_template", None):
        raise ChatTemplateError(
            f"the {name}'s tokenizer ({tokenizer.name_or_path}) has no chat template; "
            "save one with the tokenizer (tokenizer.chat_template = ...; tokenizer.save_pretrained(...))"
        )
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)


def _messages(system: str | None, *contents: str) -> list[dict[str, str]]:
    roles = ("user", "assistant", "user")
    head = [{"role": "system", "content": system}] if system else []
    return head + [{"role": role, "content": content} for role, content in zip(roles, contents)]


class SolverPrompts:
    """The solver's contexts: `attempt_ids` for turn 1 and `bridge_ids` for what stands between the two answers."""

    def __init__(self, tokenizer: Any, templates: Templates):
        """Raises ChatTemplateError, showing both texts, if turn 2's text does not extend turn 1's."""
        self.tokenizer = tokenizer
        self.templates = templates
        problem, attempt, instruction = MARKERS
        turn1 = _render(tokenizer, _messages(templates.system, problem), "solver")
        turn2 = _render(tokenizer, _messages(templates.system, problem, attempt, instruction), "solver")
        if not turn2.startswith(turn1 + attempt) or turn2.count(problem) != 1 or turn2.count(instruction) != 1:
            raise ChatTemplateError(
                "the solver's chat template does not extend turn 1 when turn 2 is added; turn 2 must begin with turn "
                f"1's text followed by the attempt.\nturn 1: {turn1!r}\nturn 2: {turn2!r}\n"
                "Use a chat template that renders earlier turns unchanged (some drop reasoning or add dates)."
            )
        self._before_problem, self._after_problem = turn1.split(problem)
        between, after = turn2[len(turn1) + len(attempt) :].split(instruction)
        self._between_ids = encode_template(tokenizer, between)
        self._after_ids = encode_template(tokenizer, after)

    @property
    def end_of_turn_id(self) -> int | None:
        """The special token the chat template closes an answer with, if it does: sampling must stop there."""
        first = self._between_ids[0] if self._between_ids else None
        return first if first in set(self.tokenizer.all_special_ids) else None

    def attempt_ids(self, problem: str) -> list[int]:
        """Ids of turn 1's prompt."""
        content = fill(self.templates.attempt, problem=problem)
        return (
            encode_template(self.tokenizer, self._before_problem)
            + encode_text(self.tokenizer, content)
            + encode_template(self.tokenizer, self._after_problem)
        )

    def bridge_ids(self, attempt_ids: list[int], guidance: str | None) -> list[int]:
        """Ids between attempt and revision: the turn's end if it was not sampled, and the turn-2 instruction.

        `attempt_ids` are the sampled ids of turn 1; `guidance` is the hint's text, or None for the static instruction.
        """
        if guidance is None:
            instruction = self.templates.static_revision
        else:
            instruction = fill(self.templates.revision, guidance=guidance)
        between = self._between_ids
        if attempt_ids and between and attempt_ids[-1] == between[0]:
            between = between[1:]  # the end token was sampled: it is an action and stands there already
        return between + encode_text(self.tokenizer, instruction) + self._after_ids


class GuidancePrompts:
    """The guidance model's context: `guidance_ids(problem, attempt)`."""

    def __init__(self, tokenizer: Any, templates: Templates):
        self.tokenizer = tokenizer
        self.templates = templates
        content = MARKERS[0]
        rendered = _render(tokenizer, _messages(templates.guidance_system, content), "guidance model")
        if rendered.count(content) != 1:
            raise ChatTemplateError(
                f"the guidance model's chat template does not carry the message once as it is: {rendered!r}"
            )
        before, after = rendered.split(content)
        self._before_ids = encode_template(tokenizer, before)
        self._after_ids = encode_template(tokenizer, after)
        answer = MARKERS[1]
        closed = _render(tokenizer, _messages(templates.guidance_system, content, answer, content), "guidance model")
        end = (
            encode_template(tokenizer, closed.split(answer)[1].split(content)[0]) if closed.count(answer) == 1 else []
        )
        self.end_of_turn_id: int | None = end[0] if end and end[0] in set(tokenizer.all_special_ids) else None

    def guidance_ids(self, problem: str, attempt: str) -> list[int]:
        """Ids of the prompt that shows problem and attempt and asks for a hint."""
        content = fill(self.templates.guidance, problem=problem, attempt=attempt)
        return self._before_ids + encode_text(self.tokenizer, content) + self._after_ids

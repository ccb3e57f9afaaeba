"""A tokenizer's chat template in; the pieces of a two-turn dialogue that stand around its texts, out.

    before | problem | after | ATTEMPT | between | instruction | after_second

Turn 2 follows the attempt as it was sampled. Some templates would render it otherwise (they drop reasoning, prefill
`<think>`, set a space after `[/INST]`, move the system text): of those only the pieces are taken, and what differs is
said (`Pieces.differs`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from jinja2.exceptions import TemplateError

from score_openrlhf.config.methods import GUIDANCE, SOLVER
from score_openrlhf.errors import UserError
from score_openrlhf.tasks.base import Templates

# Stand for message contents while the chat template is rendered; plain letters, so that no template rewrites them.
MARKERS = ("ZQXJCONTENTAZQXJ", "ZQXJCONTENTBZQXJ", "ZQXJCONTENTCZQXJ")
NAMES = dict(zip(MARKERS, ("{problem}", "{attempt}", "{instruction}"), strict=True))
REASON = "ZQXJREASONZQXJ"
# How models open and close what they think, as their chat templates show it.
REASONING = (
    ("<think>", "</think>"),
    ("[THINK]", "[/THINK]"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<|channel|>analysis<|message|>", "<|channel|>final<|message|>"),
)
SPECIAL_NAMES = ("bos_token", "eos_token", "pad_token", "unk_token")
# Arguments of apply_chat_template that are ours to give.
RESERVED = ("conversation", "messages", "chat_template", "tokenize", "add_generation_prompt", "continue_final_message")


class ChatTemplateError(UserError):
    """The tokenizer's chat template cannot carry the dialogue; says which key mends it."""


@dataclass(frozen=True)
class Chat:
    """How one model is talked to: what the configuration's `templates.*` say of its chat template."""

    role: str = "solver"
    prefix: str = "templates."  # of this model's keys, up to the part both models share
    template: str | None = None  # the template's text or a file with it; None: the tokenizer's own
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    system_as: str = "message"  # or "user": the system text stands before the first user text
    history: str = "sampled"  # or "template": refuse a template that would not render the attempt as it was sampled
    reasoning: tuple[str, str] | None = None  # what opens and closes reasoning; None: found in the template

    def key(self, name: str) -> str:
        """The configuration's name of one of this model's keys."""
        return f"{self.prefix}{name}"

    def text(self, tokenizer: Any) -> str:
        """The chat template's text; raises ChatTemplateError where there is none."""
        given = self.template
        if given is not None and "{" not in given:  # a template without an expression would say nothing
            path = Path(given).expanduser()
            if not path.is_file():
                raise ChatTemplateError(f"{self.key('chat_template')}: there is no file {path.absolute()}")
            given = path.read_text(encoding="utf-8")
        found = given or getattr(tokenizer, "chat_template", None)
        if isinstance(found, dict):  # several by name
            found = found.get("default")
        if not found:
            raise ChatTemplateError(
                f"the {self.role}'s tokenizer ({tokenizer.name_or_path}) has no chat template; set "
                f"{self.key('chat_template')} to one (its text, or a .jinja file)"
            )
        return found


GUIDANCE_CHAT = Chat(role="guidance model", prefix="templates.guidance_")


@dataclass(frozen=True)
class Prompting(Templates):
    """The texts both models are asked with, and how each is talked to."""

    solver_chat: Chat = field(default_factory=Chat)
    guidance_chat: Chat = GUIDANCE_CHAT
    strip_reasoning: bool = True  # what one model reasons is not shown to the other

    @property
    def chats(self) -> dict[str, Chat]:
        """How each policy is talked to."""
        return {SOLVER: self.solver_chat, GUIDANCE: self.guidance_chat}

    @classmethod
    def of(cls, templates: Templates) -> Prompting:
        """`templates` with the tokenizers' own chat templates, unless it says more."""
        if isinstance(templates, cls):
            return templates
        return cls(**{item.name: getattr(templates, item.name) for item in fields(Templates)})


@dataclass(frozen=True)
class Pieces:
    """Texts of the template between those of the dialogue."""

    before: str
    after: str  # ends where the answer begins, so with what the template prefills of it
    between: str  # begins with what ends an answer
    after_second: str
    differs: str = ""  # how the template would render turn 2, in a sentence


class Dialogue:
    """Renders dialogues of one model through its chat template."""

    def __init__(self, tokenizer: Any, chat: Chat, system: str | None):
        """Raises ChatTemplateError where there is no template or a keyword of it is one of ours."""
        self.tokenizer = tokenizer
        self.chat = chat
        self.system = system
        self.template = chat.text(tokenizer)
        self.as_parts = False
        if taken := [name for name in chat.kwargs if name in RESERVED]:
            raise ChatTemplateError(f"{chat.key('chat_template_kwargs')}: {', '.join(taken)} cannot be set there")

    @property
    def reasoning(self) -> tuple[str, str] | None:
        """What opens and closes the model's reasoning; None where it shows none."""
        if self.chat.reasoning is not None:
            return self.chat.reasoning
        return next((pair for pair in REASONING if pair[1] in self.template), None)

    @property
    def system_in_user_turn(self) -> str:
        """What stands before the problem in the first user text."""
        return f"{self.system}\n\n" if self.system and self.chat.system_as == "user" else ""

    def first_turn(self) -> tuple[str, str]:
        """What stands before and after the first user text."""
        problem = MARKERS[0]
        rendered = self._render(problem)
        if problem not in rendered and not self.as_parts:
            self.as_parts = True  # templates of models that see images take a list of parts
            rendered = self._render(problem)
        if rendered.count(problem) != 1:
            raise ChatTemplateError(
                f"the {self.chat.role}'s chat template does not carry the message once as it is: "
                f"{_shown(rendered)}; set {self.chat.key('chat_template')} to one that does"
            )
        before, _, after = rendered.partition(problem)
        return before, after

    def pieces(self) -> Pieces:
        """The pieces around a problem, an attempt and an instruction; raises ChatTemplateError if there are none."""
        problem, attempt, instruction = MARKERS
        before, after = self.first_turn()
        turn1, turn2 = before + problem + after, self._render(problem, attempt, instruction)
        extends = turn2.startswith(turn1 + attempt) and turn2.count(problem) == 1 and turn2.count(instruction) == 1
        if extends:
            between, _, after_second = turn2[len(turn1) + len(attempt) :].partition(instruction)
            return Pieces(before, after, between, after_second, self._drops_reasoning(turn1))
        if self.chat.history == "template":
            raise ChatTemplateError(
                f"the {self.chat.role}'s chat template does not extend turn 1 when turn 2 is added: turn 2 must begin "
                f"with turn 1's text followed by the attempt.\nturn 1: {_shown(turn1)}\nturn 2: {_shown(turn2)}\n"
                "rollout.history=sampled builds turn 2 on the attempt as it was sampled"
            )
        shown = turn2
        if self.system and self.system in turn2.partition(attempt)[2]:  # it stands in turn 1 already
            shown = self._render(problem, attempt, instruction, with_system=False)
        rest = shown.partition(attempt)[2]
        if shown.count(attempt) != 1 or rest.count(instruction) != 1 or problem in rest:
            raise ChatTemplateError(
                f"the {self.chat.role}'s chat template does not show how an answer ends and the next user turn "
                f"begins.\nturn 1: {_shown(turn1)}\nturn 2: {_shown(turn2)}\n"
                f"set {self.chat.key('chat_template')} to one that renders all turns in order"
            )
        between, _, after_second = rest.partition(instruction)
        ours = turn1 + attempt + between + instruction + after_second
        return Pieces(before, after, between, after_second, self._difference(ours, turn2))

    def ends(self) -> str:
        """What follows an answer when a user turn follows it, for where an answer ends; empty if it is not shown."""
        try:
            return self.pieces().between
        except ChatTemplateError:
            return ""

    def _drops_reasoning(self, turn1: str) -> str:
        if self.reasoning is None:
            return ""
        opening, closing = self.reasoning
        thought = f"{'' if turn1.rstrip().endswith(opening) else opening}{REASON}{closing}{MARKERS[1]}"
        rendered = self._render(MARKERS[0], thought, MARKERS[2])
        if thought in rendered:
            return ""
        if self.chat.history == "template":
            raise ChatTemplateError(
                f"the {self.chat.role}'s chat template drops the reasoning of earlier turns, so turn 2 does not "
                "extend what was sampled; rollout.history=sampled keeps it"
            )
        return (
            f"the {self.chat.role}'s chat template drops reasoning from earlier turns; turn 2 follows the attempt as "
            "it was sampled, its reasoning included"
        )

    def _difference(self, ours: str, theirs: str) -> str:
        start = _num_same(ours, theirs)
        end = _num_same(ours[start:][::-1], theirs[start:][::-1])
        mine, other = ours[start : len(ours) - end], theirs[start : len(theirs) - end]
        return (
            f"the {self.chat.role}'s chat template would render turn 2 otherwise: {_shown(other)} where the context "
            f"that was sampled in has {_shown(mine)} (after {_shown(ours[max(0, start - 30) : start])}); turn 2 "
            "follows what was sampled"
        )

    def _render(self, *contents: str, with_system: bool = True) -> str:
        roles = ("user", "assistant", "user")
        messages = [{"role": role, "content": text} for role, text in zip(roles, contents, strict=False)]
        if self.system and with_system and self.chat.system_as == "message":
            messages.insert(0, {"role": "system", "content": self.system})
        try:
            return self._apply(messages)
        except (TemplateError, TypeError, ValueError, KeyError, AttributeError) as error:
            raise ChatTemplateError(self._mend(error, messages)) from error

    def _apply(self, messages: list[dict[str, Any]]) -> str:
        if self.as_parts:
            messages = [{**m, "content": [{"type": "text", "text": m["content"]}]} for m in messages]
        return self.tokenizer.apply_chat_template(
            messages, chat_template=self.template, tokenize=False, add_generation_prompt=True, **self.chat.kwargs
        )

    def _mend(self, error: Exception, messages: list[dict[str, Any]]) -> str:
        """What a template that raises says, and which key mends it."""
        says = f"the {self.chat.role}'s chat template fails: {str(error).splitlines()[0] if str(error) else error!r}"
        if messages[0]["role"] == "system":
            try:
                self._apply(messages[1:])
            except (TemplateError, TypeError, ValueError, KeyError, AttributeError):
                pass  # the system text is not the cause, or not the only one
            else:
                return (
                    f"{says}; it takes no system text ({_shown(self.system or '')}). "
                    f"{self.chat.key('system_as')}=user puts it before the first user text, "
                    f"{self.chat.key('system')}='' leaves it out"
                )
        missing = [
            name for name in SPECIAL_NAMES
            if name in self.template and not getattr(self.tokenizer, name, None) and name not in self.chat.kwargs
        ]  # fmt: skip
        if missing:
            return (
                f"{says}; it needs {', '.join(missing)}, which the tokenizer ({self.tokenizer.name_or_path}) does not "
                f"name: add it to its tokenizer_config.json, or {self.chat.key('chat_template_kwargs')}="
                f'{{{missing[0]}: "<s>"}} with the token it has'
            )
        return (
            f"{says}; set {self.chat.key('chat_template')} to another, or {self.chat.key('chat_template_kwargs')} to "
            "what it asks for"
        )


def _num_same(left: str, right: str) -> int:
    """How many characters both begin with."""
    return next((n for n, (a, b) in enumerate(zip(left, right, strict=False)) if a != b), min(len(left), len(right)))


def _shown(text: str) -> str:
    for marker, name in NAMES.items():
        text = text.replace(marker, name)
    return repr(text)

"""Problems and both models' prompts in; the rows that no trajectory could come of, with the reason of each, out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from score_openrlhf.config.derive import has_guidance
from score_openrlhf.config.schema import Config
from score_openrlhf.rollout.prompts import GuidancePrompts, SolverPrompts, encode_text
from score_openrlhf.tasks.base import Problem, fill

BATCH = 1000  # rows encoded at once
Advance = Callable[[int], None]  # called with the number of rows done


@dataclass(frozen=True)
class BadRow:
    """A row that cannot be used, and why."""

    problem: Problem
    reason: str


def text_faults(problems: Sequence[Problem]) -> Iterator[BadRow]:
    """Texts that no tokenizer and no file takes: half of a surrogate pair, as `\\ud83d` in JSON."""
    for problem in problems:
        for what, text in (("problem", problem.text), ("answer", problem.answer)):
            try:
                text.encode()
            except UnicodeEncodeError as error:
                broken = text[error.start].encode("unicode_escape").decode()
                yield BadRow(problem, f"its {what} holds half of a character ({broken} at position {error.start})")


@dataclass(frozen=True)
class Room:
    """How many tokens of a prompt's text leave room for a whole trajectory, and the sum that says so."""

    tokens: int
    sum: str


def solver_room(prompts: SolverPrompts, cfg: Config) -> Room:
    """What the solver's last context leaves: it holds prompt, attempt, instruction with the hint, and revision."""
    rollout = cfg.rollout
    frame = len(prompts.attempt_ids("")) - len(
        encode_text(prompts.tokenizer, fill(prompts.templates.attempt, problem=""))
    )
    return _room(
        cfg.data.max_len,
        {
            "chat template": frame,
            "attempt": rollout.attempt_max_tokens,
            "turn-2 instruction": len(prompts.bridge_ids([], "" if has_guidance(cfg) else None)),
            **({"guidance": rollout.guidance_max_tokens} if has_guidance(cfg) else {}),
            "revision": rollout.revision_max_tokens,
        },
    )


def guidance_room(prompts: GuidancePrompts, cfg: Config) -> Room:
    """What the guidance model's context leaves: it holds problem, attempt and guidance."""
    empty = fill(prompts.templates.guidance, problem="", attempt="")
    return _room(
        cfg.data.max_len,
        {
            "chat template": len(prompts.guidance_ids("", "")) - len(encode_text(prompts.tokenizer, empty)),
            "attempt": cfg.rollout.attempt_max_tokens,
            "guidance": cfg.rollout.guidance_max_tokens,
        },
    )


def _room(max_len: int, parts: dict[str, int]) -> Room:
    terms = " - ".join(f"{name} {tokens}" for name, tokens in parts.items())
    left = max_len - sum(parts.values())
    return Room(left, f"data.max_len {max_len} - {terms} = {left}")


def long_prompts(
    problems: Sequence[Problem],
    cfg: Config,
    solver: SolverPrompts,
    guidance: GuidancePrompts | None,
    advance: Advance = lambda rows: None,
) -> Iterator[BadRow]:
    """Problems too long for a whole trajectory of the configured budgets, with the sum."""
    contexts: list[tuple[str, object, str, Room]] = [
        ("solver", solver.tokenizer, solver.templates.attempt, solver_room(solver, cfg))
    ]
    if guidance is not None:
        template = guidance.templates.guidance.replace("{attempt}", "")
        contexts.append(("guidance model", guidance.tokenizer, template, guidance_room(guidance, cfg)))
    for start in range(0, len(problems), BATCH):
        chunk = problems[start : start + BATCH]
        for who, tokenizer, template, room in contexts:
            texts = [fill(template, problem=problem.text) for problem in chunk]
            ids = tokenizer(texts, add_special_tokens=False, split_special_tokens=True)["input_ids"]  # type: ignore[operator]
            for problem, own in zip(chunk, ids, strict=True):
                if len(own) > room.tokens:
                    yield BadRow(
                        problem, f"it takes {len(own)} tokens of the {who}'s prompt, which has room for {room.sum}"
                    )
        advance(len(chunk))

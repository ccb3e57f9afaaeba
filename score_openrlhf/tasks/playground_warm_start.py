"""An untrained playground model in; the same model with its latent skills, and what it measurably can do, out.

Supervised on dialogues made up from the task's own templates. The first part of the steps teaches the skills: add,
find the wrong column, follow a hint. The rest teaches the habits a real base model has: it misremembers some pairs of
digits firmly, mostly writes vague or random hints and mostly copies its first answer. Skills that are there and rarely
used are what reinforcement learning can bring out. That is a construction, and these numbers are its settings.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from score_openrlhf.tasks.base import Problem, fill
from score_openrlhf.tasks.playground import (
    APPROVAL,
    COLUMN_HINTS,
    COLUMNS,
    MISREMEMBERED,
    VAGUE,
    VERBS,
    PlaygroundTask,
    operands,
    slip,
)

KEEP_STEPS = 50
BATCH_SIZE = 64  # problems a step; each gives a dialogue of the solver and one of the guidance model
LEARNING_RATE = 5e-3
CLEAN_PART = 0.6  # of the steps
HINTS = (*COLUMN_HINTS, APPROVAL, VAGUE)
NUM_COLUMNS, NUM_VERBS = len(COLUMNS), len(VERBS)
APPROVE, BE_VAGUE = NUM_COLUMNS, NUM_COLUMNS + 1  # kinds of hint; the others are the column's number
ZEROS = "0 0 0"
SLIPS = torch.tensor([[slip(x, y) for y in range(10)] for x in range(10)])


@dataclasses.dataclass(frozen=True)
class Mixture:
    """Probabilities with which made-up dialogues go one way or another."""

    trap_wrong: float  # the attempt falls for the misremembered pair
    slip: float  # the attempt is off by one somewhere on a problem without one
    expert: float  # the hint names the wrong column, or approves a right attempt
    vague: float  # the hint is vague; otherwise it is any column or approval
    follow: float  # the revision fixes the column a hint rightly names; otherwise it copies the attempt
    false_alarm: float  # the revision breaks a right column that a hint names
    vague_fix: float  # the revision of a wrong attempt is right after a vague hint
    vague_break: float  # the revision breaks some column after a vague hint


CLEAN = Mixture(trap_wrong=0.995, slip=0.15, expert=0.9, vague=0.0, follow=1.0, false_alarm=0.0, vague_fix=0.0,
                vague_break=0.0)  # fmt: skip
NOISY = Mixture(trap_wrong=0.995, slip=0.01, expert=0.35, vague=0.38, follow=0.40, false_alarm=0.35, vague_fix=0.01,
                vague_break=0.06)  # fmt: skip


def recipe() -> dict:
    """Everything but seed and steps that the trained model depends on here, JSON-ready."""
    return {
        "batch_size": BATCH_SIZE,
        "learning_rate": LEARNING_RATE,
        "clean_part": CLEAN_PART,
        "clean": dataclasses.asdict(CLEAN),
        "noisy": dataclasses.asdict(NOISY),
        "misremembered": [[x, y, delta] for (x, y), delta in MISREMEMBERED.items()],
    }


@dataclasses.dataclass(frozen=True)
class Dialogues:
    """One rendered dialogue per hint (H of them, padded to L tokens), with slots to write digits into."""

    ids: torch.Tensor  # (H, L) token ids, every digit a zero
    slots: torch.Tensor  # (H, S) positions of the digits, in the order in which they are read
    labels: torch.Tensor  # (H, L) bool, the assistant's tokens, end tokens included

    def rows(self, hint: torch.Tensor, digits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Ids and labels (-100 where none), both (B, L), of hints (B,) and digits (B, S)."""
        ids = self.ids[hint].scatter(1, self.slots[hint], digits)
        return ids, ids.masked_fill(~self.labels[hint], -100)


def render(tokenizer: PreTrainedTokenizerFast, messages: list[dict]) -> list[int]:
    """Token ids of a conversation, with the prompt for the next assistant message if the user spoke last."""
    text = tokenizer.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=messages[-1]["role"] == "user"
    )
    return tokenizer.encode(text, add_special_tokens=False)


def solver_messages(
    problem: str, attempt: str | None = None, guidance: str = "", revision: str | None = None
) -> list[dict]:
    """The solver's conversation as far as it is given: problem, attempt and instruction, revision."""
    templates = PlaygroundTask.templates
    messages = [{"role": "user", "content": fill(templates.attempt, problem=problem)}]
    if attempt is not None:
        messages += [
            {"role": "assistant", "content": attempt},
            {"role": "user", "content": fill(templates.revision, guidance=guidance)},
        ]
    if revision is not None:
        messages.append({"role": "assistant", "content": revision})
    return messages


def guidance_messages(problem: str, attempt: str, guidance: str | None = None) -> list[dict]:
    """The guidance model's conversation: one user message with problem and attempt, then its hint if given."""
    prompt = fill(PlaygroundTask.templates.guidance, problem=problem, attempt=attempt)
    messages = [{"role": "user", "content": prompt}]
    return messages if guidance is None else [*messages, {"role": "assistant", "content": guidance}]


def dialogues(tokenizer: PreTrainedTokenizerFast, conversations: list[list[dict]], length: int) -> Dialogues:
    """Renders one conversation per hint, each with the same number of zeros, padded on the right to `length`."""
    zero = tokenizer.convert_tokens_to_ids("0")
    assert tokenizer.convert_ids_to_tokens(list(range(10))) == list("0123456789"), "digits must be their own ids"
    ids = torch.full((len(conversations), length), tokenizer.pad_token_id)
    labels = torch.zeros_like(ids, dtype=torch.bool)
    for row, messages in enumerate(conversations):
        whole = render(tokenizer, messages)
        ids[row, : len(whole)] = torch.tensor(whole)
        for turn, message in enumerate(messages):
            if message["role"] == "assistant":
                start, end = len(render(tokenizer, messages[:turn])), len(render(tokenizer, messages[: turn + 1]))
                labels[row, start:end] = True
    is_slot: Any = ids == zero  # (conversations, tokens)
    slots = is_slot.nonzero()[:, 1].view(len(conversations), -1)
    return Dialogues(ids, slots, labels)


@dataclasses.dataclass(frozen=True)
class Sums:
    """The training split's problems by kind, as tensors to index."""

    top: torch.Tensor  # (P, 3) digits of the first operand
    bottom: torch.Tensor  # (P, 3) digits of the second
    trap: torch.Tensor  # (P,) the misremembered column, -1 where there is none
    num_hard: int  # the first rows are the ones with a trap

    @staticmethod
    def of_split(split: str) -> Sums:
        hard, easy = operands(split)
        numbers = torch.tensor(hard + easy)  # (P, 2)
        digits = torch.stack([numbers // 100, numbers // 10 % 10, numbers % 10], dim=-1)
        top, bottom = digits[:, 0], digits[:, 1]
        slips = SLIPS[top, bottom]
        trap = torch.where((slips != 0).any(1), (slips != 0).long().argmax(1), -1)
        return Sums(top, bottom, trap, len(hard))


def draw(sums: Sums, mixture: Mixture, num: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """`num` made-up dialogues: the hint's index in HINTS (B,), and digits (B, 12): operands, attempt, revision."""

    def chance() -> torch.Tensor:
        return torch.rand(num, generator=generator)

    def integer(low: int, high: int) -> torch.Tensor:
        return torch.randint(low, high, (num,), generator=generator)

    def off_by_one() -> torch.Tensor:
        return 2 * integer(0, 2) - 1

    hard = chance() < 0.5
    index = torch.where(hard, integer(0, sums.num_hard), integer(sums.num_hard, len(sums.trap)))
    top, bottom = sums.top[index], sums.bottom[index]
    total, every = top + bottom, torch.arange(num)

    column = torch.where(hard, sums.trap[index], integer(0, NUM_COLUMNS))
    delta = torch.where(hard, SLIPS[top, bottom][every, column], off_by_one())
    wrong = chance() < torch.where(hard, mixture.trap_wrong, mixture.slip)
    attempt = total.clone()
    attempt[every, column] = (total[every, column] + delta * wrong) % 10

    source = chance()
    kind = integer(0, NUM_COLUMNS + 1)
    kind = torch.where(source < mixture.expert + mixture.vague, BE_VAGUE, kind)
    kind = torch.where(source < mixture.expert, torch.where(wrong, column, APPROVE), kind)
    names_column = kind < NUM_COLUMNS
    hint = torch.where(names_column, kind * NUM_VERBS + integer(0, NUM_VERBS), kind + NUM_COLUMNS * (NUM_VERBS - 1))

    effect, located = chance(), wrong & (kind == column)
    fixed = located & (effect < mixture.follow) | wrong & (kind == BE_VAGUE) & (effect < mixture.vague_fix)
    broken = names_column & ~located & (effect < mixture.false_alarm)
    broken |= (kind == BE_VAGUE) & (effect > 1 - mixture.vague_break)
    place = torch.where(names_column, kind, integer(0, NUM_COLUMNS))
    revision = torch.where(fixed[:, None], total, attempt)
    revision[every, place] = (revision[every, place] + off_by_one() * broken) % 10
    return hint, torch.cat([top, bottom, attempt, revision], dim=1)


def train(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    *,
    seed: int,
    steps: int,
    progress: Callable[[str, int, int], None],
    kept: Path | None = None,
) -> None:
    """Trains `model` in place for `steps` steps: cross entropy on the assistant's tokens of both models' dialogues.

    Every KEEP_STEPS steps the whole state goes to the file `kept`; if it is there, training goes on from it, and ends
    with the weights of one that was not interrupted, bit for bit.
    """
    problem = f"{ZEROS} + {ZEROS} ="  # as `problem_text` writes it
    sums, generator = Sums.of_split("train"), torch.Generator().manual_seed(seed)
    solver = [solver_messages(problem, ZEROS, hint, ZEROS) for hint in HINTS]
    guidance = [guidance_messages(problem, ZEROS, hint) for hint in HINTS]
    length = max(len(render(tokenizer, messages)) for messages in solver + guidance)
    solver_rows, guidance_rows = dialogues(tokenizer, solver, length), dialogues(tokenizer, guidance, length)

    optimizer = torch.optim.AdamW(
        model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.01, fused=True
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / 50) * min(1.0, (1 - step / steps) / 0.7)
    )
    first = _go_on(kept, model, optimizer, schedule, generator) if kept and kept.is_file() else 0
    model.train()
    for step in range(first, steps):
        hint, digits = draw(sums, CLEAN if step < CLEAN_PART * steps else NOISY, BATCH_SIZE, generator)
        of_solver = solver_rows.rows(hint, digits)
        of_guidance = guidance_rows.rows(hint, digits[:, :9])
        ids, labels = (torch.cat(pair) for pair in zip(of_solver, of_guidance, strict=True))
        # No attention mask: padding is on the right and attention is causal, so no labelled token sees it.
        logits = model(input_ids=ids[:, :-1], use_cache=False).logits
        loss = F.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if (step + 1) % KEEP_STEPS == 0 or step + 1 == steps:
            if kept:
                _keep(kept, step + 1, model, optimizer, schedule, generator)
            progress("warm start", step + 1, steps)
    model.eval()


def _keep(kept: Path, step: int, model, optimizer, schedule, generator: torch.Generator) -> None:
    state = {"step": step, "generator": generator.get_state()}
    state |= {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "schedule": schedule.state_dict()}
    temporary = kept.with_name(f"{kept.name}.tmp")
    torch.save(state, temporary)
    os.replace(temporary, kept)


def _go_on(kept: Path, model, optimizer, schedule, generator: torch.Generator) -> int:
    """Take over the kept state; returns the steps it has made."""
    state = torch.load(kept, weights_only=True)
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    schedule.load_state_dict(state["schedule"])
    generator.set_state(state["generator"])
    return state["step"]


@torch.no_grad()
def sample(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, conversations: list[list[dict]]) -> list[str]:
    """One answer to each conversation at temperature 1, at most 8 tokens."""
    prompts = [render(tokenizer, messages) for messages in conversations]
    batch = tokenizer.pad({"input_ids": prompts}, return_tensors="pt")
    generate: Any = model.generate
    output = generate(**batch, do_sample=True, temperature=1.0, top_k=0, top_p=1.0, max_new_tokens=8)
    return tokenizer.batch_decode(output[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)


def measure(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, rows: list[dict]) -> dict[str, float]:
    """What `model` does on `rows` as its own solver and guidance model, one trajectory a row: fractions in [0, 1]."""
    task = PlaygroundTask()
    problems = [Problem(id=row["id"], text=row["problem"], answer=row["answer"]) for row in rows]
    attempts = sample(model, tokenizer, [solver_messages(p.text) for p in problems])
    hints = sample(model, tokenizer, [guidance_messages(p.text, y1) for p, y1 in zip(problems, attempts, strict=True)])
    turns = list(zip(problems, attempts, hints, strict=True))
    revisions = sample(model, tokenizer, [solver_messages(p.text, y1, g) for p, y1, g in turns])

    r1 = [task.grade(y1, p.answer).reward for p, y1, _ in turns]
    r2 = [task.grade(y2, p.answer).reward for p, y2 in zip(problems, revisions, strict=True)]
    described = [task.describe_guidance(*turn) for turn in turns]
    figures = {
        "acc_t1": r1,
        "acc_t2": r2,
        "i2c": [float(after > before) for before, after in zip(r1, r2, strict=True)],
        "c2i": [float(after < before) for before, after in zip(r1, r2, strict=True)],
        "guidance/hint_accuracy": [d["hint_accuracy"] for d in described if "hint_accuracy" in d],
        "guidance/right_column_rate": [d["right_column_rate"] for d in described if "right_column_rate" in d],
        "guidance/leak": [float(task.states_answer(g, p.text, y1, p.answer)) for p, y1, g in turns],
    }
    # a fraction of nothing is left out, as the metrics of a run do
    return {name: round(sum(values) / len(values), 4) for name, values in figures.items() if values}

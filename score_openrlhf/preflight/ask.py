"""A configuration, its problems and its checkpoint in; usable problems out, or one UserError with every fault.

models -> prompts -> rows (texts, golds, lengths) -> checkpoint; what is found names the key or the row it is of.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from score_openrlhf import platform
from score_openrlhf.config.derive import guidance_start, has_guidance
from score_openrlhf.config.model_code import trusted_models
from score_openrlhf.config.schema import Config
from score_openrlhf.errors import UserError, printable
from score_openrlhf.preflight.checkpoints import layout_faults
from score_openrlhf.preflight.golds import gold_faults
from score_openrlhf.preflight.models import config_faults, generation_note, load_tokenizer, models_of
from score_openrlhf.preflight.rows import Advance, BadRow, long_prompts, text_faults
from score_openrlhf.rollout.prompts import GuidancePrompts, SolverPrompts
from score_openrlhf.tasks.base import Problem, Templates

MAX_LISTED = 5  # rows named of each kind; all are counted
SHOWN_AFTER_SECONDS = 2.0

Sets = Mapping[str, Sequence[Problem]]  # the problems by the key that names their source


def ask(
    cfg: Config,
    templates: Templates,
    sets: Sets,
    console: Console,
    *,
    checkpoint: tuple[Path, dict[str, Any]] | None = None,
    faults: Sequence[str] = (),
) -> dict[str, list[Problem]]:
    """The problems of each set that can be used; `checkpoint` is where the run goes on from, and its trainer.json.

    `faults` are those already known, of files that could not be read. Raises UserError with all that is wrong. Rows
    are left out instead where `data.on_bad_row` (no usable text or gold) or `data.on_long_prompt` (no room for a whole
    trajectory) is `skip`.
    """
    platform.trust(trusted_models(cfg))  # before the first file of a model is read
    faults = list(faults)
    prompts = _prompts(cfg, templates, faults, console)
    usable = {key: list(problems) for key, problems in sets.items()}
    num_rows = sum(map(len, usable.values()))
    with _bar(console, f"checking {num_rows} rows", 2 * num_rows) as advance:
        for key, problems in usable.items():
            bad = list(text_faults(problems))
            whole = _without(problems, bad)
            bad += gold_faults(whole, cfg, advance)
            long = list(long_prompts(_without(whole, bad), cfg, *prompts, advance)) if prompts is not None else []
            for rows, rule, policy, what in (
                (bad, "data.on_bad_row", cfg.data.on_bad_row, "cannot be used"),
                (long, "data.on_long_prompt", cfg.data.on_long_prompt, "are too long"),
            ):
                if not rows:
                    continue
                listed = _listed(rows)
                if policy == "skip":
                    usable[key] = _without(usable[key], rows)
                    console.print(
                        f"{key}: {len(rows)} of {len(problems)} rows {what} and are left out:\n{printable(listed)}",
                        highlight=False, markup=False, soft_wrap=True,
                    )  # fmt: skip
                else:
                    faults.append(
                        f"{key}: {len(rows)} of {len(problems)} rows {what}; correct them, or leave them out with "
                        f"{rule}=skip:\n{listed}"
                    )
            if problems and not usable[key]:
                faults.append(f"{key}: no row is left")
    if checkpoint is not None:
        faults.extend(layout_faults(*checkpoint, cfg))
    if faults:
        raise UserError("\n".join(faults))
    return usable


def _prompts(
    cfg: Config, templates: Templates, faults: list[str], console: Console
) -> tuple[SolverPrompts, GuidancePrompts | None] | None:
    """The prompts of both models, or None where a model's tokenizer or template does not serve."""
    tokenizers = {}
    for key, model in models_of(cfg).items():
        faults.extend(config_faults(key, model, cfg))
        if (note := generation_note(key, model)) is not None:
            console.print(f"note: {printable(note)}", highlight=False, markup=False, soft_wrap=True)
        try:
            tokenizers[model] = load_tokenizer(key, model, use_fast=not cfg.data.disable_fast_tokenizer)
        except UserError as error:
            faults.append(str(error))
    hints = guidance_start(cfg) if has_guidance(cfg) else None
    solver = guidance = None
    try:
        if cfg.model_path in tokenizers:
            solver = SolverPrompts(tokenizers[cfg.model_path], templates)
            if solver.differs:
                console.print(f"note: {printable(solver.differs)}", highlight=False, markup=False, soft_wrap=True)
    except UserError as error:
        faults.append(str(error))
    try:
        if hints in tokenizers:
            guidance = GuidancePrompts(tokenizers[hints], templates)
    except UserError as error:
        faults.append(str(error))
    if solver is None or (hints is not None and guidance is None):
        return None
    return solver, guidance


def _without(problems: Sequence[Problem], bad: Iterable[BadRow]) -> list[Problem]:
    out = {id(row.problem) for row in bad}  # two rows may have the same text, and an own task the same id
    return [problem for problem in problems if id(problem) not in out]


def _listed(rows: Sequence[BadRow]) -> str:
    more = [f"  and {len(rows) - MAX_LISTED} more"] if len(rows) > MAX_LISTED else []
    return "\n".join([f"  {row.problem.id}: {row.reason}" for row in rows[:MAX_LISTED]] + more)


@contextmanager
def _bar(console: Console, what: str, total: int) -> Iterator[Advance]:
    """What counts rows; a bar, or a line where there is no terminal, once it has taken more than two seconds."""
    start, bar, said = time.perf_counter(), Progress(console=console, transient=True), False
    done = 0

    def advance(rows: int) -> None:
        nonlocal said, done
        done += rows
        if not said and time.perf_counter() - start > SHOWN_AFTER_SECONDS:
            said = True
            if console.is_terminal:
                bar.start()
                bar.add_task(what, total=total)
            else:
                console.print(what, highlight=False)
        if said and bar.tasks:
            bar.update(bar.tasks[0].id, completed=done)

    try:
        yield advance
    finally:
        if bar.tasks:
            bar.stop()

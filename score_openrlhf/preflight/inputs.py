"""What a configuration asks the models with: its problems, loaded, and its templates."""

from __future__ import annotations

import dataclasses
from typing import Any

from score_openrlhf.config.derive import guidance_start
from score_openrlhf.config.schema import Config
from score_openrlhf.errors import UserError
from score_openrlhf.rollout.chat import GUIDANCE_CHAT, Chat, Prompting
from score_openrlhf.tasks.base import TEMPLATE_FIELDS, Problem, Task
from score_openrlhf.tasks.columns import RowRules


def load_problems(task: Task, cfg: Config, part: str) -> list[Problem]:
    """The training or held-out problems of the configuration."""
    training = part == "train"
    source = cfg.data.train if training else cfg.data.eval
    if source is None:
        raise UserError(f"data.{part} is not set; name a .jsonl, .json or .parquet file or a hub dataset")
    task.rows = RowRules(cfg.data.format, cfg.data.on_bad_row, cfg.data.list_answers)
    return task.load(
        source,
        split=cfg.data.train_split if training else cfg.data.eval_split,
        problem_key=cfg.data.problem_key,
        answer_key=cfg.data.answer_key,
        limit=cfg.data.max_train_problems if training else cfg.data.max_eval_problems,
    )


def templates_of(cfg: Config, task: Task) -> Prompting:
    """The task's templates with what the configuration replaces, and how each model is talked to."""
    own = {name: getattr(cfg.templates, name) for name in TEMPLATE_FIELDS}
    texts = {name: text if text is not None else getattr(task.templates, name) for name, text in own.items()}
    keys, markers = cfg.templates, cfg.rollout.reasoning_markers
    if markers is not None and len(markers) != 2:
        raise UserError(f"rollout.reasoning_markers is {markers}: give two texts, [opening,closing]")
    both: dict[str, Any] = {"history": cfg.rollout.history, "reasoning": tuple(markers) if markers else None}
    solver = Chat(template=keys.chat_template, kwargs=keys.chat_template_kwargs, system_as=keys.system_as, **both)
    one_model = guidance_start(cfg) == cfg.model_path
    kwargs = keys.guidance_chat_template_kwargs
    if kwargs is None:
        kwargs = keys.chat_template_kwargs if one_model else {}
    guidance = dataclasses.replace(
        GUIDANCE_CHAT,
        template=keys.guidance_chat_template or (keys.chat_template if one_model else None),
        kwargs=kwargs,
        system_as=keys.guidance_system_as or keys.system_as,
        **both,
    )
    return Prompting(**texts, solver_chat=solver, guidance_chat=guidance, strip_reasoning=cfg.rollout.strip_reasoning)

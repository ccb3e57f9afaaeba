"""The method's equations written out once more, by loops over trajectories and autograd of plain transformers models.

trajectories -> solver_rows, guidance_rows, critic_rows -> direct_gradient, direct_value_gradient
the same trajectories -> experience makers -> update of a ZeRO-3 actor -> its gradients and weights (`Watched`)
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import ray
import torch
from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_grad
from ray.util.placement_group import remove_placement_group

from score_openrlhf.config.schema import Config
from score_openrlhf.policies import build as build_module
from score_openrlhf.policies.actors import _CriticActor, _PolicyActor
from score_openrlhf.policies.build import Roles, build
from score_openrlhf.policies.policy import Policy
from score_openrlhf.rollout.trajectory import Trajectory
from score_openrlhf.tasks import make_task
from tests.fakes import trajectory
from tests.tiny_models import make_model

TOLERANCE = 1e-4
ALPHA, BETA1, BETA2, GUIDANCE_KL, LEAK_PENALTY, TEMPERATURE = 3.0, 0.2, 0.9, 0.3, 0.4, 0.8
WINDOW = 16  # rows of an optimizer step: 8 micro batches of 2 on one rank, 4 on each of two
MOVED = "-moved"

Gradient = dict[str, torch.Tensor]


# ── Trajectories ──


def make_batch(num_attempts: tuple[int, ...], num_guidances: int, failed: tuple[int, ...] = ()) -> list[Trajectory]:
    """`num_attempts` at each problem, each with its guidances, all of random lengths; rows in `failed` have failed."""
    draw = random.Random(f"{num_attempts} {num_guidances}")

    def words(longest: int) -> list[int]:
        return [draw.randrange(10, 250) for _ in range(draw.randint(1, longest))]

    batch = []
    for group, attempts in enumerate(num_attempts):
        prompt = words(6)
        for attempt_index in range(attempts):
            attempt, r1, guidance_prompt = words(7), float(draw.random() < 0.5), words(9)
            for guidance_index in range(num_guidances):
                row = trajectory(
                    group, attempt_index, guidance_index, r1=r1, r2=float(draw.random() < 0.5), prompt=prompt,
                    attempt=attempt, bridge=words(5), revision=words(8), guidance_prompt=guidance_prompt,
                    guidance=words(6), leak=float(draw.random() < 0.3),
                    failure="revise: ValueError" if len(batch) in failed else None,
                )  # fmt: skip
                batch.append(row)
    return batch


# ── The equations ──


@dataclass
class Turn:
    """A sampled text of a row: where it stands, its return minus its baseline, and the weight of its KL."""

    start: int
    length: int
    advantage: float
    kl_coef: float
    rollout_log_probs: tuple[float, ...] = ()  # of its tokens, as the engine said

    @property
    def place(self) -> slice:
        """Its tokens among the row's, the first of which has no log-prob."""
        return slice(self.start - 1, self.start - 1 + self.length)


DirectRow = tuple[list[int], list[Turn]]


def mean_of_others(own: Trajectory, used: list[Trajectory], value: Callable, *classes: Callable) -> float:
    """Mean over the other attempts of the first class that has one; an attempt counts with the mean of its rows."""
    for same in classes:
        attempts: dict[tuple[int, int], list[float]] = {}
        for t in used:
            if t.state != own.state and same(t):
                attempts.setdefault(t.state, []).append(value(t))
        if attempts:
            return fmean(map(fmean, attempts.values()))
    return 0.0


def solver_rows(batch: list[Trajectory], stage: int, *, baseline: bool = True) -> list[DirectRow]:
    """Without `baseline` a turn's advantage is its return, as it is paid to a critic."""
    rows, used = [], [t for t in batch if t.failure is None]
    return1 = (lambda t: 0.0) if stage == 1 else (lambda t: t.r1)
    return2 = (lambda t: t.r2) if stage == 1 else (lambda t: t.r2 + ALPHA * (t.r2 - t.r1))
    for own in used:
        classes = (lambda t, own=own: t.group == own.group, lambda t: True) if baseline else ()
        advantage1 = return1(own) - mean_of_others(own, used, return1, *classes)
        advantage2 = return2(own) - mean_of_others(own, used, return2, *classes)
        y1, y2 = own.attempt.token_ids, own.revision.token_ids
        context2 = own.prompt_ids + y1 + own.bridge_ids
        beta = BETA2 if stage == 1 else BETA1
        turn1 = Turn(len(own.prompt_ids), len(y1), advantage1, beta, tuple(own.attempt.log_probs))
        turn2 = Turn(len(context2), len(y2), advantage2, BETA1, tuple(own.revision.log_probs))
        rows.append((context2 + y2, [turn1, turn2]))
    return rows


def guidance_rows(batch: list[Trajectory]) -> list[DirectRow]:
    rows, used = [], [t for t in batch if t.failure is None]

    def reward(t: Trajectory) -> float:
        return t.r2 - LEAK_PENALTY * t.leak

    for own in used:
        siblings = [reward(t) for t in used if t.state == own.state and t is not own]
        others = mean_of_others(own, used, reward, lambda t, own=own: t.r1 == own.r1, lambda t: True)
        advantage = reward(own) - (fmean(siblings) if siblings else others)
        context, g = own.guidance_prompt_ids, own.guidance.token_ids
        rows.append((context + g, [Turn(len(context), len(g), advantage, GUIDANCE_KL, tuple(own.guidance.log_probs))]))
    return rows


def log_probs(model: Any, ids: list[int]) -> torch.Tensor:
    """Log-probability of each token but the first, at the temperature it was sampled at."""
    logits = model(torch.tensor([ids])).logits[0, :-1] / TEMPERATURE
    return logits.log_softmax(-1)[torch.arange(len(ids) - 1), torch.tensor(ids[1:])]


def all_equal(log_pi: torch.Tensor, turn: Turn) -> torch.Tensor:
    """The weight of each token where nothing is corrected."""
    return torch.ones_like(log_pi)


def direct_gradient(rows: list[DirectRow], model: Any, reference: Any, *, weigh: Callable = all_equal) -> Gradient:
    """Gradient of `-1/T sum_j w_j (A - beta sum_{i >= j} log pi_i / pi_ref_i) log pi_j`, j over the T sampled tokens.

    `weigh(log_pi, turn)` gives the weights `w` of a turn's tokens.
    """
    total, num_tokens = torch.zeros(()), 0
    for ids, turns in rows:
        log_pi, log_ref = log_probs(model, ids), log_probs(reference, ids)
        for turn in turns:
            kl = (log_pi - log_ref)[turn.place].detach()
            advantages = turn.advantage - turn.kl_coef * (kl.sum() - kl.cumsum(0) + kl)
            total = total + (weigh(log_pi[turn.place].detach(), turn) * advantages * log_pi[turn.place]).sum()
            num_tokens += turn.length
    return gradient_of(-total / num_tokens, model)


def gradient_of(loss: torch.Tensor, model: torch.nn.Module) -> Gradient:
    names, parameters = zip(*model.named_parameters(), strict=True)
    return dict(zip(names, torch.autograd.grad(loss, parameters), strict=True))


def error(actual: Gradient, expected: Gradient) -> float:
    """Length of the difference over the length of `expected`, of all parameters or of the worst one.

    Some parameters have next to no gradient (the attention does not see the bias of its keys); for these the length of
    the whole gradient stands, cut by 1,000.
    """
    assert actual.keys() == expected.keys()
    whole = torch.cat([value.flatten() for value in expected.values()]).norm()
    assert whole > 0
    differences = {name: (actual[name] - value).norm() for name, value in expected.items()}
    of_whole = torch.stack(list(differences.values())).norm() / whole
    of_worst = max(differences[name] / max(value.norm(), whole / 1000) for name, value in expected.items())
    return float(max(of_whole, of_worst))


def error_at_best_scale(actual: Gradient, expected: Gradient) -> float:
    """`error` of the multiple of `actual` that comes nearest: another direction, not only another length."""
    scale = sum((actual[n] * expected[n]).sum() for n in expected) / sum(actual[n].square().sum() for n in expected)
    return error({name: scale * value for name, value in actual.items()}, expected)


# ── The real stack ──


class Watched:
    """A rank that keeps the gradient of each optimizer step and shows its weights, both in whole."""

    def watch(self, strategy: Any) -> None:
        self.gradients: list[Gradient] = []
        step = strategy.optimizer_step

        def keep_and_step(optimizer, model, scheduler, **kwargs):
            if self.engine.is_gradient_accumulation_boundary():
                parameters = self.engine.module.named_parameters()
                self.gradients.append({name: safe_get_full_grad(value).clone() for name, value in parameters})
            step(optimizer, model, scheduler, **kwargs)

        strategy.optimizer_step = keep_and_step

    def take_gradients(self) -> list[Gradient]:
        taken, self.gradients = self.gradients, []
        return taken

    def weights(self) -> dict[str, torch.Tensor]:
        """The fp32 weights that the optimizer steps from."""
        return {name: safe_get_full_fp32_param(value).clone() for name, value in self.engine.module.named_parameters()}


class WatchedActor(Watched, _PolicyActor):
    """A policy's rank that has moved away from its reference."""

    def init_model_from_pretrained(self, strategy, pretrain, max_steps=None, vllm_engines=None):
        super().init_model_from_pretrained(strategy, pretrain + MOVED, max_steps, None)
        self.watch(strategy)


class WatchedCritic(Watched, _CriticActor):
    def init_model_from_pretrained(self, strategy, pretrain, max_steps):
        super().init_model_from_pretrained(strategy, pretrain, max_steps)
        self.watch(strategy)


def watched(group: Any, method: str) -> Any:
    """What every rank of `group` says, the same on all of them."""
    first, *others = ray.get(group.async_run_method(method_name=method))
    for other in others:
        torch.testing.assert_close(other, first, rtol=0, atol=0)
    return first


def config(model: Path, num_ranks: int, **changes: Any) -> Config:
    cfg = Config(
        model_path=str(model), alpha=ALPHA, beta1=BETA1, beta2=BETA2, guidance_kl_coef=GUIDANCE_KL, guidance_lr=0.0,
        **{"method": "rl_guided_score", **changes},
    )  # fmt: skip
    cfg.guidance.leak_penalty = LEAK_PENALTY
    cfg.rollout.temperature = cfg.rollout.guidance_temperature = TEMPERATURE
    cfg.rollout.micro_batch_size, cfg.train.micro_batch_size, cfg.train.batch_size = 4, 2, WINDOW
    cfg.actor.num_gpus_per_node, cfg.actor.adam.lr, cfg.actor.max_norm = num_ranks, 0.0, 0.0
    cfg.critic.max_norm = 0.0
    cfg.ref.num_gpus_per_node = 1
    cfg.ds.param_dtype, cfg.ds.attn_implementation = "fp32", "sdpa"
    return cfg


@contextmanager
def built(cfg: Config, resume_from: str | None = None) -> Iterator[Roles]:
    """The roles of a run without its engines; they end with the block, and their GPUs are free again."""
    reserved: list[Any] = []
    reserve_role = build_module.reserve_role

    def reserve_and_keep(role, **options):
        reserved.append(reserve_role(role, **options))
        return reserved[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build_module, "reserve_role", reserve_and_keep)
        patch.setattr(build_module, "create_engines", lambda *args, **kwargs: [])
        patch.setattr(build_module, "PolicyActor", ray.remote(num_gpus=1)(WatchedActor))
        patch.setattr(build_module, "CriticActor", ray.remote(num_gpus=1)(WatchedCritic))
        roles = build(cfg, make_task("math").templates, resume_from=resume_from)
    try:
        yield roles
    finally:
        groups = [g for policy in roles.policies for g in (*policy.learners, policy.reference_model_group)]
        for actor in {actor for group in groups for actor in group._actor_handlers}:
            ray.kill(actor)
        for group in reserved:
            remove_placement_group(group)


def make_models(folder: Path) -> Path:
    """The reference's model; beside it, under its name and `MOVED`, that of the policies."""
    from transformers import AutoModelForCausalLM

    path = make_model(folder / "model")
    model = AutoModelForCausalLM.from_pretrained(path)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter *= 4  # a model as it is initialised is nearly uniform, whatever it reads
        model.save_pretrained(path)
        for parameter in model.parameters():
            parameter += 0.03 * torch.randn_like(parameter)
    moved = path.with_name(path.name + MOVED)
    shutil.copytree(path, moved)
    model.save_pretrained(moved)
    return path


def actor_gradient(policy: Policy, batch: list[Trajectory], stage: int) -> Gradient:
    """Gradient of the one optimizer step that an update on `batch` makes."""
    policy.update(policy.maker.make_batch(batch, stage=stage), step=0)
    (gradient,) = watched(policy.actor_model_group, "take_gradients")
    return gradient

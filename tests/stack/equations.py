"""The method's equations written out once more, by loops over trajectories and autograd of plain transformers models.

trajectories -> solver_rows, guidance_rows, critic_rows -> direct_gradient, direct_value_gradient
the same trajectories -> experience makers -> update of a ZeRO-3 actor -> its gradients and weights (`Watched`)
"""

from __future__ import annotations

import random
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from types import SimpleNamespace
from typing import Any

import pytest
import ray
import torch
from deepspeed.runtime.zero.partition_parameters import GatheredParameters
from deepspeed.utils import (
    safe_get_full_fp32_param,
    safe_get_full_grad,
    safe_set_full_fp32_param,
)
from ray.util.placement_group import remove_placement_group

from benchmarks.tiny_models import make_model
from score_openrlhf.config.keys import set_value
from score_openrlhf.config.schema import Config
from score_openrlhf.policies import build as build_module
from score_openrlhf.policies.actors import _CriticActor, _PolicyActor
from score_openrlhf.policies.build import Roles, build
from score_openrlhf.policies.groups import ActorGroup
from score_openrlhf.policies.policy import Policy
from score_openrlhf.rollout.trajectory import Trajectory
from score_openrlhf.tasks import make_task
from tests.support.fakes import trajectory

TOLERANCE = 1e-4
ALPHA, BETA1, BETA2, GUIDANCE_KL, LEAK_PENALTY, TEMPERATURE = 3.0, 0.2, 0.9, 0.3, 0.4, 0.8
WINDOW = 16  # rows of an optimizer step: 8 micro batches of 2 on one rank, 4 on each of two
MOVED = "-moved"
GAMMA, LAMBD = 0.9, 0.8  # of a critic

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
            if t.attempt_key != own.attempt_key and same(t):
                attempts.setdefault(t.attempt_key, []).append(value(t))
        if attempts:
            return fmean(map(fmean, attempts.values()))
    return 0.0


def value_of_state(own: Trajectory, used: list[Trajectory], value: Callable) -> float:
    """What is paid after an attempt like this one, by all other rows; the batch's rate stands for two of them."""
    like = [value(t) for t in used if t is not own and t.group == own.group and t.r1 == own.r1]
    rate = mean_of_others(own, used, value, lambda t: t.r1 == own.r1, lambda t: True)
    return (sum(like) + 2 * rate) / (len(like) + 2)


def solver_rows(batch: list[Trajectory], stage: int, *, baseline: bool = True) -> list[DirectRow]:
    """Without `baseline` a turn's advantage is its return, as it is paid to a critic."""
    rows, used = [], [t for t in batch if t.failure is None]
    return1 = (lambda t: 0.0) if stage == 1 else (lambda t: t.r1)
    return2 = (lambda t: t.r2) if stage == 1 else (lambda t: t.r2 + ALPHA * (t.r2 - t.r1))
    for own in used:
        classes = (lambda t, own=own: t.group == own.group, lambda t: True) if baseline else ()
        advantage1 = return1(own) - mean_of_others(own, used, return1, *classes)
        scale = 1 if stage == 1 else 1 + ALPHA
        advantage2 = scale * (own.r2 - value_of_state(own, used, lambda t: t.r2)) if baseline else return2(own)
        y1, y2 = own.attempt.token_ids, own.revision.token_ids
        context2 = own.prompt_ids + y1 + own.bridge_ids
        beta = BETA1 + BETA2 if stage == 1 else BETA1
        turn1 = Turn(len(own.prompt_ids), len(y1), advantage1, beta, tuple(own.attempt.log_probs))
        turn2 = Turn(len(context2), len(y2), advantage2, BETA1, tuple(own.revision.log_probs))
        rows.append((context2 + y2, [turn1, turn2]))
    return rows


def guidance_rows(batch: list[Trajectory]) -> list[DirectRow]:
    rows, used = [], [t for t in batch if t.failure is None]

    def reward(t: Trajectory) -> float:
        return t.r2 - LEAK_PENALTY * t.leak

    for own in used:
        advantage = reward(own) - value_of_state(own, used, reward)
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


def advantages_with_a_critic(turn: Turn, kl: torch.Tensor, values: torch.Tensor, *, reset: bool = True) -> list[float]:
    """GAE of one turn's tokens, backwards; `values` has one more where the turn is followed by another."""
    advantages: list[float] = []
    next_value = 0.0 if reset else float(values[-1])
    next_advantage = 0.0
    for j in reversed(range(turn.length)):
        reward = -turn.kl_coef * float(kl[j]) + (turn.advantage if j == turn.length - 1 else 0.0)
        next_advantage = reward + GAMMA * next_value - float(values[j]) + GAMMA * LAMBD * next_advantage
        advantages.insert(0, next_advantage)
        next_value = float(values[j])
    return advantages


def direct_gradients(rows: list[DirectRow], models: SimpleNamespace, *, reset: bool = True) -> SimpleNamespace:
    """Of `-1/T sum_j adv_j log pi_j` in the policy and of `1/T sum_j (V_j - (adv_j + V_j))^2 / 2` in the critic.

    Without `reset` (a faulty way) the last token of turn 1 looks ahead to the value of turn 2's first.
    """
    policy_loss, value_loss, num_tokens = torch.zeros(()), torch.zeros(()), 0
    for ids, turns in rows:
        log_pi, log_ref, values = log_probs(models.policy, ids), log_probs(models.reference, ids), models.values(ids)
        for number, turn in enumerate(turns):
            place = turn.place
            ahead = values[turns[1].place.start, None].detach() if number == 0 else torch.zeros(1)
            kl, seen = (log_pi - log_ref)[place].detach(), torch.cat([values[place].detach(), ahead])
            advantages = torch.tensor(advantages_with_a_critic(turn, kl, seen, reset=reset))
            policy_loss = policy_loss - (advantages * log_pi[place]).sum()
            value_loss = value_loss + ((values[place] - (advantages + seen[:-1])) ** 2).sum() / 2
            num_tokens += turn.length
    return SimpleNamespace(
        actor=gradient_of(policy_loss / num_tokens, models.policy),
        critic=gradient_of(value_loss / num_tokens, models.values),
        value_loss=float(value_loss.detach()) / num_tokens,
    )


def plain_models(model_path: Path) -> SimpleNamespace:
    """Plain transformers models of the same shape: `policy` and `reference` as they begin, `values` for the critic."""
    from transformers import AutoModel, AutoModelForCausalLM

    class Values(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = AutoModel.from_pretrained(model_path)
            self.score = torch.nn.Linear(self.model.config.hidden_size, 1, bias=False)

        def forward(self, ids: list[int]) -> torch.Tensor:
            """The value of the context of each token but the first."""
            return self.score(self.model(torch.tensor([ids])).last_hidden_state[0, :-1]).squeeze(-1)

    policy, reference = (AutoModelForCausalLM.from_pretrained(f"{model_path}{suffix}") for suffix in (MOVED, ""))
    return SimpleNamespace(policy=policy, reference=reference, values=Values())


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


Window = tuple[list[tuple[int, ...]], Gradient]  # the rows with actions this rank saw, and the whole gradient


# A loss -> one that is not finite, or whose gradient is not.
POISONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "NaN loss": lambda loss: loss * torch.nan,
    "infinite loss": lambda loss: loss.abs() / 0,
    "NaN gradient": lambda loss: loss + (0 * loss).abs().sqrt(),
    "norm that overflows": lambda loss: loss * 1e28,
}


class Watched:
    """A rank that keeps the rows and the gradient of each optimizer step and shows its weights, all in whole."""

    def watch(self, strategy: Any) -> None:
        self.windows: list[Window] = []
        rows: list[tuple[int, ...]] = []
        step, train = strategy.optimizer_step, self.trainer.training_step

        def note_rows(experience, *args, **kwargs):
            for ids, mask, actions in zip(experience.sequences, experience.attention_mask, experience.action_mask):
                if actions.any():
                    rows.append(tuple(ids[mask.bool()].tolist()))
            return train(experience, *args, **kwargs)

        def keep_and_step(optimizer, model, scheduler, **kwargs):
            if self.engine.is_gradient_accumulation_boundary():
                gradient = {name: safe_get_full_grad(value).clone() for name, value in self.trained()}
                self.windows.append((rows[:], gradient))
                rows.clear()
            step(optimizer, model, scheduler, **kwargs)

        self.trainer.training_step, strategy.optimizer_step = note_rows, keep_and_step
        self.poison_in: tuple[str, int] | None = None
        backward = strategy.backward

        def poison_and_go_back(loss, *args, **kwargs):
            if self.poison_in is not None:
                kind, micro_batches = self.poison_in
                self.poison_in = (kind, micro_batches - 1) if micro_batches else None
                loss = loss if micro_batches else POISONS[kind](loss)
            backward(loss, *args, **kwargs)

        strategy.backward = poison_and_go_back

    def poison(self, rank: int, kind: str, micro_batches: int) -> None:
        """Spoil one loss of `rank`: the one after so many micro batches."""
        if torch.distributed.get_rank() == rank:
            self.poison_in = (kind, micro_batches)

    def adam(self) -> dict[str, Any]:
        """Both moments of this rank's part of the weights, and where the step counters and the schedule stand."""
        states = list(self.engine.basic_optimizer.state.values())
        moments = [state[key].clone() for state in states for key in ("exp_avg", "exp_avg_sq")]
        return {"moments": moments, "steps": [int(state["step"]) for state in states], "lr": self.engine.get_lr()}

    def break_weight(self, wanted: str, number: float) -> None:
        """Make one number of a weight another one, as a step would."""
        for name, value in self.trained():
            if name == wanted:
                whole = safe_get_full_fp32_param(value).clone()
                whole.view(-1)[-1] = number
                safe_set_full_fp32_param(value, whole)
                with GatheredParameters([value], modifier_rank=0, enabled=hasattr(value, "ds_id")):
                    value.data.view(-1)[-1] = number  # what forward passes read and engines get

    def trained(self) -> list[tuple[str, torch.nn.Parameter]]:
        return [(name, value) for name, value in self.engine.module.named_parameters() if value.requires_grad]

    def take_windows(self) -> list[Window]:
        taken, self.windows = self.windows, []
        return taken

    def take_gradients(self) -> list[Gradient]:
        return [gradient for _, gradient in self.take_windows()]

    def weights(self) -> dict[str, torch.Tensor]:
        """The fp32 weights that the optimizer steps from."""
        return {name: safe_get_full_fp32_param(value).clone() for name, value in self.trained()}


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


def config(model: Path, num_ranks: int, keys: Mapping[str, Any] | None = None, **changes: Any) -> Config:
    """`changes` by the top level's names, `keys` by dotted ones."""
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
    for key, value in (keys or {}).items():
        set_value(cfg, key, value)
    return cfg


class RunningGroups:
    """Groups of ranks that outlive a build, so that the next one costs a model load and no processes."""

    def __init__(self) -> None:
        self.groups: dict[tuple[str, int, int], ActorGroup] = {}
        self.reserved: list[Any] = []
        self.asked: Counter[tuple[str, int]] = Counter()

    @contextmanager
    def serving(self) -> Iterator[None]:
        """In the block `build` gets its groups here."""
        self.asked.clear()
        self.reserve_groups = build_module.reserve_groups
        with pytest.MonkeyPatch.context() as patch:
            # what is reserved is only known when a group is really new; until then a Group stands for its GPUs
            patch.setattr(build_module, "reserve_groups", lambda groups, **_: {g.role: [g] for g in groups})
            patch.setattr(build_module, "bundle_nodes", lambda group: ["here"] * group.num_gpus)
            patch.setattr(build_module, "ActorGroup", self.group)
            patch.setattr(build_module, "create_engines", lambda *args, **kwargs: [])
            patch.setattr(build_module, "PolicyActor", ray.remote(num_gpus=1)(WatchedActor))
            patch.setattr(build_module, "CriticActor", ray.remote(num_gpus=1)(WatchedCritic))
            yield

    def group(self, num_nodes: int, num_gpus: int, actor_class: Any, *, pg: Any, **options: Any) -> ActorGroup:
        kind = (actor_class.__ray_metadata__.class_name, num_nodes * num_gpus)
        self.asked[kind] += 1
        key = (*kind, self.asked[kind])
        if key not in self.groups:
            self.reserved += self.reserve_groups([pg], timeout_seconds=60.0)[pg.role]
            self.groups[key] = ActorGroup(num_nodes, num_gpus, actor_class, pg=self.reserved[-1], **options)
        return self.groups[key]

    def end(self) -> None:
        """Their GPUs are free again."""
        for group in self.groups.values():
            for actor in group._actor_handlers:
                ray.kill(actor)
        for group in self.reserved:
            remove_placement_group(group)


@contextmanager
def built(cfg: Config, resume_from: str | None = None, groups: RunningGroups | None = None) -> Iterator[Roles]:
    """The roles of a run without its engines; they end with the block, unless `groups` hold them."""
    own = groups or RunningGroups()
    try:
        with own.serving():
            roles = build(cfg, make_task("math").templates, resume_from=resume_from)
        yield roles
    finally:
        if groups is None:
            own.end()


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

"""The gradient that OpenRLHF's actor arrives at for our experiences is that of the equations, written out once more.

    trajectories -> experience makers -> update of a ZeRO-3 actor -> gradient of each parameter
    trajectories -> the equations, row by row -> autograd of a plain transformers model -> the same

Roles are built as for a run, without engines: the trajectories are made by hand. Learning rates are 0, so that the
same actors serve every case.
"""

from __future__ import annotations

import logging
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import pytest
import ray
import torch
from deepspeed.utils import safe_get_full_grad

from score_openrlhf import platform
from score_openrlhf.config.schema import Config
from score_openrlhf.policies import build as build_module
from score_openrlhf.policies.actors import _PolicyActor
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


BATCHES = {
    "K=1, 7 rows": make_batch((3, 3, 1), 1),
    "K=3, 15 rows": make_batch((2, 2, 1), 3),
    "K=1, failed rows": make_batch((3, 3, 1), 1, failed=(1, 6)),
    "K=3, failed rows": make_batch((2, 2, 1), 3, failed=(0, 6, 7, 8, 13)),
    "K=3, one row left in two windows": make_batch((2, 2, 2), 3, failed=tuple(set(range(18)) - {4})),
}


# ── The equations, by loops over trajectories ──


@dataclass
class Turn:
    """A sampled text of a row: where it stands, its return minus its baseline, and the weight of its KL."""

    start: int
    length: int
    advantage: float
    kl_coef: float


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


def solver_rows(batch: list[Trajectory], stage: int) -> list[DirectRow]:
    rows, used = [], [t for t in batch if t.failure is None]
    return1 = (lambda t: 0.0) if stage == 1 else (lambda t: t.r1)
    return2 = (lambda t: t.r2) if stage == 1 else (lambda t: t.r2 + ALPHA * (t.r2 - t.r1))
    for own in used:
        classes = (lambda t, own=own: t.group == own.group, lambda t: True)
        advantage1 = return1(own) - mean_of_others(own, used, return1, *classes)
        advantage2 = return2(own) - mean_of_others(own, used, return2, *classes)
        y1, y2 = own.attempt.token_ids, own.revision.token_ids
        context2 = own.prompt_ids + y1 + own.bridge_ids
        turn1 = Turn(len(own.prompt_ids), len(y1), advantage1, BETA2 if stage == 1 else BETA1)
        rows.append((context2 + y2, [turn1, Turn(len(context2), len(y2), advantage2, BETA1)]))
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
        rows.append((context + g, [Turn(len(context), len(g), advantage, GUIDANCE_KL)]))
    return rows


def direct_gradient(rows: list[DirectRow], model, reference) -> dict[str, torch.Tensor]:
    """Gradient of `-1/T sum_j (A - beta sum_{i >= j} log pi_i / pi_ref_i) log pi_j`, j over the T sampled tokens."""

    def log_probs(of, ids: list[int]) -> torch.Tensor:
        logits = of(torch.tensor([ids])).logits[0, :-1] / TEMPERATURE
        return logits.log_softmax(-1)[torch.arange(len(ids) - 1), torch.tensor(ids[1:])]

    total, num_tokens = torch.zeros(()), 0
    for ids, turns in rows:
        log_pi, log_ref = log_probs(model, ids), log_probs(reference, ids)
        for turn in turns:
            place = slice(turn.start - 1, turn.start - 1 + turn.length)
            kl = (log_pi - log_ref)[place].detach()
            advantages = turn.advantage - turn.kl_coef * (kl.sum() - kl.cumsum(0) + kl)
            total = total + (advantages * log_pi[place]).sum()
            num_tokens += turn.length
    names, parameters = zip(*model.named_parameters(), strict=True)
    return dict(zip(names, torch.autograd.grad(-total / num_tokens, parameters), strict=True))


# ── The real stack ──


class _GradientActor(_PolicyActor):
    """A policy's rank that has moved away from its reference, and keeps the gradient of each optimizer step."""

    def init_model_from_pretrained(self, strategy, pretrain, max_steps=None, vllm_engines=None):
        super().init_model_from_pretrained(strategy, pretrain + MOVED, max_steps, None)
        self.gradients: list[dict[str, torch.Tensor]] = []
        step = strategy.optimizer_step

        def keep_and_step(optimizer, model, scheduler, **kwargs):
            if model.model.is_gradient_accumulation_boundary():
                parameters = model.model.module.named_parameters()
                self.gradients.append({name: safe_get_full_grad(value).clone() for name, value in parameters})
            step(optimizer, model, scheduler, **kwargs)

        strategy.optimizer_step = keep_and_step

    def take_gradients(self) -> list[dict[str, torch.Tensor]]:
        taken, self.gradients = self.gradients, []
        return taken


def config(model: Path, num_ranks: int) -> Config:
    cfg = Config(
        model_path=str(model), method="rl_guided_score", alpha=ALPHA, beta1=BETA1, beta2=BETA2,
        guidance_kl_coef=GUIDANCE_KL, guidance_lr=0.0,
    )  # fmt: skip
    cfg.guidance.leak_penalty = LEAK_PENALTY
    cfg.rollout.temperature = cfg.rollout.guidance_temperature = TEMPERATURE
    cfg.rollout.micro_batch_size, cfg.train.micro_batch_size, cfg.train.batch_size = 4, 2, WINDOW
    cfg.actor.num_gpus_per_node, cfg.actor.adam.lr, cfg.actor.max_norm = num_ranks, 0.0, 0.0
    cfg.ref.num_gpus_per_node = 1
    cfg.ds.param_dtype, cfg.ds.attn_implementation = "fp32", "sdpa"
    return cfg


@pytest.fixture(scope="module")
def model_path(tmp_path_factory) -> Path:
    """The reference's model; beside it, under its name and `MOVED`, that of the policies."""
    from transformers import AutoModelForCausalLM

    path = make_model(tmp_path_factory.mktemp("gradients") / "model")
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


@pytest.fixture(scope="module")
def direct(model_path) -> Callable[[list[DirectRow]], dict[str, torch.Tensor]]:
    from transformers import AutoModelForCausalLM

    models = [AutoModelForCausalLM.from_pretrained(f"{model_path}{suffix}") for suffix in (MOVED, "")]
    return lambda rows: direct_gradient(rows, *models)


@pytest.fixture(scope="module")
def ray_session() -> Iterator[None]:
    platform.start_fork_server()
    kwargs = platform.ray_init_kwargs(num_gpus=12)
    ray.init(**kwargs, log_to_driver=False, logging_level=logging.ERROR)
    yield
    ray.shutdown()


@pytest.fixture(scope="module", params=[1, 2], ids=["one rank", "two ranks"])
def roles(request, model_path, ray_session) -> Iterator[Roles]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build_module, "create_engines", lambda *args, **kwargs: [])
        patch.setattr(build_module, "PolicyActor", ray.remote(num_gpus=1)(_GradientActor))
        built = build(config(model_path, request.param), make_task("math").templates)
    yield built
    groups = [g for policy in built.policies for g in (policy.actor_model_group, policy.reference_model_group)]
    for actor in {actor for group in groups for actor in group._actor_handlers}:
        ray.kill(actor)


def actor_gradient(policy: Policy, batch: list[Trajectory], stage: int) -> dict[str, torch.Tensor]:
    """Gradient of the one optimizer step that an update on `batch` makes, the same on every rank."""
    made = policy.maker.make_batch(batch, stage=stage)
    policy.update(made, step=0)
    per_rank = ray.get(policy.actor_model_group.async_run_method(method_name="take_gradients"))
    assert [len(gradients) for gradients in per_rank] == [1] * len(per_rank)
    for (other,) in per_rank[1:]:
        assert all(torch.equal(other[name], value) for name, value in per_rank[0][0].items())
    return per_rank[0][0]


def error(actual: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
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


@pytest.mark.parametrize("batch", BATCHES.values(), ids=BATCHES)
@pytest.mark.parametrize("stage", [1, 2])
def test_the_solvers_gradient_is_that_of_the_equations(roles, direct, stage, batch):
    assert error(actor_gradient(roles.solver, batch, stage), direct(solver_rows(batch, stage))) < TOLERANCE


@pytest.mark.parametrize("batch", BATCHES.values(), ids=BATCHES)
def test_the_guidance_models_gradient_is_that_of_the_equations(roles, direct, batch):
    assert error(actor_gradient(roles.guidance, batch, 2), direct(guidance_rows(batch))) < TOLERANCE


def test_an_update_trains_whole_windows_and_skips_the_empty_one(roles):
    solver = roles.solver
    for batch, num_windows in zip(BATCHES.values(), (1, 1, 1, 1, 2), strict=True):
        made = solver.maker.make_batch(batch, stage=1)
        assert sum(len(e.sequences) for e in made.experiences) == num_windows * WINDOW
        before = solver.optimizer_steps
        assert solver.update(made, step=0)["skipped_windows"] == num_windows - 1
        assert solver.optimizer_steps == before + 1
        ray.get(solver.actor_model_group.async_run_method(method_name="take_gradients"))


# ── Other objectives have other gradients: the comparison above can fail ──


def without_kl(row: DirectRow) -> DirectRow:
    return row[0], [Turn(t.start, t.length, t.advantage, 0.0) for t in row[1]]


def one_return_for_both_turns(row: DirectRow) -> DirectRow:
    both = sum(t.advantage for t in row[1])
    return row[0], [Turn(t.start, t.length, both, t.kl_coef) for t in row[1]]


def one_kl_weight(row: DirectRow) -> DirectRow:
    return row[0], [Turn(t.start, t.length, t.advantage, BETA1) for t in row[1]]


def revision_in_another_context(row: DirectRow) -> DirectRow:
    ids, (turn1, turn2) = row
    between = range(turn1.start + turn1.length, turn2.start)
    return [7 if i in between else token for i, token in enumerate(ids)], [turn1, turn2]


def trajectories_weigh_the_same(row: DirectRow) -> DirectRow:
    num = sum(t.length for t in row[1])
    return row[0], [Turn(t.start, t.length, t.advantage / num, t.kl_coef / num) for t in row[1]]


@pytest.mark.parametrize(
    "other",
    [without_kl, one_return_for_both_turns, one_kl_weight, revision_in_another_context, trajectories_weigh_the_same],
)
def test_another_objective_would_be_seen(direct, other):
    rows = solver_rows(BATCHES["K=3, 15 rows"], 1)
    expected, actual = direct(rows), direct([other(row) for row in rows])
    scale = sum((actual[n] * expected[n]).sum() for n in expected) / sum(actual[n].square().sum() for n in expected)
    assert error({name: scale * value for name, value in actual.items()}, expected) > 100 * TOLERANCE

"""What an update does on the real stack beyond the gradient of REINFORCE: Adam and its reset, the critic, and the
correction for log-probs that engine and trainer do not agree on. Each against a small computation of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import ray
import torch

from score_openrlhf.config.schema import Config
from score_openrlhf.policies.build import Roles
from score_openrlhf.policies.policy import Policy
from score_openrlhf.rollout.trajectory import Sample
from tests.stack.equations import (
    GAMMA,
    LAMBD,
    TOLERANCE,
    Gradient,
    Turn,
    actor_gradient,
    built,
    config,
    direct_gradient,
    direct_gradients,
    error,
    error_at_best_scale,
    guidance_rows,
    log_probs,
    make_batch,
    make_models,
    plain_models,
    solver_rows,
    watched,
)

LR = {"actor": 1e-3, "critic": 3e-3}
WEIGHT_DECAY = {"actor": 0.1, "critic": 0.0}
BETAS = (0.9, 0.95)
STAGE1_STEPS, STAGE2_STEPS = 4, 6
BATCH = make_batch((3, 3, 1), 1)
LOW, HIGH = 0.8, 1.25  # the band of the correction


@pytest.fixture(scope="module")
def model_path(tmp_path_factory) -> Path:
    return make_models(tmp_path_factory.mktemp("updates"))


@pytest.fixture(scope="module")
def models(model_path) -> SimpleNamespace:
    """Plain transformers models of the same shape: `policy` and `reference` as they begin, `values` for the critic."""
    return plain_models(model_path)


# ── The critic: values in place of a baseline ──


def critic_config(model_path: Path, num_ranks: int) -> Config:
    """A learning rate that falls to 0 within a stage, so that where the schedule stands shows."""
    cfg = config(
        model_path, num_ranks, method="score", stage1_steps=STAGE1_STEPS, stage2_steps=STAGE2_STEPS,
        carry_optimizer=False,
    )  # fmt: skip
    cfg.actor.adam.lr, cfg.actor.adam.weight_decay = LR["actor"], WEIGHT_DECAY["actor"]
    cfg.actor.adam.betas = list(BETAS)
    cfg.actor.lr_scheduler = "linear"
    cfg.rollout.batch_size = 4  # x 2 attempts: one window, so one optimizer step an update
    cfg.critic.enable, cfg.critic.lr, cfg.critic.gamma, cfg.critic.lambd = True, LR["critic"], GAMMA, LAMBD
    return cfg


@pytest.fixture(scope="module", params=[1, 2], ids=["one rank", "two ranks"])
def critic_roles(request, model_path, ray_session) -> Iterator[Roles]:
    with built(critic_config(model_path, request.param)) as roles:
        yield roles


def groups_of(policy: Policy) -> dict[str, ray.actor.ActorHandle]:
    return {"actor": policy.actor_model_group, "critic": policy.critic_model_group}


def update(policy: Policy, stage: int = 1) -> dict[str, SimpleNamespace]:
    """One update on BATCH: each group's gradient, the weights it arrived at, its next learning rate and its status."""
    status = policy.update(policy.maker.make_batch(BATCH, stage=stage), step=0)
    done = {}
    for name, group in groups_of(policy).items():
        (gradient,) = watched(group, "take_gradients")
        done[name] = SimpleNamespace(
            gradient=gradient, weights=watched(group, "weights"), lr=status[f"{name}_lr"], status=status
        )
    return done


@pytest.mark.parametrize("stage", [1, 2])
def test_the_gradients_of_actor_and_critic_are_those_of_the_equations(critic_roles, models, stage):
    solver = critic_roles.policy("solver")
    models.policy.load_state_dict(watched(solver.actor_model_group, "weights"))
    models.values.load_state_dict(watched(solver.critic_model_group, "weights"))
    rows = solver_rows(BATCH, stage, baseline=False)
    expected, faulty = direct_gradients(rows, models), direct_gradients(rows, models, reset=False)
    for name, done in update(solver, stage).items():
        own = getattr(expected, name)
        assert error(done.gradient, own) < TOLERANCE, name
        assert error_at_best_scale(getattr(faulty, name), own) > 100 * TOLERANCE, name
        norm = torch.cat([value.flatten() for value in own.values()]).norm()
        assert done.status[f"{name}_grad_norm"] == pytest.approx(float(norm), rel=TOLERANCE)
    assert done.status["critic_loss"] == pytest.approx(expected.value_loss, rel=TOLERANCE)


# ── Adam, from where it stands and anew ──


class PlainAdam:
    """torch's AdamW on plain tensors, in the host's groups: no weight decay for biases and norms."""

    def __init__(self, weights: dict[str, torch.Tensor], name: str):
        self.parameters = {name: torch.nn.Parameter(value.clone()) for name, value in weights.items()}
        spared = [key for key in weights if "bias" in key or "norm.weight" in key]
        groups = [
            {
                "params": [p for key, p in self.parameters.items() if (key in spared) == is_spared],
                "weight_decay": decay,
            }
            for is_spared, decay in ((True, 0.0), (False, WEIGHT_DECAY[name]))
        ]
        self.base_lr = LR[name]
        self.adam = torch.optim.AdamW(groups, lr=self.base_lr, betas=BETAS, eps=1e-8)

    def step(self, gradient: Gradient, part_of_lr: float) -> dict[str, torch.Tensor]:
        for group in self.adam.param_groups:
            group["lr"] = self.base_lr * part_of_lr
        for key, parameter in self.parameters.items():
            parameter.grad = gradient[key]
        self.adam.step()
        return {key: parameter.detach() for key, parameter in self.parameters.items()}


def distance(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).abs().max()) for name in one)


def test_a_reset_optimizer_steps_as_a_new_one_from_the_same_weights(model_path, ray_session):
    with built(critic_config(model_path, 1)) as roles:
        solver = roles.policy("solver")
        groups = groups_of(solver)
        carried = {name: PlainAdam(watched(group, "weights"), name) for name, group in groups.items()}
        for part in (4 / 4, 3 / 4, 2 / 4):
            for name, done in update(solver).items():
                assert distance(done.weights, carried[name].step(done.gradient, part)) < 1e-6, name
                assert done.lr == pytest.approx(LR[name] * (part - 1 / STAGE1_STEPS))

        before = {name: watched(group, "weights") for name, group in groups.items()}
        solver.reset_optimizer(STAGE2_STEPS)
        assert all(distance(watched(group, "weights"), before[name]) == 0 for name, group in groups.items())

        new = {name: PlainAdam(before[name], name) for name in groups}
        for done_steps in range(2):
            part = (STAGE2_STEPS - done_steps) / STAGE2_STEPS
            for name, done in update(solver).items():
                expected = new[name].step(done.gradient, part)
                assert distance(done.weights, expected) < 1e-6, name
                assert done.lr == pytest.approx(LR[name] * (part - 1 / STAGE2_STEPS))
                # the moments of before would lead elsewhere
                assert distance(carried[name].step(done.gradient, part), expected) > 1e-4, name


def test_two_ranks_reset_their_parts(critic_roles):
    solver = critic_roles.policy("solver")
    update(solver)
    before = {name: watched(group, "weights") for name, group in groups_of(solver).items()}
    solver.reset_optimizer(STAGE2_STEPS)
    for name, done in update(solver).items():
        expected = PlainAdam(before[name], name).step(done.gradient, 1.0)
        assert distance(done.weights, expected) < 1e-6, name


def test_a_checkpoint_brings_back_actor_and_critic_and_the_stages_schedule(critic_roles, model_path, tmp_path):
    solver = critic_roles.policy("solver")
    solver.reset_optimizer(STAGE2_STEPS)
    update(solver)
    solver.save(str(tmp_path / "solver"), "global_step5", {"global_step": 5})
    kept = {name: watched(group, "weights") for name, group in groups_of(solver).items()}
    next_step = update(solver)
    num_ranks = len(solver.actor_model_group._actor_handlers)
    with built(critic_config(model_path, num_ranks), resume_from=str(tmp_path)) as resumed:
        again = resumed.policy("solver")
        assert again.loaded_step == 5
        for name, group in groups_of(again).items():
            assert distance(watched(group, "weights"), kept[name]) == 0
        again.resume_schedule(STAGE2_STEPS)
        for name, done in update(again).items():
            assert done.lr == pytest.approx(next_step[name].lr)
            assert distance(done.weights, next_step[name].weights) < 1e-6, name


# ── Log-probs of the engine and of the trainer ──


@pytest.fixture(scope="module", params=["mask", "clip"])
def corrected_roles(request, model_path, ray_session) -> Iterator[tuple[str, Roles]]:
    cfg = config(model_path, 1)
    cfg.algo.is_correction.level, cfg.algo.is_correction.mode = "token", request.param
    cfg.algo.is_correction.threshold = [LOW, HIGH]
    with built(cfg) as roles:
        yield request.param, roles


def sampled_by_another_engine(models: SimpleNamespace) -> list:
    """K = 2; the engine's log-probs are the trainer's and noise: ratios in the band and out of it on both sides."""
    batch = make_batch((2, 2, 1), 2, failed=(3,))
    generator = torch.Generator().manual_seed(0)
    seen: dict[tuple, Sample] = {}

    def said(sample: Sample, ids: list[int], start: int) -> Sample:
        key = (tuple(ids), start)  # the K trajectories of an attempt share it
        if key not in seen:
            with torch.no_grad():
                own = log_probs(models.policy, ids)[start - 1 : start - 1 + len(sample.token_ids)]
            noisy = own + 0.3 * torch.randn(len(own), generator=generator)
            seen[key] = Sample(sample.token_ids, noisy.tolist(), sample.text, sample.truncated, sample.version)
        return seen[key]

    for t in batch:
        t.attempt = said(t.attempt, t.prompt_ids + t.attempt.token_ids, len(t.prompt_ids))
        context = t.prompt_ids + t.attempt.token_ids + t.bridge_ids
        t.revision = said(t.revision, context + t.revision.token_ids, len(context))
        t.guidance = said(t.guidance, t.guidance_prompt_ids + t.guidance.token_ids, len(t.guidance_prompt_ids))
    return batch


def correction(mode: str) -> Callable[[torch.Tensor, Turn], torch.Tensor]:
    """Weight of each token: trainer's probability over engine's, 0 outside the band (mask) or at its border (clip)."""

    def weigh(log_pi: torch.Tensor, turn: Turn) -> torch.Tensor:
        ratio = (log_pi - torch.tensor(turn.rollout_log_probs)).exp()
        if mode == "clip":
            return ratio.clamp(LOW, HIGH)
        return ratio * ((ratio >= LOW) & (ratio <= HIGH))

    return weigh


def one_weight_for_the_row(log_pi: torch.Tensor, turn: Turn) -> torch.Tensor:
    return (log_pi - torch.tensor(turn.rollout_log_probs)).mean().exp().expand_as(log_pi)


@pytest.mark.parametrize("name", ["solver", "guidance"])
def test_each_token_is_corrected_by_its_own_ratio(corrected_roles, models, name):
    mode, roles = corrected_roles
    # learning rates are 0 here: both policies stay as they began
    models.policy.load_state_dict(watched(roles.policy("solver").actor_model_group, "weights"))
    batch = sampled_by_another_engine(models)
    policy = roles.policy("solver") if name == "solver" else roles.policy("guidance")
    rows = solver_rows(batch, 2) if name == "solver" else guidance_rows(batch)

    made = policy.maker.make_batch(batch, stage=2)
    for experience in made.experiences:  # what the ratio is taken from: the engine's on actions, 0 elsewhere
        elsewhere = experience.rollout_log_probs[experience.action_mask == 0]
        assert len(elsewhere) and not elsewhere.any()
    told = torch.cat([e.rollout_log_probs[e.action_mask.bool()] for e in made.experiences])
    assert told.tolist() == pytest.approx([value for _, turns in rows for t in turns for value in t.rollout_log_probs])

    status = policy.update(made, step=0)
    (actual,) = watched(policy.actor_model_group, "take_gradients")
    expected = direct_gradient(rows, models.policy, models.reference, weigh=correction(mode))
    assert error(actual, expected) < TOLERANCE
    for other in (one_weight_for_the_row, correction("clip" if mode == "mask" else "mask")):
        faulty = direct_gradient(rows, models.policy, models.reference, weigh=other)
        assert error_at_best_scale(faulty, expected) > 100 * TOLERANCE
    plain = direct_gradient(rows, models.policy, models.reference)
    assert error_at_best_scale(plain, expected) > 100 * TOLERANCE

    ratios = torch.cat([
        (log_probs(models.policy, ids)[t.place].detach() - torch.tensor(t.rollout_log_probs)).exp()
        for ids, turns in rows for t in turns
    ])  # fmt: skip
    assert (ratios < LOW).any() and (ratios > HIGH).any()
    assert status["is_filter_ratio"] > 0 and status["vllm_kl"] != 0


def test_equal_log_probs_need_no_correction(corrected_roles, models):
    """With an engine that says what the trainer says, every weight is 1."""
    _, roles = corrected_roles
    models.policy.load_state_dict(watched(roles.policy("solver").actor_model_group, "weights"))
    batch = make_batch((2, 2, 1), 2)
    with torch.no_grad():
        for t in batch:
            ids = t.prompt_ids + t.attempt.token_ids + t.bridge_ids + t.revision.token_ids
            own = log_probs(models.policy, ids)
            start, after = len(t.prompt_ids), len(ids) - len(t.revision.token_ids)
            t.attempt.log_probs[:] = own[start - 1 : start - 1 + len(t.attempt.token_ids)].tolist()
            t.revision.log_probs[:] = own[after - 1 :].tolist()
    expected = direct_gradient(solver_rows(batch, 1), models.policy, models.reference)
    assert error(actor_gradient(roles.policy("solver"), batch, 1), expected) < TOLERANCE

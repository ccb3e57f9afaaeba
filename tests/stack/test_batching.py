"""However rows are batched and masked (tests/support/batching.py), the gradients are those of the equations.

Actor and critic, on one and two ranks. The processes are started once a number of ranks; learning rates are 0, so all
of a way's cases start from the same weights.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import ray
import torch

from score_openrlhf.config.sizes import sizes
from tests.stack.equations import (
    GAMMA,
    LAMBD,
    TOLERANCE,
    Gradient,
    RunningGroups,
    built,
    config,
    direct_gradients,
    error,
    make_batch,
    make_models,
    plain_models,
    solver_rows,
    watched,
)
from tests.support.batching import MASKED, RANKS, WAYS

STAGE = 2


@pytest.fixture(scope="module")
def model_path(tmp_path_factory) -> Path:
    return make_models(tmp_path_factory.mktemp("batching"))


@pytest.fixture(scope="module")
def groups(ray_session) -> Iterator[RunningGroups]:
    groups = RunningGroups()
    yield groups
    groups.end()


CASES = [(num_ranks, way) for num_ranks in RANKS for way in WAYS]


@pytest.fixture(scope="module", params=CASES, ids=[f"ranks{num_ranks}, {way}" for num_ranks, way in CASES])
def way(request, groups, model_path) -> Iterator[SimpleNamespace]:
    num_ranks, name = request.param
    cfg = config(model_path, num_ranks, keys=WAYS[name], method="score")
    cfg.rollout.batch_size = 9  # x 2 attempts
    cfg.critic.enable, cfg.critic.lr, cfg.critic.gamma, cfg.critic.lambd = True, 0.0, GAMMA, LAMBD
    with built(cfg, groups=groups) as roles:
        models = plain_models(model_path)
        models.policy.load_state_dict(watched(roles.policy("solver").actor_model_group, "weights"))
        models.values.load_state_dict(watched(roles.policy("solver").critic_model_group, "weights"))
        yield SimpleNamespace(solver=roles.policy("solver"), cfg=cfg, size=sizes(cfg, "solver"), models=models)


def windows_of(group) -> list[tuple[list[tuple[int, ...]], Gradient]]:
    """The rows of all ranks and the gradient, of each optimizer step since the last call."""
    windows = []
    for of_ranks in zip(*ray.get(group.async_run_method(method_name="take_windows")), strict=True):
        for _, gradient in of_ranks[1:]:
            torch.testing.assert_close(gradient, of_ranks[0][1], rtol=0, atol=0)
        windows.append(([row for rows, _ in of_ranks for row in rows], of_ranks[0][1]))
    return windows


def distances(weights: dict[str, torch.Tensor], others: dict[str, torch.Tensor]) -> dict[str, float]:
    """Of each weight that is another one, NaN among them."""
    assert weights.keys() == others.keys()
    pairs = {name: (value, others[name].detach()) for name, value in weights.items()}
    return {name: float((a - b).abs().max()) for name, (a, b) in pairs.items() if not torch.equal(a, b)}


@pytest.mark.parametrize("masked", MASKED.values(), ids=MASKED)
def test_each_windows_gradients_are_those_of_the_equations(way, masked):
    batch = make_batch((3, 3, 3, 3, 3, 3), 1, failed=masked)
    rows = {tuple(ids): (ids, turns) for ids, turns in solver_rows(batch, STAGE, baseline=False)}
    num_windows = way.size.optimizer_steps_per_update
    before = way.solver.optimizer_steps
    made = way.solver.maker.make_batch(batch, stage=STAGE)
    status = way.solver.update(made, step=0)

    groups = {"actor": way.solver.actor_model_group, "critic": way.solver.critic_model_group}
    for name, group in groups.items():
        same = way.models.policy if name == "actor" else way.models.values
        differ = distances(watched(group, "weights"), dict(same.named_parameters()))
        assert not differ, (name, len(differ), differ)
        windows = windows_of(group)
        assert Counter(row for rows_of, _ in windows for row in rows_of) == dict.fromkeys(
            rows, way.cfg.train.max_epochs
        )
        for seen, gradient in windows:
            expected = direct_gradients([rows[row] for row in seen], way.models)
            assert error(gradient, getattr(expected, name)) < TOLERANCE, name
        skipped = status["skipped_windows" if name == "actor" else "critic_skipped_windows"]
        assert skipped == num_windows - len(windows), name
        assert (skipped > 0) == (len(rows) == 0 or (len(rows) == 1 and num_windows > 1 * way.cfg.train.max_epochs))
    assert way.solver.optimizer_steps == before + len(windows)
    assert status["nonfinite_steps"] == status["critic_nonfinite_steps"] == 0
    if rows:
        whole = direct_gradients(list(rows.values()), way.models)
        assert status["critic_loss"] == pytest.approx(whole.value_loss, rel=TOLERANCE)
        # the host's training-time loss is the surrogate where no step has moved the weights
        assert status["policy_loss"] == pytest.approx(made.metrics["loss"], rel=TOLERANCE)
    else:
        assert "policy_loss" not in status

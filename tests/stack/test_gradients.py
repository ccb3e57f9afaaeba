"""The gradient that OpenRLHF's actor arrives at for our experiences is that of the equations, written out once more.

    trajectories -> experience makers -> update of a ZeRO-3 actor -> gradient of each parameter
    trajectories -> the equations, row by row -> autograd of a plain transformers model -> the same

Roles are built as for a run, without engines: the trajectories are made by hand. Learning rates are 0, so that the
same actors serve every case.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from score_openrlhf.policies.build import Roles
from tests.stack.equations import (
    BETA1,
    MOVED,
    TOLERANCE,
    WINDOW,
    DirectRow,
    Gradient,
    Turn,
    actor_gradient,
    built,
    config,
    direct_gradient,
    error,
    error_at_best_scale,
    guidance_rows,
    make_batch,
    make_models,
    solver_rows,
    watched,
)

BATCHES = {
    "K=1, 7 rows": make_batch((3, 3, 1), 1),
    "K=3, 15 rows": make_batch((2, 2, 1), 3),
    "K=1, failed rows": make_batch((3, 3, 1), 1, failed=(1, 6)),
    "K=3, failed rows": make_batch((2, 2, 1), 3, failed=(0, 6, 7, 8, 13)),
    "K=3, one row left in two windows": make_batch((2, 2, 2), 3, failed=tuple(set(range(18)) - {4})),
}


@pytest.fixture(scope="module")
def model_path(tmp_path_factory) -> Path:
    return make_models(tmp_path_factory.mktemp("gradients"))


@pytest.fixture(scope="module")
def direct(model_path) -> Callable[[list[DirectRow]], Gradient]:
    from transformers import AutoModelForCausalLM

    models = [AutoModelForCausalLM.from_pretrained(f"{model_path}{suffix}") for suffix in (MOVED, "")]
    return lambda rows: direct_gradient(rows, *models)


@pytest.fixture(scope="module", params=[1, 2], ids=["one rank", "two ranks"])
def roles(request, model_path, ray_session) -> Iterator[Roles]:
    with built(config(model_path, request.param)) as roles:
        yield roles


@pytest.mark.parametrize("batch", BATCHES.values(), ids=BATCHES)
@pytest.mark.parametrize("stage", [1, 2])
def test_the_solvers_gradient_is_that_of_the_equations(roles, direct, stage, batch):
    assert error(actor_gradient(roles.policy("solver"), batch, stage), direct(solver_rows(batch, stage))) < TOLERANCE


@pytest.mark.parametrize("batch", BATCHES.values(), ids=BATCHES)
def test_the_guidance_models_gradient_is_that_of_the_equations(roles, direct, batch):
    assert error(actor_gradient(roles.policy("guidance"), batch, 2), direct(guidance_rows(batch))) < TOLERANCE


def test_an_update_trains_whole_windows_and_skips_the_empty_one(roles):
    solver = roles.policy("solver")
    for batch, num_windows in zip(BATCHES.values(), (1, 1, 1, 1, 2), strict=True):
        made = solver.maker.make_batch(batch, stage=1)
        assert sum(len(e.sequences) for e in made.experiences) == num_windows * WINDOW
        before = solver.optimizer_steps
        assert solver.update(made, step=0)["skipped_windows"] == num_windows - 1
        assert solver.optimizer_steps == before + 1
        watched(solver.actor_model_group, "take_gradients")


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
    assert error_at_best_scale(actual, expected) > 100 * TOLERANCE

"""Rows of both policies: which tokens are actions, where turn 2 begins, and how a batch is padded."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from score_openrlhf.experience.rows import guidance_row, pad_rows, solver_row, turn_map
from tests.support.fakes import trajectory


def test_solver_row_is_prompt_attempt_bridge_revision():
    row = solver_row(trajectory())
    experience = row.experience()
    assert experience.sequences.tolist() == [[1, 2, 3, 10, 11, 4, 5, 20, 21, 22]]
    #                 action i is token i + 1:    2  3 10 11  4  5 20 21 22
    assert experience.action_mask.tolist() == [[0, 0, 1, 1, 0, 0, 1, 1, 1]]
    turn = turn_map(experience.action_mask, torch.tensor([row.turn_boundary]))
    assert turn.tolist() == [[0, 0, 1, 1, 0, 0, 2, 2, 2]]
    assert experience.rollout_log_probs.tolist() == [[0, 0, -0.5, -0.5, 0, 0, -0.5, -0.5, -0.5]]


def test_the_base_models_attempt_is_context_and_the_revision_still_turn_2():
    row = solver_row(trajectory(base_attempt=True))
    experience = row.experience()
    assert experience.sequences.tolist() == [[1, 2, 3, 10, 11, 4, 5, 20, 21, 22]]
    turn = turn_map(experience.action_mask, torch.tensor([row.turn_boundary]))
    assert turn.tolist() == [[0, 0, 0, 0, 0, 0, 2, 2, 2]]
    assert experience.rollout_log_probs.tolist() == [[0, 0, 0, 0, 0, 0, -0.5, -0.5, -0.5]]


def test_guidance_row_is_its_prompt_and_the_sampled_guidance():
    row = guidance_row(trajectory())
    experience = row.experience()
    assert experience.sequences.tolist() == [[6, 7, 30, 31]]
    assert turn_map(experience.action_mask, torch.tensor([row.turn_boundary])).tolist() == [[0, 1, 1]]


@pytest.mark.parametrize(
    "broken", [{"failure": "guide: ValueError"}, {"masked": "truncated_attempt"}, {"revision": ()}]
)
def test_failed_and_masked_trajectories_stay_as_rows_without_actions(broken):
    for make in (solver_row, guidance_row):
        row = make(trajectory(**broken))
        assert not row.use
        assert row.experience().action_mask.sum() == 0


def test_method_score_has_no_guidance_tokens():
    assert not guidance_row(trajectory(guidance=())).use


@given(num_rows=st.integers(1, 40), multiple=st.integers(1, 16))
def test_padding_fills_whole_windows_with_masked_rows(num_rows, multiple):
    rows = pad_rows([solver_row(trajectory(group=i)) for i in range(num_rows)], multiple)
    assert len(rows) % multiple == 0 and 0 <= len(rows) - num_rows < multiple
    assert [row.trajectory.group for row in rows[:num_rows]] == list(range(num_rows))
    assert all(row.trajectory is None and not row.use for row in rows[num_rows:])


def test_rows_without_a_prompt_are_padded_like_the_rest():
    nothing = trajectory(prompt=(), attempt=(), bridge=(), revision=(), failure="attempt: PromptTooLong")
    rows = pad_rows([solver_row(nothing), solver_row(trajectory())], 2)
    assert [row.use for row in rows] == [False, True]
    assert rows[0].experience().action_mask.sum() == 0


def test_a_batch_with_nothing_in_it_is_an_error():
    nothing = trajectory(prompt=(), attempt=(), bridge=(), revision=(), failure="attempt: PromptTooLong")
    with pytest.raises(ValueError, match="none of the 1 trajectories"):
        pad_rows([solver_row(nothing)], 4)

"""Properties of objective.py on random batches: what must not depend on what."""

import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from score_openrlhf import objective as o

fast = settings(max_examples=40, deadline=None)

ids = st.integers(-(10**12), 10**12)
grades = st.sampled_from([0.0, 1.0])
rows = st.tuples(st.sampled_from([-5, 0, 3, 10**9]), st.integers(-2, 2), grades, grades, st.booleans())
batches = st.lists(rows, min_size=1, max_size=24)
kinds = st.sampled_from(o.BASELINES)
stages = st.sampled_from([1, 2])
NUM_COLUMNS = 7


def columns(batch):
    group, unit, r1, r2, mask = zip(*batch, strict=True)
    return (
        torch.tensor(group),
        torch.tensor(unit),
        torch.tensor(r1, dtype=torch.float64),
        torch.tensor(r2, dtype=torch.float64),
        torch.tensor(mask),
    )


def tokens(num_rows, seed):
    """Random (B, A) turns, each row `1 .. 1 0 .. 0 2 .. 2 0 .. 0` with any part empty, and random KL."""
    generator = torch.Generator().manual_seed(seed)
    cuts = torch.randint(0, NUM_COLUMNS + 1, (num_rows, 3), generator=generator).sort(dim=1).values
    column = torch.arange(NUM_COLUMNS)
    turn = (column < cuts[:, :1]).long() + 2 * ((column >= cuts[:, 1:2]) & (column < cuts[:, 2:])).long()
    return turn, torch.randn(num_rows, NUM_COLUMNS, dtype=torch.float64, generator=generator)


def solver_advantages(r1, r2, group, unit, mask, kl, turn, *, kind, stage=2, alpha=10.0, gamma_turn=0.0):
    G1, G2 = o.turn_returns(*o.turn_rewards(r1, r2, stage=stage, alpha=alpha), gamma_turn=gamma_turn)
    A1, A2 = (G - o.baseline(G, group, kind=kind, unit=unit, mask=mask) for G in (G1, G2))
    return o.token_advantages(A1, A2, kl, turn, kl_coef=o.kl_coefs(stage=stage, beta1=0.01, beta2=0.1))


def close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-9)


@fast
@given(batches, kinds, stages, st.sampled_from(tuple(o.NORMALISATIONS)), st.integers(0, 2**31), st.randoms())
def test_permuting_the_batch_permutes_the_result(batch, kind, stage, normalisation, seed, random):
    group, unit, r1, r2, mask = columns(batch)
    turn, kl = tokens(len(batch), seed)
    order = torch.tensor(random.sample(range(len(batch)), len(batch)))

    def advantages(index):
        parts = (part[index] for part in (r1, r2, group, unit, mask, kl, turn))
        return o.normalise(solver_advantages(*parts, kind=kind, stage=stage), turn[index], kind=normalisation)

    close(advantages(order), advantages(torch.arange(len(batch)))[order])
    guidance = o.guidance_baseline(r2, unit, r1, kind="leave_one_out", mask=mask)
    permuted = o.guidance_baseline(r2[order], unit[order], r1[order], kind="leave_one_out", mask=mask[order])
    close(permuted, guidance[order])


@fast
@given(batches, kinds, st.dictionaries(st.integers(-2, 2), ids), st.dictionaries(st.integers(-2, 2), ids))
def test_ids_are_only_names(batch, kind, group_names, unit_names):
    group, unit, _, r2, mask = columns(batch)
    group_ids = torch.unique(group).tolist()
    new_group = {old: group_names.get(index - 2, index) for index, old in enumerate(group_ids)}
    assume(len(set(new_group.values())) == len(new_group))
    new_unit = {old: unit_names.get(old, old) for old in range(-2, 3)}
    assume(len(set(new_unit.values())) == len(new_unit))
    renamed = (
        torch.tensor([new_group[old] for old in group.tolist()]),
        torch.tensor([new_unit[old] for old in unit.tolist()]),
    )
    before = o.baseline(r2, group, kind=kind, unit=unit, mask=mask)
    close(o.baseline(r2, renamed[0], kind=kind, unit=renamed[1], mask=mask), before)


@fast
@given(
    batches, st.sampled_from(["leave_one_out", "group_mean"]), st.lists(st.floats(-100, 100), min_size=4, max_size=4)
)
def test_a_constant_added_to_a_group_changes_no_advantage(batch, kind, constants):
    group, unit, _, r2, mask = columns(batch)
    shift = torch.tensor(constants, dtype=torch.float64)[torch.unique(group, return_inverse=True)[1]]
    before = r2 - o.baseline(r2, group, kind=kind, unit=unit, mask=mask)
    after = r2 + shift - o.baseline(r2 + shift, group, kind=kind, unit=unit, mask=mask)
    attempts = [len(set(unit[(group == row_group) & mask].tolist())) for row_group in group]
    compared = mask & (torch.tensor(attempts) > 1)  # a lone attempt is compared with the batch, so it does change
    close(after[compared], before[compared])


@fast
@given(batches)
def test_a_mean_is_a_part_of_leave_one_out_row_by_row(batch):
    group, unit, _, r2, mask = columns(batch)
    # what an attempt is in a batch taken as one problem: its own group and unit
    _, attempt = torch.unique(torch.stack([group, unit]), dim=1, return_inverse=True)
    for kind, problem in (("group_mean", group), ("batch_mean", torch.zeros_like(group))):
        num = [len(set(attempt[(problem == p) & mask].tolist())) for p in problem.tolist()]
        part = torch.tensor([(n - 1) / n if n else 0.0 for n in num], dtype=torch.float64)
        with_mean = r2 - o.baseline(r2, group, kind=kind, unit=unit, mask=mask)
        without_own = r2 - o.baseline(r2, problem, kind="leave_one_out", unit=attempt, mask=mask)
        close(with_mean[mask], (part * without_own)[mask])


@fast
@given(batches, kinds, st.integers(0, 2**31))
def test_without_alpha_stage_2_is_two_single_turn_problems(batch, kind, seed):
    group, unit, r1, r2, mask = columns(batch)
    turn, kl = tokens(len(batch), seed)
    both = solver_advantages(r1, r2, group, unit, mask, kl, turn, kind=kind, alpha=0.0)
    separate = torch.zeros_like(both)
    for number, grade in ((1, r1), (2, r2)):
        A = grade - o.baseline(grade, group, kind=kind, unit=unit, mask=mask)
        separate += o.single_turn_advantages(A, kl, turn == number, kl_coef=0.01)
    close(both, separate)


@fast
@given(batches, kinds, stages, st.integers(0, 2**31))
def test_without_gamma_turn_no_token_of_turn_1_sees_r2(batch, kind, stage, seed):
    group, unit, r1, r2, mask = columns(batch)
    turn, kl = tokens(len(batch), seed)
    one, other = (
        solver_advantages(r1, revision, group, unit, mask, kl, turn, kind=kind, stage=stage)
        for revision in (r2, 1 - r2)
    )
    assert torch.equal(one[turn == 1], other[turn == 1])
    discounted = solver_advantages(r1, 1 - r2, group, unit, mask, kl, turn, kind="none", stage=stage, gamma_turn=0.5)
    undiscounted = solver_advantages(r1, 1 - r2, group, unit, mask, kl, turn, kind="none", stage=stage)
    _, R2 = o.turn_rewards(r1, 1 - r2, stage=stage, alpha=10.0)
    close((discounted - undiscounted)[turn == 1], 0.5 * R2[:, None].expand_as(kl)[turn == 1])


@fast
@given(batches, kinds)
def test_masked_rows_do_not_matter(batch, kind):
    group, unit, r1, r2, mask = columns(batch)
    spoiled = torch.where(mask, r2, math.nan)
    for function in (o.baseline, o.group_std):
        options = {"kind": kind} if function is o.baseline else {}
        whole = function(spoiled, group, unit=unit, mask=mask, **options)
        close(whole[mask], function(r2[mask], group[mask], unit=unit[mask], **options))
        assert (whole[~mask] == (0 if function is o.baseline else 1)).all()
    if kind in o.GUIDANCE_BASELINES:
        whole = o.guidance_baseline(spoiled, unit, torch.where(mask, r1, math.nan), kind=kind, mask=mask)
        close(whole[mask], o.guidance_baseline(r2[mask], unit[mask], r1[mask], kind=kind))
        assert (whole[~mask] == 0).all()


@fast
@given(batches, kinds, st.integers(2, 4))
def test_repeating_every_row_of_an_attempt_changes_nothing(batch, kind, num_copies):
    group, unit, _, r2, mask = columns(batch)
    once = o.baseline(r2, group, kind=kind, unit=unit, mask=mask)
    copied = (part.repeat_interleave(num_copies) for part in (r2, group, unit, mask))
    returns, group, unit, mask = copied
    close(o.baseline(returns, group, kind=kind, unit=unit, mask=mask), once.repeat_interleave(num_copies))
    deviations = o.group_std(r2, *columns(batch)[:1], unit=columns(batch)[1], mask=columns(batch)[4])
    close(o.group_std(returns, group, unit=unit, mask=mask), deviations.repeat_interleave(num_copies))


@fast
@given(batches, st.integers(0, 2**31))
def test_improvement_is_outcome_under_a_baseline_within_one_state(batch, seed):
    _, state, _, r2, mask = columns(batch)
    # One attempt, one grade: r1 is a function of the state. Every state has a sibling, so none looks outside.
    state, r2, mask = state.repeat(2), torch.cat([r2, 1 - r2]), mask.repeat(2)
    r1 = (state % 2).double()
    advantages = {}
    for kind in o.GUIDANCE_REWARDS:
        reward = o.guidance_rewards(r1, r2, torch.zeros_like(r1), kind=kind, leak_penalty=0.0)
        advantages[kind] = reward - o.guidance_baseline(reward, state, r1, kind="leave_one_out", mask=mask)
    close(advantages["improvement"][mask], advantages["outcome"][mask])


@fast
@given(batches, stages, st.floats(0, 1), st.integers(0, 2**31))
def test_undiscounted_gae_without_a_critic_is_the_token_advantage(batch, stage, gamma_turn, seed):
    _, _, r1, r2, _ = columns(batch)
    turn, kl = tokens(len(batch), seed)
    G1, G2 = o.turn_returns(*o.turn_rewards(r1, r2, stage=stage, alpha=10.0), gamma_turn=gamma_turn)
    coefs = o.kl_coefs(stage=stage, beta1=0.3, beta2=0.7)
    rewards = o.token_rewards(G1, G2, kl, turn, kl_coef=coefs)
    advantages, returns = o.turn_gae(rewards, torch.zeros_like(kl), turn, gamma=1.0, lambd=1.0)
    close(advantages, o.token_advantages(G1, G2, kl, turn, kl_coef=coefs))
    close(returns, advantages)


@fast
@given(st.integers(1, 8), st.integers(0, 2**31), st.floats(0, 1), st.floats(0, 1))
def test_gae_of_a_turn_is_that_of_the_turn_alone(num_rows, seed, gamma, lambd):
    turn, rewards = tokens(num_rows, seed)
    _, values = tokens(num_rows, seed + 1)
    advantages, returns = o.turn_gae(rewards, values, turn, gamma=gamma, lambd=lambd)
    for number in (1, 2):
        alone = (turn == number).long()
        expected = o.turn_gae(rewards, values, alone, gamma=gamma, lambd=lambd)
        close(advantages[turn == number], expected[0][turn == number])
        close(returns[turn == number], expected[1][turn == number])
    assert (advantages[turn == 0] == 0).all() and (returns[turn == 0] == 0).all()


@fast
@given(st.integers(2, 8), st.integers(0, 2**31))
def test_normalised_turns_have_mean_0_and_deviation_1(num_rows, seed):
    turn, advantages = tokens(num_rows, seed)
    assume(min((turn == 1).sum(), (turn == 2).sum()) > 1)
    scaled = o.normalise(advantages * (1 + 10 * (turn == 2)), turn, kind="std")
    for number in (1, 2):
        assert scaled[turn == number].mean() == pytest.approx(0, abs=1e-9)
        assert scaled[turn == number].std(unbiased=False) == pytest.approx(1, abs=1e-6)
    skipped = o.normalise(advantages, turn, kind="std", skip_turns=(1,))
    assert torch.equal(skipped[turn == 1], advantages[turn == 1])
    close(skipped[turn == 2], o.normalise(advantages, turn, kind="std")[turn == 2])

"""Golden numbers of objective.py, each worked out by hand in a comment, and its error messages."""

import math

import pytest
import torch

from score_openrlhf import objective as o

F64 = torch.float64


def t(*values, dtype=F64):
    return torch.tensor(values, dtype=dtype)


def ids(*values):
    return torch.tensor(values)


def close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)


# The four transitions: wrong to wrong, wrong to right, right to wrong, right to right.
R1_ALL, R2_ALL = t(0, 0, 1, 1), t(0, 1, 0, 1)


def test_rewards_of_stage_1_are_the_revisions_alone():
    R1, R2 = o.turn_rewards(R1_ALL, R2_ALL, stage=1, alpha=10.0)
    close(R1, t(0, 0, 0, 0))
    close(R2, t(0, 1, 0, 1))


def test_rewards_of_stage_2_add_the_progress_bonus_unclipped():
    # r2 + 10 (r2 - r1): 0, 1 + 10, 0 - 10, 1 + 0
    R1, R2 = o.turn_rewards(R1_ALL, R2_ALL, stage=2, alpha=10.0)
    close(R1, t(0, 0, 1, 1))
    close(R2, t(0, 11, -10, 1))


def test_returns_discount_the_revision_into_the_attempt():
    # G1 = R1 + 0.5 R2: 0, 0 + 5.5, 1 - 5, 1 + 0.5
    G1, G2 = o.turn_returns(t(0, 0, 1, 1), t(0, 11, -10, 1), gamma_turn=0.5)
    close(G1, t(0, 5.5, -4, 1.5))
    close(G2, t(0, 11, -10, 1))


def test_kl_coefs_anchor_the_attempt_in_stage_1_on_top_of_the_default():
    assert o.kl_coefs(stage=1, beta1=0.25, beta2=0.5) == (0.75, 0.25)
    assert o.kl_coefs(stage=1, beta1=0.01, beta2=0.1) == pytest.approx((0.11, 0.01))
    assert o.kl_coefs(stage=2, beta1=0.01, beta2=0.1) == (0.01, 0.01)


@pytest.mark.parametrize(
    "kind, expected",
    [
        ("outcome", (0, 1, 0, 1)),  # r2
        ("improvement", (0, 1, -1, 0)),  # r2 - r1
        ("transition", (0, 1, 0, 0.2)),  # wrong to right 1, right to right 0.2
    ],
)
def test_guidance_rewards_and_the_leak_penalty(kind, expected):
    none = torch.zeros(4, dtype=torch.bool)
    close(o.guidance_rewards(R1_ALL, R2_ALL, none, kind=kind, leak_penalty=0.5), t(*expected))
    leak = torch.tensor([True, True, False, False])  # takes 0.5 from the first two
    shifted = t(*expected) - t(0.5, 0.5, 0, 0)
    close(o.guidance_rewards(R1_ALL, R2_ALL, leak, kind=kind, leak_penalty=0.5), shifted)
    close(o.guidance_rewards(R1_ALL, R2_ALL, leak, kind=kind, leak_penalty=0.0), t(*expected))


# Problem 7: attempt 40 in rows 0, 3 (and 7, which failed), attempt 41 in rows 2, 5. Problem -3: attempts 5 and 6 in
# rows 1 and 4. Problem 99: one attempt, which reuses the id 5. Values of the attempts:
#   (7, 40) = (2 + 4) / 2 = 3,  (7, 41) = 6,  (-3, 5) = 10,  (-3, 6) = 1,  (99, 5) = 8
GROUP = ids(7, -3, 7, 7, -3, 7, 99, 7)
UNIT = ids(40, 5, 41, 40, 6, 41, 5, 40)
RETURNS = t(2, 10, 6, 4, 1, 6, 8, math.nan)
MASK = torch.tensor([True] * 7 + [False])


@pytest.mark.parametrize(
    "kind, expected",
    [
        ("none", (0, 0, 0, 0, 0, 0, 0, 0)),
        # a row in place of its own attempt's mean; rows of 40: (2 + 6 + 10 + 1 + 8) / 5 = 5.4 and
        # (4 + 6 + 10 + 1 + 8) / 5 = 5.8; attempts whose rows are equal: (3 + 6 + 10 + 1 + 8) / 5 = 5.6
        ("batch_mean", (5.4, 5.6, 5.6, 5.8, 5.6, 5.6, 5.6, 0)),
        # problem 7: rows of 40 (2 + 6) / 2 = 4 and (4 + 6) / 2 = 5, rows of 41 (6 + 3) / 2 = 4.5;
        # problem -3: (10 + 1) / 2 = 5.5; problem 99: 8
        ("group_mean", (4, 5.5, 4.5, 5, 5.5, 4.5, 8, 0)),
        # the other attempt: 6 for rows of 40, 3 for rows of 41, 1 and 10; problem 99 has one attempt, so the other
        # attempts of the batch: (3 + 6 + 10 + 1) / 4 = 5
        ("leave_one_out", (6, 1, 3, 6, 10, 3, 5, 0)),
    ],
)
def test_baselines_over_attempts(kind, expected):
    close(o.baseline(RETURNS, GROUP, kind=kind, unit=UNIT, mask=MASK), t(*expected))


def test_without_units_each_row_is_its_own():
    # problem 7 has rows 2, 6, 4, 6: leaving out the 2 gives 16/3, a 6 gives 12/3, the 4 gives 14/3; the lone row of
    # problem 99 takes the other rows of the batch: (2 + 10 + 6 + 4 + 1 + 6) / 6 = 29/6
    actual = o.baseline(RETURNS[:7], GROUP[:7], kind="leave_one_out")
    close(actual, t(16 / 3, 1, 4, 14 / 3, 10, 4, 29 / 6))


def test_a_single_attempt_in_the_whole_batch_has_baseline_zero():
    close(o.baseline(t(3, 5), ids(1, 1), kind="leave_one_out", unit=ids(8, 8)), t(0, 0))


def test_a_single_attempt_has_no_advantage_under_its_own_mean():
    # (1 - 1) / 1 of what leave-one-out would give: its revisions are not compared with one another either
    for kind in ("group_mean", "batch_mean"):
        close(o.baseline(t(3, 5), ids(1, 1), kind=kind, unit=ids(8, 8)), t(3, 5))


def test_baseline_of_an_empty_or_fully_masked_batch():
    assert o.baseline(t(), ids().long(), kind="leave_one_out").shape == (0,)
    nothing = torch.zeros(2, dtype=torch.bool)
    for kind in o.BASELINES:
        close(o.baseline(t(math.nan, 1), ids(1, 1), kind=kind, mask=nothing), t(0, 0))


def test_small_returns_are_not_lost_beside_large_ones():
    # In float32 the sum 2^25 + 1 + 1 is 2^25, and leaving out the first would give 0 instead of (1 + 1) / 2.
    big = 2.0**25
    returns = t(big, 1, 1, dtype=torch.float32)
    assert o.baseline(returns, ids(0, 0, 0), kind="leave_one_out")[0] == 1.0
    # Within an attempt: (2^25 + 1 - 2^25) / 3
    returns = t(big, 1, -big, 0, dtype=torch.float32)
    actual = o.baseline(returns, ids(0, 0, 0, 0), kind="leave_one_out", unit=ids(0, 0, 0, 1))
    assert actual[3].item() == pytest.approx(1 / 3, rel=1e-6)


def test_guidance_baseline_takes_the_states_own_guidances_first():
    # state 0, K = 3, rewards 1 0 1: the others' means 1/2, 1, 1/2
    # states 1 and 2, K = 1, r1 = 0 like state 0 (mean 2/3): (2/3 + 0) / 2 = 1/3 and (2/3 + 1) / 2 = 5/6
    # state 3 is alone with r1 = 1: all other states, (2/3 + 1 + 0) / 3 = 5/9
    rewards, state, r1 = t(1, 1, 0, 0, 1, 1), ids(0, 1, 0, 2, 0, 3), t(0, 0, 0, 0, 0, 1)
    close(o.guidance_baseline(rewards, state, r1, kind="leave_one_out"), t(1 / 2, 1 / 3, 1, 5 / 6, 1 / 2, 5 / 9))


def test_guidance_baseline_with_one_guidance_per_attempt():
    # r1 = 0 in the first three: (0 + 1)/2, (1 + 1)/2, (1 + 0)/2; the fourth is alone in its class: (1 + 0 + 1)/3
    rewards, state, r1 = t(1, 0, 1, 1), ids(4, 2, 9, 1), t(0, 0, 0, 1)
    close(o.guidance_baseline(rewards, state, r1, kind="leave_one_out"), t(1 / 2, 1, 1 / 2, 2 / 3))
    close(o.guidance_baseline(rewards, state, r1, kind="batch_mean"), t(3 / 4, 3 / 4, 3 / 4, 3 / 4))
    close(o.guidance_baseline(rewards, state, r1, kind="none"), t(0, 0, 0, 0))


def test_guidance_whose_siblings_failed_is_alone_in_its_state():
    # state 0 keeps one of two guidances, so it looks to state 1 (same r1): mean (0 + 1) / 2
    rewards, state, r1 = t(1, math.nan, 0, 1), ids(0, 0, 1, 1), t(0, math.nan, 0, 0)
    mask = torch.tensor([True, False, True, True])
    close(o.guidance_baseline(rewards, state, r1, kind="leave_one_out", mask=mask), t(1 / 2, 0, 1, 0))


def test_group_std_is_the_sample_deviation_over_attempts():
    # problem 7, mean (3 + 6) / 2 = 4.5: attempt 40 (2.5^2 + 0.5^2) / 2 = 3.25, attempt 41 1.5^2 = 2.25, so
    # sqrt(5.5 / 1); problem -3: 10 and 1, sqrt((4.5^2 + 4.5^2) / 1) = sqrt(40.5); one attempt, or a failed row: 1
    a, b = math.sqrt(5.5) + 1e-9, math.sqrt(40.5) + 1e-9
    close(o.group_std(RETURNS, GROUP, unit=UNIT, mask=MASK), t(a, b, a, a, b, a, 1, 1))


def test_attempts_of_one_mean_have_the_deviation_of_their_revisions():
    # Both attempts have the mean 1/2, and each row is off by 1/2: (1/4 + 1/4) / 1. The deviation of the means would be
    # 0, and next to 0 if one revision's grade were a little lower: advantages of 1/4 over nothing.
    returns, unit = t(0, 1, 1, 0), ids(0, 0, 1, 1)
    close(o.group_std(returns, ids(5, 5, 5, 5), unit=unit), t(*[math.sqrt(1 / 2) + 1e-9] * 4))


def test_equal_attempts_are_not_divided_by_rounding_noise():
    tenths = t(0.1, 0.1, 0.1)
    assert tenths.sum() / 3 != 0.1  # so each is a little off the mean
    close(o.group_std(tenths, ids(0, 0, 0)), t(1, 1, 1))


TURN = ids(1, 1, 0, 2, 2, 0)[None]
KL = t(0.1, 0.2, 9, 0.3, 0.4, math.nan)[None]  # 9 and nan lie on columns that are no action


@pytest.mark.parametrize(
    "kl_credit, expected",
    [
        # turn 1: 1 - 0.5 (0.1 + 0.2), 1 - 0.5 * 0.2; turn 2: -2 - 0.1 (0.3 + 0.4), -2 - 0.1 * 0.4
        ("to_go", (0.85, 0.9, 0, -2.07, -2.04, 0)),
        # each token's own: 1 - 0.5 * 0.1, 1 - 0.5 * 0.2; -2 - 0.1 * 0.3, -2 - 0.1 * 0.4
        ("own", (0.95, 0.9, 0, -2.03, -2.04, 0)),
    ],
)
def test_token_advantages(kl_credit, expected):
    actual = o.token_advantages(t(1), t(-2), KL, TURN, kl_coef=(0.5, 0.1), kl_credit=kl_credit)
    close(actual, t(*expected)[None])


def test_single_turn_advantages():
    # 2 - 0.5 (0.1 + 0.2), 2 - 0.5 * 0.2
    mask = torch.tensor([[True, True, False]])
    close(o.single_turn_advantages(t(2), KL[:, :3], mask, kl_coef=0.5), t(1.85, 1.9, 0)[None])


@pytest.mark.parametrize(
    "stage, A1, A2, coef1",
    [
        # G2 = r2 = 1 1 0; the others' means 1/2, 1/2, 1. Turn 1 earns nothing and pays KL at beta1 + beta2.
        (1, (0, 0, 0), (0.5, 0.5, -1), 0.11),
        # G1 = r1 = 0 1 0 against 1/2, 0, 1/2. G2 = 1 + 10, 1, 0 against 1/2, 11/2, 6.
        (2, (-0.5, 1, -0.5), (10.5, -4.5, -6), 0.01),
    ],
)
def test_a_whole_solver_batch(stage, A1, A2, coef1):
    r1, r2, group = t(0, 1, 0), t(1, 1, 0), ids(3, 3, 3)
    G1, G2 = o.turn_returns(*o.turn_rewards(r1, r2, stage=stage, alpha=10.0), gamma_turn=0.0)
    actual = o.token_advantages(
        G1 - o.baseline(G1, group, kind="leave_one_out"),
        G2 - o.baseline(G2, group, kind="leave_one_out"),
        t(0.2, 0.4, 0.1).expand(3, 3),
        ids(1, 1, 2).expand(3, 3),
        kl_coef=o.kl_coefs(stage=stage, beta1=0.01, beta2=0.1),
    )
    # KL credit: turn 1 0.2 + 0.4 then 0.4; turn 2 0.1 at beta1 = 0.01
    A1, A2 = t(*A1), t(*A2)
    close(actual, torch.stack([A1 - coef1 * 0.6, A1 - coef1 * 0.4, A2 - 0.001], dim=1))


def test_normalise_per_turn():
    # turn 1: 1, 3: mean 2, deviation 1. turn 2: 0, 0, 6: mean 2, variance (4 + 4 + 16) / 3 = 8
    turn = torch.tensor([[1, 0, 2, 2], [1, 2, 0, 0]])
    advantages = torch.tensor([[1, 50, 0, 0], [3, 6, 50, 50]], dtype=F64)
    s = math.sqrt(8)
    close(
        o.normalise(advantages, turn, kind="std"), torch.tensor([[-1, 0, -2 / s, -2 / s], [1, 4 / s, 0, 0]], dtype=F64)
    )
    close(o.normalise(advantages, turn, kind="mean"), torch.tensor([[-1, 0, -2, -2], [1, 4, 0, 0]], dtype=F64))
    close(
        o.normalise(advantages, turn, kind="mean", skip_turns=(1,)),
        torch.tensor([[1, 0, -2, -2], [3, 4, 0, 0]], dtype=F64),
    )
    close(o.normalise(advantages, turn, kind="none"), torch.tensor([[1, 0, 0, 0], [3, 6, 0, 0]], dtype=F64))


def test_token_rewards_put_each_return_on_its_turns_last_token():
    # R1 = 1, R2 = 2, gamma_turn = 0.25: G1 = 1.5. Turn 1: -0.1, 1.5 - 0.2. Turn 2 at weight 2: 2 - 2 * 0.3
    G1, G2 = o.turn_returns(t(1), t(2), gamma_turn=0.25)
    kl, turn = t(0.1, 0.2, 9, 0.3)[None], ids(1, 1, 0, 2)[None]
    close(o.token_rewards(G1, G2, kl, turn, kl_coef=(1.0, 2.0)), t(-0.1, 1.3, 0, 1.4)[None])


def test_turn_gae_resets_at_the_last_token_of_each_turn():
    # turn 2: 5 - 4 = 1. Turn 1, last token: 3 - 2 = 1, next value and accumulator 0; first token:
    # 0 + 0.5 * 2 - 1 + 0.5 * 0.5 * 1 = 0.25. Returns add the values.
    turn = ids(1, 1, 0, 2)[None]
    for context in (7, math.nan):  # whatever stands on a column that is no action
        rewards, values = t(0, 3, context, 5)[None], t(1, 2, context, 4)[None]
        advantages, returns = o.turn_gae(rewards, values, turn, gamma=0.5, lambd=0.5)
        close(advantages, t(0.25, 1, 0, 1)[None])
        close(returns, t(1.25, 3, 0, 5)[None])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_types_are_kept(dtype):
    r1, r2 = torch.tensor([0, 1], dtype=dtype), torch.tensor([1, 1], dtype=dtype)
    G1, G2 = o.turn_returns(*o.turn_rewards(r1, r2, stage=2, alpha=1.0), gamma_turn=0.5)
    kl, turn = torch.ones(2, 2, dtype=dtype), ids(1, 2).expand(2, 2)
    b = o.baseline(G1, ids(0, 0), kind="leave_one_out")
    advantages = o.token_advantages(G1, G2, kl, turn, kl_coef=(1, 1))
    results = [G1, G2, b, advantages, o.normalise(advantages, turn, kind="std"), o.group_std(G1, ids(0, 0))]
    results += o.turn_gae(kl, kl, turn, gamma=1.0, lambd=1.0)
    results.append(o.guidance_baseline(r2, ids(0, 1), r1, kind="leave_one_out"))
    assert {result.dtype for result in results} == {dtype}


def test_half_precision_and_booleans_become_float32():
    right = torch.tensor([True, False])
    R1, R2 = o.turn_rewards(right, right, stage=2, alpha=10.0)
    assert R1.dtype == R2.dtype == torch.float32
    kl = torch.ones(2, 1, dtype=torch.bfloat16)
    assert o.single_turn_advantages(R1, kl, kl > 0, kl_coef=0.1).dtype == torch.float32


B2, IDS2 = t(0, 1), ids(0, 0)
TOKENS = t(0.0, 0.0).expand(2, 2)
TURN2 = ids(1, 2).expand(2, 2)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: o.turn_rewards(B2, B2, stage=3, alpha=1.0), r"stage is 3; use 1 .* or 2"),
        (lambda: o.turn_rewards(B2, B2, stage=1, alpha=-1.0), r"alpha is -1.0; use a finite number from 0"),
        (lambda: o.turn_rewards(B2, t(1), stage=1, alpha=1.0), r"r2 has shape \(1,\), r1 \(2,\)"),
        (lambda: o.turn_rewards(t(0, math.nan), B2, stage=1, alpha=1.0), r"r1\[1\] is nan; mask the rows"),
        (lambda: o.turn_returns(B2, B2, gamma_turn=1.5), r"gamma_turn is 1.5; use a finite number from 0 to 1"),
        (lambda: o.kl_coefs(stage=0, beta1=0.1, beta2=0.1), r"stage is 0; use 1 or 2"),
        (lambda: o.kl_coefs(stage=1, beta1=0.1, beta2=math.nan), r"beta2 is nan"),
        (lambda: o.baseline(B2, IDS2, kind="loo"), r"baseline kind is 'loo'; use one of none, batch_mean"),
        (lambda: o.baseline(B2, B2, kind="none"), r"group ids are torch.float64; pass integers, e.g. group.long\(\)"),
        (lambda: o.baseline(B2, ids(0), kind="none"), r"group has shape \(1,\); pass one id per row, \(2,\)"),
        (lambda: o.baseline(B2, IDS2, kind="none", unit=B2 > 0), r"unit ids are torch.bool"),
        (lambda: o.baseline(B2, IDS2, kind="none", mask=IDS2), r"mask is torch.int64 \(2,\); pass booleans"),
        (lambda: o.baseline(t(math.inf, 0), IDS2, kind="none"), r"returns\[0\] is inf"),
        (lambda: o.guidance_baseline(B2, IDS2, B2, kind="group_mean"), r"guidance baseline kind is 'group_mean'"),
        (lambda: o.guidance_rewards(B2, B2, B2, kind="delta", leak_penalty=0.0), r"use one of outcome, improvement"),
        (lambda: o.guidance_rewards(B2, B2, B2, kind="outcome", leak_penalty=-1.0), r"leak_penalty is -1.0"),
        (
            lambda: o.guidance_rewards(B2, t(0.5, 1), B2, kind="transition", leak_penalty=0.0),
            r"transition needs grades of 0 or 1, got 0.5; use outcome or improvement",
        ),
        (
            lambda: o.token_advantages(B2, B2, TOKENS, TURN2, kl_coef=0.1),
            r"kl_coef is 0.1; pass the pair \(turn 1, turn 2\)",
        ),
        (lambda: o.token_advantages(B2, B2, TOKENS, TURN2, kl_coef=(0.1, -1)), r"kl_coef of turn 2 is -1"),
        (
            lambda: o.token_advantages(B2, B2, TOKENS, TURN2, kl_coef=(0, 0), kl_credit="sum"),
            r"kl_credit is 'sum'; use one of to_go, own",
        ),
        (lambda: o.token_advantages(B2, B2, TOKENS, TURN2 + 1, kl_coef=(0, 0)), r"0 \(not an action\), 1 \(attempt\)"),
        (lambda: o.token_advantages(B2, B2, TOKENS, TURN2 > 0, kl_coef=(0, 0)), r"turn is torch.bool"),
        (lambda: o.token_advantages(B2, B2, TOKENS, TURN2[:1], kl_coef=(0, 0)), r"turn has shape \(1, 2\) for 2 rows"),
        (lambda: o.token_advantages(B2, B2, TOKENS[:, :1], TURN2, kl_coef=(0, 0)), r"kl has shape \(2, 1\), turn"),
        (
            lambda: o.token_advantages(B2, B2, TOKENS + math.inf, TURN2, kl_coef=(0, 0)),
            r"kl\[0, 0\] is inf on an action token; mask that row",
        ),
        (lambda: o.normalise(TOKENS, TURN2, kind="whiten"), r"normalise kind is 'whiten'; use one of none, mean, std"),
        (lambda: o.normalise(TOKENS, TURN2, kind="std", skip_turns=(3,)), r"skip_turns holds 3"),
        (lambda: o.turn_gae(TOKENS, TOKENS, TURN2, gamma=1.0, lambd=2.0), r"lambd is 2.0; .* from 0 to 1"),
        (lambda: o.turn_gae(TOKENS, TOKENS[:, :1], TURN2, gamma=1.0, lambd=1.0), r"values has shape \(2, 1\)"),
    ],
)
def test_what_is_wrong_is_named_with_its_fix(call, message):
    with pytest.raises(ValueError, match=message):
        call()

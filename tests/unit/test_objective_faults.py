"""Ways of building this objective that look right and train on something else, each beside the exact number.

The policy is tabular: an attempt of two binary tokens `a b`, then a revision of one binary token `c`. All eight
trajectories are enumerated, so a gradient of `sum p(trajectory) * advantage * log pi` is an exact expectation.
"""

import itertools

import pytest
import torch

from score_openrlhf import objective as o

TRAJECTORIES = torch.tensor(list(itertools.product(range(2), repeat=3)))  # (8, 3): a, b, c
A_TOKEN, B_TOKEN, C_TOKEN = TRAJECTORIES.T
TURN = torch.tensor([1, 1, 2]).expand(8, 3)
GRADE1 = torch.tensor([0, 1, 1, 0], dtype=torch.float64)[2 * A_TOKEN + B_TOKEN]  # r1, by attempt
GRADE2 = torch.tensor([0, 1, 1, 1, 0, 0, 1, 0], dtype=torch.float64)  # r2, by trajectory
COEFS = (0.3, 0.2)


def logits(seed):
    """Logits of `a` (2,), of `b` given `a` (2, 2), and of `c` given `a b` (4, 2)."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, dtype=torch.float64, generator=generator) for shape in ((2,), (2, 2), (4, 2))]


REFERENCE = logits(1)


def policy():
    return [table.requires_grad_() for table in logits(0)]


def log_probs(tables):
    """(8, 3): log-probability of each token of each trajectory in the context it was sampled in."""
    a, b, c = (table.log_softmax(-1) for table in tables)
    return torch.stack([a[A_TOKEN], b[A_TOKEN, B_TOKEN], c[2 * A_TOKEN + B_TOKEN, C_TOKEN]], dim=1)


def gradient(value, tables):
    """Gradient in the logits of `a`, `b` and `c`, zeros where `value` does not depend on them."""
    grads = torch.autograd.grad(value, tables, allow_unused=True)
    return [torch.zeros_like(table) if grad is None else grad for grad, table in zip(grads, tables, strict=True)]


def surrogate_gradient(advantages):
    """Expected policy gradient with these token advantages (8, 3)."""
    tables = policy()
    log_p = log_probs(tables)
    p = log_p.sum(1).exp().detach()
    return gradient((p[:, None] * advantages.detach() * log_p).sum(), tables)


def k1(reference=REFERENCE):
    return (log_probs(policy()) - log_probs(reference)).detach()


def exact_gradient(R1, R2, coefs):
    """Each turn's tokens earn their own turn: `E[R1] - c1 KL(y1)` by `a`, `b`; `E[R2] - c2 KL(y2 | y1)` by `c`."""
    tables = policy()
    log_p, log_ref = log_probs(tables), log_probs(REFERENCE)
    attempt = log_p[:, :2].sum(1).exp() * 0.5  # each attempt is in two rows
    revision = log_p[:, 2].exp()
    value1 = (attempt * (R1 - coefs[0] * (log_p - log_ref)[:, :2].sum(1))).sum()
    value2 = (2 * attempt.detach() * revision * (R2 - coefs[1] * (log_p - log_ref)[:, 2])).sum()
    return gradient(value1 + value2, tables)


def same(actual, expected):
    return all(torch.allclose(one, other, rtol=0, atol=1e-12) for one, other in zip(actual, expected, strict=True))


@pytest.mark.parametrize("stage", [1, 2])
def test_the_token_advantages_are_the_exact_gradient(stage):
    R1, R2 = o.turn_rewards(GRADE1, GRADE2, stage=stage, alpha=10.0)
    G1, G2 = o.turn_returns(R1, R2, gamma_turn=0.0)
    coefs = o.kl_coefs(stage=stage, beta1=0.2, beta2=0.9)
    assert same(
        surrogate_gradient(o.token_advantages(G1, G2, k1(), TURN, kl_coef=coefs)), exact_gradient(R1, R2, coefs)
    )


# ── KL that has no gradient, or another one ──

NOTHING = torch.zeros(8, dtype=torch.float64)


def kl_gradient(kl_credit="to_go", reference=REFERENCE):
    return surrogate_gradient(
        o.token_advantages(NOTHING, NOTHING, k1(reference), TURN, kl_coef=COEFS, kl_credit=kl_credit)
    )


def test_the_kl_moves_the_policy_where_an_item_would_not():
    exact = exact_gradient(NOTHING, NOTHING, COEFS)
    assert same(kl_gradient(), exact)
    assert all(table.abs().max() > 1e-3 for table in exact)

    tables = policy()  # the faulty way: a number, subtracted from the loss
    log_p = log_probs(tables)
    penalty = COEFS[0] * k1()[:, :2].sum(1).mean().item()
    faulty = gradient((log_p.sum(1).exp().detach() * (0.0 * log_p.sum(1) - penalty)).sum(), tables)
    assert all((table == 0).all() for table in faulty)


def test_the_kl_is_of_policies_and_not_of_their_parameters():
    """A constant added to the logits is the same reference: our gradient stays, that of a distance moves."""
    shifted = [table + 1.0 for table in REFERENCE]
    exact = exact_gradient(NOTHING, NOTHING, COEFS)
    for reference in (REFERENCE, shifted):
        assert same(kl_gradient(reference=reference), exact)

    def faulty(reference):  # the squared distance of the parameters as a penalty
        tables = policy()
        distance = sum((table - other).square().sum() for table, other in zip(tables, reference, strict=True))
        return gradient(-COEFS[0] * distance, tables)

    assert not same(faulty(REFERENCE), exact) and not same(faulty(shifted), faulty(REFERENCE))


def test_to_go_credits_a_token_with_the_kl_of_later_ones_and_own_does_not():
    exact, own = exact_gradient(NOTHING, NOTHING, COEFS), kl_gradient("own")
    assert same(own[1:], exact[1:])  # `b` and `c` are last in their turns
    assert not same(own[:1], exact[:1])  # `a` decides in which context `b` is sampled


@pytest.mark.parametrize("number", [1, 2])
def test_each_kl_coefficient_is_used_by_its_turn(number):
    coefs = [0.0, 0.0]
    before = o.token_advantages(NOTHING, NOTHING, k1(), TURN, kl_coef=coefs)
    coefs[number - 1] = 0.5
    changed = o.token_advantages(NOTHING, NOTHING, k1(), TURN, kl_coef=coefs) != before
    assert torch.equal(changed, torch.eq(TURN, number))


# ── The shaped reward is what trains, not only what is logged ──


def test_stage_2_trains_on_the_shaped_reward():
    # Two attempts: wrong to right and right to right. Shaped 1 + 10 = 11 and 1, each against the other: 10 and -10.
    # The plain r2 of both is 1, which would be no signal at all.
    r1, r2, group = torch.tensor([0.0, 1.0]), torch.tensor([1.0, 1.0]), torch.tensor([4, 4])
    _, R2 = o.turn_rewards(r1, r2, stage=2, alpha=10.0)
    shaped = R2 - o.baseline(R2, group, kind="leave_one_out")
    plain = r2 - o.baseline(r2, group, kind="leave_one_out")
    assert shaped.tolist() == [10.0, -10.0]
    assert plain.tolist() == [0.0, 0.0]
    tokens = o.token_advantages(torch.zeros(2), shaped, torch.zeros(2, 2), torch.tensor([[1, 2]] * 2), kl_coef=(0, 0))
    assert tokens.tolist() == [[0.0, 10.0], [0.0, -10.0]]


# ── The attempt's KL belongs to the attempt's tokens ──


def test_the_kl_of_the_attempt_anchors_the_attempt():
    exact = exact_gradient(NOTHING, NOTHING, (0.9, 0.0))
    ours = surrogate_gradient(o.token_advantages(NOTHING, NOTHING, k1(), TURN, kl_coef=(0.9, 0.0)))
    assert same(ours, exact)
    assert exact[0].abs().max() > 0.01 and exact[1].abs().max() > 0.01
    assert (exact[2] == 0).all()

    # The faulty way: the attempt's KL as a penalty in the reward of the revision, whose log-prob it multiplies.
    penalty = -0.9 * k1()[:, :2].sum(1)
    faulty = surrogate_gradient(torch.where(TURN == 2, penalty[:, None], 0))
    assert faulty[0].abs().max() < 1e-12 and faulty[1].abs().max() < 1e-12  # `a` and `b` are free to drift


# ── One scalar for both turns ──


def test_each_turn_keeps_its_own_reward():
    # Wrong to right at alpha 10: turn 1 earned 0 and turn 2 earned 11. Summed on the last token, as a multi-turn agent
    # with one reward does it, the wrong attempt's tokens would be paid 11.
    R1, R2 = o.turn_rewards(torch.tensor([0.0]), torch.tensor([1.0]), stage=2, alpha=10.0)
    turn, kl = torch.tensor([[1, 1, 0, 2]]), torch.zeros(1, 4)
    G1, G2 = o.turn_returns(R1, R2, gamma_turn=0.0)
    assert o.token_advantages(G1, G2, kl, turn, kl_coef=(0, 0)).tolist() == [[0, 0, 0, 11]]
    assert o.single_turn_advantages(R1 + R2, kl, turn > 0, kl_coef=0.0).tolist() == [[11, 11, 0, 11]]


def test_a_critic_does_not_carry_the_revisions_reward_into_the_attempt():
    rewards = o.token_rewards(
        torch.tensor([0.0]), torch.tensor([11.0]), torch.zeros(1, 4), torch.tensor([[1, 1, 0, 2]]), kl_coef=(0, 0)
    )
    turn = torch.tensor([[1, 1, 0, 2]])
    ours, _ = o.turn_gae(rewards, torch.zeros(1, 4), turn, gamma=1.0, lambd=1.0)
    summed, _ = o.turn_gae(rewards, torch.zeros(1, 4), (turn > 0).long(), gamma=1.0, lambd=1.0)
    assert ours.tolist() == [[0, 0, 0, 11]]
    assert summed.tolist() == [[11, 11, 0, 11]]

"""Mean gradients of every baseline on a small two-turn problem, exact: every batch that can be drawn is enumerated.

The solver answers one of two ways, then one of two ways again: tabular softmax policies with logits (2,) and (2, 2).
A batch is N attempts of a problem with K revisions each, and its gradient is that of
`1/N sum_i [A1_i log pi(y1_i) + 1/K sum_k A2_ik log pi(y2_ik)]`.
"""

import itertools

import pytest
import torch

from score_openrlhf import objective as o

LOGITS1 = torch.tensor([0.4, -0.3], dtype=torch.float64)
LOGITS2 = torch.tensor([[0.2, -0.5], [-0.1, 0.7]], dtype=torch.float64)
GRADE1 = torch.tensor([0.0, 1.0], dtype=torch.float64)  # r1 of each attempt
GRADE2 = torch.tensor([[0.0, 1.0], [0.25, 1.0]], dtype=torch.float64)  # r2 of each revision, by attempt
ALPHA = 10.0


def scores(logits):
    """Gradient of log softmax(logits)[..., a] in logits, for each a: (..., A, A)."""
    return torch.eye(logits.shape[-1], dtype=logits.dtype) - logits.softmax(-1)[..., None, :]


def draws(num_attempts, num_revisions):
    """All batches of one problem: y1 (D, N), y2 (D, N, K) and their probabilities (D,)."""
    attempts = list(itertools.product(range(2), *[range(2)] * num_revisions))  # (y1, y2_1 .. y2_K)
    table = torch.tensor(attempts)
    p1, p2 = LOGITS1.softmax(-1), LOGITS2.softmax(-1)
    p = p1[table[:, 0]] * p2[table[:, :1], table[:, 1:]].prod(dim=1)
    index = torch.cartesian_prod(*[torch.arange(len(table))] * num_attempts).reshape(-1, num_attempts)
    return table[index][..., 0], table[index][..., 1:], p[index].prod(dim=1)


def moments(
    kind, num_attempts, num_revisions, *, R=None, leave_out="attempt", stage=2, one_batch_each=False, problems=1
):
    """Mean (2,), (2, 2) of the batch gradient of each turn, and the two total variances. One `baseline` call does it:
    each batch that can be drawn is a problem of its own (`one_batch_each`: a call for each). The state value has a
    call for each, over attempts that belong to `problems` problems in turn."""
    y1, y2, p = draws(num_attempts, num_revisions)
    y1 = y1[..., None].expand_as(y2)
    r1, r2 = GRADE1[y1], GRADE2[y1, y2]
    R1, R2 = R(r1, r2) if R else o.turn_rewards(r1.flatten(), r2.flatten(), stage=stage, alpha=ALPHA)
    G1, G2 = o.turn_returns(R1.flatten(), R2.flatten(), gamma_turn=0.0)
    problem = torch.arange(len(p)).repeat_interleave(num_attempts * num_revisions)
    attempt = torch.arange(num_attempts).repeat_interleave(num_revisions)
    unit = attempt.repeat(len(p)) if leave_out == "attempt" else None

    def baselines(G):
        if kind == "mean over rows":
            return G.view(len(p), -1).mean(1).repeat_interleave(num_attempts * num_revisions)
        if kind == "state_value":
            names = attempt % problems
            rows = zip(G.view(len(p), -1), r1.reshape(len(p), -1), strict=True)
            return torch.cat([o.state_value(g, names, attempt, grade) for g, grade in rows])
        if one_batch_each:
            # two problems in turn, so that a mean over a problem would show
            names = attempt % 2
            return torch.cat([o.baseline(g, names, kind=kind, unit=attempt) for g in G.view(len(p), -1)])
        return o.baseline(G, problem, kind=kind, unit=unit)

    A1, A2 = ((G - baselines(G)).view_as(y2) for G in (G1, G2))

    grad1 = (A1[..., None] * scores(LOGITS1)[y1]).mean(dim=(1, 2))
    in_state = torch.nn.functional.one_hot(y1, 2).double()
    grad2 = (A2[..., None, None] * in_state[..., None] * scores(LOGITS2)[y1, y2][..., None, :]).mean(dim=(1, 2))
    means = [torch.einsum("d,d...->...", p, grad) for grad in (grad1, grad2)]
    variances = [
        float((p * (grad - mean).flatten(1).square().sum(1)).sum())
        for grad, mean in zip((grad1, grad2), means, strict=True)
    ]
    return means, variances


def true_gradients(R1, R2):
    """Gradients of `E[R1]` in turn 1's logits and of `E[R2]` in turn 2's, R1 (2,) and R2 (2, 2) by answer."""
    logits1, logits2 = LOGITS1.clone().requires_grad_(), LOGITS2.clone().requires_grad_()
    value = logits1.softmax(-1) @ R1 + LOGITS1.softmax(-1) @ (logits2.softmax(-1) * R2).sum(-1)
    return torch.autograd.grad(value, (logits1, logits2))


def truth(stage=2):
    r1 = GRADE1[:, None].expand(2, 2)
    R1, R2 = o.turn_rewards(r1.flatten(), GRADE2.flatten(), stage=stage, alpha=ALPHA)
    return true_gradients(R1.view(2, 2)[:, 0], R2.view(2, 2))


def close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)


SIZES = [(2, 1), (4, 1), (2, 4), (3, 2)]


@pytest.mark.parametrize("num_attempts, num_revisions", SIZES)
@pytest.mark.parametrize("kind", ["none", "leave_one_out"])
@pytest.mark.parametrize("stage", [1, 2])
def test_none_and_leave_one_out_are_unbiased(kind, num_attempts, num_revisions, stage):
    means, _ = moments(kind, num_attempts, num_revisions, stage=stage)
    for mean, expected in zip(means, truth(stage), strict=True):
        close(mean, expected)
    assert truth(stage)[1].abs().max() > 0.01


@pytest.mark.parametrize("problems", [1, 2])
@pytest.mark.parametrize("num_attempts, num_revisions", [(1, 1), (1, 4), *SIZES])
@pytest.mark.parametrize("stage", [1, 2])
def test_the_state_value_is_unbiased(num_attempts, num_revisions, problems, stage):
    """Of the plain grade times 1 + alpha and of the shaped reward: what the state fixes changes no expectation."""
    scale = 1 + ALPHA if stage == 2 else 1.0
    for R2 in (lambda r1, r2: scale * r2, lambda r1, r2: r2 + (scale - 1) * (r2 - r1)):
        (_, mean2), _ = moments(
            "state_value", num_attempts, num_revisions, R=lambda r1, r2, R2=R2: (r1, R2(r1, r2)), problems=problems
        )
        close(mean2, truth(stage)[1])


def test_with_its_own_row_in_it_the_state_value_would_be_biased():
    """The check above can fail: the mean over the state's rows, own row included, is short by one of K."""
    y1, y2, p = draws(1, 4)
    r2 = GRADE2[y1[..., None].expand_as(y2), y2][:, 0]
    A2 = r2 - r2.mean(1, keepdim=True)
    in_state = torch.nn.functional.one_hot(y1[:, 0], 2).double()
    grad2 = (
        A2[..., None, None] * in_state[:, None, :, None] * scores(LOGITS2)[y1[:, :1], y2[:, 0]][..., None, :]
    ).mean(1)
    close(torch.einsum("d,d...->...", p, grad2), truth(stage=1)[1] * 3 / 4)


@pytest.mark.parametrize("num_attempts, num_revisions", SIZES)
@pytest.mark.parametrize("kind", ["group_mean", "batch_mean"])
@pytest.mark.parametrize("stage", [1, 2])
def test_a_mean_with_the_attempt_in_it_is_the_same_part_of_both_turns(kind, num_attempts, num_revisions, stage):
    """(n - 1) / n for n attempts, whatever K is: the turns keep their weights against each other."""
    means, _ = moments(kind, num_attempts, num_revisions, stage=stage, one_batch_each=kind == "batch_mean")
    for mean, expected in zip(means, truth(stage), strict=True):
        close(mean, expected * (num_attempts - 1) / num_attempts)


@pytest.mark.parametrize("num_attempts, num_revisions", [(2, 4), (3, 2)])
def test_a_mean_over_rows_would_weigh_the_turns_differently(num_attempts, num_revisions):
    """Of turn 1's baseline the attempt's own rows bias K / (N K), of turn 2's only the row itself, 1 / (N K)."""
    num_rows = num_attempts * num_revisions
    (mean1, mean2), _ = moments("mean over rows", num_attempts, num_revisions)
    close(mean1, truth()[0] * (num_rows - num_revisions) / num_rows)
    close(mean2, truth()[1] * (num_rows - 1) / num_rows)


@pytest.mark.parametrize("num_attempts, num_revisions, part", [(2, 4, 4 / 7), (3, 2, 4 / 5), (4, 1, 1)])
def test_leaving_out_a_row_instead_of_the_attempt_shrinks_turn_1(num_attempts, num_revisions, part):
    # K - 1 of the N K - 1 rows that stay are the attempt's own: 1 - 3/7 = 4/7 (0.57) for N = 2, K = 4
    (mean1, mean2), _ = moments("leave_one_out", num_attempts, num_revisions, leave_out="row")
    close(mean1, truth()[0] * part)
    close(mean2, truth()[1])


def test_variances(capsys):
    with capsys.disabled():
        print("\nvariance of the batch gradient    N  K    turn 1    turn 2")
        for num_attempts, num_revisions in SIZES:
            variance = {}
            for kind in ("none", "group_mean", "leave_one_out"):
                _, variance[kind] = moments(kind, num_attempts, num_revisions)
                turn1, turn2 = variance[kind]
                print(f"  {kind:30}{num_attempts:4}{num_revisions:3}{turn1:10.4f}{turn2:10.4f}")
            # smaller because it is shorter: row by row (n - 1) / n of the other
            shorter = ((num_attempts - 1) / num_attempts) ** 2
            assert variance["group_mean"] == pytest.approx([shorter * value for value in variance["leave_one_out"]])
    turn2 = [moments("leave_one_out", 2, num_revisions)[1][1] for num_revisions in (1, 2, 4)]
    assert turn2 == sorted(turn2, reverse=True)  # more revisions of an attempt: less noise in turn 2


def test_a_lone_attempt_falls_back_to_the_batch_without_bias():
    """Two problems of one attempt each: leave-one-out takes the other problem, batch mean both."""
    y1, _, p = draws(1, 1)
    sums = {"leave_one_out": 0.0, "batch_mean": 0.0}
    for i, j in itertools.product(range(len(p)), repeat=2):
        attempts = torch.cat([y1[i], y1[j]])
        for kind in sums:
            A = GRADE1[attempts] - o.baseline(GRADE1[attempts], torch.tensor([7, 3]), kind=kind)
            sums[kind] = sums[kind] + p[i] * p[j] * (A[:, None] * scores(LOGITS1)[attempts]).mean(0)
    close(sums["leave_one_out"], truth()[0])
    close(sums["batch_mean"], truth()[0] / 2)


@pytest.mark.parametrize("kind", ["none", "leave_one_out", "group_mean"])
@pytest.mark.parametrize("num_attempts, num_revisions", [(2, 1), (2, 3)])
def test_turn_2_of_stage_2_is_expected_to_follow_1_plus_alpha_times_r2(kind, num_attempts, num_revisions):
    shaped, noise = moments(kind, num_attempts, num_revisions)
    plain, plain_noise = moments(kind, num_attempts, num_revisions, R=lambda r1, r2: (r1, (1 + ALPHA) * r2))
    close(shaped[1], plain[1])
    assert noise[1] != pytest.approx(plain_noise[1], rel=0.01)  # r1 changes the variance, so the samples do differ
    unshaped, _ = moments(kind, num_attempts, num_revisions, R=lambda r1, r2: (r1, r2))
    close(shaped[1], (1 + ALPHA) * unshaped[1])


# A guidance model with two hints in each state `(x, y1)`; the revision is right with this probability given the hint.
HINT_LOGITS = torch.tensor([0.3, -0.2], dtype=torch.float64)
RIGHT = torch.tensor([[0.2, 0.9], [0.6, 0.5], [0.3, 0.7]], dtype=torch.float64)  # by state, by hint
STATE_GRADE = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)  # r1 of each state's attempt


def hint_gradient(states, *, reward, kind="leave_one_out"):
    """Exact mean of the batch gradient in the shared hint logits; `states` names the state of each row."""
    state = torch.tensor(states)
    mean = torch.zeros(2, dtype=torch.float64)
    for outcome in itertools.product(range(4), repeat=len(states)):
        hint, right = torch.tensor(outcome) // 2, torch.tensor(outcome) % 2
        p = torch.where(right == 1, RIGHT[state, hint], 1 - RIGHT[state, hint]) * HINT_LOGITS.softmax(-1)[hint]
        r1, r2 = STATE_GRADE[state], right.double()
        rewards = o.guidance_rewards(r1, r2, torch.zeros_like(r1), kind=reward, leak_penalty=0.0)
        if kind == "state_value":
            A = rewards - o.state_value(rewards, torch.zeros_like(state), state, r1)  # attempts at one problem
        else:
            A = rewards - o.guidance_baseline(rewards, state, r1, kind=kind)
        mean += p.prod() * (A[:, None] * scores(HINT_LOGITS)[hint]).mean(0)
    return mean


def true_hint_gradient(states, payoff):
    logits = HINT_LOGITS.clone().requires_grad_()
    value = (logits.softmax(-1) * payoff[torch.tensor(states)]).sum(-1).mean()
    return torch.autograd.grad(value, logits)[0]


@pytest.mark.parametrize(
    "states",
    [
        (0, 0, 0),  # K = 3: the state's own guidances
        (0, 1, 2),  # K = 1: states 0 and 1 have each other, state 2 is alone with its grade and has the batch
        (0, 0, 1),  # K = 2, but one guidance of state 1 failed: state 0 has the same grade
        (0, 0, 2),  # K = 2, but one guidance of state 2 failed: no state has the same grade
    ],
)
@pytest.mark.parametrize("kind", ["leave_one_out", "state_value"])
def test_the_guidance_baseline_is_unbiased_and_improvement_is_outcome(states, kind):
    expected = true_hint_gradient(states, RIGHT)
    close(hint_gradient(states, reward="outcome", kind=kind), expected)
    close(hint_gradient(states, reward="improvement", kind=kind), expected)


def test_transition_is_another_objective():
    states, pays = (
        (0, 1, 2),
        torch.tensor([[1.0], [1.0], [0.2]], dtype=torch.float64),
    )  # for a right revision, by state
    expected = true_hint_gradient(states, RIGHT * pays)
    close(hint_gradient(states, reward="transition"), expected)
    assert (expected - true_hint_gradient(states, RIGHT)).abs().max() > 0.005


def test_batch_mean_shrinks_the_guidance_gradient_by_one_row():
    states = (0, 1, 2)
    close(hint_gradient(states, reward="outcome", kind="batch_mean"), true_hint_gradient(states, RIGHT) * 2 / 3)
    close(hint_gradient(states, reward="outcome", kind="none"), true_hint_gradient(states, RIGHT))

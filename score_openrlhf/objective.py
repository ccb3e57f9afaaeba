"""Rewards of both turns (B,) and KL per token (B, A) -> advantages (B, A): the method's equations on tensors.

    solver    r1, r2 -> turn_rewards -> turn_returns -> minus baseline -> token_advantages (-> normalise)
              turn 2 by default: (1 + alpha in stage II) * (r2 - state_value)
    critic    r1, r2 -> turn_rewards -> turn_returns -> token_rewards -> turn_gae (-> normalise)
    guidance  r1, r2 -> guidance_rewards -> minus state_value or guidance_baseline -> single_turn_advantages

B is rows (trajectories), A action columns. `turn` (B, A) holds 0 (not an action: padding, or context between the
turns), 1 (a token of the attempt) or 2 (a token of the revision). `kl` (B, A) holds the k1 estimate
`log pi - log pi_ref` of each sampled token, in nats. Results keep float32 and float64; other types become float32.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from score_openrlhf.config.choices import GUIDANCE_REWARDS, KL_CREDITS, NORMALISATIONS

# what `baseline` and `guidance_baseline` compute; `experience/baselines.py` gives them their configured names
BASELINES = ("none", "batch_mean", "group_mean", "leave_one_out")
GUIDANCE_BASELINES = ("none", "batch_mean", "leave_one_out")

RIGHT_TO_RIGHT = 0.2  # `transition` pays little for leaving a right attempt right
WRONG_TO_RIGHT = 1.0


# ── Rewards and returns of a turn ──


def turn_rewards(r1: Tensor, r2: Tensor, *, stage: int, alpha: float) -> tuple[Tensor, Tensor]:
    """Shaped rewards of the attempt and the revision, unclipped (SCoRe, arXiv 2409.12917, section 5).

        stage I   R1 = 0     R2 = r2
        stage II  R1 = r1    R2 = r2 + alpha * (r2 - r1)

    `r1`, `r2` (B,): grades in [0, 1]. Returns `(R1, R2)`, both (B,). Raises ValueError for a stage other than 1 or 2,
    a negative alpha, shapes that differ, or rewards that are not finite.
    """
    r1, r2 = _vectors(r1=r1, r2=r2)
    alpha = _number("alpha", alpha)
    if stage == 1:
        return torch.zeros_like(r1), r2.clone()
    if stage == 2:
        return r1.clone(), r2 + alpha * (r2 - r1)
    raise ValueError(f"stage is {stage!r}; use 1 (anchor the attempt, train the revision) or 2 (train both turns)")


def turn_returns(R1: Tensor, R2: Tensor, *, gamma_turn: float) -> tuple[Tensor, Tensor]:
    """Returns of the turns: `G1 = R1 + gamma_turn * R2`, `G2 = R2` (SCoRe, appendix A.4, takes gamma_turn = 0).

    `R1`, `R2` (B,). Returns `(G1, G2)`, both (B,). Raises ValueError for gamma_turn outside [0, 1], shapes that
    differ, or rewards that are not finite.
    """
    R1, R2 = _vectors(R1=R1, R2=R2)
    return R1 + _number("gamma_turn", gamma_turn, high=1.0) * R2, R2.clone()


def kl_coefs(*, stage: int, beta1: float, beta2: float) -> tuple[float, float]:
    """KL weights `(turn 1, turn 2)`: `(beta1 + beta2, beta1)` in stage I, `(beta1, beta1)` in stage II.

    SCoRe, section 5: stage I's anchor of weight `beta2` comes on top of the default penalty of weight `beta1`, which
    equation 3 omits for brevity. Raises ValueError for another stage or a weight that is negative or not finite.
    """
    beta1, beta2 = _number("beta1", beta1), _number("beta2", beta2)
    if stage not in (1, 2):
        raise ValueError(f"stage is {stage!r}; use 1 or 2")
    return (beta1 + beta2 if stage == 1 else beta1), beta1


def balanced_beta2(anchor: float, objective: float, *, low: float, high: float) -> float:
    """The `beta2` at which stage I's anchor pulls as hard as its objective, between `low` and `high`.

        beta2 = objective / anchor     mean |advantage| of turn 2's tokens over mean |KL credit| of turn 1's

    SCoRe, section 5.3, adapts beta2 "to balance the magnitudes" of the two. The floor `low` keeps a policy that has
    drifted (a large anchor) from loosening it. An anchor of 0, the policy at its reference, gives `high`; no objective
    at all gives `low`. Raises ValueError for numbers that are negative or not finite, or `high` below `low`.
    """
    anchor, objective = _number("anchor", anchor), _number("objective", objective)
    low, high = _number("low", low), _number("high", high)
    if high < low:
        raise ValueError(f"beta2 is to stay between {low:g} and {high:g}; give an upper bound that is not the lower")
    if objective <= low * anchor:
        return low
    return high if objective >= high * anchor else objective / anchor


def guidance_rewards(r1: Tensor, r2: Tensor, leak: Tensor, *, kind: str, leak_penalty: float) -> Tensor:
    """Reward of the guidance that led from an attempt to its revision.

        the function of that name in `config/choices.py` (outcome, improvement, transition) - leak_penalty * leak

    `r1`, `r2` (B,): grades in [0, 1]; `leak` (B,): 1 or True where the guidance states the answer. Returns (B,).
    Raises ValueError for an unknown kind, a negative penalty, shapes that differ, values that are not finite, or
    `transition` on grades other than 0 and 1.
    """
    r1, r2, leak = _vectors(r1=r1, r2=r2, leak=leak)
    _choice("guidance reward kind", kind, GUIDANCE_REWARDS)
    return GUIDANCE_REWARDS[kind].load()(r1, r2) - _number("leak_penalty", leak_penalty) * leak


def outcome(r1: Tensor, r2: Tensor) -> Tensor:
    """`r2`."""
    return r2


def improvement(r1: Tensor, r2: Tensor) -> Tensor:
    """`r2 - r1`."""
    return r2 - r1


def transition(r1: Tensor, r2: Tensor) -> Tensor:
    """1 from wrong to right, 0.2 from right to right, else 0."""
    graded = torch.cat([r1, r2])
    partial = graded[(graded != 0) & (graded != 1)]
    if len(partial):
        raise ValueError(
            f"guidance reward transition needs grades of 0 or 1, got {partial[0].item():g}; "
            "use outcome or improvement with partial credit"
        )
    return r2 * (r1 * RIGHT_TO_RIGHT + (1 - r1) * WRONG_TO_RIGHT)


# ── Baselines: over attempts, by id ──


class _Units:
    """Mean return of each unit (rows that share a group and a unit id), and the sums of its group and of the batch."""

    def __init__(self, returns: Tensor, group: Tensor, unit: Tensor | None, mask: Tensor | None):
        (group,) = _ids(len(returns), group=group)
        (unit,) = _ids(len(returns), unit=torch.arange(len(returns), device=returns.device) if unit is None else unit)
        self.mask = _row_mask(mask, returns)
        # float64: leave-one-out subtracts nearly equal sums, and the order of the rows must not show.
        self.returns = torch.where(self.mask, returns, 0).double()
        group_ids, self.group = torch.unique(group, return_inverse=True)
        unit_ids, self.unit = torch.unique(torch.stack([group, unit]), dim=1, return_inverse=True)
        group_of_unit = torch.searchsorted(group_ids, unit_ids[0].contiguous())

        rows = _sums(self.mask.double(), self.unit, unit_ids.shape[1])
        self.num_rows = rows.clamp(min=1)
        self.present = rows > 0
        self.value = _sums(self.returns, self.unit, len(rows)) / self.num_rows  # 0 where no row is valid
        self.num_in_group = _sums(self.present.double(), group_of_unit, len(group_ids))
        self.sum_of_group = _sums(self.value, group_of_unit, len(group_ids))


def baseline(
    returns: Tensor, group: Tensor, *, kind: str, unit: Tensor | None = None, mask: Tensor | None = None
) -> Tensor:
    """Baseline of each row's return, from the units (attempts) of its group (a problem).

        none           0
        batch_mean     as group_mean, with all n units of the batch
        group_mean     mean over the n units of the row's group, where the row stands for its own unit:
                       b = (G + sum of the other units) / n, so A = (n - 1) / n * that of leave_one_out
        leave_one_out  mean over the other units of the group; in a group of one unit, over the other units of the
                       batch (0 if there is none): unbiased (RLOO, arXiv 2402.14740)

    A unit is the rows that share `group` and `unit`: the K revisions of one attempt. Its value is the mean of its
    rows, so each unit weighs the same. Leaving out a row instead would leave the attempt's own return in its baseline,
    and a mean over rows would shrink turn 1's gradient by another factor than turn 2's.

    `returns` (B,): one turn's return; `group`, `unit` (B,): integer ids, any values in any order, groups of any sizes
    (`unit` default: each row its own); `mask` (B,): False rows (failed, padding) enter no mean and get 0, and their
    returns are not read. Returns (B,). Raises ValueError for an unknown kind, shapes that do not fit, ids that are not
    integers, a mask that is not boolean, or valid returns that are not finite.
    """
    _choice("baseline kind", kind, BASELINES)
    (returns,) = _vectors(mask=mask, returns=returns)
    units = _Units(returns, group, unit, mask)
    if kind == "none":
        return torch.zeros_like(returns)
    own, num, total = units.value[units.unit], units.num_in_group[units.group], units.sum_of_group[units.group]
    num_in_batch, sum_of_batch = units.present.sum(), units.value.sum()
    if kind == "batch_mean":
        result = (units.returns + sum_of_batch - own) / num_in_batch.clamp(min=1)
    elif kind == "group_mean":
        result = (units.returns + total - own) / num.clamp(min=1)
    else:
        in_group = (total - own) / (num - 1).clamp(min=1)
        in_batch = (sum_of_batch - own) / (num_in_batch - 1).clamp(min=1)
        result = torch.where(num > 1, in_group, in_batch)
    return torch.where(units.mask, result, 0).to(returns.dtype)


def state_value(
    r2: Tensor,
    group: Tensor,
    unit: Tensor,
    r1: Tensor,
    *,
    prior_rows: float = 2.0,
    mask: Tensor | None = None,
) -> Tensor:
    """Estimate of `E[r2 | x, y1]` for each row, from all rows but itself: the baseline of what follows an attempt.

        v = (sum of r2 over the like rows + prior_rows * rate(r1)) / (number of like rows + prior_rows)

        like rows  the attempt's other revisions, and those of the problem's other attempts with the same r1
        rate(r1)   mean over the batch's other attempts with the same r1, of each the mean r2 of its rows; over all
                   other attempts where none has the same r1. Without another attempt the like rows stand alone.

    The row's own revision is in none of it and `r1` belongs to the state, so `r2 - v` is unbiased for the revision and
    for the guidance that led to it. Of a reward `r2 + alpha * (r2 - r1)` the state's part drops out exactly, and what
    is left is `(1 + alpha) * (r2 - v)`.

    `r2` (B,): grades, or guidance rewards; `group`, `unit` (B,): integer ids of the problem and, within it, of the
    attempt; `r1` (B,): the attempt's grade; `prior_rows`: rows that the batch's rate weighs as much as; `mask` (B,) as
    in `baseline`. Returns (B,), 0 where masked or where there is no other row. Raises ValueError as `baseline` does,
    for a negative `prior_rows`, and for rows of one attempt with different r1.
    """
    r2, r1 = _vectors(mask=mask, r2=r2, r1=r1)
    prior_rows = _number("prior_rows", prior_rows)
    units = _Units(r2, group, unit, mask)
    grades, grade = torch.unique(torch.where(units.mask, r1, 0), return_inverse=True)
    grade_of_unit = torch.zeros(len(units.value), dtype=torch.long, device=r1.device)
    grade_of_unit[units.unit[units.mask]] = grade[units.mask]
    odd = units.mask & (grade_of_unit[units.unit] != grade)
    if odd.any():
        row = int(odd.nonzero()[0])
        raise ValueError(
            f"r1[{row}] is {r1[row].item():g}, and another row of the same attempt has "
            f"{grades[grade_of_unit[units.unit[row]]].item():g}; rows of one group and unit share their attempt"
        )
    # like rows: those of the row's problem and grade, itself left out
    like_ids, like = torch.unique(torch.stack([units.group, grade]), dim=1, return_inverse=True)
    num_like = _sums(units.mask.double(), like, like_ids.shape[1])[like] - 1
    sum_like = _sums(units.returns, like, like_ids.shape[1])[like] - units.returns
    # rates: over units, each weighing the same, the row's own left out
    own, present = units.value[units.unit], units.present.double()
    num_same = _sums(present, grade_of_unit, len(grades))[grade] - 1
    sum_same = _sums(units.value * present, grade_of_unit, len(grades))[grade] - own
    num_others = present.sum() - 1
    rate = torch.where(
        num_same > 0, sum_same / num_same.clamp(min=1), (units.value.sum() - own) / num_others.clamp(min=1)
    )
    prior = prior_rows if num_others > 0 else 0.0
    weight = num_like + prior
    value = torch.where(weight > 0, (sum_like + prior * rate) / weight.clamp(min=1e-12), rate)
    return torch.where(units.mask, value, 0).to(r2.dtype)


def guidance_baseline(rewards: Tensor, state: Tensor, r1: Tensor, *, kind: str, mask: Tensor | None = None) -> Tensor:
    """Baseline of each guidance's reward, from other guidances of the same or a like state `(x, y1)`.

    `leave_one_out`: the mean over the other guidances of the state (K > 1); a guidance alone in its state (K = 1, or
    the others failed): over the other states of the batch with the same `r1`, each weighing the same; alone there too:
    over all other states. `batch_mean` and `none` as in `baseline`, each guidance its own unit.

    `rewards` (B,); `state` (B,): integer id of the attempt; `r1` (B,): its grade; `mask` (B,) as in `baseline`.
    Returns (B,). Raises ValueError as `baseline` does; also for `group_mean`.
    """
    _choice("guidance baseline kind", kind, GUIDANCE_BASELINES)
    rewards, r1 = _vectors(mask=mask, rewards=rewards, r1=r1)
    if kind != "leave_one_out":
        return baseline(rewards, state, kind=kind, mask=mask)
    within = baseline(rewards, state, kind=kind, mask=mask)
    like = torch.unique(torch.where(_row_mask(mask, r1), r1, 0), return_inverse=True)[1]
    between = baseline(rewards, like, kind=kind, unit=state, mask=mask)
    _, index = torch.unique(state, return_inverse=True)
    num_in_state = _sums(_row_mask(mask, rewards).double(), index, int(index.max()) + 1 if len(index) else 0)[index]
    return torch.where(num_in_state > 1, within, between)


def group_std(returns: Tensor, group: Tensor, *, unit: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
    """Sample standard deviation of a group's returns plus 1e-9, to divide advantages by (OpenRLHF `group_norm`).

        sqrt( sum over the n units of mean over the unit's rows of (G - mean of the units)^2 / (n - 1) )

    Each unit weighs the same; rows count with their own deviations, as in the advantages of `group_mean`: units whose
    means happen to agree do not make it small. Arguments and errors as in `baseline`. Returns (B,); 1 for rows that
    are masked, for groups with one unit and for groups of equal returns, whose advantages are 0 under `group_mean` and
    would be rounding noise over 1e-9.
    """
    (returns,) = _vectors(mask=mask, returns=returns)
    units = _Units(returns, group, unit, mask)
    mean = units.sum_of_group / units.num_in_group.clamp(min=1)
    squares = torch.where(units.mask, units.returns - mean[units.group], 0).square() / units.num_rows[units.unit]
    std = (_sums(squares, units.group, len(mean)) / (units.num_in_group - 1).clamp(min=1)).sqrt()
    flat = (std <= 1e-12 * (1 + mean.abs())) | (units.num_in_group < 2)
    return torch.where(units.mask & ~flat[units.group], std[units.group] + 1e-9, 1).to(returns.dtype)


# ── Advantages of tokens ──


def token_advantages(
    A1: Tensor, A2: Tensor, kl: Tensor, turn: Tensor, *, kl_coef: Sequence[float], kl_credit: str = "to_go"
) -> Tensor:
    """Advantage of each action token: its turn's advantage minus its turn's KL weight times its KL credit.

        turn t, token j:  A_t - kl_coef[t] * sum over the tokens i >= j of turn t of kl_i     (to_go)
                          A_t - kl_coef[t] * kl_j                                             (own)

    `to_go` is the score-function gradient of the sequence's KL; `own` drops what a token does to the KL of later
    ones. Tokens of the other turn and of the context between the turns never enter.

    `A1`, `A2` (B,): `G_t - b_t`; `kl`, `turn` (B, A); `kl_coef`: weights `(turn 1, turn 2)`. Returns (B, A), 0 where
    `turn` is 0. Raises ValueError for an unknown credit, shapes that do not fit, a weight that is negative or not a
    pair, turns other than 0, 1, 2, or advantages or KL of action tokens that are not finite.
    """
    A1, A2 = _vectors(A1=A1, A2=A2)
    (kl,) = _token_values(turn, len(A1), kl=kl)
    coefs = _coef_pair(kl_coef)
    _choice("kl_credit", kl_credit, KL_CREDITS)
    credit_of = KL_CREDITS[kl_credit].load()
    advantages = torch.zeros_like(kl, dtype=torch.promote_types(kl.dtype, A1.dtype))
    for number, advantage, coef in ((1, A1, coefs[0]), (2, A2, coefs[1])):
        of_turn = turn == number
        credit = credit_of(torch.where(of_turn, kl, 0))
        advantages = torch.where(of_turn, advantage[:, None] - coef * credit, advantages)
    return advantages


def kl_to_go(kl: Tensor) -> Tensor:
    """The sum of each token's KL and that of the later ones; `kl` (B, A) of one turn, 0 elsewhere."""
    return kl.flip(1).cumsum(1).flip(1)


def kl_own(kl: Tensor) -> Tensor:
    """Each token's KL."""
    return kl


def single_turn_advantages(
    A: Tensor, kl: Tensor, action_mask: Tensor, *, kl_coef: float, kl_credit: str = "to_go"
) -> Tensor:
    """`token_advantages` of a policy that acts once, such as the guidance model: `A` (B,), `action_mask` (B, A)."""
    return token_advantages(
        A, torch.zeros_like(A), kl, action_mask.long(), kl_coef=(kl_coef, 0.0), kl_credit=kl_credit
    )


def normalise(advantages: Tensor, turn: Tensor, *, kind: str, skip_turns: Sequence[int] = ()) -> Tensor:
    """Centre (`mean`), or centre and scale (`std`), advantages over the action tokens of each turn of the batch.

    With one turn this is the whitening of OpenRLHF's `reinforce`, `reinforce_baseline` and `gae`: population
    variance, at least 1e-8; `mean` is its `no_std_norm`. `skip_turns` stay as they are: turn 1 in stage I, where
    centring would cancel the anchor to the reference.

    `advantages`, `turn` (B, A). Returns (B, A), 0 where `turn` is 0. Raises ValueError for an unknown kind, a turn to
    skip other than 1 or 2, shapes that differ, or advantages of action tokens that are not finite.
    """
    _choice("normalise kind", kind, NORMALISATIONS)
    (result,) = _token_values(turn, advantages.shape[0], advantages=advantages)
    wrong = [skipped for skipped in skip_turns if skipped not in (1, 2)]
    if wrong:
        raise ValueError(f"skip_turns holds {wrong[0]!r}; turns are 1 (attempt) and 2 (revision)")
    normalised = NORMALISATIONS[kind].load()
    for number in (1, 2):
        of_turn = turn == number
        if number in skip_turns or not of_turn.any():
            continue
        result = result.masked_scatter(of_turn, normalised(result[of_turn].double()).to(result.dtype))
    return result


def unchanged(values: Tensor) -> Tensor:
    """The values."""
    return values


def centred(values: Tensor) -> Tensor:
    """The values less their mean."""
    return values - values.mean()


def whitened(values: Tensor) -> Tensor:
    """The values less their mean, divided by their population deviation."""
    return centred(values) * values.var(unbiased=False).clamp(min=1e-8).rsqrt()


# ── With a critic ──


def token_rewards(G1: Tensor, G2: Tensor, kl: Tensor, turn: Tensor, *, kl_coef: Sequence[float]) -> Tensor:
    """Reward of each action token for `turn_gae`: minus the weighted KL, plus the turn's return at its last token.

    Pass what `turn_returns` gives: `G1 = R1 + gamma_turn * R2` is how turn 1's last token also receives
    `gamma_turn * R2`, though `turn_gae` carries nothing from turn 2 into turn 1.

    `G1`, `G2` (B,); `kl`, `turn` (B, A); `kl_coef`: weights `(turn 1, turn 2)`. Returns (B, A), 0 where `turn` is 0; a
    turn without tokens receives nothing. Raises ValueError as `token_advantages` does.
    """
    G1, G2 = _vectors(G1=G1, G2=G2)
    (kl,) = _token_values(turn, len(G1), kl=kl)
    coefs = _coef_pair(kl_coef)
    rewards = torch.zeros_like(kl, dtype=torch.promote_types(kl.dtype, G1.dtype))
    for number, value, coef in ((1, G1, coefs[0]), (2, G2, coefs[1])):
        of_turn = turn == number
        last = of_turn & (of_turn.flip(1).cumsum(1).flip(1) == 1)
        rewards = torch.where(of_turn, torch.where(last, value[:, None], 0) - coef * kl, rewards)
    return rewards


def turn_gae(rewards: Tensor, values: Tensor, turn: Tensor, *, gamma: float, lambd: float) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimates within each turn (arXiv 1506.02438; OpenRLHF `get_advantages_and_returns`).

        delta_j = rewards_j + gamma * values_{j+1} - values_j,    adv_j = delta_j + gamma * lambd * adv_{j+1}

    where `j + 1` is the next token of the same turn; at a turn's last token both are 0.

    `rewards` (B, A): from `token_rewards`, KL included; `values`, `turn` (B, A). Returns `(advantages, returns)`, both
    (B, A), `returns = advantages + values`, 0 where `turn` is 0. Raises ValueError for gamma or lambd outside [0, 1],
    shapes that differ, or rewards or values of action tokens that are not finite.
    """
    rewards, values = _token_values(turn, rewards.shape[0], rewards=rewards, values=values)
    gamma, lambd = _number("gamma", gamma, high=1.0), _number("lambd", lambd, high=1.0)
    advantages = torch.zeros_like(rewards)
    next_turn = torch.zeros_like(turn[:, 0])
    next_value, next_advantage = torch.zeros_like(values[:, 0]), torch.zeros_like(rewards[:, 0])
    for j in reversed(range(turn.shape[1])):
        action, same = turn[:, j] > 0, (turn[:, j] == next_turn).to(rewards.dtype)
        delta = rewards[:, j] + gamma * same * next_value - values[:, j]
        advantages[:, j] = torch.where(action, delta + gamma * lambd * same * next_advantage, 0)
        next_turn = torch.where(action, turn[:, j], next_turn)
        next_value = torch.where(action, values[:, j], next_value)
        next_advantage = torch.where(action, advantages[:, j], next_advantage)
    return advantages, advantages + values


# ── Checks ──


def _sums(values: Tensor, index: Tensor, size: int) -> Tensor:
    return torch.zeros(size, dtype=values.dtype, device=values.device).index_add(0, index, values)


def _real(values: Tensor) -> Tensor:
    return values if values.dtype in (torch.float32, torch.float64) else values.float()


def _vectors(*, mask: Tensor | None = None, **vectors: Tensor) -> tuple[Tensor, ...]:
    """The named (B,) tensors as floats of one type; finite where the mask holds."""
    first_name, first = next(iter(vectors.items()))
    for name, values in vectors.items():
        if values.dim() != 1 or values.shape != first.shape:
            raise ValueError(
                f"{name} has shape {tuple(values.shape)}, {first_name} {tuple(first.shape)}; "
                "pass one number per row, (B,)"
            )
        bad = ~torch.isfinite(values) & _row_mask(mask, values)
        if bad.any():
            row = int(bad.nonzero()[0])
            raise ValueError(f"{name}[{row}] is {values[row].item()}; mask the rows that failed or give them a number")
    reals = [_real(values) for values in vectors.values()]
    widest = torch.float64 if any(values.dtype == torch.float64 for values in reals) else torch.float32
    return tuple(values.to(widest) for values in reals)


def _token_values(turn: Tensor, num_rows: int, **tokens: Tensor) -> tuple[Tensor, ...]:
    """The named (B, A) tensors as floats, 0 where `turn` is 0 and finite elsewhere."""
    if turn.dim() != 2 or turn.shape[0] != num_rows:
        raise ValueError(f"turn has shape {tuple(turn.shape)} for {num_rows} rows; pass (B, A) with B = {num_rows}")
    if turn.is_floating_point() or turn.dtype == torch.bool or ((turn < 0) | (turn > 2)).any():
        raise ValueError(
            f"turn is {turn.dtype} with values {torch.unique(turn).tolist()[:5]}; "
            "pass integers: 0 (not an action), 1 (attempt) or 2 (revision)"
        )
    result = []
    for name, values in tokens.items():
        if values.shape != turn.shape:
            raise ValueError(f"{name} has shape {tuple(values.shape)}, turn {tuple(turn.shape)}; both must be (B, A)")
        bad = ~torch.isfinite(values) & (turn > 0)
        if bad.any():
            row, column = bad.nonzero()[0].tolist()
            raise ValueError(
                f"{name}[{row}, {column}] is {values[row, column].item()} on an action token; "
                "mask that row (turn 0) or find the log-prob that is not finite"
            )
        # `where`, not a product: a mask of 0 would keep the NaN of a column that is no action.
        result.append(torch.where(turn > 0, _real(values), 0))
    return tuple(result)


def _ids(num_rows: int, **ids: Tensor) -> tuple[Tensor, ...]:
    for name, values in ids.items():
        if values.is_floating_point() or values.is_complex() or values.dtype == torch.bool:
            raise ValueError(f"{name} ids are {values.dtype}; pass integers, e.g. {name}.long()")
        if values.shape != (num_rows,):
            raise ValueError(f"{name} has shape {tuple(values.shape)}; pass one id per row, ({num_rows},)")
    return tuple(values.long() for values in ids.values())


def _row_mask(mask: Tensor | None, like: Tensor) -> Tensor:
    if mask is None:
        return torch.ones(like.shape, dtype=torch.bool, device=like.device)
    if mask.dtype != torch.bool or mask.shape != like.shape:
        raise ValueError(f"mask is {mask.dtype} {tuple(mask.shape)}; pass booleans, one per row, {tuple(like.shape)}")
    return mask


def _coef_pair(kl_coef: Sequence[float]) -> tuple[float, float]:
    if not isinstance(kl_coef, Sequence) or len(kl_coef) != 2:
        raise ValueError(f"kl_coef is {kl_coef!r}; pass the pair (turn 1, turn 2), e.g. kl_coefs(stage=2, ...)")
    return _number("kl_coef of turn 1", kl_coef[0]), _number("kl_coef of turn 2", kl_coef[1])


def _choice(name: str, value: str, choices: Collection[str]) -> None:
    if value not in choices:
        raise ValueError(f"{name} is {value!r}; use one of {', '.join(choices)}")


def _number(name: str, value: float, *, high: float = math.inf) -> float:
    if not (0 <= value <= high and math.isfinite(value)):
        raise ValueError(f"{name} is {value}; use a finite number from 0 to {high:g}")
    return float(value)

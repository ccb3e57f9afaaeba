"""The state value: golden numbers worked out by hand, an independent route in plain Python, and its properties."""

import math
from statistics import fmean

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from score_openrlhf import objective as o


def t(*values):
    return torch.tensor(values, dtype=torch.float64)


def ids(*values):
    return torch.tensor(values)


def close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-9)


def test_golden_numbers():
    # problem 0: attempts a (r1 0; r2 1, 0) and b (r1 0; r2 0); problem 1: c (r1 0; r2 1) and d (r1 1; r2 1, 1, 0)
    r2 = t(1, 0, 0, 1, 1, 1, 0)
    group, unit = ids(0, 0, 0, 1, 1, 1, 1), ids(0, 0, 1, 0, 1, 1, 1)
    r1 = t(0, 0, 0, 0, 1, 1, 1)
    # a, row 0: like rows 0 (sibling) and 0 (b); rate over b 0 and c 1 = 1/2:      (0 + 2 * 1/2) / (2 + 2)
    # a, row 1: like rows 1 and 0:                                                 (1 + 2 * 1/2) / (2 + 2)
    # b: like rows 1, 0 (both of a); rate over a 1/2 and c 1 = 3/4:                (1 + 2 * 3/4) / (2 + 2)
    # c: no like rows (d has another grade); rate over a 1/2 and b 0 = 1/4:        (0 + 2 * 1/4) / (0 + 2)
    # d: siblings 1, 0 or 1, 1; no other attempt has r1 = 1, so the rate is that of all: (1/2 + 0 + 1) / 3 = 1/2
    expected = t(1 / 4, 1 / 2, 5 / 8, 1 / 4, (1 + 1) / 4, (1 + 1) / 4, (2 + 1) / 4)
    close(o.state_value(r2, group, unit, r1), expected)
    # six prior rows pull each towards its rate: a, row 0: (0 + 6 * 1/2) / (2 + 6)
    assert o.state_value(r2, group, unit, r1, prior_rows=6.0)[0] == 3 / 8


def test_without_another_attempt_the_siblings_stand_alone():
    close(o.state_value(t(1, 0, 0), ids(4, 4, 4), ids(7, 7, 7), t(0, 0, 0)), t(0, 1 / 2, 1 / 2))
    close(o.state_value(t(1), ids(0), ids(0), t(1)), t(0))
    assert o.state_value(t(), ids().long(), ids().long(), t()).shape == (0,)


def test_without_prior_rows_a_state_without_like_rows_takes_the_rate():
    close(o.state_value(t(1, 0, 1), ids(0, 1, 2), ids(0, 0, 0), t(0, 0, 0), prior_rows=0.0), t(1 / 2, 1, 1 / 2))


def test_stage_2_leaves_one_plus_alpha_times_the_surprise():
    """`r2 + alpha (r2 - r1)` less its own state value is the same number: nothing of r1 is left."""
    r1, r2 = t(0, 0, 1, 1), t(1, 0, 1, 0)
    group, unit = ids(0, 0, 0, 0), ids(0, 0, 1, 1)
    _, R2 = o.turn_rewards(r1, r2, stage=2, alpha=10.0)
    surprise = r2 - o.state_value(r2, group, unit, r1, prior_rows=0.0)
    close(R2 - o.state_value(R2, group, unit, r1, prior_rows=0.0), 11 * surprise)


rows = st.tuples(st.integers(0, 2), st.integers(0, 2), st.sampled_from([0.0, 1.0]), st.booleans())
batches = st.tuples(
    st.lists(rows, min_size=1, max_size=20), st.lists(st.sampled_from([0.0, 1.0]), min_size=9, max_size=9)
)
fast = settings(max_examples=60, deadline=None)


def columns(batch):
    """r2, group, unit, r1, mask, where r1 belongs to the attempt."""
    parts, grades = batch
    group, unit, r2, mask = zip(*parts, strict=True)
    r1 = [grades[3 * g + u] for g, u in zip(group, unit, strict=True)]
    return t(*r2), ids(*group), ids(*unit), t(*r1), torch.tensor(mask)


def in_plain_python(r2, group, unit, r1, mask, prior_rows):
    """The definition, row by row."""
    every = [i for i in range(len(r2)) if mask[i]]
    attempts: dict[tuple, list[int]] = {}
    for i in every:
        attempts.setdefault((group[i], unit[i]), []).append(i)
    values = []
    for own in range(len(r2)):
        if not mask[own]:
            values.append(0.0)
            continue
        others = {key: fmean(r2[i] for i in members) for key, members in attempts.items() if own not in members}
        same = [mean for key, mean in others.items() if r1[attempts[key][0]] == r1[own]]
        rates = same or list(others.values())
        like = [r2[i] for i in every if i != own and group[i] == group[own] and r1[i] == r1[own]]
        prior = prior_rows if rates else 0.0
        rate = fmean(rates) if rates else 0.0
        weight = len(like) + prior
        values.append((sum(like) + prior * rate) / weight if weight else rate)
    return t(*values)


@fast
@given(batches, st.sampled_from([0.0, 0.5, 2.0]))
def test_it_is_its_definition_row_by_row(batch, prior_rows):
    r2, group, unit, r1, mask = columns(batch)
    expected = in_plain_python(*(part.tolist() for part in (r2, group, unit, r1, mask)), prior_rows)
    close(o.state_value(r2, group, unit, r1, prior_rows=prior_rows, mask=mask), expected)


@fast
@given(batches, st.randoms())
def test_rows_are_known_by_id_and_names_are_only_names(batch, random):
    r2, group, unit, r1, mask = columns(batch)
    order = torch.tensor(random.sample(range(len(r2)), len(r2)))
    whole = o.state_value(r2, group, unit, r1, mask=mask)
    close(o.state_value(r2[order], group[order], unit[order], r1[order], mask=mask[order]), whole[order])
    close(o.state_value(r2, -group - 10**12, 5 - unit, r1, mask=mask), whole)


@fast
@given(batches)
def test_no_row_is_in_its_own_value_and_masked_rows_are_in_none(batch):
    r2, group, unit, r1, mask = columns(batch)
    whole = o.state_value(r2, group, unit, r1, mask=mask)
    for row in range(len(r2)):
        other = r2.clone()
        other[row] = 7.0
        close(o.state_value(other, group, unit, r1, mask=mask)[row], whole[row])
    spoiled = o.state_value(torch.where(mask, r2, math.nan), group, unit, torch.where(mask, r1, math.nan), mask=mask)
    close(spoiled, whole)
    close(whole[mask], o.state_value(r2[mask], group[mask], unit[mask], r1[mask]))
    assert (whole[~mask] == 0).all()
    assert ((whole >= -1e-9) & (whole <= 1 + 1e-9)).all()


@pytest.mark.parametrize(
    "call, message",
    [
        (
            lambda: o.state_value(t(1, 0), ids(0, 0), ids(0, 0), t(0, 1)),
            r"r1\[\d\] is \d, and another row of the same",
        ),
        (lambda: o.state_value(t(1, 0), ids(0, 0), ids(0, 1), t(0, 1), prior_rows=-1.0), r"prior_rows is -1"),
        (lambda: o.state_value(t(1, math.nan), ids(0, 0), ids(0, 1), t(0, 1)), r"r2\[1\] is nan"),
        (lambda: o.state_value(t(1, 0), ids(0, 0), ids(0, 1), t(0)), r"r1 has shape \(1,\)"),
        (lambda: o.state_value(t(1, 0), t(0, 0), ids(0, 1), t(0, 1)), r"group ids are torch.float64"),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    "anchor, objective, expected",
    [
        (0.02, 0.004, 0.2),  # 0.004 / 0.02
        (0.0, 0.004, 0.5),  # at the reference: as firm as it may be
        (0.001, 0.4, 0.5),
        (10.0, 0.4, 0.1),  # drifted: never looser than beta2
        (0.0, 0.0, 0.1),  # nothing to balance
    ],
)
def test_balanced_beta2(anchor, objective, expected):
    assert o.balanced_beta2(anchor, objective, low=0.1, high=0.5) == pytest.approx(expected)


def test_balanced_beta2_refuses_bounds_the_wrong_way_round():
    with pytest.raises(ValueError, match=r"beta2 is to stay between 0\.5 and 0\.1"):
        o.balanced_beta2(1.0, 1.0, low=0.5, high=0.1)

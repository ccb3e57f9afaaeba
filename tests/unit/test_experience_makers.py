"""Advantages of both policies from hand-made trajectories, with known log-probs in place of forward passes."""

import json
from types import SimpleNamespace

import pytest
import torch

from score_openrlhf.errors import UserError
from score_openrlhf.experience.guidance import GuidanceExperienceMaker, own_reward
from score_openrlhf.experience.solver import SolverExperienceMaker
from tests.support.fakes import trajectory

KL = 0.1  # log pi - log pi_ref of every action token


def strategy(micro_batch_size: int):
    return SimpleNamespace(
        args=SimpleNamespace(
            algo=SimpleNamespace(advantage=SimpleNamespace(estimator="rloo")),
            train=SimpleNamespace(dynamic_batch_enable=False),
            rollout=SimpleNamespace(micro_batch_size=micro_batch_size),
            reward=SimpleNamespace(clip_range=(-10.0, 10.0)),  # the host's default
        )
    )


def known_log_probs(samples_list):
    for samples in samples_list:
        samples.action_log_probs = -0.5 * samples.action_mask
        samples.kl = KL * samples.action_mask
    return samples_list


def solver_maker(*, micro=3, pad=4, **changes):
    options = dict(
        baseline_kind="leave_one_out",
        baseline_t2_kind="leave_one_out",
        normalise_kind="none",
        kl_credit="own",
        alpha=1.0,
        beta1=0.01,
        beta2=0.5,
        gamma_turn=0.0,
        dynamic_filtering=False,
    )
    maker = SolverExperienceMaker(
        None,
        None,
        None,
        None,
        None,
        strategy(micro),
        SimpleNamespace(pad_token_id=0),
        pad_multiple=pad,
        **{**options, **changes},
    )
    maker.make_experience = known_log_probs
    return maker


def guidance_maker(*, micro=3, pad=4, **changes):
    options = dict(
        reward_kind="outcome",
        leak_penalty=0.0,
        baseline_kind="leave_one_out",
        normalise_kind="none",
        kl_credit="own",
        kl_coef=0.05,
        dynamic_filtering=False,
    )
    maker = GuidanceExperienceMaker(
        None,
        None,
        None,
        None,
        None,
        strategy(micro),
        SimpleNamespace(pad_token_id=0),
        pad_multiple=pad,
        **{**options, **changes},
    )
    maker.make_experience = known_log_probs
    return maker


def four():
    """One problem, N = 2 attempts, K = 2: r1 = 0, 1; r2 = (1, 0), (1, 1)."""
    return [
        trajectory(0, 0, 0, r1=0, r2=1),
        trajectory(0, 0, 1, r1=0, r2=0),
        trajectory(0, 1, 0, r1=1, r2=1),
        trajectory(0, 1, 1, r1=1, r2=1),
    ]


def advantages(batch):
    """Per row the advantages of its action tokens; padding rows give an empty list."""
    rows = []
    for experience in batch.experiences:
        for advantage, mask in zip(experience.advantages, experience.action_mask):
            rows.append([round(float(x), 4) for x in advantage[mask.bool()]])
    return rows


def test_stage_two_by_hand():
    # G1 = r1 = 0, 0, 1, 1; leaving out the attempt: b1 = 1, 1, 0, 0, so A1 = -1, -1, 1, 1
    # G2 = r2 + (r2 - r1) = 2, 0, 1, 1; attempts' means 1 and 1, so b2 = 1 and A2 = 1, -1, 0, 0
    # each token also pays beta1 * kl = 0.001
    a1, a2 = [-1.001] * 2, [1 - 0.001] * 3
    expected = [a1 + a2, a1 + [-1.001] * 3, [0.999] * 2 + [-0.001] * 3, [0.999] * 2 + [-0.001] * 3]
    assert advantages(solver_maker().make_batch(four(), stage=2)) == [[round(x, 4) for x in row] for row in expected]


def test_stage_one_by_hand():
    # G1 = 0; turn 1 only pays (beta1 + beta2) * kl = 0.051
    # G2 = r2 = 1, 0, 1, 1; attempts' means 0.5, 1, so b2 = 1, 1, 0.5, 0.5
    expected = [[-0.051] * 2 + [a2 - 0.001] * 3 for a2 in (0.0, -1.0, 0.5, 0.5)]
    assert advantages(solver_maker().make_batch(four(), stage=1)) == [[round(x, 4) for x in row] for row in expected]


def test_the_state_value_by_hand():
    # r2 = 1, 0 after r1 = 0 and 1, 1 after r1 = 1: v = (0 + 2 * 1) / 3, (1 + 2 * 1) / 3, (1 + 2 * 1/2) / 3 twice
    # (no other attempt has the same r1, so the rate is that of the other one: 1, and 1/2)
    surprises = (1 / 3, -1.0, 1 / 3, 1 / 3)
    for stage, scale in ((1, 1.0), (2, 1.0 + 1.0)):  # 1 + alpha in stage II
        batch = solver_maker(baseline_t2_kind="state_value").make_batch(four(), stage=stage)
        expected = [[round(scale * a2 - 0.001, 4)] * 3 for a2 in surprises]
        assert [row[2:] for row in advantages(batch)] == expected
    # the guidance model is paid r2 and has the same baseline; each token pays 0.05 * kl
    batch = guidance_maker(baseline_kind="state_value").make_batch(four(), stage=2)
    assert advantages(batch) == [[round(a - 0.005, 4)] * 2 for a in surprises]


def test_the_state_value_is_taken_within_a_problem():
    """Another problem's attempts with the same grade are in the rate only, and a leak is part of what is paid."""
    other = [trajectory(1, 0, 0, r1=0, r2=1), trajectory(1, 0, 1, r1=0, r2=1)]
    other[1].leak = 1.0
    maker = guidance_maker(baseline_kind="state_value", leak_penalty=0.5, kl_coef=0.0, pad=2)
    # rewards 1, 0 | 1, 1 | 1, 0.5. Row 0: sibling 0; rate of r1 = 0: the other problem's 0.75: 1 - (0 + 1.5) / 3
    # rows 4 and 5: siblings 0.5 and 1, rate 0.5
    assert advantages(maker.make_batch([*four(), *other], stage=2))[:1] == [[0.5] * 2]
    assert advantages(maker.make_batch([*four(), *other], stage=2))[4:] == [[0.5] * 2, [round(0.5 - 2 / 3, 4)] * 2]


def test_base_attempts_earn_nothing_in_turn_1_and_inform_no_other():
    """A problem whose attempts are given trains turn 2 alone; another problem's lone attempt does not look at it."""
    given = [trajectory(1, n, 0, r1=n, r2=n, base_attempt=True) for n in range(2)]
    own = [trajectory(0, 0, 0, r1=1, r2=1), trajectory(2, 0, 0, r1=0, r2=0)]
    batch = solver_maker(baseline_t2_kind="state_value", beta1=0.0).make_batch([*own, *given], stage=2)
    rows = advantages(batch)
    # the lone attempts have each other: 1 - 0 and 0 - 1. In turn 2 the given attempts are states like any other, and
    # the state of each has one other with its grade: 2 (1 - 1) and 2 (0 - 0)
    assert rows[:2] == [[1.0] * 2 + [0.0] * 3, [-1.0] * 2 + [0.0] * 3]
    assert rows[2:] == [[0.0] * 3, [0.0] * 3]
    assert batch.num_action_tokens == 2 * 5 + 2 * 3
    assert batch.metrics["advantage_sq_t1"] == 1.0


def test_an_adaptive_beta2_follows_the_batches_before():
    """Each turn-1 token of four() has a KL credit of 0.1 nats; turn 2's mean advantage is about 0.5."""
    maker = solver_maker(beta2=0.5, beta2_max=8.0, beta1=0.0)
    first = maker.make_batch(four(), stage=1)
    assert first.metrics["beta2"] == 0.5  # nothing is known yet
    assert advantages(first)[0][:2] == [-0.05] * 2
    # |A2| = 0, 1, 0.5, 0.5 over equally long revisions: 0.5 / 0.1 = 5
    second = maker.make_batch(four(), stage=1)
    assert second.metrics["beta2"] == pytest.approx(5.0)
    assert advantages(second)[0][:2] == [-0.5] * 2
    resumed = solver_maker(beta2=0.5, beta2_max=8.0, beta1=0.0)
    resumed.restore(maker.state())
    assert resumed.make_batch(four(), stage=1).metrics == maker.make_batch(four(), stage=1).metrics
    assert "beta2" not in maker.make_batch(four(), stage=2).metrics
    lower = solver_maker(beta2=0.5, beta2_max=2.0)
    lower.restore(maker.state())
    assert lower.make_batch(four(), stage=1).metrics["beta2"] == 2.0  # the bound of now, not of the checkpoint
    assert solver_maker().state() == {}


def test_stage_two_is_not_cut_at_the_hosts_reward_range():
    # wrong to right at alpha 10: 1 + 10 = 11, against the other attempt's 0
    rows = [trajectory(0, 0, r1=0, r2=1), trajectory(0, 1, r1=0, r2=0)]
    made = advantages(solver_maker(alpha=10.0, beta1=0.0).make_batch(rows, stage=2))
    assert made[:2] == [[0.0] * 2 + [11.0] * 3, [0.0] * 2 + [-11.0] * 3]


def test_every_knob_reaches_the_equations():
    # alpha 3: G2 = r2 + 3 (r2 - r1) = 4, 0, 1, 1; gamma_turn 0.5: G1 = r1 + G2 / 2 = 2, 0, 1.5, 1.5.
    # No baseline; turn 1 pays 0.2 * 0.1 for each of its tokens that is still to come, turn 2 the same.
    knobs = dict(
        alpha=3.0, gamma_turn=0.5, baseline_kind="none", baseline_t2_kind="none", beta1=0.2, kl_credit="to_go"
    )
    made = advantages(solver_maker(**knobs).make_batch(four(), stage=2))
    for row, G1, G2 in zip(made, (2, 0, 1.5, 1.5), (4, 0, 1, 1), strict=True):
        assert row == pytest.approx([G1 - 0.04, G1 - 0.02, G2 - 0.06, G2 - 0.04, G2 - 0.02])
    # group_mean: (n - 1) / n = 1/2 of leave-one-out's, by row: rows of attempt 0 in place of their mean (4 + 0) / 2
    both = dict(baseline_kind="group_mean", baseline_t2_kind="group_mean")
    made = advantages(solver_maker(alpha=3.0, beta1=0.0, **both).make_batch(four(), stage=2))
    # G2 against (4 + 1)/2, (0 + 1)/2, (1 + 2)/2, (1 + 2)/2; G1 = r1 against (0 + 1)/2
    assert [(row[0], row[-1]) for row in made] == [(-0.5, 1.5), (-0.5, -0.5), (0.5, -0.5), (0.5, -0.5)]


@pytest.mark.parametrize("micro", [1, 3, 8])
def test_normalised_is_over_the_batch_and_never_the_anchor_of_stage_one(micro):
    """However the batch is cut: stage I's turn 1 has no reward; its mean would cancel the pull to the reference."""
    made = advantages(solver_maker(micro=micro, normalise_kind="std").make_batch(four(), stage=1))[:4]
    # turn 2: 0, -1, 1/2, 1/2 (by hand above), mean 0, variance (1 + 1/4 + 1/4) / 4 = 3/8; what each pays drops out
    for row, a2 in zip(made, (0.0, -1.0, 0.5, 0.5), strict=True):
        assert row == pytest.approx([-0.051] * 2 + [a2 / 0.375**0.5] * 3, abs=1e-4)
    # stage II: -1, -1, 1, 1 in turn 1 has mean 0 and deviation 1; 1, -1, 0, 0 in turn 2 variance 1/2
    made = advantages(solver_maker(micro=micro, normalise_kind="std").make_batch(four(), stage=2))[:4]
    for row, a1, a2 in zip(made, (-1, -1, 1, 1), (1, -1, 0, 0), strict=True):
        assert row == pytest.approx([a1] * 2 + [a2 * 2**0.5] * 3, abs=1e-4)


def test_each_turn_is_divided_by_its_own_deviation():
    # G1: attempts 0 and 1, mean 1/2: sqrt((1/4 + 1/4) / 1) = 0.7071. G2 = 2, 0, 1, 1, mean 1: rows of attempt 0 are
    # off by 1, those of attempt 1 by 0: sqrt((1 + 0) / 1) = 1
    made = advantages(solver_maker(normalise_kind="group_std", beta1=0.0).make_batch(four(), stage=2))
    for row, a1, a2 in zip(made, (-1, -1, 1, 1), (1, -1, 0, 0), strict=True):
        assert row == pytest.approx([a1 / 0.5**0.5] * 2 + [a2] * 3, abs=1e-4)


def test_each_turn_has_its_own_kind_of_baseline():
    # G1 = 0, 0, 1, 1; G2 = 2, 0, 1, 1 against the other attempt's mean, 1
    made = solver_maker(baseline_kind="none", baseline_t2_kind="leave_one_out", beta1=0.0).make_batch(four(), stage=2)
    assert [(row[0], row[-1]) for row in advantages(made)] == [(0, 1), (0, -1), (1, 0), (1, 0)]


def test_attempts_with_the_same_grade_are_of_one_state():
    # r1 = 0 in all. Row 0: the problem's other attempt 0, rate (0 + 1) / 2: 1 - (0 + 2/2) / 3; row 1: 0 - (1 + 2) / 3;
    # row 2: its problem has no other, the rate of the others is 1/2: 1 - 1/2
    rows = [trajectory(0, 0, r2=1), trajectory(0, 1, r2=0), trajectory(1, 0, r2=1)]
    made = advantages(solver_maker(baseline_t2_kind="state_value", beta1=0.0).make_batch(rows, stage=1))
    assert [row[-1] for row in made[:3]] == pytest.approx([2 / 3, -1, 1 / 2], abs=1e-4)


def test_the_deviation_of_turn_1_is_that_of_the_attempts_that_learn_in_it():
    rows = [trajectory(0, n, r1=n % 2, r2=n % 2, base_attempt=n == 2) for n in range(3)]
    made = advantages(solver_maker(normalise_kind="group_std", beta1=0.0).make_batch(rows, stage=2))
    assert [row[0] for row in made[:2]] == pytest.approx([-1 / 0.5**0.5, 1 / 0.5**0.5], abs=1e-4)


def test_beta2_remembers_the_batches_before_and_knows_no_stage_but_the_first():
    flat = [trajectory(0, n, r1=n, r2=1) for n in range(2)]  # no objective: of the mean 9/10 are left, 0.45 / 0.1
    maker, straight = (solver_maker(beta2=0.5, beta2_max=8.0, beta1=0.0) for _ in range(2))
    for one in (maker, straight):
        one.make_batch(four(), stage=1)
    resumed = solver_maker(beta2=0.5, beta2_max=8.0, beta1=0.0)
    resumed.restore(maker.state())
    resumed.make_batch(flat, stage=2)
    for one in (straight, resumed):
        one.make_batch(flat, stage=1)
        assert one.beta2 == pytest.approx(4.5)


def test_a_problem_drawn_twice_is_two_groups():
    # the second time both attempts are right: nothing to learn from among themselves, one group would give them 2/3
    again = [trajectory(1, n, r1=1, r2=1) for n in range(2)]
    for t in again:
        t.problem = four()[0].problem
    made = advantages(solver_maker(beta1=0.0).make_batch(four() + again, stage=2))
    assert made[:4] == advantages(solver_maker(beta1=0.0).make_batch(four(), stage=2))
    assert made[4:6] == [[0.0] * 5] * 2


def test_a_critics_values_take_the_place_of_the_baseline():
    # gamma 1/2, lambda 1/4, values of 1, no KL: a turn's last token G - 1, the one before 1/2 - 1 + 1/8 of it
    def with_values(samples_list):
        for samples in known_log_probs(samples_list):
            samples.values = torch.ones_like(samples.action_log_probs)
        return samples_list

    maker = solver_maker(baseline_kind="none", baseline_t2_kind="none", beta1=0.0, alpha=3.0, gae=(0.5, 0.25))
    maker.make_experience = with_values
    batch = maker.make_batch([trajectory(r1=0, r2=1)], stage=2)  # G1 = 0, G2 = 4
    turn1 = [-0.5 + (0 - 1) / 8, 0 - 1]
    turn2 = [-0.5 + (-0.5 + (4 - 1) / 8) / 8, -0.5 + (4 - 1) / 8, 4 - 1]
    assert advantages(batch)[0] == pytest.approx(turn1 + turn2, abs=1e-4)
    experience = batch.experiences[0]
    returns = experience.returns[0][experience.action_mask[0].bool()]  # what the critic learns: its values and that
    assert returns.tolist() == pytest.approx([1 + advantage for advantage in turn1 + turn2])


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("field", ["action_log_probs", "rollout_log_probs", "kl"])
def test_a_batch_that_is_not_finite_says_so_and_trains_nothing(field, number):
    """It ends in no ValueError of the objective: the update counts it, and some in a row end the run."""
    maker = solver_maker(beta2=0.5, beta2_max=8.0, beta1=0.0)
    maker.make_batch(four(), stage=1)
    before = json.dumps(maker.state())

    def overflown(samples_list):
        (first, *_) = known_log_probs(samples_list)
        spoilt = getattr(first, field).clone().float()
        spoilt[1, 0] = number  # a position of the prompt is enough: 0 times NaN is NaN
        setattr(first, field, spoilt)
        return samples_list

    maker.make_experience = overflown
    batch = maker.make_batch(four(), stage=1)
    assert batch.nonfinite.endswith(" in 1 rows") and batch.num_action_tokens == 0
    assert all(e.advantages.isfinite().all() for e in batch.experiences)
    assert json.dumps(maker.state()) == before  # running means would keep it for ever, in every checkpoint too


def test_shuffled_rows_keep_their_advantages():
    """Everything is looked up by id: the order of rows and the cut into micro batches change nothing."""
    rows = four()
    straight = advantages(solver_maker(micro=8).make_batch(rows, stage=2))
    order = [2, 0, 3, 1]
    shuffled = advantages(solver_maker(micro=2).make_batch([rows[i] for i in order], stage=2))
    assert shuffled == [straight[i] for i in order]


@pytest.mark.parametrize("kind", ["leave_one_out", "state_value"])
def test_failed_rows_change_no_other_row(kind):
    # its grades are unlike any other's in turn 2: right to wrong
    failed = trajectory(0, 2, 0, r1=1, r2=0, failure="revise: ValueError")
    options = {"baseline_t2_kind": kind}
    batch = solver_maker(**options).make_batch([*four(), failed], stage=2)
    assert advantages(batch)[:4] == advantages(solver_maker(**options).make_batch(four(), stage=2))
    assert advantages(batch)[4:] == [[]] * 4  # the failed row and three rows of padding
    assert batch.num_action_tokens == 4 * 5
    options = {"baseline_kind": kind, "pad": 8}
    batch = guidance_maker(**options).make_batch([*four(), failed], stage=2)
    assert advantages(batch)[:4] == advantages(guidance_maker(**options).make_batch(four(), stage=2))[:4]


def test_flat_problem_is_counted_and_filtered_when_asked():
    flat = [trajectory(1, n, 0, r1=1, r2=1) for n in range(2)]
    kept = solver_maker().make_batch(four() + flat, stage=2)
    assert kept.metrics["zero_variance_groups"] == 1 / 2
    half = [trajectory(2, n, 0, r1=1, r2=n) for n in range(2)]  # turn 1 is flat, turn 2 is not
    assert solver_maker().make_batch(four() + half, stage=2).metrics["zero_variance_groups"] == 0
    dropped = solver_maker(dynamic_filtering=True).make_batch(four() + flat, stage=2)
    assert dropped.num_action_tokens == 4 * 5
    assert advantages(dropped)[:4] == advantages(kept)[:4]


def test_no_signal_is_seen():
    flat = [trajectory(0, n, 0, r1=1, r2=1) for n in range(2)]
    assert not solver_maker(beta1=0.0).make_batch(flat, stage=2).has_signal
    assert solver_maker(beta1=0.01).make_batch(flat, stage=2).has_signal  # the anchor pulls


def test_guidance_baseline_is_within_the_state():
    # K = 2: state 0 has rewards 1, 0 -> 1, -1; state 1 has 1, 1 -> 0, 0; each token pays 0.05 * kl
    batch = guidance_maker().make_batch(four(), stage=2)
    assert advantages(batch) == [[0.995] * 2, [-1.005] * 2, [-0.005] * 2, [-0.005] * 2]
    assert batch.metrics["zero_variance_groups"] == 1 / 2


def test_kinds_of_guidance_reward():
    # improvement r2 - r1: 1, 0 | 0, 0; transition: 1, 0 | 0.2, 0.2; no baseline, and 0.05 * kl a token
    for kind, rewards in (("improvement", (1, 0, 0, 0)), ("transition", (1, 0, 0.2, 0.2))):
        made = advantages(guidance_maker(reward_kind=kind, baseline_kind="none").make_batch(four(), stage=2))
        assert made == [[round(reward - 0.005, 4)] * 2 for reward in rewards]


def test_states_without_signal_are_filtered_when_asked():
    kept = guidance_maker().make_batch(four(), stage=2)
    dropped = guidance_maker(dynamic_filtering=True).make_batch(four(), stage=2)
    assert advantages(dropped) == [*advantages(kept)[:2], [], []]
    assert dropped.num_action_tokens == 2 * 2


def test_leak_costs_the_guidance():
    rows = four()
    rows[0].leak = 1.0
    # rewards of state 0 become 1 - 0.4 and 0
    batch = guidance_maker(leak_penalty=0.4).make_batch(rows, stage=2)
    assert advantages(batch)[:2] == [[0.595] * 2, [-0.605] * 2]


OWN_REWARD = """
PAYS = 2.0  # a module of its own, not a text that is run

def second_is_better(trajectory):
    return PAYS * trajectory.guidance_index
"""


def test_own_guidance_reward_from_a_file(tmp_path):
    """`guidance.reward=path/to/file.py:function`: leave-one-out within the state, 0 and 2, minus the KL and leaks."""
    (tmp_path / "reward.py").write_text(OWN_REWARD)
    rows = four()
    rows[3].leak = 1.0  # of the second attempt's second guidance: 2 - 0.5
    maker = guidance_maker(reward_func=own_reward(f"{tmp_path}/reward.py:second_is_better"), leak_penalty=0.5)
    assert advantages(maker.make_batch(rows, stage=2)) == [[x - 0.005] * 2 for x in (-2, 2, -1.5, 1.5)]


@pytest.mark.parametrize("number", ["nan", "inf"])
def test_own_guidance_reward_that_is_no_number_is_refused_by_name(tmp_path, number):
    (tmp_path / "reward.py").write_text(f"def broken(trajectory):\n    return float('{number}')\n")
    maker = guidance_maker(reward_func=own_reward(f"{tmp_path}/reward.py:broken"))
    with pytest.raises(UserError, match=f"reward.py:broken' gave {number} for a trajectory"):
        maker.make_batch(four(), stage=2)


def test_own_guidance_reward_is_not_asked_about_rows_that_failed():
    def reward(t):
        assert t.failure is None
        return float(t.guidance_index)

    rows = [*four(), trajectory(0, 1, 2, failure="guide: ValueError", guidance=())]
    assert advantages(guidance_maker(reward_func=reward, pad=8).make_batch(rows, stage=2))[4:] == [[]] * 4


def test_own_guidance_reward_that_is_no_number_is_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"rewards\[0\] is nan"):
        guidance_maker(reward_func=lambda t: float("nan")).make_batch(four(), stage=2)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("none.py:f", r"the file .*/none.py does not exist"),
        ("reward.py:other", r"defines no function of a trajectory called 'other'; it has: second_is_better$"),
    ],
)
def test_own_guidance_reward_that_is_not_there_is_refused(tmp_path, source, message):
    (tmp_path / "reward.py").write_text(OWN_REWARD)
    with pytest.raises(ValueError, match=message):
        own_reward(f"{tmp_path}/{source}")


def test_engine_distance_and_kl_are_logged():
    rows = four()
    rows[0].attempt.log_probs[:] = [-0.5 - 0.3, -0.5 + 0.1]  # the trainer says -0.5 of every token
    failed = trajectory(1, failure="revise: ValueError", r1=1, r2=1)
    batch = solver_maker().make_batch([*rows, failed], stage=2)
    assert batch.metrics["engine_logprob_diff"] == pytest.approx((0.3 + 0.1) / (4 * 5))  # per token of four rows
    assert batch.metrics["kl_t1"] == pytest.approx(2 * KL)  # nats, summed over the two tokens of turn 1
    assert batch.metrics["kl_t2"] == pytest.approx(3 * KL)


def test_rewards_and_the_loss_are_of_the_rows_that_learn():
    failed = trajectory(1, failure="revise: ValueError", r1=1, r2=1)
    metrics = solver_maker(beta1=0.0).make_batch([*four(), failed], stage=2).metrics
    assert metrics["reward"] == 3 / 4 and metrics["reward_t1"] == 2 / 4
    assert metrics["return_t1"] == 2 / 4 and metrics["return_t2"] == (2 + 0 + 1 + 1) / 4  # r2 + (r2 - r1)
    # -1/20 of: turn 1 two tokens of -1, -1, 1, 1; turn 2 three tokens of 1, -1, 0, 0: nothing is left
    assert metrics["loss"] == 0
    rows = [trajectory(0, 0, r1=0, r2=0), trajectory(0, 1, r1=1, r2=1, attempt=(10,), revision=(20,))]
    # A1 = -1, 1; A2 = 0 - 1, 1 - 0. Minus the mean over 2 + 3 + 1 + 1 tokens: (2 + 3 - 1 - 1) / 7
    assert solver_maker(beta1=0.0).make_batch(rows, stage=2).metrics["loss"] == pytest.approx(3 / 7)


def test_context_between_the_turns_is_no_action():
    experience = solver_maker(micro=1).make_batch(four(), stage=2).experiences[0]
    assert torch.all(experience.advantages[experience.action_mask == 0] == 0)

"""Advantages of both policies from hand-made trajectories, with known log-probs in place of forward passes."""

from types import SimpleNamespace

import pytest
import torch

from score_openrlhf.experience.guidance import GuidanceExperienceMaker, own_reward
from score_openrlhf.experience.solver import SolverExperienceMaker
from tests.fakes import trajectory

KL = 0.1  # log pi - log pi_ref of every action token


def strategy(micro_batch_size: int):
    return SimpleNamespace(
        args=SimpleNamespace(
            algo=SimpleNamespace(advantage=SimpleNamespace(estimator="rloo")),
            train=SimpleNamespace(dynamic_batch_enable=False),
            rollout=SimpleNamespace(micro_batch_size=micro_batch_size),
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
    # G1 = 0; turn 1 only pays beta2 * kl = 0.05. G2 = r2 = 1, 0, 1, 1; attempts' means 0.5, 1, so b2 = 1, 1, 0.5, 0.5
    expected = [[-0.05] * 2 + [a2 - 0.001] * 3 for a2 in (0.0, -1.0, 0.5, 0.5)]
    assert advantages(solver_maker().make_batch(four(), stage=1)) == [[round(x, 4) for x in row] for row in expected]


def test_shuffled_rows_keep_their_advantages():
    """Everything is looked up by id: the order of rows and the cut into micro batches change nothing."""
    rows = four()
    straight = advantages(solver_maker(micro=8).make_batch(rows, stage=2))
    order = [2, 0, 3, 1]
    shuffled = advantages(solver_maker(micro=2).make_batch([rows[i] for i in order], stage=2))
    assert shuffled == [straight[i] for i in order]


def test_failed_rows_change_no_other_row():
    failed = trajectory(0, 2, 0, r1=1, r2=1, failure="revise: ValueError")
    batch = solver_maker().make_batch([*four(), failed], stage=2)
    assert advantages(batch)[:4] == advantages(solver_maker().make_batch(four(), stage=2))
    assert advantages(batch)[4:] == [[]] * 4  # the failed row and three rows of padding
    assert batch.num_action_tokens == 4 * 5


def test_flat_problem_is_counted_and_filtered_when_asked():
    flat = [trajectory(1, n, 0, r1=1, r2=1) for n in range(2)]
    kept = solver_maker().make_batch(four() + flat, stage=2)
    assert kept.metrics["zero_variance_groups"] == 1 / 2
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
    [("none.py:f", r"the file .*/none.py does not exist"), ("reward.py:other", r"defines no function other\(")],
)
def test_own_guidance_reward_that_is_not_there_is_refused(tmp_path, source, message):
    (tmp_path / "reward.py").write_text(OWN_REWARD)
    with pytest.raises(ValueError, match=message):
        own_reward(f"{tmp_path}/{source}")


def test_engine_distance_and_kl_are_logged():
    metrics = solver_maker().make_batch(four(), stage=2).metrics
    assert metrics["engine_logprob_diff"] == 0  # the fakes' engine says -0.5 as well
    assert metrics["kl_t1"] == pytest.approx(2 * KL)  # nats, summed over the two tokens of turn 1
    assert metrics["kl_t2"] == pytest.approx(3 * KL)


def test_context_between_the_turns_is_no_action():
    experience = solver_maker(micro=1).make_batch(four(), stage=2).experiences[0]
    assert torch.all(experience.advantages[experience.action_mask == 0] == 0)

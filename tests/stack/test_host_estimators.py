"""With one turn, objective.py gives the numbers of OpenRLHF's own experience maker, for each of its estimators.

The host's `compute_advantages_and_returns` runs as it is, on `Experience` objects and the arguments it reads; no Ray.
Its reward clipping and its whitening, off in this method, are switched on here.
"""

from types import SimpleNamespace

import pytest
import torch

from score_openrlhf import objective as o
from score_openrlhf.platform import activate

activate()  # before OpenRLHF, which imports flash_attn

from openrlhf.models.utils import compute_approx_kl  # noqa: E402
from openrlhf.trainer.ppo_utils.experience import Experience  # noqa: E402
from openrlhf.trainer.ppo_utils.experience_maker import RemoteExperienceMaker  # noqa: E402

NUM_PROBLEMS, NUM_SAMPLES, NUM_COLUMNS = 4, 3, 6
NUM_ROWS = NUM_PROBLEMS * NUM_SAMPLES
KL_COEF, GAMMA, LAMBD = 0.05, 0.9, 0.8
CLIP_RANGE = (-1.0, 1.0)

# host's estimator -> our baseline, division by the group's deviation, whitening
ESTIMATORS = {
    "reinforce": ("none", False, "std"),
    "rloo": ("leave_one_out", False, "none"),
    "reinforce_baseline": ("group_mean", False, "std"),
    "group_norm": ("group_mean", True, "none"),
    "dr_grpo": ("group_mean", False, "none"),
    "flash_reinforce": ("batch_mean", False, "none"),
    "gae": ("none", False, "std"),
}


@pytest.fixture
def batch():
    """Rows in problem order; responses of 1 to 6 tokens; one reward outside the clip range even after a baseline."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, NUM_COLUMNS + 1, (NUM_ROWS,), generator=generator)
    log_probs, reference, values = torch.randn(3, NUM_ROWS, NUM_COLUMNS, generator=generator)
    rewards = torch.randint(0, 2, (NUM_ROWS,), generator=generator).float()
    rewards[4] = 4.0
    return SimpleNamespace(
        action_mask=torch.arange(NUM_COLUMNS) < lengths[:, None],
        kl=compute_approx_kl(log_probs, reference, kl_estimator="k1"),
        values=values,
        rewards=rewards,
        problem=torch.arange(NUM_ROWS) // NUM_SAMPLES,
        index=torch.randperm(
            NUM_ROWS, generator=generator
        ).tolist(),  # rows reach the host shuffled over micro batches
    )


def host_advantages(estimator, batch, *, clip_range, no_std_norm):
    """Advantages and returns (B, A) of OpenRLHF, rows back in problem order."""
    advantage = SimpleNamespace(
        estimator=estimator, gamma=GAMMA if estimator == "gae" else 1.0, lambd=LAMBD, no_std_norm=no_std_norm
    )
    args = SimpleNamespace(
        algo=SimpleNamespace(advantage=advantage),
        rollout=SimpleNamespace(n_samples_per_prompt=NUM_SAMPLES),
        reward=SimpleNamespace(clip_range=clip_range, overlong_buffer_len=None, stop_properly_penalty_coef=None),
    )
    maker = RemoteExperienceMaker(
        None, None, None, None, SimpleNamespace(value=KL_COEF), SimpleNamespace(args=args), tokenizer=None
    )
    experiences = []
    for rows in (batch.index[:5], batch.index[5:]):
        fields = {name: getattr(batch, name)[rows].clone() for name in ("action_mask", "kl", "values", "rewards")}
        experiences.append(Experience(index=list(rows), info={}, **fields))
    experiences = maker.compute_advantages_and_returns(experiences)
    back = torch.tensor(batch.index).argsort()
    return [torch.cat([getattr(e, name) for e in experiences])[back] for name in ("advantages", "returns")]


def our_advantages(estimator, batch, *, clip_range, no_std_norm):
    kind, divide, whitening = ESTIMATORS[estimator]
    A = batch.rewards - o.baseline(batch.rewards, batch.problem, kind=kind)
    if divide:
        A = A / o.group_std(batch.rewards, batch.problem)
    if clip_range is not None:
        A = A.clamp(*clip_range)
    turn = batch.action_mask.long()
    if estimator == "gae":
        rewards = o.token_rewards(A, torch.zeros_like(A), batch.kl, turn, kl_coef=(KL_COEF, 0.0))
        advantages, returns = o.turn_gae(rewards, batch.values, turn, gamma=GAMMA, lambd=LAMBD)
    else:
        advantages = returns = o.single_turn_advantages(A, batch.kl, batch.action_mask, kl_coef=KL_COEF)
    if whitening == "std" and no_std_norm:
        whitening = "mean"
    return o.normalise(advantages, turn, kind=whitening), returns


@pytest.mark.parametrize("no_std_norm", [False, True])
@pytest.mark.parametrize("clip_range", [None, CLIP_RANGE])
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_single_turn_numbers_are_the_hosts(estimator, clip_range, no_std_norm, batch):
    options = {"clip_range": clip_range, "no_std_norm": no_std_norm}
    theirs, their_returns = host_advantages(estimator, batch, **options)
    ours, our_returns = our_advantages(estimator, batch, **options)
    mask = batch.action_mask
    torch.testing.assert_close(ours[mask], theirs[mask], rtol=0, atol=1e-6)
    torch.testing.assert_close(our_returns[mask], their_returns[mask], rtol=0, atol=1e-6)


def test_the_batch_tells_the_estimators_apart(batch):
    """No two settings agree on this batch, so a wrong row in the table cannot pass."""
    options = {"clip_range": None, "no_std_norm": False}
    results = [host_advantages(estimator, batch, **options)[0][batch.action_mask] for estimator in ESTIMATORS]
    for i, one in enumerate(results):
        for other in results[:i]:
            assert (one - other).abs().max() > 0.01


def test_the_hosts_default_clip_range_would_cut_the_progress_bonus(batch):
    _, batch.rewards = o.turn_rewards(torch.zeros(NUM_ROWS), torch.ones(NUM_ROWS), stage=2, alpha=10.0)  # 11 each
    _, ours = our_advantages("reinforce", batch, clip_range=None, no_std_norm=False)
    for clip_range, cut in ((None, 0.0), ((-10.0, 10.0), 1.0)):
        _, theirs = host_advantages("reinforce", batch, clip_range=clip_range, no_std_norm=False)
        difference = (ours - theirs)[batch.action_mask]
        torch.testing.assert_close(difference, torch.full_like(difference, cut), rtol=0, atol=2e-6)

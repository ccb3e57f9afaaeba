"""A key of OpenRLHF's that this method cannot take -> the reason, and what to set in its place."""

from __future__ import annotations

from collections.abc import Mapping

_LENGTH = (
    "the host's length penalties measure one response, but here it spans both turns and the guidance; bound the turns "
    "with rollout.attempt_max_tokens, guidance_max_tokens and revision_max_tokens"
)
_ESTIMATOR = (
    "advantages are computed for each turn here; set solver.baseline, solver.normalise or critic.enable "
    "(docs/method.md has a table of the host's estimators)"
)
_KL_WEIGHT = "each turn and each policy has its own KL weight; set beta1, beta2 or guidance_kl_coef"
_KL_LOSS = (
    "the KL is the k1 estimate in each token's advantage: as a loss it would have one weight for both turns; "
    "set beta1, beta2 or guidance_kl_coef"
)
_CUT = "sampling from a cut distribution gives log-probs that are not the policy's; leave it out"

REFUSED: Mapping[str, str] = {
    "algo.advantage.estimator": _ESTIMATOR,
    "algo.advantage.no_std_norm": _ESTIMATOR,
    "algo.advantage.gamma": "set gamma_turn for the discount between the turns, critic.gamma within a turn",
    "algo.advantage.lambd": "set critic.lambd",
    "algo.advantage.is_correction_gating": "the ratio of each token is what is bounded; set algo.is_correction.level",
    "algo.dynamic_filtering_enable": "each policy has its own; set solver.dynamic_filtering or "
    "guidance.dynamic_filtering",
    "algo.dynamic_filtering_range": "groups without variance are what is filtered; set solver.dynamic_filtering or "
    "guidance.dynamic_filtering",
    "algo.kl.estimator": _KL_LOSS,
    "algo.kl.horizon": _KL_WEIGHT,
    "algo.kl.init_coef": _KL_WEIGHT,
    "algo.kl.target": _KL_WEIGHT,
    "algo.kl.unbiased_gradient": _KL_LOSS,
    "algo.kl.use_loss": _KL_LOSS,
    "reward.clip_range": "shaped rewards reach 1 + alpha (11) and are never clipped: the host's range would cut them "
    "to 10; leave it out",
    "reward.normalize_enable": "rewards are grades in [0, 1]; set solver.normalise to scale advantages",
    "reward.overlong_buffer_len": _LENGTH,
    "reward.overlong_penalty_factor": _LENGTH,
    "reward.stop_properly_penalty_coef": _LENGTH,
    "reward.remote_url": "set task.reward_func to a file or an http(s) URL",
    "rollout.max_new_tokens": "each text has a budget of its own; set rollout.attempt_max_tokens, guidance_max_tokens "
    "and revision_max_tokens",
    "rollout.min_p": _CUT,
    "rollout.top_k": _CUT,
}

"""What `make evidence` trains: the seeds, the arms and what each arm changes in configs/playground.yaml."""

from __future__ import annotations

SEEDS = (201, 202, 203)  # of no earlier trial: the settings, the length included, were chosen on others
# Of each run. After the 60 of configs/playground.yaml the guidance model locates errors, but on one seed of three it
# still sent 46 % of the right attempts back, and the solver, which had learned to follow, broke more of them than the
# base model does. After 100 it sends back fewer.
STAGE1_STEPS, STAGE2_STEPS = 20, 80
METHODS = ("score", "smart_score", "rl_guided_score")
BASE = "base"  # the model that all arms of a seed start from, as solver and as guidance model
ARMS: dict[str, list[str]] = {
    "score": ["method=score"],
    "smart_score": ["method=smart_score"],
    "rl_guided_score": [],
    "no_stage1": ["start_stage=2", "stage1_steps=0", f"stage2_steps={STAGE1_STEPS + STAGE2_STEPS}"],
    "no_shaping": ["alpha=0"],
    "baseline_none": ["guidance.baseline=none"],
    "leak_penalty": ["guidance.leak_penalty=1"],
}
ABLATIONS = tuple(arm for arm in ARMS if arm not in METHODS)  # on the first seed alone


def plan(seeds: tuple[int, ...] = SEEDS, arms: tuple[str, ...] = tuple(ARMS)) -> list[tuple[int, str]]:
    """The arms to be there, seed by seed."""
    return [(seed, arm) for seed in seeds for arm in arms if arm in METHODS or seed == seeds[0]]

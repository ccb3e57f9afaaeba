"""What `make evidence` trains: the seeds, the arms and what each arm changes in configs/playground.yaml."""

from __future__ import annotations

SEEDS = (101, 102, 103)  # of no earlier trial: the settings of configs/playground.yaml were chosen on others
METHODS = ("score", "smart_score", "rl_guided_score")
BASE = "base"  # the model that all arms of a seed start from, as solver and as guidance model
ARMS: dict[str, list[str]] = {
    "score": ["method=score"],
    "smart_score": ["method=smart_score"],
    "rl_guided_score": [],
    "no_stage1": ["start_stage=2", "stage1_steps=0", "stage2_steps=60"],
    "no_shaping": ["alpha=0"],
    "baseline_none": ["guidance.baseline=none"],
    "leak_penalty": ["guidance.leak_penalty=1"],
}
ABLATIONS = tuple(arm for arm in ARMS if arm not in METHODS)  # on the first seed alone


def plan(seeds: tuple[int, ...] = SEEDS, arms: tuple[str, ...] = tuple(ARMS)) -> list[tuple[int, str]]:
    """The arms to be there, seed by seed."""
    return [(seed, arm) for seed in seeds for arm in arms if arm in METHODS or seed == seeds[0]]

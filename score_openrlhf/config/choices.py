"""The named ways of computing a thing, each once: its name, what it means, and the function that computes it.

A new one is a function and an entry here; the schema, its help, the reference page and the objective read these tables
(`docs/extending.md`). Functions are named, not imported: a configuration is read without torch.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Choice:
    """One named way."""

    meaning: str
    function: str  # module:name

    def load(self) -> Callable[..., Any]:
        """The function."""
        module, _, name = self.function.partition(":")
        return getattr(importlib.import_module(module), name)


Choices = Mapping[str, Choice]

_BASELINES = "score_openrlhf.experience.baselines"
_NONE = Choice("no baseline", f"{_BASELINES}:none")
_BATCH_MEAN = Choice("the mean over the batch's attempts", f"{_BASELINES}:batch_mean")
_STATE_VALUE = Choice(
    "an estimate of how often what follows this attempt is right, from all other rows", f"{_BASELINES}:state_value"
)

# function(Draws) -> (B,), experience/baselines.py
BASELINES_T1: Choices = {
    "none": _NONE,
    "batch_mean": _BATCH_MEAN,
    "group_mean": Choice("the mean over the problem's attempts, the row's own too", f"{_BASELINES}:group_mean"),
    "leave_one_out": Choice("the mean over the problem's other attempts", f"{_BASELINES}:leave_one_out"),
}
BASELINES_T2: Choices = {**BASELINES_T1, "state_value": _STATE_VALUE}
GUIDANCE_BASELINES: Choices = {
    "none": _NONE,
    "batch_mean": Choice("the mean over the batch's guidances", f"{_BASELINES}:batch_mean_of_guidances"),
    "leave_one_out": Choice("the mean over the attempt's other guidances", f"{_BASELINES}:leave_one_guidance_out"),
    "state_value": _STATE_VALUE,
}

# function(r1, r2), each (B,) -> (B,), objective.py
GUIDANCE_REWARDS: Choices = {
    "outcome": Choice("the revision's grade", "score_openrlhf.objective:outcome"),
    "improvement": Choice("the revision's grade minus the attempt's", "score_openrlhf.objective:improvement"),
    "transition": Choice(
        "1 from wrong to right, 0.2 from right to right, else 0", "score_openrlhf.objective:transition"
    ),
}

# function(values (n,), float64: those of one turn of the batch) -> (n,), objective.py
UNCHANGED = "none"
NORMALISATIONS: Choices = {
    UNCHANGED: Choice("as they are", "score_openrlhf.objective:unchanged"),
    "mean": Choice("less their mean, each turn by itself", "score_openrlhf.objective:centred"),
    "std": Choice(
        "less their mean and divided by their deviation, each turn by itself", "score_openrlhf.objective:whitened"
    ),
}
OF_ITS_PROBLEM = "group_std"
SOLVER_NORMALISATIONS: Choices = {
    **NORMALISATIONS,
    OF_ITS_PROBLEM: Choice("divided by the deviation of the problem's returns", "score_openrlhf.objective:group_std"),
}

# function(kl (B, A) of one turn, 0 elsewhere) -> (B, A), objective.py
KL_CREDITS: Choices = {
    "to_go": Choice("the token's estimate and the later ones of its turn", "score_openrlhf.objective:kl_to_go"),
    "own": Choice("the token's estimate alone", "score_openrlhf.objective:kl_own"),
}

# function(engines, problems, plan, models=, awake=, **limits) -> trajectories, rollout/generator.py
SCHEDULES: Choices = {
    "pipelined": Choice("each trajectory walks on its own", "score_openrlhf.rollout.generator:pipelined"),
    "phased": Choice("one engine group awake at a time", "score_openrlhf.rollout.generator:phased"),
}

# Class, a Task; tasks/base.py
TASKS: Choices = {
    "math": Choice("mathematics with a final answer", "score_openrlhf.tasks.math:MathTask"),
    "playground": Choice("the CPU-sized learning task", "score_openrlhf.tasks.playground:PlaygroundTask"),
}


def listed(choices: Choices) -> str:
    """`name (meaning), name (meaning)`."""
    return ", ".join(f"{name} ({choice.meaning})" for name, choice in choices.items())

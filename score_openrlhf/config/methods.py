"""The methods: which models take part, which of them learn, and the trainer that runs them.

A new method is an entry here and a YAML in `configs/` that names it; `docs/extending.md` adds one, step by step.
"""

from __future__ import annotations

from dataclasses import dataclass

SOLVER = "solver"
GUIDANCE = "guidance"
POLICIES = (SOLVER, GUIDANCE)  # in the order in which they act


@dataclass(frozen=True)
class Method:
    """Which models take part in a trajectory and which of them learn."""

    meaning: str
    learning: tuple[str, ...]  # of POLICIES; the others have engines and nothing else
    models: tuple[str, ...] = POLICIES  # those that are served; without GUIDANCE the hint is a fixed text
    trainer: str = "score_openrlhf.trainer.score:SCoReTrainer"  # module:Class


METHODS = {
    "score": Method("SCoRe: the hint is a fixed text.", learning=(SOLVER,), models=(SOLVER,)),
    "smart_score": Method("A frozen guidance model writes the hint.", learning=(SOLVER,)),
    "rl_guided_score": Method(
        "The guidance model learns too, by REINFORCE on the solver's second answers.",
        learning=(SOLVER, GUIDANCE),
        trainer="score_openrlhf.trainer.rl_guided:RLGuidedSCoReTrainer",
    ),
}

"""The experience maker of each policy, by the policy's name."""

from __future__ import annotations

from collections.abc import Mapping

from score_openrlhf.config.methods import GUIDANCE, SOLVER
from score_openrlhf.experience.guidance import GuidanceExperienceMaker
from score_openrlhf.experience.maker import PolicyExperienceMaker
from score_openrlhf.experience.solver import SolverExperienceMaker

MAKERS: Mapping[str, type[PolicyExperienceMaker]] = {
    SOLVER: SolverExperienceMaker,
    GUIDANCE: GuidanceExperienceMaker,
}

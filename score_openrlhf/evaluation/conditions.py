"""Attempts with their guidance in; the texts of the controls, each to be put in the guidance's place, out.

own       the hint the guidance model wrote for this attempt
none      the same turn-2 prompt with an empty hint: what a second look alone is worth
fixed     the fixed instruction of method score: what being told to check is worth
shuffled  a hint written for another problem: what hints in general are worth, whatever they say
masked    its own hint without the spans that state the answer: what is left when nothing is given away
alone     the guidance model answers the problem itself: whether it could have been asked directly
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from score_openrlhf.rollout.trajectory import Trajectory
from score_openrlhf.tasks.leak import answer_spans

OWN, NONE, FIXED, SHUFFLED, MASKED, ALONE = "own", "none", "fixed", "shuffled", "masked", "alone"
LABELS = {
    OWN: "its own guidance",
    NONE: "no guidance (an empty hint)",
    FIXED: "the fixed text",
    SHUFFLED: "guidance of another problem",
    MASKED: "its own, answers masked",
    ALONE: "guidance model alone",
}
MASK = "..."  # three full stops: every tokenizer has them, and they say that something is left out


def shuffled(trajectories: Sequence[Trajectory], seed: int) -> dict[int, str]:
    """Position -> a hint written for another problem; every hint is used once among the attempts of one index.

    Positions without a partner (an attempt index that one problem alone has) are left out.
    """
    by_index: dict[int, list[int]] = {}
    for position, t in enumerate(trajectories):
        if t.guidance is not None:
            by_index.setdefault(t.attempt_index, []).append(position)
    texts: dict[int, str] = {}
    for index, positions in sorted(by_index.items()):
        if len({trajectories[p].group for p in positions}) < len(positions):
            raise ValueError(f"attempt {index} of a problem occurs twice; give one seed's trajectories at a time")
        if len(positions) < 2:
            continue
        random.Random(f"{seed}/{index}").shuffle(positions)
        for position, other in zip(positions, positions[1:] + positions[:1], strict=True):
            guidance = trajectories[other].guidance
            assert guidance is not None
            texts[position] = guidance.text
    return texts


def masked(guidance: str, answer: str, states_answer: Callable[[str], bool]) -> str:
    """The guidance with MASK for every span that states the answer, the surroundings as they stand.

    `states_answer(text)` says whether a text gives the gold `answer` away. What still does after its expressions are
    masked is masked whole.
    """
    if not states_answer(guidance):
        return guidance
    # Delimited, so that an expression is read as mathematics wherever it stood.
    spans = sorted(answer_spans(guidance, answer, lambda expression: states_answer(f"$${expression}$$")))
    pieces, end = [], 0
    for start, stop in spans:
        if stop <= end:
            continue  # inside a span that is masked already
        if start >= end:
            pieces += [guidance[end:start], MASK]
        end = stop
    text = "".join(pieces) + guidance[end:]
    return MASK if states_answer(text) else text

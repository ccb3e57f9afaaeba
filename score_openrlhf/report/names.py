"""What the page says about each metric (its meaning) and how it groups them into charts. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

# The rows of the table before and after, in this order, with what each says.
MEANINGS = {
    "acc_t1": "right at the first attempt",
    "acc_t2": "right after the revision",
    "delta": "acc_t2 - acc_t1: what the revision adds",
    "i2c": "wrong, then right (of all problems)",
    "c2i": "right, then wrong (of all problems)",
    "fix_rate": "of the wrong attempts, those the revision mends",
    "break_rate": "of the right attempts, those the revision spoils",
    "edit_ratio": "words of the answer that the revision changes",
    "changed_answer": "revisions that give another answer",
    "guidance/hint_accuracy": "hints that fit the attempt",
    "guidance/right_column_rate": "hints that name the wrong column of a wrong attempt",
    "guidance/judgement_accuracy": "hints that say rightly whether the attempt is right",
    "guidance/error_information_bits": "bits that the hint tells about the error",
    "guidance/leak": "hints that state the answer",
    "guidance/distinct": "different hints, as a share of all hints",
    "guidance/distinct_2_across": "distinct-2 of hints for different problems",
    "guidance/self_bleu_across": "self-BLEU of hints for different problems",
    "guidance/length": "mean length of a hint, in tokens",
    "truncated_t1": "attempts cut at their token budget",
    "truncated_guidance": "hints cut at their token budget",
    "truncated_t2": "revisions cut at their token budget",
    "grade/unparsable": "answers in which the grader found nothing to grade",
}
NOT_FRACTIONS = {"guidance/length"}
LOWER_IS_BETTER = {"c2i", "break_rate", "guidance/leak", "truncated_t1", "truncated_guidance", "truncated_t2"} | {
    "grade/unparsable"
}
UNDIRECTED = {  # neither way is better as such
    "edit_ratio", "changed_answer", "guidance/distinct", "guidance/distinct_2_across", "guidance/self_bleu_across",
    "guidance/length",
}  # fmt: skip


@dataclass(frozen=True)
class Chart:
    """One pair of axes: the metrics on it with the label of each, and what a reader should know about them."""

    group: str
    title: str
    series: tuple[tuple[str, str], ...]  # (metric, label)
    note: str
    unit: Literal["fraction", "number", "count"] = "number"  # a count and what is set by hand are not smoothed
    source: Literal["steps", "evaluations"] = "steps"


_BOTH = ("solver", "guidance")


def _per_policy(metric: str) -> tuple[tuple[str, str], ...]:
    return tuple((f"{policy}/{metric}", policy) for policy in _BOTH)


CHARTS = (
    Chart(
        "Accuracy",
        "Held-out accuracy",
        (("acc_t1", "attempt"), ("acc_t2", "revision")),
        "evaluations before, during and after training",
        "fraction",
        "evaluations",
    ),
    Chart(
        "Accuracy",
        "Training accuracy",
        (("acc_t1", "attempt"), ("acc_t2", "revision")),
        "each step's own problems, as sampled",
        "fraction",
    ),
    Chart(
        "Accuracy",
        "What the revision changes",
        (("i2c", "wrong to right"), ("c2i", "right to wrong")),
        "i2c and c2i, of all trajectories",
        "fraction",
    ),
    Chart(
        "Accuracy",
        "Fix and break rate",
        (("fix_rate", "wrong ones fixed"), ("break_rate", "right ones broken")),
        "conditional on the attempt",
        "fraction",
    ),
    Chart(
        "Accuracy",
        "Size of the edit",
        (("edit_ratio", "words changed"), ("changed_answer", "answers changed")),
        "edit_ratio and changed_answer",
        "fraction",
    ),
    Chart("Policies", "Reward", _per_policy("reward"), "mean over the step's trajectories, before shaping"),
    Chart(
        "Policies",
        "KL to the reference",
        (
            ("solver/kl_t1", "attempt"),
            ("solver/kl_t2", "revision"),
            ("guidance/kl", "guidance"),
        ),
        "k1 estimate per token, nats",
    ),
    Chart("Policies", "Loss", _per_policy("loss"), "policy loss; its size alone means little"),
    Chart("Policies", "Gradient norm", _per_policy("grad_norm"), "before clipping"),
    Chart("Policies", "Learning rate", _per_policy("lr"), "at the step's last optimizer step", "count"),
    Chart(
        "Policies",
        "Optimizer steps",
        _per_policy("optimizer_steps"),
        "a flat line is a policy that does not train",
        "count",
    ),
    Chart(
        "Policies",
        "Groups without signal",
        _per_policy("zero_variance_groups"),
        "all rewards of the group alike",
        "fraction",
    ),
    Chart(
        "Policies",
        "Engine against trainer",
        _per_policy("engine_logprob_diff"),
        "mean difference of log-probs; grows when weights are out of step",
    ),
    Chart(
        "Hints",
        "Hints that fit",
        (("guidance/hint_accuracy", "fits the attempt"), ("guidance/right_column_rate", "names the error")),
        "where the task knows the error",
        "fraction",
    ),
    Chart("Hints", "Leaks", (("guidance/leak", "states the answer"),), "hints that state the answer", "fraction"),
    Chart("Hints", "Different hints", (("guidance/distinct", "distinct"),), "share of the step's hints", "fraction"),
    Chart(
        "Hints",
        "Diversity over problems",
        (("guidance/distinct_2_across", "distinct-2"), ("guidance/self_bleu_across", "self-BLEU")),
        "of held-out hints, each for another problem",
        "fraction",
        "evaluations",
    ),
    Chart("Hints", "Length of a hint", (("guidance/length", "tokens"),), "tokens, mean"),
    Chart(
        "Health",
        "Truncated",
        (("truncated_t1", "attempt"), ("truncated_guidance", "hint"), ("truncated_t2", "revision")),
        "cut at their token budgets",
        "fraction",
    ),
    Chart(
        "Health",
        "Not graded",
        (("grade/unparsable", "unparsable"), ("grade/timeout", "timeout"), ("grade/error", "error")),
        "apart from wrong",
        "fraction",
    ),
    Chart(
        "Health",
        "Left out of training",
        (("rollout/failed", "failed"), ("rollout/masked", "masked")),
        "share of the step's trajectories",
        "fraction",
    ),
    Chart("Health", "Tokens per second", (("tokens_per_second", "sampled"),), "both models, during the rollout"),
    Chart(
        "Health",
        "Seconds of a step",
        (("timing/total", "total"), ("timing/rollout", "rollout"), ("timing/sync", "sync")),
        "wall time",
    ),
)
# What is no curve: counters of the page's own axes.
AXES = {"step", "stage"}

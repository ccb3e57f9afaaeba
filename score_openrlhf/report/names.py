"""The metrics that the page compares, and how it groups them into charts. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from score_openrlhf.config.methods import POLICIES

# The rows of the table before and after, in this order.
_TEXTS = ("t1", "guidance", "t2")
COMPARED = (
    "acc_t1", "acc_t2", "delta", "i2c", "c2i", "fix_rate", "break_rate", "edit_ratio", "changed_answer",
    "guidance/hint_accuracy", "guidance/right_column_rate", "guidance/judgement_accuracy",
    "guidance/error_information_bits", "guidance/leak", "guidance/leak_unjudged", "guidance/distinct",
    "guidance/distinct_2_across", "guidance/self_bleu_across", "guidance/length",
    *(f"{kind}_{text}" for kind in ("truncated", "reasoning_tokens", "truncated_reasoning") for text in _TEXTS),
    "grade/unparsable", "num_failed",
)  # fmt: skip


@dataclass(frozen=True)
class Chart:
    """One pair of axes: the metrics on it with the label of each, and what a reader should know about them."""

    group: str
    title: str
    series: tuple[tuple[str, str], ...]  # (metric, label)
    note: str
    unit: Literal["fraction", "number", "count"] = "number"  # a count and what is set by hand are not smoothed
    source: Literal["steps", "evaluations"] = "steps"


def _per_policy(metric: str) -> tuple[tuple[str, str], ...]:
    return tuple((f"{policy}/{metric}", policy) for policy in POLICIES)


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
        "k1 estimate of a whole turn, nats",
    ),
    Chart("Policies", "Loss", _per_policy("loss"), "policy loss before the update; its size alone means little"),
    Chart("Policies", "Training loss", _per_policy("policy_loss"), "policy loss as trained on, over the update"),
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
    Chart(
        "Hints",
        "Leaks",
        (("guidance/leak", "states the answer"), ("guidance/leak_unjudged", "cannot be told")),
        "hints that state the answer; it cannot be told where problem or attempt state it too",
        "fraction",
    ),
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
        (
            ("grade/unparsable", "unparsable"),
            ("grade/timeout", "timeout"),
            ("grade/error", "error"),
            ("grade/leak_undecided", "leak undecided"),
        ),
        "apart from wrong",
        "fraction",
    ),
    Chart(
        "Health",
        "What right answers lean on",
        (
            ("grade/right_repeats", "repeats the problem"),
            ("grade/right_several", "several answers"),
            ("grade/right_unit", "by conversion"),
            ("grade/right_tolerance", "by tolerance"),
        ),
        "share of the right answers; one that grows may be a reward hack",
        "fraction",
    ),
    Chart(
        "Health",
        "Left out of training",
        (("rollout/failed", "failed"), ("rollout/masked", "masked")),
        "share of the step's trajectories",
        "fraction",
    ),
    Chart(
        "Health",
        "Optimizer steps left out",
        (*_per_policy("nonfinite_steps"), ("solver/critic_nonfinite_steps", "critic")),
        "for NaN or infinity in the batch, the loss or the gradient",
        "count",
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

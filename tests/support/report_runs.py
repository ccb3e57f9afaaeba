"""Folders of runs as training leaves them, made by hand in milliseconds, for tests of the report page."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

from score_openrlhf.rollout.metrics import timing_metrics, trajectory_metrics
from score_openrlhf.rollout.trajectory import Sample, Trajectory
from score_openrlhf.tasks.base import Grade, Problem

COLUMNS = ("hundreds", "tens", "ones")
HOSTILE = "</script><img src=x onerror=\"document.title='owned'\"><b>&amp;"


def make_trajectory(rng: random.Random, number: int, skill: float, step: int) -> Trajectory:
    """A playground trajectory: one digit of half of the attempts is off; `skill` in [0, 1] is how good hints are."""
    gold = [rng.randint(1, 9) for _ in COLUMNS]
    attempt, column = list(gold), rng.randrange(3)
    if rng.random() < 0.5:
        attempt[column] = (attempt[column] + 1) % 10
    located = rng.random() < 0.35 + 0.6 * skill
    named = column if located else (column + 1) % 3
    hint = f"redo the {COLUMNS[named]}" if attempt != gold or not located else "looks right"
    leak = rng.random() < 0.02
    if leak:
        hint = f"redo {gold[column]}"
    revision = list(attempt)
    if attempt != gold and located and rng.random() < 0.3 + 0.6 * skill:
        revision = gold
    elif attempt == gold and rng.random() < 0.08 * (1 - skill):
        revision[column] = (revision[column] + 1) % 10

    def sample(text: str, *, truncated: bool = False) -> Sample:
        tokens = text.split()
        return Sample([len(t) for t in tokens], [-0.1] * len(tokens), text, truncated, step)

    def words(digits: list[int]) -> str:
        return " ".join(map(str, digits))

    failed = rng.random() < 0.01
    trajectory = Trajectory(
        problem=Problem(f"test-{number}", f"3 4 7 + {words(gold)} =", words(gold), {}),
        group=number,
        attempt_index=0,
        guidance_index=0,
        attempt=sample(words(attempt)),
        guidance=None if failed else sample(hint, truncated=rng.random() < 0.03),
        revision=None if failed else sample(words(revision)),
        grade_t1=Grade("right" if attempt == gold else "wrong"),
        grade_t2=None if failed else Grade("right" if revision == gold else "wrong"),
        leak=float(leak and not failed),
        seconds={"attempt": 0.3, "guide": 0.4, "revise": 0.3, "grade": 0.001},
        failure="guide: TimeoutError" if failed else None,
    )
    if not failed:
        fits = float(located)
        trajectory.hint_metrics = {"hint_accuracy": fits} | ({"right_column_rate": fits} if attempt != gold else {})
    return trajectory


def make_run(
    folder: Path,
    *,
    steps: int = 12,
    planned: int | None = None,
    per_step: int = 24,
    num_eval: int = 60,
    gain: float = 1.0,
    seed: int = 0,
    hostile: bool = False,
    config: dict[str, Any] | None = None,
) -> Path:
    """Write a run of `steps` steps, a third of them stage I; unfinished if it planned more. Returns its folder."""
    rng = random.Random(seed)
    (folder / "trajectories").mkdir(parents=True)
    planned = planned or steps
    stage1 = planned // 3
    settings = {
        "method": "rl_guided_score",
        "model_path": "models/tiny",
        "stage1_steps": stage1,
        "stage2_steps": planned - stage1,
        "seed": seed,
        "run_name": folder.name,
        "output_dir": str(folder),
        **(config or {}),
    }
    text = "# Resolved; each comment names where the value stands.\n"
    text += "".join(f"{key}: {json.dumps(value)}  # default\n" for key, value in settings.items())
    (folder / "config.yaml").write_text(text)

    def write(name: str, trajectories: list[Trajectory]) -> None:
        rows = [t.to_json() for t in trajectories]
        if hostile:
            for part in ("attempt", "guidance", "revision"):
                if rows[0][part]:
                    rows[0][part]["text"] = HOSTILE + part
            rows[0]["problem_id"] = rows[0]["problem"] = rows[0]["answer"] = HOSTILE
        (folder / "trajectories" / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def evaluate(name: str, skill: float, step: int) -> dict[str, float]:
        own = random.Random(seed + 1)  # the same problems every time
        trajectories = [make_trajectory(own, i, skill, step) for i in range(num_eval)]
        write(name, trajectories)
        metrics = {**trajectory_metrics(trajectories), "num_problems": num_eval}
        (folder / f"{name}.json").write_text(json.dumps({"step": step, "num_problems": num_eval, "metrics": metrics}))
        return metrics

    before = evaluate("eval_before", 0.0, 0)
    with (folder / "metrics.jsonl").open("w") as file:
        for step in range(1, steps + 1):
            skill = gain * (1 - math.exp(-3 * step / planned))
            trajectories = [make_trajectory(rng, i, skill, step - 1) for i in range(per_step)]
            write(f"step_{step:06d}", trajectories)
            noise = rng.gauss(0, 0.1)
            metrics = {
                "stage": 1 if step <= stage1 else 2,
                **trajectory_metrics(trajectories),
                **timing_metrics(trajectories),
                "solver/reward": 0.5 + 0.4 * skill,
                "guidance/reward": 0.5 + 0.4 * skill + 0.05 * noise,
                "solver/kl_t1": 0.002 * step / planned,
                "solver/kl_t2": 0.02 * skill + 0.01 * noise**2,
                "guidance/kl": 0.2 * skill,
                "solver/loss": 0.01 * noise,
                "guidance/loss": -0.02 * noise,
                "solver/grad_norm": 0.3 + abs(noise),
                "guidance/grad_norm": 0.2 + abs(noise),
                "solver/lr": 1e-4,
                "guidance/lr": 6e-4,
                "solver/optimizer_steps": step,
                "guidance/optimizer_steps": step,
                "solver/custom_metric": noise,
                "tokens_per_second": 650 + 100 * noise,
                "timing/rollout": 1.6 + 0.2 * noise,
                "timing/logprob": 0.6,
                "timing/solver_train": 0.4,
                "timing/guidance_train": 0.3,
                "timing/sync": 0.6,
                "timing/total": 3.6 + 0.2 * noise,
            }
            file.write(json.dumps({"step": step, **metrics}) + "\n")
    if steps == planned:
        after = evaluate("eval_after", gain, steps)
        summary = {
            "method": settings["method"],
            "steps": steps,
            "before": before,
            "after": after,
            "wall_seconds": 31 + 3.6 * steps,
            "seconds_by_phase": {"startup": 25.0, "evaluate": 6.0, "rollout": 1.6 * steps, "logprob": 0.6 * steps}
            | {"solver_train": 0.4 * steps, "guidance_train": 0.3 * steps, "sync": 0.6 * steps},
            "peak_memory_gib": 7.5,
        }
        (folder / "summary.json").write_text(json.dumps(summary))
    return folder

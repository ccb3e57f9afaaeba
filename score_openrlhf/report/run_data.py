"""A run's folder in; its configuration, metrics and evaluations out, whether the run is finished or not."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import yaml

from score_openrlhf.config.derive import method_of
from score_openrlhf.config.evaluation import digest
from score_openrlhf.config.schema import Config
from score_openrlhf.config.stages import num_steps
from score_openrlhf.errors import UserError

# The keys that method_of and num_steps read.
TYPED_KEYS = (
    "method",
    "train_guidance_model",
    "use_smart_corrections",
    "stage1_steps",
    "stage2_steps",
    "start_stage",
    "max_steps",
)
MAX_EDGE_STEPS = 10  # steps averaged at either end where there is no evaluation


@dataclass(frozen=True)
class Evaluation:
    """Metrics over the held-out problems after `step` steps."""

    step: int
    file: str  # name of its trajectories file, without the suffix
    metrics: dict[str, float]


@dataclass(frozen=True)
class Figures:
    """What the table before and after shows, and of which it is the mean."""

    before: dict[str, float]
    after: dict[str, float]
    before_label: str
    after_label: str
    source: str
    files: tuple[str, str] | None = None  # trajectories files of the two evaluations


@dataclass(frozen=True)
class RunData:
    """One run as its files tell it."""

    folder: Path
    name: str
    config: dict[str, Any]  # dotted key -> value; empty if config.yaml is missing
    config_text: str
    lines: list[dict[str, Any]]  # metrics.jsonl, one a step
    summary: dict[str, Any] | None  # None while the run is unfinished
    evaluations: list[Evaluation]
    notes: list[str] = field(default_factory=list)  # what a reader should know about the files

    @property
    def last_step(self) -> int:
        return self.lines[-1]["step"] if self.lines else 0

    @property
    def _typed(self) -> Config:
        return Config(**{key: self.config[key] for key in TYPED_KEYS if key in self.config})

    @property
    def method(self) -> str:
        return self.summary["method"] if self.summary else method_of(self._typed) if self.config else "unknown method"

    @property
    def planned_steps(self) -> int | None:
        """Steps the configuration asks for, or None without one; stage I may end earlier than planned."""
        return num_steps(self._typed) if self.config else None

    @property
    def wall_seconds(self) -> float:
        """Of the whole run, or of its steps so far."""
        return (
            self.summary["wall_seconds"] if self.summary else sum(line.get("timing/total") or 0 for line in self.lines)
        )

    @property
    def seconds_by_phase(self) -> dict[str, float]:
        """Wall seconds by phase, longest first, with what no phase counts as `other`."""
        if self.summary:
            phases = dict(self.summary["seconds_by_phase"])
        else:
            phases = {}
            for line in self.lines:
                for phase in ("rollout", "logprob", "solver_train", "guidance_train", "sync"):
                    phases[phase] = phases.get(phase, 0.0) + (line.get(f"timing/{phase}") or 0.0)
        other = self.wall_seconds - sum(phases.values())
        if other > 0.01 * self.wall_seconds:
            phases["other"] = other
        return dict(sorted(((k, v) for k, v in phases.items() if v > 0), key=lambda item: -item[1]))

    @property
    def figures(self) -> Figures:
        """The first and the last evaluation; without two of them the first and the last training steps."""
        if len(self.evaluations) > 1:
            first, last = self.evaluations[0], self.evaluations[-1]
            count = f"{last.metrics['num_problems']:,.0f} held-out problems"
            files = (first.file, last.file)
            return Figures(first.metrics, last.metrics, _when(first), _when(last), count, files)
        edge = max(1, min(MAX_EDGE_STEPS, len(self.lines) // 3))
        before, after = _mean(self.lines[:edge]), _mean(self.lines[-edge:])
        label = f"{edge} steps" if edge > 1 else "step"
        return Figures(before, after, f"first {label}", f"last {label}", "training problems, as sampled")


def read_run(folder: str | Path) -> RunData:
    """Read what a run left in `folder`.

    Raises UserError if the folder is missing or holds no run, and for a line that is not JSON unless it is the last
    one of metrics.jsonl, which a killed run leaves cut.
    """
    folder = Path(folder).absolute()
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder; name the output_dir of a run")
    config_path, metrics_path = folder / "config.yaml", folder / "metrics.jsonl"
    if not config_path.is_file() and not metrics_path.is_file():
        raise UserError(f"{folder} is not a run: it has no config.yaml and no metrics.jsonl; name a run's output_dir")
    notes: list[str] = []
    config_text = config_path.read_text(encoding="utf-8") if config_path.is_file() else ""
    try:
        config = dict(_flatten(yaml.safe_load(config_text) or {}))
    except yaml.YAMLError as error:
        raise UserError(f"{config_path} is not YAML: {error}") from error
    lines = _read_lines(metrics_path, notes) if metrics_path.is_file() else []
    summary = _read_json(folder / "summary.json")
    if summary and lines and summary["steps"] < lines[-1]["step"]:
        notes.append(f"summary.json is of step {summary['steps']}; the run has gone on since")
        summary = None
    return RunData(
        folder=folder,
        name=str(config.get("run_name") or folder.name),
        config=config,
        config_text=config_text,
        lines=lines,
        summary=summary,
        evaluations=_read_evaluations(folder, lines, notes),
        notes=notes,
    )


def read_runs(folders: Sequence[str | Path]) -> list[RunData]:
    """Read several runs; runs of one name get their folders' names too. Raises UserError for one named twice."""
    runs = [read_run(folder) for folder in folders]
    paths = [run.folder.resolve() for run in runs]
    twice = next((path for path in paths if paths.count(path) > 1), None)
    if twice:
        raise UserError(f"{twice} is named twice; name each run once")
    names = [run.name for run in runs]
    return [replace(run, name=_with_folder(run)) if names.count(run.name) > 1 else run for run in runs]


def _with_folder(run: RunData) -> str:
    parent, own = run.folder.parent.name, run.folder.name
    return f"{run.name} ({parent}/{own})" if own == run.name else f"{run.name} ({own})"


def _read_lines(path: Path, notes: list[str]) -> list[dict[str, Any]]:
    text = path.read_text(encoding="utf-8", errors="replace").splitlines()
    lines = []
    for number, line in enumerate(text, start=1):
        try:
            lines.append(json.loads(line))
        except json.JSONDecodeError as error:
            if number < len(text):
                raise UserError(f"{path}:{number} is not JSON ({error.msg}); remove the line") from error
            notes.append("the last line of metrics.jsonl is cut and was left out")
    return lines


def _read_json(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise UserError(f"{path} is not JSON ({error.msg}); remove it to report the run without it") from error


def _read_evaluations(folder: Path, lines: list[dict[str, Any]], notes: list[str]) -> list[Evaluation]:
    """Before, during and after training, by step, those of the newest problems and settings alone."""
    found: dict[int, tuple[str | None, Evaluation]] = {}
    newest = None  # of the settings that the evaluations name; none is named in files of older versions
    for line in lines:
        metrics = {key.removeprefix("eval/"): value for key, value in line.items() if key.startswith("eval/")}
        if metrics:
            settings = metrics.pop("settings", None)
            newest = settings or newest
            found[line["step"]] = settings, Evaluation(line["step"], f"eval_step_{line['step']:06d}", metrics)
    kept = {name: _read_json(folder / f"{name}.json") for name in ("eval_after", "eval_before")}
    for name, content in kept.items():
        if content:
            settings = digest(content["settings"]) if "settings" in content else None
            newest = settings or newest  # at last that of `before`, which a run makes anew before all others
            metrics = {"num_problems": content["num_problems"], **content["metrics"]}
            found[content["step"]] = settings, Evaluation(content["step"], name, metrics)
    others = [step for step, (settings, _) in sorted(found.items()) if settings not in (newest, None)]
    if others:
        notes.append(
            f"other problems or settings were evaluated at step {', '.join(map(str, others))}; that is left out"
        )
    return [evaluation for step, (_, evaluation) in sorted(found.items()) if step not in others]


def _when(evaluation: Evaluation) -> str:
    names = {"eval_before": "before", "eval_after": "after"}
    return names.get(evaluation.file, f"step {evaluation.step}")


def _mean(lines: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Mean of each metric over the lines that have it."""
    keys = sorted({key for line in lines for key in line})
    values = {key: [line[key] for line in lines if isinstance(line.get(key), (int, float))] for key in keys}
    return {key: fmean(found) for key, found in values.items() if found}


def _flatten(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value

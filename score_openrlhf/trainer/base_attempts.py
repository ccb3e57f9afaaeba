"""Problems that will be drawn in; first attempts of the base model, sampled once and fixed, out.

Part of a step's problems may take their attempts from here instead of the current solver (SCoRe, section 5.3: "offline
prompts"): turn 2 is trained on them as on any other state, turn 1 is not, for the current policy did not sample it.
They are sampled before the first update, when the engines hold the base model, and kept in `base_attempts.jsonl`: a
run that goes on reads them, and samples those it lacks before its engines are brought to the trained weights.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from score_openrlhf.config.schema import Config
from score_openrlhf.files import write_atomically
from score_openrlhf.rollout.generator import ProblemOrder
from score_openrlhf.rollout.trajectory import Sample, Trajectory, request_seed
from score_openrlhf.tasks.base import Problem

FILE = "base_attempts.jsonl"
CHUNK_PROBLEMS = 256  # sampled and written at once: what an interruption can lose


def fraction(cfg: Config, stage: int) -> float:
    """The part of a step's problems that take the base model's attempts."""
    return cfg.rollout.base_attempts_stage1 if stage == 1 else cfg.rollout.base_attempts_stage2


def positions(cfg: Config, step: int, part: float) -> list[int]:
    """Which problems of step number `step` take the base model's attempts; a larger part holds a smaller one."""
    batch = range(cfg.rollout.batch_size)
    order = sorted(batch, key=lambda position: request_seed(cfg.seed, "base_attempts", step, position))
    return sorted(order[: round(part * cfg.rollout.batch_size)])


def needed(cfg: Config, order: ProblemOrder, stages: Sequence[int], first_step: int) -> list[Problem]:
    """The problems whose base attempts the steps from `first_step` on can ask for, each once, as they come.

    `stages[i]` is the stage of step number `first_step + i`; where a metric can end stage I early it may be 2 instead.
    """
    if fraction(cfg, 1) == fraction(cfg, 2) == 0:
        return []
    ahead = ProblemOrder(order.problems, order.seed, order.shuffle)
    ahead.position = order.position
    found: dict[str, Problem] = {}
    for step, stage in enumerate(stages, first_step):
        may_switch = stage == 1 and cfg.stage_switch.metric is not None
        part = max(fraction(cfg, stage), fraction(cfg, 2) if may_switch else 0.0)
        problems = ahead.draw(cfg.rollout.batch_size)
        found |= {problems[position].id: problems[position] for position in positions(cfg, step, part)}
    return list(found.values())


class BaseAttempts:
    """The base model's attempts by problem, and their file."""

    def __init__(self, cfg: Config, output_dir: Path):
        self.cfg = cfg
        self.path = output_dir / FILE
        self.known: dict[str, list[Sample]] = {}
        # what they were sampled with; attempts of other settings would be of another base
        rollout = cfg.rollout
        self.made_with = {
            "model_path": cfg.model_path, "temperature": rollout.temperature, "seed": cfg.seed,
            "attempt_max_tokens": rollout.attempt_max_tokens, "n_samples_per_prompt": rollout.n_samples_per_prompt,
        }  # fmt: skip
        self._read()

    def _read(self) -> None:
        if not self.path.is_file():
            return
        lines = self.path.read_text().splitlines()
        if not lines or json.loads(lines[0]) != self.made_with:
            self.path.unlink()  # of other settings: sampled anew
            return
        for line in lines[1:]:
            try:
                row = json.loads(line)
            except json.JSONDecodeError:
                break  # the line that a killed run was writing; it is the last one
            self.known[row["problem_id"]] = [Sample(**sample) for sample in row["attempts"]]
        self._write()

    def _write(self) -> None:
        rows = [{"problem_id": key, "attempts": [asdict(s) for s in samples]} for key, samples in self.known.items()]
        write_atomically(self.path, "".join(json.dumps(row) + "\n" for row in [self.made_with, *rows]))

    def _append(self, made: dict[str, list[Sample]]) -> None:
        if not self.path.is_file():
            write_atomically(self.path, json.dumps(self.made_with) + "\n")
        with open(self.path, "a") as file:
            for key, samples in made.items():
                file.write(json.dumps({"problem_id": key, "attempts": [asdict(s) for s in samples]}) + "\n")

    def sample(
        self,
        problems: Sequence[Problem],
        attempts_of: Callable[[Sequence[Problem]], list[Trajectory]],
    ) -> None:
        """Sample what is not known yet, a chunk at a time; `attempts_of` has the engines make turn 1 alone."""
        missing = [problem for problem in problems if problem.id not in self.known]
        for start in range(0, len(missing), CHUNK_PROBLEMS):
            chunk = missing[start : start + CHUNK_PROBLEMS]
            made: dict[str, list[Sample]] = {problem.id: [] for problem in chunk}
            for trajectory in attempts_of(chunk):
                if trajectory.attempt is not None and trajectory.failure is None:
                    made[trajectory.problem.id].append(trajectory.attempt)
            # a problem without its N attempts (a prompt too long, say) is attempted by the solver like any other
            whole = {key: found for key, found in made.items() if len(found) == self._num_attempts}
            self.known |= whole
            self._append(whole)

    @property
    def _num_attempts(self) -> int:
        return self.cfg.rollout.n_samples_per_prompt

    def of_step(self, step: int, stage: int, problems: Sequence[Problem]) -> list[list[Sample] | None]:
        """For each of the step's problems the attempts it is given, or None where the solver makes its own."""
        given: list[list[Sample] | None] = [None] * len(problems)
        for position in positions(self.cfg, step, fraction(self.cfg, stage)):
            given[position] = self.known.get(problems[position].id)
        return given

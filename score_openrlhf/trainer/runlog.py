"""One step's numbers and trajectories in; plain files out: metrics.jsonl, trajectories/, TensorBoard, W&B if asked."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from score_openrlhf.config.schema import Config
from score_openrlhf.rollout.trajectory import Trajectory


def write_atomically(path: Path, text: str) -> None:
    """Write `text` to `path` so that a reader sees the old file or the new one, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    with open(temporary, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def set_aside(output_dir: Path) -> Path:
    """Rename a run's folder to the next free `name-1`, `name-2`, ..., so that a new run loses nothing of it."""
    number = 1
    while (aside := output_dir.with_name(f"{output_dir.name}-{number}")).exists():
        number += 1
    os.rename(output_dir, aside)
    return aside


class RunLog:
    """What a run writes while it goes; lines of steps that a resumed run repeats are taken back first."""

    def __init__(self, cfg: Config, output_dir: Path, *, first_step: int):
        self.output_dir = output_dir
        self.metrics_path = output_dir / "metrics.jsonl"
        self._drop_steps_from(first_step)
        self.write_trajectories = cfg.logger.trajectories
        self.tensorboard = None
        if cfg.logger.tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self.tensorboard = SummaryWriter(str(output_dir / "tensorboard"), purge_step=first_step)
        self.wandb = None
        if cfg.logger.wandb_mode != "disabled":
            import wandb

            self.wandb = wandb.init(
                project=cfg.project_name, name=cfg.run_name, dir=str(output_dir), mode=cfg.logger.wandb_mode
            )

    def _drop_steps_from(self, step: int) -> None:
        if self.metrics_path.exists():
            kept = []
            for line in self.metrics_path.read_text().splitlines():
                try:
                    if json.loads(line)["step"] < step:
                        kept.append(line)
                except json.JSONDecodeError:
                    break  # the line a killed run was writing; it is the last one
            write_atomically(self.metrics_path, "".join(line + "\n" for line in kept))

    def step(self, step: int, metrics: dict[str, Any]) -> None:
        """Append one line to metrics.jsonl and the scalars to the trackers."""
        with open(self.metrics_path, "a") as file:
            file.write(json.dumps({"step": step, **metrics}) + "\n")
        scalars = {k: v for k, v in metrics.items() if isinstance(v, (int, float))}
        if self.tensorboard:
            for key, value in scalars.items():
                self.tensorboard.add_scalar(key, value, step)
            self.tensorboard.flush()
        if self.wandb:
            self.wandb.log(scalars, step=step)

    def trajectories(self, name: str, trajectories: Sequence[Trajectory]) -> None:
        """Write one line a trajectory to trajectories/<name>.jsonl."""
        if self.write_trajectories:
            text = "".join(json.dumps(t.to_json()) + "\n" for t in trajectories)
            write_atomically(self.output_dir / "trajectories" / f"{name}.jsonl", text)

    def close(self) -> None:
        if self.tensorboard:
            self.tensorboard.close()
        if self.wandb:
            self.wandb.finish()

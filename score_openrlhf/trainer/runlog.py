"""One step's numbers and trajectories in; plain files out: metrics.jsonl, trajectories/, TensorBoard, W&B if asked."""

from __future__ import annotations

import dataclasses
import json
import os
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, cast

from score_openrlhf.config.derive import method_of
from score_openrlhf.config.schema import Config
from score_openrlhf.files import LOCK, write_atomically
from score_openrlhf.rollout.trajectory import Trajectory


def set_aside(output_dir: Path) -> Path:
    """Rename a run's folder to the next free `name-1`, `name-2`, ..., so that a new run loses nothing of it.

    Its lock stays under the old name: whoever holds the folder holds the new run's.
    """
    number = 1
    while (aside := output_dir.with_name(f"{output_dir.name}-{number}")).exists():
        number += 1
    os.rename(output_dir, aside)
    if (aside / LOCK).exists():
        output_dir.mkdir()
        os.rename(aside / LOCK, output_dir / LOCK)
    return aside


def move_aside(folder: Path, names: Sequence[str]) -> Path:
    """Move these files of `folder`, those that are there, into the next free `folder-1`, `folder-2`, ... beside it.

    The folder itself and what else is in it stay: it may be anyone's.
    """
    folder = folder.absolute()
    number = 1
    while (aside := folder.with_name(f"{folder.name}-{number}")).exists():
        number += 1
    aside.mkdir()
    for name in names:
        if (folder / name).exists():
            os.rename(folder / name, aside / name)
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
            self.wandb = _wandb_run(cfg, output_dir)

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

    def steps(self) -> list[dict[str, Any]]:
        """The metrics of the steps that this run has made so far, also before it was interrupted."""
        if not self.metrics_path.exists():
            return []
        return [json.loads(line) for line in self.metrics_path.read_text().splitlines()]

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
            self.wandb.log({"step": step, **scalars})

    def trajectories(self, name: str, trajectories: Sequence[Trajectory]) -> None:
        """Write one line a trajectory to trajectories/<name>.jsonl."""
        if self.write_trajectories:
            text = "".join(json.dumps(t.to_json()) + "\n" for t in trajectories)
            write_atomically(self.output_dir / "trajectories" / f"{name}.jsonl", text)

    def evaluation(self, name: str, results: dict[str, Any]) -> None:
        """Write evaluations/<name>.json, in the form of evaluation.json of `score-openrlhf evaluate`."""
        write_atomically(self.output_dir / "evaluations" / f"{name}.json", json.dumps(results, indent=1) + "\n")

    def close(self) -> None:
        if self.tensorboard:
            self.tensorboard.close()
        if self.wandb:
            self.wandb.finish()


def _wandb_run(cfg: Config, output_dir: Path) -> Any:
    """The W&B run of this folder: a resumed run goes on in it."""
    import wandb

    id_path = output_dir / "wandb" / "run_id"
    if not id_path.exists():
        write_atomically(id_path, secrets.token_hex(8))
    online = cfg.logger.wandb_mode == "online"
    run = wandb.init(
        project=cfg.project_name,
        name=cfg.run_name,
        dir=str(output_dir),
        mode=cast(Literal["offline", "online"], cfg.logger.wandb_mode),
        id=id_path.read_text().strip(),
        resume="allow" if online else None,  # offline files of one id become one run when they are synced
        config={**dataclasses.asdict(cfg), "method": method_of(cfg)},  # runs are compared by it
        settings=wandb.Settings(console="off"),  # it would stand between the progress bar and the terminal
    )
    # W&B's own counter cannot go back to the checkpoint that a resumed run starts from
    run.define_metric("*", step_metric="step")
    return run

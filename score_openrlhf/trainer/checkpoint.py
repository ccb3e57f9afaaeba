"""Both policies and the trainer's state as one checkpoint: step_N.tmp, manifest last, renamed whole.

    checkpoints/step_N/
      solver/_actor/...     OpenRLHF's own DeepSpeed layout: its --ckpt.path can point at solver/
      guidance/_actor/...
      trainer.json          step, stage, position in the data, KL controllers, counters, seed
      manifest.json         every file with its size; written last

Every random draw of a run is a function of (seed, purpose, step, place): seed and step are its whole random state.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from score_openrlhf.policies.policy import Policy
from score_openrlhf.trainer.runlog import write_atomically

MANIFEST = "manifest.json"
TRAINER_STATE = "trainer.json"
FORMAT = 1


class CheckpointError(RuntimeError):
    """A checkpoint that is there but cannot be used."""


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint on disk."""

    path: Path
    step: int
    state: dict[str, Any]  # trainer.json


def save(
    root: Path, step: int, policies: Sequence[Policy], state: dict[str, Any], *, keep: int, best: int | None
) -> Path:
    """Write `root/step_N`, whole or not at all, then remove the oldest beyond `keep` (never step `best`)."""
    final, temporary = root / f"step_{step}", root / f"step_{step}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    for policy in policies:
        # the keys the host's own resume reads (PPOTrainer.fit), so that its command can go on from here
        client_states = {
            "episode": 0,
            "global_step": step,
            "total_consumed_prompts": state["data_position"],
            "data_loader_state_dict": {},
            "policy": policy.name,
        }
        policy.save(str(temporary / policy.name), f"global_step{step}", client_states)
    write_atomically(temporary / TRAINER_STATE, json.dumps(state, indent=1))
    files = {
        str(path.relative_to(temporary)): path.stat().st_size
        for path in sorted(temporary.rglob("*"))
        if path.is_file()
    }
    manifest = {"format": FORMAT, "step": step, "policies": [p.name for p in policies], "files": files}
    write_atomically(temporary / MANIFEST, json.dumps(manifest, indent=1))
    if final.exists():
        shutil.rmtree(final)
    os.rename(temporary, final)
    _rotate(root, keep=keep, protect={step, best})
    return final


def _rotate(root: Path, *, keep: int, protect: set[int | None]) -> None:
    whole = [c.step for c in whole_checkpoints(root)]
    for step in whole[:-keep] if keep else whole:
        if step not in protect:
            shutil.rmtree(root / f"step_{step}")


def whole_checkpoints(root: Path) -> list[Checkpoint]:
    """The checkpoints under `root` whose manifest is there and true, oldest first."""
    found = []
    for path in root.glob("step_*") if root.is_dir() else []:
        if path.suffix == ".tmp" or not (path / MANIFEST).is_file():
            continue
        manifest = json.loads((path / MANIFEST).read_text())
        sizes_hold = all(
            (path / name).is_file() and (path / name).stat().st_size == size
            for name, size in manifest["files"].items()
        )
        if sizes_hold:
            found.append(Checkpoint(path, manifest["step"], json.loads((path / TRAINER_STATE).read_text())))
    return sorted(found, key=lambda c: c.step)


def newest(root: Path, policy_names: Sequence[str]) -> Checkpoint | None:
    """The newest whole checkpoint, or None; raises CheckpointError if it is not one of these policies."""
    whole = whole_checkpoints(root)
    if not whole:
        return None
    checkpoint = whole[-1]
    missing = [name for name in policy_names if not (checkpoint.path / name).is_dir()]
    if missing:
        raise CheckpointError(
            f"{checkpoint.path} holds no {' or '.join(missing)} policy; it was written by another method. "
            "Use another output_dir, or resume=false to start anew."
        )
    return checkpoint


def check_steps(checkpoint: Checkpoint, loaded: dict[str, int]) -> None:
    """Raises CheckpointError unless each policy's own loaded state says the checkpoint's step."""
    wrong = {name: step for name, step in loaded.items() if step != checkpoint.step}
    if wrong:
        raise CheckpointError(
            f"{checkpoint.path} is of step {checkpoint.step}, but its "
            + ", ".join(f"{name} is of step {step}" for name, step in wrong.items())
            + "; two policies of different steps do not belong together"
        )

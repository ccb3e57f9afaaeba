"""Both policies and the trainer's state as one checkpoint: step_N.tmp, manifest last, renamed whole.

    checkpoints/step_N/
      solver/_actor/...     OpenRLHF's own DeepSpeed layout: its --ckpt.path can point at solver/
      guidance/_actor/...
      trainer.json          step, stage, position in the data, KL controllers, counters, seed, the best pair so far
      manifest.json         every other file with its size and SHA-256; written last (`manifest.py`)

Every random draw of a run is a function of (seed, purpose, step, place): seed and step are its whole random state.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from score_openrlhf.errors import RunError, UserError
from score_openrlhf.files import sync_folder
from score_openrlhf.policies.policy import Policy
from score_openrlhf.trainer import manifest

GIB = 2**30
PREFIX, REMOVED = "step_", ".removed"


class CheckpointError(UserError):
    """A checkpoint that is there but cannot be used."""


class NoRoom(RunError):
    """A checkpoint that the disk cannot hold was not begun; the message says what is free and what it takes."""


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint on disk."""

    path: Path
    step: int
    state: dict[str, Any]  # trainer.json


def save(
    root: Path, step: int, policies: Sequence[Policy], state: dict[str, Any], *, keep: int, best: int | None
) -> Path:
    """Write `root/step_N`, whole or not at all, then remove the oldest beyond `keep` (never step `best`).

    Raises NoRoom before anything is written where the disk has not the room that the checkpoint before took.
    """
    final, temporary = root / f"step_{step}", root / f"step_{step}.tmp"
    root.mkdir(parents=True, exist_ok=True)
    for left in (temporary, *root.glob(f"{PREFIX}*{REMOVED}")):  # of a save or a removal that was killed
        shutil.rmtree(left, ignore_errors=True)
    check_room(root)
    temporary.mkdir()
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
    manifest.write(temporary, state, step=step, policies=[policy.name for policy in policies])
    replaced = _aside(final) if final.exists() else None
    os.rename(temporary, final)
    sync_folder(root)  # the new one's name is on the disk before an old one goes
    if replaced:
        shutil.rmtree(replaced)
    _rotate(root, keep=keep, protect={step, best})
    return final


def amend(root: Path, step: int, state: dict[str, Any]) -> None:
    """Replace the trainer's state in the whole checkpoint `root/step_N`, in one step or not at all.

    What is found out after the last step, that its pair is the best, is so known to the run that goes on from there.
    """
    manifest.amend(root / f"step_{step}", state)


def check_room(root: Path) -> None:
    """Raises NoRoom where the disk of `root` has less room than the newest whole checkpoint there takes."""
    whole = whole_checkpoints(root)
    needed = manifest.num_bytes(whole[-1].path) if whole else 0
    free = shutil.disk_usage(root).free
    if free < needed:
        raise NoRoom(
            f"the disk of {root} has {free / GIB:.2f} GiB free and a checkpoint takes {needed / GIB:.2f}, so none was "
            f"begun; {whole[-1].path} is whole. Make room, and the same command goes on from it"
        )


def _rotate(root: Path, *, keep: int, protect: set[int | None]) -> None:
    whole = [c.step for c in whole_checkpoints(root)]
    for step in whole[:-keep] if keep else whole:
        if step not in protect:
            shutil.rmtree(_aside(root / f"step_{step}"))


def _aside(folder: Path) -> Path:
    """The folder under a name that is no checkpoint's: half of it may be gone when its removal is killed."""
    aside = folder.with_name(folder.name + REMOVED)
    os.rename(folder, aside)
    return aside


def whole_checkpoints(root: Path) -> list[Checkpoint]:
    """The checkpoints under `root` that hold every file in its size, oldest first."""
    found = [path for path in _folders(root) if manifest.fault(path, full=False) is None]
    return [_read(path) for path in found]


def newest(
    root: Path,
    policy_names: Sequence[str],
    *,
    full: bool = True,
    say: Callable[[str], None] = lambda line: None,
) -> Checkpoint | None:
    """The newest whole checkpoint, or None; those passed over are said, with the reason.

    `full` reads every byte of it (`ckpt.verify`). Raises CheckpointError if it is not one of these policies, or if
    there are checkpoints and none of them is whole.
    """
    passed_over: list[str] = []
    for path in reversed(_folders(root)):
        if why := manifest.fault(path, full=full):
            passed_over.append(f"{path} is passed over: {why}")
            say(passed_over[-1])
            continue
        missing = [name for name in policy_names if not (path / name).is_dir()]
        if missing:
            raise CheckpointError(
                f"{path} holds no {' or '.join(missing)} policy; it was written by another method. "
                "Use another output_dir, or resume=false to start anew."
            )
        return _read(path)
    if passed_over:
        raise CheckpointError(
            f"no checkpoint under {root} is whole: {'; '.join(passed_over)}. "
            "Bring one back, or start anew: resume=false"
        )
    return None


def _folders(root: Path) -> list[Path]:
    """The folders `step_N` under `root`, in the order of N; one that was not finished has another name."""
    found = [path for path in root.glob(f"{PREFIX}*") if path.name.removeprefix(PREFIX).isdecimal()]
    return sorted(found, key=_step_of)


def _step_of(path: Path) -> int:
    return int(path.name.removeprefix(PREFIX))


def _read(path: Path) -> Checkpoint:
    state = json.loads((path / manifest.TRAINER_STATE).read_text())
    return Checkpoint(path, _step_of(path), state)


def check_steps(checkpoint: Checkpoint, loaded: dict[str, int]) -> None:
    """Raises CheckpointError unless each policy's own loaded state says the checkpoint's step."""
    wrong = {name: step for name, step in loaded.items() if step != checkpoint.step}
    if wrong:
        raise CheckpointError(
            f"{checkpoint.path} is of step {checkpoint.step}, but its "
            + ", ".join(f"{name} is of step {step}" for name, step in wrong.items())
            + "; two policies of different steps do not belong together"
        )

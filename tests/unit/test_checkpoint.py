"""Checkpoints are whole or not there, belong together, and the previous one stays until the next is whole."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest

from score_openrlhf.trainer import checkpoint


@dataclass
class FakePolicy:
    """Writes one file where a real policy writes DeepSpeed's."""

    name: str
    fail: bool = False

    def save(self, folder, tag, client_states):
        target = Path(folder) / "_actor" / tag
        target.mkdir(parents=True)
        (target / "weights").write_text("w" * 100)
        if self.fail:
            raise OSError("disk full")
        (Path(folder) / "states.json").write_text(json.dumps(client_states))


POLICIES = [FakePolicy("solver"), FakePolicy("guidance")]
NAMES = ["solver", "guidance"]


def save(root, step, policies=POLICIES, keep=2, best=None):
    return checkpoint.save(root, step, policies, {"step": step, "data_position": 3 * step}, keep=keep, best=best)


def test_newest_whole_checkpoint_is_found(tmp_path):
    assert checkpoint.newest(tmp_path / "none", NAMES) is None
    save(tmp_path, 1)
    save(tmp_path, 10)
    found = checkpoint.newest(tmp_path, NAMES)
    assert found.step == 10 and found.state["data_position"] == 30
    # the host's own resume reads these keys
    states = json.loads((found.path / "solver" / "states.json").read_text())
    assert states["global_step"] == 10 and {"episode", "total_consumed_prompts", "data_loader_state_dict"} <= set(
        states
    )


def test_failed_save_leaves_the_previous_one(tmp_path):
    save(tmp_path, 1, keep=1)
    with pytest.raises(OSError):
        save(tmp_path, 2, [FakePolicy("solver"), FakePolicy("guidance", fail=True)], keep=1)
    assert checkpoint.newest(tmp_path, NAMES).step == 1
    save(tmp_path, 2, keep=1)  # the leftover of the failed one is in nobody's way
    assert checkpoint.newest(tmp_path, NAMES).step == 2


@pytest.mark.parametrize("damage", ["cut", "removed", "no manifest"])
def test_damaged_checkpoint_is_passed_over(tmp_path, damage):
    save(tmp_path, 1)
    path = save(tmp_path, 2)
    weights = path / "guidance" / "_actor" / "global_step2" / "weights"
    if damage == "cut":
        weights.write_text("w")
    elif damage == "removed":
        weights.unlink()
    else:
        (path / "manifest.json").unlink()
    assert checkpoint.newest(tmp_path, NAMES).step == 1


def test_old_checkpoints_go_but_never_the_best(tmp_path):
    for step in (1, 2, 3, 4):
        save(tmp_path, step, keep=2, best=1)
    assert [c.step for c in checkpoint.whole_checkpoints(tmp_path)] == [1, 3, 4]


def test_policies_of_different_steps_are_refused(tmp_path):
    save(tmp_path, 5)
    found = checkpoint.newest(tmp_path, NAMES)
    checkpoint.check_steps(found, {"solver": 5, "guidance": 5})
    with pytest.raises(checkpoint.CheckpointError, match="guidance is of step 4"):
        checkpoint.check_steps(found, {"solver": 5, "guidance": 4})


def test_checkpoint_of_another_method_is_refused(tmp_path):
    save(tmp_path, 1, [FakePolicy("solver")])
    with pytest.raises(checkpoint.CheckpointError, match="no guidance policy"):
        checkpoint.newest(tmp_path, NAMES)

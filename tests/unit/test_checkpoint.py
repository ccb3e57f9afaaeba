"""Checkpoints are whole or not there, belong together, and the previous one stays until the next is whole."""

from __future__ import annotations

import contextlib
import itertools
import json
import random
import shutil
from collections import namedtuple
from dataclasses import dataclass
from pathlib import Path

import pytest

from score_openrlhf.trainer import checkpoint, manifest


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


def test_a_checkpoint_that_was_not_renamed_is_none(tmp_path):
    save(tmp_path, 1)
    path = save(tmp_path, 2)
    path.rename(tmp_path / "step_2.tmp")  # killed after the manifest and before the rename
    assert checkpoint.newest(tmp_path, NAMES).step == 1


def test_step_10_is_newer_than_step_9(tmp_path):
    for step in (9, 10, 11):
        save(tmp_path, step, keep=2)
    assert [c.step for c in checkpoint.whole_checkpoints(tmp_path)] == [10, 11]
    save(tmp_path, 9, keep=0)
    assert checkpoint.newest(tmp_path, NAMES).step == 9  # the others are gone


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


# ── what is on disk is what was written ──


def flip(file: Path, bit: int) -> None:
    data = bytearray(file.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    file.write_bytes(data)


def test_a_flipped_bit_anywhere_is_found_and_named(tmp_path):
    save(tmp_path, 1)
    path = save(tmp_path, 2)
    files = sorted(file for file in path.rglob("*") if file.is_file())
    small = [path / manifest.MANIFEST, path / manifest.TRAINER_STATE]
    chance = random.Random(0)
    places = [(file, bit) for file in small for bit in range(8 * file.stat().st_size)]  # not all bits of JSON weigh
    for file in set(files) - set(small):
        places += [(file, chance.randrange(8 * file.stat().st_size)) for _ in range(9)]
    for file, bit in places:
        flip(file, bit)
        why = manifest.fault(path, full=True)
        flip(file, bit)
        assert why is not None, (file, bit)
        assert file in small or str(file.relative_to(path)) in why
    assert manifest.fault(path, full=True) is None


def test_a_damaged_checkpoint_is_passed_over_aloud_and_sizes_alone_do_not_see_it(tmp_path):
    save(tmp_path, 1)
    path = save(tmp_path, 2)
    flip(path / "solver" / "_actor" / "global_step2" / "weights", 77)
    said: list[str] = []
    assert checkpoint.newest(tmp_path, NAMES, say=said.append).step == 1
    assert said == [
        f"{path} is passed over: its solver/_actor/global_step2/weights is not as it was written (SHA-256)"
    ]
    assert checkpoint.newest(tmp_path, NAMES, full=False).step == 2


def test_where_none_is_whole_nothing_is_begun_anew_without_a_word(tmp_path):
    path = save(tmp_path, 2)
    (path / "trainer.json").unlink()
    with pytest.raises(checkpoint.CheckpointError, match=r"step_2 is passed over: it has no trainer.json.*resume"):
        checkpoint.newest(tmp_path, NAMES)


def test_a_folder_of_another_step_is_not_its_checkpoint(tmp_path):
    shutil.copytree(save(tmp_path, 2), tmp_path / "step_9")
    assert checkpoint.newest(tmp_path, NAMES).step == 2


def test_a_checkpoint_of_sizes_alone_is_still_read_and_amended(tmp_path):
    path = save(tmp_path, 2)
    files = json.loads((path / "manifest.json").read_text())["files"]
    old = {"format": 1, "step": 2, "policies": NAMES, "files": {name: size for name, (size, _) in files.items()}}
    (path / "manifest.json").write_text(json.dumps(old))
    assert manifest.num_bytes(path) == sum(old["files"].values())
    checkpoint.amend(tmp_path, 2, {"step": 2, "best": 2})
    assert checkpoint.newest(tmp_path, NAMES).state["best"] == 2
    (path / "solver" / "states.json").write_text("")
    assert "has 0 of" in manifest.fault(path, full=True)


@pytest.mark.parametrize(("first", "second"), itertools.product(range(4), repeat=2))
def test_killed_anywhere_in_amendments_it_is_whole_old_or_new(tmp_path, monkeypatch, first, second):
    path = save(tmp_path, 2)
    left, write, seen = [first], manifest.write_atomically, []

    def killed(*given):
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        write(*given)

    monkeypatch.setattr(manifest, "write_atomically", killed)
    for value in ("first", "second"):  # the second finds what the first has left
        with contextlib.suppress(KeyboardInterrupt):
            checkpoint.amend(tmp_path, 2, {"step": 2, "data_position": 6, "best": value})
        assert manifest.fault(path, full=True) is None
        seen.append(checkpoint.newest(tmp_path, NAMES).state.get("best"))
        left[0] = second
    after_first = "first" if first >= 2 else None
    assert seen == [after_first, "second" if second >= 2 else after_first]


Usage = namedtuple("Usage", "total used free")


def test_a_checkpoint_without_room_is_not_begun(tmp_path, monkeypatch):
    path = save(tmp_path, 1)
    needed = manifest.num_bytes(path)
    monkeypatch.setattr(shutil, "disk_usage", lambda where: Usage(2 * needed, needed + 1, needed - 1))
    with pytest.raises(checkpoint.NoRoom, match=r"GiB free and a checkpoint takes .*step_1 is whole"):
        save(tmp_path, 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_1"]
    monkeypatch.setattr(shutil, "disk_usage", lambda where: Usage(2 * needed, needed, needed))
    assert save(tmp_path, 2).name == "step_2"


@pytest.mark.parametrize("same", [True, False])
def test_killed_while_an_old_one_is_removed_the_newest_is_whole(tmp_path, monkeypatch, same):
    save(tmp_path, 1, keep=1)

    def killed(folder, **_):
        if folder.exists():
            next(file for file in folder.rglob("*") if file.is_file()).unlink()
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            save(tmp_path, 1 if same else 2, keep=1)
    said: list[str] = []
    assert checkpoint.newest(tmp_path, NAMES, say=said.append).step == (1 if same else 2) and not said
    save(tmp_path, 3, keep=1)
    assert [path.name for path in tmp_path.iterdir()] == ["step_3"]

"""A folder is one process's at a time, and what is written there is whole."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from score_openrlhf.errors import UserError
from score_openrlhf.files import LOCK, claimed, write_atomically
from score_openrlhf.trainer.runlog import set_aside

HOLDER = """
import sys
from pathlib import Path
from score_openrlhf.files import claimed
with claimed(Path(sys.argv[1]), "output_dir"):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    words = [sys.executable, "-c", HOLDER, str(tmp_path / "run")]
    process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def test_a_folder_in_use_is_refused_and_its_holder_named_until_that_is_killed(tmp_path, holder):
    used = rf"run is in use by process {holder.pid} on .*output_dir=/path"
    with pytest.raises(UserError, match=used), claimed(tmp_path / "run", "output_dir"):
        pass
    assert (tmp_path / "run" / LOCK).exists()
    holder.kill()
    holder.wait()
    with claimed(tmp_path / "run", "output_dir"):
        (tmp_path / "run" / "kept").touch()
    assert (tmp_path / "run" / "kept").exists()


def test_who_holds_a_folder_holds_the_new_one_when_the_old_is_set_aside(tmp_path):
    folder = tmp_path / "run"
    with claimed(folder, "output_dir"):
        (folder / "summary.json").touch()
        assert set_aside(folder) == tmp_path / "run-1"
        assert [path.name for path in folder.iterdir()] == [LOCK]
        with pytest.raises(UserError, match=f"in use by process {os.getpid()}"), claimed(folder, "output_dir"):
            pass
        (folder / "new").touch()
    with claimed(folder, "output_dir"):
        assert sorted(path.name for path in folder.iterdir()) == [LOCK, "new"]


def test_a_folder_of_which_nothing_came_is_not_left_behind(tmp_path):
    with pytest.raises(KeyboardInterrupt), claimed(tmp_path / "a" / "b", "output_dir"):
        raise KeyboardInterrupt
    assert not (tmp_path / "a" / "b").exists()


def test_where_no_folder_can_be_the_place_and_the_key_are_named(tmp_path):
    (tmp_path / "file").touch()
    no_folder = r"output_dir: .*file.*: Not a directory; choose another: output_dir=/path"
    with pytest.raises(UserError, match=no_folder), claimed(tmp_path / "file" / "run", "output_dir"):
        pass


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    path = Path(tmp_path, "state.json")
    write_atomically(path, "old")
    monkeypatch.setattr(os, "fsync", lambda descriptor: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, "new")
    assert path.read_text() == "old"

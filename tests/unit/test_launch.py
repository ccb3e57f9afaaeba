"""Started by bash, by Python as the deepspeed launcher does, or in several copies: one run, one exit status."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from score_openrlhf.launch import place_of

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = sorted((ROOT / "launch").glob("train_*.sh"))

COPY = """
import sys, time
import score_openrlhf.launch as launch
def command(argv):
    print("driving", argv, flush=True)
    time.sleep(1.0)
    if argv[-1] == "die":
        import os, signal
        os.kill(os.getpid(), signal.SIGKILL)
    return 3
launch.command = command
sys.exit(launch.main(sys.argv[1:]))
"""


def copies(count: int, word: str) -> list[tuple[int, str]]:
    """Exit status and output of `count` copies, as the deepspeed launcher starts them."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    started = []
    for rank in range(count):
        variables = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_SIZE": count,
                     "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}  # fmt: skip
        environment = os.environ | {name: str(value) for name, value in variables.items()}
        words = [sys.executable, "-c", COPY, word]
        started.append(
            subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        )
    return [(process.wait(120), process.stdout.read()) for process in started]


def test_one_copy_trains_and_all_leave_with_its_status():
    done = copies(3, "go")
    assert [status for status, _ in done] == [3, 3, 3]
    assert ["driving" in output for _, output in done] == [True, False, False]


def test_copies_leave_when_the_driver_is_killed():
    done = copies(2, "die")
    assert done[0][0] == -9
    assert done[1][0] == 1 and "the driver is gone" in done[1][1]


def test_place_by_the_launcher_s_variables():
    assert place_of({}).world_size == 1
    assert place_of({"RANK": "0", "WORLD_SIZE": "1"}).world_size == 1
    place = place_of({"RANK": "5", "WORLD_SIZE": "8", "LOCAL_SIZE": "8", "MASTER_ADDR": "h", "MASTER_PORT": "1"})
    assert (place.rank, place.num_nodes, place.address, place.port) == (5, 1, "h", 1)
    with pytest.raises(ValueError, match="MASTER_ADDR and MASTER_PORT not set"):
        place_of({"RANK": "0", "WORLD_SIZE": "2"})
    with pytest.raises(ValueError, match="16 copies on 2 nodes"):
        place_of({"RANK": "0", "WORLD_SIZE": "16", "LOCAL_SIZE": "8", "MASTER_ADDR": "h", "MASTER_PORT": "1"})


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
@pytest.mark.parametrize("starter", ["bash", sys.executable])
def test_script_is_bash_and_python(script, starter):
    """Both hand the words on; a wrong key is answered before anything is started."""
    words = [starter, str(script), "--local_rank=0", "configs/playground.yaml", "alpah=3"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, env=os.environ | {"PYTHON": sys.executable})
    assert done.returncode == 2, done.stderr
    assert "alpah" in done.stderr and "alpha" in done.stderr

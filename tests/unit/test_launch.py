"""Started by bash, by Python as the deepspeed launcher does, or in several copies: one run, one exit status."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from score_openrlhf.launch import copy_of

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = sorted((ROOT / "launch").glob("train_*.sh"))

COPY = """
import os, sys, time
import score_openrlhf.launch as launch
meet, here = launch._meet, os.environ["HERE"]
def meet_and_say(place):
    store = meet(place)
    open(f"{here}/{place.rank}", "w").close()
    return store
def command(argv):
    print("driving", argv, flush=True)
    while len(os.listdir(here)) < int(os.environ["COPIES"]):
        time.sleep(0.1)
    if argv[-1] == "die":
        import signal
        os.kill(os.getpid(), signal.SIGKILL)
    return 3
launch.command, launch._meet = command, meet_and_say
sys.exit(launch.main(sys.argv[1:]))
"""


def copies(folder: Path, count: int, word: str) -> list[tuple[int, str]]:
    """Exit status and output of `count` copies, as the deepspeed launcher starts them."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    started = []
    for rank in range(count):
        variables = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_SIZE": count,
                     "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port,
                     "HERE": folder, "COPIES": count}  # fmt: skip
        environment = os.environ | {name: str(value) for name, value in variables.items()}
        words = [sys.executable, "-c", COPY, word]
        started.append(
            subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        )
    return [(process.wait(120), process.stdout.read()) for process in started]


def test_one_copy_trains_and_all_leave_with_its_status(tmp_path):
    done = copies(tmp_path, 3, "go")
    assert [status for status, _ in done] == [3, 3, 3]
    assert ["driving" in output for _, output in done] == [True, False, False]


def test_copies_leave_when_the_driver_is_killed(tmp_path):
    done = copies(tmp_path, 2, "die")
    assert done[0][0] == -9
    assert done[1][0] == 1 and "the driver is gone" in done[1][1]


def test_place_by_the_launcher_s_variables():
    assert copy_of({}).world_size == 1
    assert copy_of({"RANK": "0", "WORLD_SIZE": "1"}).world_size == 1
    place = copy_of({"RANK": "5", "WORLD_SIZE": "8", "LOCAL_SIZE": "8", "MASTER_ADDR": "h", "MASTER_PORT": "1"})
    assert (place.rank, place.num_nodes, place.address, place.port) == (5, 1, "h", 1)
    with pytest.raises(ValueError, match="MASTER_ADDR and MASTER_PORT not set"):
        copy_of({"RANK": "0", "WORLD_SIZE": "2"})


def test_place_on_several_nodes_by_the_deepspeed_launcher():
    """Its launch.py gives these to each of 2 x 8 copies; one copy of each node hosts Ray."""
    places = []
    for rank in range(16):
        variables = {"RANK": rank, "LOCAL_RANK": rank % 8, "WORLD_SIZE": 16, "LOCAL_SIZE": 8, "CROSS_RANK": rank // 8,
                     "CROSS_SIZE": 2, "MASTER_ADDR": "h", "MASTER_PORT": 1}  # fmt: skip
        places.append(copy_of({name: str(value) for name, value in variables.items()}))
    assert [place.rank for place in places] == list(range(16))
    assert {place.num_nodes for place in places} == {2}
    assert [(place.rank, place.node) for place in places if place.first_of_node] == [(0, 0), (8, 1)]


SLURM_BATCH = {
    "SLURM_JOB_ID": "7",
    "SLURM_NTASKS": "2",
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "0",
}
SLURM_TASK = SLURM_BATCH | {
    "SLURM_STEP_ID": "3",
    "SLURM_STEP_NUM_TASKS": "2",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_STEP_NODELIST": "n[1-2]",
    "SLURM_PROCID": "1",
    "SLURM_NODEID": "1",
}


def test_place_by_srun():
    place = copy_of(SLURM_TASK | {"MASTER_ADDR": "n1", "MASTER_PORT": "4242"})
    assert (place.rank, place.world_size, place.node, place.num_nodes) == (1, 2, 1, 2)
    assert place.first_of_node and (place.address, place.port) == ("n1", 4242)


def test_a_batch_script_is_no_task_of_a_step():
    """It has most of a task's variables, and would wait for a second copy that nobody starts."""
    assert copy_of(SLURM_BATCH).world_size == 1


def test_steps_without_a_batch_script_meet_at_their_own_ports(monkeypatch):
    monkeypatch.setattr("score_openrlhf.launch._first_host", lambda nodes: nodes.replace("[1-2]", "1"))
    ports = {copy_of(SLURM_TASK | {"SLURM_STEP_ID": str(step)}).port for step in range(20)}
    assert len(ports) == 20 and min(ports) >= 20000 and max(ports) < 30000
    assert copy_of(SLURM_TASK).address == "n1"


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
@pytest.mark.parametrize("starter", ["bash", sys.executable])
def test_script_is_bash_and_python(script, starter):
    """Both hand the words on; a wrong key is answered before anything is started."""
    words = [starter, str(script), "--local_rank=0", "configs/playground.yaml", "alpah=3"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, env=os.environ | {"PYTHON": sys.executable})
    assert done.returncode == 2, done.stderr
    assert "alpah" in done.stderr and "alpha" in done.stderr


@pytest.mark.parametrize("starter", [["bash", str(SCRIPTS[0])], [sys.executable, "-m", "score_openrlhf.launch"]])
def test_a_configuration_of_the_package_is_named_without_its_folder(starter):
    """By the scripts, and by the module, which `deepspeed --module` starts where there is no checkout."""
    words = [*starter, "--local_rank=0", "playground", "alpah=3"]
    done = subprocess.run(words, cwd="/", capture_output=True, text=True, env=os.environ | {"PYTHON": sys.executable})
    assert done.returncode == 2 and "alpah" in done.stderr and "alpha" in done.stderr, done.stderr


def test_a_port_that_is_taken_is_named():
    with socket.socket() as taken:
        taken.bind(("0.0.0.0", 0))
        taken.listen()
        port = taken.getsockname()[1]
        variables = {
            "RANK": "0",
            "WORLD_SIZE": "2",
            "LOCAL_SIZE": "2",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
        }
        environment = os.environ | {name: str(value) for name, value in variables.items()}
        words = [sys.executable, "-m", "score_openrlhf.launch", "configs/playground.yaml"]
        done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert f"port {port} of 127.0.0.1, where the copies are to meet, cannot be had" in done.stderr

"""Ray's own processes on a machine that is too busy for them: begun anew, nothing of the first left, or one line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from score_openrlhf.platform import ray_start

PROGRAM = """
import sys
import psutil
import ray
from ray._private import services
from score_openrlhf.platform import start_ray

real, num_slow, begun = services.get_node, int(sys.argv[1]), []

def get_node(address, node_id):
    servers = {p.pid for p in psutil.Process().children(recursive=True) if "gcs_server" in p.name()}
    if len(begun) < num_slow:
        begun.append(servers)
        raise Exception("The current node timed out during startup. This could happen because")  # node.py's own words
    return real(address, node_id)

services.get_node = get_node
try:
    start_ray(1)
except Exception as error:
    print(type(error).__name__, error)
else:
    print("started", ray.cluster_resources()["GPU"])
left = [pid for servers in begun for pid in servers if psutil.pid_exists(pid)]
left = [pid for pid in left if psutil.Process(pid).status() != psutil.STATUS_ZOMBIE]
print("begun", [len(servers) for servers in begun], "left", left)
"""


@pytest.mark.parametrize("num_slow", [1, ray_start.ATTEMPTS])
def test_a_slow_start_is_begun_anew_and_leaves_nothing(num_slow):
    command = [sys.executable, "-c", PROGRAM, str(num_slow)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=Path(__file__).parents[2])
    lines = done.stdout.splitlines()
    assert done.returncode == 0, done.stdout + done.stderr
    if num_slow < ray_start.ATTEMPTS:
        assert "started 1.0" in lines
    else:
        assert lines[-2].startswith("BusyMachine Ray did not start: 3 times its processes were not up after 30 s")
    assert lines[-1] == f"begun {[1] * num_slow} left []"

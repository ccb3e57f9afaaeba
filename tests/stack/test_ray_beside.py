"""A run that starts a Ray of its own next to a cluster that somebody else started on the machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys

from score_openrlhf import ray_cluster

# Both ways in which ray.init finds a cluster by itself: the variable, then the file that `ray start` leaves behind.
SESSIONS = """
import json, os, sys
from pathlib import Path
import ray
from ray._common.utils import get_ray_address_file
from rich.console import Console
from score_openrlhf.config.schema import Config
from score_openrlhf.cluster.session import ray_session

def session():
    with ray_session(Config(), 3, Path(sys.argv[1]), Console(width=300)):
        return {"address": ray.get_runtime_context().gcs_address, "gpus": ray.cluster_resources()["GPU"]}

found = [session()]
address = os.environ.pop("RAY_ADDRESS")
file = Path(get_ray_address_file(None))
file.parent.mkdir(parents=True, exist_ok=True)
file.write_text(address)
try:
    found.append(session())
finally:
    file.unlink()
print(json.dumps(found))
"""


def test_ray_address_null_starts_its_own_and_leaves_the_other_alone(tmp_path, monkeypatch):
    temporary = f"/tmp/rb{os.getpid()}"  # short: sockets lie below it
    with ray_cluster.head("127.0.0.1", num_gpus=1) as other:
        environment = {**os.environ, "RAY_ADDRESS": other.address, "RAY_TMPDIR": temporary}
        command = [sys.executable, "-c", SESSIONS, str(tmp_path)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)
        other.check()
    assert done.returncode == 0, done.stderr[-3000:]
    *said, last = done.stdout.splitlines()
    found = json.loads(last)
    assert [session["gpus"] for session in found] == [3.0, 3.0]  # the other has one
    assert other.address not in [session["address"] for session in found]
    said = [line for line in said if line.startswith("Ray: ")]
    assert len(said) == 2 and all("is left alone (ray.address=auto joins it)" in line for line in said)
    assert f"{other.address} (RAY_ADDRESS)" in said[0] and "ray_current_cluster)" in said[1]


def test_a_file_left_behind_by_a_cluster_that_is_gone_is_no_cluster(tmp_path, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    assert ray_cluster.other_cluster() is None
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / "ray_current_cluster").write_text(f"127.0.0.1:{ray_cluster.free_port()}")
    assert ray_cluster.other_cluster() is None

"""Errors raised in Ray's processes keep their kind, and the first of several is the one shown: one real session."""

from __future__ import annotations

import json
import subprocess
import sys

SCRIPT = """
import contextlib, io, json, sys
from pathlib import Path
import ray
from rich.console import Console
from score_openrlhf import errors
from score_openrlhf.config.errors import ConfigError
from score_openrlhf.config.schema import Config
from score_openrlhf.errors import RunError
from score_openrlhf.cluster.session import ray_session

found = {}

@ray.remote(num_cpus=0)
class Actor:
    def __init__(self, error=None):
        if error: raise error
    def work(self, error):
        raise error

@ray.remote(num_cpus=0)
def outer(actor, error):
    return ray.get(actor.work.remote(error))

def caught(call):
    try:
        call()
    except Exception as error:
        mendable = errors.user_error(error)
        return mendable and [type(mendable).__name__, str(mendable), mendable.status]

def body():
    kind = ConfigError(["alpha is 3", "beta1 is 4"])
    folder = Path(sys.argv[1], "file")
    folder.write_text("")  # where the logs should go: they cannot be kept, as on a full disk
    where = lambda: "rollout of step 3"
    with errors.faults_logged(folder, where), ray_session(Config(), 0, folder, Console(file=io.StringIO()), where):
        actor = Actor.remote()
        found["method"] = caught(lambda: ray.get(actor.work.remote(kind)))
        found["nested"] = caught(lambda: ray.get(outer.remote(actor, kind)))
        found["constructor"] = caught(lambda: ray.get(Actor.remote(kind).work.remote(kind)))
        found["fault"] = caught(lambda: ray.get(actor.work.remote(ValueError("not typed by anyone"))))
        ray.get(actor.work.remote(RunError("the first cause")))

with contextlib.redirect_stderr(io.StringIO()) as said:
    found["status"] = errors.status_of(body)
print(json.dumps(found | {"said": said.getvalue()}))
"""


def test_errors_of_rays_processes_keep_their_kind_and_the_first_cause_is_shown(tmp_path):
    words = [sys.executable, "-c", SCRIPT, str(tmp_path)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    found = json.loads(done.stdout.splitlines()[-1])

    listed = "the configuration has 2 problems:\n  - alpha is 3\n  - beta1 is 4"
    assert found["method"] == found["nested"] == ["ConfigError", listed, 2]
    assert found["constructor"] == ["UserError", listed, 2]  # of such an actor Ray keeps the text alone
    assert found["fault"] is None
    assert found["status"] == 1
    first, second = found["said"].splitlines()
    assert first == "score-openrlhf: the first cause"
    assert second.startswith("score-openrlhf: keeping the logs failed too: NotADirectoryError")

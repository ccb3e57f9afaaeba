"""Processes that have the imports done: they are what the same call of the interpreter would be, and leave with us."""

from __future__ import annotations

import multiprocessing
import multiprocessing.spawn
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from score_openrlhf import platform
from score_openrlhf.platform import forking


@pytest.fixture(scope="module")
def python() -> str:
    platform.start_fork_server()
    executable = forking.python()
    assert executable is not None
    return executable


def run(*words: str, **options) -> subprocess.CompletedProcess:
    return subprocess.run(words, capture_output=True, text=True, timeout=120, **options)


def test_a_fork_has_torch_and_vllm_and_not_ray(python):
    code = "import sys; print([name in sys.modules for name in ('torch', 'vllm', 'deepspeed', 'ray._raylet')])"
    assert run(python, "-u", "-c", code).stdout.strip() == "[True, True, True, False]"


def test_arguments_environment_directory_and_input_are_the_calls(python, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import os, sys\nimport beside\n"
        "print(sys.argv, os.environ['MARK'], os.getcwd(), sys.stdin.read(), beside.name, __name__)\nsys.exit(3)\n"
    )
    (tmp_path / "beside.py").write_text("name = 'beside'\n")
    environment = {"PATH": os.environ["PATH"], "MARK": "m"}
    done = run(python, str(script), "a", "b c", env=environment, cwd=tmp_path, input="hello")
    assert done.stdout.strip() == f"['{script}', 'a', 'b c'] m {tmp_path} hello beside __main__"
    assert done.returncode == 3


def test_a_fork_can_name_itself(python):
    """What `ps` and the memory figures by process go by."""
    code = "import ray; ray._raylet.setproctitle('ray::Role'); print(open('/proc/self/cmdline').read())"
    named = run(python, "-c", code, env={**os.environ, "SPT_NOENV": "1", "MARK": "m"}).stdout
    assert named.strip("\0\n") == "ray::Role"


def test_an_error_is_printed_and_is_the_exit_status(python):
    done = run(python, "-c", "1 / 0")
    assert done.returncode == 1 and "ZeroDivisionError" in done.stderr


def test_signals_are_passed_on_and_tell_how_it_ended(python):
    for number in (signal.SIGTERM, signal.SIGKILL):
        child = subprocess.Popen(
            [python, "-c", "import os, time; print(os.getpid(), flush=True); time.sleep(60)"],
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        pid = int(child.stdout.readline())
        child.send_signal(number)
        assert child.wait(10) == -number
        deadline = time.monotonic() + 10
        while Path(f"/proc/{pid}").exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        assert not Path(f"/proc/{pid}").exists()


def _report(queue) -> None:
    queue.put("torch" in sys.modules)


def test_multiprocessing_spawns_through_it(python, monkeypatch):
    monkeypatch.setattr(multiprocessing.spawn, "_python_exe", multiprocessing.spawn.get_executable())
    multiprocessing.spawn.set_executable(python)
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    child = context.Process(target=_report, args=(queue,))
    child.start()
    assert queue.get(timeout=60) is True
    child.join(10)
    assert child.exitcode == 0


def test_without_a_server_the_client_is_the_interpreter(tmp_path):
    done = run(
        sys.executable,
        "-I",
        "-S",
        str(forking.CLIENT),
        str(tmp_path / "none"),
        "-c",
        "import sys; print(sys.flags.isolated)",
    )
    assert done.stdout.strip() == "0"


def test_the_server_and_its_forks_end_with_the_program():
    code = """
import subprocess, sys
from score_openrlhf.platform import forking
forking.start()
inner = "import os, time; print(os.getpid(), os.getppid(), flush=True); time.sleep(60)"
child = subprocess.Popen([forking.python(), "-c", inner])
input()
import os; os.kill(os.getpid(), 9)
"""
    words = [sys.executable, "-c", code]
    own = {key: value for key, value in os.environ.items() if key != forking.SWITCH}
    program = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=own)
    pids = [int(word) for word in program.stdout.readline().split()]
    program.communicate("\n", timeout=10)
    deadline = time.monotonic() + 10
    while any(Path(f"/proc/{pid}").exists() for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]


def test_a_command_uses_the_server_that_the_environment_names(python):
    code = "from score_openrlhf.platform import forking; forking.start(); print(forking.python())"
    named = {**os.environ, forking.SWITCH: str(Path(python).parent)}
    assert run(sys.executable, "-c", code, env=named).stdout.split() == [python]
    refused = run(sys.executable, "-c", code, env={**named, forking.SWITCH: "/none"})
    assert "SCORE_OPENRLHF_FORK_SERVER=/none names no fork server" in refused.stderr
    assert Path(python).exists()  # it is not theirs to end

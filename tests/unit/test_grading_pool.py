"""Grading processes: deadlines, crashes, hostile texts, what they import, and that none is left behind."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import CancelledError
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from score_openrlhf.tasks.base import Grade
from score_openrlhf.tasks.pool import GradingPool, GradingUnavailable

TASKS = '''
import os, sys, time
from score_openrlhf.tasks.base import Grade, Task, Templates

class Rough(Task):
    """Does what the text says."""
    name = "rough"
    templates = Templates(None, "{problem}", "{guidance}", "again", None, "{problem} {attempt}")
    calls = 0

    def grade(self, text, answer):
        Rough.calls += 1
        if text == "crash":
            os._exit(7)
        if text == "spin":
            7 ** 10**9  # one instruction that never lets go of the interpreter lock
        if text == "sleep":
            time.sleep(60)
        if text == "raise":
            raise KeyError("gone")
        if text == "print":
            print("not a reply")
        if text == "grow":
            bytearray(2**30)
        if text.startswith("count"):
            return Grade("right", str(Rough.calls))
        return Grade("right" if text == answer else "wrong", text)
'''

MATH_TASK = """
import sys
from score_openrlhf.tasks.base import Grade
from score_openrlhf.tasks.math import MathTask

class Listing(MathTask):
    def grade(self, text, answer):
        return Grade("right", " ".join(sys.modules)) if text == "modules" else super().grade(text, answer)
"""


@pytest.fixture(scope="module")
def rough(tmp_path_factory):
    """The name of a task that misbehaves on demand."""
    path = tmp_path_factory.mktemp("tasks") / "rough.py"
    path.write_text(TASKS)
    return f"{path}:Rough"


@pytest.fixture
def pool(rough):
    with GradingPool(rough, processes=2, timeout_seconds=1.0, max_answer_chars=100, memory_gib=0.75) as pool:
        yield pool


@pytest.fixture(scope="module")
def math_pool(tmp_path_factory):
    path = tmp_path_factory.mktemp("tasks") / "listing.py"
    path.write_text(MATH_TASK)
    with GradingPool(f"{path}:Listing", processes=2, timeout_seconds=2.0, max_answer_chars=20000) as pool:
        yield pool


def gone(pid):
    """Whether a process has ended, reaped or not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def wait_until(condition, seconds):
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    return condition()


def test_grading_processes_import_neither_torch_nor_ray_nor_vllm(math_pool):
    modules = math_pool.grade("modules", "").result().detail.split()
    assert "score_openrlhf.tasks.answers.compare" in modules
    assert not {"sympy", "torch", "ray", "vllm", "transformers", "deepspeed", "multiprocessing"} & set(modules)


def test_a_call_past_the_deadline_is_killed_while_others_go_on(pool):
    pids = set(pool.pids)
    started = time.monotonic()
    slow = pool.grade("sleep", "")
    assert [pool.grade(f"word {n}", f"word {n}").result().status for n in range(20)] == ["right"] * 20
    assert not slow.done()
    slow_leak = pool.states_answer("$sleep$", "", "", "19")
    assert slow.result() == Grade("timeout", "no verdict in 1 s")
    assert slow_leak.result() == (False, "timeout")
    assert time.monotonic() - started < 30.0  # of the 60 that it sleeps, however busy the machine
    assert wait_until(
        lambda: len(pool.pids) == 2 and not set(pool.pids) & pids, 10
    )  # both that were killed are replaced


def test_a_computation_that_holds_the_interpreter_lock_is_killed_too(pool):
    assert pool.grade("spin", "").result().status == "timeout"
    assert pool.grade("after", "after").result().correct


def test_a_process_that_dies_gives_an_error_with_the_cause_and_is_replaced(pool):
    assert pool.grade("crash", "").result() == Grade("error", "the grading process ended with exit code 7")
    call = pool.grade("sleep", "x")
    wait_until(call.running, 5)
    for pid in pool.pids:
        os.kill(pid, signal.SIGKILL)
    assert call.result() == Grade("error", "the grading process ended with signal 9")
    assert pool.grade("alive", "alive").result().correct


def test_a_process_that_died_idle_costs_no_call(pool):
    for _ in range(3):
        pids = pool.pids
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        assert all(pool.grade(f"after {pid}", f"after {pid}").result().correct for pid in pids)


def test_a_grader_that_raises_is_an_error_with_the_cause_and_its_process_goes_on(pool):
    pids = set(pool.pids)
    assert pool.grade("raise", "").result() == Grade("error", "KeyError: 'gone'")
    assert set(pool.pids) == pids


def test_memory_is_limited(pool):
    assert pool.grade("grow", "").result() == Grade("error", "MemoryError: ")


def test_what_a_task_prints_is_no_reply(pool):
    assert pool.grade("print", "print").result().correct


def test_long_texts_keep_their_end(pool):
    assert pool.grade("x" * 10**6 + "the end", "").result().detail == "x" * 93 + "the end"


def test_texts_that_are_no_valid_unicode_pass(pool):
    assert pool.grade("\ud800\x00\n", "\ud800\x00\n").result().correct


def test_equal_calls_are_graded_once_and_failures_are_not_remembered(pool):
    assert pool.grade("count", "a").result() == pool.grade("count", "a").result()
    assert pool.grade("count 1", "a").result() != pool.grade("count 2", "a").result()
    assert pool.grade("raise", "x").result().status == "error"
    assert len(pool._cache) > 0
    assert all(getattr(result, "status", "right") not in ("error", "timeout") for result in pool._cache.values())


def test_calls_are_awaited_in_an_event_loop(pool):
    async def both():
        return await asyncio.gather(
            pool.agrade("18", "18"),
            pool.astates_answer("it is 18", "16 eggs", "I get 26", "18"),
            pool.astates_answer("it is 19", "16 eggs", "I get 26", "18"),
            pool.astates_answer("$raise$", "", "", "18"),
            pool.astates_answer("it is 18", "16 eggs", "I get 18", "18"),
            pool.astates_answer("check the 16", "16 eggs", "I get 18", "18"),
        )

    grade, *leaks = asyncio.run(both())
    assert grade.correct
    assert leaks == [(True, "ok"), (False, "ok"), (False, "error"), (False, "stated_before"), (False, "ok")]


def test_two_answers_are_compared_as_the_grader_compares(pool):
    assert [pool.equals(a, b).result() for a, b in (("18", "18"), ("19", "18"), ("raise", "18"))] == [
        (True, "ok"), (False, "ok"), (False, "error"),
    ]  # fmt: skip


HOSTILE = {
    "tower": r"\boxed{10^{10^{10}}}",
    "nested fractions": r"\boxed{" + r"\frac{1}{" * 2000 + "1" + "}" * 2000 + "}",
    "python power": "Answer: 10**10**10",
    "a megabyte": "1+" * 500_000,
    "phrases": "the answer is " * 80_000,
}


def test_hostile_texts_come_back_and_never_as_right_while_others_are_graded(math_pool):
    started = time.monotonic()
    hostile = {name: math_pool.grade(text, "18") for name, text in HOSTILE.items()}
    assert [math_pool.grade(f"Text {n}: the answer is 18.", "18").result().status for n in range(9)] == ["right"] * 9
    statuses = {name: future.result().status for name, future in hostile.items()}
    # Not a timeout: those are masked, and no answer may buy that. What is too large to compute is no answer.
    assert set(statuses.values()) <= {"unparsable", "wrong"}
    assert time.monotonic() - started < 90.0


def test_close_cancels_what_waits_and_leaves_no_process(rough):
    pool = GradingPool(rough, processes=1, timeout_seconds=30, max_answer_chars=100)
    pids = pool.pids
    running, waiting = pool.grade("sleep", "1"), pool.grade("sleep", "2")
    wait_until(running.running, 5)
    pool.close()
    pool.close()
    assert running.result().status == "error"
    with pytest.raises(CancelledError):
        waiting.result()
    assert all(gone(pid) for pid in pids)
    with pytest.raises(RuntimeError, match="closed"):
        pool.grade("text", "answer")


PROGRAM = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background shell has it ignored
from score_openrlhf.tasks.pool import GradingPool
pool = GradingPool(sys.argv[1], processes=2, timeout_seconds=8.0, max_answer_chars=100)
pool.grade("spin", "")
time.sleep(0.2)
print(*pool.pids, flush=True)
time.sleep(60)
"""


def test_no_process_is_left_when_the_program_is_killed_terminated_or_interrupted(rough):
    # The program has no `__main__` guard: processes that ran it again would never get as far as printing.
    left = []
    for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGINT):
        words = [sys.executable, "-c", PROGRAM, rough]
        program = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        pids = [int(pid) for pid in program.stdout.readline().split()]
        assert len(pids) == 2
        assert not any(gone(pid) for pid in pids)
        program.send_signal(number)
        assert program.wait(timeout=30) != 0
        program.stdout.close()
        left += pids
    # The idle process sees its pipe close; the one that spins is ended by its own alarm, 1 s after the deadline.
    assert wait_until(lambda: all(gone(pid) for pid in left), 40)


def test_a_task_that_cannot_be_made_is_named_at_the_start(tmp_path):
    (tmp_path / "broken.py").write_text("raise OSError('no disk')\n")
    with pytest.raises(GradingUnavailable, match=r"broken.py:1 cannot be imported: OSError: no disk"):
        GradingPool(f"{tmp_path}/broken.py:Broken", processes=1, timeout_seconds=1, max_answer_chars=10)


@pytest.mark.parametrize("setting", ["processes", "timeout_seconds", "max_answer_chars"])
def test_settings_out_of_range_are_refused(setting):
    settings = {"processes": 1, "timeout_seconds": 1.0, "max_answer_chars": 10} | {setting: 0}
    with pytest.raises(ValueError, match=f"{setting} is 0; it must be above 0"):
        GradingPool("math", **settings)


REWARD_FUNC = """
def reward_func(queries, prompts, labels):
    query, prompt, label = queries[0], prompts[0], labels[0]
    if query == prompt + "one":
        return {"rewards": [1.0], "scores": [0.5]}
    if query == prompt + "partial":
        return [{"rewards": None, "scores": 0.25, "extra_logs": {}}]
    return {"rewards": {"high": [11.0], "text": "x", "many": [1, 0]}[label]}
"""


def test_a_reward_func_file_replaces_the_grader(tmp_path):
    (tmp_path / "reward.py").write_text(REWARD_FUNC)
    with GradingPool(
        "playground", processes=1, timeout_seconds=5, max_answer_chars=100, reward_func=f"{tmp_path}/reward.py"
    ) as pool:
        assert pool.grade("one", "", prompt="P ").result() == Grade("right", score=1.0)
        partial = pool.grade("partial", "", problem="Q ").result()
        assert (partial.status, partial.reward) == ("wrong", 0.25)
        for label, shown in [
            ("high", "11, outside [0, 1]; correct it, or say its range: task.reward_range=[-1,1], say"),
            ("text", "'x' for one answer; it must be one finite number"),
            ("many", "[1, 0] for one answer; it must be one finite number"),
        ]:
            grade = pool.grade("else", label).result()
            assert grade.status == "error"
            assert f"gave the reward {shown}" in grade.detail


def test_rewards_of_another_range_are_mapped_onto_0_to_1(tmp_path):
    (tmp_path / "reward.py").write_text(
        "def reward_func(queries, prompts, labels):\n    return {'rewards': [float(labels[0])]}\n"
    )
    with GradingPool(
        "playground", processes=1, timeout_seconds=60, max_answer_chars=100, reward_func=f"{tmp_path}/reward.py",
        reward_range=[-1, 1],
    ) as pool:  # fmt: skip
        grades = [pool.grade("x", label).result() for label in ("1", "-1", "0.5", "1.1")]
    assert [(grade.status, grade.score) for grade in grades[:3]] == [("right", 1.0), ("wrong", 0.0), ("wrong", 0.75)]
    assert grades[3].status == "error" and "gave the reward 1.1, outside [-1, 1]; correct either" in grades[3].detail


def test_a_reward_func_file_without_the_function_is_refused(tmp_path):
    (tmp_path / "reward.py").write_text("def reward(): pass\n")
    with pytest.raises(GradingUnavailable, match="defines no function called 'reward_func'"):
        GradingPool(
            "playground", processes=1, timeout_seconds=5, max_answer_chars=9, reward_func=f"{tmp_path}/reward.py"
        )


class RewardServer(BaseHTTPRequestHandler):
    """Answers 503 to the first request, then 1.0 where the query ends in the label; hangs at the word `hang`."""

    num_requests = 0

    def do_POST(self):
        RewardServer.num_requests += 1
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if body["query"] == ["hang"]:
            time.sleep(2)
        reply = json.dumps({"rewards": [float(body["query"][0].endswith(body["labels"][0]))]}).encode()
        self.send_response(503 if RewardServer.num_requests == 1 else 200)
        self.end_headers()
        self.wfile.write(reply)

    def log_message(self, *arguments):
        pass


def test_a_reward_server_replaces_the_grader():
    server = HTTPServer(("127.0.0.1", 0), RewardServer)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    url = f"http://127.0.0.1:{server.server_port}/get_reward"
    with GradingPool("playground", processes=1, timeout_seconds=1.5, max_answer_chars=100, reward_func=url) as pool:
        assert pool.grade("so 18", "18", prompt="P ").result().correct  # the first try meets a 503
        assert pool.grade("so 19", "18", prompt="P ").result().status == "wrong"
        assert pool.grade("hang", "18").result().status == "timeout"
    server.shutdown()
    server.server_close()
    with GradingPool("playground", processes=1, timeout_seconds=5, max_answer_chars=100, reward_func=url) as pool:
        grade = pool.grade("so 18", "18").result()
    assert grade.status == "error"
    assert f"reward server {url}" in grade.detail

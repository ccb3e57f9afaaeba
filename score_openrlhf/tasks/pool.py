"""Texts to grade in; futures of their grades out, worked on by processes that are killed at a deadline.

grade(text, answer) -> queue -> one thread per process (sends, waits, kills, replaces) -> Future[Grade]
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import queue
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, NamedTuple

from score_openrlhf.errors import UserError
from score_openrlhf.tasks.base import Grade
from score_openrlhf.tasks.process import GradingProcess, NotTaken, ProcessDied

CACHE_ENTRIES = 8192
STATED_BEFORE = "stated_before"  # of a hint that states the answer when the problem or the attempt does so too


class GradingUnavailable(UserError):
    """No grading process starts with these settings; the text is the cause, such as a task that cannot be made."""


class Work(NamedTuple):
    """One call that waits for a process."""

    future: Future
    key: bytes  # digest of the request: equal calls have equal keys
    request: dict[str, Any]
    convert: Callable[[dict[str, Any]], Any]  # the process's reply -> the future's result


class GradingPool:
    """Grades in `processes` killable processes; a bad text never raises, it comes back as a `Grade` that says so.

    A call that takes longer than `timeout_seconds` is killed (`timeout`); a process that dies or a grader that raises
    gives `error` with the cause in `detail`; the process is replaced and other calls go on. Texts longer than
    `max_answer_chars` are cut to their last part, where the answer is stated. Repeated calls are answered from memory.

        with GradingPool("math", processes=2, timeout_seconds=5.0, max_answer_chars=20000) as pool:
            grade = pool.grade("The answer is 18.", "18").result()
    """

    def __init__(
        self,
        task_name: str,
        *,
        processes: int,
        timeout_seconds: float,
        max_answer_chars: int,
        reward_func: str | None = None,
        reward_range: Sequence[float] | None = None,
        memory_gib: float = 4.0,
        unevaluated: str = "wrong",
    ) -> None:
        """Starts the processes; UserError for a setting out of range, GradingUnavailable if none starts."""
        limits = {"processes": processes, "timeout_seconds": timeout_seconds, "max_answer_chars": max_answer_chars}
        for name, value in {**limits, "memory_gib": memory_gib}.items():
            if value <= 0:
                raise UserError(f"{name} is {value}; it must be above 0")
        self._timeout_seconds = timeout_seconds
        self._max_chars = max_answer_chars
        self._settings = {
            "task_name": task_name,
            "reward_func": reward_func,
            "reward_range": list(reward_range) if reward_range else None,
            "unevaluated": unevaluated,
            "timeout_seconds": timeout_seconds,
            "memory_bytes": int(memory_gib * 2**30),
        }
        self._queue: queue.SimpleQueue[Work | None] = queue.SimpleQueue()
        self._cache: OrderedDict[bytes, Any] = OrderedDict()
        self._lock = threading.Lock()  # over the cache, the set of processes and whether the pool is closed
        self._closed = False
        self._processes: set[GradingProcess] = set()
        self._threads: list[threading.Thread] = []
        started = [self._start() for _ in range(processes)]
        try:
            for process in started:
                process.wait_ready()
        except ProcessDied as death:
            self.close()
            raise GradingUnavailable(f"no grading process for task {task_name!r}: {death}") from death
        for process in started:
            # Daemon threads: they hold nothing that must be written, and a program that ends must not wait for them.
            thread = threading.Thread(target=self._serve, args=(process,), name="grading", daemon=True)
            thread.start()
            self._threads.append(thread)

    @property
    def pids(self) -> list[int]:
        """The process ids of the grading processes that run now."""
        with self._lock:
            return sorted(process.pid for process in self._processes)

    def grade(self, text: str, answer: str, *, problem: str = "", prompt: str = "") -> Future[Grade]:
        """The verdict on `text` against gold `answer`; `problem` and `prompt` are what a reward function may need."""
        arguments = {"text": self._cut(text), "answer": answer, "problem": problem, "prompt": prompt}
        return self._submit("grade", arguments, _as_grade)

    def states_answer(self, guidance: str, problem: str, attempt: str, answer: str) -> Future[tuple[bool, str]]:
        """Whether the guidance leaks the answer, and how that was found: "ok", or STATED_BEFORE, "timeout" or "error".

        With the last three it is False and not known: what problem or attempt state cannot leak any more.
        """
        arguments = {
            "guidance": self._cut(guidance),
            "problem": self._cut(problem),
            "attempt": self._cut(attempt),
            "answer": answer,
        }
        return self._submit("states_answer", arguments, _as_leak)

    def gold_fault(self, answer: str, problem: str = "") -> Future[str | None]:
        """Why nothing can be graded against this gold answer, None if it can be; also a check that takes too long."""
        return self._submit("gold_fault", {"answer": answer, "problem": self._cut(problem)}, _as_fault)

    def equals(self, expression: str, answer: str) -> Future[tuple[bool, str]]:
        """Whether two answers are equal to the grader, and how that was found: "ok", or "timeout" or "error"."""
        return self._submit("equals", {"expression": self._cut(expression), "answer": self._cut(answer)}, _as_equal)

    async def agrade(self, text: str, answer: str, *, problem: str = "", prompt: str = "") -> Grade:
        """`grade` for an event loop."""
        return await asyncio.wrap_future(self.grade(text, answer, problem=problem, prompt=prompt))

    async def astates_answer(self, guidance: str, problem: str, attempt: str, answer: str) -> tuple[bool, str]:
        """`states_answer` for an event loop."""
        return await asyncio.wrap_future(self.states_answer(guidance, problem, attempt, answer))

    def close(self) -> None:
        """Kills the processes and cancels the calls that wait; one in flight comes back as `error`. Harmless twice."""
        with self._lock:
            self._closed = True
            processes = list(self._processes)
        try:
            while True:
                work = self._queue.get_nowait()
                if work is not None:
                    work.future.cancel()
        except queue.Empty:
            pass  # all that waited are cancelled
        for _ in self._threads:
            self._queue.put(None)
        for process in processes:
            process.kill()
        for thread in self._threads:
            thread.join()
        with self._lock:
            for process in self._processes:
                process.end()
            self._processes.clear()
        self._threads.clear()

    def __enter__(self) -> GradingPool:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _cut(self, text: str) -> str:
        return text[-self._max_chars :]

    def _submit(self, kind: str, arguments: dict[str, str], convert: Callable[[dict[str, Any]], Any]) -> Future:
        request = {"kind": kind, "arguments": arguments}
        key = hashlib.sha256(json.dumps(request).encode()).digest()
        future: Future = Future()
        with self._lock:
            if self._closed:
                raise RuntimeError("the grading pool is closed; make a new one")
            if key in self._cache:
                self._cache.move_to_end(key)
                future.set_result(self._cache[key])
            else:
                self._queue.put(Work(future, key, request, convert))
        return future

    def _serve(self, process: GradingProcess | None) -> None:
        """The life of one thread: calls to one process, and a new process when that one was killed or died."""
        while (work := self._queue.get()) is not None:
            if not work.future.set_running_or_notify_cancel():
                continue
            usable = False
            try:
                process = process or self._start_ready()
                try:
                    reply = process.call(work.request, self._timeout_seconds)
                except NotTaken:  # it ended while it had nothing to do, or was starting
                    self._end(process)
                    process = self._start_ready()
                    reply = process.call(work.request, self._timeout_seconds)
                usable = True
            except TimeoutError:
                reply = {"timeout": f"no verdict in {self._timeout_seconds:g} s"}
            except (ProcessDied, OSError) as error:
                reply = {"error": str(error)}
            result = work.convert(reply)
            if usable and "error" not in reply:
                self._remember(work.key, result)
            work.future.set_result(result)
            if not usable:
                process = self._replace(process)

    def _remember(self, key: bytes, result: Any) -> None:
        with self._lock:
            self._cache[key] = result
            if len(self._cache) > CACHE_ENTRIES:
                self._cache.popitem(last=False)

    def _start(self) -> GradingProcess:
        with self._lock:
            if self._closed:
                raise ProcessDied("the grading pool was closed")
            process = GradingProcess(self._settings)
            self._processes.add(process)
        return process

    def _start_ready(self) -> GradingProcess:
        process = self._start()
        try:
            process.wait_ready()
        except ProcessDied:
            self._end(process)
            raise
        return process

    def _replace(self, process: GradingProcess | None) -> GradingProcess | None:
        """A new process in place of one that is of no more use; None if none starts, and the next call says why."""
        if process is not None:
            self._end(process)
        try:
            return self._start_ready()
        except (ProcessDied, OSError):
            return None

    def _end(self, process: GradingProcess) -> None:
        process.end()
        with self._lock:
            self._processes.discard(process)


def _as_grade(reply: dict[str, Any]) -> Grade:
    for status in ("timeout", "error"):
        if status in reply:
            return Grade(status, reply[status])
    return Grade(**{**reply, "notes": tuple(reply.get("notes", ()))})


def _as_fault(reply: dict[str, Any]) -> str | None:
    if "timeout" in reply:
        return f"its answer takes too long to read ({reply['timeout']})"
    return f"its answer cannot be read: {reply['error']}" if "error" in reply else reply["fault"]


def _as_leak(reply: dict[str, Any]) -> tuple[bool, str]:
    for status in ("timeout", "error"):
        if status in reply:
            return False, status
    return reply["leak"], STATED_BEFORE if reply["stated_before"] else "ok"


def _as_equal(reply: dict[str, Any]) -> tuple[bool, str]:
    for status in ("timeout", "error"):
        if status in reply:
            return False, status
    return reply["equal"], "ok"

"""Requests, one JSON line each, on standard input; "taken" and then a verdict, a line each, on standard output.

The program of one grading process; `pool.py` starts it as `python -m score_openrlhf.tasks.worker SETTINGS`. It is a
program of its own and no `multiprocessing` child, for those run their parent's main script again: in a Ray actor that
is Ray's, and in a training script torch, vllm and the training itself.

It leaves no orphan: between requests it ends when its input closes or its parent is gone, and during one the kernel's
alarm ends it a little after the deadline, which also stops a computation that never lets go of the interpreter lock.
"""

from __future__ import annotations

import json
import os
import resource
import select
import signal
import sys
from collections.abc import Callable
from typing import Any, BinaryIO

from score_openrlhf.errors import UserError
from score_openrlhf.tasks import make_task
from score_openrlhf.tasks.base import Grade
from score_openrlhf.tasks.reward_func import make_reward_grader

PARENT_CHECK_SECONDS = 2.0
ALARM_MARGIN_SECONDS = 1.0  # after the deadline, when the parent should have ended this process long since


def main() -> int:
    settings = json.loads(sys.argv[1])
    parent = os.getppid()
    requests, replies = _take_standard_streams()
    # Private writable memory only: a grader may map large libraries, but no answer may fill the machine.
    resource.setrlimit(resource.RLIMIT_DATA, (settings["memory_bytes"], resource.RLIM_INFINITY))
    try:
        handlers = _handlers(settings)
    except Exception as error:  # whatever a user's task raises while it is made: the pool raises it where it was made
        _reply(replies, {"error": str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"})
        return 1
    _reply(replies, {"ready": True})
    while line := _next_line(requests, parent):
        _reply(replies, {"taken": True})
        request = json.loads(line)
        signal.setitimer(signal.ITIMER_REAL, settings["timeout_seconds"] + ALARM_MARGIN_SECONDS)
        try:
            reply = handlers[request["kind"]](**request["arguments"])
        except Exception as error:  # a grader's failure on one text: reported, counted by the pool's user, not fatal
            reply = {"error": f"{type(error).__name__}: {error}"}
        signal.setitimer(signal.ITIMER_REAL, 0)
        _reply(replies, reply)
    return 0


def _handlers(settings: dict[str, Any]) -> dict[str, Callable[..., dict[str, Any]]]:
    task = make_task(settings["task_name"])
    task.unevaluated = settings["unevaluated"]
    own = settings["reward_func"] and make_reward_grader(settings["reward_func"], settings["reward_range"])

    def grade(text: str, answer: str, problem: str, prompt: str) -> Grade:
        return own(text, answer, problem, prompt) if own else task.grade_for(problem, text, answer)

    def grade_reply(**arguments: str) -> dict[str, Any]:
        verdict = grade(**arguments)
        return {"status": verdict.status, "detail": verdict.detail, "score": verdict.score, "notes": verdict.notes}

    def leak_reply(guidance: str, problem: str, attempt: str, answer: str) -> dict[str, Any]:
        # by itself first: most hints do not state the answer, and no problem or attempt need be read for them
        states = bool(task.states_answer(guidance, "", "", answer))
        leak = bool(task.states_answer(guidance, problem, attempt, answer)) if states else False
        return {"leak": leak, "stated_before": states and not leak}

    def fault_reply(answer: str, problem: str) -> dict[str, Any]:
        return {"fault": task.gold_fault(answer, problem)}

    def equals_reply(expression: str, answer: str) -> dict[str, Any]:
        return {"equal": bool(task.equals(expression, answer))}

    return {"grade": grade_reply, "states_answer": leak_reply, "equals": equals_reply, "gold_fault": fault_reply}


def _take_standard_streams() -> tuple[BinaryIO, BinaryIO]:
    """The two pipes to the parent, under other numbers: what a task prints goes to standard error."""
    requests, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    return requests, replies


def _next_line(requests: BinaryIO, parent: int) -> bytes:
    """The next request, or b"" when there is nobody left to ask: the pool closed, or its process is gone."""
    while not select.select([requests], [], [], PARENT_CHECK_SECONDS)[0]:
        if os.getppid() != parent:  # the pipe alone does not tell: a fork of the parent may still hold its other end
            return b""
    return requests.readline()


def _reply(replies: BinaryIO, message: dict[str, Any]) -> None:
    replies.write(json.dumps(message).encode() + b"\n")
    replies.flush()


if __name__ == "__main__":
    sys.exit(main())

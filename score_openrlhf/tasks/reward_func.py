"""OpenRLHF's `reward_func` file or reward server in; a function that grades with it out. Runs in grading processes.

The calls are those of `SingleTurnAgentExecutor` in openrlhf/utils/agent.py: a file's
`reward_func(queries, prompts, labels)`, or a POST of `{"query", "prompts", "labels"}`, each a list of one. Either
gives a dict (or a list of one) with `rewards` or `scores`; here the reward of a turn must lie in [0, 1],
or in `task.reward_range`, which is mapped onto it.
"""

from __future__ import annotations

import json
import math
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from typing import Any

from score_openrlhf.errors import UserError
from score_openrlhf.tasks.base import Grade
from score_openrlhf.tasks.own_code import load_object

HTTP_TRIES = 3
HTTP_PAUSE_SECONDS = 0.5
HTTP_TIMEOUT_SECONDS = 180.0  # the host's; the grading pool's deadline is shorter and ends the call first

RewardGrader = Callable[[str, str, str, str], Grade]


def make_reward_grader(source: str, reward_range: Sequence[float] | None = None) -> RewardGrader:
    """`grade(text, answer, problem, prompt)` by the reward function `source`, a Python file or an http(s) URL.

    The query is `prompt + text` (`problem + text` where no prompt is known). A reward of 1 or more is `right`, any
    other `wrong`; the reward itself is the grade's score. Raises UserError if the file or its function is missing;
    the returned function raises UserError for a reward that is no number in [0, 1]. With `reward_range` (low, high)
    the rewards lie in that range and are mapped onto [0, 1].
    """
    low, high = reward_range or (0.0, 1.0)
    call = _server(source) if source.startswith(("http://", "https://")) else _function(source)

    def grade(text: str, answer: str, problem: str, prompt: str) -> Grade:
        prompt = prompt or problem
        raw = _reward(call([prompt + text], [prompt], [answer]), source)
        if not low <= raw <= high:
            mend = "correct either" if reward_range else "correct it, or say its range: task.reward_range=[-1,1], say"
            raise UserError(f"{source} gave the reward {raw:g}, outside [{low:g}, {high:g}]; {mend}")
        reward = (raw - low) / (high - low)
        return Grade("right" if reward >= 1.0 else "wrong", score=reward)

    return grade


def _function(source: str) -> Callable[..., Any]:
    function: Callable[..., Any] = load_object(f"{source}:reward_func", "task.reward_func")
    return function


def _server(url: str) -> Callable[..., Any]:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # the host takes no proxy either

    def call(queries: list[str], prompts: list[str], labels: list[str]) -> Any:
        body = json.dumps({"query": queries, "prompts": prompts, "labels": labels}).encode()
        request = urllib.request.Request(url, data=body, headers={"Content-Type": "application/json"})
        for trial in range(1, HTTP_TRIES + 1):
            try:
                with opener.open(request, timeout=HTTP_TIMEOUT_SECONDS) as response:
                    return json.load(response)
            except urllib.error.URLError as error:
                if trial == HTTP_TRIES:
                    raise RuntimeError(f"reward server {url}: {error} ({HTTP_TRIES} tries)") from error
            time.sleep(HTTP_PAUSE_SECONDS)

    return call


def _reward(result: Any, source: str) -> float:
    """The one reward in what a reward function gave: a dict or a list of one, its value a number, list or tensor."""
    if isinstance(result, list | tuple) and len(result) == 1:
        result = result[0]
    if not isinstance(result, dict):
        raise UserError(
            f"{source} gave a {type(result).__name__}; give a dict with 'rewards', e.g. {{'rewards': [1.0]}}"
        )
    value: Any = result.get("rewards")
    if value is None:
        value = result.get("scores")
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, list | tuple) and len(value) == 1:
        value = value[0]
    if not isinstance(value, int | float) or not math.isfinite(value):
        raise UserError(f"{source} gave the reward {value!r} for one answer; it must be one finite number")
    return float(value)

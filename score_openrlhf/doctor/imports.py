"""Packages of the stack in; which can be imported, and how those that cannot fail, out.

A process of its own imports one after the other and writes a line before and after each: a library built for another
torch may end its process without a word, and then the line that is missing says which it was.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from typing import Any

TIMEOUT_SECONDS = 60.0  # of one import, on average: a cold network disk takes a minute for torch

# module -> what it says of itself, once imported, as a Python expression over the module `m`
FACTS = {
    "torch": "{'cuda': m.version.cuda, 'devices': [(p.name, p.total_memory, [p.major, p.minor]) for p in "
    "map(m.cuda.get_device_properties, range(m.cuda.device_count()))] if m.version.cuda else []}",
    "flash_attn": "{}",
    "flash_attn_2_cuda": "{}",  # its compiled part
    "transformers": "{}",
    "deepspeed": "{}",
    "ray": "{}",
    "vllm": "{}",
    "vllm._C": "{}",  # its compiled part on CPU machines
    "vllm._C_stable_libtorch": "{}",  # and on GPUs
    "openrlhf": "{}",
}

CHILD = """
import importlib, json, os, sys, warnings
warnings.filterwarnings("ignore")
# What libraries print goes nowhere: the lines are for the parent.
lines = os.fdopen(os.dup(1), "w")
os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
import score_openrlhf
for name, expression in json.loads(sys.argv[1]):
    print(json.dumps({"name": name}), file=lines, flush=True)
    try:
        m = importlib.import_module(name)
        report = {"facts": eval(expression)}
    except ModuleNotFoundError as error:
        report = {"missing": error.name == name.split(".")[0], "error": f"{type(error).__name__}: {error}"}
    except BaseException as error:
        report = {"error": f"{type(error).__name__}: {error}"}
    print(json.dumps({"name": name, **report}), file=lines, flush=True)
"""


@dataclass(frozen=True)
class Import:
    """How one module's import ended."""

    name: str
    error: str | None = None
    missing: bool = False  # not installed, as opposed to broken
    slow: bool = False  # given up on
    facts: dict[str, Any] | None = None

    @property
    def works(self) -> bool:
        return self.error is None


def try_imports(names: list[str] | None = None, timeout_seconds: float = TIMEOUT_SECONDS) -> dict[str, Import]:
    """Import each of `names` (all of FACTS by default) where it can do no harm; the result has every one of them."""
    left = list(names if names is not None else FACTS)
    found: dict[str, Import] = {}
    while left:
        found |= _one_process(left, timeout_seconds)
        left = [name for name in left if name not in found]
    return found


def _one_process(names: list[str], timeout_seconds: float) -> dict[str, Import]:
    """What one process came to; at least the first of `names` is among it."""
    words = json.dumps([(name, FACTS.get(name, "{}")) for name in names])
    environment = {**os.environ, "VLLM_LOGGING_LEVEL": "ERROR", "TRANSFORMERS_VERBOSITY": "error"}
    process = subprocess.Popen(
        [sys.executable, "-c", CHILD, words],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    ended = ""
    try:
        out, err = process.communicate(timeout=timeout_seconds * len(names))
    except subprocess.TimeoutExpired:
        process.kill()
        out, err = process.communicate()
        ended = f"not imported within {timeout_seconds * len(names):.0f} s"
    found: dict[str, Import] = {}
    current = names[0]
    for line in out.splitlines():
        report = json.loads(line)
        current = report.pop("name")
        if report:
            found[current] = Import(current, **report)
    if current not in found or not out:
        last = err.strip().splitlines()[-1:] or ["no message"]
        code = process.returncode
        how = f"signal {-code}" if code < 0 else f"status {code}"
        error = ended or f"its import ended the process with {how}: {last[0]}"
        found[current] = Import(current, error=error, slow=bool(ended))
    return found

"""`solve` on the real stack and, where it matters, on a terminal: text as it is sampled, and a clean way out."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import sys
import time
from pathlib import Path

import psutil
import pytest

from score_openrlhf.platform import forking
from tests.stack.conftest import ROOT, score_openrlhf

COMMAND = str(Path(sys.executable).with_name("score-openrlhf"))
QUESTION = "What is 1 plus 2?"
COLOURS = {"attempt": "36", "hint": "35", "revision": "34"}


class Terminal:
    """The command on a terminal of its own; `text` is what it has shown so far."""

    def __init__(self, *words: str, as_a_user: bool = False):
        self.pid, self.master = pty.fork()
        if self.pid == 0:
            os.chdir(ROOT)
            # as in a shell that somebody sits at: one in the background starts its commands with Ctrl-C ignored
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.environ |= {"TERM": "xterm", "COLUMNS": "100"}
            if as_a_user:  # with a fork server of its own: what it starts is its own to end
                os.environ.pop(forking.SWITCH, None)
            os.execv(COMMAND, [COMMAND, *words])
        self.text = ""
        self.reads: list[str] = []

    def read(self, until: str | None = None, timeout: float = 200) -> str:
        """Read on until `until` is there, or the end."""
        limit = time.monotonic() + timeout
        while until is None or until not in self.text:
            assert time.monotonic() < limit, self.text[-3000:]
            if not select.select([self.master], [], [], 1)[0]:
                continue
            try:
                piece = os.read(self.master, 1 << 16).decode()
            except OSError:  # Linux says so when the other side is closed
                piece = ""
            if not piece:
                assert until is None, self.text[-3000:]
                break
            self.reads.append(piece)
            self.text += piece
        return self.text

    def status(self) -> int:
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def words(bench, *more: str, attempt_max_tokens: int = 12) -> list[str]:
    """The settings, one model in both roles (so one engine), and `more` options."""
    model = str(bench.folder / "model")
    return [
        f"rollout.attempt_max_tokens={attempt_max_tokens}", "rollout.guidance_max_tokens=8",
        "rollout.revision_max_tokens=12", "data.max_len=2048", "ds.param_dtype=fp32", "eval.seed=3",
        f"task.reward_func={bench.folder / 'reward.py'}", "--solver", model, "--guidance", model, *more,
    ]  # fmt: skip


ASKED = ("--answer", "3", "--temperature", "1")


@pytest.fixture(scope="module")
def on_a_terminal(bench):
    terminal = Terminal("solve", QUESTION, *words(bench, *ASKED, attempt_max_tokens=60))
    text = terminal.read()
    assert terminal.status() == 0, text[-3000:]
    return terminal


def test_text_comes_while_it_is_sampled_and_in_colour(on_a_terminal):
    places = [on_a_terminal.text.index(title) for title in ("problem", *COLOURS)]
    assert places == sorted(places)
    shown = {
        title: re.findall(rf"\x1b\[{colour}m([^\x1b]+)\x1b\[0m", on_a_terminal.text)
        for title, colour in COLOURS.items()
    }
    assert all(shown.values()), shown
    # a busy machine takes several tokens at once; all of a long text at once would be no stream
    assert len(shown["attempt"]) > 3, shown
    first = next(piece for piece in on_a_terminal.reads if f"\x1b[{COLOURS['attempt']}m" in piece)
    assert f"\x1b[{COLOURS['hint']}m" not in first


def test_what_is_shown_on_a_terminal_is_what_is_sampled(bench, on_a_terminal):
    """The same words with --json give the same texts: same seeds, same requests."""
    output = score_openrlhf("solve", QUESTION, *words(bench, *ASKED, "--json", attempt_max_tokens=60))
    row = json.loads(next(line for line in output.splitlines() if line.startswith("{")))
    plain = re.sub(r"\x1b\[[\d;]*m", "", on_a_terminal.text).replace("\r\n", "\n")
    for part in ("attempt", "guidance", "revision"):
        text = "".join(c if c.isprintable() or c in "\n\t" else "\N{REPLACEMENT CHARACTER}" for c in row[part]["text"])
        assert text.strip() in plain.replace(" " * 8, "\t") or text.strip() in plain, (part, text, plain)
    assert re.search(r"revision: (right|wrong)", plain)


def test_solve_samples_what_evaluate_samples(bench):
    file = bench.folder / "eval.jsonl"
    output = score_openrlhf("solve", *words(bench, "--file", str(file), "--temperature", "1", "--json"))
    solved = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
    folder = bench.folder / "evaluated_like_solve"
    options = ["--problems", str(file), "--temperature", "1", "--no-controls", "--output", str(folder)]
    score_openrlhf("evaluate", *words(bench, *options))
    evaluated = [json.loads(line) for line in (folder / "trajectories.jsonl").open()]
    assert len(solved) == len(evaluated) == 6
    for one, other in zip(solved, evaluated, strict=True):
        for part in ("attempt", "guidance", "revision"):
            assert one[part]["token_ids"] == other[part]["token_ids"]
            assert one[part]["text"] == other[part]["text"]
            assert one[part]["log_prob_sum"] == pytest.approx(other[part]["log_prob_sum"], abs=1e-3)


def test_ctrl_c_in_the_middle_of_a_text_leaves_cleanly(bench):
    # so long a text that a slow machine has the time to press the keys
    terminal = Terminal("solve", QUESTION, *words(bench, attempt_max_tokens=1900), as_a_user=True)
    terminal.read(until=f"\x1b[{COLOURS['attempt']}m")
    processes = psutil.Process(terminal.pid).children(recursive=True)
    assert processes
    os.write(terminal.master, b"\x03")
    text = terminal.read(timeout=60)
    assert terminal.status() == 130, text[-3000:]
    last = [line for line in re.sub(r"\x1b\[[\d;]*m", "", text).splitlines() if line][-1]
    assert last == "interrupted" and "Traceback" not in text and "revision" not in text
    _, alive = psutil.wait_procs(processes, timeout=20)
    assert not alive

"""A table of faults in (mutants.toml); those that no test sees out.

    make mutants                           every fault, on all cores
    python tests/mutants.py kl resume      those whose file or description has one of these words
    python tests/mutants.py --jobs 1       on one core

Each fault is written into a copy of the tree, never into the tree itself, and the tests named for its file are run on
the copy until one fails. Status 1 says that a fault survives, or that the run proves nothing: the tests fail without a
fault, a fault ends in another way than by a failed test, or one that is listed as a survivor is seen.
"""

from __future__ import annotations

import argparse
import ast
import gc
import importlib
import json
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
import time
import tomllib
import warnings
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TABLE = Path(__file__).with_name("mutants.toml")
COPIED = ("score_openrlhf", "benchmarks", "tests", "configs", "pyproject.toml")
# What the tests import for most of their time, and no file with a fault is part of: imported once, then forked.
AHEAD = (
    "score_openrlhf",
    "pytest",
    "hypothesis.strategies",
    "openrlhf.trainer.ppo_trainer",
    "openrlhf.trainer.ray.ppo_actor",
    "openrlhf.trainer.ray.ppo_critic",
    "openrlhf.trainer.ray.vllm_engine",
    "transformers.trainer",
    "hydra",
    "math_verify",
    "rapidfuzz.distance",
    "peft",
    "torch.distributed.tensor",  # torch.testing and optimizers import these two at their first use
    "torch._dynamo",
)
PLUGIN = "_hypothesis_pytestplugin"  # those of other packages take a second to load
TIMEOUT_SECONDS = 300
KILLED, SURVIVED = "killed", "survived"


@dataclass(frozen=True)
class Mutant:
    """One fault: a text that stands once in `file`, what stands there instead, and the tests that should see it."""

    file: str
    fault: str
    old: str
    new: str
    tests: tuple[str, ...]
    survives: str | None = None  # why no test can see it

    def apply(self, root: Path) -> str:
        """The file's text with the fault; raises ValueError unless `old` stands there exactly once."""
        text = (root / self.file).read_text()
        if (count := text.count(self.old)) != 1:
            raise ValueError(f"the old text stands there {count} times instead of once: {self.old!r}")
        return text.replace(self.old, self.new)

    def __str__(self) -> str:
        return f"{self.file.removeprefix('score_openrlhf/')}: {self.fault}"


@dataclass(frozen=True)
class Outcome:
    status: str  # KILLED, SURVIVED, or what went wrong
    seconds: float
    test: str = ""  # the first that failed


def load(path: Path = TABLE) -> list[Mutant]:
    """The faults of the table, in its order."""
    table = tomllib.loads(path.read_text())
    survivors = table.pop("survivors", {})
    mutants = [
        Mutant(file, *texts, tests=tuple(part["tests"]), survives=survivors.pop(texts[0], None))
        for file, part in table.items()
        for texts in part["mutants"]
    ]
    if survivors:
        raise ValueError(f"{path.name}: survivors that are not in the table: {', '.join(survivors)}")
    return mutants


def check(mutants: Sequence[Mutant], root: Path = ROOT) -> None:
    """Raises ValueError, naming all of them, for faults that do not fit the tree any more or are listed twice."""
    wrong = [
        f"two faults are called {name!r}" for name, count in Counter(m.fault for m in mutants).items() if count > 1
    ]
    for mutant in mutants:
        wrong += [
            f"{mutant}: there is no tests/{test}" for test in mutant.tests if not (root / "tests" / test).is_file()
        ]
        try:
            if ast.dump(ast.parse(mutant.apply(root))) == ast.dump(ast.parse((root / mutant.file).read_text())):
                wrong.append(f"{mutant}: the new text is the same code")
        except (OSError, SyntaxError, ValueError) as error:
            wrong.append(f"{mutant}: {error}")
    if wrong:
        raise ValueError(f"{TABLE.name} does not fit the code; bring it up to it:\n  " + "\n  ".join(wrong))


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Put faults into a copy of the tree; print those that no test sees.")
    parser.add_argument("words", nargs="*", help="only faults whose file or description has one of these words")
    parser.add_argument(
        "--jobs", type=int, default=len(os.sched_getaffinity(0)), help="processes (default: the cores)"
    )
    options = parser.parse_args(words)
    mutants = load()
    check(mutants)
    if options.words:
        mutants = [m for m in mutants if any(word.lower() in str(m).lower() for word in options.words)]
    return run(mutants, jobs=options.jobs)


def run(mutants: Sequence[Mutant], *, root: Path = ROOT, ahead: Sequence[str] = AHEAD, jobs: int = 1) -> int:
    """Try every fault; print what became of each; returns the exit status."""
    start, bad = time.perf_counter(), []
    outcomes: dict[Mutant, Outcome] = {}
    context = multiprocessing.get_context("spawn")
    with (
        tempfile.TemporaryDirectory(prefix="mutants-") as scratch,
        ProcessPoolExecutor(jobs, context, initializer=_prepare, initargs=(root, scratch, ahead)) as pool,
    ):
        groups = [(test,) for test in dict.fromkeys(test for mutant in mutants for test in mutant.tests)]
        for tests, outcome in zip(groups, pool.map(_try, [None] * len(groups), groups)):
            if outcome.status != SURVIVED:
                print(f"without any fault, tests fail: {', '.join(tests)}: {outcome.status} {outcome.test}")
                pool.shutdown(cancel_futures=True)
                return 1
        tried = {pool.submit(_try, mutant, mutant.tests): mutant for mutant in mutants}
        for future in as_completed(tried):
            mutant, outcome = tried[future], future.result()
            outcomes[mutant] = outcome
            print(f"{outcome.status:8} {outcome.seconds:5.1f} s  {mutant}  {outcome.test}", flush=True)
            if outcome.status != (SURVIVED if mutant.survives else KILLED):
                bad.append(mutant)
    num_killed = sum(outcome.status == KILLED for outcome in outcomes.values())
    print(f"\n{len(mutants)} faults, {num_killed} seen by a test, {time.perf_counter() - start:.0f} s")
    for mutant, outcome in outcomes.items():
        if mutant.survives and outcome.status == SURVIVED:
            print(f"  survives, as listed: {mutant}\n    {mutant.survives}")
    for mutant in bad:
        expected = "listed as a survivor, but " if mutant.survives else ""
        print(
            f"  {expected}{outcomes[mutant].status}: {mutant}\n    - {mutant.old.strip()}\n    + {mutant.new.strip()}"
        )
    return 1 if bad else 0


# ── In a worker: a copy of the tree, and a fork for every run of tests ──


def _prepare(root: Path, scratch: str, ahead: Sequence[str]) -> None:
    copy = Path(tempfile.mkdtemp(dir=scratch))
    for name in COPIED:
        if (root / name).is_dir():
            shutil.copytree(root / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        elif (root / name).is_file():
            shutil.copy2(root / name, copy / name)
    os.chdir(copy)
    sys.path[:] = [str(copy), *(p for p in sys.path if p and not Path(p).resolve().is_relative_to(root / "tests"))]
    os.environ |= {"PYTHONPATH": str(copy), "OMP_NUM_THREADS": "1", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    warnings.simplefilter("ignore")
    for name in ahead:
        importlib.import_module(name)
    for name in ahead[:1]:
        assert Path(sys.modules[name].__file__ or "").is_relative_to(copy), sys.modules[name]
    gc.freeze()  # what is there already is no garbage: forks need not look through it


def _try(mutant: Mutant | None, tests: Sequence[str]) -> Outcome:
    """Run the tests with the fault in the worker's copy; None runs them as they are."""
    start = time.perf_counter()
    if mutant is None:
        return _run_tests(tests, start)
    path, whole = Path(mutant.file), Path(mutant.file).read_text()
    module = mutant.file.removesuffix(".py").replace("/", ".")
    assert module not in sys.modules, f"{module} was imported ahead, the fault would not show"
    try:
        _write(path, mutant.apply(Path()))
        return _run_tests(tests, start)
    finally:
        _write(path, whole)


def _write(path: Path, text: str) -> None:
    """Write a source whose bytecode must not be taken for that of the text before it, of the same size and second."""
    path.write_text(text)
    for compiled in path.parent.glob(f"__pycache__/{path.stem}.*.pyc"):
        compiled.unlink()


def _run_tests(tests: Sequence[str], start: float) -> Outcome:
    with tempfile.NamedTemporaryFile("w+") as said:
        child = os.fork()
        if child == 0:
            _pytest(tests, said.name)
        deadline = time.monotonic() + TIMEOUT_SECONDS
        while os.waitpid(child, os.WNOHANG) == (0, 0):
            if time.monotonic() > deadline:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
                return Outcome(f"still running after {TIMEOUT_SECONDS} s", time.perf_counter() - start)
            time.sleep(0.02)
        text = said.read()
    seconds = time.perf_counter() - start
    if not text:
        return Outcome("the test process died", seconds)
    status, test = json.loads(text)
    # 0: all passed; 1: some failed; others: not collected, nothing to run, interrupted
    return Outcome({0: SURVIVED, 1: KILLED}.get(status, f"pytest ended with status {status}"), seconds, test)


def _pytest(tests: Sequence[str], result: str) -> None:
    """In the fork: run the tests, write `[status, first failed test]` to `result`, and end."""
    import pytest

    class FirstFailure:
        test = ""

        def pytest_runtest_logreport(self, report) -> None:
            if report.failed and not self.test:
                self.test = report.nodeid

        def pytest_collectreport(self, report) -> None:
            self.pytest_runtest_logreport(report)

    seen = FirstFailure()
    try:
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, 1)
        os.dup2(nothing, 2)
        words = ["-x", "-q", "-p", "no:cacheprovider", "-p", PLUGIN, "--hypothesis-seed=0"]
        status = pytest.main([*words, *(f"tests/{test}" for test in tests)], plugins=[seen])
        Path(result).write_text(json.dumps([int(status), seen.test]))
    finally:
        os._exit(0)


if __name__ == "__main__":
    sys.exit(main())

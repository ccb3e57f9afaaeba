"""`score-openrlhf solve "PROBLEM"`: attempt, hint and revision on the terminal, token by token as they are sampled."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from score_openrlhf import platform
from score_openrlhf.cli.sampling import add_model_arguments, resolve
from score_openrlhf.cli.words import add_words
from score_openrlhf.errors import UserError, printable

if TYPE_CHECKING:
    from rich.console import Console

    from score_openrlhf.evaluation.runner import EvaluationRunner
    from score_openrlhf.rollout.executor import SamplingPlan
    from score_openrlhf.rollout.trajectory import Sample, Trajectory
    from score_openrlhf.tasks.base import Grade, Problem

PHASES = {"attempt": ("attempt", "cyan"), "guide": ("hint", "magenta"), "revise": ("revision", "blue")}
MARKS = {"right": "[green]right[/green]", "wrong": "[red]wrong[/red]"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Solve a problem in front of you. Without PROBLEM and --file, problems are read from standard "
        "input, one a line; on a terminal they are asked for, one after another."
    )
    add_words(
        parser, "PROBLEM | CONFIG | key=value",
        "the problem's text; a YAML file or a finished run's folder; overrides such as eval.seed=3", texts=True,
    )  # fmt: skip
    parser.add_argument("--answer", metavar="A", help="the gold answer: both turns are then graded")
    add_model_arguments(parser)
    parser.add_argument("--file", metavar="F", help="problems: a data file, or a text file with one a line")
    parser.add_argument("--json", action="store_true", help="print one JSON object a problem and nothing else")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from rich.console import Console

    from score_openrlhf.cli.train import prepare_task
    from score_openrlhf.evaluation.run import Settings, sampling_plan
    from score_openrlhf.evaluation.session import running_models, sampling_config

    console = Console(stderr=args.json)
    if args.answer and not args.texts:
        raise UserError("--answer belongs to a PROBLEM on the command line; a file has its own answers")
    resolved = resolve(args.config, args.overrides, args.solver, args.guidance)
    platform.start_fork_server()
    prepare_task(resolved)
    cfg = sampling_config(resolved, need_problems=False)
    problems: Iterable[Problem] = _problems(args, cfg)
    temperature = cfg.eval.temperature if args.temperature is None else args.temperature
    plan = sampling_plan(cfg, Settings(1, temperature, (cfg.eval.seed,)), cfg.eval.seed)
    console.print("starting engines", style="dim")
    with running_models(cfg, Path(cfg.output_dir, "solve"), console) as runner:
        failed = _solve_all(runner, problems, plan, console, args.json)
    return 1 if failed else 0


def _problems(args: argparse.Namespace, cfg) -> Iterator[Problem] | list[Problem]:
    """The problems in the order in which they are solved; a terminal is asked for them one by one."""
    from score_openrlhf.tasks.base import Problem

    if args.texts and args.file:
        raise UserError("give PROBLEM or --file, not both")
    if args.texts:
        return [Problem("problem", args.texts[0], args.answer or "")]
    if args.file and Path(args.file).suffix in (".jsonl", ".json", ".parquet"):
        return _rows(args.file, cfg)
    if args.file:
        path = Path(args.file)
        if not path.is_file():
            raise UserError(f"--file: {path.absolute()} does not exist; give a data file or a text file")
        return _lines(_text(path.absolute()))
    if sys.stdin.isatty():
        return _asked()
    return _lines(sys.stdin.read())


def _rows(file: str, cfg) -> list[Problem]:
    from score_openrlhf.tasks.base import Problem
    from score_openrlhf.tasks.loading import checked_rows, value_of

    def read(row: Any, name: str, number: int) -> Problem:
        text = value_of(row, cfg.data.problem_key)
        answer = value_of(row, cfg.data.answer_key) if row.get(cfg.data.answer_key) is not None else ""
        return Problem(f"{name}:{number}", text, answer)

    return checked_rows(file, read)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--file: {path} cannot be read as text in UTF-8: {error}") from error


def _lines(text: str) -> list[Problem]:
    from score_openrlhf.tasks.base import Problem

    problems = [
        Problem(f"line {n}", line.strip(), "") for n, line in enumerate(text.splitlines(), start=1) if line.strip()
    ]
    if not problems:
        raise UserError("there is no problem: give one on the command line, in --file or on standard input")
    return problems


def _asked() -> Iterator[Problem]:
    """Problems typed at a prompt, until an empty line or the end of the input."""
    from score_openrlhf.tasks.base import Problem

    number = 0
    try:
        while text := input("problem> ").strip():
            number += 1
            answer = input("answer (empty: not graded)> ").strip()
            yield Problem(f"problem {number}", text, answer)
    except EOFError:
        print()


def _solve_all(
    runner: EvaluationRunner, problems: Iterable[Problem], plan: SamplingPlan, console: Console, as_json: bool
) -> int:
    """Solve one after another; returns how many failed."""
    failed = 0
    for number, problem in enumerate(problems):
        # one event loop a problem: it would hold back a Ctrl-C at the prompt between two
        trajectory = asyncio.run(_solve(runner, problem, number, plan, console))
        failed += trajectory.failure is not None
        if as_json:
            print(json.dumps(trajectory.to_json()), flush=True)
    return failed


async def _solve(
    runner: EvaluationRunner, problem: Problem, number: int, plan: SamplingPlan, console: Console
) -> Trajectory:
    """One problem, shown while it is solved; returns its trajectory."""
    from rich.markup import escape

    from score_openrlhf.evaluation.streaming import solve
    from score_openrlhf.rollout.trajectory import Trajectory

    trajectory = Trajectory(problem, number, 0, 0)
    screen = Screen(console, graded=bool(problem.answer))
    screen.title("problem", "dim")
    screen.text(problem.text)
    screen.finish()
    await solve(runner, trajectory, plan, screen)
    if trajectory.failure:
        screen.finish()
        console.print(f"[red]failed:[/red] {escape(printable(trajectory.failure))} (data.max_len is {plan.max_len})")
    return trajectory


class Screen:
    """The texts of one problem on a console: as they come on a terminal, whole elsewhere.

    Blank space around a text is left out, so what may turn out to be its end is held back.
    """

    def __init__(self, console: Console, *, graded: bool):
        self.console = console
        self.graded = graded
        self.style = ""
        self.held = ""  # not shown yet
        self.shown = False  # something of this text

    def title(self, text: str, style: str) -> None:
        from rich.rule import Rule

        self.style = style
        self.console.print(Rule(text, style=style, align="left"))

    def begin(self, phase: str) -> None:
        self.title(*PHASES[phase])

    def text(self, piece: str) -> None:
        """More of the current text."""
        self.held += printable(piece)
        if self.console.is_terminal:
            self._show()

    def finish(self) -> None:
        """The current text is at its end, if there is one."""
        self._show()
        if self.shown:
            self.console.line()
        self.held, self.shown = "", False

    def end(self, phase: str, sample: Sample, grade: Grade | None, *, leak: bool) -> None:
        nothing = not self.shown and not self.held.strip()
        self.finish()
        words = ["[dim](nothing)[/dim]"] if nothing else []
        if grade is not None and self.graded:
            words.append(MARKS.get(grade.status, f"[yellow]{grade.status}[/yellow]"))
        if sample.truncated:
            words.append("[yellow]cut at its budget[/yellow]")
        if leak:
            words.append("[yellow]states the answer[/yellow]")
        if words:
            self.console.print(f"{PHASES[phase][0]}: {', '.join(words)}", soft_wrap=True)

    def _show(self) -> None:
        text = self.held if self.shown else self.held.lstrip()
        ready = text.rstrip()
        self.held = text[len(ready) :]
        if ready:
            self.console.out(ready, style=self.style, highlight=False, end="")
            self.shown = True

"""`score-openrlhf evaluate`: models and problems in; accuracies with intervals, controls and hint quality out."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from score_openrlhf import platform
from score_openrlhf.cli.sampling import add_model_arguments, resolve
from score_openrlhf.cli.words import add_words
from score_openrlhf.errors import UserError, printable
from score_openrlhf.journal import Journal

if TYPE_CHECKING:
    from rich.console import Console

    from score_openrlhf.evaluation.run import Collected, Settings

RESULTS, TABLE, TRAJECTORIES, CONFIG = "evaluation.json", "evaluation.csv", "trajectories.jsonl", "config.yaml"
PROGRESS = "progress.jsonl"  # the trajectories that are done, until all are
PLAIN_WIDTH, TITLE_WIDTH = 120, 64  # characters: of lines in a file, of the longest title
SHOWN = (
    "acc_t1", "acc_t2", "delta", "i2c", "c2i", "fix_rate", "break_rate", "edit_ratio", "changed_answer",
    "truncated_t1", "truncated_t2",
)  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Evaluate a solver, with or without a guidance model, on a file of problems. The controls revise "
        "the same attempts under other texts, so that what the guidance is worth shows apart from a second look."
    )
    add_words(
        parser, "CONFIG | key=value",
        "a YAML file or a finished run's folder, and overrides such as rollout.attempt_max_tokens=512",
    )  # fmt: skip
    add_model_arguments(parser)
    parser.add_argument("--problems", metavar="FILE", help="problems with answers; default: CONFIG's data.eval")
    parser.add_argument("--samples", type=int, metavar="K", help="attempts a problem for each seed")
    parser.add_argument("--seeds", metavar="0,1", help="sampling seeds, with commas; default: CONFIG's eval.seed")
    parser.add_argument(
        "--controls", action=argparse.BooleanOptionalAction, default=True, help="revise under the controls too"
    )
    parser.add_argument(
        "--resume", action=argparse.BooleanOptionalAction, default=True,
        help="go on where the same command was interrupted; --no-resume keeps that aside and starts anew",
    )  # fmt: skip
    parser.add_argument("--output", metavar="DIR", help="where the files go; default: output_dir/evaluation")
    parser.add_argument("--json", action="store_true", help="print the results as JSON and nothing else on stdout")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from rich.console import Console

    from score_openrlhf.cli.train import prepare_task
    from score_openrlhf.config.compose import save
    from score_openrlhf.evaluation.run import Settings
    from score_openrlhf.evaluation.session import problems_of, sampling_config

    console = Console(stderr=args.json)
    if not console.is_terminal:
        console.width = max(console.width, PLAIN_WIDTH)
    overrides = [*args.overrides, *([f"data.eval={args.problems}"] if args.problems else [])]
    resolved = resolve(args.config, overrides, args.solver, args.guidance)
    platform.start_fork_server()
    prepare_task(resolved)
    cfg = sampling_config(resolved, need_problems=True)
    settings = Settings(
        samples=cfg.eval.num_samples if args.samples is None else args.samples,
        temperature=cfg.eval.temperature if args.temperature is None else args.temperature,
        seeds=_seeds(args.seeds) if args.seeds else (cfg.eval.seed,),
        controls=args.controls,
    )
    problems = problems_of(cfg)
    output_dir = Path(args.output) if args.output else Path(cfg.output_dir, "evaluation")
    measured = _measured(cfg, problems, settings)
    results = _found(output_dir, measured, console, resume=args.resume)
    if results is None:
        output_dir.mkdir(parents=True, exist_ok=True)
        save(resolved, str(output_dir / CONFIG))
        with closing(Journal.open(output_dir / PROGRESS, measured)) as journal:
            try:
                results = _evaluate(cfg, problems, settings, output_dir, console, journal, measured)
            except KeyboardInterrupt:
                raise KeyboardInterrupt(_how_to_go_on(journal)) from None
    if args.json:
        print(json.dumps(results))
    else:
        show(console, results, output_dir)
    return 0


def _seeds(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise UserError(f"--seeds is {text!r}; give whole numbers with commas between, such as 0,1,2") from error


def _measured(cfg, problems, settings: Settings) -> dict[str, Any]:
    """All that the results depend on, JSON-ready: results of other settings are never mixed with these."""
    from score_openrlhf.config.evaluation import evaluation_settings, weights_digest
    from score_openrlhf.preflight.inputs import templates_of
    from score_openrlhf.tasks import make_task

    return {
        "the solver": cfg.model_path,
        "the solver's files": weights_digest(cfg.model_path),
        "the guidance model": cfg.guidance_model_path,
        "the guidance model's files": weights_digest(cfg.guidance_model_path),
        **evaluation_settings(cfg, problems, templates_of(cfg, make_task(cfg.task.name))),
        "eval.num_samples": settings.samples,
        "eval.temperature": settings.temperature,
        "eval.seed": list(settings.seeds),
        "controls": settings.controls,
    }


def _found(output_dir: Path, measured: dict[str, Any], console: Console, *, resume: bool) -> dict[str, Any] | None:
    """The results of this very evaluation if it is finished; else None, with what is of another one moved aside."""
    from score_openrlhf.config.evaluation import changes
    from score_openrlhf.journal import settings_in
    from score_openrlhf.trainer.runlog import move_aside

    results = _results_in(output_dir)
    before = results.get("settings") if results is not None else settings_in(output_dir / PROGRESS)
    if results is None and before is None:
        return None
    changed = ["it does not say what it measured"] if before is None else changes(before, measured)
    if resume and not changed:
        if results is not None:
            console.print(
                f"evaluated already: {output_dir / RESULTS} is of these models, problems and settings "
                "(--no-resume evaluates anew)", highlight=False, soft_wrap=True,
            )  # fmt: skip
        return results
    aside = move_aside(output_dir, (RESULTS, TABLE, TRAJECTORIES, CONFIG, PROGRESS))
    why = f"of other settings ({'; '.join(changed)})" if changed else "not gone on from"
    said = f"the evaluation in {output_dir} is {why} and is kept as {aside}"
    console.print(said, highlight=False, soft_wrap=True, markup=False)
    return None


def _results_in(output_dir: Path) -> dict[str, Any] | None:
    path = output_dir / RESULTS
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise UserError(f"{path} is not JSON ({error}); remove it to evaluate again") from error


def _how_to_go_on(journal: Journal) -> str:
    done = len(journal.records) + journal.num_added
    kept = f"{done} finished trajectories are kept in {journal.path}" if done else "no trajectory was finished yet"
    return f"{kept}; the same command goes on from there"


def _evaluate(
    cfg,
    problems,
    settings: Settings,
    output_dir: Path,
    console: Console,
    journal: Journal,
    measured: dict[str, Any],
) -> dict[str, Any]:
    """Start the engines, walk every condition, write the files; returns what evaluation.json holds."""
    from score_openrlhf.evaluation.kept import Kept
    from score_openrlhf.evaluation.knowledge import equal_in
    from score_openrlhf.evaluation.results import summarise, to_csv
    from score_openrlhf.evaluation.run import evaluate, main_condition
    from score_openrlhf.evaluation.session import running_models
    from score_openrlhf.rollout.metrics import num_sampled_tokens
    from score_openrlhf.trainer.runlog import write_atomically

    started = time.perf_counter()
    kept = Kept(problems, journal)
    if len(kept):
        console.print(f"going on: {len(kept)} trajectories are in {journal.path}", highlight=False, soft_wrap=True)
    console.print("starting engines", highlight=False)
    with running_models(cfg, output_dir, console) as runner:
        startup = time.perf_counter() - started
        journal.begin()
        with _progress(console) as report:
            collected = evaluate(runner, problems, cfg, settings, report, kept)
        sampling = journal.seconds_before + time.perf_counter() - started - startup
        main = main_condition(runner)
        results: dict[str, Any] = {
            "solver_path": cfg.model_path,
            "guidance_path": cfg.guidance_model_path,
            "task": cfg.task.name,
            "problems": cfg.data.eval,
            "samples": settings.samples,
            "seeds": list(settings.seeds),
            "temperature": settings.temperature,
            **summarise(runner.task, collected, main, greedy=settings.temperature == 0, equal=equal_in(runner.pool)),
            "sampled_tokens": num_sampled_tokens([t for each in collected[main].values() for t in each]),
            "seconds": {"startup": startup, "sampling": sampling},
            "settings": measured,
        }
    write_atomically(output_dir / TRAJECTORIES, _lines(collected))
    write_atomically(output_dir / TABLE, to_csv(results))
    write_atomically(output_dir / RESULTS, json.dumps(results, indent=1) + "\n")
    journal.remove()
    return results


def _lines(collected: Collected) -> str:
    return "".join(
        json.dumps({"condition": name, "seed": seed, **t.to_json()}) + "\n"
        for name, by_seed in collected.items()
        for seed, trajectories in by_seed.items()
        for t in trajectories
    )


@contextmanager
def _progress(console: Console) -> Iterator[Callable[[str, int], Callable[[], None]]]:
    """What `evaluate` reports to: a bar for each condition on a terminal, a line for each that is done elsewhere."""
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    from score_openrlhf.evaluation.conditions import LABELS

    if not console.is_terminal:
        yield lambda phase, total: _line_at_the_end(console, LABELS[phase], total)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
               TimeRemainingColumn())  # fmt: skip
    tasks: dict[str, Any] = {}
    with Progress(*columns, console=console, transient=True) as bars:

        def report(phase: str, total: int) -> Callable[[], None]:
            if phase in tasks:  # another seed
                bars.update(tasks[phase], total=(bars.tasks[tasks[phase]].total or 0) + total)
            else:
                tasks[phase] = bars.add_task(LABELS[phase], total=total)
            return lambda: bars.advance(tasks[phase])

        yield report


def _line_at_the_end(console: Console, label: str, total: int) -> Callable[[], None]:
    done, started = 0, time.perf_counter()

    def advance() -> None:
        nonlocal done
        done += 1
        if done == total:
            console.print(f"{label}: {total} trajectories, {time.perf_counter() - started:.1f} s", highlight=False)

    return advance


def show(console: Console, results: dict[str, Any], output_dir: Path) -> None:
    """The tables: metrics of the pair, the controls and its lead over each, scaling, hint quality."""
    from rich.box import SIMPLE_HEAD
    from rich.markup import escape
    from rich.table import Table

    main, conditions = results["main_condition"], results["conditions"]
    metrics = conditions[main]["metrics"]
    table = Table(title=_title(results), caption="95 % intervals, bootstrapped over problems")
    table.add_column("metric")
    table.add_column(f"revised under {conditions[main]['label']}", justify="right")
    for metric in SHOWN:
        if metric in metrics:
            table.add_row(metric, _interval(metrics[metric]))
    failed = conditions[main]
    table.add_row("failed, counted as wrong", f"{failed['num_failed']} of {failed['num_trajectories']}")
    console.print(table)
    if len(conditions) > 1:
        table = Table(
            title="the same attempts revised under other texts", box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0)
        )
        table.add_column("revised under")
        for column in ("acc_t2", f"lead of {conditions[main]['label']}", "i2c", "c2i"):
            table.add_column(column, justify="right", no_wrap=True)
        for name, condition in conditions.items():
            of = condition["metrics"]
            if name == "alone":
                table.add_section()
                table.add_row("guidance model alone, no revision", _interval(of.get("acc")))
            else:
                points = [f"{of[metric]['value']:.3f}" if metric in of else "-" for metric in ("i2c", "c2i")]
                lead = "" if name == main else _interval(results["lead"].get(name), "+.3f")
                table.add_row(condition["label"], _interval(of.get("acc_t2")), lead, *points)
        console.print(table)
    if results["scaling"]:
        table = Table(title="k answers: in parallel, or k/2 attempts and their revisions", min_width=TITLE_WIDTH)
        for column in ("", "parallel", "sequential"):
            table.add_column(column, justify="right" if column else "left")
        for measure in dict.fromkeys(row["measure"] for row in results["scaling"]):
            found = {row["samples"]: row for row in results["scaling"] if row["measure"] == measure}
            table.add_row(measure, _interval(found.get("parallel")), _interval(found.get("sequential")))
        console.print(table)
    if "guidance" in results:
        own = {k: v for k, v in conditions[main]["metrics"].items() if k.startswith("guidance/")}
        table = Table(title="guidance")
        table.add_column("metric")
        table.add_column("value", justify="right")
        for metric, estimate in own.items():
            table.add_row(metric.removeprefix("guidance/"), _interval(estimate))
        for metric, value in results["guidance"].items():
            if value is not None:
                table.add_row(metric, f"{value:.3f}")
        console.print(table)
    for condition in conditions.values():
        causes = ", ".join(f"{cause} ({count})" for cause, count in condition["failures"].items())
        if causes:
            console.print(
                f"[yellow]{condition['num_failed']} of {condition['num_trajectories']} failed and count as "
                f"wrong[/yellow] under {condition['label']}: {escape(printable(causes))}",
                highlight=False, soft_wrap=True,
            )  # fmt: skip
    if results["answers_not_compared"]:
        console.print(
            f"[yellow]majority:[/yellow] {results['answers_not_compared']} pairs of wrong answers could not be "
            "compared in task.grade_timeout_seconds and count as different",
            highlight=False, soft_wrap=True,
        )  # fmt: skip
    seconds = results["seconds"]
    console.print(
        f"{seconds['sampling']:.0f} s of sampling after {seconds['startup']:.0f} s of start-up; "
        f"{RESULTS}, {TABLE} and {TRAJECTORIES} are in {output_dir}",
        highlight=False, soft_wrap=True,
    )  # fmt: skip


def _title(results: dict[str, Any]) -> str:
    how = "greedy" if results["temperature"] == 0 else f"T = {results['temperature']:g}"
    seeds = ", ".join(map(str, results["seeds"]))
    return f"{results['num_problems']} problems x {results['samples']}, {how}, seeds {seeds}"


def _interval(estimate: dict[str, Any] | None, form: str = ".3f") -> str:
    if estimate is None:
        return "-"
    return f"{estimate['value']:{form}} [{estimate['low']:{form}}, {estimate['high']:{form}}]"

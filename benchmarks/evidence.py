"""Seeds and arms in; a trained and evaluated run for each, then the page of results made from their files, out.

    python -m benchmarks.evidence [--seeds 201,202,203] [--arms score,smart_score,...]     (make evidence)

Every arm is one `score-openrlhf playground` and one `score-openrlhf evaluate`, called in this process and in one Ray
session: the libraries are loaded once for all arms, and the engines started once. What is finished is not done again,
an interrupted arm goes on from its checkpoint, what is of other settings than its command's now is kept aside and done
anew, and docs/results.md is written when the whole plan is there.
"""

from __future__ import annotations

import argparse
import shlex
import shutil
import sys
import time
from pathlib import Path

from benchmarks.arms import ARMS, BASE, SEEDS, STAGE1_STEPS, STAGE2_STEPS, plan
from score_openrlhf import platform
from score_openrlhf.cli import main as command
from score_openrlhf.cli.sampling import resolve
from score_openrlhf.config.compose import Resolved, load_config
from score_openrlhf.config.derive import differences
from score_openrlhf.config.errors import ConfigError
from score_openrlhf.trainer.runlog import set_aside

ROOT = Path("runs/evidence")
CONFIG = "configs/playground.yaml"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--seeds", default=",".join(map(str, SEEDS)), help="of warm start, problems' order and sampling"
    )
    parser.add_argument("--arms", default=",".join(ARMS), help=f"of {', '.join(ARMS)}")
    args = parser.parse_args()
    try:
        seeds = [int(word) for word in args.seeds.split(",")]
    except ValueError:
        parser.error(f"--seeds is {args.seeds!r}; give whole numbers with commas between, such as 201,202")
    arms = args.arms.split(",")
    if unknown := [arm for arm in arms if arm not in ARMS]:
        parser.error(f"no arm {', '.join(unknown)}; the arms are {', '.join(ARMS)}")

    started = time.perf_counter()
    todo = plan(tuple(seeds), tuple(arms))
    platform.start_fork_server()
    from score_openrlhf.cluster.engine_pool import shared_session
    from score_openrlhf.cluster.placement import place

    with shared_session(place(load_config(CONFIG, []).cfg).num_gpus):
        for number, (seed, arm) in enumerate(todo, 1):
            minutes = (time.perf_counter() - started) / 60
            print(f"\n== {number}/{len(todo)}: seed {seed}, {arm} ({minutes:.0f} min)", flush=True)
            if status := do(seed, arm):
                print(f"stopped with status {status}; the same command goes on from here", file=sys.stderr)
                return status

    from benchmarks.results_page import write

    whole = set(todo) >= set(plan())  # a part of it is no page to publish
    docs = Path("docs") if whole else ROOT
    page = write(ROOT, seeds=seeds, page=docs / "results.md", plot=docs / "images" / "results.svg")
    minutes = (time.perf_counter() - started) / 60
    print(f"\nall {len(todo)} arms are there after {minutes:.0f} min: {page}, {ROOT / 'results.json'}")
    return 0


def do(seed: int, arm: str) -> int:
    """Train and evaluate one arm of one seed, or what is left of it; returns the exit status of what went wrong."""
    folder = ROOT / f"seed_{seed}"
    base_results, results = (folder / name / "evaluation" for name in (BASE, arm))
    train, evaluate_base, evaluate = commands(seed, arm)
    start = str(folder / "playground" / "model")
    for found, resolved in (
        (folder / arm, load_config(CONFIG, overrides(seed, arm))),
        (base_results, resolve(CONFIG, base_overrides(seed), start, start)),
    ):
        if found.is_dir() and (changed := other_settings(found, resolved)):
            print(f"{found} is of other settings ({changed}) and is kept as {set_aside(found)}", flush=True)
    steps = [
        (train, folder / arm / "summary.json"),
        (evaluate_base, base_results / "evaluation.json"),
        (evaluate, results / "evaluation.json"),
    ]
    for words, result in steps:
        if not result.is_file():
            print(f"$ score-openrlhf {shlex.join(words)}", flush=True)
            if status := command(words):
                return status
    shutil.rmtree(folder / arm / "checkpoints", ignore_errors=True)  # the finished models lie beside them
    return 0


def other_settings(found: Path, resolved: Resolved) -> str:
    """What of an arm's or evaluation's configuration is no longer what its command says; empty if nothing is."""
    kept = found / "config.yaml"
    if not kept.is_file():
        return "it has no config.yaml"
    try:
        changed = differences(load_config(str(kept), []).cfg, resolved.cfg)
    except ConfigError as error:
        return str(error)
    return ", ".join(f"{key} was {old} and is {new}" for key, (old, new) in changed.items())


def base_overrides(seed: int) -> list[str]:
    """The base model and problems of a seed."""
    return [f"playground.path={ROOT / f'seed_{seed}' / 'playground'}", f"playground.warm_start_seed={seed}"]


def overrides(seed: int, arm: str) -> list[str]:
    """What training an arm changes in CONFIG."""
    words = [f"output_dir={ROOT / f'seed_{seed}' / arm}", f"run_name={arm}", f"seed={seed}", *base_overrides(seed)]
    return [*words, f"stage1_steps={STAGE1_STEPS}", f"stage2_steps={STAGE2_STEPS}", *ARMS[arm]]


def commands(seed: int, arm: str) -> tuple[list[str], list[str], list[str]]:
    """What a user would type after `score-openrlhf`: to train the arm, to evaluate its start, to evaluate it."""
    folder = ROOT / f"seed_{seed}"
    start = str(folder / "playground" / "model")
    evaluate_base = ["evaluate", CONFIG, *base_overrides(seed), "--solver", start, "--guidance", start]
    evaluate_base += ["--output", str(folder / BASE / "evaluation")]
    train = ["playground", CONFIG, *overrides(seed, arm)]
    return train, evaluate_base, ["evaluate", str(folder / arm)]


if __name__ == "__main__":
    sys.exit(main())

"""Seeds in; the playground trained with the baselines of before and with the state value, at two alphas; a table out.

    python -m benchmarks.baselines [--seeds 301,302,303] [--alphas 1,10]

`old` is `leave_one_out` for turn 2 and for the guidance model, `new` is `state_value` for both; all else is
configs/playground.yaml. One Ray session serves all runs; what is finished is not done again.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from statistics import fmean
from typing import Any

from rich.console import Console
from rich.table import Table

from score_openrlhf import platform
from score_openrlhf.cli import main as command
from score_openrlhf.config.compose import load_config

ROOT = Path("runs/baselines")
CONFIG = "configs/playground.yaml"
WAYS = {
    "old": ["solver.baseline_t2=leave_one_out", "guidance.baseline=leave_one_out"],
    "new": ["solver.baseline_t2=state_value", "guidance.baseline=state_value"],
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", default="301,302,303", help="of warm start, problems' order and sampling")
    parser.add_argument("--alphas", default="1,10", help="stage II's bonus weights")
    args = parser.parse_args()
    seeds = [int(word) for word in args.seeds.split(",")]
    alphas = [float(word) for word in args.alphas.split(",")]
    platform.start_fork_server()
    from score_openrlhf.cluster.engine_pool import shared_session
    from score_openrlhf.cluster.placement import place

    rows = []
    with shared_session(place(load_config(CONFIG, []).cfg).num_gpus):
        for seed in seeds:
            for alpha in alphas:
                for way, changes in WAYS.items():
                    folder = ROOT / f"seed_{seed}" / f"alpha_{alpha:g}_{way}"
                    words = ["playground", CONFIG, f"output_dir={folder}", f"run_name={folder.name}", f"seed={seed}"]
                    words += [f"playground.path={ROOT / f'seed_{seed}' / 'playground'}", f"alpha={alpha}", *changes]
                    words += [f"playground.warm_start_seed={seed}"]
                    if not (folder / "summary.json").is_file() and (status := command(words)):
                        return status
                    rows.append({"seed": seed, "alpha": alpha, "way": way, **measured(folder)})
    (ROOT / "summary.json").write_text(json.dumps(rows, indent=1) + "\n")
    show(rows)
    return 0


def measured(folder: Path) -> dict[str, Any]:
    """What a run has gained, and its mean squared advantages in stage II."""
    summary = json.loads((folder / "summary.json").read_text())
    steps = [json.loads(line) for line in (folder / "metrics.jsonl").open()]
    last = [step for step in steps if step["stage"] == 2]
    found = {
        "before": summary["before"]["acc_t2"],
        "after": summary["after"]["acc_t2"],
        "acc_t1": summary["after"]["acc_t1"],
        "right_column": summary["after"]["guidance/right_column_rate"],
    }
    for name in ("solver/advantage_sq_t2", "guidance/advantage_sq", "solver/grad_norm", "guidance/grad_norm"):
        found[name] = fmean(step[name] for step in last)
    return found


def show(rows: list[dict[str, Any]]) -> None:
    table = Table(title="old: leave-one-out; new: state value")
    for name in rows[0]:
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(*(f"{value:.3f}" if isinstance(value, float) else str(value) for value in row.values()))
    Console(width=160).print(table)


if __name__ == "__main__":
    sys.exit(main())

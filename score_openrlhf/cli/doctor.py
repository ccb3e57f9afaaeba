"""`score-openrlhf doctor [CONFIG]`: this machine and a configuration in; what works, what does not and its mend, out.

Exit status: 0 no fault (warnings allowed), 1 a fault. It starts nothing and changes nothing.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from typing import Any

from score_openrlhf.cli.words import add_words
from score_openrlhf.config.schema import Config
from score_openrlhf.doctor.row import FAULT, OK, WARNING, Row, rows_of

COLORS = {OK: "green", WARNING: "yellow", FAULT: "bold red"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Check Python, GPUs, compilers, packages, disks and network, and for CONFIG its models, data and "
        "output folder. Exit status 1 where something cannot work."
    )
    add_words(
        parser, "CONFIG | key=value",
        "a YAML file, e.g. configs/rl_guided_score_math.yaml; overrides such as model_path=/models/qwen",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print the findings as JSON and nothing else on stdout")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Check and print; returns the exit status."""
    rows = diagnose(args.config, args.overrides)
    counts = {status: sum(row.status == status for row in rows) for status in COLORS}
    if args.json:
        record: dict[str, Any] = {"ok": not counts[FAULT], "counts": counts}
        print(json.dumps({**record, "rows": [dataclasses.asdict(row) for row in rows]}, indent=1))
    else:
        show(rows, counts)
    return 1 if counts[FAULT] else 0


def diagnose(config: str | None, overrides: list[str]) -> list[Row]:
    """Every row, those of the configuration last."""
    from score_openrlhf.doctor import gpus, host, packages
    from score_openrlhf.doctor.imports import try_imports

    rows = list(rows_of("Python", packages.python))
    imports = try_imports(packages.modules())
    cfg: Config | None = None
    of_config: list[Row] = []
    if config is not None:
        cfg, of_config = _configuration(config, overrides)
    attention = cfg.ds.attn_implementation if cfg is not None else None
    output = cfg.output_dir if cfg is not None else "."
    checks: tuple[tuple[Any, ...], ...] = (
        ("packages", packages.packages, imports),
        ("GPUs", gpus.devices, imports["torch"]),
        ("driver", gpus.driver, imports["torch"]),
        ("compilers", gpus.compilers, imports["torch"]),
        ("flash-attn", gpus.flash_attention, imports, attention),
        ("DeepSpeed Adam", gpus.operators, imports["deepspeed"]),
        ("Ray cluster", host.ray_beside, imports["ray"]),
        ("memory", host.memory),
        ("shared memory", host.shared_memory),
        ("disk", host.disks, {"disk": output, "temporary files": host.temporary(), "HF disk": host.hub_cache()}),
        ("ulimit", host.limits),
        ("network", host.network),
        ("HF cache", host.hub),
    )
    rows += [row for name, check, *given in checks for row in rows_of(name, check, *given)]
    rows += of_config
    if cfg is not None:
        from score_openrlhf.doctor import run_config

        checks = (
            ("models", run_config.models, cfg),
            ("data", run_config.data, cfg),
            ("output_dir", run_config.output_folder, cfg),
            ("GPUs of the run", run_config.plan, cfg, imports["torch"]),
        )
        rows += [row for name, check, *given in checks for row in rows_of(name, check, *given)]
    return rows


def _configuration(config: str, overrides: list[str]) -> tuple[Any, list[Row]]:
    """The configuration and its rows; a fault where what reads configurations cannot be imported."""
    found: list[Any] = [None]

    def check() -> list[Row]:
        from score_openrlhf.doctor.run_config import configuration

        found[0], rows = configuration(config, overrides)
        return rows

    rows = list(rows_of("configuration", check))
    return found[0], rows


def show(rows: list[Row], counts: dict[str, int]) -> None:
    """The table, and one line that sums it up."""
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = max(console.width, 130)
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in ("", "check", "found", "mend"):
        table.add_column(column, overflow="fold", no_wrap=column in ("", "check"))
    for row in rows:
        table.add_row(f"[{COLORS[row.status]}]{row.status}[/]", row.name, escape(row.found), escape(row.mend))
    console.print(table)
    words = f"{counts[FAULT]} faults, {counts[WARNING]} warnings, {counts[OK]} ok"
    console.print(f"[{COLORS[FAULT if counts[FAULT] else OK]}]{words}[/]", soft_wrap=True)

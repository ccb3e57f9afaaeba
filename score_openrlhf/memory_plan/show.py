"""A memory plan in; its record for JSON, and the tables a person reads, out."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

from score_openrlhf.config.compose import Resolved
from score_openrlhf.config.derive import has_guidance, method_of
from score_openrlhf.config.host_args import host_args
from score_openrlhf.config.host_defaults import HOST_DEFAULTS
from score_openrlhf.config.keys import keys, value_of
from score_openrlhf.config.policies import learning_specs, policy_specs, spec_of
from score_openrlhf.config.schema import Config
from score_openrlhf.config.sizes import sizes
from score_openrlhf.config.stages import num_steps
from score_openrlhf.memory_plan.advice import Advice
from score_openrlhf.memory_plan.footprint import GIB
from score_openrlhf.memory_plan.plan import MemoryPlan

FILE_WIDTH = 130  # columns where the output is no terminal
# Columns of the memory table -> the parts they add up
COLUMNS = {
    "weights": ("weights", "gathered weights"),
    "gradients": ("gradients", "reduce bucket", "reduction"),
    "optimizer": ("optimizer", "optimizer step"),
    "activations": ("activations",),
    "logits": ("logits",),
    "engines": ("engine weights", "engine workspace"),
    "KV cache": ("KV cache",),
    "sync": ("sync buffers",),
    "overhead": ("contexts", "fragmentation"),
}


def plan_record(resolved: Resolved, plan: MemoryPlan, advice: list[Advice], notes: list[str]) -> dict[str, Any]:
    """The plan as JSON's types; sizes in bytes."""
    cfg = resolved.cfg
    learning = [spec.name for spec in learning_specs(cfg)]
    starts = {spec.name: spec.start for spec in policy_specs(cfg)}
    return {
        "fits": plan.fits,
        "problems": list(plan.problems),
        "advice": [dataclasses.asdict(item) for item in advice],
        "notes": notes,
        "method": method_of(cfg),
        "cluster": dataclasses.asdict(plan.cluster),
        "roles": _roles(plan),
        "phases": [
            {
                "name": phase.name,
                "where": phase.where,
                "roles": phase.roles,
                "num_gpus": phase.num_gpus,
                "parts_bytes": phase.parts(),
                "total_bytes": phase.total,
                "fits": phase.fits,
            }
            for phase in plan.phases
        ],
        "models": {
            policy: {
                "path": starts[policy],
                "num_params": known.shape.num_params,
                "source": known.source,
                **dataclasses.asdict(known.shape),
            }
            for policy, known in plan.shapes.items()
        },
        "engines": {
            policy: {
                "kv_cache_bytes": engine.kv_cache(),
                "kv_tokens": engine.kv_tokens(),
                "longest_sequences_at_once": engine.kv_tokens() // cfg.data.max_len,
            }
            for policy, engine in plan.engines.items()
        },
        "batches": {policy: dataclasses.asdict(sizes(cfg, policy)) for policy in learning},
        "tokens": _tokens(cfg),
        "config": {name: {"value": _plain(value_of(cfg, name)), "source": resolved.sources[name]} for name in keys()},
        "host_arguments": {policy: host_differences(cfg, policy) for policy in learning},
    }


def _roles(plan: MemoryPlan) -> list[dict[str, Any]]:
    """Each role with its model and GPUs, numbered in the order in which the roles are placed."""
    roles, first = [], 0
    for role in plan.placement.roles.values():
        roles.append(
            {
                "name": role.name,
                "num_params": plan.shapes[role.policy].shape.num_params,
                "num_nodes": role.num_nodes,
                "num_gpus": role.num_gpus,
                "gpus": [first, first + role.num_gpus - 1],  # the first and the last
                "fraction": plan.placement.fraction,
                "host_bytes": plan.host_bytes[role.name],
            }
        )
        first += 0 if plan.placement.colocate else role.num_gpus
    return roles


def _tokens(cfg: Config) -> dict[str, int]:
    """Sampled tokens if every text takes its whole budget, of a step and of the run."""
    attempts = cfg.rollout.batch_size * cfg.rollout.n_samples_per_prompt
    revisions = attempts * cfg.guidance_samples
    per_step = {
        "attempts": attempts * cfg.rollout.attempt_max_tokens,
        "guidances": revisions * cfg.rollout.guidance_max_tokens if has_guidance(cfg) else 0,
        "revisions": revisions * cfg.rollout.revision_max_tokens,
    }
    total = sum(per_step.values())
    return {**per_step, "per_step": total, "num_steps": num_steps(cfg), "run": total * num_steps(cfg)}


def host_differences(cfg: Config, policy: str) -> dict[str, dict[str, Any]]:
    """The host's arguments of `policy` that differ from its own defaults: dest -> value and default."""
    model = spec_of(cfg, policy).start
    assert model is not None
    values = dict(_flat(host_args(cfg, policy, checkpoint_path="", model_path=model)))
    return {
        dest: {"value": _plain(values[dest]), "default": _plain(default)}
        for dest, default in HOST_DEFAULTS.items()
        if _plain(values[dest]) != _plain(default)
    }


def _flat(node: SimpleNamespace, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in vars(node).items():
        if isinstance(value, SimpleNamespace):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _plain(value: Any) -> Any:
    """JSON has no infinity and no tuples."""
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def show_plan(record: dict[str, Any], *, full: bool) -> None:
    """Print the tables, the verdict last."""
    from rich.console import Console
    from rich.markup import escape

    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = max(console.width, FILE_WIDTH)
    for table in (_config_table(record, full), _host_table(record), _role_table(record), _memory_table(record)):
        console.print(table)
    for line in _lines(record):
        console.print(escape(line), soft_wrap=True)
    for note in record["notes"]:
        console.print(f"[yellow]note:[/yellow] {escape(note)}", soft_wrap=True)
    color = "green" if record["fits"] else "red"
    first, *others = _verdict(record)
    console.print(f"[bold {color}]{escape(first)}[/bold {color}]", soft_wrap=True)
    for line in others:
        console.print(escape(line), soft_wrap=True)


def _verdict(record: dict[str, Any]) -> Iterator[str]:
    cluster, fullest = record["cluster"], max(record["phases"], key=lambda phase: phase["total_bytes"])
    there = f"{cluster['num_nodes']} x {cluster['gpus_per_node']} GPUs of {_gib(cluster['gpu_memory'])} GiB"
    if record["fits"]:
        yield f"fits {there}"
        yield f"the fullest GPU holds {_gib(fullest['total_bytes'])} GiB ({fullest['name']} on {fullest['where']})"
        return
    yield f"does not fit {there}"
    yield from (f"  - {problem}" for problem in record["problems"])
    if record["advice"]:
        yield "it fits with any of"
        for advice in record["advice"]:
            yield f"  - {' '.join(advice['overrides'])}  (then {_gib(advice['peak_bytes'])} GiB)"
    else:
        yield (
            "no change of batches, offload, engines or placement makes it fit: take more or larger GPUs, a smaller "
            "model, or LoRA (ds.lora.rank=32)"
        )


def _config_table(record: dict[str, Any], full: bool):
    shown = {name: row for name, row in record["config"].items() if full or row["source"] != "default"}
    hidden = len(record["config"]) - len(shown)
    table = _table("configuration", "key", "value", "source")
    for name, row in shown.items():
        table.add_row(name, _cell(row["value"]), row["source"])
    table.caption = f"{hidden} further keys have their defaults; --full shows them" if hidden else None
    return table


def _host_table(record: dict[str, Any]):
    policies = record["host_arguments"]
    table = _table("OpenRLHF's arguments where they are not its defaults", "argument", "default", *policies)
    defaults = {dest: row["default"] for rows in policies.values() for dest, row in rows.items()}
    for dest in sorted(defaults):
        values = [rows[dest]["value"] if dest in rows else defaults[dest] for rows in policies.values()]
        table.add_row(dest, _cell(defaults[dest]), *map(_cell, values))
    return table


def _role_table(record: dict[str, Any]):
    table = _table("roles on GPUs", "role", "parameters", "nodes", "number", "GPUs", "share", "host GiB")
    for role in record["roles"]:
        first, last = role["gpus"]
        table.add_row(
            role["name"],
            f"{role['num_params']:,}",
            str(role["num_nodes"]),
            str(role["num_gpus"]),
            str(first) if first == last else f"{first} to {last}",
            f"{role['fraction']:g}",
            _gib(role["host_bytes"]) if role["host_bytes"] else "",
        )
    return table


def _memory_table(record: dict[str, Any]):
    """One row for the phases in which the same GPUs hold the same; columns that are empty throughout are left out."""
    merged: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for phase in record["phases"]:
        merged.setdefault((phase["where"], str(phase["parts_bytes"])), []).append(phase)
    used = {name for phase in record["phases"] for name in phase["parts_bytes"]}
    columns = {column: names for column, names in COLUMNS.items() if used.intersection(names)}
    table = _table("memory of one GPU, GiB", "GPUs", "phase", *columns, "total")
    before = None
    for (where, _), phases in merged.items():
        parts = phases[0]["parts_bytes"]
        column_sizes = [sum(parts.get(name, 0) for name in names) for names in columns.values()]
        total = _gib(phases[0]["total_bytes"])
        table.add_row(
            where.removeprefix("the GPUs of ").removeprefix("the ") if where != before else "",
            ", ".join(phase["name"] for phase in phases),
            *(_gib(size) if size else "" for size in column_sizes),
            total if phases[0]["fits"] else f"[bold red]{total}[/bold red]",
        )
        before = where
    return table


def _lines(record: dict[str, Any]) -> Iterator[str]:
    for policy, model in record["models"].items():
        engine = record["engines"][policy]
        yield (
            f"{policy}: {model['path']}, {model['num_params']:,} parameters ({model['source']}); an engine's cache "
            f"holds {engine['kv_tokens']:,} tokens, {engine['longest_sequences_at_once']:,} sequences of data.max_len"
        )
    for policy, batch in record["batches"].items():
        yield (
            f"{policy}: {batch['trajectories_per_step']} trajectories a step, padded to {batch['padded_rows']} rows; "
            f"ranks {batch['ranks']}; optimizer steps an update {batch['optimizer_steps_per_update']}, of "
            f"{batch['train_batch_size']} rows each; updates {batch['num_updates']}"
        )
    tokens = record["tokens"]
    yield (
        f"at most {tokens['per_step']:,} tokens sampled a step (attempts {tokens['attempts']:,}, guidances "
        f"{tokens['guidances']:,}, revisions {tokens['revisions']:,}); {tokens['run']:,} in the run's "
        f"{tokens['num_steps']} steps"
    )


def _table(title: str, *columns: str):
    from rich import box
    from rich.table import Table

    table = Table(title=title, title_justify="left", caption_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    numbers = {*COLUMNS, "total", "parameters", "nodes", "number", "share", "host GiB"}
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if column in numbers else "left", overflow="fold", no_wrap=index == 0)
    return table


def _cell(value: Any) -> str:
    from rich.markup import escape

    return "null" if value is None else escape(str(value).lower() if isinstance(value, bool) else str(value))


def _gib(size: int) -> str:
    return f"{size / GIB:.1f}" if size >= 0.05 * GIB else f"{size / GIB:.2g}"

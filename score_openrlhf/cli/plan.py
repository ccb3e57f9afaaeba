"""`score-openrlhf plan CONFIG [key=value ...]`: a configuration in; roles, memory and whether it fits, out.

Exit status: 0 it fits, 1 it does not, 2 the configuration is wrong. It needs no GPU and no
model, imports no torch and opens no connection.
"""

from __future__ import annotations

import argparse
import json
import re

from score_openrlhf.cli.words import add_config
from score_openrlhf.config.compose import Resolved, load_config
from score_openrlhf.config.machine import missing_packages
from score_openrlhf.config.model_code import untrusted_code
from score_openrlhf.config.paths import paths
from score_openrlhf.config.validate import validate, warnings
from score_openrlhf.errors import UserError
from score_openrlhf.memory_plan.advice import advise
from score_openrlhf.memory_plan.footprint import GIB, GPU_MEMORY
from score_openrlhf.memory_plan.plan import Cluster, default_cluster, model_shapes, plan_memory

UNITS = {
    "B": 1,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KIB": 2**10,
    "MIB": 2**20,
    "GIB": GIB,
    "TIB": 2**40,
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config(parser, "actor.num_gpus_per_node=4")
    add_cluster_arguments(parser)
    parser.add_argument("--full", action="store_true", help="show every key of the configuration, defaults included")
    parser.add_argument("--json", action="store_true", help="print the plan as JSON and nothing else on stdout")
    parser.set_defaults(run=run)


def add_cluster_arguments(parser: argparse._ActionsContainer) -> None:
    """What there is to run on."""
    parser.add_argument("--gpus", type=_count, metavar="N", help="GPUs of a node; without it as many as are asked for")
    parser.add_argument("--nodes", type=_count, metavar="M", help="nodes; without it as many as are asked for")
    parser.add_argument(
        "--gpu-memory",
        type=_memory,
        default=GPU_MEMORY,
        metavar="78GiB",
        help="memory of one GPU that programs can have; without it 78GiB, what cards sold as 80 GB give",
    )


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no count: give a whole number, 1 or more")
    return int(text)


def _memory(text: str) -> int:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)", text.strip())
    unit = (match[2] or "GiB").upper() if match else ""
    if not match or unit not in UNITS or float(match[1]) <= 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no size: give a number and a unit, such as 80GiB or 40GB")
    return int(float(match[1]) * UNITS[unit])


def run(args: argparse.Namespace) -> int:
    """Plan; returns the exit status."""
    resolved = load_config(args.config, args.overrides)
    validate(resolved.cfg, check_paths=False)  # the run's machine has them, this one need not
    if not resolved.cfg.model_path:
        raise UserError("model_path is not set: give the solver's model, model_path=<directory or hub name>")
    return show(resolved, args, full=getattr(args, "full", False), as_json=args.json)


def show(resolved: Resolved, args: argparse.Namespace, *, full: bool = False, as_json: bool = False) -> int:
    """Print the plan of a validated configuration for `args.gpus`, `.nodes` and `.gpu_memory`; returns 0 or 1.

    Raises ConfigError where a model's shape is not known.
    """
    from score_openrlhf.memory_plan.show import plan_record, show_plan

    cfg = resolved.cfg
    asked = default_cluster(cfg, args.gpu_memory)
    num_nodes = args.nodes or asked.num_nodes
    gpus_per_node = args.gpus or -(-asked.num_gpus // num_nodes)
    cluster = Cluster(num_nodes, gpus_per_node, args.gpu_memory)
    plan = plan_memory(cfg, cluster, model_shapes(cfg))
    advice = [] if plan.fits else advise(cfg, cluster, plan)
    here = (*missing_packages(cfg), *paths(cfg))
    notes = [*warnings(cfg), *(f"not on this machine: {problem}" for problem in here), *untrusted_code(cfg)]
    record = plan_record(resolved, plan, advice, notes)
    if as_json:
        print(json.dumps(record, indent=1, allow_nan=False))
    else:
        show_plan(record, full=full)
    return 0 if plan.fits else 1

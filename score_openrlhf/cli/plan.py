"""`score-openrlhf plan CONFIG [key=value ...]`: a configuration in; roles, memory and whether it fits, out.

Exit status: 0 it fits, 1 it does not, 2 the configuration is wrong. It needs no GPU and no
model, imports no torch and opens no connection.
"""

from __future__ import annotations

import argparse
import json
import re
import sys

from score_openrlhf.config.compose import Resolved, load_config
from score_openrlhf.config.memory import GIB
from score_openrlhf.config.paths import paths
from score_openrlhf.config.validate import validate, warnings
from score_openrlhf.policies.advice import advise
from score_openrlhf.policies.memory import Cluster, default_cluster, model_shapes, plan_memory

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


def add_parser(subparsers) -> None:
    """Adds `plan` to the command's parser."""
    parser = subparsers.add_parser("plan", help="show roles, memory and arguments of a run, and whether it fits")
    parser.add_argument("config", help="a YAML file, e.g. configs/rl_guided_score_7b_8gpu.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="e.g. actor.num_gpus_per_node=4")
    add_cluster_arguments(parser)
    parser.add_argument("--full", action="store_true", help="show every key of the configuration, defaults included")
    parser.add_argument("--json", action="store_true", help="print the plan as JSON and nothing else on stdout")
    parser.set_defaults(run=run)


def add_cluster_arguments(parser: argparse._ActionsContainer) -> None:
    """What there is to run on."""
    parser.add_argument("--gpus", type=_count, metavar="N", help="GPUs of a node; without it as many as are asked for")
    parser.add_argument("--nodes", type=_count, metavar="M", help="nodes; without it as many as are asked for")
    parser.add_argument("--gpu-memory", type=_memory, default=80 * GIB, metavar="80GiB", help="memory of one GPU")


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
    try:
        resolved = load_config(args.config, args.overrides)
        validate(resolved.cfg, check_paths=False)  # the run's machine has them, this one need not
        if not resolved.cfg.model_path:
            raise ValueError("model_path is not set: give the solver's model, model_path=<directory or hub name>")
        return show(resolved, args, full=getattr(args, "full", False), as_json=args.json)
    except ValueError as error:  # ConfigError included: the user's to mend, so no traceback
        print(f"score-openrlhf: {error}", file=sys.stderr)
        return 2


def show(resolved: Resolved, args: argparse.Namespace, *, full: bool = False, as_json: bool = False) -> int:
    """Print the plan of a validated configuration for `args.gpus`, `.nodes` and `.gpu_memory`; returns 0 or 1.

    Raises ConfigError where a model's shape is not known.
    """
    from score_openrlhf.report.plan import plan_record, show_plan

    cfg = resolved.cfg
    asked = default_cluster(cfg, args.gpu_memory)
    num_nodes = args.nodes or asked.num_nodes
    gpus_per_node = args.gpus or -(-asked.num_gpus // num_nodes)
    cluster = Cluster(num_nodes, gpus_per_node, args.gpu_memory)
    plan = plan_memory(cfg, cluster, model_shapes(cfg))
    advice = [] if plan.fits else advise(cfg, cluster, plan)
    notes = [*warnings(cfg), *(f"not on this machine: {problem}" for problem in paths(cfg))]
    record = plan_record(resolved, plan, advice, notes)
    if as_json:
        print(json.dumps(record, indent=1, allow_nan=False))
    else:
        show_plan(record, full=full)
    return 0 if plan.fits else 1

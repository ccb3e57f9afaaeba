"""OpenRLHF's own command line in, its unmodified run on this machine out.

    python -m score_openrlhf.platform.run_host -- --actor.model_name_or_path MODEL --data.prompt_dataset DATA ...
    python -m score_openrlhf.platform.run_host --num-gpus 4 --module openrlhf.cli.train_ppo_ray -- ...

What follows `--` goes to the module unchanged. On CPU machines Ray is started first, with logical GPUs; on CUDA
machines this is the same as `python -m MODULE ...`.
"""

from __future__ import annotations

import argparse
import runpy
import sys
from collections.abc import Sequence

from score_openrlhf import platform


def main(argv: Sequence[str] | None = None) -> None:
    """Run an OpenRLHF command; `argv` is that of the process by default."""
    parser = argparse.ArgumentParser(
        prog="python -m score_openrlhf.platform.run_host",
        description="Run OpenRLHF's own commands, on a CPU machine too.",
    )
    parser.add_argument("--module", default="openrlhf.cli.train_ppo_ray", help="OpenRLHF's module to run.")
    parser.add_argument("--num-gpus", type=int, default=8, help="Logical GPUs on a CPU machine.")
    parser.add_argument("arguments", nargs="*", help="Arguments of the module, after --.")
    args = parser.parse_args(argv)
    platform.activate()
    if platform.is_cpu():
        platform.start_fork_server()
        platform.start_ray(args.num_gpus)
    sys.argv = [args.module, *args.arguments]
    runpy.run_module(args.module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()

"""A configuration in; tokens per second of the rollout, and of the bare engines on the same requests, out.

    python -m benchmarks.rollout CONFIG [key=value ...] [--repeats 3]

The limit is vLLM itself: the prompts and the numbers of tokens of a collected step, given to both models' engines at
once and without a client in between. What a trajectory needs beyond that (log-probs, a seed for every request, attempt
before hint before revision, grading, the way through Ray) shows as the ratio to it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import ray
from rich.console import Console
from rich.table import Table
from vllm import SamplingParams

from score_openrlhf import platform
from score_openrlhf.cli.words import add_config
from score_openrlhf.cluster.session import ray_session
from score_openrlhf.config.compose import load_config
from score_openrlhf.config.derive import has_guidance
from score_openrlhf.config.methods import SOLVER
from score_openrlhf.evaluation.session import sampling_config
from score_openrlhf.policies import engines as engines_module
from score_openrlhf.policies.build import prepare_executors, start_engines
from score_openrlhf.preflight.inputs import load_problems, templates_of
from score_openrlhf.rollout.executor import SamplingPlan
from score_openrlhf.rollout.generator import collect, collect_phased
from score_openrlhf.rollout.metrics import num_sampled_tokens
from score_openrlhf.rollout.trajectory import Trajectory
from score_openrlhf.tasks import make_task

Request = tuple[list[int], int]  # prompt, tokens to sample
Work = list[tuple[int, list[Request]]]  # phase after phase: which model's engines, and its requests


class _MeasuredActor(engines_module._RolloutActor):
    """A rollout actor whose engine can also be given requests with nothing around them."""

    async def replay(self, requests: list[Request], as_training: bool) -> None:
        """Sample exactly the asked-for tokens of all requests, side by side."""
        extra = [dict(logprobs=0, seed=seed) if as_training else {} for seed in range(len(requests))]
        await asyncio.gather(
            *(
                self.generate(prompt, SamplingParams(max_tokens=length, ignore_eos=True, detokenize=False, **options))
                for (prompt, length), options in zip(requests, extra, strict=True)
            )
        )


@dataclass
class Measured:
    """One way of sampling a step's tokens."""

    name: str
    seconds: list[float]
    tokens: int

    @property
    def rate(self) -> float:
        return self.tokens / median(self.seconds)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_config(parser, "rollout.revision_max_tokens=64")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_intermixed_args(argv)
    platform.start_fork_server()
    console = Console(stderr=args.json)
    cfg = sampling_config(load_config(args.config, args.overrides), need_problems=False)
    task = make_task(cfg.task.name)
    problems = load_problems(task, cfg, "train")[: cfg.rollout.batch_size]
    plan = SamplingPlan(
        purpose="train", seed=cfg.seed, step=0, num_attempts=cfg.rollout.n_samples_per_prompt,
        num_guidances=cfg.guidance_samples, temperature=cfg.rollout.temperature,
        guidance_temperature=cfg.rollout.guidance_temperature, attempt_max_tokens=cfg.rollout.attempt_max_tokens,
        guidance_max_tokens=cfg.rollout.guidance_max_tokens, revision_max_tokens=cfg.rollout.revision_max_tokens,
        max_len=cfg.data.max_len,
    )  # fmt: skip
    engines_module.RolloutActor = ray.remote(_MeasuredActor)
    with ray_session(cfg, 16, Path(cfg.output_dir), console):
        engines = start_engines(cfg)
        ray.get(prepare_executors(cfg, templates_of(cfg, task), engines))
        limit = dict(max_failed_fraction=cfg.rollout.max_failed_fraction)
        solver, groups = engines[SOLVER], [each.handles for each in engines.values()]

        def rollout(plan: SamplingPlan) -> list[Trajectory]:
            return collect(solver.handles, problems, plan, **limit)

        def phased(plan: SamplingPlan) -> list[Trajectory]:
            return collect_phased(
                solver.handles, problems, plan, guided=has_guidance(cfg), awake=lambda name: nullcontext(), **limit
            )

        def replay(work: Work, as_training: bool) -> None:
            ray.get(
                [
                    handle.replay.remote(requests[index :: len(groups[model])], as_training)
                    for model, requests in work
                    for index, handle in enumerate(groups[model])
                ]
            )

        trajectories = rollout(plan)  # warms up
        phases = requests_of(trajectories)
        replay(phases, False), replay(phases, True), phased(plan)
        tokens = sum(num_sampled_tokens(trajectories).values())
        ways: dict[str, Callable[[], Any]] = {
            "bare engines": lambda: replay(phases, False),
            "bare engines, log-probs and seeds": lambda: replay(phases, True),
            "the same, one phase after the other": lambda: [replay([phase], True) for phase in phases] and None,
            "rollout, pipelined": lambda: rollout(plan),
            "rollout, phased": lambda: phased(plan),
            "rollout, pipelined, without seeds": lambda: rollout(replace(plan, seed_requests=False)),
        }
        measured = [Measured(name, [], tokens) for name in ways]
        for _ in range(args.repeats):  # the ways take turns, so that a slow spell of the machine meets all
            for each in measured:
                for handles in groups:
                    ray.get([handle.reset_prefix_cache.remote() for handle in handles])
                start = time.perf_counter()
                done = ways[each.name]()
                each.seconds.append(time.perf_counter() - start)
                if done is not None:
                    each.tokens = sum(num_sampled_tokens(done).values())
    show(console, measured, len(trajectories), sum(len(requests) for _, requests in phases), as_json=args.json)
    return 0


def requests_of(trajectories: Sequence[Trajectory]) -> Work:
    """What the solver's (0) and the guidance model's (1) engines were asked for, each shared attempt once."""
    attempts = {t.attempt_key: (t.prompt_ids, len(t.attempt.token_ids)) for t in trajectories if t.attempt}
    revisions = [
        (t.prompt_ids + t.attempt.token_ids + t.bridge_ids, len(t.revision.token_ids))
        for t in trajectories
        if t.attempt and t.revision
    ]
    hints = [(t.guidance_prompt_ids, len(t.guidance.token_ids)) for t in trajectories if t.guidance]
    phases = [(0, list(attempts.values())), (1, hints), (0, revisions)]
    return [(model, requests) for model, requests in phases if requests]


def show(console: Console, measured: list[Measured], trajectories: int, requests: int, *, as_json: bool) -> None:
    """The table, or the same as JSON on stdout."""
    limit = measured[0].rate
    if as_json:
        rows = [{"way": m.name, "tokens": m.tokens, "seconds": m.seconds, "ratio": m.rate / limit} for m in measured]
        print(json.dumps({"trajectories": trajectories, "requests": requests, "ways": rows}))
        return
    table = Table(title=f"{trajectories} trajectories, {requests} requests; the median of {len(measured[0].seconds)}")
    for column in ("", "tokens", "seconds", "tokens/s", "of the limit"):
        table.add_column(column, justify="left" if not column else "right")
    for each in measured:
        table.add_row(
            each.name, str(each.tokens), f"{median(each.seconds):.2f}", f"{each.rate:.0f}", f"{each.rate / limit:.2f}"
        )
    console.print(table)


if __name__ == "__main__":
    sys.exit(main())

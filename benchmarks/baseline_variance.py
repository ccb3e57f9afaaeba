"""Nothing in; the mean squared advantage of turn 2 under each baseline in five simulated worlds, as a table, out.

    python -m benchmarks.baseline_variance [--batches 200]

With many tokens a revision's score hardly depends on its reward, so the gradient's variance goes with `E[A2^2]`.
A world says how often an attempt and its revision are right; alpha is 10, a batch 32 problems x N attempts x K
revisions. `oracle` knows the true rate of each state, which no baseline can.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from score_openrlhf import objective as o

ALPHA, NUM_PROBLEMS = 10.0, 32
SIZES = ((2, 1), (4, 1), (8, 1), (2, 4), (4, 4))


def _random(like: Tensor) -> Tensor:
    return torch.rand(len(like), 1, dtype=torch.float64).expand_as(like)


# p1 (problems, N): how often the problem's attempts are right; r1 (problems, N): whether this one is -> the revision's
WORLDS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "coupled": lambda p1, r1: torch.where(r1 == 1, 0.75 + 0.24 * p1, 0.02 + 0.3 * p1),
    "loose": lambda p1, r1: torch.where(r1 == 1, 0.35 + 0.4 * p1, 0.15 + 0.5 * p1),
    "flat": lambda p1, r1: torch.where(r1 == 1, 0.9, 0.1).double(),
    "hard": lambda p1, r1: torch.where(r1 == 1, 0.93, torch.where(_random(p1) < 0.2, 0.6, 0.02)).double(),
    "by problem": lambda p1, r1: torch.where(_random(p1) < 0.5, 0.95, 0.05).double(),
}


def advantages(world: str, num_attempts: int, num_revisions: int) -> dict[str, Tensor]:
    """Turn 2's advantages (rows,) of one random batch under each baseline."""
    p1 = torch.distributions.Beta(0.6, 0.6).sample((NUM_PROBLEMS, 1)).double().expand(-1, num_attempts)
    r1 = torch.bernoulli(p1)
    rate = WORLDS[world](p1, r1)
    r1, rate = (x[..., None].expand(-1, -1, num_revisions).flatten() for x in (r1, rate))
    r2 = torch.bernoulli(rate)
    group = torch.arange(NUM_PROBLEMS).repeat_interleave(num_attempts * num_revisions)
    unit = torch.arange(num_attempts).repeat_interleave(num_revisions).repeat(NUM_PROBLEMS)
    _, G2 = o.turn_rewards(r1, r2, stage=2, alpha=ALPHA)
    scale = 1 + ALPHA
    return {
        "none": G2,
        "leave-one-out of G2": G2 - o.baseline(G2, group, kind="leave_one_out", unit=unit),
        "leave-one-out of r2, r1 exact": scale * (r2 - o.baseline(r2, group, kind="leave_one_out", unit=unit)),
        "state value": scale * (r2 - o.state_value(r2, group, unit, r1)),
        "oracle": scale * (r2 - rate),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batches", type=int, default=200, help="simulated batches of each case")
    args = parser.parse_args()
    torch.manual_seed(0)
    table = Table()
    for world in WORLDS:
        for num_attempts, num_revisions in SIZES:
            sums: dict[str, float] = {}
            for _ in range(args.batches):
                for name, A2 in advantages(world, num_attempts, num_revisions).items():
                    sums[name] = sums.get(name, 0.0) + float(A2.square().mean()) / args.batches
            if not table.columns:
                for name in ("world", "N", "K", *sums):
                    table.add_column(name, justify="right")
            table.add_row(world, str(num_attempts), str(num_revisions), *(f"{value:.1f}" for value in sums.values()))
    Console(width=140).print(table)


if __name__ == "__main__":
    main()

"""A frozen pair of models in; how much both policies' gradients vary from batch to batch, by baseline, as a table out.

    python -m benchmarks.gradient_variance [--solver M --guidance M] [--batches 30] [--output runs/gradient_variance]

The real stack collects the batches of configs/playground.yaml from the pair (learning rates 0). Of each batch the
gradient of the policy loss is computed once a baseline: `old` is leave-one-out for turn 2 and for the guidance model,
`new` the state value for both. The pair is its own reference, so the KL is 0. Variance is the trace of the covariance
over the batches, signal the squared length of the mean gradient less the variance of that mean.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from transformers import AutoModelForCausalLM

from score_openrlhf import objective as o
from score_openrlhf.cli import main as command

CONFIG = "configs/playground.yaml"
Texts = list[tuple[list[int], list[int]]]  # context and sampled tokens of each row


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--solver", help="a model folder; default: the playground's base model")
    parser.add_argument("--guidance", help="a model folder; default: the playground's base model")
    parser.add_argument("--batches", type=int, default=30)
    parser.add_argument("--alphas", default="1,10", help="stage II's bonus weights")
    parser.add_argument("--output", default="runs/gradient_variance")
    args = parser.parse_args()
    folder = Path(args.output)
    words = [f"output_dir={folder}", "actor.adam.lr=0", "guidance_lr=0", f"stage2_steps={args.batches}", "seed=17"]
    words += ["start_stage=2", "stage1_steps=0", "eval.before_and_after=false", "ckpt.save_steps=-1"]
    words += [f"model_path={args.solver}"] if args.solver else []
    words += [f"guidance_model_path={args.guidance}"] if args.guidance else []
    if not (folder / "summary.json").is_file() and (status := command(["playground", CONFIG, *words])):
        return status
    batches = [read(path) for path in sorted((folder / "trajectories").glob("step_*.jsonl"))]
    rows = []
    # with learning rates of 0 what was exported is what sampled
    solver, guidance = (AutoModelForCausalLM.from_pretrained(folder / name) for name in ("solver", "guidance"))
    for alpha in (float(word) for word in args.alphas.split(",")):
        for name, A2 in turn_2(alpha).items():
            found = [gradient(solver, solver_texts(b), [b["r1"] - loo(b["r1"], b), A2(b)]) for b in batches]
            rows.append({"policy": "solver", "alpha": f"{alpha:g}", "baseline": name, **spread(found)})
    for name, A in HINTS.items():
        found = [gradient(guidance, [texts_of(b, "guidance_prompt_ids", "guidance")], [A(b)]) for b in batches]
        rows.append({"policy": "guidance", "alpha": "", "baseline": name, **spread(found)})
    (folder / "gradient_variance.json").write_text(json.dumps(rows, indent=1) + "\n")
    table = Table(title=f"{len(batches)} batches of {len(batches[0]['r1'])} trajectories")
    for name in rows[0]:
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(*(f"{value:.3g}" if isinstance(value, float) else value for value in row.values()))
    Console(width=120).print(table)
    return 0


def read(path: Path) -> dict[str, Any]:
    """The usable trajectories of one step, with their grades (B,) and ids (B,) as tensors."""
    lines = [json.loads(line) for line in path.open()]
    rows = [line for line in lines if line["failure"] is None and line["masked"] is None]
    names = ("r1", "r2", "group", "attempt_index")
    return {"rows": rows, **{name: torch.tensor([row[name] for row in rows]) for name in names}}


def loo(values: Tensor, batch: dict[str, Any]) -> Tensor:
    return o.baseline(values, batch["group"], kind="leave_one_out", unit=batch["attempt_index"])


def state_value(batch: dict[str, Any]) -> Tensor:
    return o.state_value(batch["r2"], batch["group"], batch["attempt_index"], batch["r1"])


def turn_2(alpha: float) -> dict[str, Callable[[dict[str, Any]], Tensor]]:
    """Advantages (B,) of stage II's turn 2 by baseline."""

    def old(batch: dict[str, Any]) -> Tensor:
        _, G2 = o.turn_rewards(batch["r1"], batch["r2"], stage=2, alpha=alpha)
        return G2 - loo(G2, batch)

    return {"old": old, "new": lambda batch: (1 + alpha) * (batch["r2"] - state_value(batch))}


def _old_hints(batch: dict[str, Any]) -> Tensor:
    # an attempt is known by its problem and its number; K guidances each
    state = batch["group"] * (int(batch["attempt_index"].max()) + 1) + batch["attempt_index"]
    return batch["r2"] - o.guidance_baseline(batch["r2"], state, batch["r1"], kind="leave_one_out")


HINTS: dict[str, Callable[[dict[str, Any]], Tensor]] = {
    "old": _old_hints,
    "new": lambda batch: batch["r2"] - state_value(batch),
}


def texts_of(batch: dict[str, Any], context: str, sample: str) -> Texts:
    return [(row[context], row[sample]["token_ids"]) for row in batch["rows"]]


def solver_texts(batch: dict[str, Any]) -> list[Texts]:
    """Attempts, and revisions in the context they were sampled in."""
    second = [
        (row["prompt_ids"] + row["attempt"]["token_ids"] + row["bridge_ids"], row["revision"]["token_ids"])
        for row in batch["rows"]
    ]
    return [texts_of(batch, "prompt_ids", "attempt"), second]


def gradient(model: Any, turns: Iterable[Texts], advantages: Iterable[Tensor]) -> Tensor:
    """Gradient (P,) of `-1/T sum_j A_j log pi_j` over the T sampled tokens of all turns."""
    total, num_tokens = torch.zeros(()), 0
    for texts, A in zip(turns, advantages, strict=True):
        width = max(len(context) + len(tokens) for context, tokens in texts)
        ids = torch.zeros(len(texts), width, dtype=torch.long)
        sampled = torch.zeros(len(texts), width, dtype=torch.bool)
        for row, (context, tokens) in enumerate(texts):
            ids[row, : len(context) + len(tokens)] = torch.tensor(context + tokens)
            sampled[row, len(context) : len(context) + len(tokens)] = True
        # right padding: what follows a token does not change its log-prob
        log_pi = model(ids).logits[:, :-1].log_softmax(-1).gather(2, ids[:, 1:, None])[..., 0]
        total = total + (A.float()[:, None] * log_pi * sampled[:, 1:]).sum()
        num_tokens += int(sampled.sum())
    gradients = torch.autograd.grad(-total / num_tokens, list(model.parameters()))
    return torch.cat([g.flatten() for g in gradients])


def spread(gradients: list[Tensor]) -> dict[str, float]:
    """Variance and signal of (n, P) gradients, and their ratio."""
    stacked = torch.stack(gradients).double()
    variance = float(stacked.var(dim=0).sum())
    signal = float(stacked.mean(dim=0).square().sum()) - variance / len(stacked)
    return {"variance": variance, "signal": signal, "variance / signal": variance / signal}


if __name__ == "__main__":
    sys.exit(main())

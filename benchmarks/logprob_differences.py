"""A model's folder in; how far an engine's log-probs are from the trainer's, and how much of it is rounding, out.

    python -m benchmarks.logprob_differences MODEL [--problems FILE] [--prompts 32] [--tokens 64] [--json]

Engines in fp32, in bf16, and in bf16 with the output head in fp32 sample; the same tokens are scored by transformers
in the same types, the way OpenRLHF's Actor does it (logits in the model's type, then float, temperature, log-softmax),
and in fp32 on the weights rounded to bf16, where nothing else is rounded.

A token's difference d is not 0 on average even if nothing is wrong: an engine favours what it overrates, so its own
log-prob lies above another's by the KL divergence of the two, half the mean of d * d for small d, and what did not
sample lies below by as much. `bias` is the mean of d beyond that, with its standard error over prompts: rounding
leaves none; a wrong scale, mask, position or cache would.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

import score_openrlhf  # noqa: F401  prepares this process for the machine, before vllm is imported

os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # engines in this process, one after the other
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")

QUESTION = "A box holds {a} red and {b} blue balls. How many balls are in {c} such boxes? Explain each step."
ALONE = 8  # prompts that are also sampled by themselves, which is slow
FP32_HEAD = {"head_dtype": "float32"}


@dataclass
class Sampled:
    """What an engine said to one prompt."""

    prompt: list[int]
    tokens: list[int]
    log_probs: torch.Tensor  # (T,) of the sampled tokens, at the sampling temperature


@dataclass
class Difference:
    """One comparison, over all sampled tokens."""

    name: str
    tokens: int
    mean_abs: float
    p99: float
    kl: float  # half the mean square
    bias: float  # mean beyond what sampling explains
    bias_error: float  # standard error over prompts

    @classmethod
    def of(cls, name: str, rows: Sequence[torch.Tensor], sampled: int) -> Difference:
        """`rows` are each prompt's differences, (T,); `sampled` is 1 where the left side sampled the tokens, -1 where
        its errors had no part in them, 0 where both sampled them from the same random numbers."""
        every = torch.cat(list(rows)).double()
        beyond = torch.stack([(row.double() - sampled * row.double().square() / 2).mean() for row in rows if len(row)])
        error = (beyond.std() / len(beyond) ** 0.5).item()
        absolute = every.abs()
        return cls(
            name, len(every), absolute.mean().item(), absolute.quantile(0.99).item(), (every**2).mean().item() / 2,
            beyond.mean().item(), error,
        )  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="a folder with a model and a tokenizer that has a chat template")
    parser.add_argument("--problems", help="a .jsonl file with a column problem; default: sums in words")
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args(argv)
    prompts = prompts_of(args.model, args.problems, args.prompts)
    temperature = args.temperature

    def sample(dtype: str, overrides: dict | None = None, then: Callable[[Any, list[Sampled]], Any] | None = None):
        engine = start_engine(args.model, dtype, overrides, max(map(len, prompts)) + 2 * args.tokens)
        found = engine_samples(engine, prompts, args.tokens, temperature)
        more = then(engine, found) if then else None
        del engine
        gc.collect()
        return found, more

    def against_itself(engine: Any, found: list[Sampled]) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """The same seeds again, as far as it says the same: each prompt alone; a second turn with the cache."""
        some = list(enumerate(found))[:ALONE]
        alone = [engine_samples(engine, [s.prompt], args.tokens, temperature, seed)[0] for seed, s in some]
        second_turn = [s.prompt + s.tokens for s in found]
        engine.reset_prefix_cache()
        anew, cached = (engine_samples(engine, second_turn, args.tokens // 4, temperature) for _ in range(2))
        return same_parts(found[:ALONE], alone), same_parts(anew, cached)

    bf16, itself = sample("bfloat16", then=against_itself)
    with_head, _ = sample("bfloat16", FP32_HEAD)
    fp32, _ = sample("float32")

    trainer = load(args.model, torch.bfloat16)
    of_bf16 = [score(trainer, s, temperature) for s in bf16]
    of_head = [score(trainer, s, temperature, head=True) for s in with_head]
    rounded = trainer.float()  # the weights stay those of bf16, nothing else is rounded
    exact_of_bf16 = [score(rounded, s, temperature) for s in bf16]
    exact_of_head = [score(rounded, s, temperature) for s in with_head]
    full = load(args.model, torch.float32)
    of_fp32 = [score(full, s, temperature) for s in fp32]
    full_of_bf16 = [score(full, s, temperature) for s in bf16]

    def between(left: Sequence[torch.Tensor], right: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        return [a - b for a, b in zip(left, right, strict=True)]

    def said(samples: Sequence[Sampled]) -> list[torch.Tensor]:
        return [s.log_probs for s in samples]

    pairs = {
        "engine fp32 - trainer fp32": (between(said(fp32), of_fp32), 1),
        "engine bf16 - trainer bf16": (between(said(bf16), of_bf16), 1),
        "  engine bf16 - fp32 on the same weights": (between(said(bf16), exact_of_bf16), 1),
        "  trainer bf16 - fp32 on the same weights": (between(of_bf16, exact_of_bf16), -1),
        "both with the output head in fp32": (between(said(with_head), of_head), 1),
        "  engine, head in fp32 - fp32 on the same weights": (between(said(with_head), exact_of_head), 1),
        "engine bf16, in a batch - alone": (itself[0], 0),
        "engine bf16, second turn computed - from the cache": (itself[1], 0),
        "weights in bf16 - in fp32, all else in fp32": (between(exact_of_bf16, full_of_bf16), 1),
    }
    rows = [Difference.of(name, found, sampled) for name, (found, sampled) in pairs.items()]
    thirds = by_position(pairs["engine bf16 - trainer bf16"][0])
    show(rows, thirds, as_json=args.json)
    return 0


def prompts_of(model: str, problems: str | None, count: int) -> list[list[int]]:
    """Token ids of `count` prompts in the model's chat template."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    if problems:
        with open(problems, encoding="utf-8") as file:
            texts = [json.loads(line)["problem"] for line in file][:count]
    else:
        texts = [QUESTION.format(a=7 * n + 3, b=5 * n + 2, c=n % 9 + 2) for n in range(count)]
    return [
        tokenizer.apply_chat_template([{"role": "user", "content": text}], add_generation_prompt=True)["input_ids"]
        for text in texts
    ]


def start_engine(model: str, dtype: str, overrides: dict | None, max_len: int) -> Any:
    """An engine as training has it: log-probs after temperature, prefix caching."""
    from vllm import LLM

    return LLM(
        model, dtype=dtype, hf_overrides=overrides or {}, max_model_len=max_len + 1, enforce_eager=True,
        enable_chunked_prefill=False, enable_prefix_caching=True, logprobs_mode="processed_logprobs", max_logprobs=1,
    )  # fmt: skip


def engine_samples(
    engine: Any, prompts: list[list[int]], tokens: int, temperature: float, first_seed: int = 0
) -> list[Sampled]:
    """One continuation a prompt, all at once, each from a seed of its own."""
    from vllm import SamplingParams, TokensPrompt

    params = [
        SamplingParams(temperature=temperature, max_tokens=tokens, seed=first_seed + n, logprobs=0, detokenize=False)
        for n in range(len(prompts))
    ]
    outputs = engine.generate([TokensPrompt(prompt_token_ids=p) for p in prompts], params, use_tqdm=False)
    found = []
    for prompt, output in zip(prompts, outputs, strict=True):
        ids = list(output.outputs[0].token_ids)
        log_probs = [at[token].logprob for at, token in zip(output.outputs[0].logprobs, ids, strict=True)]
        found.append(Sampled(prompt, ids, torch.tensor(log_probs)))
    return found


def load(model: str, dtype: torch.dtype) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(model, dtype=dtype, attn_implementation="sdpa").eval()


@torch.no_grad()
def score(model: Any, sampled: Sampled, temperature: float, *, head: bool = False) -> torch.Tensor:
    """(T,) log-probs of the sampled tokens; `head` multiplies by the output head in fp32."""
    ids = torch.tensor([sampled.prompt + sampled.tokens])
    if head:
        hidden = model.model(ids).last_hidden_state
        logits = hidden.float() @ model.lm_head.weight.float().T
    else:
        logits = model(ids).logits.float()
    start = len(sampled.prompt) - 1
    log_probs = (logits[0, start:-1] / temperature).log_softmax(-1)
    return log_probs.gather(-1, ids[0, start + 1 :, None])[:, 0]


def same_parts(left: Sequence[Sampled], right: Sequence[Sampled]) -> list[torch.Tensor]:
    """Differences of samples from the same seeds, each up to where the two part."""
    found = []
    for a, b in zip(left, right, strict=True):
        pairs = enumerate(zip(a.tokens, b.tokens, strict=False))
        length = next((n for n, (x, y) in pairs if x != y), min(len(a.tokens), len(b.tokens)))
        found.append(a.log_probs[:length] - b.log_probs[:length])
    return found


def by_position(rows: Sequence[torch.Tensor]) -> list[float]:
    """Mean absolute difference in each third of the answers: positions that are rounded would make it grow."""
    parts = [torch.tensor_split(row.abs(), 3) for row in rows]
    return [torch.cat([part[n] for part in parts]).mean().item() for n in range(3)]


def show(rows: Sequence[Difference], thirds: Sequence[float], *, as_json: bool) -> None:
    """The table, or the same as JSON on stdout."""
    if as_json:
        print(json.dumps({"differences": [vars(row) for row in rows], "thirds": thirds}))
        return
    table = Table(title="log-probs of sampled tokens, nats")
    for column in ("", "tokens", "mean |d|", "99 % of |d|", "KL", "bias"):
        table.add_column(column, justify="right" if column else "left", no_wrap=True)
    for r in rows:
        bias = f"{r.bias:+.1e} ± {r.bias_error:.1e}"
        table.add_row(r.name, str(r.tokens), f"{r.mean_abs:.1e}", f"{r.p99:.1e}", f"{r.kl:.1e}", bias)
    console = Console(width=120)
    console.print(table)
    console.print("mean |d| of bf16 in the thirds of an answer: " + ", ".join(f"{value:.4f}" for value in thirds))


if __name__ == "__main__":
    sys.exit(main())

"""A machine in; whether training works on one, two and four of its GPUs, a line for each part, out.

    python -m benchmarks.gpu_smoke [--gpus N] [--only resume,LoRA] [--json]

Real runs of a model with random weights: two steps, resumed for two more, LoRA, packed rows, two ranks, engines over
two GPUs, and roles on GPUs of their own started by the deepspeed launcher. What this machine has no device for is
`absent`, which is not passed. Exit status: 0 all passed, 1 something failed, 3 nothing failed but something is absent.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from score_openrlhf import platform
from score_openrlhf.platform.detect import is_installed

ROOT = Path(__file__).resolve().parents[1]
PASS, FAIL, ABSENT = "pass", "fail", "absent"
MARKS = {PASS: "[green]pass[/]", FAIL: "[bold red]fail[/]", ABSENT: "[yellow]absent[/]"}
TIMEOUT_SECONDS = 1800.0
PEAK_TOLERANCE = 1.05  # a resumed run's peak against the first one's
SHAPES = {True: (64, 2), False: (2048, 12)}  # on a CPU or not: width, layers (0.7B: its optimizer shows in the peak)
# A random model answers nothing right, so the reward is one that it can earn: an even number of letters.
REWARD = """
def reward_func(queries, prompts, labels):
    scores = [float(sum(c.isalpha() for c in q) % 2 == 0) for q in queries]
    return {"rewards": scores, "scores": scores}
"""
COLOCATE = {"placement": "colocate", "vllm.enable_sleep": True, "ds.enable_sleep": True, "rollout.schedule": "phased"}


class Failed(Exception):
    """A part that did not do what it should; says what was seen."""


@dataclass
class Outcome:
    """One line of the result."""

    name: str
    gpus: int
    status: str
    seconds: float = 0.0
    reason: str = ""
    figures: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Part:
    """One thing to try: `check(bench)` returns figures, or raises Failed."""

    name: str
    gpus: int
    check: Callable[[Bench], dict[str, Any]]
    on_cpu: bool = True  # whether a CPU machine can show it


class PeakMemory:
    """The most memory in use on any GPU during a block, bytes, by nvidia-smi; None without one."""

    def __enter__(self) -> PeakMemory:
        self.peak: int | None = None
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        if shutil.which("nvidia-smi"):
            self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._end.set()
        if self._thread.ident is not None:
            self._thread.join()

    def _watch(self) -> None:
        query = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
        while not self._end.wait(0.3):
            done = subprocess.run(query, capture_output=True, text=True)
            used = [int(line) for line in done.stdout.split() if line.isdecimal()]
            if used:
                self.peak = max(self.peak or 0, max(used) * 2**20)


class Bench:
    """A model, problems and a reward in a folder, and runs on them."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.peaks: dict[str, int | None] = {}
        width, layers = SHAPES[platform.is_cpu()]
        words = ["--hidden-size", str(width), "--layers", str(layers), "--problems", "24"]
        self._run([sys.executable, "-m", "benchmarks.random_model", str(folder), *words], folder / "model.log")
        (folder / "reward.py").write_text(REWARD)

    def train(self, name: str, config: str, *, launcher: Sequence[str] = (), **changes: Any) -> Path:
        """A run of `config` in the folder `name`; returns the folder. Raises Failed with the end of its output."""
        values: dict[str, Any] = {
            "model_path": self.folder / "model",
            "data.train": self.folder / "problems.jsonl",
            "data.eval": "null",
            "eval.steps": -1,
            "task.reward_func": self.folder / "reward.py",
            "output_dir": self.folder / name,
            "data.max_len": 700,
            "max_steps": 2,
            "stage1_steps": 1,
            "guidance_samples": 2,
            "rollout.batch_size": 4,
            "rollout.n_samples_per_prompt": 2,
            "rollout.attempt_max_tokens": 24,
            "rollout.guidance_max_tokens": 16,
            "rollout.revision_max_tokens": 24,
            "rollout.micro_batch_size": 4,
            "train.micro_batch_size": 4,
            "actor.num_gpus_per_node": 1,
            "ckpt.save_steps": 1,
            "ckpt.save_hf": False,
            "vllm.gpu_memory_utilization": 0.2,
        }
        if platform.is_cpu():
            values["ds.param_dtype"] = "fp32"
        if platform.is_cpu() or not is_installed("flash_attn"):
            values["ds.attn_implementation"] = "sdpa"
        values |= changes
        command = list(launcher) or [sys.executable, "-m", "score_openrlhf.main"]
        words = [f"{key}={str(value).lower() if isinstance(value, bool) else value}" for key, value in values.items()]
        with PeakMemory() as memory:
            self._run([*command, f"configs/{config}.yaml", *words], self.folder / f"{name}.log")
        self.peaks[name] = memory.peak
        return self.folder / name

    def _run(self, command: list[str], log: Path) -> None:
        with log.open("a") as output:
            process = subprocess.Popen(
                command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
            )
            try:
                status = process.wait(timeout=TIMEOUT_SECONDS)
            except BaseException as error:
                os.killpg(process.pid, signal.SIGTERM)
                process.wait()
                if isinstance(error, subprocess.TimeoutExpired):
                    raise Failed(f"not finished within {TIMEOUT_SECONDS:.0f} s; {last_line(log)}") from error
                raise
        if status != 0:
            raise Failed(f"exit status {status}; {last_line(log)}")


def last_line(log: Path) -> str:
    """Where the output is, and the command's own last words in it, else its last line."""
    lines = log.read_text(errors="replace").strip().splitlines() or ["nothing was printed"]
    own = [index for index, text in enumerate(lines) if text.startswith("score-openrlhf: ")]
    shown = " ".join(text.strip() for text in lines[own[-1] : own[-1] + 2]) if own else lines[-1]
    return f"{log}: {shown[:300]}"


def trained(run: Path, steps: int, policies: Sequence[str]) -> dict[str, Any]:
    """Figures of a run of `steps` steps in which each of `policies` was updated; raises Failed where it was not."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    if len(lines) != steps:
        raise Failed(f"{run / 'metrics.jsonl'} has {len(lines)} steps, not {steps}")
    figures: dict[str, Any] = {"steps": steps, "seconds_of_last_step": lines[-1]["timing/total"]}
    for policy in policies:
        for name in ("grad_norm", "engine_logprob_diff", "optimizer_steps"):
            value = lines[-1].get(f"{policy}/{name}")
            if value is None or not math.isfinite(value):
                raise Failed(f"{policy}/{name} of the last step is {value}")
            figures[f"{policy}/{name}"] = value
        if figures[f"{policy}/optimizer_steps"] < steps:
            raise Failed(f"{policy}: optimizer steps {figures[f'{policy}/optimizer_steps']} after {steps} updates")
    return figures


BOTH = ("solver", "guidance")


def two_steps(bench: Bench) -> dict[str, Any]:
    return trained(bench.train("one_gpu", "rl_guided_score_math", **COLOCATE), 2, BOTH)


def resume(bench: Bench) -> dict[str, Any]:
    """The same run goes on from its checkpoint."""
    run = bench.folder / "one_gpu"
    if not (run / "checkpoints").is_dir():
        raise Failed("there is no run to go on with: `two steps` left no checkpoint")
    bench.peaks["first"] = bench.peaks["one_gpu"]
    bench.train("one_gpu", "rl_guided_score_math", **COLOCATE, max_steps=4)
    if "going on from" not in (bench.folder / "one_gpu.log").read_text():
        raise Failed("the run started anew")
    return trained(run, 4, BOTH)


def peak_after_resume(bench: Bench) -> dict[str, Any]:
    """What a policy keeps on the GPU must not grow by being loaded."""
    first, again = bench.peaks.get("first"), bench.peaks.get("one_gpu")
    if not first or not again:
        raise Failed("no peak was measured: `resume` did not run")
    figures = {"peak_gib": first / 2**30, "peak_gib_resumed": again / 2**30}
    if again > first * PEAK_TOLERANCE:
        raise Failed(f"{figures['peak_gib_resumed']:.2f} GiB after {figures['peak_gib']:.2f}")
    return figures


def lora(bench: Bench) -> dict[str, Any]:
    run = bench.train("lora", "rl_guided_score_math", **COLOCATE, **{"ds.lora.rank": 8, "ckpt.save_hf": True})
    for policy in BOTH:
        if not (run / policy / "adapter").is_dir():
            raise Failed(f"{run / policy} holds no adapter")
    return trained(run, 2, BOTH)


def packing(bench: Bench) -> dict[str, Any]:
    return trained(bench.train("packing", "rl_guided_score_math", **COLOCATE, **{"ds.packing_samples": True}), 2, BOTH)


def two_ranks(bench: Bench) -> dict[str, Any]:
    changes = {"actor.num_gpus_per_node": 2, "vllm.num_engines": 2}
    return trained(bench.train("two_ranks", "rl_guided_score_math", **COLOCATE, **changes), 2, BOTH)


def tensor_parallel(bench: Bench) -> dict[str, Any]:
    changes = {"actor.num_gpus_per_node": 2, "vllm.num_engines": 1, "vllm.tensor_parallel_size": 2}
    return trained(bench.train("tensor_parallel", "rl_guided_score_math", **COLOCATE, **changes), 2, BOTH)


def split_by_launcher(bench: Bench) -> dict[str, Any]:
    """Solver, reference and both engines on a GPU each, started as on a cluster."""
    deepspeed = str(Path(sys.executable).with_name("deepspeed"))
    launcher = [deepspeed, "--num_gpus", "4", "launch/train_smart_score.sh"]
    return trained(bench.train("split", "smart_score_math", launcher=launcher), 2, ("solver",))


PARTS = (
    Part("two steps", 1, two_steps),
    Part("resume", 1, resume),
    Part("peak memory after resume", 1, peak_after_resume, on_cpu=False),
    Part("LoRA", 1, lora),
    Part("packing", 1, packing),
    Part("two ranks", 2, two_ranks),
    Part("tensor parallel engine", 2, tensor_parallel, on_cpu=False),
    Part("split by the deepspeed launcher", 4, split_by_launcher),
)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gpus", type=int, choices=(1, 2, 4), help="use no more than this many")
    parser.add_argument("--only", metavar="PART,...", help=f"of: {', '.join(part.name for part in PARTS)}")
    parser.add_argument("--folder", type=Path, help="where the runs are kept; without it they are deleted")
    parser.add_argument("--json", action="store_true", help="print JSON and nothing else on stdout")
    args = parser.parse_args(argv)
    only = [name.strip() for name in args.only.split(",")] if args.only else [part.name for part in PARTS]
    if unknown := set(only) - {part.name for part in PARTS}:
        parser.error(f"no such part: {', '.join(sorted(unknown))}")
    from rich.console import Console

    console = Console(stderr=args.json, highlight=False)
    there, device = devices()
    usable = min(there, args.gpus or there)
    console.print(f"{device}; on {usable} GPUs" if not platform.is_cpu() else device)
    with tempfile.TemporaryDirectory(prefix="gpu-smoke-") as temporary:
        folder = (args.folder or Path(temporary)).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        bench = Bench(folder)
        outcomes = []
        for part in (part for part in PARTS if part.name in only):
            outcomes.append(outcome := attempt(part, bench, usable))
            console.print(line(outcome), soft_wrap=True)
    counts = {status: sum(one.status == status for one in outcomes) for status in MARKS}
    console.print(f"{counts[PASS]} passed, {counts[FAIL]} failed, {counts[ABSENT]} absent (not passed)")
    if args.json:
        record = {"device": device, "gpus": usable, "counts": counts}
        print(json.dumps({**record, "parts": [dataclasses.asdict(one) for one in outcomes]}, indent=1))
    return 1 if counts[FAIL] else 3 if counts[ABSENT] else 0


def devices() -> tuple[int, str]:
    """GPUs that torch can use, in number and words; on a CPU machine logical ones, as many as are wanted."""
    if platform.is_cpu():
        return 4, "no GPU: torch is built for CPUs, the GPUs of the runs are logical"
    import torch

    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return len(names), ", ".join(names) or "no GPU that torch can use"


def attempt(part: Part, bench: Bench, usable: int) -> Outcome:
    """Try one part; what cannot be tried here is absent."""
    if platform.is_cpu() and not part.on_cpu:
        return Outcome(part.name, part.gpus, ABSENT, reason="no GPU here: only one can show it")
    if usable < part.gpus:
        return Outcome(part.name, part.gpus, ABSENT, reason=f"needs {part.gpus} GPUs, there are {usable}")
    started = time.perf_counter()
    try:
        figures = part.check(bench)
    except Failed as error:
        return Outcome(part.name, part.gpus, FAIL, time.perf_counter() - started, str(error))
    return Outcome(part.name, part.gpus, PASS, time.perf_counter() - started, figures=figures)


def line(outcome: Outcome) -> str:
    """One outcome as it is printed."""
    from rich.markup import escape

    figures = ", ".join(
        f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in outcome.figures.items()
    )
    shown = escape(outcome.reason or figures)
    return f"{MARKS[outcome.status]}  {outcome.name} ({outcome.gpus} GPU)  {outcome.seconds:.1f} s  {shown}"


if __name__ == "__main__":
    sys.exit(main())

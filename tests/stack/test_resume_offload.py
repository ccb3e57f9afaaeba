"""What a policy leaves on its GPU between updates (`ds.enable_sleep`), before a resume and after it.

The real actor, DeepSpeed's ZeRO with its FusedAdam, its offload and its checkpoints run on a GPU that is stood in for
(tests/support/gpu_stand_in.py), in a process of its own: `python -m tests.stack.test_resume_offload MODEL FOLDER`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from benchmarks.tiny_models import make_model
from score_openrlhf import platform
from score_openrlhf.platform.hooks import DISABLE_VARIABLE

ROOT = Path(__file__).parents[2]
SETTINGS = {"ZeRO-3": (3, 0), "ZeRO-2": (2, 0), "ZeRO-3 LoRA": (3, 4)}  # stage and LoRA rank
BUFFER = "_offload_buffer"

pytestmark = pytest.mark.skipif(not platform.is_cpu(), reason="the GPU is stood in for by the CPU")


def main(model: str, folder: str) -> None:
    """Write what is where in each of SETTINGS to `folder/report.json`."""
    from deepspeed.accelerator import get_accelerator

    from tests.support.gpu_stand_in import use_fused_adam

    use_fused_adam(setattr)
    accelerator = get_accelerator()
    accelerator.pin_memory = lambda tensor, **options: tensor.clone()  # as pinning does, and DeepSpeed's CPU does not
    reports = {}
    for name, (stage, lora_rank) in SETTINGS.items():
        reports[name] = one_setting(partial(Rank, model, stage, lora_rank, accelerator), Path(folder, name))
    Path(folder, "report.json").write_text(json.dumps(reports))


def one_setting(make: Callable[..., Rank], folder: Path) -> dict[str, Any]:
    """A policy that makes a step, is saved asleep, and makes another; the same after a resume from what was saved."""
    report: dict[str, Any] = {}
    first = make()
    first.reload()
    first.step()
    report["awake"] = first.where()
    first.offload()
    report["asleep"] = first.where()
    first.save(folder / "new")
    adam = first.actor.engine.basic_optimizer
    hooks, adam._optimizer_state_dict_post_hooks = adam._optimizer_state_dict_post_hooks, {}
    first.save(folder / "old")  # what runs of before the hooks have left
    adam._optimizer_state_dict_post_hooks = hooks
    first.reload()
    # more bytes than before: to be saved, small weights were gathered
    report["awake again"] = first.where()
    first.step()
    for kind in ("new", "old"):
        resumed = make(folder / kind)
        report[f"{kind}: asleep"] = resumed.where()  # it is put to sleep where it is made
        report[f"{kind}: saved"] = saved_states(folder / kind)
        resumed.reload()
        report[f"{kind}: awake"] = resumed.where()
        resumed.step()
        report[f"{kind}: same weights"] = resumed.same_as(first)
        resumed.offload()
        report[f"{kind}: asleep again"] = resumed.where()
    first.offload()
    first.actor.reset_optimizer(10)
    first.reload()
    report["moments after a reset"] = max(float(moment.abs().max()) for moment in first.states().values())
    return report


def saved_states(folder: Path) -> list[str]:
    """The names of Adam's states in a checkpoint."""
    import torch

    (path,) = folder.rglob("*optim_states.pt")
    saved = torch.load(path, weights_only=False)["optimizer_state_dict"]
    adam = saved.get("optimizer_state_dict") or saved["base_optimizer_state"]
    return sorted({name for state in adam["state"].values() for name in state})


class Rank:
    """The one rank of a policy, on a GPU of its own from the moment DeepSpeed has it."""

    def __init__(self, model: str, stage: int, lora_rank: int, accelerator: Any, resume_from: Path | None = None):
        from score_openrlhf.config.host_args import host_args
        from score_openrlhf.policies.actors import _PolicyActor
        from score_openrlhf.policies.strategy import make_strategy
        from tests.stack.equations import config
        from tests.support.gpu_stand_in import StandInGpu

        self.gpu, self.accelerator = StandInGpu(), accelerator
        cfg = config(Path(model), 1, method="score")
        cfg.ds.zero_stage, cfg.ds.lora.rank, cfg.ds.enable_sleep = stage, lora_rank, True
        cfg.actor.adam.lr, cfg.ds.param_dtype = 1e-2, "bf16"
        args = host_args(cfg, "solver", checkpoint_path=str(resume_from or ""), model_path=model)
        args.ckpt.load_enable = resume_from is not None
        strategy = make_strategy(args, param_offload=False)
        prepare = strategy.prepare

        def prepare_on_gpu(*models: Any) -> Any:
            prepared = prepare(*models)
            self.engine = prepared[0].model
            self.gpu.put(self.states().values())
            self.gpu.put(self.parts())
            self.moves = True
            return prepared

        strategy.prepare = prepare_on_gpu
        self.moves = False
        self.actor = _PolicyActor(1, 0, None, None)
        with self.on_gpu():
            self.actor.init_model_from_pretrained(strategy, model, 10, None)

    @contextmanager
    def on_gpu(self):
        self.accelerator.current_device_name = lambda device_index=None: "cuda:0" if self.moves else "cpu"
        with self.gpu:
            yield
        self.accelerator.current_device_name = lambda device_index=None: "cpu"

    def offload(self) -> None:
        with self.on_gpu():
            self.actor.offload_states()

    def reload(self) -> None:
        with self.on_gpu():
            self.actor.reload_states()

    def save(self, folder: Path) -> None:
        with self.on_gpu():
            self.actor.save_policy(str(folder), "global_step1", {"global_step": 1})

    def step(self) -> None:
        """One optimizer step, on tokens that are always the same; what Adam makes in its first is on the GPU."""
        import torch

        torch.manual_seed(0)
        tokens = torch.randint(5, 300, (2, 12))
        mask = torch.ones_like(tokens)
        strategy, model = self.actor.strategy, self.actor.actor
        known = self.states().keys()
        for _ in range(strategy.accumulated_gradient):
            log_probs = model(tokens, mask[:, 1:], attention_mask=mask)
            strategy.backward(-log_probs.mean(), model, self.actor.actor_optim)
            strategy.optimizer_step(self.actor.actor_optim, model, self.actor.actor_scheduler)
        self.gpu.put(value for name, value in self.states().items() if name not in known)

    def states(self) -> dict[str, Any]:
        """Adam's tensors."""
        states = self.engine.basic_optimizer.state.values()
        return {
            f"{name} {i}": value
            for i, state in enumerate(states)
            for name, value in state.items()
            if hasattr(value, "dim") and value.dim()
        }

    def master(self) -> list[Any]:
        zero = self.engine.optimizer
        return getattr(zero, "fp32_partitioned_groups_flat", None) or zero.single_partition_of_fp32_groups

    def parts(self) -> list[Any]:
        """Master weights, gradients and reduce buckets."""
        zero = self.engine.optimizer
        found = list(self.master())
        if hasattr(zero, "grad_partitions_flat_buffer"):
            found.append(zero.grad_partitions_flat_buffer)
            found += [bucket.buffer for bucket in zero.ipg_buckets.values()]
        return found

    def where(self) -> dict[str, Any]:
        """Bytes on the GPU, and for each of Adam's tensors whether it is there."""
        import gc

        gc.collect()
        places = {name: self.gpu.holds(value) for name, value in self.states().items()}
        return {"bytes": self.gpu.num_bytes, "moments": {n: on for n, on in places.items() if BUFFER not in n}}

    def same_as(self, other: Rank) -> bool:
        import torch

        return all(map(torch.equal, self.master(), other.master()))


@pytest.fixture(scope="module")
def reports(tmp_path_factory) -> dict[str, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("offload")
    words = [sys.executable, "-m", "tests.stack.test_resume_offload", str(make_model(folder / "model")), str(folder)]
    # DeepSpeed's own Adam and its own offload, which the CPU platform replaces
    own = {DISABLE_VARIABLE: "torch_adam,state_offload", "OMP_NUM_THREADS": "1"}
    own |= {"WORLD_SIZE": "1", "RANK": "0", "LOCAL_RANK": "0"}
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=900, env=os.environ | own)
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    return json.loads((folder / "report.json").read_text())


@pytest.mark.parametrize("name", SETTINGS)
def test_offload_takes_adam_off_the_gpu_and_reload_brings_it_back(reports, name):
    report = reports[name]
    assert all(report["awake"]["moments"].values()) and all(report["awake again"]["moments"].values())
    assert report["asleep"]["moments"] and not any(report["asleep"]["moments"].values())
    assert report["asleep"]["bytes"] == 0 < report["awake"]["bytes"]


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("kind", ["new", "old"])
def test_a_resumed_policy_leaves_as_little_on_the_gpu(reports, name, kind):
    """`old`: from a checkpoint that has the buffers of the offload in it."""
    report = reports[name]
    assert (f"exp_avg{BUFFER}" in report[f"{kind}: saved"]) == (kind == "old" and "ZeRO-3" in name)
    assert report[f"{kind}: asleep"] == report[f"{kind}: asleep again"] == report["asleep"]
    assert report[f"{kind}: awake"] == report["awake"]


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("kind", ["new", "old"])
def test_a_resumed_policy_steps_as_the_one_that_went_on(reports, name, kind):
    assert reports[name][f"{kind}: same weights"]


@pytest.mark.parametrize("name", SETTINGS)
def test_a_reset_reaches_what_is_offloaded(reports, name):
    assert reports[name]["moments after a reset"] == 0


if __name__ == "__main__":
    main(*sys.argv[1:])

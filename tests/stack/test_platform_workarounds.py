"""Each workaround alone: what upstream does without it, and that it works with it.

A workaround whose upstream failure is gone fails here, and can then be removed. The probes run in three processes side
by side: everything on; everything off but what the others build on; and only that off.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks.tiny_models import make_model
from score_openrlhf import platform
from score_openrlhf.platform.hooks import DISABLE_VARIABLE, WORKAROUNDS

ROOT = Path(__file__).parents[2]
BUILT_ON = ("flash_attn", "torch_cuda", "shm_comm")
# Two ranks or an engine: test_platform_stack.py. A guard rather than a workaround: tests/unit/test_remote_code.py.
ELSEWHERE = ("zero3_gather_race", "sync_group", "worker_wrap", "remote code")

pytestmark = pytest.mark.skipif(not platform.is_cpu(), reason="CPU workarounds are off on accelerators")


def probe_flash_attn(_model: str) -> None:
    import openrlhf.models.ring_attn_utils
    from transformers.utils import is_flash_attn_2_available

    assert not [name for name in sys.modules if name.split(".")[0] == "flash_attn"]
    assert not is_flash_attn_2_available()
    assert callable(openrlhf.models.ring_attn_utils.unpad_input)


def probe_torch_cuda(_model: str) -> None:
    import torch

    assert torch.zeros(1).to(torch.cuda.current_device()).device.type == "cpu"
    torch.cuda.set_device(0)
    torch.cuda.synchronize()
    torch.cuda.current_stream()


def probe_shm_comm(_model: str) -> None:
    import importlib

    # the attribute deepspeed.comm.torch is torch itself
    assert importlib.import_module("deepspeed.comm.torch").build_shm_op() is None


def probe_fp32(_model: str) -> None:
    import torch
    from openrlhf.utils.utils import convert_to_torch_dtype

    assert convert_to_torch_dtype("fp32") is torch.float32
    assert convert_to_torch_dtype("bf16") is torch.bfloat16


def probe_replay_buffer_device(_model: str) -> None:
    from openrlhf.trainer.ppo_utils.replay_buffer import NaiveReplayBuffer

    assert NaiveReplayBuffer(1).target_device.type == "cpu"


def make_strategy(zero_stage: int = 2):
    from openrlhf.utils.deepspeed import DeepspeedStrategy

    args = SimpleNamespace(ds=SimpleNamespace(param_dtype="fp32"), train=SimpleNamespace(), local_rank=-1)
    return DeepspeedStrategy(args=args, zero_stage=zero_stage)


def probe_torch_adam(_model: str) -> None:
    import deepspeed
    import torch

    adam = {"type": "AdamW", "params": {"lr": 1e-3, "betas": [0.9, 0.95], "eps": 1e-8, "weight_decay": 0.0}}
    deepspeed.init_distributed()
    module = torch.nn.Linear(4, 4)
    config = make_strategy().get_ds_train_config(adam)
    engine, *_ = deepspeed.initialize(model=module, model_parameters=module.parameters(), config=config)
    assert type(engine.basic_optimizer) is torch.optim.AdamW


def probe_state_offload(_model: str) -> None:
    import torch
    from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3 as Stage3
    from openrlhf.utils.deepspeed.deepspeed_utils import offload_deepspeed_states, reload_deepspeed_states

    optimizer = SimpleNamespace(
        optimizer=torch.optim.AdamW([torch.zeros(2)]), offloaded_states=set(), empty_partition_cache=lambda: None
    )
    optimizer.offload_states = lambda **options: Stage3.offload_states(optimizer, **options)
    engine = SimpleNamespace(
        zero_optimization_stage=lambda: 3,
        config={"zero_optimization": {"offload_optimizer": {"device": "none"}}},
        optimizer=optimizer,
    )
    offload_deepspeed_states(engine)
    reload_deepspeed_states(engine)


def probe_ema_device(_model: str) -> None:
    import torch

    model, ema = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    expected = 0.1 * model.weight.detach() + 0.9 * ema.weight.detach()
    strategy = make_strategy()
    strategy.accumulated_gradient = 1
    strategy.moving_average(model, ema, 0.9, "cuda")
    assert torch.allclose(ema.weight, expected)


def probe_actor_attention(model: str) -> None:
    from openrlhf.models import Actor

    assert Actor(model, param_dtype="bf16").model.config._attn_implementation == "sdpa"
    assert Actor(model, "eager", param_dtype="bf16").model.config._attn_implementation == "eager"


def probe_critic_attention(model: str) -> None:
    from openrlhf.models import get_llm_for_sequence_regression

    critic = get_llm_for_sequence_regression(model, "critic", attn_implementation="flash_attention_2")
    assert critic.config._attn_implementation == "sdpa"


def probe_pin_memory(_model: str) -> None:
    import warnings

    from torch.utils.data import DataLoader

    with warnings.catch_warnings(record=True) as caught:
        list(DataLoader([1, 2], pin_memory=True))
    assert not caught, str(caught[0].message)


def probe_cuda_ipc(_model: str) -> None:
    from unittest.mock import patch

    import torch.distributed as dist
    from openrlhf.trainer.ray import ppo_actor

    if not dist.is_initialized():
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    advantage = SimpleNamespace(**{f"is_correction_{key}": None for key in ("level", "mode", "gating", "threshold")})
    args = SimpleNamespace(
        train=SimpleNamespace(max_epochs=1, dynamic_batch_enable=False, colocate_all=True, async_enable=False),
        actor=SimpleNamespace(
            eps_clip_low_high=(0.2, 0.2), dual_clip=None, loss_agg_mode="token-mean", policy_loss_type="ppo",
            aux_loss_coef=0.0,
        ),
        algo=SimpleNamespace(advantage=advantage),
        ds=SimpleNamespace(packing_samples=False),
        vllm=SimpleNamespace(sync_backend="nccl"),
    )  # fmt: skip
    with patch.object(ppo_actor, "PolicyLoss"), patch.object(ppo_actor, "NaiveReplayBuffer"):
        trainer = ppo_actor.ActorPPOTrainer(
            SimpleNamespace(args=args), None, ema_model=None, actor_optim=None, actor_scheduler=None
        )
    assert not trainer.use_cuda_ipc, "use_cuda_ipc"


def probe_vllm_sleep(model: str) -> None:
    from vllm.engine.arg_utils import AsyncEngineArgs

    AsyncEngineArgs(model=model, enable_sleep_mode=True).create_model_config()


def probe_engine_threads(_model: str) -> None:
    from unittest.mock import patch

    import torch
    from vllm.v1.worker import cpu_worker

    set_num_threads, before = torch.set_num_threads, torch.get_num_threads()
    torch.set_num_threads(1)  # what a fork server has read before the engine's number was known
    worker = SimpleNamespace(
        vllm_config=SimpleNamespace(speculative_config=None), rank=0, local_rank=0, distributed_init_method="file://x"
    )
    try:
        with (
            patch.object(cpu_worker, "init_worker_distributed_environment", side_effect=InterruptedError),
            patch.dict(os.environ, OMP_NUM_THREADS="2"),
            pytest.raises(InterruptedError),
        ):
            cpu_worker.CPUWorker.init_device(worker)
        assert torch.get_num_threads() == 2, f"{torch.get_num_threads()} threads"
    finally:
        torch.set_num_threads = set_num_threads
        torch.set_num_threads(before)


PROBES = {name.removeprefix("probe_"): probe for name, probe in globals().items() if name.startswith("probe_")}

WITHOUT = {
    "flash_attn": "No module named 'flash_attn'",
    "torch_cuda": "Torch not compiled with CUDA enabled",
    "shm_comm": "/bin/false",  # it calls the compiler
    "fp32": "Invalid param_dtype: fp32",
    "replay_buffer_device": "Invalid device string: 'cuda:cpu'",
    "torch_adam": "/bin/false",
    "state_offload": "supported only for DeepSpeed FusedAdam",
    "ema_device": "Torch not compiled with CUDA enabled",
    "actor_attention": "flash",
    "critic_attention": "flash",
    "pin_memory": "no accelerator is found",
    "cuda_ipc": "use_cuda_ipc",
    "vllm_sleep": "Sleep mode is not supported",
    "engine_threads": "1 threads",
}


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> dict[str, dict[str, str | None]]:
    """What each probe raised (None: nothing) with the workarounds on and off."""
    folder = tmp_path_factory.mktemp("probes")
    model = str(make_model(folder / "model", dtype="bfloat16"))
    others = [name for name in PROBES if name not in BUILT_ON]
    runs = {"on": ([], list(PROBES)), "off": (others, others), "base": (BUILT_ON, BUILT_ON)}
    processes = {}
    for run, (disabled, probes) in runs.items():
        environment = {
            **os.environ,
            DISABLE_VARIABLE: ",".join(disabled),
            # A machine without a compiler: DeepSpeed's own Adam cannot be built, and would take a minute if it could.
            "CXX": "/bin/false",
            "TORCH_EXTENSIONS_DIR": str(folder / run),
            "RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0",
        }  # fmt: skip
        command = [sys.executable, "-m", "tests.stack.test_platform_workarounds", model, str(folder / run), *probes]
        processes[run] = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
    outcome = {}
    for run, process in processes.items():
        output, _ = process.communicate(timeout=300)
        assert process.returncode == 0, output
        outcome[run] = json.loads((folder / f"{run}.json").read_text())
    return {"on": outcome["on"], "off": outcome["off"] | outcome["base"]}


def test_every_workaround_is_tested():
    assert set(PROBES) | set(ELSEWHERE) == set(WORKAROUNDS)


@pytest.mark.parametrize("name", PROBES)
def test_with_the_workaround_it_works(results, name):
    assert results["on"][name] is None


@pytest.mark.parametrize("name", PROBES)
def test_without_the_workaround_upstream_still_fails(results, name):
    assert results["off"][name] is not None, f"upstream works by itself now: remove workaround {name}"
    assert WITHOUT[name].lower() in results["off"][name].lower()


def main(model: str, result: str, *names: str) -> None:
    outcome: dict[str, str | None] = {}
    for name in names:
        try:
            PROBES[name](model)
        except Exception as error:  # a probe's failure is the result
            outcome[name] = f"{type(error).__name__}: {error}"
        else:
            outcome[name] = None
    Path(result).with_suffix(".json").write_text(json.dumps(outcome))


if __name__ == "__main__":
    main(*sys.argv[1:])

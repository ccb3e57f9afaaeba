"""The plan's formulas against DeepSpeed's own estimators, and against the bytes of real runs on one and two ranks.

The runs start this file as processes of its own (`python -m tests.stack.test_memory_bytes MODEL RESULT`).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks.tiny_models import make_model
from score_openrlhf.memory_plan.footprint import VALUE_BYTES, ForwardMemory, ModelMemory
from score_openrlhf.memory_plan.model_shape import KNOWN_SHAPES, ModelShape, from_config_json
from score_openrlhf.platform.ports import free_port
from tests.stack.conftest import module

ROOT = Path(__file__).parents[2]
# ZeRO stage, type of weights, type in which gradients are added up
SETTINGS = [(3, "bf16", None), (3, "fp32", None), (2, "bf16", None), (3, "bf16", "fp32"), (2, "bf16", "fp32")]


@pytest.mark.parametrize("name", ["Qwen/Qwen2.5-1.5B", "Qwen/Qwen2.5-7B", "meta-llama/Llama-3.1-70B"])
@pytest.mark.parametrize(("gpus", "nodes"), [(1, 1), (8, 1), (8, 4)])
def test_states_are_those_of_deepspeeds_estimators(name, gpus, nodes):
    """Theirs count a gradient as a float; ours has it in the weights' type at rest, as the real run below shows."""
    from deepspeed.runtime.zero.stage3 import estimate_zero3_model_states_mem_needs
    from deepspeed.runtime.zero.stage_1_and_2 import estimate_zero2_model_states_mem_needs

    shape, ranks = KNOWN_SHAPES[name], gpus * nodes
    options = dict(num_gpus_per_node=gpus, num_nodes=nodes)
    float_gradients = 4 * shape.num_params // ranks

    held = ModelMemory(shape, value_bytes=2, zero_stage=3, ranks=ranks)
    largest = shape.embedding_params  # they add its whole weights and gradients, 2 bytes each
    _, theirs, _ = estimate_zero3_model_states_mem_needs(shape.num_params, largest, **options, cpu_offload=False)
    assert held.weights() + held.optimizer() + float_gradients + 4 * largest == pytest.approx(theirs, rel=1e-6)
    _, theirs, _ = estimate_zero3_model_states_mem_needs(
        shape.num_params, largest, **options, cpu_offload=True, cpu_offload_params=False
    )
    assert held.weights() + 4 * largest == pytest.approx(theirs, rel=1e-6)

    held = ModelMemory(shape, value_bytes=2, zero_stage=2, ranks=ranks)
    _, theirs = estimate_zero2_model_states_mem_needs(shape.num_params, **options, cpu_offload=False)
    # 18 bytes a parameter are divided: gradients in both types, master weights and moments
    states = held.weights() + held.gradients() + held.optimizer()
    assert states + float_gradients == pytest.approx(theirs, rel=1e-6)


def train_rank(model: str, result: str) -> None:
    """One optimizer step of OpenRLHF's actor in each of SETTINGS; rank r writes the bytes it holds to `result.r`."""
    import torch.distributed as dist

    reports = {str(setting): bytes_after_a_step(model, *setting) for setting in SETTINGS}
    Path(f"{result}.{dist.get_rank()}").write_text(json.dumps(reports))
    dist.barrier()


def bytes_after_a_step(model: str, zero_stage: int, param_dtype: str, grad_accum_dtype: str | None) -> dict[str, int]:
    """Bytes of the tensors in which DeepSpeed keeps weights, gradients, master weights and moments on this rank."""
    import torch
    from openrlhf.models import Actor
    from openrlhf.utils.deepspeed import DeepspeedStrategy

    ds = SimpleNamespace(
        param_dtype=param_dtype,
        grad_accum_dtype=grad_accum_dtype,
        adam_offload=False,
        zero_stage=zero_stage,
        tensor_parallel_size=1,
    )
    strategy = DeepspeedStrategy(
        args=SimpleNamespace(ds=ds, train=SimpleNamespace(), local_rank=-1),
        zero_stage=zero_stage,
        micro_train_batch_size=2,
        train_batch_size=2 * int(os.environ["WORLD_SIZE"]),
    )
    strategy.setup_distributed()
    actor = Actor(model, attn_implementation="sdpa", param_dtype=param_dtype, ds_config=strategy.get_ds_train_config())
    config = {
        "optim": "adam",
        "adam": {"lr": 1e-3, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.0},
        "lr_scheduler": "constant",
        "lr_warmup_ratio": 0.0,
        "scheduler_steps": 2,
    }
    actor, _, scheduler = strategy.prepare((actor, config))
    tokens = torch.randint(5, 300, (2, 12))
    mask = torch.ones_like(tokens)
    log_probs = actor(tokens, mask[:, 1:], attention_mask=mask)
    strategy.backward(-log_probs.mean(), actor, None)
    zero = actor.model.optimizer

    def size(tensors) -> int:
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    if zero_stage == 3:
        weights, gradients = [zero.lp_param_buffer], [zero.grad_partitions_flat_buffer]
        buckets = [bucket.buffer for bucket in zero.ipg_buckets.values()]
        master = zero.fp32_partitioned_groups_flat
    else:
        weights = zero.bit16_groups_flat
        gradients = [gradient for group in zero.averaged_gradients.values() for gradient in group]
        buckets, master = [], zero.single_partition_of_fp32_groups
    gradient_bytes = size(gradients)  # stage 2 frees them in the step
    strategy.optimizer_step(None, actor, scheduler)
    moments = [state[name] for state in zero.optimizer.state.values() for name in ("exp_avg", "exp_avg_sq")]
    assert len(moments) == 2 * len(master)
    return {
        "weights": size(weights),
        "gradients": gradient_bytes,
        "optimizer": size(master) + size(moments),
        "bucket": size(buckets),
    }


@pytest.fixture(scope="module")
def measured(tmp_path_factory) -> tuple[ModelShape, dict[int, list[dict]]]:
    """The shape of a model, and by number of ranks what each rank holds of it in each of SETTINGS."""
    folder = tmp_path_factory.mktemp("bytes")
    model = make_model(folder / "model")
    with ExitStack() as stack:
        processes, outputs = [], []
        for ranks in (1, 2):
            result = str(folder / f"of_{ranks}")
            common = {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
            for rank in range(ranks):
                output = stack.enter_context(tempfile.TemporaryFile("w+"))  # a full pipe of one would stop the others
                command = [*module("tests.stack.test_memory_bytes"), str(model), result]
                own = {"RANK": str(rank), "LOCAL_RANK": "0", "OMP_NUM_THREADS": "1"}
                process = subprocess.Popen(
                    command, cwd=ROOT, env={**os.environ, **common, **own}, stdout=output, stderr=subprocess.STDOUT
                )
                stack.callback(process.wait)
                stack.callback(process.kill)
                processes.append(process)
                outputs.append(output)
        codes = [process.wait(timeout=300) for process in processes]
        for output in outputs:
            output.seek(0)
        assert codes == [0, 0, 0], "".join(output.read()[-3000:] for output in outputs)
    reports = {
        ranks: [json.loads((folder / f"of_{ranks}.{rank}").read_text()) for rank in range(ranks)] for ranks in (1, 2)
    }
    return from_config_json(str(model / "config.json")), reports


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_a_real_run_holds_the_planned_bytes(measured, ranks, setting):
    shape, reports = measured
    zero_stage, param_dtype, accumulated = setting
    if zero_stage == 2:
        accumulated = None  # DeepSpeed does not do it, so the configuration is refused; if this fails, it does by now
    held = ModelMemory(
        shape, VALUE_BYTES[param_dtype], zero_stage, ranks, accumulation_bytes=accumulated and VALUE_BYTES[accumulated]
    )
    assert len(reports[ranks]) == ranks
    for report in reports[ranks]:
        bytes_of = report[str(setting)]
        assert bytes_of["weights"] == pytest.approx(held.weights(), rel=0.05)
        assert bytes_of["optimizer"] == pytest.approx(held.optimizer(), rel=0.05)
        assert bytes_of["gradients"] == pytest.approx(held.gradients(), rel=0.05)
        expected = held.reduce_bucket() if zero_stage == 3 else 0
        assert bytes_of["bucket"] == expected, "DeepSpeed's reduce bucket has another size now"


@pytest.mark.parametrize("kind", ["qwen2", "llama"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_forward_pass_saves_the_planned_activations(tmp_path, kind, checkpointing):
    """Bytes that autograd holds for the backward pass, each storage once, parameters left out."""
    import torch
    from transformers import AutoModelForCausalLM

    folder = make_model(tmp_path / "model", kind)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, attn_implementation="sdpa")
    model.train()
    model.config.use_cache = False
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    shape = from_config_json(str(folder / "config.json"))
    assert sum(parameter.numel() for parameter in model.parameters()) == shape.num_params
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    saved: dict[int, int] = {}
    kept = []  # a freed storage's address would be used again

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            saved[storage.data_ptr()] = storage.nbytes()
            kept.append(tensor)
        return tensor

    rows, length = 4, 256
    tokens = torch.randint(0, shape.vocab_size, (rows, length))
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(tokens)
    planned = ForwardMemory(shape, tokens=rows * length, value_bytes=2, flash_attention=True)
    assert sum(saved.values()) == pytest.approx(planned.saved(checkpointing=checkpointing), rel=0.1)


if __name__ == "__main__":
    train_rank(*sys.argv[1:])

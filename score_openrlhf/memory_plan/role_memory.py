"""One role in one phase of a step -> the bytes it takes on each of its GPUs, and in host memory."""

from __future__ import annotations

from dataclasses import dataclass, field

from score_openrlhf.cluster.placement import Kind, Role
from score_openrlhf.config.policies import PolicySpec, spec_of
from score_openrlhf.config.schema import Config
from score_openrlhf.memory_plan.footprint import (
    CONTEXT_BYTES,
    FRAGMENTATION,
    VALUE_BYTES,
    Engine,
    ForwardMemory,
    ModelMemory,
    critic_shape,
)
from score_openrlhf.memory_plan.model_shape import ModelShape

START = "start-up"
ROLLOUT = "rollout"
LOG_PROBS = "log-probs"
SYNC = "sync"


def update_of(policy: str) -> str:
    """The phase in which `policy` is updated."""
    return f"{policy} update"


@dataclass(frozen=True)
class RoleMemory:
    """One role in one phase, bytes on each of its GPUs: what it holds throughout, and what it takes in its turn."""

    role: str
    resident: dict[str, int]
    working: dict[str, int] = field(default_factory=dict)


def engine_of(cfg: Config, spec: PolicySpec, shape: ModelShape, gpu_memory: int) -> Engine:
    """One engine of a policy on GPUs of `gpu_memory` bytes."""
    return Engine(
        shape=shape,
        value_bytes=VALUE_BYTES[cfg.ds.param_dtype],
        tensor_parallel=spec.engines.tensor_parallel_size,
        gpu_memory_utilization=spec.engines.gpu_memory_utilization,
        gpu_memory=gpu_memory,
        enforce_eager=cfg.vllm.enforce_eager,
        num_seqs=spec.engines.num_seqs,
        batched_tokens=spec.engines.batched_tokens,
    )


def model_memory(cfg: Config, role: Role, shape: ModelShape) -> ModelMemory:
    """How a training or reference role holds its model."""
    return ModelMemory(
        shape=critic_shape(shape) if role.kind == Kind.CRITIC else shape,
        value_bytes=VALUE_BYTES[cfg.ds.param_dtype],
        zero_stage=cfg.ds.zero_stage,
        ranks=role.num_gpus,
        tensor_parallel=cfg.ds.tensor_parallel_size,
        zpg=1 if role.kind == Kind.REFERENCE else cfg.ds.zpg,
        lora_rank=0 if role.kind == Kind.REFERENCE else spec_of(cfg, role.policy).lora_rank,
        load_in_4bit=cfg.ds.load_in_4bit,
        accumulation_bytes=VALUE_BYTES[cfg.ds.grad_accum_dtype] if cfg.ds.grad_accum_dtype else None,
        offloaded=_offloads_reference(cfg) if role.kind == Kind.REFERENCE else cfg.ds.param_offload,
    )


def _forward_memory(cfg: Config, model: ModelMemory, rows: int, max_tokens: int | None) -> ForwardMemory:
    """A micro batch at its largest: every row as long as data.max_len."""
    if cfg.train.dynamic_batch_enable:
        tokens = max(max_tokens or cfg.train.max_tokens_per_gpu, cfg.data.max_len)
    else:
        tokens = rows * cfg.data.max_len
    return ForwardMemory(
        shape=model.shape,
        tokens=-(-tokens // cfg.ds.ring_attn_size),
        value_bytes=model.value_bytes,
        flash_attention="flash" in cfg.ds.attn_implementation,
        tensor_parallel=cfg.ds.tensor_parallel_size,
        lora_rank=model.lora_rank,
    )


def role_memory(cfg: Config, role: Role, phase: str, engine: Engine) -> RoleMemory:
    """What `role` takes in `phase`; `engine` is one of its policy's and brings the model's shape."""
    if role.kind == Kind.ENGINES:
        return _engine_role(cfg, role, phase, engine)
    model = model_memory(cfg, role, engine.shape)
    resident, reloaded = _states(cfg, role, model)
    resident["contexts"] = CONTEXT_BYTES
    if phase == START:
        # all roles load at the same time, and each puts its states away when it has them all
        first = (
            {} if "optimizer" not in resident | reloaded else _with_fragmentation({"optimizer step": model.start()})
        )
        return RoleMemory(role.name, resident | reloaded, first)
    if phase == LOG_PROBS:
        return RoleMemory(role.name, resident, _with_fragmentation(_forward(cfg, role, model)))
    if phase == update_of(role.policy) and role.trains:
        return RoleMemory(role.name, resident, reloaded | _with_fragmentation(_update(cfg, role, model)))
    if phase == SYNC and role.kind == Kind.ACTOR:
        cuda_ipc = cfg.placement == "colocate" and cfg.vllm.sync_backend == "nccl"
        return RoleMemory(role.name, resident, {"sync buffers": model.sync(cuda_ipc=cuda_ipc)})
    return RoleMemory(role.name, resident)


def _states(cfg: Config, role: Role, model: ModelMemory) -> tuple[dict[str, int], dict[str, int]]:
    """(what stays on the GPU between updates, what is reloaded for an update).

    The host's offload between updates leaves the weights; with adam_offload it returns at once and so leaves the
    bucket too (openrlhf/utils/deepspeed/deepspeed_utils.py, offload_deepspeed_states).
    """
    if role.kind == Kind.REFERENCE:
        return {"weights": 0 if _offloads_reference(cfg) else model.weights()}, {}
    states = {}
    if not cfg.ds.adam_offload:
        states["optimizer"] = model.optimizer()
    if cfg.ds.zero_stage == 3:  # stage 2 makes gradients and buckets anew in each update
        states["gradients"] = 0 if cfg.ds.adam_offload else model.gradients()
        states["reduce bucket"] = model.reduce_bucket()
    weights = {"weights": 0 if cfg.ds.param_offload else model.weights()}
    if cfg.ds.enable_sleep and not cfg.ds.adam_offload:
        return weights, states
    return weights | states, {}


def _offloads_reference(cfg: Config) -> bool:
    return cfg.ref.offload and cfg.ds.zero_stage == 3  # the host's stage-0 reference has no parameter offload


def _forward(cfg: Config, role: Role, model: ModelMemory) -> dict[str, int]:
    batch = _forward_memory(cfg, model, cfg.rollout.micro_batch_size, cfg.rollout.max_tokens_per_gpu)
    activations, logits = batch.forward(logits=role.kind != Kind.CRITIC)
    return {"gathered weights": model.gathered(), "activations": activations, "logits": logits}


def _update(cfg: Config, role: Role, model: ModelMemory) -> dict[str, int]:
    """The larger of the backward pass and the optimizer step."""
    batch = _forward_memory(cfg, model, cfg.train.micro_batch_size, cfg.train.max_tokens_per_gpu)
    activations, logits = batch.training(
        checkpointing=cfg.actor.gradient_checkpointing_enable,
        entropy=cfg.actor.entropy_coef is not None,
        logits=role.kind != Kind.CRITIC,
    )
    backward = {
        "gathered weights": model.gathered(),
        "activations": activations,
        "logits": logits,
        "reduction": model.reduction(),
    }
    step = {} if cfg.ds.adam_offload else {"optimizer step": model.optimizer_step()}
    if cfg.ds.zero_stage == 2:  # stage 3 keeps its bucket and its gradients from update to update
        backward["reduction"] += model.reduce_bucket() * (2 if cfg.ds.overlap_comm else 1)
        if not cfg.ds.adam_offload:
            backward["gradients"] = 2 * model.gradients()  # of this micro batch, and the sum they are added to
            step["gradients"] = model.gradients()
    return max(backward, step, key=_sum)


def _with_fragmentation(parts: dict[str, int]) -> dict[str, int]:
    return parts | {"fragmentation": int(sum(parts.values()) * FRAGMENTATION)}


def _engine_role(cfg: Config, role: Role, phase: str, engine: Engine) -> RoleMemory:
    contexts = {"contexts": CONTEXT_BYTES}
    awake = {
        "engine weights": engine.weights(),
        "engine workspace": engine.workspace() + engine.graphs(),
        "KV cache": max(0, engine.kv_cache()),
    }
    asleep = {"engine workspace": engine.graphs()}
    receiving = {"sync buffers": engine.receiving()} if phase == SYNC else {}
    if not cfg.vllm.enable_sleep:
        return RoleMemory(role.name, contexts | awake, receiving)
    if phase == ROLLOUT:
        if cfg.rollout.schedule == "pipelined":
            return RoleMemory(role.name, contexts | awake)
        woken = {name: size - asleep.get(name, 0) for name, size in awake.items()}
        return RoleMemory(role.name, contexts | asleep, woken)
    if phase == SYNC:
        # Weights alone, to receive; then the whole engine for a moment, since vLLM lets none sleep that is half awake.
        # Where the sender shares the GPU, its gathered parameter and that one's copy stand beside.
        copies = 3 if cfg.placement == "colocate" else 1
        half = {"engine weights": engine.weights(), "sync buffers": copies * engine.receiving()}
        woken = {name: size - asleep.get(name, 0) for name, size in awake.items()}
        return RoleMemory(role.name, contexts | asleep, max(half, woken, key=_sum))
    return RoleMemory(role.name, contexts | asleep)


def _sum(parts: dict[str, int]) -> int:
    return sum(parts.values())


def host_bytes(cfg: Config, role: Role, engine: Engine) -> int:
    """Host memory of all of the role's processes while their states are off the GPUs."""
    if role.kind == Kind.ENGINES:  # level-1 sleep keeps the weights in host memory
        return engine.weights() * role.num_gpus if cfg.vllm.enable_sleep else 0
    model = model_memory(cfg, role, engine.shape)
    if role.kind == Kind.REFERENCE:
        return model.weights() * role.num_gpus if _offloads_reference(cfg) else 0
    if not (cfg.ds.enable_sleep or cfg.ds.adam_offload):
        return 0
    weights = model.weights() if cfg.ds.param_offload else 0
    return (weights + model.optimizer() + model.gradients()) * role.num_gpus

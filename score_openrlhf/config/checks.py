"""A configuration whose single values are sound -> the contradictions between its keys, each with its fix."""

from __future__ import annotations

import math
from collections.abc import Iterator
from importlib.util import find_spec

from score_openrlhf.config.derive import guidance_start, has_guidance, method_of, runs_stage, trajectories_per_step
from score_openrlhf.config.methods import GUIDANCE, SOLVER
from score_openrlhf.config.policies import (
    learning_specs,
    policy_specs,
    spec_of,
    wants_shared_reference,
)
from score_openrlhf.config.schema import Config
from score_openrlhf.config.sizes import group_sizes
from score_openrlhf.config.stages import num_steps
from score_openrlhf.platform.detect import is_cpu


def check_method(cfg: Config) -> Iterator[str]:
    """`method` against the flags it could be derived from, and whether anything is trained."""
    if cfg.method == "score" and cfg.use_smart_corrections:
        yield "method score has no guidance model, but use_smart_corrections is true: drop one of the two"
    if cfg.method in ("score", "smart_score") and cfg.train_guidance_model:
        yield f"method {cfg.method} trains no guidance model, but train_guidance_model is true: drop one of the two"
    learning = learning_specs(cfg)
    if not any(spec.trains for spec in learning):
        frozen = " and ".join(f"{spec.name}.freeze" for spec in learning)
        yield f"method {method_of(cfg)} with {frozen} trains nothing: set {learning[0].name}.freeze=false"


def check_stages(cfg: Config) -> Iterator[str]:
    """Lengths of the stages against `start_stage` and `max_steps`."""
    if num_steps(cfg) == 0:
        yield (
            f"start_stage {cfg.start_stage}, stage1_steps {cfg.stage1_steps} and stage2_steps {cfg.stage2_steps} "
            "leave no step to run: raise stage1_steps or stage2_steps"
        )


def check_objective(cfg: Config) -> Iterator[str]:
    """Settings under which the objective would not be the method's."""
    if runs_stage(cfg, 1) and spec_of(cfg, SOLVER).trains and cfg.beta2 == 0:
        yield (
            "beta2 is 0: stage I trains turn 2 alone and needs beta2 > 0 to hold turn 1 to the reference; "
            "set beta2=0.1, or skip stage I with stage1_steps=0 or start_stage=2"
        )
    if cfg.beta2_max is not None and cfg.beta2_max < cfg.beta2:
        yield (
            f"beta2_max is {cfg.beta2_max} and beta2, the lower bound of an adaptive beta2, is {cfg.beta2}: "
            f"raise beta2_max above {cfg.beta2}, or set beta2_max=null for a beta2 that stays"
        )
    if cfg.rollout.top_p != 1:
        yield (
            f"rollout.top_p is {cfg.rollout.top_p}: sampling from a cut distribution gives log-probs that are not the "
            "policy's; set rollout.top_p=1"
        )
    if cfg.actor.policy_loss_type == "gspo":
        yield "actor.policy_loss_type gspo averages the ratio over both turns; set actor.policy_loss_type=ppo"
    if cfg.actor.loss_agg_mode == "seq-mean-token-mean":
        yield (
            "actor.loss_agg_mode seq-mean-token-mean weights a token by its trajectory's length; "
            "set actor.loss_agg_mode=token-mean"
        )
    if cfg.algo.is_correction.level == "seq":
        yield (
            "algo.is_correction.level seq averages the ratio of engine and trainer over both turns; "
            "set algo.is_correction.level=token"
        )
    if cfg.solver.normalise in ("std", "group_std") and runs_stage(cfg, 2) and not cfg.solver.allow_std_in_stage2:
        yield (
            f"solver.normalise {cfg.solver.normalise} divides stage II's turn 2 by its scale and cancels "
            f"1 + alpha = {1 + cfg.alpha}; "
            "set solver.normalise=none, or solver.allow_std_in_stage2=true if that is what you want"
        )
    if cfg.solver.normalise == "group_std" and cfg.critic.enable:
        yield (
            "solver.normalise group_std divides by the deviation of a problem's returns, not what a critic's "
            "advantages are made of: set solver.normalise=std or none, or critic.enable=false"
        )
    num_attempts = cfg.rollout.n_samples_per_prompt
    for key in ("baseline", "baseline_t2"):
        if getattr(cfg.solver, key) == "group_mean" and not cfg.critic.enable and num_attempts == 1:
            yield (
                f"solver.{key} group_mean with rollout.n_samples_per_prompt 1 makes every advantage of its turn 0: "
                f"set rollout.n_samples_per_prompt=2 or solver.{key}=batch_mean"
            )
    if cfg.solver.dynamic_filtering and num_attempts * cfg.guidance_samples == 1:
        yield (
            "solver.dynamic_filtering with one trajectory per problem masks every problem: "
            "set rollout.n_samples_per_prompt=2 or solver.dynamic_filtering=false"
        )
    if cfg.guidance.dynamic_filtering and cfg.guidance_samples == 1 and spec_of(cfg, GUIDANCE).trains:
        yield (
            "guidance.dynamic_filtering with guidance_samples 1 masks every guidance: "
            "set guidance_samples=2 or guidance.dynamic_filtering=false"
        )


def check_lists(cfg: Config) -> Iterator[str]:
    """Lengths and orders of list values."""
    betas = cfg.actor.adam.betas
    if len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
        yield f"actor.adam.betas is {betas}: give two numbers in [0, 1), such as [0.9,0.95]"
    low_high = cfg.actor.eps_clip_low_high
    if low_high is not None and (len(low_high) != 2 or not (0 < low_high[0] < 1 and low_high[1] > 0)):
        yield f"actor.eps_clip_low_high is {low_high}: give how far below (under 1) and above 1, such as [0.2,0.28]"
    rewards = cfg.task.reward_range
    if rewards is not None and (len(rewards) != 2 or not rewards[0] < rewards[1]):
        yield f"task.reward_range is {rewards}: give the lowest and the highest reward, such as [-1,1]"
    band = cfg.algo.is_correction.threshold
    if len(band) != 2 or not 0 <= band[0] < band[1]:
        yield f"algo.is_correction.threshold is {band}: give a lower and a higher bound, such as [0.5,5.0]"


def check_host_settings(cfg: Config) -> Iterator[str]:
    """What the host or DeepSpeed refuses, found before anything is started."""
    if cfg.ds.tensor_parallel_size > 1 and cfg.ds.param_dtype != "bf16":
        yield f"ds.tensor_parallel_size {cfg.ds.tensor_parallel_size} trains in bf16 only, not {cfg.ds.param_dtype}"
    if cfg.ds.load_in_4bit:
        yield (
            "ds.load_in_4bit: engines hold whole weights, and those of a policy in 4 bits cannot be sent to them; "
            "set ds.load_in_4bit=false (ds.lora.rank above 0 saves gradients and optimizer)"
        )
    if cfg.ds.param_offload and not (cfg.ds.zero_stage == 3 and cfg.ds.adam_offload):
        yield (
            f"ds.param_offload needs ds.zero_stage 3 and ds.adam_offload true, not {cfg.ds.zero_stage} and "
            f"{str(cfg.ds.adam_offload).lower()}: DeepSpeed offloads weights under ZeRO-3, and master weights with "
            "the optimizer"
        )
    if cfg.ds.grad_accum_dtype not in (None, cfg.ds.param_dtype, "fp32"):
        yield (
            f"ds.grad_accum_dtype {cfg.ds.grad_accum_dtype} is neither ds.param_dtype {cfg.ds.param_dtype} nor fp32: "
            "leave it out or set ds.grad_accum_dtype=fp32"
        )
    elif cfg.ds.zero_stage == 2 and cfg.ds.grad_accum_dtype not in (None, cfg.ds.param_dtype):
        # stage_1_and_2.py, get_all_grad_tensors: takes the gradients as they are and never turns them
        yield (
            f"ds.grad_accum_dtype {cfg.ds.grad_accum_dtype} has no effect in ZeRO-2, where DeepSpeed adds them up in "
            f"the weights' type {cfg.ds.param_dtype}: set ds.zero_stage=3 or leave it out"
        )
    if cfg.ds.ring_attn_size > 1 and cfg.ds.attn_implementation != "flash_attention_2":
        yield (
            f"ds.ring_attn_size {cfg.ds.ring_attn_size} puts its ring into flash attention's functions: with "
            f"ds.attn_implementation {cfg.ds.attn_implementation} each rank would see its part of a row alone; set "
            "ds.attn_implementation=flash_attention_2 or ds.ring_attn_size=1"
        )
    if cfg.ds.param_dtype == "fp32" and "flash" in cfg.ds.attn_implementation and not is_cpu():
        yield (
            f"ds.param_dtype fp32: ds.attn_implementation {cfg.ds.attn_implementation} has kernels for bf16 and fp16 "
            "alone; set ds.attn_implementation=sdpa or ds.param_dtype=bf16"
        )
    if cfg.ds.tensor_parallel_size > 1 and any(spec.lora_rank for spec in learning_specs(cfg)):
        yield "ds.tensor_parallel_size above 1 does not divide LoRA adapters: set it to 1, or the LoRA ranks to 0"
    if cfg.train.dynamic_batch_enable:
        for name, tokens in (
            ("train.max_tokens_per_gpu", cfg.train.max_tokens_per_gpu),
            ("rollout.max_tokens_per_gpu", cfg.rollout.max_tokens_per_gpu),
        ):
            if tokens is not None and tokens < cfg.data.max_len:
                yield f"{name} {tokens} cannot hold one sequence of data.max_len {cfg.data.max_len}: raise it"
    for stage_key, value in (("eval.steps", cfg.eval.steps), ("ckpt.save_steps", cfg.ckpt.save_steps)):
        if value == 0:
            yield f"{stage_key} is 0: give a number of steps, or -1 for never during training"
    if cfg.eval.steps > 0 and not cfg.data.eval:
        yield f"eval.steps is {cfg.eval.steps}, but data.eval is not set: give held-out problems or set eval.steps=-1"
    if cfg.logger.wandb_mode != "disabled" and find_spec("wandb") is None:
        yield (
            f"logger.wandb_mode {cfg.logger.wandb_mode} needs the wandb package, which is not installed: "
            "pip install wandb or set logger.wandb_mode=disabled"
        )
    if wants_shared_reference(cfg) and has_guidance(cfg):
        shared = cfg.placement == "shared_reference"
        asked, remedy = (
            ("placement shared_reference", "placement=split") if shared else ("ref.shared", "ref.shared=false")
        )
        if guidance_start(cfg) != cfg.model_path:
            yield f"{asked}: one reference cannot serve {cfg.model_path} and {guidance_start(cfg)}; set {remedy}"
        if cfg.rollout.temperature != cfg.rollout.guidance_temperature:
            yield (
                f"{asked}: one reference has one temperature, not {cfg.rollout.temperature} and "
                f"{cfg.rollout.guidance_temperature}; set {remedy}"
            )


def check_sequence_budget(cfg: Config) -> Iterator[str]:
    """Token budgets against the longest sequence: the revision's context holds all three texts and the prompts."""
    budgets = {"attempt": cfg.rollout.attempt_max_tokens, "revision": cfg.rollout.revision_max_tokens}
    if has_guidance(cfg):
        budgets["guidance"] = cfg.rollout.guidance_max_tokens
    total = sum(budgets.values())
    if total >= cfg.data.max_len:
        terms = " + ".join(f"{name} {tokens}" for name, tokens in budgets.items())
        yield (
            f"token budgets {terms} = {total} leave no room for the prompts in data.max_len {cfg.data.max_len}: "
            "raise data.max_len or lower a rollout.*_max_tokens"
        )


def check_placement(cfg: Config) -> Iterator[str]:
    """Roles that share GPUs must sleep in turn, and engines must stand on the GPUs their policy trains on."""
    if cfg.placement == "shared_reference":
        if len(learning_specs(cfg)) < 2:
            yield f"placement shared_reference is for two trained policies, method {method_of(cfg)} has one: use split"
        if cfg.ref.shared is False:
            yield "placement shared_reference and ref.shared=false contradict each other: leave ref.shared out"
    if cfg.placement != "colocate":
        return
    if cfg.vllm.sync_backend == "gloo":
        yield (
            "placement colocate hands weights over inside each GPU, which OpenRLHF does for vllm.sync_backend nccl "
            "alone: leave vllm.sync_backend out (CPU machines use gloo by themselves)"
        )
    asleep = {"vllm.enable_sleep": cfg.vllm.enable_sleep, "ds.enable_sleep": cfg.ds.enable_sleep}
    for name in (name for name, enabled in asleep.items() if not enabled):
        yield f"placement colocate shares GPUs between training and engines, so both must sleep: set {name}=true"
    for spec in learning_specs(cfg):
        engines = spec.engines
        if engines.num_gpus != spec.group.num_gpus:
            yield (
                f"placement colocate: {spec.name} engines take {engines.num_engines} engines x "
                f"{engines.tensor_parallel_size} GPUs = {engines.num_gpus}, its training group "
                f"{spec.group.num_gpus}: make them equal with {engines.section}.num_engines"
            )
    shares = [spec.engines.gpu_memory_utilization for spec in policy_specs(cfg)]
    if cfg.rollout.schedule == "pipelined" and sum(shares) > 1:
        yield (
            f"placement colocate with schedule pipelined keeps both engine groups awake on one GPU: "
            f"gpu_memory_utilization {' + '.join(map(str, shares))} = {sum(shares):.2f} is more than 1; "
            "lower them or set rollout.schedule=phased"
        )


def check_engines(cfg: Config) -> Iterator[str]:
    """What an engine computes at once: each sequence it samples from takes one of the batch's tokens."""
    for spec in policy_specs(cfg):
        num_seqs = spec.engines.num_seqs
        num_tokens = spec.engines.batched_tokens
        if num_tokens < num_seqs:
            yield (
                f"{spec.name} engines: max_num_batched_tokens {num_tokens} is less than max_num_seqs {num_seqs}, and "
                "each sequence takes a token: raise vllm.max_num_batched_tokens or lower vllm.max_num_seqs"
            )


def check_batches(cfg: Config) -> Iterator[str]:
    """Ranks, micro batches and optimizer batches, with the arithmetic shown."""
    split = cfg.ds.ring_attn_size * cfg.ds.tensor_parallel_size
    for spec in learning_specs(cfg):
        policy, groups = spec.name, group_sizes(spec)
        uneven = {num_gpus: group for group, num_gpus in reversed(groups.items()) if num_gpus % split}
        for num_gpus, group in uneven.items():
            yield (
                f"{group}: {num_gpus} GPUs do not divide by ds.ring_attn_size {cfg.ds.ring_attn_size} x "
                f"ds.tensor_parallel_size {cfg.ds.tensor_parallel_size} = {split}"
            )
        if uneven:
            continue
        world = groups[policy]
        if world % cfg.ds.zpg:
            yield f"{policy}: {world} GPUs do not divide by ds.zpg {cfg.ds.zpg}"
        for group, num_gpus in groups.items():
            if cfg.train.dynamic_batch_enable and world % num_gpus:
                yield (
                    f"{policy}: with train.dynamic_batch_enable its {world} GPUs must divide by the {num_gpus} of its "
                    f"{group} group, whose ranks would get unequal numbers of batches and wait for ever: set "
                    f"{group}.num_nodes and {group}.num_gpus_per_node"
                )
        # the critic's optimizer steps are over the same rows
        ranks = math.lcm(world, groups.get("critic", world)) // split
        micro = 1 if cfg.train.dynamic_batch_enable else cfg.train.micro_batch_size
        if cfg.train.batch_size and cfg.train.batch_size % (ranks * micro) and spec.trains:
            rows = trajectories_per_step(cfg)
            below = cfg.train.batch_size // (ranks * micro) * ranks * micro
            near = [str(size) for size in (below, below + ranks * micro) if size]
            yield (
                f"{policy}: train.batch_size {cfg.train.batch_size} does not divide by {ranks} ranks x "
                f"train.micro_batch_size {micro} = {ranks * micro}; set it to {' or '.join(near)} (a step has "
                f"{cfg.rollout.batch_size} problems x {cfg.rollout.n_samples_per_prompt} attempts x "
                f"{cfg.guidance_samples} revisions = {rows} trajectories), or to null for one update a step"
            )

"""A configuration whose single values are sound -> the contradictions between its keys, each with its fix."""

from __future__ import annotations

import math
from collections.abc import Iterator
from importlib.util import find_spec

from score_openrlhf.config.derive import (
    GUIDANCE,
    POLICIES,
    SOLVER,
    group_sizes,
    guidance_start,
    has_guidance,
    lora_rank,
    method_of,
    runs_stage,
    trains,
    trajectories_per_step,
    wants_shared_reference,
    world_size,
)
from score_openrlhf.config.schema import Config
from score_openrlhf.config.stages import num_steps


def method(cfg: Config) -> Iterator[str]:
    """`method` against the flags it could be derived from, and whether anything is trained."""
    if cfg.method == "score" and cfg.use_smart_corrections:
        yield "method score has no guidance model, but use_smart_corrections is true: drop one of the two"
    if cfg.method in ("score", "smart_score") and cfg.train_guidance_model:
        yield f"method {cfg.method} trains no guidance model, but train_guidance_model is true: drop one of the two"
    if not any(trains(cfg, policy) for policy in POLICIES):
        frozen = "solver.freeze and guidance.freeze" if method_of(cfg) == "rl_guided_score" else "solver.freeze"
        yield f"method {method_of(cfg)} with {frozen} trains nothing: set solver.freeze=false"


def stages(cfg: Config) -> Iterator[str]:
    """Lengths of the stages against `start_stage` and `max_steps`."""
    if num_steps(cfg) == 0:
        yield (
            f"start_stage {cfg.start_stage}, stage1_steps {cfg.stage1_steps} and stage2_steps {cfg.stage2_steps} "
            "leave no step to run: raise stage1_steps or stage2_steps"
        )


def objective(cfg: Config) -> Iterator[str]:
    """Settings under which the objective would not be the method's."""
    if runs_stage(cfg, 1) and trains(cfg, SOLVER) and cfg.beta2 == 0:
        yield (
            "beta2 is 0: stage I trains turn 2 alone and needs beta2 > 0 to hold turn 1 to the reference; "
            "set beta2=0.1, or skip stage I with stage1_steps=0 or start_stage=2"
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
    if cfg.solver.baseline == "group_mean" and not cfg.critic.enable and num_attempts == 1:
        yield (
            "solver.baseline group_mean with rollout.n_samples_per_prompt 1 makes every advantage 0: "
            "set rollout.n_samples_per_prompt=2 or solver.baseline=batch_mean"
        )
    if cfg.solver.dynamic_filtering and num_attempts * cfg.guidance_samples == 1:
        yield (
            "solver.dynamic_filtering with one trajectory per problem masks every problem: "
            "set rollout.n_samples_per_prompt=2 or solver.dynamic_filtering=false"
        )
    if cfg.guidance.dynamic_filtering and cfg.guidance_samples == 1 and trains(cfg, GUIDANCE):
        yield (
            "guidance.dynamic_filtering with guidance_samples 1 masks every guidance: "
            "set guidance_samples=2 or guidance.dynamic_filtering=false"
        )


def lists(cfg: Config) -> Iterator[str]:
    """Lengths and orders of list values."""
    betas = cfg.actor.adam.betas
    if len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
        yield f"actor.adam.betas is {betas}: give two numbers in [0, 1), such as [0.9,0.95]"
    low_high = cfg.actor.eps_clip_low_high
    if low_high is not None and (len(low_high) != 2 or not (0 < low_high[0] < 1 and low_high[1] > 0)):
        yield f"actor.eps_clip_low_high is {low_high}: give how far below (under 1) and above 1, such as [0.2,0.28]"
    band = cfg.algo.is_correction.threshold
    if len(band) != 2 or not 0 <= band[0] < band[1]:
        yield f"algo.is_correction.threshold is {band}: give a lower and a higher bound, such as [0.5,5.0]"


def host_settings(cfg: Config) -> Iterator[str]:
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
    if cfg.ds.tensor_parallel_size > 1 and any(lora_rank(cfg, policy) for policy in POLICIES):
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


def sequence_budget(cfg: Config) -> Iterator[str]:
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


def placement(cfg: Config) -> Iterator[str]:
    """Roles that share GPUs must sleep in turn, and engines must stand on the GPUs their policy trains on."""
    if cfg.placement == "shared_reference":
        if method_of(cfg) != "rl_guided_score":
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
    for policy, key, num_engines, tensor_parallel in _trained_engines(cfg):
        gpus = world_size(cfg, policy)
        if num_engines * tensor_parallel != gpus:
            yield (
                f"placement colocate: {policy} engines take {num_engines} engines x {tensor_parallel} GPUs = "
                f"{num_engines * tensor_parallel}, its training group {gpus}: make them equal with {key}.num_engines"
            )
    shares = [cfg.vllm.gpu_memory_utilization]
    if has_guidance(cfg) and cfg.rollout.schedule == "pipelined":
        shares.append(cfg.guidance_vllm.gpu_memory_utilization or cfg.vllm.gpu_memory_utilization)
    if sum(shares) > 1:
        yield (
            f"placement colocate with schedule pipelined keeps both engine groups awake on one GPU: "
            f"gpu_memory_utilization {' + '.join(map(str, shares))} = {sum(shares):.2f} is more than 1; "
            "lower them or set rollout.schedule=phased"
        )


def _trained_engines(cfg: Config) -> Iterator[tuple[str, str, int, int]]:
    """(policy, section, engines, GPUs per engine) of the engines that receive weights."""
    yield SOLVER, "vllm", cfg.vllm.num_engines, cfg.vllm.tensor_parallel_size
    if method_of(cfg) == "rl_guided_score":
        yield (
            GUIDANCE,
            "guidance_vllm",
            cfg.guidance_vllm.num_engines or cfg.vllm.num_engines,
            cfg.guidance_vllm.tensor_parallel_size or cfg.vllm.tensor_parallel_size,
        )


def batches(cfg: Config) -> Iterator[str]:
    """Ranks, micro batches and optimizer batches, with the arithmetic shown."""
    split = cfg.ds.ring_attn_size * cfg.ds.tensor_parallel_size
    for policy in POLICIES if method_of(cfg) == "rl_guided_score" else (SOLVER,):
        groups = group_sizes(cfg, policy)
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
        if cfg.train.batch_size and cfg.train.batch_size % (ranks * micro) and trains(cfg, policy):
            rows = trajectories_per_step(cfg)
            below = cfg.train.batch_size // (ranks * micro) * ranks * micro
            near = [str(size) for size in (below, below + ranks * micro) if size]
            yield (
                f"{policy}: train.batch_size {cfg.train.batch_size} does not divide by {ranks} ranks x "
                f"train.micro_batch_size {micro} = {ranks * micro}; set it to {' or '.join(near)} (a step has "
                f"{cfg.rollout.batch_size} problems x {cfg.rollout.n_samples_per_prompt} attempts x "
                f"{cfg.guidance_samples} revisions = {rows} trajectories), or to null for one update a step"
            )

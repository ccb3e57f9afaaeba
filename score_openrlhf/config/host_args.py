"""A configuration and a policy's name -> the nested arguments OpenRLHF's classes read, as its own parser nests them.

Two policies mean two copies: each has its own learning rate, KL weight, batch arithmetic, temperature, engines and
checkpoint root, because the host's classes read all of these from `strategy.args`.
"""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

from score_openrlhf.config.host_defaults import HOST_DEFAULTS
from score_openrlhf.config.keys import value_of
from score_openrlhf.config.policies import PolicySpec, spec_of
from score_openrlhf.config.schema import Config
from score_openrlhf.config.sizes import sizes

# Host dest -> the key of ours with the same meaning; the value is passed on as it is.
SAME_MEANING: Mapping[str, str] = {
    **{
        name: name
        for name in (
            "actor.adam.eps",
            "actor.adam.weight_decay",
            "actor.dual_clip",
            "actor.entropy_coef",
            "actor.eps_clip",
            "actor.gradient_checkpointing_enable",
            "actor.gradient_checkpointing_reentrant",
            "actor.loss_agg_mode",
            "actor.lr_scheduler",
            "actor.lr_warmup_ratio",
            "actor.max_norm",
            "actor.min_lr_ratio",
            "actor.policy_loss_type",
            "ckpt.max_num",
            "critic.max_norm",
            "critic.value_clip",
            "data.disable_fast_tokenizer",
            "data.max_len",
            "ds.adam_offload",
            "ds.attn_implementation",
            "ds.enable_sleep",
            "ds.grad_accum_dtype",
            "ds.load_in_4bit",
            "ds.lora.alpha",
            "ds.lora.dropout",
            "ds.overlap_comm",
            "ds.param_dtype",
            "ds.ring_attn_size",
            "ds.tensor_parallel_size",
            "ds.zero_stage",
            "ds.zpg",
            "eval.temperature",
            "ref.offload",
            "rollout.micro_batch_size",
            "rollout.top_p",
            "train.dynamic_batch_enable",
            "train.full_determinism_enable",
            "train.max_epochs",
            "train.max_tokens_per_gpu",
            "train.micro_batch_size",
            "vllm.enable_prefix_caching",
            "vllm.enable_sleep",
            "vllm.enforce_eager",
            "vllm.sync_backend",
        )
    },
    "algo.advantage.is_correction_level": "algo.is_correction.level",
    "algo.advantage.is_correction_mode": "algo.is_correction.mode",
    "data.input_key": "data.problem_key",
    "data.label_key": "data.answer_key",
    "data.prompt_dataset": "data.train",
    "data.prompt_split": "data.train_split",
    "eval.dataset": "data.eval",
    "eval.n_samples_per_prompt": "eval.num_samples",
    "eval.split": "data.eval_split",
    "logger.wandb.project": "project_name",
    "logger.wandb.run_name": "run_name",
    "train.seed": "seed",
}

# Host dest -> why the value is another than the parser's default or the key's own.
COMPUTED: Mapping[str, str] = {
    "actor.adam.betas": "a pair, as the host's parser gives it",
    "actor.adam.lr": "each policy's own: actor.adam.lr or guidance_lr",
    "actor.eps_clip_low_high": "the host fills it from eps_clip after parsing",
    "actor.model_name_or_path": "each policy's own starting model",
    "actor.num_gpus_per_node": "each policy's own training group",
    "actor.num_nodes": "each policy's own training group",
    "algo.advantage.estimator": "gae with a critic, else any without: score_openrlhf.objective computes advantages",
    "algo.advantage.is_correction_threshold": "a list of two, copied",
    "algo.kl.init_coef": "each policy's own: beta1 (turn 1 of stage I takes beta2 in the experience maker) or "
    "guidance_kl_coef",
    "ckpt.load_enable": "resuming is decided by the trainer, for both policies as one",
    "ckpt.output_dir": "each policy's own export folder",
    "ckpt.path": "each policy's own root: the host's _actor folder inside is a fixed name",
    "ckpt.save_hf": "exports are written once, at the end, not beside every checkpoint (the host never rotates them)",
    "ckpt.save_steps": "the host takes step % -1 == 0 for due, so never is infinity",
    "critic.adam.lr": "critic.lr",
    "critic.lr_scheduler": "as the actor's",
    "critic.lr_warmup_ratio": "as the actor's",
    "critic.min_lr_ratio": "as the actor's",
    "critic.model_name_or_path": "the solver's starting model where critic.enable asks for one",
    "critic.num_gpus_per_node": "as the solver's training group unless critic.* says otherwise",
    "critic.num_nodes": "as the solver's training group unless critic.* says otherwise",
    "data.max_samples": "max_train_problems where it is set",
    "ds.lora.rank": "each policy's own",
    "ds.packing_samples": "the host switches packing on with dynamic batches and ring attention after parsing",
    "eval.steps": "as ckpt.save_steps",
    "ref.num_gpus_per_node": "as the policy's training group unless ref.* says otherwise",
    "ref.num_nodes": "as the policy's training group unless ref.* says otherwise",
    "reward.clip_range": "shaped rewards reach 1 + alpha = 11 and must not be cut at the host's 10",
    "reward.remote_url": "what the host sets for an agent executor, so that no reward model is built",
    "rollout.batch_size": "times n_samples_per_prompt at least the padded rows: dynamic batches train no more",
    "rollout.max_tokens_per_gpu": "train.max_tokens_per_gpu where it is not set, as the host does after parsing",
    "rollout.n_samples_per_prompt": "rows of one group: N x K of a problem (solver), K of an attempt (guidance)",
    "rollout.temperature": "each policy's own; the host divides logits by it in the log-prob pass",
    "rollout.vllm_generate_batch_size": "the host sets it to rollout.batch_size after parsing",
    "train.batch_size": "each policy's own rows per optimizer step, a multiple of its ranks x micro batch",
    "train.colocate_actor_ref": "from placement",
    "train.colocate_all": "from placement",
    "vllm.gpu_memory_utilization": "each policy's own engines",
    "vllm.num_engines": "each policy's own engines: the host sizes its weight-sync group by it",
    "vllm.tensor_parallel_size": "each policy's own engines",
}

# Every dest whose value may differ from the parser's default, with the reason.
OURS: Mapping[str, str] = {**{dest: f"the key {key}" for dest, key in SAME_MEANING.items()}, **COMPUTED}


def host_args(cfg: Config, policy: str, *, checkpoint_path: str, model_path: str) -> SimpleNamespace:
    """The arguments of `policy` ("solver" or "guidance"), as `openrlhf.cli.train_ppo_ray` has them after parsing.

    `checkpoint_path` is the folder that holds the host's `_actor`; `model_path` the model to start from. Every dest of
    the host's parser is there; those that `OURS` does not list hold the parser's default.
    Raises ValueError for an unknown policy.
    """
    spec = spec_of(cfg, policy)
    values = {dest: value_of(cfg, key) for dest, key in SAME_MEANING.items()}
    values |= _computed(cfg, spec, checkpoint_path=checkpoint_path, model_path=model_path)
    assert set(values) == set(OURS), set(values) ^ set(OURS)
    return _nest({**copy.deepcopy(dict(HOST_DEFAULTS)), **values})


def _computed(cfg: Config, spec: PolicySpec, *, checkpoint_path: str, model_path: str) -> dict[str, Any]:
    size = sizes(cfg, spec.name)
    num_groups = math.ceil(size.padded_rows / spec.rows_per_group)
    num_nodes, gpus_per_node = spec.group.num_nodes, spec.group.gpus_per_node
    colocate = cfg.placement == "colocate"
    packing = cfg.ds.packing_samples or cfg.train.dynamic_batch_enable or cfg.ds.ring_attn_size > 1
    rollout_tokens = cfg.rollout.max_tokens_per_gpu
    if rollout_tokens is None and cfg.train.dynamic_batch_enable:
        rollout_tokens = cfg.train.max_tokens_per_gpu
    return {
        "actor.adam.betas": tuple(cfg.actor.adam.betas),
        "actor.adam.lr": spec.lr,
        "actor.eps_clip_low_high": tuple(cfg.actor.eps_clip_low_high or (cfg.actor.eps_clip, cfg.actor.eps_clip)),
        "actor.model_name_or_path": model_path,
        "actor.num_gpus_per_node": gpus_per_node,
        "actor.num_nodes": num_nodes,
        "algo.advantage.estimator": "gae" if spec.critic else "rloo",
        "algo.advantage.is_correction_threshold": list(cfg.algo.is_correction.threshold),
        "algo.kl.init_coef": spec.kl_coef,
        "ckpt.load_enable": False,
        "ckpt.output_dir": os.path.join(cfg.output_dir, spec.name),
        "ckpt.path": checkpoint_path,
        "ckpt.save_hf": False,
        "ckpt.save_steps": _or_never(cfg.ckpt.save_steps),
        "critic.adam.lr": cfg.critic.lr,
        "critic.lr_scheduler": cfg.actor.lr_scheduler,
        "critic.lr_warmup_ratio": cfg.actor.lr_warmup_ratio,
        "critic.min_lr_ratio": cfg.actor.min_lr_ratio,
        "critic.model_name_or_path": model_path if spec.critic else None,
        "critic.num_gpus_per_node": cfg.critic.num_gpus_per_node or gpus_per_node,
        "critic.num_nodes": cfg.critic.num_nodes or num_nodes,
        "data.max_samples": cfg.data.max_train_problems or HOST_DEFAULTS["data.max_samples"],
        "ds.lora.rank": spec.lora_rank,
        "ds.packing_samples": packing,
        "eval.steps": _or_never(cfg.eval.steps),
        "ref.num_gpus_per_node": cfg.ref.num_gpus_per_node or gpus_per_node,
        "ref.num_nodes": cfg.ref.num_nodes or num_nodes,
        "reward.clip_range": (-math.inf, math.inf),
        "reward.remote_url": ["agent"],
        "rollout.batch_size": num_groups,
        "rollout.max_tokens_per_gpu": rollout_tokens,
        "rollout.n_samples_per_prompt": spec.rows_per_group,
        "rollout.temperature": spec.temperature,
        "rollout.vllm_generate_batch_size": num_groups,
        "train.batch_size": size.train_batch_size,
        "train.colocate_actor_ref": colocate,
        "train.colocate_all": colocate,
        "vllm.gpu_memory_utilization": spec.engines.gpu_memory_utilization,
        "vllm.num_engines": spec.engines.num_engines,
        "vllm.tensor_parallel_size": spec.engines.tensor_parallel_size,
    }


def _or_never(steps: int) -> float:
    return math.inf if steps == -1 else steps


def _nest(flat: Mapping[str, Any]) -> SimpleNamespace:
    """Dotted dests -> nested namespaces, as openrlhf/utils/config.py does."""
    root = SimpleNamespace()
    for dest, value in flat.items():
        *parents, last = dest.split(".")
        node = root
        for parent in parents:
            if not hasattr(node, parent):
                setattr(node, parent, SimpleNamespace())
            node = getattr(node, parent)
        setattr(node, last, value)
    return root

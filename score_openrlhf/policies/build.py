"""A configuration in; the running roles out: engines, actor groups and references of one or two policies."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray
from openrlhf.trainer.ray.vllm_engine import batch_vllm_engine_call
from openrlhf.utils.utils import get_tokenizer
from ray.util.placement_group import PlacementGroup

from score_openrlhf import platform
from score_openrlhf.config.derive import method_of, shares_reference, sizes
from score_openrlhf.config.host_args import host_args
from score_openrlhf.config.schema import Config
from score_openrlhf.experience.guidance import GuidanceExperienceMaker, own_reward
from score_openrlhf.experience.solver import SolverExperienceMaker
from score_openrlhf.policies import reuse
from score_openrlhf.policies.actors import CriticActor, PolicyActor, ReferenceActor
from score_openrlhf.policies.cluster import cluster_nodes, reserve, reserve_role
from score_openrlhf.policies.engines import create_engines
from score_openrlhf.policies.groups import ActorGroup
from score_openrlhf.policies.placement import check_cluster, guidance_path, place
from score_openrlhf.policies.policy import Engines, Policy
from score_openrlhf.tasks.base import Templates


@dataclass
class Roles:
    """What a trainer works with; `guidance` is None unless the guidance model is trained."""

    solver: Policy
    guidance: Policy | None
    guidance_engines: Engines | None

    @property
    def policies(self) -> list[Policy]:
        return [policy for policy in (self.solver, self.guidance) if policy is not None]

    @contextmanager
    def awake(self, *names: str) -> Iterator[None]:
        """The engines of "solver", "guidance" or both ready to sample in the block; asleep after it if they can."""
        groups = {"solver": self.solver.engines, "guidance": self.guidance_engines}
        chosen = [groups[name] for name in names]
        for engines in chosen:
            if engines is not None and self.engines_sleep:
                batch_vllm_engine_call(engines.handles, "wake_up")
        try:
            yield
        finally:
            for engines in chosen:
                if engines is not None and self.engines_sleep:
                    batch_vllm_engine_call(engines.handles, "sleep")

    @property
    def engines_sleep(self) -> bool:
        return self.solver.args.vllm.enable_sleep


def build(cfg: Config, templates: Templates, *, resume_from: str | None = None) -> Roles:
    """Start every role and load every model; blocks until all are ready.

    `resume_from` is a checkpoint folder (`step_N`) from which the policies load weights, optimizer and schedule.
    """
    assert cfg.model_path is not None
    placement = place(cfg)
    check_cluster(cfg, cluster_nodes())
    wait = cfg.ray.placement_timeout_seconds
    pg = shared_group(placement.num_gpus, timeout_seconds=wait) if placement.colocate else None
    hint_path = guidance_path(cfg)
    trained = ["solver"] + (["guidance"] if method_of(cfg) == "rl_guided_score" else [])
    model_paths = {"solver": cfg.model_path, "guidance": hint_path}

    solver_engines, guidance_engines = start_engines(cfg, pg=pg, gpus_per_engine=placement.fraction)
    engines = {"solver": solver_engines, "guidance": guidance_engines}

    policies: dict[str, Policy] = {}
    references: dict[str, ActorGroup] = {}
    loading = []
    for name in trained:
        path = model_paths[name]
        assert path is not None and engines[name] is not None
        folder = f"{resume_from}/{name}" if resume_from else ""
        args = host_args(cfg, name, checkpoint_path=folder, model_path=path)
        args.ckpt.load_enable = resume_from is not None
        args.ds.attn_implementation = platform.attn_implementation(args.ds.attn_implementation)
        args.vllm.sync_backend = platform.sync_backend(args.vllm.sync_backend)
        duplicates = args.ds.ring_attn_size * args.ds.tensor_parallel_size
        group_options = dict(num_gpus_per_actor=placement.fraction, duplicate_actors=duplicates)
        role = placement.roles[f"{name}_actor"]
        own = pg or reserve_role(role, timeout_seconds=wait)
        actors = ActorGroup(role.num_nodes, role.gpus_per_node, PolicyActor, pg=own, **group_options)
        shared = name == "guidance" and shares_reference(cfg)
        if shared:
            references[name] = references["solver"]
        else:
            role = placement.roles[f"{name}_reference"]
            own = pg or reserve_role(role, timeout_seconds=wait)
            references[name] = ActorGroup(role.num_nodes, role.gpus_per_node, ReferenceActor, pg=own, **group_options)
        tokenizer = get_tokenizer(path, None, "left", use_fast=not cfg.data.disable_fast_tokenizer)
        critic = None
        if name == "solver" and cfg.critic.enable:
            role = placement.roles["solver_critic"]
            own = pg or reserve_role(role, timeout_seconds=wait)
            critic = ActorGroup(role.num_nodes, role.gpus_per_node, CriticActor, pg=own, **group_options)
        policy = Policy(
            name,
            args,
            engines[name],
            actors,
            references[name],
            tokenizer,
            cfg.seed,
            critic,
            param_offload=cfg.ds.param_offload,
        )
        policies[name] = policy
        size = sizes(cfg, name)
        loading += policy.init_model(path, size.scheduler_steps)
        if critic is not None:
            loading += critic.async_init_model_from_pretrained(policy.strategy, path, size.scheduler_steps)
        if not shared:
            loading += references[name].async_init_model_from_pretrained(policy.strategy, path)
        shared_options: dict[str, Any] = {"pad_multiple": size.pad_multiple}
        if name == "solver":
            policy.use_maker(
                SolverExperienceMaker,
                baseline_kind="none" if cfg.critic.enable else cfg.solver.baseline,
                gae=(cfg.critic.gamma, cfg.critic.lambd) if cfg.critic.enable else None,
                normalise_kind=cfg.solver.normalise,
                kl_credit=cfg.solver.kl_credit,
                alpha=cfg.alpha,
                beta1=cfg.beta1,
                beta2=cfg.beta2,
                gamma_turn=cfg.gamma_turn,
                dynamic_filtering=cfg.solver.dynamic_filtering,
                **shared_options,
            )
        else:
            policy.use_maker(
                GuidanceExperienceMaker,
                reward_kind=cfg.guidance.reward,
                reward_func=own_reward(cfg.guidance.reward) if ".py:" in cfg.guidance.reward else None,
                leak_penalty=cfg.guidance.leak_penalty,
                baseline_kind=cfg.guidance.baseline,
                normalise_kind=cfg.guidance.normalise,
                kl_credit=cfg.guidance.kl_credit,
                kl_coef=cfg.guidance_kl_coef,
                dynamic_filtering=cfg.guidance.dynamic_filtering,
                **shared_options,
            )
    preparing = prepare_executors(cfg, templates, solver_engines, guidance_engines)
    ray.get(loading + preparing)
    return Roles(policies["solver"], policies.get("guidance"), guidance_engines)


def start_engines(
    cfg: Config, *, pg: PlacementGroup | None = None, gpus_per_engine: float = 1.0
) -> tuple[Engines, Engines | None]:
    """The solver's engines and, where the method has one, the guidance model's; they start in the background.

    `pg` with `gpus_per_engine` < 1 places them on GPUs they share with each other or with other roles. There one model
    is started after the other, and put to sleep if it can: vLLM measures the free memory of a GPU while it starts, and
    would take another engine's for its own.
    """
    assert cfg.model_path is not None
    shared: dict[str, Any] = dict(shared_pg=pg, gpus_per_engine=gpus_per_engine)
    solver = create_engines(
        cfg,
        cfg.model_path,
        num_engines=cfg.vllm.num_engines,
        tensor_parallel_size=cfg.vllm.tensor_parallel_size,
        gpu_memory_utilization=cfg.vllm.gpu_memory_utilization,
        seed=cfg.seed,
        **shared,
    )
    if cfg.vllm.enable_sleep:
        batch_vllm_engine_call(solver, "sleep")
    elif pg is not None:
        ray.get([engine.__ray_ready__.remote() for engine in solver])
    hint_path = guidance_path(cfg)
    if hint_path is None:
        if reuse.pool:
            reuse.pool.drop_idle()
        return Engines(solver, cfg.model_path), None
    guidance = create_engines(
        cfg,
        hint_path,
        num_engines=cfg.guidance_vllm.num_engines or cfg.vllm.num_engines,
        tensor_parallel_size=cfg.guidance_vllm.tensor_parallel_size or cfg.vllm.tensor_parallel_size,
        gpu_memory_utilization=cfg.guidance_vllm.gpu_memory_utilization or cfg.vllm.gpu_memory_utilization,
        seed=cfg.seed + 1000,
        **shared,
    )
    if cfg.vllm.enable_sleep:
        batch_vllm_engine_call(guidance, "sleep")
    return Engines(solver, cfg.model_path), Engines(guidance, hint_path)


def prepare_executors(cfg: Config, templates: Templates, solver: Engines, guidance: Engines | None) -> list[Any]:
    """Make each solver engine's executor, so that it can walk whole trajectories; returns Ray refs."""
    return [
        engine.prepare_rollout.remote(
            dataclasses.asdict(cfg.task),
            templates,
            guidance.model_path if guidance else None,
            guidance.handles if guidance else [],
        )
        for engine in solver.handles
    ]


def shared_group(num_gpus: int, *, timeout_seconds: float = 600.0) -> PlacementGroup:
    """GPUs that several roles share, once they are there."""
    return reserve("the group of all roles", num_gpus, timeout_seconds=timeout_seconds)

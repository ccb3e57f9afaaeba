"""A configuration in; the running roles out: engines, actor groups and references of its models."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray
from openrlhf.trainer.ray.vllm_engine import batch_vllm_engine_call
from openrlhf.utils.utils import get_tokenizer
from ray.util.placement_group import PlacementGroup

from score_openrlhf import platform
from score_openrlhf.cluster import engine_pool
from score_openrlhf.cluster.placement import (
    Group,
    Kind,
    check_cluster,
    engine_groups,
    groups_of,
    most_ranks_on_a_node,
    place,
)
from score_openrlhf.cluster.reservation import bundle_nodes, cluster_nodes, reserve_groups
from score_openrlhf.config.host_args import host_args
from score_openrlhf.config.methods import GUIDANCE, SOLVER
from score_openrlhf.config.policies import PolicySpec, learning_specs, policy_specs
from score_openrlhf.config.schema import Config
from score_openrlhf.config.sizes import sizes
from score_openrlhf.experience import MAKERS
from score_openrlhf.policies.actors import CriticActor, PolicyActor, ReferenceActor
from score_openrlhf.policies.engines import create_engines
from score_openrlhf.policies.groups import ActorGroup
from score_openrlhf.policies.policy import Engines, Policy
from score_openrlhf.rollout.chat import Prompting
from score_openrlhf.tasks.base import Templates


@dataclass
class Roles:
    """What a trainer works with: the policies that learn, and the engines of all models by name."""

    policies: list[Policy]
    engines: dict[str, Engines]

    def policy(self, name: str) -> Policy:
        """The policy of that name; raises KeyError if it does not learn."""
        return {policy.name: policy for policy in self.policies}[name]

    @contextmanager
    def awake(self, *names: str) -> Iterator[None]:
        """The engines of these models, as far as there are any, ready to sample; asleep after it if they can."""
        chosen = [self.engines[name] for name in names if name in self.engines]
        for engines in chosen:
            if self.engines_sleep:
                batch_vllm_engine_call(engines.handles, "wake_up")
        try:
            yield
        finally:
            for engines in chosen:
                if self.engines_sleep:
                    batch_vllm_engine_call(engines.handles, "sleep")

    @property
    def engines_sleep(self) -> bool:
        return self.policies[0].args.vllm.enable_sleep


def build(cfg: Config, templates: Templates, *, resume_from: str | None = None) -> Roles:
    """Start every role and load every model; blocks until all are ready.

    `resume_from` is a checkpoint folder (`step_N`) from which the policies load weights, optimizer and schedule.
    """
    placement = place(cfg)
    check_cluster(cfg, cluster_nodes())
    wait = cfg.ray.placement_timeout_seconds
    pg = shared_group(placement.num_gpus, timeout_seconds=wait) if placement.colocate else None

    # A shared session's engines may be there already (cluster/engine_pool.py), and reserve by themselves if not.
    reserved = {} if pg or engine_pool.pool else reserve_groups(groups_of(cfg), timeout_seconds=wait)
    engines = start_engines(cfg, pg=pg, gpus_per_engine=placement.fraction, reserved=reserved or None)
    if pg is None and platform.engines_measure_memory():
        wait_for_engines(engines.values())
    if pg is None and engine_pool.pool:
        served = {role.name for role in placement.roles.values() if role.kind == Kind.ENGINES}
        training = [group for group in groups_of(cfg) if group.role not in served]
        reserved = reserve_groups(training, timeout_seconds=wait)

    def place_of(role: str) -> PlacementGroup:
        return pg or reserved[role][0]

    split = cfg.ds.ring_attn_size * cfg.ds.tensor_parallel_size
    share = dict(num_gpus_per_actor=placement.fraction, duplicate_actors=split)
    classes: dict[Kind, Any] = {Kind.ACTOR: PolicyActor, Kind.REFERENCE: ReferenceActor, Kind.CRITIC: CriticActor}
    groups: dict[tuple[str, Kind], ActorGroup] = {}
    for role in placement.roles.values():
        if role.kind in classes:
            own = place_of(role.name)
            group = ActorGroup(role.num_nodes, role.gpus_per_node, classes[role.kind], pg=own, **share)
            groups[role.policy, role.kind] = group
    nodes = {name: bundle_nodes(place_of(name)) for name in placement.learners}
    ranks_on_node = most_ranks_on_a_node(placement, nodes)

    policies, loading = [], []
    for spec in learning_specs(cfg):
        policy = _policy(cfg, spec, engines[spec.name], groups, templates, resume_from)
        policy.strategy.ranks_on_node = ranks_on_node
        policies.append(policy)
        num_steps = sizes(cfg, spec.name).scheduler_steps
        loading += policy.init_model(num_steps)
        for kind, options in ((Kind.CRITIC, (num_steps,)), (Kind.REFERENCE, ())):
            if (spec.name, kind) in groups:
                load = groups[spec.name, kind].async_init_model_from_pretrained
                loading += load(policy.strategy, spec.start, *options)
    ray.get(loading + prepare_executors(cfg, templates, engines))
    return Roles(policies, engines)


def _policy(
    cfg: Config,
    spec: PolicySpec,
    engines: Engines,
    groups: Mapping[tuple[str, Kind], ActorGroup],
    templates: Templates,
    resume_from: str | None,
) -> Policy:
    """One policy that learns, on its groups; nothing is loaded yet."""
    assert spec.start is not None
    folder = f"{resume_from}/{spec.name}" if resume_from else ""
    args = host_args(cfg, spec.name, checkpoint_path=folder, model_path=spec.start)
    args.ckpt.load_enable = resume_from is not None
    args.ds.attn_implementation = platform.attn_implementation(args.ds.attn_implementation)
    args.vllm.sync_backend = platform.sync_backend(args.vllm.sync_backend)
    tokenizer = get_tokenizer(spec.start, None, "left", use_fast=not cfg.data.disable_fast_tokenizer)
    policy = Policy(
        spec.name,
        args,
        engines,
        groups[spec.name, Kind.ACTOR],
        groups[spec.reference_of, Kind.REFERENCE],
        tokenizer,
        cfg.seed,
        groups.get((spec.name, Kind.CRITIC)),
        param_offload=cfg.ds.param_offload,
        max_nonfinite_steps=cfg.max_nonfinite_steps,
    )
    chat = Prompting.of(templates).chats[spec.name]
    policy.chat_template = chat.text(tokenizer) if chat.template is not None else None
    policy.use_maker(MAKERS[spec.name], cfg)
    return policy


def wait_for_engines(models: Iterable[Engines]) -> None:
    """Return when they sample; raises the error of one that does not start.

    While it starts, vLLM measures how much of its GPU is free before and after a trial batch, and what another process
    takes meanwhile is its error or its loss (vllm/v1/worker/gpu_worker.py, determine_available_memory). Ray gives each
    role GPUs of its own, but a process sees the others too where Ray does not hide them (RAY_EXPERIMENTAL_NOSET_*; in
    an engine of several GPUs OpenRLHF itself shows them), and who starts puts a CUDA context on the first one it sees.
    """
    ray.get([engine.__ray_ready__.remote() for model in models for engine in model.handles])


def start_engines(
    cfg: Config,
    *,
    pg: PlacementGroup | None = None,
    gpus_per_engine: float = 1.0,
    reserved: Mapping[str, Sequence[PlacementGroup]] | None = None,
) -> dict[str, Engines]:
    """The engines of each model of the method, by its name; they start in the background.

    `reserved` are their GPUs, by role; without it they are reserved here.
    `pg` with `gpus_per_engine` < 1 places them on GPUs they share with each other or with other roles. There one model
    is started after the other, and put to sleep if it can: vLLM measures the free memory of a GPU while it starts, and
    would take another engine's for its own.
    """
    specs = policy_specs(cfg)
    roles = {spec.name: f"{spec.name}_{Kind.ENGINES}" for spec in specs}
    if reserved is None and pg is None and engine_pool.pool is None:
        own = [group for spec in specs for group in engine_groups(roles[spec.name], spec.engines)]
        reserved = reserve_groups(own, timeout_seconds=cfg.ray.placement_timeout_seconds)
    reserved = reserved or {}
    started: dict[str, Engines] = {}
    for spec in specs:
        assert spec.start is not None
        handles = create_engines(
            cfg, spec, shared_pg=pg, gpus_per_engine=gpus_per_engine, reserved=reserved.get(roles[spec.name])
        )
        if cfg.vllm.enable_sleep:
            batch_vllm_engine_call(handles, "sleep")
        elif pg is not None and spec is not specs[-1]:
            ray.get([engine.__ray_ready__.remote() for engine in handles])
        started[spec.name] = Engines(handles, spec.start)
    if len(specs) == 1 and engine_pool.pool:
        engine_pool.pool.drop_idle()
    return started


def prepare_executors(cfg: Config, templates: Templates, engines: Mapping[str, Engines]) -> list[Any]:
    """Make each solver engine's executor, so that it can walk whole trajectories; returns Ray refs."""
    hints = engines.get(GUIDANCE)
    return [
        engine.prepare_rollout.remote(
            dataclasses.asdict(cfg.task),
            templates,
            hints.model_path if hints else None,
            hints.handles if hints else [],
        )
        for engine in engines[SOLVER].handles
    ]


def shared_group(num_gpus: int, *, timeout_seconds: float = 600.0) -> PlacementGroup:
    """GPUs that several roles share, once they are there; on one node where one has as many."""
    group = Group("the group of all roles", num_gpus, num_nodes=1)
    return reserve_groups([group], timeout_seconds=timeout_seconds)[group.role][0]

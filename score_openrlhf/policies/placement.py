"""A configuration in; which role sits on how many GPUs, and the fractions of shared ones, out. Imports no ray."""

from __future__ import annotations

from dataclasses import dataclass

from score_openrlhf.config.derive import guidance_start, has_guidance, method_of
from score_openrlhf.config.schema import Config


@dataclass(frozen=True)
class Role:
    """One group of processes: a training or reference group, or a set of engines."""

    name: str
    num_nodes: int
    gpus_per_node: int

    @property
    def num_gpus(self) -> int:
        return self.num_nodes * self.gpus_per_node


@dataclass(frozen=True)
class Placement:
    """All roles of a run; `fraction` of a GPU each where they share (`colocate`), else whole GPUs."""

    roles: dict[str, Role]
    colocate: bool

    @property
    def fraction(self) -> float:
        """GPU share of one process: OpenRLHF's fixed 0.2 does not fit six roles into one GPU."""
        if not self.colocate:
            return 1.0
        return int(100 / len(self.roles)) / 100

    @property
    def num_gpus(self) -> int:
        sizes = [role.num_gpus for role in self.roles.values()]
        return max(sizes) if self.colocate else sum(sizes)


def guidance_path(cfg: Config) -> str | None:
    """The guidance model's starting checkpoint, or None for method score."""
    return guidance_start(cfg) if has_guidance(cfg) else None


def shares_reference(cfg: Config) -> bool:
    """Whether one reference group serves both policies: same checkpoint and temperature (the rest is the run's).

    Raises ValueError if ref.shared asks for it where they differ.
    """
    same = guidance_path(cfg) == cfg.model_path and cfg.rollout.temperature == cfg.rollout.guidance_temperature
    if cfg.ref.shared and not same:
        raise ValueError(
            f"ref.shared=true, but the solver starts from {cfg.model_path!r} at temperature {cfg.rollout.temperature} "
            f"and the guidance model from {guidance_path(cfg)!r} at {cfg.rollout.guidance_temperature}; leave "
            "ref.shared out, or give both the same model and temperature"
        )
    return same if cfg.ref.shared is None else cfg.ref.shared


def place(cfg: Config) -> Placement:
    """The roles of the configured method and their sizes."""
    actor = Role("solver_actor", cfg.actor.num_nodes, cfg.actor.num_gpus_per_node)
    roles = [actor, Role("solver_engines", 1, cfg.vllm.num_engines * cfg.vllm.tensor_parallel_size)]
    roles.append(
        Role(
            "solver_reference", cfg.ref.num_nodes or actor.num_nodes, cfg.ref.num_gpus_per_node or actor.gpus_per_node
        )
    )
    if cfg.critic.enable:
        roles.append(
            Role(
                "solver_critic",
                cfg.critic.num_nodes or actor.num_nodes,
                cfg.critic.num_gpus_per_node or actor.gpus_per_node,
            )
        )
    method = method_of(cfg)
    if method != "score":
        engines = cfg.guidance_vllm.num_engines or cfg.vllm.num_engines
        tensor_parallel = cfg.guidance_vllm.tensor_parallel_size or cfg.vllm.tensor_parallel_size
        roles.append(Role("guidance_engines", 1, engines * tensor_parallel))
    if method == "rl_guided_score":
        guidance = Role(
            "guidance_actor",
            cfg.guidance_actor.num_nodes or actor.num_nodes,
            cfg.guidance_actor.num_gpus_per_node or actor.gpus_per_node,
        )
        roles.append(guidance)
        if not shares_reference(cfg):
            roles.append(
                Role(
                    "guidance_reference",
                    cfg.ref.num_nodes or guidance.num_nodes,
                    cfg.ref.num_gpus_per_node or guidance.gpus_per_node,
                )
            )
    return Placement({role.name: role for role in roles}, cfg.placement == "colocate")

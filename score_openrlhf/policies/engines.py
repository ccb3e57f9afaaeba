"""A model path in; vLLM engines out that sample token ids with log-probs and, for the solver, walk whole trajectories.

`RolloutActor` extends OpenRLHF's `RolloutRayActor`; `create_engines` stands in for the host's `create_vllm_engines`,
which fixes bf16, trust_remote_code and the worker extension.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Sequence
from typing import Any

import ray
from openrlhf.trainer.ray.vllm_engine import RolloutRayActor
from openrlhf.utils.utils import get_tokenizer
from ray.util.placement_group import PlacementGroup
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy
from vllm import RequestOutput, SamplingParams
from vllm.inputs import TokensPrompt
from vllm.sampling_params import RequestOutputKind
from vllm.utils import random_uuid

from score_openrlhf import platform
from score_openrlhf.cluster import engine_pool
from score_openrlhf.cluster.placement import Kind, engine_bundles, engine_groups
from score_openrlhf.cluster.reservation import bundle_nodes, cluster_nodes, reserve_groups
from score_openrlhf.config.model_code import is_trusted
from score_openrlhf.config.policies import ENGINE_BATCHED_TOKENS, ENGINE_NUM_SEQS, PolicySpec, policy_specs
from score_openrlhf.config.schema import Config
from score_openrlhf.rollout.executor import GuidedRevisionExecutor, RemoteEngine, SampleRequest, SamplingPlan, firsts
from score_openrlhf.rollout.prompts import GuidancePrompts, SolverPrompts
from score_openrlhf.rollout.trajectory import Sample, Trajectory
from score_openrlhf.tasks import make_task
from score_openrlhf.tasks.base import Problem, Templates
from score_openrlhf.tasks.pool import GradingPool

DEFAULT_BATCH = {"max_num_seqs": ENGINE_NUM_SEQS, "max_num_batched_tokens": ENGINE_BATCHED_TOKENS}
VLLM_DTYPES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}


class NonfiniteLogProbs(RuntimeError):
    """The engine's distribution is none; fails the one trajectory, which is counted."""


class _RolloutActor(RolloutRayActor.__ray_actor_class__):  # type: ignore[name-defined]
    """One engine of either policy."""

    async def __init__(  # type: ignore[misc]  # as upstream: Ray makes the actor by awaiting it
        self,
        *args: Any,
        use_fast_tokenizer: bool = True,
        cpu_threads: int | None = None,
        engines_on_node: int = 1,
        **kwargs: Any,
    ):
        platform.use_cores(cpu_threads, engines_on_node, kwargs["model"])
        await super().__init__(*args, **kwargs)
        self.use_fast_tokenizer = use_fast_tokenizer
        self.tokenizer = get_tokenizer(kwargs["model"], None, "left", use_fast=use_fast_tokenizer)
        self.grader: GradingPool | None = None

    async def hold(self, model_path: str) -> None:
        """Sample from the weights in `model_path`, of a model of the same shape, and forget what was cached."""
        await self.llm.collective_rpc(platform.reload_method(), kwargs={"weights_path": model_path})
        if not await self.llm.reset_prefix_cache():
            raise RuntimeError(f"the engine still answers requests, so it cannot change to {model_path}")
        self.tokenizer = get_tokenizer(model_path, None, "left", use_fast=self.use_fast_tokenizer)

    async def end_rollout(self) -> None:
        """End what `prepare_rollout` started."""
        if self.grader is not None:
            self.grader.close()
            self.grader = None

    async def sample(self, request: SampleRequest) -> Sample:
        """One continuation of `request.prompt_ids`; raises ValueError if the engine refuses the prompt."""
        params = _sampling_params(request, RequestOutputKind.FINAL_ONLY)
        return self._sample_of(request, await self.generate(request.prompt_ids, params))

    async def stream(self, request: SampleRequest) -> AsyncIterator[list[int] | Sample]:
        """The Sample of `sample`, after the lists of its token ids as the engine comes by them."""
        prompt, num_sent = TokensPrompt(prompt_token_ids=request.prompt_ids), 0
        params = _sampling_params(request, RequestOutputKind.CUMULATIVE)
        async for output in self.llm.generate(prompt, params, request_id=random_uuid()):
            token_ids = output.outputs[0].token_ids
            yield list(token_ids[num_sent:])
            num_sent = len(token_ids)
        yield self._sample_of(request, output)

    def _sample_of(self, request: SampleRequest, finished: RequestOutput) -> Sample:
        output = finished.outputs[0]
        token_ids = list(output.token_ids)
        positions: Any = output.logprobs  # every request asks for them
        log_probs = [position[token].logprob for position, token in zip(positions, token_ids, strict=True)]
        if request.temperature > 0 and not all(map(math.isfinite, log_probs)):  # at 0 nothing learns from them
            raise NonfiniteLogProbs(
                f"the engine sampled tokens with log-probs {[p for p in log_probs if not math.isfinite(p)][:3]}; "
                "its weights or its temperature give no distribution"
            )
        return Sample(
            token_ids=token_ids,
            log_probs=log_probs,
            text=self.tokenizer.decode(token_ids, skip_special_tokens=True),
            truncated=output.finish_reason == "length",
            version=request.version,
        )

    async def prepare_rollout(
        self,
        task_config: dict[str, Any],
        templates: Templates,
        guidance_path: str | None,
        guidance_engines: list[Any],
    ) -> None:
        """Make this (solver) engine's executor: prompts, grading processes and the way to the guidance engines."""
        task = make_task(task_config["name"])
        self.grader = GradingPool(
            task_config["name"],
            processes=task_config["grader_processes"],
            timeout_seconds=task_config["grade_timeout_seconds"],
            max_answer_chars=task_config["max_answer_chars"],
            reward_func=task_config["reward_func"],
            reward_range=task_config["reward_range"],
            unevaluated=task_config["unevaluated"],
        )
        guidance_prompts = None
        if guidance_path is not None:
            tokenizer = get_tokenizer(guidance_path, None, "left", use_fast=True)
            guidance_prompts = GuidancePrompts(tokenizer, templates)
        self.executor = GuidedRevisionExecutor(
            task,
            self.grader,
            SolverPrompts(self.tokenizer, templates),
            guidance_prompts,
            [RemoteEngine(handle) for handle in guidance_engines],
        )

    async def run_problem(
        self, problem: Problem, group: int, plan: SamplingPlan, given: list[Sample] | None = None
    ) -> list[Trajectory]:
        """The N x K trajectories of the step's problem number `group`, attempts side by side.

        `given` holds N attempts of the base model, which stand in for the solver's own.
        """
        walks = (self.executor.walk(self, first, plan) for first in firsts(problem, group, plan, given))
        return [trajectory for group in await asyncio.gather(*walks) for trajectory in group]

    async def run_phase(self, phase: str, trajectories: list[Trajectory], plan: SamplingPlan) -> list[Trajectory]:
        """One phase of many trajectories; the other phases' engines may be asleep meanwhile."""
        return await self.executor.run_phase(phase, self, trajectories, plan)


def _sampling_params(request: SampleRequest, output_kind: RequestOutputKind) -> SamplingParams:
    """FINAL_ONLY where nobody reads along: a list of all tokens at every step costs the engine's client more than half
    of its time at 512 sequences."""
    # No minimum length, top_p, top_k or penalty: the log-probs are those of the policy itself.
    return SamplingParams(
        temperature=request.temperature,
        max_tokens=request.max_tokens,
        seed=request.seed,
        logprobs=0,  # of the sampled token alone
        stop_token_ids=list(request.stop_token_ids),
        detokenize=False,
        output_kind=output_kind,
    )


RolloutActor = ray.remote(_RolloutActor)


def create_engines(
    cfg: Config,
    spec: PolicySpec,
    *,
    shared_pg: PlacementGroup | None = None,
    gpus_per_engine: float = 1.0,
    reserved: Sequence[PlacementGroup] | None = None,
) -> list[Any]:
    """Ray handles of the engines of a policy, which hold the model it starts from; they start in the background.

    `shared_pg` with `gpus_per_engine` < 1 places them on GPUs they share with other roles; else they are on those
    `reserved` for them, or on some that are reserved now.
    """
    model_path, num_engines = spec.start, spec.engines.num_engines
    tensor_parallel_size, seed = spec.engines.tensor_parallel_size, cfg.seed + spec.engines.seed_offset
    assert model_path is not None
    num_engines_in_all = sum(each.engines.num_engines for each in policy_specs(cfg))
    asked = {name: getattr(spec.engines, name) for name in DEFAULT_BATCH}
    common: dict[str, Any] = {
        "use_fast_tokenizer": not cfg.data.disable_fast_tokenizer,
        "cpu_threads": cfg.vllm.cpu_threads,
        "engines_on_node": -(-num_engines_in_all // len(cluster_nodes())),
        "tensor_parallel_size": tensor_parallel_size,
        "distributed_executor_backend": "uni" if tensor_parallel_size == 1 else "ray",
        "num_gpus": gpus_per_engine,
        "dtype": VLLM_DTYPES[cfg.ds.param_dtype],
        "trust_remote_code": is_trusted(cfg, model_path),
        "max_model_len": cfg.data.max_len,
        "enforce_eager": cfg.vllm.enforce_eager,
        "enable_prefix_caching": cfg.vllm.enable_prefix_caching,
        "enable_sleep_mode": cfg.vllm.enable_sleep,
        "gpu_memory_utilization": spec.engines.gpu_memory_utilization,
        "full_determinism": cfg.train.full_determinism_enable,
        # log-probs after temperature: those the trainer computes (Actor divides its logits by it)
        "logprobs_mode": "processed_logprobs",
        "max_logprobs": 1,
        **platform.engine_batch(asked, DEFAULT_BATCH, max_model_len=cfg.data.max_len),
        **platform.engine_kwargs(),
    }
    # Without seeded requests the engine's own seed, and all it has sampled before, say what it samples.
    pool = engine_pool.pool if shared_pg is None and cfg.rollout.seed_requests and not cfg.vllm.enable_sleep else None
    kind = engine_pool.kind_of(model_path, num_engines, common | _threads(common, model_path)) if pool else ""
    if pool and (kept := pool.take(kind, model_path)):
        return kept
    places = _places(cfg, spec, shared_pg, reserved)
    engines = []
    for index, (pg, bundles) in enumerate(places):
        num_gpus = gpus_per_engine if tensor_parallel_size == 1 else 0
        strategy = PlacementGroupSchedulingStrategy(
            placement_group=pg,
            placement_group_capture_child_tasks=True,
            placement_group_bundle_index=bundles[0],
        )
        actor = RolloutActor.options(num_cpus=num_gpus, num_gpus=num_gpus, scheduling_strategy=strategy)
        own_bundles = bundles if tensor_parallel_size > 1 else None
        engines.append(actor.remote(model=model_path, bundle_indices=own_bundles, seed=seed + index, **common))
    if pool:
        pool.add(kind, engines, list({pg.id: pg for pg, _ in places}.values()))
    return engines


def _threads(options: dict[str, Any], model_path: str) -> dict[str, Any]:
    """What the two options about threads come to here, for engines beside any number of others may have the same."""
    threads = platform.engine_threads(options["cpu_threads"], options["engines_on_node"], model_path)
    return {"cpu_threads": threads, "engines_on_node": None}


def _places(
    cfg: Config, spec: PolicySpec, shared: PlacementGroup | None, reserved: Sequence[PlacementGroup] | None
) -> list[tuple[PlacementGroup, list[int]]]:
    """The placement group and the bundles in it of each engine; an engine of several GPUs has them on one node."""
    num_engines, tensor_parallel_size = spec.engines.num_engines, spec.engines.tensor_parallel_size
    if shared is not None:
        bundles = engine_bundles(bundle_nodes(shared), num_engines, tensor_parallel_size)
        return [(shared, own) for own in bundles]
    if reserved is None:
        role = f"{spec.name}_{Kind.ENGINES}"
        own_groups = engine_groups(role, spec.engines)
        reserved = reserve_groups(own_groups, timeout_seconds=cfg.ray.placement_timeout_seconds)[role]
    if tensor_parallel_size == 1:
        return [(reserved[0], [index]) for index in range(num_engines)]
    return [(group, list(range(tensor_parallel_size))) for group in reserved]

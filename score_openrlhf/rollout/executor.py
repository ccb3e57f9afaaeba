"""One problem in; graded trajectories out: attempt -> guide -> revise, token ids in and token ids out.

`GuidedRevisionExecutor` is an OpenRLHF agent executor. It lives in a solver engine's process, samples attempts and
revisions from that engine, asks the guidance engines for hints, and grades in processes of its own.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from openrlhf.utils.agent import AgentExecutorBase
from openrlhf.utils.logging_utils import init_logger

from score_openrlhf.config.methods import GUIDANCE, SOLVER
from score_openrlhf.rollout.prompts import GuidancePrompts, SolverPrompts
from score_openrlhf.rollout.trajectory import Sample, Trajectory, request_seed
from score_openrlhf.tasks.base import Grade, Problem, Task
from score_openrlhf.tasks.pool import STATED_BEFORE, GradingPool

logger = init_logger(__name__)


@dataclass(frozen=True)
class SamplingPlan:
    """How one collection's trajectories are sampled; a value, so that concurrent samples share nothing mutable."""

    purpose: str  # "train", "eval": part of every request's seed
    seed: int
    step: int
    num_attempts: int  # N
    num_guidances: int  # K
    temperature: float
    guidance_temperature: float
    attempt_max_tokens: int
    guidance_max_tokens: int
    revision_max_tokens: int
    max_len: int
    mask_truncated_attempt: bool = False
    mask_truncated_guidance: bool = False
    seed_requests: bool = True
    # policy -> updates that its engines hold
    versions: Mapping[str, int] = field(default_factory=lambda: {"solver": 0, "guidance": 0})


@dataclass(frozen=True)
class SampleRequest:
    """One call of an engine; `seed` None leaves the engine's own random state in charge."""

    prompt_ids: list[int]
    max_tokens: int
    temperature: float
    seed: int | None
    stop_token_ids: tuple[int, ...]
    version: int


class RemoteEngine:
    """An engine's Ray handle as the executor wants it: `await engine.sample(request)`."""

    def __init__(self, handle: Any):
        self.handle = handle

    async def sample(self, request: SampleRequest) -> Sample:
        return await self.handle.sample.remote(request)


class PromptTooLong(ValueError):
    """No room is left for a single new token."""


class GraderFailed(RuntimeError):
    """A grade, or whether a guidance leaks, could not be found out: the reward is not known, and a zero is not it."""

    def __init__(self, what: str, status: str, detail: str):
        super().__init__(f"{what} {status}: {detail}")
        self.cause = f"{what} {status}"  # one of GRADER_FAILURES


def _must_be_known(grade: Grade) -> None:
    if grade.failed:
        raise GraderFailed("grade", grade.status, grade.detail)


def firsts(
    problem: Problem, group: int, plan: SamplingPlan, given: Sequence[Sample] | None = None
) -> list[Trajectory]:
    """The beginnings of a problem's N attempts; `given` holds the base model's, which are not sampled again."""
    return [
        Trajectory(
            problem, group, index, guidance_index=0,
            attempt=given[index] if given else None, base_attempt=given is not None,
        )
        for index in range(plan.num_attempts)
    ]  # fmt: skip


def fork(first: Trajectory, num_guidances: int) -> list[Trajectory]:
    """The K trajectories that share the attempt of `first`."""
    return [replace(first, guidance_index=k, seconds=dict(first.seconds)) for k in range(num_guidances)]


def _read(prompts: SolverPrompts | GuidancePrompts, sample: Sample) -> tuple[Sample, str]:
    """The sample with its tokens of reasoning counted, and what of its text others are shown."""
    num_tokens, answer = prompts.split_reasoning(sample.token_ids)
    shown = sample.text if answer is None or not prompts.templates.strip_reasoning else answer
    return (replace(sample, reasoning_tokens=num_tokens) if num_tokens else sample), shown


class GuidedRevisionExecutor(AgentExecutorBase):
    """Walks `attempt -> guide -> revise`; `execute` chains the three for one attempt and its K guidances."""

    def __init__(
        self,
        task: Task,
        grader: GradingPool,
        solver_prompts: SolverPrompts,
        guidance_prompts: GuidancePrompts | None = None,
        guidance_engines: Sequence[Any] | None = None,
    ):
        """Without guidance prompts and engines the turn-2 instruction is the fixed text (method score)."""
        self.task = task
        self.grader = grader
        self.solver_prompts = solver_prompts
        self.guidance_prompts = guidance_prompts
        self.guidance_engines = guidance_engines or []

    async def attempt(self, engine: Any, trajectory: Trajectory, plan: SamplingPlan) -> None:
        """Turn 1: fills `prompt_ids`, `attempt` (unless the base model's is given) and `grade_t1`."""
        trajectory.prompt_ids = self.solver_prompts.attempt_ids(trajectory.problem.text)
        if trajectory.attempt is None:
            trajectory.attempt = await engine.sample(
                self._request(plan, "attempt", trajectory, trajectory.prompt_ids, plan.attempt_max_tokens)
            )
        trajectory.attempt, _ = _read(self.solver_prompts, trajectory.attempt)
        trajectory.grade_t1 = await self._grade(trajectory.attempt, trajectory)
        _must_be_known(trajectory.grade_t1)
        if trajectory.attempt.truncated and plan.mask_truncated_attempt:
            trajectory.masked = "truncated_attempt"

    async def guide(self, trajectory: Trajectory, plan: SamplingPlan) -> None:
        """The hint: fills `guidance_prompt_ids`, `guidance`, `leak` and the task's hint metrics."""
        assert trajectory.attempt is not None
        if self.guidance_prompts is None:
            return
        problem, (_, attempt) = trajectory.problem, _read(self.solver_prompts, trajectory.attempt)
        trajectory.guidance_prompt_ids = self.guidance_prompts.guidance_ids(problem.text, attempt)
        request = self._request(
            plan, "guidance", trajectory, trajectory.guidance_prompt_ids, plan.guidance_max_tokens, GUIDANCE
        )
        # The K guidances of one attempt go to one engine, whose prefix cache then holds their prompt.
        engine = self.guidance_engines[request_seed(*trajectory.attempt_key) % len(self.guidance_engines)]
        sampled, guidance = _read(self.guidance_prompts, await engine.sample(request))
        # What it thinks is sampled and trained, and no part of what it says.
        trajectory.guidance = replace(sampled, text=guidance)
        leak, status = await self.grader.astates_answer(guidance, problem.text, attempt, problem.answer)
        if status not in ("ok", STATED_BEFORE):
            raise GraderFailed("leak", status, f"guidance {guidance!r}")
        trajectory.leak, trajectory.leak_unjudged = float(leak), status == STATED_BEFORE
        trajectory.hint_metrics = self.task.describe_guidance(problem, attempt, guidance)
        if trajectory.guidance.truncated and plan.mask_truncated_guidance:
            trajectory.masked = "truncated_guidance"

    async def revise(self, engine: Any, trajectory: Trajectory, plan: SamplingPlan) -> None:
        """Turn 2: fills `bridge_ids`, `revision` and `grade_t2`; the context extends turn 1's ids exactly."""
        assert trajectory.attempt is not None
        guidance = trajectory.guidance.text if trajectory.guidance else None
        trajectory.bridge_ids = self.solver_prompts.bridge_ids(trajectory.attempt.token_ids, guidance)
        context = trajectory.prompt_ids + trajectory.attempt.token_ids + trajectory.bridge_ids
        trajectory.revision = await engine.sample(
            self._request(plan, "revision", trajectory, context, plan.revision_max_tokens)
        )
        trajectory.revision, _ = _read(self.solver_prompts, trajectory.revision)
        trajectory.grade_t2 = await self._grade(trajectory.revision, trajectory)
        _must_be_known(trajectory.grade_t2)
        answers = (self.task.stated_answer(sample.text) for sample in (trajectory.attempt, trajectory.revision))
        trajectory.changed_answer = len(set(answers)) == 2

    async def execute(  # type: ignore[override]  # the host's signature; prompt is a Problem and sampling_params a plan
        self,
        prompt: Problem,
        label: tuple[int, int],
        sampling_params: SamplingPlan,
        max_length,
        hf_tokenizer,
        llm_engine,
        images=None,
    ) -> list[Trajectory]:
        """OpenRLHF's entry to `walk`: `label` is which of the step's problems, and which attempt at it."""
        first = Trajectory(problem=prompt, group=label[0], attempt_index=label[1], guidance_index=0)
        return await self.walk(llm_engine, first, sampling_params)

    async def walk(self, engine: Any, first: Trajectory, plan: SamplingPlan) -> list[Trajectory]:
        """The K trajectories of one attempt, graded; failures are marked, not raised.

        `first` names the problem and its place, and holds the attempt where the base model's is given.
        """
        await self._guarded("attempt", first, self.attempt(engine, first, plan))
        trajectories = fork(first, plan.num_guidances)
        if first.usable_so_far:
            await asyncio.gather(*(self._guide_and_revise(engine, t, plan) for t in trajectories))
        return trajectories

    async def run_phase(
        self, phase: str, engine: Any, trajectories: list[Trajectory], plan: SamplingPlan
    ) -> list[Trajectory]:
        """One phase (`attempt`, `guide` or `revise`) of many trajectories at once, for engines that take turns."""

        def work(trajectory: Trajectory) -> Any:
            if phase == "guide":
                return self.guide(trajectory, plan)
            return (self.attempt if phase == "attempt" else self.revise)(engine, trajectory, plan)

        await asyncio.gather(*(self._guarded(phase, t, work(t)) for t in trajectories if t.usable_so_far))
        return trajectories

    async def _guide_and_revise(self, engine: Any, trajectory: Trajectory, plan: SamplingPlan) -> None:
        await self._guarded("guide", trajectory, self.guide(trajectory, plan))
        if trajectory.usable_so_far:
            await self._guarded("revise", trajectory, self.revise(engine, trajectory, plan))

    async def _guarded(self, phase: str, trajectory: Trajectory, work: Any) -> None:
        # Intended fault tolerance: one trajectory's failure is recorded under its cause; the driver counts and shows
        # it, and stops the run when there are too many.
        start = time.perf_counter()
        graded = trajectory.seconds.get("grade", 0.0)
        try:
            await work
        except Exception as error:
            cause = error.cause if isinstance(error, GraderFailed) else type(error).__name__
            trajectory.failure = f"{phase}: {cause}"
            logger.warning("problem %s: %s failed: %s", trajectory.problem.id, phase, error)
        finally:
            grading = trajectory.seconds.get("grade", 0.0) - graded
            trajectory.seconds[phase] = time.perf_counter() - start - grading

    async def _grade(self, sample: Sample, trajectory: Trajectory):
        problem, start = trajectory.problem, time.perf_counter()
        grade = await self.grader.agrade(sample.text, problem.answer, problem=problem.text)
        trajectory.seconds["grade"] = trajectory.seconds.get("grade", 0.0) + time.perf_counter() - start
        return grade

    def _request(
        self,
        plan: SamplingPlan,
        role: str,
        trajectory: Trajectory,
        prompt_ids: list[int],
        budget: int,
        model: str = SOLVER,
    ) -> SampleRequest:
        room = plan.max_len - len(prompt_ids)
        if room < 1:
            raise PromptTooLong(
                f"the {role}'s prompt has {len(prompt_ids)} tokens and data.max_len is {plan.max_len}; "
                "raise data.max_len or lower the token budgets"
            )
        prompts = {SOLVER: self.solver_prompts, GUIDANCE: self.guidance_prompts}[model]
        assert prompts is not None
        end = prompts.end_of_turn_id
        seed = None
        if plan.seed_requests:
            # the K trajectories of an attempt share its one draw; guidances and revisions are numbered
            draw = 0 if role == "attempt" else trajectory.guidance_index
            seed = request_seed(plan.seed, plan.purpose, plan.step, *trajectory.attempt_key, role, draw)
        return SampleRequest(
            prompt_ids=prompt_ids,
            max_tokens=min(budget, room),
            temperature={SOLVER: plan.temperature, GUIDANCE: plan.guidance_temperature}[model],
            seed=seed,
            stop_token_ids=(end,) if end is not None else (),
            version=plan.versions[model],
        )

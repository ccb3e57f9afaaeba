"""Problems in; trajectories out, walked in the driver on engines that run: with their own guidance or under another.

The steps are those of training (`rollout/executor.py`), so an evaluation with training's seeds samples what the
evaluation within training does. The driver holds the executor because a control needs one step of it alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from score_openrlhf.evaluation.conditions import masked
from score_openrlhf.evaluation.kept import KeptCondition
from score_openrlhf.rollout.chat import Prompting
from score_openrlhf.rollout.executor import GuidedRevisionExecutor, RemoteEngine, SamplingPlan
from score_openrlhf.rollout.prompts import GuidancePrompts, SolverPrompts
from score_openrlhf.rollout.trajectory import Sample, Trajectory
from score_openrlhf.tasks.base import Grade, Problem, Task, Templates
from score_openrlhf.tasks.pool import GradingPool

IN_FLIGHT_PER_ENGINE = 512  # trajectories; more would only queue inside the engine
Advance = Callable[[], None]  # called once for each trajectory that is done


class OptionalGrader:
    """The grading pool for problems with a gold answer; one without is `unparsable` and its hints leak nothing."""

    def __init__(self, pool: GradingPool):
        self.pool = pool

    async def agrade(self, text: str, answer: str, *, problem: str = "", prompt: str = "") -> Grade:
        if not answer:
            return Grade("unparsable", "no answer is given to grade against")
        return await self.pool.agrade(text, answer, problem=problem, prompt=prompt)

    async def astates_answer(self, guidance: str, problem: str, attempt: str, answer: str) -> tuple[bool, str]:
        if not answer:
            return False, "ok"
        return await self.pool.astates_answer(guidance, problem, attempt, answer)


class ControlledExecutor(GuidedRevisionExecutor):
    """Training's executor, which can also revise an attempt under a text that is not its own guidance."""

    async def revise_under(
        self, engine: RemoteEngine, own: Trajectory, text: str | None, plan: SamplingPlan
    ) -> Trajectory:
        """`own`'s attempt revised under `text` (None: the fixed instruction), with the same seed as `own`'s revision.

        Where the text is the own guidance the request would be the same, and `own`'s revision stands for it.
        """
        repeats = plan.seed_requests or plan.temperature == 0
        if repeats and own.guidance is not None and text == own.guidance.text:
            return own
        control = replace(
            own,
            guidance=None if text is None else Sample([], [], text, truncated=False, version=0),
            guidance_prompt_ids=[], bridge_ids=[], revision=None, grade_t2=None, leak=0.0, hint_metrics={}, seconds={},
        )  # fmt: skip
        await self._guarded("revise", control, self.revise(engine, control, plan))
        return control

    async def step(self, phase: str, trajectory: Trajectory, work: Awaitable[None]) -> None:
        """One step by itself; its failure is marked, not raised."""
        await self._guarded(phase, trajectory, work)


@dataclass
class EvaluationRunner:
    """Two models on their engines, and the executors that walk problems through them."""

    task: Task
    pool: GradingPool
    executor: ControlledExecutor
    solver: list[RemoteEngine]
    alone_executor: ControlledExecutor | None  # asks the guidance model as if it were the solver
    guidance: list[RemoteEngine]

    def engine(self, group: int) -> RemoteEngine:
        """The solver engine of a problem: one for all its requests, whose prefix cache then holds the attempt."""
        return self.solver[group % len(self.solver)]

    async def own(
        self, problems: Sequence[Problem], plan: SamplingPlan, kept: KeptCondition, advance: Advance
    ) -> list[Trajectory]:
        """`attempt -> guide -> revise` for each problem and attempt, in that order; failures are marked.

        What is kept already is not sampled again, here as under the controls.
        """

        async def walk(group: int, index: int) -> Trajectory:
            if done := kept.get(group, index):
                return done
            engine = self.engine(group)
            (trajectory,) = await self.executor.walk(engine, Trajectory(problems[group], group, index, 0), plan)
            kept.add(trajectory)
            return trajectory

        places = [(group, index) for group in range(len(problems)) for index in range(plan.num_attempts)]
        return await self._gather(walk, places, advance)

    async def control(
        self,
        own: Sequence[Trajectory],
        texts: dict[int, str | None],
        plan: SamplingPlan,
        kept: KeptCondition,
        advance: Advance,
    ) -> list[Trajectory]:
        """The trajectories at the positions of `texts`, their revisions sampled again under those texts."""

        async def revise(position: int, text: str | None) -> Trajectory:
            done = kept.get(*own[position].attempt_key)
            # another text: an attempt that failed before has not now, and the hints are shuffled otherwise
            if done and (done.guidance.text if done.guidance else None) == text:
                return done
            engine = self.engine(own[position].group)
            control = await self.executor.revise_under(engine, own[position], text, plan)
            if control is not own[position]:
                kept.add(control)
            return control

        return await self._gather(revise, list(texts.items()), advance)

    async def alone(
        self, problems: Sequence[Problem], plan: SamplingPlan, kept: KeptCondition, advance: Advance
    ) -> list[Trajectory]:
        """The guidance model's own answers, as attempts."""
        executor = self.alone_executor
        assert executor is not None

        async def answer(group: int, index: int) -> Trajectory:
            if done := kept.get(group, index):
                return done
            trajectory = Trajectory(problems[group], group, index, 0)
            engine = self.guidance[group % len(self.guidance)]
            await executor.step("attempt", trajectory, executor.attempt(engine, trajectory, plan))
            kept.add(trajectory)
            return trajectory

        places = [(group, index) for group in range(len(problems)) for index in range(plan.num_attempts)]
        return await self._gather(answer, places, advance)

    async def masked_texts(self, own: Sequence[Trajectory], positions: Sequence[int]) -> dict[int, str | None]:
        """Position -> the own guidance without what states the answer; what cannot be decided in time is masked."""

        def mask(position: int) -> str:
            t = own[position]
            assert t.guidance is not None

            def states_answer(text: str) -> bool:
                leak, status = self.pool.states_answer(text, "", "", t.problem.answer).result()
                return leak or status != "ok"

            return masked(t.guidance.text, t.problem.answer, states_answer)

        texts = await asyncio.gather(*(asyncio.to_thread(mask, position) for position in positions))
        return dict(zip(positions, texts, strict=True))

    async def _gather(
        self, work: Callable[..., Awaitable[Trajectory]], arguments: Sequence[tuple], advance: Advance
    ) -> list[Trajectory]:
        """`work` for each of `arguments`, side by side, in their order."""
        room = asyncio.Semaphore(IN_FLIGHT_PER_ENGINE * len(self.solver))

        async def one(those: tuple) -> Trajectory:
            async with room:
                result = await work(*those)
            advance()
            return result

        return list(await asyncio.gather(*(one(those) for those in arguments)))


def make_runner(
    task: Task,
    templates: Templates,
    pool: GradingPool,
    solver: tuple[Any, list[Any]],
    guidance: tuple[Any, list[Any]] | None,
) -> EvaluationRunner:
    """A runner on running engines; `solver` and `guidance` are a tokenizer and Ray handles each."""
    grader: Any = OptionalGrader(pool)
    tokenizer, handles = solver
    prompts = SolverPrompts(tokenizer, templates)
    if guidance is None:
        executor = ControlledExecutor(task, grader, prompts)
        return EvaluationRunner(task, pool, executor, [RemoteEngine(h) for h in handles], None, [])
    guidance_tokenizer, guidance_handles = guidance
    prompting = Prompting.of(templates)
    engines = [RemoteEngine(h) for h in guidance_handles]
    return EvaluationRunner(
        task,
        pool,
        ControlledExecutor(task, grader, prompts, GuidancePrompts(guidance_tokenizer, templates), engines),
        [RemoteEngine(h) for h in handles],
        ControlledExecutor(task, grader, SolverPrompts(guidance_tokenizer, templates, prompting.guidance_chat)),
        engines,
    )

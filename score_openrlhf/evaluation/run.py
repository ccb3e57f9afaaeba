"""Engines and problems in; the trajectories of every condition, paired on the same attempts, out."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from score_openrlhf.config.schema import Config
from score_openrlhf.errors import UserError
from score_openrlhf.evaluation.conditions import ALONE, FIXED, MASKED, NONE, OWN, SHUFFLED, shuffled
from score_openrlhf.evaluation.kept import Kept
from score_openrlhf.evaluation.runner import EvaluationRunner
from score_openrlhf.rollout.executor import SamplingPlan
from score_openrlhf.rollout.generator import check_failures
from score_openrlhf.rollout.trajectory import Trajectory
from score_openrlhf.tasks.base import Problem

Report = Callable[[str, int], Callable[[], None]]  # (phase, its trajectories) -> called once for each that is done


@dataclass(frozen=True)
class Settings:
    """What is evaluated: K attempts a problem for each seed, at one temperature of both models (0: greedy)."""

    samples: int
    temperature: float
    seeds: tuple[int, ...]
    controls: bool = True

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise UserError(f"samples is {self.samples}; give at least 1 attempt a problem")
        if self.temperature < 0:
            raise UserError(f"temperature is {self.temperature}; give 0 (greedy) or more")
        if not self.seeds or len(set(self.seeds)) != len(self.seeds):
            raise UserError(f"seeds are {list(self.seeds)}; give one or more that differ")


# condition -> seed -> trajectories, ordered by problem and attempt
Collected = dict[str, dict[int, list[Trajectory]]]


def main_condition(runner: EvaluationRunner) -> str:
    """What the controls are compared with: the own guidance, or the fixed text where there is no guidance model."""
    return OWN if runner.guidance else FIXED


def evaluate(
    runner: EvaluationRunner, problems: Sequence[Problem], cfg: Config, settings: Settings, report: Report, kept: Kept
) -> Collected:
    """Walk `problems` under every condition; raises TooManyFailures and TooManyErrors as training does.

    Only the revisions of a control are sampled again, of attempts whose trajectory came to its end. What is in `kept`
    is not sampled again, and each trajectory is there as soon as it is finished.
    """
    collected: Collected = {}
    for seed in settings.seeds:
        found = asyncio.run(_conditions(runner, problems, cfg, settings, seed, report, kept))
        for name, trajectories in found.items():
            collected.setdefault(name, {})[seed] = trajectories
            _check_failures(name, trajectories, cfg)
    return collected


async def _conditions(
    runner: EvaluationRunner,
    problems: Sequence[Problem],
    cfg: Config,
    settings: Settings,
    seed: int,
    report: Report,
    kept: Kept,
) -> dict[str, list[Trajectory]]:
    plan = sampling_plan(cfg, settings, seed)
    main = main_condition(runner)
    num = len(problems) * settings.samples
    own = await runner.own(problems, plan, kept.under(main, seed), report(main, num))
    _check_failures(main, own, cfg)  # before more is sampled
    found = {main: own}
    if not settings.controls:
        return found
    positions = [position for position, t in enumerate(own) if t.usable]
    texts: dict[str, dict[int, str | None]] = {NONE: dict.fromkeys(positions, "")}
    if main == OWN:
        texts[FIXED] = dict.fromkeys(positions, None)
        of_others = shuffled([own[p] for p in positions], seed)
        texts[SHUFFLED] = {positions[p]: text for p, text in of_others.items()}
        texts[MASKED] = await runner.masked_texts(own, positions)
    # Side by side: the solver's engines batch the conditions together while the guidance model answers alone.
    work = {
        name: runner.control(own, text_of, plan, kept.under(name, seed), report(name, len(text_of)))
        for name, text_of in texts.items()
    }
    if main == OWN:
        work[ALONE] = runner.alone(problems, plan, kept.under(ALONE, seed), report(ALONE, num))
    return found | dict(zip(work, await asyncio.gather(*work.values()), strict=True))


def sampling_plan(cfg: Config, settings: Settings, seed: int) -> SamplingPlan:
    """Training's evaluation plan at this seed: the requests are those of an evaluation within training."""
    return SamplingPlan(
        purpose="eval",
        seed=seed,
        step=0,
        num_attempts=settings.samples,
        num_guidances=1,
        temperature=settings.temperature,
        guidance_temperature=settings.temperature,
        attempt_max_tokens=cfg.rollout.attempt_max_tokens,
        guidance_max_tokens=cfg.rollout.guidance_max_tokens,
        revision_max_tokens=cfg.rollout.revision_max_tokens,
        max_len=cfg.data.max_len,
        seed_requests=cfg.rollout.seed_requests,
    )


def _check_failures(name: str, trajectories: Sequence[Trajectory], cfg: Config) -> None:
    """As in training, but of one condition."""
    where = f" under condition {name!r}"
    check_failures(trajectories, cfg.rollout.max_failed_fraction, cfg.task.max_error_fraction, where)

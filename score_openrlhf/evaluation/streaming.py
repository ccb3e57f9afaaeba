"""A problem and running engines in; its trajectory, and every piece of text as soon as it is sampled, out.

    engine.stream -> token ids -> TextStream -> Listener.text

What is sampled is what `EvaluationRunner.own` samples: the same executor, requests and seeds.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from score_openrlhf.evaluation.runner import EvaluationRunner
from score_openrlhf.rollout.executor import RemoteEngine, SampleRequest, SamplingPlan
from score_openrlhf.rollout.trajectory import Sample, Trajectory
from score_openrlhf.tasks.base import Grade

UNDECIDED = "\N{REPLACEMENT CHARACTER}"  # what decoders write for a part of a character


class Listener(Protocol):
    """Who is told of a trajectory while it comes about; a phase is `attempt`, `guide` or `revise`."""

    def begin(self, phase: str) -> None: ...

    def text(self, piece: str) -> None: ...

    def end(self, phase: str, sample: Sample, grade: Grade | None, *, leak: bool) -> None: ...


async def solve(runner: EvaluationRunner, trajectory: Trajectory, plan: SamplingPlan, listener: Listener) -> None:
    """Fill `trajectory` phase by phase; ends early where a phase fails, and the trajectory then says why."""
    executor = copy.copy(runner.executor)
    engine = StreamedEngine(runner.engine(trajectory.group), executor.solver_prompts.tokenizer, listener.text)
    phases: dict[str, Callable[[], Any]] = {"attempt": lambda: executor.attempt(engine, trajectory, plan)}
    if executor.guidance_prompts is not None:
        tokenizer = executor.guidance_prompts.tokenizer
        executor.guidance_engines = [StreamedEngine(e, tokenizer, listener.text) for e in runner.guidance]
        phases["guide"] = lambda: executor.guide(trajectory, plan)
    phases["revise"] = lambda: executor.revise(engine, trajectory, plan)
    for phase, work in phases.items():
        listener.begin(phase)
        await executor.step(phase, trajectory, work())
        sample, grade = {
            "attempt": (trajectory.attempt, trajectory.grade_t1),
            "guide": (trajectory.guidance, None),
            "revise": (trajectory.revision, trajectory.grade_t2),
        }[phase]
        if sample is None or not trajectory.usable_so_far:
            return
        listener.end(phase, sample, grade, leak=phase == "guide" and trajectory.leak > 0)


class StreamedEngine:
    """An engine that passes the text of a sample on while it comes about."""

    def __init__(self, engine: RemoteEngine, tokenizer: Any, on_text: Callable[[str], None]):
        self.handle = engine.handle
        self.tokenizer = tokenizer
        self.on_text = on_text

    async def sample(self, request: SampleRequest) -> Sample:
        """What `RemoteEngine.sample` returns."""
        stream, sample = TextStream(self.tokenizer), None
        async for reference in self.handle.stream.remote(request):
            part = await reference
            if isinstance(part, Sample):
                sample = part
                self._say(stream.rest(sample.text))
            else:
                self._say(stream.add(part))
        assert sample is not None  # the stream ends with it
        return sample

    def _say(self, piece: str) -> None:
        if piece:
            self.on_text(piece)


class TextStream:
    """Token ids in, the text they add out: never a part of a character, and nothing is taken back.

    A token's text depends on its neighbours (a leading space, a character of several tokens), so the ids since the
    last place where the text was whole are decoded again together with those of the place before, as vLLM and
    transformers do it. A text that ends in replacement characters may still be a character that is not finished.

    Not `tokenizers.decoders.DecodeStream`: it raises ("Invalid prefix encountered") where a byte token belongs to no
    character, which models do sample, and it needs a fast tokenizer's backend.
    """

    def __init__(self, tokenizer: Any):
        self.tokenizer = tokenizer
        self.token_ids: list[int] = []
        self.before = self.whole = 0  # the last two places, in ids, at which the text was whole
        self.ahead = 0  # characters said of what follows the last of them
        self.said = ""

    def add(self, token_ids: Sequence[int]) -> str:
        """The text that can be said now and could not before."""
        self.token_ids += token_ids
        known = self._decode(self.token_ids[self.before : self.whole])
        text = self._decode(self.token_ids[self.before :])[len(known) :]
        safe = text.rstrip(UNDECIDED)
        piece = safe[self.ahead :]
        if safe != text:
            self.ahead = len(safe)
        elif text:  # special tokens alone are no neighbour to decode the next token with
            self.before, self.whole, self.ahead = self.whole, len(self.token_ids), 0
        self.said += piece
        return piece

    def rest(self, text: str) -> str:
        """What is still to be said of the finished `text`; all of it, on a line of its own, if it differs."""
        return text.removeprefix(self.said) if text.startswith(self.said) else f"\n{text}"

    def _decode(self, token_ids: list[int]) -> str:
        return self.tokenizer.decode(token_ids, skip_special_tokens=True)

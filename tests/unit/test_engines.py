"""What vLLM's engines are started with, on CUDA and on CPU machines, and what they are asked for."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest
from vllm.sampling_params import RequestOutputKind

from score_openrlhf.config.compose import load_config
from score_openrlhf.config.sources import PROJECT_CONFIGS
from score_openrlhf.platform import settings
from score_openrlhf.policies import build, engines
from score_openrlhf.rollout.executor import SampleRequest

CONFIG = str(PROJECT_CONFIGS / "rl_guided_score_math.yaml")
WORDS = ["model_path=owner/model", "data.train=owner/problems", "vllm.max_num_seqs=256", "data.max_len=3000"]


class Started:
    """In place of the Ray actor: keeps what the engines are made with."""

    def __init__(self) -> None:
        self.options_of: list[dict] = []

    def options(self, **_placement) -> Started:
        return self

    def remote(self, **options) -> SimpleNamespace:
        self.options_of.append(options)
        return SimpleNamespace(__ray_ready__=SimpleNamespace(remote=lambda: None))


@pytest.fixture
def started(monkeypatch) -> Started:
    made = Started()
    monkeypatch.setattr(engines, "RolloutActor", made)
    monkeypatch.setattr(engines, "cluster_nodes", lambda: ["one"])
    monkeypatch.setattr(engines, "_places", lambda *args: [(SimpleNamespace(id=1), [0])])
    monkeypatch.setattr(build, "reserve_groups", lambda groups, **options: {})
    monkeypatch.setattr(engines, "PlacementGroupSchedulingStrategy", lambda **options: None)
    return made


@pytest.mark.parametrize(
    ("on_cpu", "words", "expected"),
    [
        (False, (), [(256, 8192), (256, 8192)]),
        (False, ("guidance_vllm.max_num_seqs=64",), [(256, 8192), (64, 8192)]),
        (True, (), [(256, None), (256, None)]),
        (True, ("guidance_vllm.max_num_batched_tokens=512",), [(256, None), (256, 3000)]),  # a prompt in one piece
    ],
)
def test_each_policys_engines_get_their_batch(started, monkeypatch, on_cpu, words, expected):
    monkeypatch.setattr(settings, "is_cpu", lambda: on_cpu)
    build.start_engines(load_config(CONFIG, [*WORDS, *words]).cfg)
    seen = [(kw.get("max_num_seqs"), kw.get("max_num_batched_tokens")) for kw in started.options_of]
    assert seen == expected


@pytest.mark.parametrize("words", [(), ("vllm.enforce_eager=true",)])
def test_cuda_graphs_are_on_unless_asked(started, monkeypatch, words):
    monkeypatch.setattr(settings, "is_cpu", lambda: False)
    build.start_engines(load_config(CONFIG, [*WORDS, *words]).cfg)
    assert {options["enforce_eager"] for options in started.options_of} == {bool(words)}


def test_outputs_on_the_way_are_made_for_a_stream_alone():
    """An engine that hands out what it is asked for: with FINAL_ONLY the last output, else one at each token."""
    asked = []

    async def generate(prompt, params, request_id=None):
        asked.append(params.output_kind)
        for end in (1, 2, 3) if params.output_kind is RequestOutputKind.CUMULATIVE else (3,):
            position = [{token: SimpleNamespace(logprob=-1.0)} for token in (7, 8, 9)[:end]]
            output = SimpleNamespace(token_ids=(7, 8, 9)[:end], logprobs=position, finish_reason="stop")
            yield SimpleNamespace(outputs=[output])

    actor = engines._RolloutActor.__new__(engines._RolloutActor)
    actor.llm, actor._mm_pad_token_ids = SimpleNamespace(generate=generate), None
    actor.tokenizer = SimpleNamespace(decode=lambda ids, **options: str(ids))
    request = SampleRequest(prompt_ids=[1, 2], max_tokens=3, temperature=1.0, seed=0, stop_token_ids=(), version=0)

    async def streamed() -> list:
        return [piece async for piece in actor.stream(request)]

    sample = asyncio.run(actor.sample(request))
    *pieces, last = asyncio.run(streamed())
    assert sample.token_ids == last.token_ids == [7, 8, 9] and pieces == [[7], [8], [9]]
    assert asked == [RequestOutputKind.FINAL_ONLY, RequestOutputKind.CUMULATIVE]

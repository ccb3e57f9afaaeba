"""Every question is asked before the start: models, prompts, rows, golds; all faults at once, rows by name."""

import io
import json
import os
import shutil
import socket

import pytest
from huggingface_hub import constants
from rich.console import Console
from transformers import GenerationConfig

from benchmarks.tiny_models import make_model
from score_openrlhf.config.context import context_length
from score_openrlhf.config.schema import Config
from score_openrlhf.config.validate import validate
from score_openrlhf.errors import UserError
from score_openrlhf.policies.generation import fault, savable
from score_openrlhf.preflight import golds, hub
from score_openrlhf.preflight.ask import ask
from score_openrlhf.tasks import make_task
from score_openrlhf.tasks.base import Problem

TEMPLATES = make_task("math").templates


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("preflight") / "model")


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("score_openrlhf.preflight.ask.SHOWN_AFTER_SECONDS", 1e9)  # slow machines show a line


def config(model, **changes) -> Config:
    cfg = Config(method="score", model_path=str(model))
    cfg.data.max_len, cfg.task.grader_processes = 1000, 1
    cfg.rollout.attempt_max_tokens = cfg.rollout.revision_max_tokens = 100
    for key, value in changes.items():
        section, name = key.split("__")
        setattr(getattr(cfg, section), name, value)
    return cfg


def row(number, text="What is 1 plus 2?", answer="3") -> Problem:
    return Problem(f"train.jsonl:{number}", text, answer, {})


def asked(cfg, rows, **options):
    """The rows that are left, and what the terminal says."""
    said = io.StringIO()
    usable = ask(cfg, TEMPLATES, {"data.train": rows}, Console(file=said, width=200), **options)
    return [problem.id for problem in usable["data.train"]], said.getvalue()


def refused(cfg, rows, **options) -> str:
    with pytest.raises(UserError) as raised:
        asked(cfg, rows, **options)
    return str(raised.value)


def test_sound_rows_pass_in_silence(model):
    assert asked(config(model), [row(1), row(2)]) == (["train.jsonl:1", "train.jsonl:2"], "")


def test_golds_that_nothing_equals_are_named_by_row(model):
    rows = [row(1), row(2, answer="$"), row(3, answer="####"), row(4, answer="\\boxed{}"), row(5, answer="proof")]
    text = refused(config(model), rows)
    assert "data.train: 4 of 5 rows cannot be used" in text and "data.on_bad_row=skip" in text
    assert all(f"train.jsonl:{number}: " in text for number in (2, 3, 4, 5)) and "train.jsonl:1" not in text
    left, said = asked(config(model, data__on_bad_row="skip"), rows)
    assert left == ["train.jsonl:1"] and "4 of 5 rows cannot be used and are left out" in said


def test_half_a_character_is_found_before_a_tokenizer_meets_it(model):
    broken = json.loads('"What is \\ud83d plus 2?"')
    text = refused(config(model), [row(1), row(2, text=broken)])
    assert "train.jsonl:2: its problem holds half of a character (\\ud83d at position 8)" in text


def test_a_prompt_that_leaves_no_room_is_refused_with_the_sum(model):
    rows = [row(1), row(2, text="What is " + "1 plus " * 500 + "2?")]
    text = refused(config(model), rows)
    assert "train.jsonl:2: it takes " in text and "data.max_len 1000 - chat template" in text
    assert "- attempt 100 - turn-2 instruction" in text and "- revision 100 = " in text and "guidance" not in text
    left, said = asked(config(model, data__on_long_prompt="skip"), rows)
    assert left == ["train.jsonl:1"] and "1 of 2 rows are too long and are left out" in said


def test_the_guidance_models_context_counts_too(model):
    cfg = config(model, rollout__guidance_max_tokens=100)
    cfg.method = "smart_score"
    own, room = asked(cfg, [row(1)])[0], refused(cfg, [row(2, text="1 plus " * 300)])
    assert own == ["train.jsonl:1"] and "of the solver's prompt" in room and "guidance 100" in room


def test_no_row_left_is_said(model):
    text = refused(config(model, data__on_bad_row="skip"), [row(1, answer="$")])
    assert "data.train: no row is left" in text


def test_all_faults_come_at_once(model, tmp_path):
    cfg = config(tmp_path / "nothing")
    cfg.method, cfg.guidance_model_path = "smart_score", "owner/never-downloaded"
    text = refused(cfg, [row(1, answer="$")], faults=["data.eval: /x.jsonl does not exist"])
    lines = text.splitlines()
    assert lines[0].startswith("data.eval: ")
    assert any(line.startswith("model_path: the tokenizer of") for line in lines)
    (hub,) = [line for line in lines if "the tokenizer of owner/never-downloaded cannot be loaded" in line]
    assert hub.startswith("guidance_model_path: ") and "HF_HUB_OFFLINE" in hub
    assert "data.train: 1 of 1 rows cannot be used" in text


def test_an_own_reward_function_has_its_own_golds(model):
    assert asked(config(model, task__reward_func="reward.py"), [row(1, answer="proof")])[0] == ["train.jsonl:1"]


def test_many_golds_are_asked_once(model, monkeypatch):
    rows = [row(number) for number in range(golds.REMEMBERED_FROM)] + [row(9999, answer="$")]
    first = refused(config(model), rows)
    monkeypatch.setattr(golds, "GradingPool", None)  # a second call would need it
    assert refused(config(model), rows) == first
    with pytest.raises(TypeError):
        asked(config(model), [*rows[:-1], row(9999, answer="4")])  # other content is asked anew


def test_a_generation_config_that_cannot_be_saved_is_mended_and_said_once(model, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(model, folder)
    published = {"do_sample": False, "temperature": 0.9, "top_p": 0.6, "eos_token_id": 1}
    (folder / "generation_config.json").write_text(json.dumps(published))
    config_ = GenerationConfig.from_pretrained(folder)
    with pytest.raises(ValueError, match="do_sample"):
        config_.save_pretrained(tmp_path / "refused")
    mended, change = savable(config_)
    mended.save_pretrained(tmp_path)
    kept = json.loads((tmp_path / "generation_config.json").read_text())
    assert (kept["do_sample"], kept["temperature"], kept["top_p"], kept["eos_token_id"]) == (True, 0.9, 0.6, 1)
    said = asked(config(folder), [row(1)])[1]
    assert said.count("note: model_path: generation_config.json") == 1 and "do_sample is set to true" in said
    assert change is not None and change in said
    assert savable(mended) == (mended, None)


def test_what_sampling_does_not_explain_is_left_out_of_a_saved_generation_config():
    mended, change = savable(GenerationConfig.from_dict({"eos_token_id": [2, 3], "pad_token_id": -1}))
    assert fault(mended) is None and mended.eos_token_id == [2, 3] and mended.pad_token_id is None
    assert change is not None and "only its token ids are kept" in change


@pytest.mark.parametrize(
    ("values", "longest"),
    [
        ({"max_position_embeddings": 256}, 256),
        ({"max_position_embeddings": 4096, "seq_length": 2048}, 2048),  # the smallest
        ({"max_position_embeddings": 4096, "rope_scaling": {"type": "linear", "factor": 4.0}}, 16384),
        ({"max_position_embeddings": 131072, "rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, 131072),
        (
            {
                "max_position_embeddings": 32768,
                "rope_parameters": {
                    "rope_type": "yarn",
                    "factor": 4.0,
                    "original_max_position_embeddings": 32768,
                },
            },
            131072,
        ),
        ({"text_config": {"max_position_embeddings": 8192}}, 8192),
        ({"hidden_size": 8}, None),
    ],
)
def test_context_length(tmp_path, values, longest):
    (tmp_path / "config.json").write_text(json.dumps(values))
    assert context_length(str(tmp_path)) == longest


def test_a_context_that_is_too_short_is_refused_by_plan_and_train(tmp_path):
    (tmp_path / "config.json").write_text('{"max_position_embeddings": 256}')
    cfg = Config(method="score", model_path=str(tmp_path))
    cfg.data.train, cfg.data.max_len = "owner/set", 700
    cfg.rollout.attempt_max_tokens = cfg.rollout.revision_max_tokens = 50
    for check_paths in (True, False):  # train, plan
        with pytest.raises(UserError) as raised:
            validate(cfg, check_paths=check_paths)
        assert "data.max_len is 700" in str(raised.value)
        assert "sequences of 256 tokens: set data.max_len=256" in str(raised.value)
    cfg.data.max_len = 256
    validate(cfg)


def test_without_a_way_to_the_hub_what_is_cached_is_used_at_once(monkeypatch):
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")  # nothing listens there
    for name in hub.PROXIES:
        monkeypatch.delenv(name, raising=False)
    assert hub.offline_without_a_hub("/a/folder", None, "rows.jsonl") is None and "HF_HUB_OFFLINE" not in os.environ
    said = hub.offline_without_a_hub("owner/model", "/a/folder")
    assert said is not None and "of owner/model only what is cached here is used" in said
    assert os.environ["HF_HUB_OFFLINE"] == "1" and constants.HF_HUB_OFFLINE is True
    monkeypatch.delenv("HF_HUB_OFFLINE")
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        assert hub.offline_without_a_hub("owner/model") is None and "HF_HUB_OFFLINE" not in os.environ

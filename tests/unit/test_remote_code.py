"""A model's own Python code does not run unless its key allows it: no command, no loader of the host's."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.tiny_models import make_tokenizer
from score_openrlhf import platform
from score_openrlhf.cli import main
from score_openrlhf.config.model_code import own_code, trusted_models, untrusted_code
from score_openrlhf.config.schema import Config
from score_openrlhf.errors import UserError
from score_openrlhf.platform.remote_code import TRUSTED_VARIABLE

# What a stranger's file may do when it is imported; the class is what transformers wants to find in it.
CODE = """
from pathlib import Path
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM
Path({marker!r}).write_text("it ran")
class OwnTokenizer(PreTrainedTokenizerFast): pass
class OwnConfig(Qwen2Config): model_type = "own"
class OwnModel(Qwen2ForCausalLM): config_class = OwnConfig
"""
SHAPE = {
    "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_size": 32, "intermediate_size": 64,
    "num_hidden_layers": 1, "num_attention_heads": 1, "num_key_value_heads": 1, "vocab_size": 512,
    "max_position_embeddings": 256,
}  # fmt: skip
MAPS = {
    "tokenizer": ("tokenizer_config.json", {"AutoTokenizer": [None, "own.OwnTokenizer"]}),
    "old tokenizer": ("tokenizer_config.json", ["own.OwnTokenizer", None]),
    "model": ("config.json", {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}),
    "model alone": ("config.json", {"AutoModelForCausalLM": "own.OwnModel"}),
}


@pytest.fixture(scope="module")
def tokenizer_files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    make_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def make(tmp_path, tokenizer_files):
    """`make(kind)` writes a model's folder whose code leaves a file; returns the folder and that file."""

    def folder_of(kind: str | None) -> tuple[Path, Path]:
        folder, marker = tmp_path / f"{kind}".replace(" ", "_"), tmp_path / "it_ran"
        shutil.copytree(tokenizer_files, folder)
        (folder / "config.json").write_text(json.dumps(SHAPE | ({"model_type": "own"} if kind == "model" else {})))
        (folder / "own.py").write_text(CODE.format(marker=str(marker)))
        if kind is not None:
            file, auto_map = MAPS[kind]
            path = folder / file
            path.write_text(json.dumps(json.loads(path.read_text()) | {"auto_map": auto_map}))
        return folder, marker

    (tmp_path / "rows.jsonl").write_text('{"problem": "1+1", "answer": "2"}\n')
    return folder_of


@pytest.mark.parametrize("kind", MAPS)
@pytest.mark.parametrize("role", ["solver", "guidance"])
@pytest.mark.parametrize("command", ["train", "evaluate config", "evaluate", "solve"])
def test_every_command_refuses_it_and_names_the_key(make, tmp_path, capsys, command, role, kind):
    folder, marker = make(kind)
    plain, _ = make(None)
    solver, guidance = (folder, plain) if role == "solver" else (plain, folder)
    paths = [f"model_path={solver}", f"guidance_model_path={guidance}"]
    data = [f"data.{part}={tmp_path}/rows.jsonl" for part in ("train", "eval")]
    words = {
        "train": ["train", "rl_guided_score_math", *paths, *data, f"output_dir={tmp_path}/out"],
        "evaluate config": ["evaluate", "rl_guided_score_math", *paths, *data],
        "evaluate": ["evaluate", "--solver", solver, "--guidance", guidance, "--problems", tmp_path / "rows.jsonl"],
        "solve": ["solve", "1+1", "--solver", solver, "--guidance", guidance],
    }[command]
    assert main([str(word) for word in words]) == 2
    said = capsys.readouterr().err
    key = "trust_remote_code=true" if role == "solver" else "guidance_trust_remote_code=true"
    assert f"{folder} comes with Python code of its own" in said and f"set {key} " in said and "own.Own" in said
    assert not marker.exists() and "Traceback" not in said


def test_plan_says_it_and_loads_nothing(make, capsys):
    folder, marker = make("model alone")
    words = [f"model_path={folder}", f"guidance_model_path={folder}", "data.max_len=64", "--json"]
    words += [f"rollout.{text}_max_tokens=16" for text in ("attempt", "guidance", "revision")]
    assert main(["plan", "rl_guided_score_math", *words]) in (0, 1)
    notes = json.loads(capsys.readouterr().out)["notes"]
    assert sum("comes with Python code of its own" in note for note in notes) == 1 and not marker.exists()


GUARD = """
import sys
from pathlib import Path
from score_openrlhf import platform
from score_openrlhf.errors import UserError
from openrlhf.utils.utils import get_tokenizer, is_vlm_model
from openrlhf.models import Actor, get_llm_for_sequence_regression
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.dynamic_module_utils import get_class_from_dynamic_module

marker, tokenizer, model = map(Path, sys.argv[1:])
def refused(call):
    try:
        call()
    except UserError as error:
        assert "trust_remote_code=true" in str(error), error
    else:
        raise AssertionError("loaded")
    assert not marker.exists()

refused(lambda: get_tokenizer(str(tokenizer), None))
refused(lambda: Actor(str(model), attn_implementation="sdpa", param_dtype="fp32"))
refused(lambda: get_llm_for_sequence_regression(str(model), "critic", param_dtype="fp32"))
refused(lambda: AutoModelForCausalLM.from_pretrained(model, trust_remote_code=True))
refused(lambda: get_class_from_dynamic_module("own.Own", "owner/name"))
refused(lambda: get_class_from_dynamic_module("other/name--own.Own", str(tokenizer)))
assert not is_vlm_model(str(model)) and not marker.exists()

platform.trust([str(tokenizer)])
refused(lambda: AutoConfig.from_pretrained(model, trust_remote_code=True))  # the key is of one model
assert type(get_tokenizer(str(tokenizer), None)).__name__ == "OwnTokenizer" and marker.exists()
"""


def test_the_host_s_own_loaders_do_not_reach_it_and_a_key_does(make, tmp_path):
    tokenizer, marker = make("tokenizer")
    model, _ = make("model")
    words = [sys.executable, "-c", GUARD, str(marker), str(tokenizer), str(model)]
    environment = {name: value for name, value in os.environ.items() if name != TRUSTED_VARIABLE}
    environment |= {"HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]


def test_each_key_allows_its_own_model_and_the_repositories_it_refers_to(make, monkeypatch):
    (one, _), (two, _) = make("model"), make("tokenizer")
    path = two / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"auto_map": {"AutoTokenizer": "a/b--own.Own"}}))
    cfg = Config(model_path=str(one), guidance_model_path=str(two), method="rl_guided_score")
    assert [line.split(" set ")[1].split("=")[0] for line in untrusted_code(cfg)] == [
        "trust_remote_code", "guidance_trust_remote_code",
    ]  # fmt: skip
    cfg.guidance_trust_remote_code = True
    assert len(list(untrusted_code(cfg))) == 1 and trusted_models(cfg) == sorted([str(two), "a/b"])
    cfg.trust_remote_code = True
    assert list(untrusted_code(cfg)) == []
    cfg.method, cfg.guidance_trust_remote_code = "score", True
    assert trusted_models(cfg) == [str(one)]  # a model that is not used is not trusted
    monkeypatch.setenv(TRUSTED_VARIABLE, "")
    platform.trust(trusted_models(cfg))
    assert platform.environment()[TRUSTED_VARIABLE] == str(one)  # what Ray's workers and the engines get


def test_files_that_are_not_json_are_left_to_whoever_reads_them(tmp_path):
    (tmp_path / "config.json").write_text("{")
    (tmp_path / "tokenizer_config.json").write_text("[]")
    assert own_code(str(tmp_path)) == []


def test_a_file_that_a_model_may_have_and_has_not_is_not_refused(tmp_path):
    """OpenRLHF's own loading, which trusts everything: transformers then asks for custom_generate/generate.py too."""
    from transformers import AutoModelForCausalLM

    from benchmarks.tiny_models import make_model

    plain = make_model(tmp_path / "plain")
    assert AutoModelForCausalLM.from_pretrained(plain, trust_remote_code=True) is not None
    marker = tmp_path / "ran"
    (plain / "custom_generate").mkdir()
    (plain / "custom_generate" / "generate.py").write_text(f"open({str(marker)!r}, 'w')\ndef generate(model): ...\n")
    with pytest.raises(UserError, match=r"custom_generate/generate\.py"):
        AutoModelForCausalLM.from_pretrained(plain, trust_remote_code=True)
    assert not marker.exists()

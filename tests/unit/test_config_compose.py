"""Files and overrides -> a typed configuration: what wins, what is refused and in which words."""

from __future__ import annotations

import dataclasses
import pickle
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from score_openrlhf.config import packaged
from score_openrlhf.config.compose import Resolved, load_config, save, to_yaml_with_sources
from score_openrlhf.config.errors import ConfigError
from score_openrlhf.config.host_defaults import HOST_DEFAULTS
from score_openrlhf.config.keys import keys
from score_openrlhf.config.packaged import PROJECT_CONFIGS
from score_openrlhf.config.refused import REFUSED
from score_openrlhf.config.schema import Config
from score_openrlhf.config.validate import method_of

RL_GUIDED = """\
defaults:
  - smart_score_math
  - _self_

# Add RL training for guidance model
train_guidance_model: true
guidance_lr: 1e-6
guidance_model_path: null
guidance_kl_coef: 0.05

run_name: 'rl-guided-score-math'
"""


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Writes a YAML file into an otherwise empty working directory and returns its path."""
    monkeypatch.chdir(tmp_path)

    def write_file(text: str, name: str = "run.yaml") -> str:
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        return str(file)

    return write_file


def problems(path: str, *overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_config(path, list(overrides))
    return caught.value.problems


@pytest.mark.parametrize("name", sorted(path.name for path in PROJECT_CONFIGS.glob("*.yaml")))
def test_every_shipped_file_loads(name):
    assert isinstance(load_config(str(PROJECT_CONFIGS / name), []).cfg, Config)


def test_a_file_in_another_folder_builds_on_the_projects_files(write):
    resolved = load_config(write(RL_GUIDED, "elsewhere/rl_guided_score_math.yaml"), [])
    cfg = resolved.cfg
    assert method_of(cfg) == "rl_guided_score"
    assert (cfg.guidance_lr, cfg.guidance_kl_coef, cfg.guidance_model_path) == (1e-6, 0.05, None)
    assert cfg.use_smart_corrections  # smart_score_math.yaml
    assert cfg.output_dir == "runs/rl-guided-score-math"  # the interpolated default takes this file's run_name
    assert resolved.sources["guidance_lr"] == "elsewhere/rl_guided_score_math.yaml"
    assert resolved.sources["use_smart_corrections"].endswith("configs/smart_score_math.yaml")
    assert resolved.sources["alpha"].endswith("configs/score_math.yaml")
    assert resolved.sources["gamma_turn"] == "default"


def test_the_shipped_rl_guided_file_sets_exactly_its_documented_keys():
    sources = load_config(str(PROJECT_CONFIGS / "rl_guided_score_math.yaml"), []).sources
    own = {key for key, source in sources.items() if source.endswith("rl_guided_score_math.yaml")}
    assert own == {"train_guidance_model", "guidance_lr", "guidance_model_path", "guidance_kl_coef", "run_name"}


def test_files_beside_win_over_the_projects(write):
    write("alpha: 3\n", "smart_score_math.yaml")
    cfg = load_config(write(RL_GUIDED), []).cfg
    assert cfg.alpha == 3.0
    assert not cfg.use_smart_corrections


def test_self_decides_what_wins(write):
    write("alpha: 3\n", "base.yaml")
    assert load_config(write("defaults: [base, _self_]\nalpha: 4\n"), []).cfg.alpha == 4.0
    assert load_config(write("defaults: [_self_, base]\nalpha: 4\n"), []).cfg.alpha == 3.0


def test_a_config_group_lands_in_its_section(write):
    write("num_engines: 3\n", "vllm/big.yaml")
    resolved = load_config(write("defaults:\n  - vllm: big\n  - _self_\n"), [])
    assert resolved.cfg.vllm.num_engines == 3
    assert resolved.sources["vllm.num_engines"] == "vllm/big.yaml"


def test_overrides_win_and_are_typed(write):
    resolved = load_config(
        write("alpha: 3\nseed: 1\n"),
        [
            "alpha=2",
            "actor.adam.betas=[0.9,0.99]",
            "max_steps=null",
            "resume=false",
            "ds.lora={rank: 8}",
            "run_name='a b'",
            "data.train=dir/a,b=c {1}.jsonl",
            "task.reward_func=http://host:1/f?a=1&b=2",
        ],
    )
    cfg = resolved.cfg
    assert (cfg.alpha, cfg.actor.adam.betas, cfg.max_steps, cfg.resume) == (2.0, [0.9, 0.99], None, False)
    assert isinstance(cfg.alpha, float)
    assert (cfg.ds.lora.rank, cfg.run_name) == (8, "a b")
    assert cfg.data.train == "dir/a,b=c {1}.jsonl"
    assert cfg.task.reward_func == "http://host:1/f?a=1&b=2"
    assert cfg.output_dir == "runs/a b"
    assert resolved.sources["alpha"] == "command line"
    assert resolved.sources["seed"] == "run.yaml"


def test_home_is_expanded_in_paths(write, monkeypatch):
    monkeypatch.setenv("HOME", "/home/someone")
    assert load_config(write("model_path: ~/model\n"), []).cfg.model_path == "/home/someone/model"


@pytest.mark.parametrize(
    ("override", "names"),
    [
        ("lr=1", ["actor.adam.lr", "guidance_lr"]),
        ("guidence_lr=1", ["guidance_lr"]),
        ("actor.lr=1", ["actor.adam.lr"]),
        ("use_smart_correction=true", ["use_smart_corrections"]),
        ("batch_size=3", ["train.batch_size", "rollout.batch_size"]),
        ("n_sample_per_prompt=3", ["rollout.n_samples_per_prompt"]),
    ],
)
def test_unknown_override_names_the_nearest_keys(write, override, names):
    (problem,) = problems(write("alpha: 1\n"), override)
    assert problem.startswith(f"unknown key {override.split('=')[0]} (command line)")
    for name in names:
        assert name in problem.split("did you mean")[1]


@pytest.mark.parametrize(
    ("override", "reason"),
    [
        ("reward.clip_range=[-10,10]", "shaped rewards reach 1 + alpha (11) and are never clipped"),
        ("reward.overlong_buffer_len=64", "the host's length penalties measure one response"),
        ("reward.stop_properly_penalty_coef=0.5", "the host's length penalties measure one response"),
        ("algo.kl.use_loss=true", "as a loss it would have one weight for both turns; set beta1"),
        ("algo.advantage.estimator=rloo", "computed for each turn here; set solver.baseline"),
        ("rollout.top_k=50", "log-probs that are not the policy's"),
        ("rollout.min_p=0.1", "log-probs that are not the policy's"),
    ],
)
def test_a_key_of_the_hosts_that_contradicts_the_method_is_refused_with_the_reason(write, override, reason):
    (problem,) = problems(write("alpha: 1\n"), override)
    assert problem.startswith(f"{override.split('=')[0]} (command line) is the host's and refused here: ")
    assert reason in problem


def test_refused_keys_are_the_hosts_and_not_ours_and_name_keys_that_are_there():
    for name, reason in REFUSED.items():
        assert name in HOST_DEFAULTS or name in ("rollout.top_k", "rollout.min_p")  # which the host never sets
        assert name not in keys()
        for named in re.findall(r"\b(?:solver|guidance|critic|algo|task|rollout)\.[a-z_.]+", reason):
            assert named in keys(), f"{name}: {named}"


def test_all_problems_of_a_file_and_the_command_line_are_reported_at_once(write):
    path = write("alpah: 1\nactor:\n  adam:\n    lrr: 2\nseed: abc\nvllm: 4\nmodel_path:\n  name: x\n")
    found = problems(path, "resume=2", "seed=1.5")
    assert found == [
        "unknown key alpah (run.yaml); did you mean alpha or ds.lora.alpha?",
        "unknown key actor.adam.lrr (run.yaml); did you mean actor.adam.lr?",
        "seed (run.yaml) is 'abc', but must be int",
        "vllm (run.yaml) is a section, not a value: set its keys, such as vllm.num_engines, "
        "vllm.tensor_parallel_size, vllm.gpu_memory_utilization (got 4)",
        "model_path (run.yaml) is {'name': 'x'}, but must be str or null",
        "resume (command line) is 2, but must be bool",
        "seed (command line) is 1.5, but must be int",
    ]


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("+alpha=1", "neither added (+) nor removed (~)"),
        ("~alpha", "neither added (+) nor removed (~)"),
        ("--alpha=1", "without dashes"),
        ("alpha", "has the form key=value"),
        ("=1", "has the form key=value"),
        ("alpha=1,2", "a sweep over values"),
        ("alpha=[1", "quote the value"),
        ("alpha=true", "must be float"),
        ("alpha=nan", "must be float"),
        ("data.max_len=null", "is null, but must be int"),
        ("actor.adam.betas=[a]", "must be list of float"),
        ("model_path=???", "must be given: model_path=..."),
        ("run_name=${nope}", "Interpolation key 'nope' not found"),
        ("max_steps=${run_name}", "max_steps (command line) is '${run_name}'"),
    ],
)
def test_malformed_overrides_say_what_is_wrong(write, override, words):
    (problem,) = problems(write("run_name: x\n"), override)
    assert words in problem
    assert "command line" in problem


def test_missing_file_is_named_with_its_neighbours(write, tmp_path):
    write("alpha: 1\n", "score_math.yaml")
    (problem,) = problems("scor_math.yaml")
    assert problem == f"{tmp_path}/scor_math.yaml does not exist; near names in that folder: score_math.yaml"
    (problem,) = problems("nowhere/x.yaml")
    assert problem.startswith(f"{tmp_path}/nowhere/x.yaml does not exist, nor does its folder; the package has play")
    (problem,) = problems("x.json")
    assert "ends in .yaml" in problem


def test_configurations_of_the_package_are_found_by_name_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    by_name, by_path = (load_config(word, []) for word in ("score_math", str(PROJECT_CONFIGS / "score_math.yaml")))
    assert by_name.cfg == by_path.cfg and by_name.config_path == str(PROJECT_CONFIGS / "score_math.yaml")
    assert by_name.sources["alpha"] == "configs/score_math.yaml"
    assert packaged.names() == sorted(path.stem for path in PROJECT_CONFIGS.glob("*.yaml"))


def test_a_file_of_ones_own_extends_the_package_s_from_any_folder(write, tmp_path, monkeypatch):
    path = write("defaults: [rl_guided_score_math, _self_]\nalpha: 3\n", "own.yaml")
    monkeypatch.chdir(tmp_path.parent)
    loaded = load_config(path, [])
    assert (loaded.cfg.alpha, loaded.cfg.train_guidance_model) == (3, True)


def test_a_name_the_package_does_not_know_is_answered_with_all_it_has(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (problem,) = problems("rl_guided_score_mth")
    assert problem.startswith(
        "rl_guided_score_mth is not a configuration of the package; did you mean rl_guided_score_math?"
    )
    assert all(name in problem for name in packaged.names()) and "ends in .yaml" in problem
    (problem,) = problems("configs/score_math.yaml")  # as the docs write it, from another folder
    assert problem.endswith("the one that comes with the package is called score_math, without folder and .yaml")


def test_missing_default_and_broken_yaml_name_the_file(write, tmp_path):
    (problem,) = problems(write("defaults: [nope, _self_]\n"))
    assert f"{tmp_path}/run.yaml" in problem and "Could not load 'nope'" in problem
    (problem,) = problems(write("alpha: [1\n"))
    assert "not valid YAML" in problem and "run.yaml" in problem and "line 2" in problem
    (problem,) = problems(write("alpha: 1\nalpha: 2\n"))
    assert "found duplicate key alpha" in problem
    (problem,) = problems(write("- 1\n- 2\n"))
    assert "this file holds a list" in problem
    (problem,) = problems(write("defaults: [run, _self_]\n"))
    assert f"{tmp_path}/run.yaml" in problem


def test_saved_file_loads_to_the_same_configuration(write, tmp_path):
    resolved = load_config(write(RL_GUIDED), ["seed=7", "templates.attempt='costs \\${problem}$\\nthink'"])
    assert resolved.cfg.templates.attempt == "costs ${problem}$\\nthink"
    out = tmp_path / "out" / "config.yaml"
    save(resolved, str(out))
    assert [path.name for path in out.parent.iterdir()] == ["config.yaml"]  # no temporary file is left
    again = load_config(str(out), [])
    assert again.cfg == resolved.cfg
    assert set(again.sources.values()) == {"out/config.yaml"}
    text = out.read_text()
    assert "seed: 7  # command line\n" in text
    assert "use_smart_corrections: true  # " in text and "gamma_turn: 0.0  # default\n" in text


@settings(max_examples=10, deadline=None)
@given(st.text(max_size=30), st.floats(0, 1e6), st.lists(st.floats(0, 1), max_size=3))
def test_any_value_survives_being_written(text, number, numbers):
    cfg = Config(model_path=text, run_name="r", output_dir="o", alpha=number)
    cfg.templates.attempt = "${" + text
    cfg.templates.guidance = text + "\\\\${x}$\n{problem}: #"
    cfg.actor.adam.betas = numbers
    written = to_yaml_with_sources(Resolved(cfg, dict.fromkeys(keys(), "default"), "x.yaml"))
    assert OmegaConf.to_container(OmegaConf.create(written), resolve=True) == dataclasses.asdict(cfg)


def test_errors_cross_processes():
    error = ConfigError(["one", "two"])
    again = pickle.loads(pickle.dumps(error))
    assert again.problems == ["one", "two"] and str(again) == str(error)


def test_loading_imports_nothing_heavy():
    code = (
        "import sys\n"
        "from score_openrlhf.config.compose import load_config\n"
        "from score_openrlhf.config.validate import validate\n"
        "from score_openrlhf.config.host_args import host_args\n"
        f"cfg = load_config({str(PROJECT_CONFIGS / 'rl_guided_score_math.yaml')!r}, ['alpha=1']).cfg\n"
        "validate(cfg)\n"
        "host_args(cfg, 'solver', checkpoint_path='c', model_path='m')\n"
        "heavy = {'torch', 'ray', 'vllm', 'openrlhf', 'deepspeed', 'transformers', 'numpy'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
    )
    root = Path(__file__).resolve().parents[2]
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root, check=True)
    assert ran.stdout.strip() == "[]"

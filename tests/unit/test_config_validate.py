"""Ranges, rules across keys and paths: each refusal names the value, the limit and the fix."""

from __future__ import annotations

import os

import pytest

from score_openrlhf.config import checks, machine
from score_openrlhf.config.compose import load_config
from score_openrlhf.config.errors import ConfigError
from score_openrlhf.config.keys import keys, set_value
from score_openrlhf.config.packaged import PROJECT_CONFIGS
from score_openrlhf.config.schema import Config
from score_openrlhf.config.validate import method_of, validate, warnings


def config(**values) -> Config:
    """A sound configuration of hub names with some values replaced; `__` stands for the dot."""
    cfg = Config(model_path="owner/model")
    cfg.data.train = "owner/problems"
    for name, value in values.items():
        set_value(cfg, name.replace("__", "."), value)
    return cfg


RING = dict(ds__ring_attn_size=2, actor__num_gpus_per_node=2, ref__num_gpus_per_node=2)


def problems(check_paths: bool = True, **values) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        validate(config(**values), check_paths=check_paths)
    return caught.value.problems


@pytest.mark.parametrize("name", ["score_math", "smart_score_math", "rl_guided_score_math"])
def test_shipped_math_configurations_are_valid(name):
    cfg = load_config(str(PROJECT_CONFIGS / f"{name}.yaml"), []).cfg
    validate(cfg)
    assert method_of(cfg) == name.removesuffix("_math")
    assert warnings(cfg) == []


@pytest.mark.parametrize("method", ["score", "smart_score", "rl_guided_score"])
def test_the_playground_is_valid_once_it_is_built(tmp_path, method):
    (tmp_path / "model").mkdir()
    for name in ("model/config.json", "train.jsonl", "eval.jsonl"):
        (tmp_path / name).write_text("{}")
    path = str(PROJECT_CONFIGS / "playground.yaml")
    cfg = load_config(path, [f"playground.path={tmp_path}", f"method={method}"]).cfg
    validate(cfg)
    assert warnings(cfg) == []
    (tmp_path / "train.jsonl").unlink()
    with pytest.raises(ConfigError, match=r"data\.train: .*train\.jsonl does not exist"):
        validate(cfg)


def test_the_defaults_are_sound_apart_from_what_must_be_given():
    with pytest.raises(ConfigError) as caught:
        validate(Config())
    assert [problem.split(" is not set")[0] for problem in caught.value.problems] == ["model_path", "data.train"]


@pytest.mark.parametrize(
    ("use", "train", "method"), [(0, 0, "score"), (1, 0, "smart_score"), (1, 1, "rl_guided_score")]
)
def test_the_flags_give_the_method(use, train, method):
    assert method_of(config(use_smart_corrections=bool(use), train_guidance_model=bool(train))) == method


def test_every_declared_limit_is_enforced():
    beyond = {"ge": -1, "gt": 0, "le": 1, "lt": 0}
    checked = 0
    for key in keys().values():
        for limit, value in key.limits.items():
            bad = "no such choice" if limit == "choices" else value + beyond[limit]
            if limit == "lt":
                bad = value
            (problem, *_) = problems(**{key.name.replace(".", "__"): bad})
            assert problem.startswith(f"{key.name} is {bad!r}" if limit == "choices" else f"{key.name} is {bad}")
            checked += 1
    assert checked > 80


def test_infinity_is_no_learning_rate():
    assert problems(guidance_lr=float("inf")) == ["guidance_lr is inf: give a finite number"]


REFUSED = [
    (dict(method="score", use_smart_corrections=True), "use_smart_corrections is true: drop one"),
    (dict(method="smart_score", train_guidance_model=True), "train_guidance_model is true: drop one"),
    (dict(solver__freeze=True), "trains nothing: set solver.freeze=false"),
    (dict(method="rl_guided_score", solver__freeze=True, guidance__freeze=True), "solver.freeze and guidance.freeze"),
    (dict(stage1_steps=0, stage2_steps=0), "leave no step to run"),
    (dict(start_stage=2, stage2_steps=0), "leave no step to run"),
    (dict(beta2=0.0), "beta2 is 0"),
    (dict(beta2=0.2, beta2_max=0.1), "raise beta2_max above 0.2"),
    (dict(beta1=0.0, beta2=0.0), "beta2 is 0"),
    (dict(rollout__top_p=0.9), "set rollout.top_p=1"),
    (dict(actor__policy_loss_type="gspo"), "set actor.policy_loss_type=ppo"),
    (dict(actor__loss_agg_mode="seq-mean-token-mean"), "set actor.loss_agg_mode=token-mean"),
    (dict(algo__is_correction__level="seq"), "averages the ratio of engine and trainer over both turns"),
    (dict(solver__normalise="std"), "cancels 1 + alpha = 11.0"),
    (dict(solver__normalise="group_std"), "cancels 1 + alpha = 11.0"),
    (dict(solver__normalise="std", max_steps=100, stage_switch__metric="delta"), "cancels 1 + alpha = 11.0"),
    (dict(solver__normalise="group_std", stage2_steps=0, critic__enable=True), "not what a critic's advantages"),
    (dict(solver__baseline="group_mean", rollout__n_samples_per_prompt=1), "makes every advantage of its turn 0"),
    (dict(solver__dynamic_filtering=True, rollout__n_samples_per_prompt=1), "masks every problem"),
    (dict(method="rl_guided_score", guidance__dynamic_filtering=True), "masks every guidance"),
    (dict(actor__adam__betas=[0.9]), "actor.adam.betas is [0.9]"),
    (dict(actor__eps_clip_low_high=[1.5, 0.2]), "actor.eps_clip_low_high is [1.5, 0.2]"),
    (dict(algo__is_correction__threshold=[5.0, 0.5]), "algo.is_correction.threshold is [5.0, 0.5]"),
    (dict(ds__tensor_parallel_size=2, ds__param_dtype="fp32", actor__num_gpus_per_node=2), "trains in bf16 only"),
    (dict(ds__load_in_4bit=True), "a policy in 4 bits cannot be sent"),
    (dict(ds__param_offload=True), "needs ds.zero_stage 3 and ds.adam_offload true, not 3 and false"),
    (
        dict(ds__param_offload=True, ds__adam_offload=True, ds__zero_stage=2),
        "needs ds.zero_stage 3 and ds.adam_offload true, not 2 and true",
    ),
    (
        dict(ds__tensor_parallel_size=2, ds__lora__rank=8, actor__num_gpus_per_node=2, train__micro_batch_size=1),
        "does not divide LoRA adapters",
    ),
    (dict(vllm__max_num_batched_tokens=256), "256 is less than max_num_seqs 512"),
    (
        dict(method="smart_score", vllm__max_num_seqs=64, guidance_vllm__max_num_batched_tokens=32),
        "guidance engines: max_num_batched_tokens 32 is less than max_num_seqs 64",
    ),
    (dict(placement="shared_reference"), "for two trained policies, method score has one: use split"),
    (
        dict(method="rl_guided_score", placement="shared_reference", ref__shared=False),
        "placement shared_reference and ref.shared=false contradict each other",
    ),
    (
        dict(method="rl_guided_score", placement="shared_reference", guidance_model_path="owner/other"),
        "placement shared_reference: one reference cannot serve owner/model and owner/other; set placement=split",
    ),
    (
        dict(placement="colocate", vllm__enable_sleep=True, ds__enable_sleep=True, vllm__sync_backend="gloo"),
        "leave vllm.sync_backend out",
    ),
    (
        dict(train__dynamic_batch_enable=True, train__max_tokens_per_gpu=1000),
        "train.max_tokens_per_gpu 1000 cannot hold one sequence of data.max_len 4096",
    ),
    (dict(eval__steps=5), "data.eval is not set"),
    (dict(ckpt__save_steps=0), "ckpt.save_steps is 0"),
    (
        dict(method="rl_guided_score", guidance_model_path="owner/other", ref__shared=True),
        "one reference cannot serve owner/model and owner/other",
    ),
    (
        dict(method="rl_guided_score", rollout__guidance_temperature=0.7, ref__shared=True),
        "one reference has one temperature, not 1.0 and 0.7",
    ),
    (dict(data__max_len=2048), "attempt 1024 + revision 1024 = 2048 leave no room"),
    (
        dict(method="smart_score", data__max_len=2304),
        "attempt 1024 + revision 1024 + guidance 256 = 2304 leave no room",
    ),
    (dict(ds__ring_attn_size=3, actor__num_gpus_per_node=2), "2 GPUs do not divide by ds.ring_attn_size 3"),
    (
        dict(ds__ring_attn_size=2, actor__num_gpus_per_node=2, ds__attn_implementation="sdpa"),
        "with ds.attn_implementation sdpa each rank would see its part of a row alone",
    ),
    (dict(ds__grad_accum_dtype="fp32", ds__zero_stage=2), "fp32 has no effect in ZeRO-2"),
    (dict(ds__grad_accum_dtype="fp16"), "ds.grad_accum_dtype fp16 is neither ds.param_dtype bf16 nor fp32"),
    (dict(ds__zpg=4, actor__num_gpus_per_node=2), "2 GPUs do not divide by ds.zpg 4"),
    (dict(ds__ring_attn_size=2, actor__num_gpus_per_node=4, ref__num_gpus_per_node=1), "ref: 1 GPUs do not divide"),
    (
        dict(train__dynamic_batch_enable=True, actor__num_gpus_per_node=4, ref__num_gpus_per_node=3),
        "its 4 GPUs must divide by the 3 of its ref group",
    ),
    (
        dict(critic__enable=True, critic__num_gpus_per_node=3, actor__num_gpus_per_node=2, train__batch_size=32),
        "train.batch_size 32 does not divide by 6 ranks x train.micro_batch_size 4 = 24; set it to 24 or 48",
    ),
    (
        dict(train__batch_size=30, actor__num_gpus_per_node=2),
        "solver: train.batch_size 30 does not divide by 2 ranks x train.micro_batch_size 4 = 8; set it to 24 or 32 "
        "(a step has 32 problems x 2 attempts x 1 revisions = 64 trajectories)",
    ),
    (dict(placement="colocate", ds__enable_sleep=True), "set vllm.enable_sleep=true"),
    (dict(placement="colocate", vllm__enable_sleep=True), "set ds.enable_sleep=true"),
    (
        dict(placement="colocate", vllm__enable_sleep=True, ds__enable_sleep=True, vllm__num_engines=2),
        "solver engines take 2 engines x 1 GPUs = 2, its training group 1",
    ),
    (
        dict(
            method="smart_score",
            placement="colocate",
            vllm__enable_sleep=True,
            ds__enable_sleep=True,
            vllm__gpu_memory_utilization=0.6,
        ),
        "0.6 + 0.6 = 1.20 is more than 1",
    ),
]


@pytest.mark.parametrize(("values", "words"), REFUSED, ids=lambda value: value[:40] if isinstance(value, str) else "")
def test_contradictions_are_refused(values, words):
    (problem,) = problems(check_paths=False, **values)
    assert words in problem


@pytest.mark.parametrize("attention", ["flash_attention_2", "flash_attention_3"])
def test_fp32_with_flash_attention_is_refused_where_torch_is_built_for_gpus(monkeypatch, attention):
    values = dict(ds__param_dtype="fp32", ds__attn_implementation=attention)
    validate(config(**values), check_paths=False)  # on a CPU sdpa stands in
    monkeypatch.setattr(checks, "is_cpu", lambda: False)
    (problem,) = problems(check_paths=False, **values)
    assert "kernels for bf16 and fp16 alone; set ds.attn_implementation=sdpa" in problem


@pytest.mark.parametrize(
    ("values", "missing", "words"),
    [
        (
            dict(),
            "flash_attn",
            "needs the package flash-attn, which is not installed: set ds.attn_implementation=sdpa",
        ),
        (RING, "ring_flash_attn", "pip install ring-flash-attn"),
        (dict(ds__attn_implementation="sdpa"), "flash_attn", None),
        (RING, "none such", None),
    ],
)
def test_packages_that_the_gpus_would_be_taken_for_in_vain_are_named_first(monkeypatch, values, missing, words):
    monkeypatch.setattr(machine, "is_cpu", lambda: False)
    monkeypatch.setattr(machine, "is_installed", lambda name: name != missing)
    if words is None:
        validate(config(**values))
    else:
        (problem,) = problems(**values)
        assert words in problem
        validate(config(**values), check_paths=False)  # a plan for another machine


def test_ring_attention_is_refused_on_a_cpu(monkeypatch):
    monkeypatch.setattr(machine, "is_cpu", lambda: True)
    (problem,) = problems(**RING)
    assert problem == "ds.ring_attn_size 2 needs flash attention, which no CPU has: set it to 1"


ALLOWED = [
    dict(beta2=0.0, stage1_steps=0),
    dict(beta2=0.0, start_stage=2),
    dict(beta2=0.0, solver__freeze=True, method="rl_guided_score"),
    dict(beta1=0.0),
    dict(solver__normalise="std", stage2_steps=0),
    dict(solver__normalise="std", max_steps=100),  # ends with stage I
    dict(solver__normalise="std", stage2_steps=0, stage_switch__metric="delta"),
    dict(algo__is_correction__level="token"),
    dict(solver__normalise="std", solver__allow_std_in_stage2=True),
    dict(data__max_len=2304),  # method score writes no guidance
    dict(train_guidance_model=True),
    dict(placement="colocate", vllm__enable_sleep=True, ds__enable_sleep=True),
    dict(train__batch_size=24, actor__num_gpus_per_node=2),
    dict(train__batch_size=30, actor__num_gpus_per_node=2, train__dynamic_batch_enable=True),
]


@pytest.mark.parametrize("values", ALLOWED, ids=str)
def test_what_only_looks_like_a_contradiction_is_allowed(values):
    validate(config(**values))


def test_all_problems_are_listed_at_once():
    found = problems(rollout__top_p=0.5, actor__policy_loss_type="gspo", model_path=None)
    assert len(found) == 3
    with pytest.raises(ConfigError, match="the configuration has 3 problems:\n  - "):
        validate(config(rollout__top_p=0.5, actor__policy_loss_type="gspo", model_path=None))


def test_missing_wandb_is_found_before_the_run(monkeypatch):
    monkeypatch.setattr("score_openrlhf.config.checks.find_spec", lambda name: None)
    (problem,) = problems(logger__wandb_mode="offline")
    assert "needs the wandb package" in problem


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model_path", "./model"),
        ("model_path", "runs/playground/model"),
        ("data__train", "rows.jsonl"),
        ("data__eval", "../rows"),
        ("task__name", "my/task.py:Task"),
        ("guidance__reward", "my/reward.py:reward"),
        ("task__reward_func", "my/reward.py"),
    ],
)
def test_missing_paths_are_named_absolutely(tmp_path, monkeypatch, key, value):
    monkeypatch.chdir(tmp_path)
    (problem,) = problems(**{key: value})
    assert problem.startswith(key.replace("__", ".") + ": ")
    assert f"{os.path.abspath(value.partition(':')[0])} does not exist" in problem
    validate(config(**{key: value}), check_paths=False)


def test_paths_of_models_that_are_not_loaded_are_not_checked():
    validate(config(method="score", guidance_model_path="/nowhere"))
    assert "/nowhere does not exist" in problems(method="smart_score", guidance_model_path="/nowhere")[0]


def test_a_folder_without_a_model_is_refused(tmp_path):
    (problem,) = problems(model_path=str(tmp_path))
    assert problem == f"model_path: {tmp_path} holds no config.json, so it is no Hugging Face model directory"


def test_unknown_task_and_reward_name_the_nearest():
    assert problems(task__name="maths") == ["task.name is 'maths': did you mean math?"]
    assert problems(guidance__reward="outcomes") == ["guidance.reward is 'outcomes': did you mean outcome?"]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (dict(rollout__n_samples_per_prompt=1), "falls back to the other problems of the batch"),
        (dict(rollout__base_attempts_stage1=1.0), "nothing holds turn 1 to the reference"),
        (dict(rollout__base_attempts_stage2=0.01), "of rollout.batch_size 32 problems is none"),
        (dict(beta2_max=0.5, start_stage=2), "beta2_max 0.5 has no effect"),
        (dict(actor__lr_warmup_ratio=0.1), "use constant_with_warmup"),
        (dict(ds__param_dtype="fp16", ds__attn_implementation="sdpa"), "prefer bf16"),
        (dict(ds__param_dtype="fp32"), "no fp32 kernels"),
        (dict(ds__packing_samples=True, ds__attn_implementation="sdpa"), "with packed rows"),
        (dict(rollout__schedule="phased"), "set vllm.enable_sleep=true"),
        (dict(eval__temperature=0.0, eval__num_samples=4), "all eval.num_samples=4 samples are the same"),
        (dict(guidance_model_path="owner/other"), "owner/other is not loaded"),
        (
            dict(method="smart_score", guidance_model_path="owner/a", correction_model_path="owner/b"),
            "guidance_model_path owner/a is used",
        ),
        (dict(rollout__micro_batch_size=48, train__batch_size=32), "64 trajectories a step are padded with 32 empty"),
        (dict(critic__enable=True, solver__baseline="batch_mean"), "solver.baseline batch_mean has no effect"),
        (dict(critic__enable=True, solver__baseline_t2="batch_mean"), "solver.baseline_t2 batch_mean has no effect"),
        (dict(solver__warmup_steps=300), "solver: no step of the run updates it"),
    ],
)
def test_doubtful_settings_are_pointed_out(values, words):
    cfg = config(**values)
    validate(cfg)
    (warning,) = warnings(cfg)
    assert words in warning

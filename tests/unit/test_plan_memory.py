"""The arithmetic of memory, against numbers worked out by hand and against what must hold whatever the numbers."""

from __future__ import annotations

import copy
import json
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from score_openrlhf.config.compose import load_config
from score_openrlhf.config.errors import ConfigError
from score_openrlhf.config.keys import set_value
from score_openrlhf.config.packaged import PROJECT_CONFIGS
from score_openrlhf.config.schema import Config
from score_openrlhf.memory_plan.footprint import CONTEXT_BYTES, GIB, GRAPH_BYTES, Engine, ForwardMemory, ModelMemory
from score_openrlhf.memory_plan.model_shape import KNOWN_SHAPES, ModelShape, from_config_json, shape_of
from score_openrlhf.memory_plan.plan import Cluster, MemoryPlan, plan_memory

QWEN_7B = KNOWN_SHAPES["Qwen/Qwen2.5-7B-Instruct"]
PARAMS_7B = 7_615_616_512
# vocabulary 32, width 8, 2 layers, 2 heads of 4 over 1 of keys and values, MLP 16
SMALL = ModelShape(8, 2, 2, 1, 4, 16, 32)


@pytest.mark.parametrize(
    ("name", "num_params"),  # what the safetensors files on the hub add up to
    [
        ("Qwen/Qwen2.5-0.5B", 494_032_768),
        ("Qwen/Qwen2.5-1.5B-Instruct", 1_543_714_304),
        ("Qwen/Qwen2.5-3B", 3_085_938_688),
        ("Qwen/Qwen2.5-7B", PARAMS_7B),
        ("Qwen/Qwen2.5-Math-7B-Instruct", PARAMS_7B),
        ("Qwen/Qwen2.5-14B", 14_770_033_664),
        ("Qwen/Qwen2.5-32B", 32_763_876_352),
        ("Qwen/Qwen2.5-72B", 72_706_203_648),
        ("meta-llama/Llama-3.2-1B", 1_235_814_400),
        ("meta-llama/Llama-3.2-3B-Instruct", 3_212_749_824),
        ("meta-llama/Llama-3.1-8B", 8_030_261_248),
        ("meta-llama/Llama-3.3-70B-Instruct", 70_553_706_496),
    ],
)
def test_parameters_are_the_published_number(name, num_params):
    assert KNOWN_SHAPES[name].num_params == num_params


def test_parameters_of_a_small_model_by_hand():
    # query, key, value, output, MLP, two norms; then two embeddings and the last norm
    assert SMALL.layer_params == 64 + 32 + 32 + 64 + 384 + 16
    assert SMALL.num_params == 2 * 592 + 512 + 8
    assert replace(SMALL, tie_word_embeddings=True).num_params == SMALL.num_params - 256
    assert replace(SMALL, attention_bias=True).layer_params == 592 + 8 + 4 + 4
    # rank 2: 2 * (8+8 + 8+4 + 8+4 + 8+8 + 3*(8+16)) = 256 a layer
    assert SMALL.lora_params(2) == 2 * 256


def test_a_shape_comes_from_the_model_then_from_the_section_then_from_the_table(tmp_path):
    cfg = Config()
    values = dict(
        model_type="qwen2",
        hidden_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=16,
        vocab_size=32,
        tie_word_embeddings=True,
    )
    file = tmp_path / "config.json"
    file.write_text(json.dumps(values))
    local = shape_of(cfg, "model_shape", str(tmp_path))
    assert local.source == str(file)
    assert local.shape == replace(
        SMALL, tie_word_embeddings=True, attention_bias=True
    )  # qwen2's biases are not written

    for name in ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size"):
        setattr(cfg.model_shape, name, values[name])
    cfg.model_shape.num_key_value_heads = 1
    given = shape_of(cfg, "model_shape", "owner/model")
    assert (given.shape, given.source) == (SMALL, "section model_shape")
    assert shape_of(cfg, "model_shape", str(tmp_path)).source == str(file)

    known = shape_of(Config(), "model_shape", "Qwen/Qwen2.5-7B-Instruct")
    assert known.shape == QWEN_7B and "as published" in known.source


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "not valid JSON"),
        ("[]", "model_type None"),
        (json.dumps({"model_type": "mixtral"}), "memory is counted for llama, mistral, qwen2, qwen3"),
        (json.dumps({"model_type": "llama", "hidden_size": 8}), "lacks num_hidden_layers"),
        (
            json.dumps({"model_type": "llama", "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 3,
                        "num_key_value_heads": 2, "intermediate_size": 8, "vocab_size": 8}),
            "3 query heads do not divide by 2",
        ),
    ],
)  # fmt: skip
def test_a_config_json_of_another_kind_is_refused(tmp_path, text, words):
    file = tmp_path / "config.json"
    file.write_text(text)
    with pytest.raises(ConfigError, match=words):
        from_config_json(str(file))


def test_the_playgrounds_shape_is_its_models():
    from score_openrlhf.tasks.playground_model import SHAPE, make_tokenizer

    shape = shape_of(load_config(str(PROJECT_CONFIGS / "playground.yaml"), []).cfg, "model_shape", "none/such").shape
    wanted = {**SHAPE, "vocab_size": len(make_tokenizer())}
    assert {name: getattr(shape, name) for name in wanted if hasattr(shape, name)} == {
        name: value for name, value in wanted.items() if hasattr(shape, name)
    }


def test_states_of_7b_on_8_ranks_by_hand():
    held = ModelMemory(QWEN_7B, value_bytes=2, zero_stage=3, ranks=8)
    eighth = PARAMS_7B // 8
    assert (held.weights(), held.gradients(), held.optimizer()) == (2 * eighth, 2 * eighth, 12 * eighth)
    assert held.reduce_bucket() == 10**9  # 5e8 values of 2 bytes
    assert held.gathered() == 2 * 1_050_000_000
    assert held.optimizer_step() == 6 * eighth  # a float and a bf16 gradient; one sub-group
    embedding = 152064 * 3584
    assert held.reduction() == 2 * 2 * embedding  # larger than a bucket: it is sent alone
    assert held.sync(cuda_ipc=False) == 2 * embedding and held.sync(cuda_ipc=True) == 4 * embedding


def test_stages_adapters_and_partitions_by_hand():
    whole = ModelMemory(QWEN_7B, value_bytes=2, zero_stage=2, ranks=8)
    assert whole.weights() == 2 * PARAMS_7B and whole.gathered() == 0
    assert replace(whole, tensor_parallel=2).weights() == PARAMS_7B
    alone = ModelMemory(QWEN_7B, value_bytes=2, zero_stage=3, ranks=1)
    assert alone.weights() == 2 * PARAMS_7B and alone.gathered() == 0 and alone.sync(cuda_ipc=False) == 0
    assert alone.optimizer_step() == 6 * (10**9 + 152064 * 3584)  # one sub-group of several
    adapters = ModelMemory(QWEN_7B, value_bytes=2, zero_stage=3, ranks=8, lora_rank=32)
    # 28 layers x 32 x (3584+3584 + 2*(3584+512) + 3584+3584 + 3*(3584+18944))
    assert adapters.num_trainable == 28 * 32 * (14336 + 8192 + 67584)
    assert adapters.optimizer() == 12 * adapters.num_trainable // 8
    assert adapters.weights() == pytest.approx(2 * (PARAMS_7B + adapters.num_trainable) / 8, abs=1)
    second = ModelMemory(QWEN_7B, value_bytes=2, zero_stage=3, ranks=8, zpg=4)
    assert second.weights() == 2 * PARAMS_7B // 8 + 2 * PARAMS_7B // 4
    quantised = ModelMemory(QWEN_7B, value_bytes=2, zero_stage=3, ranks=1, lora_rank=32, load_in_4bit=True)
    assert quantised.weights() < 0.4 * alone.weights()


def test_activations_and_logits_of_one_sequence_by_hand():
    batch = ForwardMemory(SMALL, tokens=10, value_bytes=2)
    # norms 2*8*(4+2+2), attention (2*8 + 2*4)*2 + 4*2, MLP 4*16*2 = 312 bytes a token and layer
    assert batch.layer() == 10 * (128 + 56 + 128)
    assert replace(batch, flash_attention=False).layer() == 10 * (312 + 2 * 4 * 2)  # keys and values repeated
    assert batch.saved(checkpointing=False) == 2 * 3120 + 10 * 8 * 8
    assert batch.saved(checkpointing=True) == 2 * 10 * 8 * 2 + 10 * 8 * 8
    # at the loss logits and their gradient as floats, and the gradient in bf16: 10 bytes each
    assert batch.training(checkpointing=False, entropy=False) == (6880, 10 * 32 * 10)
    assert batch.training(checkpointing=False, entropy=True) == (6880, 10 * 32 * 18)
    # with checkpointing the peak is at the loss (960 + 3200) or where a layer is computed again (960 + 3120 + 1280)
    assert batch.training(checkpointing=True, entropy=False) == (960 + 3120, 1280)
    assert batch.training(checkpointing=True, entropy=False, logits=False) == (960 + 3120, 0)
    assert batch.forward() == (10 * ((3 * 16 + 2 * 8) * 2 + 8 * 4), 10 * 32 * 6)


def test_logits_of_a_real_batch_are_the_largest_part():
    """Four sequences of 4,096 tokens over Qwen's vocabulary: 23 GiB, eight times the checkpointed activations."""
    activations, logits = ForwardMemory(QWEN_7B, tokens=4 * 4096, value_bytes=2).training(
        checkpointing=True, entropy=False
    )
    assert logits == 4 * 4096 * 152064 * 10
    assert logits > 6 * activations


def test_an_engines_cache_by_hand():
    engine = Engine(QWEN_7B, 2, 1, 0.5, 80 * GIB, enforce_eager=False)
    assert engine.kv_bytes_per_token() == 2 * 28 * 4 * 128 * 2
    assert engine.requested() == 40 * GIB
    assert engine.kv_cache() == 40 * GIB - 2 * PARAMS_7B - GRAPH_BYTES - engine.workspace()
    assert engine.kv_tokens() == engine.kv_cache() // 57344
    over_eight = replace(engine, tensor_parallel=8)  # four heads on eight GPUs: each holds one
    assert over_eight.kv_bytes_per_token() == 57344 // 4 and over_eight.weights() == 2 * PARAMS_7B // 8
    assert replace(engine, gpu_memory_utilization=0.1).kv_tokens() == 0


def test_an_engines_workspace_by_hand():
    """Of each token an MLP's three matrices and two hidden states in bf16 and one hidden state as a float, of each
    sequence logits and log-probs as floats."""
    engine = Engine(QWEN_7B, 2, 1, 0.5, 80 * GIB, enforce_eager=False)
    per_token = (3 * 18944 + 2 * 3584) * 2 + 3584 * 4
    assert engine.workspace() == 8192 * per_token + 512 * 152064 * 4 * 2
    smaller = replace(engine, num_seqs=64, batched_tokens=2048)
    assert smaller.workspace() == 2048 * per_token + 64 * 152064 * 4 * 2


ONE_GPU = Cluster(1, 1, 80 * GIB)


def planned(*overrides: str, name: str = "rl_guided_score_1.5b_1gpu", cluster: Cluster = ONE_GPU) -> MemoryPlan:
    return plan_memory(load_config(str(PROJECT_CONFIGS / f"{name}.yaml"), list(overrides)).cfg, cluster)


def phase(plan: MemoryPlan, name: str):
    (found,) = [phase for phase in plan.phases if phase.name == name]
    return found


def test_one_policys_states_are_on_a_shared_gpu_at_a_time():
    params = 1_543_714_304
    plan = planned()
    for name in ("rollout", "log-probs", "sync"):
        parts = phase(plan, name).parts()
        assert parts["weights"] == 3 * 2 * params and "optimizer" not in parts  # two policies and one reference
        assert parts["contexts"] == 5 * CONTEXT_BYTES
    for name in ("solver update", "guidance update"):
        parts = phase(plan, name).parts()
        assert parts["optimizer"] == 12 * params and parts["gradients"] == 2 * params
        assert "KV cache" not in parts and "engine weights" not in parts
    for name in ("rollout", "sync"):  # the other policy's engine sleeps, its weights with it
        assert phase(plan, name).parts()["engine weights"] == 2 * params
    # the two policies' optimizer states wait in host memory
    assert plan.host_bytes["solver_actor"] == plan.host_bytes["guidance_actor"] == 14 * params


def test_at_start_up_no_policy_has_put_its_states_away_yet():
    """All roles load at once: two policies' optimizers and gradients, where an update has one."""
    params = 1_543_714_304
    parts = phase(planned(), "start-up").parts()
    assert parts["weights"] == 3 * 2 * params and parts["reduce bucket"] == 2 * 10**9
    assert parts["optimizer"] == 2 * 12 * params and parts["gradients"] == 2 * 2 * params
    embedding = 151_936 * 1536  # a sub-group holds 1e9 weights and the parameter that fills it
    assert parts["optimizer step"] == 4 * (10**9 + embedding)  # gradients of zeros that make Adam's moments
    assert "KV cache" not in parts and "engine weights" not in parts and "activations" not in parts

    small = Cluster(1, 1, 60 * GIB)
    plan = planned("rollout.micro_batch_size=1", "train.micro_batch_size=1", cluster=small)
    (problem,) = plan.problems
    assert problem.startswith("start-up on the shared GPUs: optimizer 34.5 + ")


def test_gradients_that_are_added_up_in_floats_take_floats():
    params = 1_543_714_304
    plain, floats = planned(), planned("ds.grad_accum_dtype=fp32")
    assert phase(floats, "solver update").parts()["gradients"] == 4 * params
    bucket = 500_000_000
    for name in ("solver update", "guidance update"):  # and the bucket that comes back is turned into them
        more = phase(floats, name).parts()["reduction"] - phase(plain, name).parts()["reduction"]
        assert more == 4 * bucket
    assert phase(floats, "rollout").parts() == phase(plain, "rollout").parts()
    assert floats.host_bytes["solver_actor"] == plain.host_bytes["solver_actor"] + 2 * params
    same = planned("ds.grad_accum_dtype=bf16")
    assert [one.parts() for one in same.phases] == [one.parts() for one in plain.phases]


def test_each_policys_engines_are_planned_as_configured():
    def batch(*overrides: str) -> dict[str, tuple[int, int]]:
        return {policy: (e.num_seqs, e.batched_tokens) for policy, e in planned(*overrides).engines.items()}

    assert batch() == {"solver": (512, 8192), "guidance": (512, 8192)}
    both = ("vllm.max_num_seqs=256", "vllm.max_num_batched_tokens=4096")
    assert batch(*both) == {"solver": (256, 4096), "guidance": (256, 4096)}
    own = ("vllm.max_num_seqs=256", "guidance_vllm.max_num_seqs=64", "guidance_vllm.max_num_batched_tokens=2048")
    assert batch(*own) == {"solver": (256, 8192), "guidance": (64, 2048)}


def test_phased_rollout_holds_one_cache_and_pipelined_two():
    phased = phase(planned("vllm.gpu_memory_utilization=0.35"), "rollout").parts()
    pipelined = phase(planned("vllm.gpu_memory_utilization=0.35", "rollout.schedule=pipelined"), "rollout").parts()
    assert pipelined["KV cache"] == 2 * phased["KV cache"]
    assert pipelined["engine weights"] == 2 * phased["engine weights"]


def test_optimizer_offload_takes_the_states_off_the_gpu_and_leaves_the_bucket():
    """offload_deepspeed_states returns at once with adam_offload, so the bucket is not given back between updates."""
    plan = planned("ds.adam_offload=true")
    for name in ("rollout", "solver update"):
        parts = phase(plan, name).parts()
        assert "optimizer" not in parts and "gradients" not in parts and parts["reduce bucket"] == 2 * 10**9
    assert planned("ref.offload=true").phases[0].parts()["weights"] == 2 * 2 * 1_543_714_304


def test_weights_in_host_memory_are_gathered_for_a_pass():
    kept, offloaded = planned("ds.adam_offload=true"), planned("ds.adam_offload=true", "ds.param_offload=true")
    weights = 2 * 1_543_714_304
    assert phase(kept, "rollout").parts()["weights"] == 3 * weights
    assert phase(offloaded, "rollout").parts()["weights"] == weights  # the reference's
    # one rank: all its weights are gathered from host memory, as far as DeepSpeed lets them live
    assert "gathered weights" not in phase(kept, "solver update").parts()
    assert phase(offloaded, "solver update").parts()["gathered weights"] == 2 * 1_050_000_000
    moved = offloaded.host_bytes["solver_actor"] - kept.host_bytes["solver_actor"]
    assert moved == weights


def test_adapters_of_one_policy_alone():
    whole, one = planned(), planned("guidance_actor.lora_rank=16")
    other = planned("ds.lora.rank=16", "guidance_actor.lora_rank=0")
    adapters = KNOWN_SHAPES["Qwen/Qwen2.5-1.5B"].lora_params(16)
    for plan, trained in ((one, "guidance update"), (other, "solver update")):
        assert phase(plan, trained).parts()["optimizer"] == 12 * adapters
        assert phase(plan, trained).parts()["gradients"] == 2 * adapters
        rest = "solver update" if trained == "guidance update" else "guidance update"
        assert phase(plan, rest).parts()["optimizer"] == phase(whole, rest).parts()["optimizer"]


def test_checkpointing_and_micro_batches_lower_the_update_alone():
    plain, checkpointed, halved = (
        planned(*overrides)
        for overrides in (("actor.gradient_checkpointing_enable=false",), (), ("train.micro_batch_size=2",))
    )
    for less, more in ((checkpointed, plain), (halved, checkpointed)):
        assert phase(less, "solver update").total < phase(more, "solver update").total
        assert phase(less, "rollout").total == phase(more, "rollout").total


def test_a_critic_has_a_role_and_no_logits():
    plan = planned("critic.enable=true", name="score_math", cluster=Cluster(1, 8, 80 * GIB))
    (update,) = [phase for phase in plan.phases if phase.roles == ["solver_critic"] and phase.name == "solver update"]
    assert update.parts()["optimizer"] > 0 and "logits" not in update.parts()


def test_stage_2_keeps_whole_weights_and_makes_its_bucket_in_the_update():
    plan = planned("ds.zero_stage=2", name="rl_guided_score_math", cluster=Cluster(1, 8, 80 * GIB))
    phases = {phase.name: phase.parts() for phase in plan.phases if phase.roles == ["solver_actor"]}
    assert phases["rollout"]["weights"] == 2 * 1_543_714_304
    assert "reduce bucket" not in phases["rollout"] and "gradients" not in phases["rollout"]
    assert phases["solver update"]["reduction"] > 10**9


PLACEMENTS = {
    "model_path": st.sampled_from(["Qwen/Qwen2.5-0.5B", "Qwen/Qwen2.5-7B", "meta-llama/Llama-3.1-8B"]),
    "guidance_model_path": st.sampled_from([None, "Qwen/Qwen2.5-1.5B"]),
    "method": st.sampled_from(["score", "smart_score", "rl_guided_score"]),
    "placement": st.sampled_from(["split", "shared_reference", "colocate"]),
    "rollout.schedule": st.sampled_from(["pipelined", "phased"]),
    "actor.num_gpus_per_node": st.sampled_from([1, 2, 4, 8]),
    "vllm.num_engines": st.integers(1, 8),
    "vllm.tensor_parallel_size": st.sampled_from([1, 2, 4]),
    "vllm.gpu_memory_utilization": st.floats(0.1, 0.95),
    "vllm.enable_sleep": st.booleans(),
    "ds.enable_sleep": st.booleans(),
    "ds.zero_stage": st.sampled_from([2, 3]),
    "ds.adam_offload": st.booleans(),
    "ds.lora.rank": st.sampled_from([0, 16]),
    "guidance_actor.lora_rank": st.sampled_from([None, 0, 8]),
    "ds.param_offload": st.booleans(),
    "ref.offload": st.booleans(),
    "critic.enable": st.booleans(),
    "train.micro_batch_size": st.integers(1, 8),
    "rollout.micro_batch_size": st.integers(1, 8),
}


@settings(max_examples=100, deadline=None)
@given(st.fixed_dictionaries(PLACEMENTS), st.integers(1, 4), st.sampled_from([4, 8]), st.sampled_from([24, 80]))
def test_every_combination_adds_up(values, num_nodes, gpus_per_node, memory):
    cfg = Config()
    for name, value in values.items():
        set_value(cfg, name, value)
    cluster = Cluster(num_nodes, gpus_per_node, memory * GIB)
    plan = plan_memory(cfg, cluster)
    for phase in plan.phases:
        assert phase.total == sum(phase.parts().values()) and min(phase.parts().values()) > 0
        assert phase.fits == (phase.total <= memory * GIB)
    assert plan.fits == (not plan.problems)  # and a plan that fits has its GPUs, its caches and its memory
    if plan.fits:
        assert plan.placement.num_gpus <= cluster.num_gpus
        assert all(phase.fits for phase in plan.phases)
        assert all(engine.kv_tokens() >= cfg.data.max_len for engine in plan.engines.values())
        assert len(plan.placement.roles) * plan.placement.fraction <= (1 if plan.placement.colocate else 99)
    fewer = copy.deepcopy(cfg)
    fewer.train.micro_batch_size = 1
    for less, more in zip(plan_memory(fewer, cluster).phases, plan.phases, strict=True):
        assert less.total <= more.total

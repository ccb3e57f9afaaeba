"""Every configuration key: its type, default, range and meaning. Imports no torch, ray or vllm.

The YAML files in `configs/` and the command line are merged onto `Config`; `config/compose.py` does the merging,
`config/validate.py` the checks across keys, `config/host_args.py` the mapping onto OpenRLHF's own arguments.
"""

# ruff: noqa: RUF009  `opt` and `section` return dataclass fields

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from score_openrlhf.config.choices import (
    BASELINES_T1,
    BASELINES_T2,
    GUIDANCE_BASELINES,
    GUIDANCE_REWARDS,
    KL_CREDITS,
    NORMALISATIONS,
    SCHEDULES,
    SOLVER_NORMALISATIONS,
    TASKS,
    listed,
)
from score_openrlhf.config.methods import METHODS

# transformers' schedules that need no arguments beyond those the host passes (openrlhf/utils/deepspeed/deepspeed.py)
LR_SCHEDULERS = (
    "constant",
    "constant_with_warmup",
    "linear",
    "cosine",
    "cosine_with_restarts",
    "polynomial",
    "inverse_sqrt",
    "cosine_with_min_lr",
    "cosine_warmup_with_min_lr",
)


def opt(default: Any, help: str, *, ge=None, gt=None, le=None, lt=None, choices=None) -> Any:
    """A dataclass field whose range, choices and meaning travel with it (read by validate.py and the reference)."""
    limits = {"ge": ge, "gt": gt, "le": le, "lt": lt, "choices": choices}
    metadata = {"help": help, **{name: limit for name, limit in limits.items() if limit is not None}}
    if isinstance(default, (list, dict)):
        return field(default_factory=lambda: type(default)(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def section(cls: type, help: str) -> Any:
    """A dataclass field that holds a nested section."""
    return field(default_factory=cls, metadata={"help": help})


@dataclass
class DataConfig:
    train: str | None = opt(None, "Training problems: a .jsonl, .json or .parquet file, or a hub dataset name.")
    eval: str | None = opt(None, "Held-out problems, same forms. null: no evaluation.")
    train_split: str = opt("train", "Split of a hub dataset used for training.")
    eval_split: str = opt("test", "Split of a hub dataset used for evaluation.")
    problem_key: str = opt("problem", "Column with the problem's text.")
    answer_key: str = opt("answer", "Column with the gold answer.")
    format: str = opt(
        "auto",
        "The rows' columns. auto: problem_key and answer_key, or those of a known data set where the first row lacks "
        "them; columns: the two keys and nothing else. A dotted key is a value within a value.",
        choices=("auto", "columns", "verl", "trl", "openrlhf", "gsm8k", "math"),
    )
    list_answers: str = opt(
        "any", "Of a list of gold answers any one is right, or all are asked.", choices=("any", "all")
    )
    max_train_problems: int | None = opt(None, "Use at most this many training problems.", gt=0)
    max_eval_problems: int | None = opt(None, "Use at most this many held-out problems.", gt=0)
    on_bad_row: str = opt(
        "refuse",
        "Rows whose text or gold answer cannot be used: name them and stop, or leave them out and say how many.",
        choices=("refuse", "skip"),
    )
    on_long_prompt: str = opt(
        "refuse",
        "Problems whose prompt leaves no room for the token budgets in data.max_len: as data.on_bad_row.",
        choices=("refuse", "skip"),
    )
    max_len: int = opt(4096, "Longest sequence, prompt and all answers included, in tokens.", gt=0)
    shuffle: bool = opt(True, "Draw training problems in an order shuffled by seed and pass over the data.")
    disable_fast_tokenizer: bool = opt(False, "Use the slow tokenizer.")


@dataclass
class TaskConfig:
    name: str = opt("math", f"What a problem is: {listed(TASKS)}, or path/to/file.py:Class for your own.")
    grader_processes: int = opt(2, "Grading processes beside each solver engine.", gt=0)
    grade_timeout_seconds: float = opt(5.0, "A grading call that takes longer is killed and counted.", gt=0)
    max_answer_chars: int = opt(20000, "Longer answers are graded on their last part of this many characters.", gt=0)
    unevaluated: str = opt(
        "wrong",
        "An expression left to be worked out, 18 - 13 where 5 is the answer: wrong, or right by its value.",
        choices=("wrong", "right"),
    )
    reward_func: str | None = opt(
        None, "A file with OpenRLHF's reward_func(queries, prompts, labels), or an http(s) URL; replaces the grader."
    )
    reward_range: list[float] | None = opt(
        None, "Lowest and highest reward of task.reward_func, mapped onto [0, 1]. null: its rewards lie in [0, 1]."
    )
    max_error_fraction: float = opt(
        0.1,
        "The grader may fail (error, timeout, undecided leak) on this part of a step's trajectories, which are "
        "masked; more is an error.",
        ge=0,
        le=1,
    )


@dataclass
class TemplatesConfig:
    system: str | None = opt(None, "System message of the solver; null takes the task's.")
    attempt: str | None = opt(None, "Turn-1 prompt; fields {problem}. null takes the task's.")
    revision: str | None = opt(None, "Turn-2 instruction; fields {guidance}. null takes the task's.")
    static_revision: str | None = opt(None, "Turn-2 instruction of method score (fixed text). null takes the task's.")
    guidance_system: str | None = opt(None, "System message of the guidance model; null takes the task's.")
    guidance: str | None = opt(None, "Prompt of the guidance model; fields {problem}, {attempt}. null: the task's.")
    chat_template: str | None = opt(
        None, "Chat template of the solver: its text, or a file with it. null: its tokenizer's own."
    )
    chat_template_kwargs: dict[str, Any] = opt(
        {}, "What the solver's chat template asks for, such as {enable_thinking: false} or {reasoning_effort: low}."
    )
    system_as: str = opt(
        "message",
        "Where the solver's system text stands: a message of its own, or before the first user text, for chat "
        "templates that refuse a system message.",
        choices=("message", "user"),
    )
    guidance_chat_template: str | None = opt(
        None, "Chat template of the guidance model. null: the solver's key if both are one model, else its own."
    )
    guidance_chat_template_kwargs: dict[str, Any] | None = opt(
        None, "As chat_template_kwargs, of the guidance model. null: the solver's if both are one model, else none."
    )
    guidance_system_as: str | None = opt(
        None, "As system_as, of the guidance model; null: as system_as.", choices=("message", "user")
    )


@dataclass
class RolloutConfig:
    batch_size: int = opt(32, "Problems per step.", gt=0)
    n_samples_per_prompt: int = opt(2, "Attempts per problem (N).", gt=0)
    attempt_max_tokens: int = opt(1024, "Token budget of an attempt (turn 1).", gt=0)
    guidance_max_tokens: int = opt(256, "Token budget of a guidance.", gt=0)
    revision_max_tokens: int = opt(1024, "Token budget of a revision (turn 2).", gt=0)
    temperature: float = opt(1.0, "Sampling temperature of the solver.", gt=0)
    guidance_temperature: float = opt(1.0, "Sampling temperature of the guidance model.", gt=0)
    top_p: float = opt(1.0, "Must stay 1 in training: log-probs would not be those of the policy.", gt=0, le=1)
    on_truncated_attempt: str = opt(
        "continue",
        "An attempt cut at its budget goes on to guidance, or the trajectory is masked.",
        choices=("continue", "mask"),
    )
    on_truncated_guidance: str = opt(
        "continue",
        "A guidance cut at its budget is used as it is, or the trajectory is masked.",
        choices=("continue", "mask"),
    )
    base_attempts_stage1: float = opt(
        0.0,
        "Part of stage I's problems whose first attempts are the base model's, sampled once before training: context "
        "of turn 2, which is trained on them; turn 1 is not.",
        ge=0,
        le=1,
    )
    base_attempts_stage2: float = opt(0.0, "The same in stage II.", ge=0, le=1)
    max_failed_fraction: float = opt(0.25, "More failed trajectories in a step than this is an error.", ge=0, le=1)
    micro_batch_size: int = opt(8, "Rows per forward pass when log-probs are computed.", gt=0)
    max_tokens_per_gpu: int | None = opt(None, "Dynamic batches: tokens per forward pass.", gt=0)
    seed_requests: bool = opt(True, "Give every sampling request its own seed, so that a run can be repeated.")
    history: str = opt(
        "sampled",
        "sampled: turn 2 follows the attempt as it was sampled, whatever the chat template does to earlier turns "
        "(what differs is said); template: a chat template that would render it otherwise is refused.",
        choices=("sampled", "template"),
    )
    strip_reasoning: bool = opt(
        True,
        "Leave out what a model thinks: of an attempt for the guidance model and the leak check, of a guidance for "
        "the solver. Models that show no reasoning are not concerned.",
    )
    reasoning_markers: list[str] | None = opt(
        None, "What opens and closes reasoning, such as [<think>,</think>]; null: found in the chat template."
    )
    schedule: str = opt(
        "pipelined",
        f"In which order trajectories are collected: {listed(SCHEDULES)}.",
        choices=tuple(SCHEDULES),
    )


@dataclass
class StageSwitchConfig:
    metric: str | None = opt(None, "Metric that ends stage I early, e.g. delta; null: stage1_steps alone decides.")
    threshold: float = opt(0.0, "Stage I ends when the metric's mean over the window reaches this.")
    window: int = opt(10, "Steps the mean is taken over.", gt=0)


@dataclass
class CriticConfig:
    enable: bool = opt(False, "Estimate the solver's advantages with a critic (PPO, gae) in place of a baseline.")
    num_nodes: int | None = opt(None, "Nodes of the critic's group; null: as actor.", gt=0)
    num_gpus_per_node: int | None = opt(None, "GPUs per node of the critic's group; null: as actor.", gt=0)
    lr: float = opt(9e-6, "Learning rate of the critic.", ge=0)
    max_norm: float = opt(1.0, "Gradient clipping norm of the critic; 0 turns it off.", ge=0)
    value_clip: float = opt(0.5, "Clip range of the value loss.", gt=0)
    gamma: float = opt(1.0, "Discount per token within a turn.", ge=0, le=1)
    lambd: float = opt(1.0, "Lambda of the advantage estimate within a turn.", ge=0, le=1)


@dataclass
class SolverConfig:
    baseline: str = opt(
        "leave_one_out",
        f"Baseline of turn 1's return: {listed(BASELINES_T1)}.",
        choices=tuple(BASELINES_T1),
    )
    baseline_t2: str = opt(
        "state_value",
        f"Baseline of turn 2's return: {listed(BASELINES_T2)}.",
        choices=tuple(BASELINES_T2),
    )
    normalise: str = opt(
        "none",
        f"Normalisation of advantages: {listed(SOLVER_NORMALISATIONS)}.",
        choices=tuple(SOLVER_NORMALISATIONS),
    )
    allow_std_in_stage2: bool = opt(False, "Allow std and group_std in stage II, where they cancel 1 + alpha.")
    kl_credit: str = opt(
        "to_go",
        f"KL credit of a token: {listed(KL_CREDITS)}.",
        choices=tuple(KL_CREDITS),
    )
    freeze: bool = opt(False, "Do not train the solver.")
    warmup_steps: int = opt(0, "Steps at the start in which the solver is not updated.", ge=0)
    dynamic_filtering: bool = opt(False, "Mask problems whose attempts show no variance in either turn.")
    max_steps_without_update: int = opt(20, "This many steps in a row without an update are an error.", gt=0)


@dataclass
class GuidanceConfig:
    reward: str = opt(
        "outcome",
        f"Reward of a guidance: {listed(GUIDANCE_REWARDS)}, or path/to/file.py:function.",
    )
    leak_penalty: float = opt(0.0, "Taken from the reward when the guidance states the answer.", ge=0)
    baseline: str = opt(
        "state_value",
        f"Baseline of a guidance's reward: {listed(GUIDANCE_BASELINES)}.",
        choices=tuple(GUIDANCE_BASELINES),
    )
    normalise: str = opt("none", "Normalisation of advantages over the batch.", choices=tuple(NORMALISATIONS))
    kl_credit: str = opt("to_go", "As solver.kl_credit.", choices=tuple(KL_CREDITS))
    update_every: int = opt(1, "Update the guidance model every this many steps.", gt=0)
    warmup_steps: int = opt(0, "Steps at the start in which the guidance model is not updated.", ge=0)
    freeze: bool = opt(False, "Do not train the guidance model (its engine still writes the hints).")
    dynamic_filtering: bool = opt(False, "Mask the guidances of an attempt when their rewards show no variance.")
    max_steps_without_update: int = opt(20, "This many due steps in a row without an update are an error.", gt=0)


@dataclass
class AdamConfig:
    lr: float = opt(5e-6, "Learning rate of the solver (the guidance model's is guidance_lr).", ge=0)
    betas: list[float] = opt([0.9, 0.95], "Adam betas.")
    eps: float = opt(1e-8, "Adam epsilon.", gt=0)
    weight_decay: float = opt(0.0, "Decoupled weight decay.", ge=0)


@dataclass
class ActorConfig:
    num_nodes: int = opt(1, "Nodes of the solver's training group.", gt=0)
    num_gpus_per_node: int = opt(1, "GPUs per node of the solver's training group.", gt=0)
    adam: AdamConfig = section(AdamConfig, "Optimizer, both policies (the learning rate is the solver's).")
    max_norm: float = opt(1.0, "Gradient clipping norm, both policies; 0 turns it off.", ge=0)
    lr_scheduler: str = opt(
        "constant", "Learning-rate schedule (transformers' names), both policies.", choices=LR_SCHEDULERS
    )
    lr_warmup_ratio: float = opt(0.0, "Part of the steps spent warming up the learning rate.", ge=0, le=1)
    min_lr_ratio: float = opt(0.1, "Floor of the cosine_with_min_lr schedule as a part of lr.", ge=0, le=1)
    eps_clip: float = opt(0.2, "PPO clip range.", gt=0)
    eps_clip_low_high: list[float] | None = opt(None, "PPO clip range below and above 1.")
    dual_clip: float | None = opt(None, "Dual-clip PPO bound.", gt=1)
    policy_loss_type: str = opt(
        "ppo", "Host's policy loss; gspo averages over both turns and is refused.", choices=("ppo", "gspo")
    )
    loss_agg_mode: str = opt(
        "token-mean",
        "Host's aggregation; seq-mean-token-mean weights tokens by trajectory and is refused.",
        choices=("token-mean", "seq-mean-token-mean"),
    )
    entropy_coef: float | None = opt(None, "Entropy bonus; 0 only logs the entropy.")
    gradient_checkpointing_enable: bool = opt(False, "Recompute activations in the backward pass.")
    gradient_checkpointing_reentrant: bool = opt(False, "Use reentrant checkpointing.")


@dataclass
class GuidanceActorConfig:
    num_nodes: int | None = opt(None, "Nodes of the guidance model's training group; null: as actor.", gt=0)
    num_gpus_per_node: int | None = opt(None, "GPUs per node of the guidance group; null: as actor.", gt=0)
    lora_rank: int | None = opt(
        None, "LoRA rank of the guidance model; null: as ds.lora.rank; 0 trains all its weights.", ge=0
    )


@dataclass
class RefConfig:
    num_nodes: int | None = opt(None, "Nodes of a reference group; null: as the policy it belongs to.", gt=0)
    num_gpus_per_node: int | None = opt(None, "GPUs per node of a reference group; null: as its policy.", gt=0)
    offload: bool = opt(False, "Keep the reference's weights in host memory.")
    shared: bool | None = opt(
        None,
        "One reference group for both policies; null: when they start from the same checkpoint at the same "
        "temperature (placement shared_reference: it must).",
    )


@dataclass
class VllmConfig:
    num_engines: int = opt(1, "Engines of the solver.", gt=0)
    tensor_parallel_size: int = opt(1, "GPUs per engine.", gt=0)
    gpu_memory_utilization: float = opt(0.5, "Part of a GPU's memory an engine may take.", gt=0, le=1)
    enforce_eager: bool = opt(False, "Sample without CUDA graphs: slower, 0.5 GiB less (CPU machines have none).")
    enable_prefix_caching: bool = opt(True, "Serve turn 2 from turn 1's cache.")
    enable_sleep: bool = opt(False, "Put engines to sleep between phases (needed when placement is colocate).")
    sync_backend: str = opt("nccl", "Weight sync backend.", choices=("nccl", "gloo"))
    max_num_seqs: int | None = opt(
        None, "Sequences an engine runs at once; null: 512 on CUDA machines, vLLM's own number on CPU machines.", gt=0
    )
    max_num_batched_tokens: int | None = opt(
        None,
        "Tokens an engine computes at once, prompts and samples together; null: 8192 on CUDA machines, vLLM's own "
        "number on CPU machines.",
        gt=0,
    )
    cpu_threads: int | None = opt(
        None,
        "On CPU machines, threads of each engine. null: as OMP_NUM_THREADS if it is set; else models of more than 50 "
        "million parameters share the machine's cores between their engines and smaller ones have one thread.",
        gt=0,
    )


@dataclass
class GuidanceVllmConfig:
    num_engines: int | None = opt(None, "Engines of the guidance model; null: as vllm.num_engines.", gt=0)
    tensor_parallel_size: int | None = opt(None, "GPUs per guidance engine; null: as vllm.", gt=0)
    gpu_memory_utilization: float | None = opt(None, "As vllm.gpu_memory_utilization; null: the same.", gt=0, le=1)
    max_num_seqs: int | None = opt(None, "As vllm.max_num_seqs; null: the same.", gt=0)
    max_num_batched_tokens: int | None = opt(None, "As vllm.max_num_batched_tokens; null: the same.", gt=0)


@dataclass
class TrainConfig:
    batch_size: int | None = opt(
        None, "Trajectories per optimizer step, over all ranks; null: all of a step's, so one update a step.", gt=0
    )
    micro_batch_size: int = opt(4, "Rows per backward pass and GPU.", gt=0)
    max_epochs: int = opt(1, "Passes over a step's batch.", gt=0)
    dynamic_batch_enable: bool = opt(False, "Micro batches by token count (host's dynamic batches).")
    max_tokens_per_gpu: int = opt(16192, "Dynamic batches: tokens per backward pass and GPU.", gt=0)
    full_determinism_enable: bool = opt(False, "Deterministic kernels.")


@dataclass
class LoraConfig:
    rank: int = opt(0, "LoRA rank on every linear layer; 0 trains all weights.", ge=0)
    alpha: int = opt(16, "LoRA alpha.", gt=0)
    dropout: float = opt(0.0, "LoRA dropout.", ge=0, lt=1)


@dataclass
class DsConfig:
    zero_stage: int = opt(3, "DeepSpeed ZeRO stage.", choices=(2, 3))
    param_dtype: str = opt(
        "bf16",
        "Type of weights in actors, references and engines. Where it is not set, evaluate and solve on a CPU machine "
        "take bf16 for a model of more than 50 million parameters on a CPU with AMX or AVX512_BF16, else fp32.",
        choices=("bf16", "fp16", "fp32"),
    )
    adam_offload: bool = opt(False, "Keep optimizer states in host memory.")
    param_offload: bool = opt(
        False, "Keep the policies' weights in host memory too and gather them from there (ZeRO-3 with adam_offload)."
    )
    attn_implementation: str = opt("flash_attention_2", "Attention of the training side.")
    packing_samples: bool = opt(False, "Pack rows without padding.")
    tensor_parallel_size: int = opt(1, "DeepSpeed tensor parallel size.", gt=0)
    ring_attn_size: int = opt(1, "Ring attention group size.", gt=0)
    zpg: int = opt(1, "ZeRO++ partition size.", gt=0)
    overlap_comm: bool = opt(False, "Overlap gradient communication.")
    grad_accum_dtype: str | None = opt(
        None,
        "Type in which the gradients of micro batches are added up: that of ds.param_dtype (null), or fp32, which "
        "rounds nothing away over many of them and takes 2 bytes a parameter more than bf16 (ZeRO-3).",
        choices=("bf16", "fp16", "fp32"),
    )
    enable_sleep: bool = opt(False, "Offload a policy's states between its updates.")
    load_in_4bit: bool = opt(False, "Must stay false: a policy in 4 bits cannot be sent to its engines.")
    lora: LoraConfig = section(LoraConfig, "LoRA, both policies (the guidance model's own: guidance_actor.lora_rank).")


@dataclass
class IsCorrectionConfig:
    level: str = opt(
        "off",
        "Correct for engine and trainer log-probs that differ: off or token; seq averages over both turns and is "
        "refused.",
        choices=("off", "token", "seq"),
    )
    mode: str = opt("mask", "What happens outside the band.", choices=("mask", "clip"))
    threshold: list[float] = opt([0.5, 5.0], "Band of the ratio.")


@dataclass
class AlgoConfig:
    is_correction: IsCorrectionConfig = section(IsCorrectionConfig, "Per-token importance correction.")


@dataclass
class CkptConfig:
    save_steps: int = opt(-1, "Write a checkpoint of both policies every this many steps; -1: only at the end.", ge=-1)
    max_num: int = opt(2, "Newest checkpoints kept.", gt=0)
    verify: str = opt(
        "full",
        "What is compared with the manifest before a checkpoint is gone on from: full, every byte (SHA-256); "
        "sizes, that its files are there and have their sizes.",
        choices=("full", "sizes"),
    )
    save_hf: bool = opt(True, "Export both models in Hugging Face form at the end.")


@dataclass
class EvalConfig:
    steps: int = opt(-1, "Evaluate every this many steps; -1: never during training.", ge=-1)
    before_and_after: bool = opt(True, "Evaluate before the first and after the last step.")
    temperature: float = opt(1.0, "Sampling temperature in evaluation; 0 is greedy.", ge=0)
    num_samples: int = opt(1, "Trajectories per problem in evaluation.", gt=0)
    seed: int = opt(1234, "Seed of evaluation sampling, the same at every evaluation.")


@dataclass
class LoggerConfig:
    tensorboard: bool = opt(True, "Write TensorBoard scalars to output_dir/tensorboard.")
    wandb_mode: str = opt("disabled", "Weights & Biases.", choices=("disabled", "offline", "online"))
    trajectories: bool = opt(True, "Write every trajectory to output_dir/trajectories.")
    num_shown: int = opt(3, "Trajectories shown on the terminal before and after.", ge=0)


@dataclass
class RayConfig:
    address: str | None = opt(
        None, "Ray cluster to join; null starts one here, whatever runs beside it; auto joins a running one."
    )
    num_cpus: int | None = opt(None, "CPUs given to a Ray started here; null on CPU machines: enough for the roles.")
    num_nodes: int | None = opt(
        None, "Wait until the cluster that is joined has this many nodes; the launch scripts set it.", gt=0
    )
    placement_timeout_seconds: float = opt(
        600.0, "Roles whose GPUs are not free after this long are an error that says what is free.", gt=0
    )


@dataclass
class ModelShapeConfig:
    hidden_size: int | None = opt(None, "Width of the residual stream.", gt=0)
    num_hidden_layers: int | None = opt(None, "Decoder layers.", gt=0)
    num_attention_heads: int | None = opt(None, "Query heads.", gt=0)
    num_key_value_heads: int | None = opt(None, "Key and value heads; null: as num_attention_heads.", gt=0)
    head_dim: int | None = opt(None, "Size of a head; null: hidden_size / num_attention_heads.", gt=0)
    intermediate_size: int | None = opt(None, "Width of the gated MLP.", gt=0)
    vocab_size: int | None = opt(None, "Rows of the embedding.", gt=0)
    tie_word_embeddings: bool = opt(False, "The output layer is the embedding.")
    attention_bias: bool = opt(False, "Query, key and value projections have biases.")


@dataclass
class PlaygroundConfig:
    warm_start_steps: int = opt(1300, "Supervised steps of the playground's base model.", gt=0)
    warm_start_seed: int = opt(0, "Seed of the playground's base model.")
    num_train: int = opt(4000, "Training problems written.", gt=0)
    num_eval: int = opt(1000, "Held-out problems written.", gt=0)
    path: str = opt("runs/playground", "Where the playground's model and problems are kept and found again.")


@dataclass
class Config:
    method: str | None = opt(
        None,
        f"{', '.join(METHODS)}; null: from use_smart_corrections and train_guidance_model.",
        choices=tuple(METHODS),
    )
    model_path: str | None = opt(None, "The solver's starting model: a directory or a hub name.")
    use_smart_corrections: bool = opt(False, "A guidance model writes the hint.")
    correction_model_path: str | None = opt(None, "Frozen guidance model of smart_score; null: the solver's model.")
    train_guidance_model: bool = opt(False, "Train the guidance model by REINFORCE.")
    guidance_model_path: str | None = opt(
        None, "The guidance model's start; null: correction_model_path if set, else the solver's model."
    )
    guidance_lr: float = opt(1e-6, "Learning rate of the guidance model.", ge=0)
    guidance_kl_coef: float = opt(0.05, "KL weight of the guidance model to its start.", ge=0)
    guidance_samples: int = opt(1, "Guidances per attempt (K).", gt=0)
    trust_remote_code: bool = opt(False, "Run Python code that comes with the solver's model; refused by default.")
    guidance_trust_remote_code: bool = opt(
        False, "The same of the guidance model's start; where both start from one model either key allows it."
    )

    alpha: float = opt(10.0, "Stage II bonus weight on r2 - r1.", ge=0)
    beta1: float = opt(0.01, "KL weight of both turns, in both stages.", ge=0)
    beta2: float = opt(0.1, "KL weight of turn 1 in stage I, on top of beta1.", ge=0)
    beta2_max: float | None = opt(
        None,
        "Adaptive beta2: in stage I it balances turn 1's KL against turn 2's objective, from beta2 up to this; null: "
        "beta2 stays.",
        ge=0,
    )
    gamma_turn: float = opt(0.0, "Part of turn 2's reward that turn 1's return contains.", ge=0, le=1)
    stage1_steps: int = opt(100, "Steps of stage I.", ge=0)
    stage2_steps: int = opt(200, "Steps of stage II.", ge=0)
    stage_switch: StageSwitchConfig = section(StageSwitchConfig, "End stage I early on a metric.")
    start_stage: int = opt(1, "Stage the run starts in.", choices=(1, 2))
    carry_optimizer: bool = opt(True, "Keep optimizer state and schedule from stage I to stage II.")
    max_steps: int | None = opt(None, "Stop after this many steps in all.", gt=0)
    max_nonfinite_steps: int = opt(
        3,
        "Optimizer steps with NaN or infinity in the batch, the loss or the gradient are skipped; this many in a row "
        "of one policy are an error.",
        gt=0,
    )
    seed: int = opt(42, "Seed of data order, sampling and training.", ge=0)
    placement: str = opt(
        "split",
        "split: roles on their own GPUs, both policies updated at once; shared_reference: split, and one reference "
        "must serve both; colocate: all roles on the same GPUs, in turns.",
        choices=("split", "shared_reference", "colocate"),
    )

    output_dir: str = opt("runs/${run_name}", "Where everything the run leaves is written.")
    checkpoint_path: str | None = opt(None, "Where checkpoints are written; null: output_dir/checkpoints.")
    resume: bool = opt(True, "Go on from the newest whole checkpoint when there is one.")
    run_name: str = opt("score-math", "Name of the run.")
    project_name: str = opt("score_openrlhf", "Project in Weights & Biases.")

    data: DataConfig = section(DataConfig, "Problems.")
    task: TaskConfig = section(TaskConfig, "What a problem is and how it is graded.")
    templates: TemplatesConfig = section(TemplatesConfig, "Prompts.")
    rollout: RolloutConfig = section(RolloutConfig, "Collecting trajectories.")
    solver: SolverConfig = section(SolverConfig, "The solver's objective.")
    guidance: GuidanceConfig = section(GuidanceConfig, "The guidance model's objective.")
    actor: ActorConfig = section(ActorConfig, "Training side of the policies (host's names).")
    critic: CriticConfig = section(CriticConfig, "The solver's critic.")
    guidance_actor: GuidanceActorConfig = section(GuidanceActorConfig, "What differs for the guidance policy.")
    ref: RefConfig = section(RefConfig, "Reference models.")
    vllm: VllmConfig = section(VllmConfig, "Engines (host's names).")
    guidance_vllm: GuidanceVllmConfig = section(GuidanceVllmConfig, "What differs for the guidance engines.")
    train: TrainConfig = section(TrainConfig, "Batches (host's names).")
    ds: DsConfig = section(DsConfig, "DeepSpeed (host's names).")
    algo: AlgoConfig = section(AlgoConfig, "Other knobs of the host's algorithm.")
    ckpt: CkptConfig = section(CkptConfig, "Checkpoints.")
    eval: EvalConfig = section(EvalConfig, "Evaluation.")
    logger: LoggerConfig = section(LoggerConfig, "What is written and shown.")
    ray: RayConfig = section(RayConfig, "Ray.")
    playground: PlaygroundConfig = section(PlaygroundConfig, "The CPU-sized learning task.")
    model_shape: ModelShapeConfig = section(
        ModelShapeConfig,
        "Shape of the solver in the words of its config.json, for `score-openrlhf plan` where the model is neither on "
        "this machine nor a known name.",
    )
    guidance_model_shape: ModelShapeConfig = section(
        ModelShapeConfig, "The same for the guidance model where it is another model."
    )

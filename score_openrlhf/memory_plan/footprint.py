"""A model's shape and how it is held -> bytes: states, buffers, activations and logits in training, caches in engines.

Pure arithmetic. `docs/memory.md` has the same formulas with their derivation, and what they leave out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from score_openrlhf.config.policies import ENGINE_BATCHED_TOKENS, ENGINE_NUM_SEQS
from score_openrlhf.memory_plan.model_shape import ModelShape

GIB = 2**30
GPU_MEMORY = 78 * GIB  # of a card sold as 80 GB (A100, H100): the driver and ECC take the rest
VALUE_BYTES = {"bf16": 2, "fp16": 2, "fp32": 4}
MASTER_BYTES = 4  # a float: the weights' master copy, Adam's two moments, logits

# DeepSpeed's defaults, which the host leaves in place by "auto" (deepspeed/runtime/zero/config.py)
REDUCE_BUCKET = 500_000_000  # reduce_bucket_size, values
LIVE_PARAMS = 1_000_000_000  # stage3_max_live_parameters
PREFETCH_PARAMS = 50_000_000  # stage3_prefetch_bucket_size
SUB_GROUP = 1_000_000_000  # sub_group_size: master weights updated at once

# Assumptions: what shapes do not give
CONTEXT_BYTES = int(0.75 * GIB)  # CUDA context, cuBLAS workspace and NCCL buffers of one process
GRAPH_BYTES = int(0.5 * GIB)  # CUDA graphs of an engine; kept while it sleeps
FRAGMENTATION = 0.1  # of what one phase allocates and frees

NF4_BYTES = 0.516  # 4 bits and doubly quantised scales (Dettmers et al. 2023, arXiv 2305.14314, section 3)


@dataclass(frozen=True)
class ModelMemory:
    """One model on the training side: how it is divided, and what of it is trained. All methods: bytes per GPU."""

    shape: ModelShape
    value_bytes: int  # of a weight, a gradient and an activation
    zero_stage: int
    ranks: int  # processes of the group: nodes x GPUs per node
    tensor_parallel: int = 1
    zpg: int = 1  # ZeRO++ second partition: a whole copy over this many GPUs
    lora_rank: int = 0
    load_in_4bit: bool = False
    offloaded: bool = False  # whether weights wait in host memory and are gathered from there
    accumulation_bytes: int | None = None  # of a gradient that is added up; None: as a weight

    @property
    def num_trainable(self) -> int:
        """Parameters with gradients."""
        return self.shape.lora_params(self.lora_rank) if self.lora_rank else self.shape.num_params

    @property
    def divides_weights(self) -> bool:
        """Whether weights are in parts that are gathered when used (one rank gathers only what is in host memory)."""
        return self.zero_stage == 3 and (self.ranks > 1 or self.offloaded)

    def weights(self) -> int:
        """Weights at rest: stage 3 divides them over all ranks, stage 2 keeps a copy on each."""
        total = self.shape.num_params * self.value_bytes
        if self.load_in_4bit:
            total -= int(self.shape.num_hidden_layers * self.shape.layer_params * (self.value_bytes - NF4_BYTES))
        if self.lora_rank:
            total += self.num_trainable * self.value_bytes
        if self.zero_stage != 3:
            return math.ceil(total / self.tensor_parallel)
        second = math.ceil(total / self.zpg) if self.zpg > 1 else 0
        return math.ceil(total / self.ranks) + second

    def gradients(self) -> int:
        """Gradients, divided over all ranks in stages 2 and 3."""
        return math.ceil(self.num_trainable * (self.accumulation_bytes or self.value_bytes) / self.ranks)

    def optimizer(self) -> int:
        """The master copy and Adam's two moments, each a float per trained weight, divided over all ranks."""
        return math.ceil(self.num_trainable * 3 * MASTER_BYTES / self.ranks)

    def reduce_bucket(self) -> int:
        """The contiguous buffer gradients are reduced from; stage 3 makes it once, whatever the model's size."""
        return REDUCE_BUCKET * self.value_bytes

    def reduction(self) -> int:
        """Beside the bucket: the copy that is sent, and the largest gradient before it is moved into it.

        Where gradients are added up in another type, what came back is there in that type too (stage3.py,
        __avg_scatter_contiguous_grads).
        """
        largest = min(self.shape.embedding_params, self.num_trainable)
        sent = max(largest, min(self.num_trainable, REDUCE_BUCKET))
        turned = 0 if self.accumulation_bytes in (None, self.value_bytes) else self.accumulation_bytes
        return (sent + largest) * self.value_bytes + sent * turned

    def gathered(self) -> int:
        """Whole parameters alive at once in a pass through the model."""
        if not self.divides_weights:
            return 0
        live = max(LIVE_PARAMS + PREFETCH_PARAMS, self.shape.embedding_params)
        return min(self.shape.num_params, live) * self.value_bytes

    def optimizer_step(self) -> int:
        """Gradients of one sub-group as floats, beside their copy in the type in which they were added up."""
        return self._sub_group() * (MASTER_BYTES + (self.accumulation_bytes or self.value_bytes))

    def start(self) -> int:
        """Gradients of zeros, as floats, with which DeepSpeed makes Adam's moments (stage3.py,
        initialize_optimizer_states)."""
        return self._sub_group() * MASTER_BYTES

    def _sub_group(self) -> int:
        """Trained weights of one rank that are updated at once."""
        part = math.ceil(self.num_trainable / self.ranks)
        if self.zero_stage == 3:
            part = min(part, SUB_GROUP + math.ceil(self.shape.embedding_params / self.ranks))
        return part

    def sync(self, *, cuda_ipc: bool) -> int:
        """Sending weights one by one: the gathered parameter, and its copy where GPUs are shared (CUDA IPC)."""
        copies = (self.divides_weights or self.tensor_parallel > 1) + cuda_ipc
        return copies * self.shape.embedding_params * self.value_bytes


@dataclass(frozen=True)
class ForwardMemory:
    """One micro batch through a model. All methods: bytes on one GPU."""

    shape: ModelShape
    tokens: int  # of the micro batch on this GPU, padding included
    value_bytes: int
    flash_attention: bool = True  # other kernels repeat key and value heads up to the query heads
    tensor_parallel: int = 1
    lora_rank: int = 0

    def layer(self) -> int:
        """Saved by one decoder layer for its backward pass.

        Korthikanti et al. 2022 (arXiv 2205.05198), section 4.1, with a gated MLP, grouped heads, no dropout, and norms
        computed in floats.
        """
        shape = self.shape
        norms = 2 * shape.hidden_size * (MASTER_BYTES + 2 * self.value_bytes)  # input as floats, normalised, output
        keys_values = 2 * (shape.kv_size if self.flash_attention else shape.q_size)
        attention = (2 * shape.q_size + keys_values) * self.value_bytes + MASTER_BYTES * shape.num_attention_heads
        mlp = 4 * shape.intermediate_size * self.value_bytes  # gate, its activation, up, their product
        adapters = len(shape.linear_layers) * self.lora_rank * self.value_bytes
        return self.tokens * (norms + math.ceil((attention + mlp) / self.tensor_parallel) + adapters)

    def saved(self, *, checkpointing: bool) -> int:
        """Activations alive at the end of the forward pass; with checkpointing each layer keeps its input alone."""
        last_norm = self.shape.hidden_size * (MASTER_BYTES + 2 * self.value_bytes)
        one = self.tokens * self.shape.hidden_size * self.value_bytes if checkpointing else self.layer()
        return self.shape.num_hidden_layers * one + self.tokens * last_norm

    def training(self, *, checkpointing: bool, entropy: bool, logits: bool = True) -> tuple[int, int]:
        """(activations, logits) at the peak of a backward pass.

        The host turns logits into floats and holds them until the step is over (openrlhf/models/actor.py, forward).
        At the loss their gradient stands beside them, as floats and in the model's type. A checkpointed layer is
        computed again later, when only the logits themselves are left. An entropy term keeps two more of their size.
        """
        saved = self.saved(checkpointing=checkpointing)
        vocabulary = self.tokens * self.shape.vocab_size if logits else 0
        held = vocabulary * MASTER_BYTES * (2 if entropy else 1)
        at_loss = (saved, held + vocabulary * (MASTER_BYTES * (2 if entropy else 1) + self.value_bytes))
        at_layer = (saved + self.layer(), held)
        return max(at_loss, at_layer, key=sum) if checkpointing else at_loss

    def forward(self, *, logits: bool = True) -> tuple[int, int]:
        """(activations, logits) at the peak of a pass without gradients: one layer's MLP; logits in both types."""
        shape = self.shape
        widest = 3 * shape.intermediate_size / self.tensor_parallel + 2 * shape.hidden_size
        activations = math.ceil(widest * self.value_bytes) + shape.hidden_size * MASTER_BYTES
        return self.tokens * activations, self.tokens * shape.vocab_size * (MASTER_BYTES + self.value_bytes) * logits


@dataclass(frozen=True)
class Engine:
    """One vLLM engine. All methods: bytes on each of its GPUs."""

    shape: ModelShape
    value_bytes: int
    tensor_parallel: int
    gpu_memory_utilization: float
    gpu_memory: int
    enforce_eager: bool
    num_seqs: int = ENGINE_NUM_SEQS
    batched_tokens: int = ENGINE_BATCHED_TOKENS

    def requested(self) -> int:
        """What it takes while awake, a part of the whole GPU (vllm/v1/worker/utils.py, request_memory)."""
        return math.ceil(self.gpu_memory * self.gpu_memory_utilization)

    def weights(self) -> int:
        """Weights, divided over the engine's GPUs."""
        return math.ceil(self.shape.num_params * self.value_bytes / self.tensor_parallel)

    def graphs(self) -> int:
        """CUDA graphs."""
        return 0 if self.enforce_eager else GRAPH_BYTES

    def workspace(self) -> int:
        """Activations of the largest batch, and the sampler's logits and log-probs as floats, twice."""
        batch = ForwardMemory(
            self.shape, self.batched_tokens, self.value_bytes, tensor_parallel=self.tensor_parallel
        ).forward(logits=False)[0]
        return batch + self.num_seqs * self.shape.vocab_size * MASTER_BYTES * 2

    def kv_cache(self) -> int:
        """What is left of `requested` for keys and values; negative where the weights alone take more."""
        return self.requested() - self.weights() - self.workspace() - self.graphs()

    def kv_bytes_per_token(self) -> int:
        """Key and value of one token in all layers; GPUs beyond the number of KV heads hold copies."""
        heads = math.ceil(self.shape.num_key_value_heads / self.tensor_parallel)
        return 2 * self.shape.num_hidden_layers * heads * self.shape.head_dim * self.value_bytes

    def kv_tokens(self) -> int:
        """Tokens whose keys and values the cache holds."""
        return max(0, self.kv_cache()) // self.kv_bytes_per_token()

    def receiving(self) -> int:
        """The parameter being received in a sync, whole on every GPU."""
        return self.shape.embedding_params * self.value_bytes


def critic_shape(shape: ModelShape) -> ModelShape:
    """A critic: the same decoder with one output, so that no second embedding is left."""
    return replace(shape, tie_word_embeddings=True)

"""Tiny random-weight models with real tokenizers and chat templates, for the benchmarks and for the tests."""

from __future__ import annotations

from pathlib import Path

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n"
    "{{ m['content'] | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
SPECIAL = {
    "qwen2": ("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
    "llama": ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
}


def make_tokenizer(kind: str = "qwen2"):
    """A byte-level BPE tokenizer of 512 tokens with the family's special tokens and chat template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    special = SPECIAL[kind]
    trainer = trainers.BpeTrainer(
        vocab_size=512, special_tokens=list(special), initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    corpus = [f"What is {a} plus {b}? The answer is {a + b}." for a in range(30) for b in range(30)]
    backend.train_from_iterator(corpus + ["system user assistant tutor hint check the step again"] * 20, trainer)
    end = special[-1]
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=special[0] if kind == "llama" else None,
        eos_token=end,
        pad_token=special[0],
        extra_special_tokens=[token for token in special if token not in (special[0], end)],
        chat_template=CHATML if kind == "qwen2" else LLAMA3,
    )


def make_model(folder: Path, kind: str = "qwen2", *, seed: int = 0, dtype: str = "float32", **shape: int) -> Path:
    """Write a model with random weights and its tokenizer to `folder`; returns it.

    Two layers of width 64, unless `shape` says otherwise in the words of the family's configuration.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

    tokenizer = make_tokenizer(kind)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(seed)
    options = dict(
        vocab_size=-(-len(tokenizer) // 64) * 64,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=2048,
        tie_word_embeddings=kind == "llama",
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
    )
    options |= shape
    model = Qwen2ForCausalLM(Qwen2Config(**options)) if kind == "qwen2" else LlamaForCausalLM(LlamaConfig(**options))
    model.to(getattr(torch, dtype)).save_pretrained(folder)
    return folder

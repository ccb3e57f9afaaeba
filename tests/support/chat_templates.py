"""Chat templates of our own, each with one habit that real ones have, and tokenizers of both kinds to use them."""

from __future__ import annotations

from benchmarks.tiny_models import CHATML

_TURN = "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
_ASK = "{% if add_generation_prompt %}<|im_start|>assistant\n"
# prefills <think>, and drops reasoning from earlier turns, as R1's and its kin do
THINKS = (
    _TURN + "{% if m['role'] == 'assistant' %}{{ m['content'].split('</think>')[-1].lstrip('\n') }}"
    "{% else %}{{ m['content'] }}{% endif %}<|im_end|>\n{% endfor %}"
    + _ASK
    + "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n"
    "{% else %}<think>\n{% endif %}{% endif %}"
)
# opens no reasoning itself, and drops it from earlier turns
FORGETS = THINKS.replace("{% if enable_thinking", "{% if false and enable_thinking").replace(
    "<think>\n{% endif", "{% endif"
)
# a space before and after what the model says, which the prompt for an answer lacks; needs a bos_token
INST = (
    "{{ bos_token + '' }}{% for m in messages %}{% if m['role'] == 'user' %}[INST] {{ m['content'] }} [/INST]"
    "{% elif m['role'] == 'assistant' %} {{ m['content'] }}{{ eos_token }}"
    "{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}"
)
# the system text stands before the last user text, wherever that is
SYSTEM_LAST = (
    "{{ bos_token }}{% set ns = namespace(system='') %}{% for m in messages %}"
    "{% if m['role'] == 'system' %}{% set ns.system = m['content'] + '\n\n' %}"
    "{% elif m['role'] == 'user' %}[INST]{{ ns.system if loop.last else '' }}{{ m['content'] }}[/INST]"
    "{% else %}{{ m['content'] }}{{ eos_token }}{% endif %}{% endfor %}"
)
# no system role at all
NO_SYSTEM = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}<|im_start|>{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n"
    "{{ m['content'] | trim }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>model\n{% endif %}"
)
# the system text begins the first user turn
SYSTEM_FIRST = (
    "{% set first = messages[0]['content'] + '\n\n' if messages[0]['role'] == 'system' else '' %}"
    "{% for m in messages if m['role'] != 'system' %}<|im_start|>{{ m['role'] }}\n"
    "{{ first if loop.first else '' }}{{ m['content'] }}<|im_end|>\n{% endfor %}" + _ASK + "{% endif %}"
)
# what the model says ends in another token than what the template renders of it; it names its channels itself
CHANNELS = (
    "{% for m in messages %}<|start|>{{ m['role'] }}{% if m['role'] == 'assistant' %}<|channel|>final{% endif %}"
    "<|message|>{{ m['content'] }}<|end|>{% endfor %}{% if add_generation_prompt %}<|start|>assistant{% endif %}"
)
# takes lists of parts, as models that see images do
PARTS = (
    "{% for m in messages %}{{ m['role'] }}:{% for part in m['content'] %}{% if part['type'] == 'text' %}"
    "{{ part['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)
# shows the last message alone: nothing tells how an answer ends
LAST_ONLY = "{% for m in messages[-1:] %}[{{ m['role'] }}]{{ m['content'] }}{% endfor %}[assistant]"
PLAIN = CHATML

SPECIAL = (
    "<s>", "</s>", "<|im_start|>", "<|im_end|>", "[INST]", "[/INST]", "<|start|>", "<|end|>", "<|channel|>",
    "<|message|>", "<|return|>",
)  # fmt: skip
MARKUP = ("<think>", "</think>")  # tokens of their own that no tokenizer calls special
CORPUS = [
    f"What is {a} plus {b}? The answer is {a + b}. system user assistant model final analysis tutor hint check the sum"
    for a in range(20)
    for b in range(20)
]


def make_tokenizer(
    template: str | None, *, sentencepiece: bool = False, eos: str = "<|im_end|>", bos: str | None = "<s>"
):
    """A small tokenizer that knows every token of the templates here; SentencePiece's sets a space before a text."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    if sentencepiece:
        backend = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
        backend.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        )
        alphabet = sorted(set("".join(CORPUS)) | set("\n:;,.'-<>/|[]{}()_"))
        special = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256))]
    else:
        backend = Tokenizer(models.BPE())
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        alphabet, special = pre_tokenizers.ByteLevel.alphabet(), ["<unk>"]
    trainer = trainers.BpeTrainer(vocab_size=700, special_tokens=special, initial_alphabet=alphabet)
    backend.train_from_iterator(CORPUS, trainer)
    backend.add_tokens([AddedToken(text, special=False, normalized=False) for text in MARKUP])
    roles = {"eos_token": eos, "pad_token": "<unk>", "unk_token": "<unk>", **({"bos_token": bos} if bos else {})}
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        extra_special_tokens=[token for token in SPECIAL if token not in roles.values()],
        chat_template=template,
        **roles,
    )

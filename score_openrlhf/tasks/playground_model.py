"""Settings in; the playground's base model (HF format, with tokenizer and chat template) and its problems out.

    build_playground("runs/playground", warm_start_seed=0, ...) -> paths of model, train, eval, meta

The base model is trained from nothing in one to three minutes, see `playground_warm_start.py`. A folder that already
holds the result of the same settings is returned as it is.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from score_openrlhf.errors import UserError
from score_openrlhf.tasks import playground_warm_start as warm_start
from score_openrlhf.tasks.playground import APPROVAL, COLUMN_HINTS, VAGUE, PlaygroundTask, write_problems

DATA_SEED = 0  # the problems stay the same when the model's seed changes, so that runs can be compared
MAX_LENGTH = 256  # positions; a whole dialogue takes 25
SHAPE: dict[str, Any] = {
    "hidden_size": 64,
    "num_attention_heads": 2,  # of 32, a size that vLLM's CPU attention has
    "num_key_value_heads": 2,
    "num_hidden_layers": 3,
    "intermediate_size": 192,
    "max_position_embeddings": MAX_LENGTH,
    "tie_word_embeddings": True,
    "initializer_range": 0.05,
}

BEGUN, KEPT = "settings.json", "warm_start.pt"  # of a build that is not finished: its settings and its state

UNKNOWN = "?"  # an ordinary word: what another tokenizer's text has and this vocabulary does not
END, USER, ASSISTANT, PAD = "<|end|>", "<|user|>", "<|assistant|>", "<|pad|>"
CHAT_TEMPLATE = (
    "{%- for message in messages %}"
    "{%- if message['role'] not in ('user', 'assistant') %}"
    "{{- raise_exception('the playground knows the roles user and assistant, not ' ~ message['role']) }}"
    "{%- endif %}"
    "{{- '<|' ~ message['role'] ~ '|>' ~ message['content'] ~ '<|end|>' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|assistant|>' }}{%- endif %}"
)

Progress = Callable[[str, int, int], None]  # (phase, done, total)


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A word-level tokenizer of 28 tokens with a chat template; digits are their own ids, `0` to `9`.

    The special tokens are no words of the vocabulary, so text encoded with `split_special_tokens=True` cannot become
    one of them.
    """
    templates = dataclasses.asdict(PlaygroundTask.templates).values()
    texts = [APPROVAL, VAGUE, *COLUMN_HINTS, *(text.split("{")[0] for text in templates if text)]
    words = [*"0123456789", "+", "=", *dict.fromkeys(" ".join(texts).split()), UNKNOWN]
    core = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token=UNKNOWN))
    # "347" is three tokens like "3 4 7"
    core.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Whitespace(), pre_tokenizers.Digits(True)])
    special = (END, USER, ASSISTANT, PAD)
    core.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token=END,
        pad_token=PAD,
        additional_special_tokens=[USER, ASSISTANT],
        chat_template=CHAT_TEMPLATE,
        model_max_length=MAX_LENGTH,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


def make_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """A Llama of 162,000 parameters in fp32, drawn from torch's global generator."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        **SHAPE,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype=torch.float32,
    )
    model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, do_sample=True, temperature=1.0
    )
    return model


def build_playground(
    out_dir: str | os.PathLike[str],
    *,
    warm_start_seed: int,
    warm_start_steps: int,
    num_train: int,
    num_eval: int,
    progress: Progress | None = None,
) -> dict[str, Path]:
    """The base model and the problems of the playground, built once under `out_dir` and found again there.

    Returns the paths `model` (a folder), `train`, `eval` and `meta` (the settings, the base model's measured fractions
    on the held-out problems at temperature 1, seconds). Other settings rebuild the folder. It appears whole or not at
    all: what an interrupted build leaves beside it the next one of the same settings goes on from, any other removes;
    and of two processes one builds while the other waits. Raises UserError for settings out of range, and if `out_dir`
    holds something else.
    """
    if warm_start_steps < 1:
        raise UserError(f"warm_start_steps is {warm_start_steps}; it must be at least 1")
    out_dir = Path(out_dir).absolute()
    paths = {
        "model": out_dir / "model",
        "train": out_dir / "train.jsonl",
        "eval": out_dir / "eval.jsonl",
        "meta": out_dir / "meta.json",
    }
    tokenizer = make_tokenizer()
    settings = {
        "warm_start_seed": warm_start_seed,
        "warm_start_steps": warm_start_steps,
        "num_train": num_train,
        "num_eval": num_eval,
        "recipe": warm_start.recipe(),
        "shape": SHAPE,
        "templates": dataclasses.asdict(PlaygroundTask.templates),
        "chat_template": CHAT_TEMPLATE,
        "vocabulary": sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().__getitem__),
    }
    out_dir.parent.mkdir(parents=True, exist_ok=True)
    building, replaced = (out_dir.with_name(f".{out_dir.name}.{state}") for state in ("building", "replaced"))
    with FileLock(out_dir.with_name(f".{out_dir.name}.lock")):
        if all(path.exists() for path in paths.values()) and read_settings(paths["meta"]) == settings:
            return paths
        if out_dir.exists() and any(out_dir.iterdir()) and not paths["meta"].is_file():
            raise UserError(f"{out_dir} is not empty and holds no playground; name another folder or empty this one")
        if replaced.exists():
            shutil.rmtree(replaced)
        if building.exists() and not _begun_with(building, settings):
            shutil.rmtree(building)
        building.mkdir(exist_ok=True)
        (building / BEGUN).write_text(json.dumps(settings), encoding="utf-8")
        build_into(building, tokenizer, settings, progress or (lambda phase, done, total: None))
        if out_dir.exists():
            out_dir.rename(replaced)  # renamed first: an interrupted removal must not leave half a folder here
        building.rename(out_dir)
        if replaced.exists():
            shutil.rmtree(replaced)
    return paths


def _begun_with(building: Path, settings: dict) -> bool:
    """Whether an interrupted build was of these settings."""
    try:
        return json.loads((building / BEGUN).read_text(encoding="utf-8")) == json.loads(json.dumps(settings))
    except (OSError, ValueError):  # it was interrupted before it had written them
        return False


def read_settings(meta_path: Path) -> dict:
    """The settings a finished playground was built with."""
    return json.loads(meta_path.read_text(encoding="utf-8"))["settings"]


def build_into(folder: Path, tokenizer: PreTrainedTokenizerFast, settings: dict, progress: Progress) -> None:
    """Writes the problems, the trained model and, last, `meta.json` into `folder`, which may hold a part of it."""
    started = time.monotonic()
    write_problems(folder / "train.jsonl", DATA_SEED, settings["num_train"], "train")
    problems_path = write_problems(folder / "eval.jsonl", DATA_SEED, settings["num_eval"], "test")
    problems = [json.loads(line) for line in problems_path.read_text(encoding="utf-8").splitlines()]
    with two_threads(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings["warm_start_seed"])
        model = make_model(tokenizer)
        seed, steps = settings["warm_start_seed"], settings["warm_start_steps"]
        warm_start.train(model, tokenizer, seed=seed, steps=steps, progress=progress, kept=folder / KEPT)
        trained = time.monotonic()
        base = warm_start.measure(model, tokenizer, problems)
        progress("measure", 1, 1)
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    meta = {
        "settings": settings,
        "num_parameters": model.num_parameters(),
        "base": base,
        "seconds": {"warm_start": round(trained - started, 2), "total": round(time.monotonic() - started, 2)},
    }
    (folder / KEPT).unlink()
    (folder / BEGUN).unlink()
    (folder / "meta.json").write_text(json.dumps(meta, indent=2) + "\n", encoding="utf-8")


@contextmanager
def two_threads() -> Iterator[None]:
    """At most two torch threads inside: for matrices this small two are 1.3 times as fast as one."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(min(2, os.cpu_count() or 1))
    try:
        yield
    finally:
        torch.set_num_threads(num_threads)

"""Text said while it is sampled: whole characters only, nothing a terminal would obey, nothing left out."""

from __future__ import annotations

import io

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from benchmarks.tiny_models import make_tokenizer
from score_openrlhf.cli.solve import Screen
from score_openrlhf.evaluation.streaming import TextStream
from score_openrlhf.rollout.trajectory import Sample
from score_openrlhf.tasks.base import Grade

TEXT = "Größe 好 👩‍🔬 is 5 €,\n so \tthe answer is 12."


def sentencepiece_like():
    """A tokenizer as Llama 2's: a space before each word is part of it, and unknown characters are bytes."""
    words = ["▁", "▁is", "▁the", "▁answer", "1", "2", "a", "."]
    vocabulary = {word: i for i, word in enumerate([*words, "</s>", *(f"<0x{b:02X}>" for b in range(256))])}
    backend = Tokenizer(models.BPE(vocabulary, [], byte_fallback=True))
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>")


TOKENIZERS = {"byte level": make_tokenizer(), "byte fallback": sentencepiece_like()}


def pieces(tokenizer, token_ids: list[int]) -> list[str]:
    stream = TextStream(tokenizer)
    said = [stream.add([token]) for token in token_ids]
    return [*said, stream.rest(tokenizer.decode(token_ids, skip_special_tokens=True))]


def bytes_of(tokenizer, text: str) -> list[int]:
    """The text as tokens of one byte each, so that every character beyond ASCII is split."""
    if tokenizer is TOKENIZERS["byte fallback"]:
        return tokenizer.convert_tokens_to_ids([f"<0x{byte:02X}>" for byte in text.encode()])
    return [i for byte in tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str(text)
            for char in byte[0] for i in tokenizer.convert_tokens_to_ids([char])]  # fmt: skip


@pytest.mark.parametrize("kind", TOKENIZERS)
@given(data=st.data())
@settings(max_examples=200, deadline=None)
def test_pieces_of_any_tokens_make_the_whole_text(kind, data):
    tokenizer = TOKENIZERS[kind]
    token_ids = data.draw(st.lists(st.integers(0, len(tokenizer) - 1), max_size=40))
    whole, said = tokenizer.decode(token_ids, skip_special_tokens=True), "".join(pieces(tokenizer, token_ids))
    # with byte fallback, a byte that belongs to no character spoils the characters beside it that were said
    assert said == whole or (kind == "byte fallback" and "\N{REPLACEMENT CHARACTER}" in whole)
    assert said.endswith(whole)


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_a_character_of_several_tokens_is_said_when_it_is_whole(kind):
    tokenizer = TOKENIZERS[kind]
    said = pieces(tokenizer, bytes_of(tokenizer, TEXT))
    assert "".join(said) == TEXT and not any("\N{REPLACEMENT CHARACTER}" in piece for piece in said)
    assert sum(map(bool, said)) == len(TEXT)  # one by one, none is kept for later


def test_words_keep_the_space_between_them():
    tokenizer = TOKENIZERS["byte fallback"]
    token_ids = tokenizer.convert_tokens_to_ids(["▁the", "▁answer", "</s>", "▁is", "▁", "1", "2"])
    assert pieces(tokenizer, token_ids) == ["the", " answer", "", " is", " ", "1", "2", ""]


def test_a_decoding_that_differs_as_a_whole_is_said_again():
    stream = TextStream(TOKENIZERS["byte level"])
    said = stream.add(TOKENIZERS["byte level"]("the step .").input_ids)
    assert said == "the step ." and stream.rest("the step.") == "\nthe step."


# ── the screen ──


def shown(*texts: str, terminal: bool, width: int = 40, **end) -> tuple[list[str], str]:
    """What the console holds after each text, and at the end."""
    file = io.StringIO()
    console = Console(file=file, force_terminal=terminal, width=width, color_system="standard" if terminal else None)
    screen = Screen(console, graded=True)
    screen.begin("attempt")
    after = []
    for text in texts:
        screen.text(text)
        after.append(file.getvalue())
    sample = Sample([1], [0.0], "".join(texts), end.get("truncated", False), 0)
    screen.end("attempt", sample, Grade(end.get("status", "right")), leak=end.get("leak", False))
    return after, file.getvalue()


def test_a_terminal_shows_each_piece_at_once_and_in_colour():
    after, _ = shown("The ans", "wer", terminal=True)
    assert "The ans" in after[0] and "wer" not in after[0] and "wer" in after[1]
    assert "\x1b[36mThe ans" in after[0] and after[1].endswith("\x1b[0m")  # nothing is left on


def test_elsewhere_a_text_is_plain_lines():
    text = "x " * 60 + "\nand more"
    after, whole = shown(*text, terminal=False)
    assert text.split("\n")[0].strip() in whole.splitlines()[1]  # longer than the console is wide: not broken
    assert not after[-1].splitlines()[1:] and whole.splitlines()[2:] == ["and more", "attempt: right"]
    assert "\x1b" not in whole


@pytest.mark.parametrize("terminal", [True, False])
def test_what_a_terminal_would_obey_is_made_visible(terminal):
    """In pieces too: the escape character and what it would begin come as different tokens."""
    _, whole = shown("a\x1b", "[2J", "\x07b\u202ec\r[red]d[/red]", terminal=terminal)
    for obeyed in ("\x1b[2J", "\x07", "\u202e", "\r"):
        assert obeyed not in whole
    assert "[red]d[/red]" in whole  # markup is text


def test_blank_space_around_a_text_is_left_out():
    _, whole = shown("\n", "  one", " ", "\n\n", "two ", "\n", "\n", terminal=False)
    assert whole.splitlines()[1:] == ["one ", "", "two", "attempt: right"]


def test_verdicts_follow_the_text():
    _, whole = shown(" ", terminal=False, status="timeout", truncated=True, leak=True)
    assert whole.splitlines()[1:] == ["attempt: (nothing), timeout, cut at its budget, states the answer"]

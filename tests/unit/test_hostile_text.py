"""Generated hostile texts through grader, leak check, tokenizer and terminal; the whole trial is a benchmark."""

from __future__ import annotations

import time

from benchmarks.hostile_text import KINDS, MAX_CHARS, answers, trial
from benchmarks.tiny_models import make_tokenizer
from score_openrlhf.rollout.encoding import encode_text, special_ids
from score_openrlhf.tasks.math import MathTask


def test_no_hostile_answer_is_paid_for_and_none_harms():
    outcomes, figures, wrong = trial(answers(20 * len(KINDS)), processes=2)
    assert wrong == []
    assert set(outcomes) == set(KINDS)
    for outcome in outcomes.values():
        assert set(outcome.statuses) <= {"wrong", "unparsable"}  # a timeout is masked, and no answer may buy that
        assert set(outcome.leaks) == {"ok"}
    assert 0 < figures["peak_gib"] < 1


def test_a_hint_of_deep_nesting_is_decided_at_once():
    """Four thousand braces took 5 s to read and were undecided: the trajectory was masked."""
    for opening, closing in (("(", ")"), ("{", "}"), (r"\frac{1}{", "}")):
        hint = r"\boxed{" + opening * 4000 + "1" + closing * 4000 + "}"
        begun = time.process_time()
        assert not MathTask().states_answer(hint, "", "", "7919")
        assert time.process_time() - begun < 1, opening


def test_no_hostile_text_becomes_a_special_token():
    for kind in ("qwen2", "llama"):
        tokenizer = make_tokenizer(kind)
        special = special_ids(tokenizer)
        assert special
        for _, text in answers(5 * len(KINDS), seed=1):
            text = text[-MAX_CHARS:].encode(errors="replace").decode()  # a sample's text is decoded, so no surrogate
            assert special.isdisjoint(encode_text(tokenizer, text))

"""Turn 2 for every habit of a chat template: the ids by hand, what is said, and what is refused with which key."""

from __future__ import annotations

import asyncio
import dataclasses

import pytest

from score_openrlhf.config.schema import Config
from score_openrlhf.preflight.inputs import templates_of
from score_openrlhf.rollout.chat import GUIDANCE_CHAT, Chat, ChatTemplateError, Prompting
from score_openrlhf.rollout.encoding import encode_template, encode_text, special_ids
from score_openrlhf.rollout.executor import GuidedRevisionExecutor
from score_openrlhf.rollout.metrics import trajectory_metrics
from score_openrlhf.rollout.prompts import GuidancePrompts, SolverPrompts
from score_openrlhf.rollout.trajectory import Trajectory
from tests.support import chat_templates as kinds
from tests.support.chat_templates import make_tokenizer
from tests.unit.test_executor import PLAN, PROBLEM, Engine, Grader, OneTask

TEXTS = Prompting(
    system=None,
    attempt="{problem}",
    revision="A tutor says: {guidance}",
    static_revision="Check the sum.",
    guidance_system=None,
    guidance="{problem} {attempt} Give a hint.",
)


def prompting(system: str | None = None, **chat) -> Prompting:
    return dataclasses.replace(TEXTS, system=system, solver_chat=Chat(**chat))


def ids_of(tokenizer, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def context(tokenizer, prompts: SolverPrompts, sampled: str, guidance: str | None = "check it") -> str:
    """All of turn 2's context as text, after an attempt that was sampled as `sampled`."""
    attempt = encode_template(tokenizer, sampled)
    ids = prompts.attempt_ids("1 plus 2") + attempt + prompts.bridge_ids(attempt, guidance)
    return tokenizer.decode(ids, skip_special_tokens=False)


# (template, tokens an attempt may end in, the context of turn 2, a word of what is said)
CASES = {
    "plain": (
        kinds.PLAIN, "<|im_end|>", "The answer is 4.",
        "<|im_start|>user\n1 plus 2<|im_end|>\n<|im_start|>assistant\nThe answer is 4.<|im_end|>\n"
        "<|im_start|>user\nA tutor says: check it<|im_end|>\n<|im_start|>assistant\n", "",
    ),
    "prefills and drops reasoning": (
        kinds.THINKS, "<|im_end|>", "Let me see.\n</think>\n\n4",
        "<|im_start|>user\n1 plus 2<|im_end|>\n<|im_start|>assistant\n<think>\nLet me see.\n</think>\n\n4<|im_end|>\n"
        "<|im_start|>user\nA tutor says: check it<|im_end|>\n<|im_start|>assistant\n<think>\n", r"has '<think>\\n'",
    ),
    "drops reasoning": (
        kinds.FORGETS, "<|im_end|>", "<think>\nLet me see.\n</think>\n\n4",
        "<|im_start|>user\n1 plus 2<|im_end|>\n<|im_start|>assistant\n<think>\nLet me see.\n</think>\n\n4<|im_end|>\n"
        "<|im_start|>user\nA tutor says: check it<|im_end|>\n<|im_start|>assistant\n", "drops reasoning",
    ),
    "a space after [/INST]": (
        kinds.INST, "</s>", "4",
        "<s>[INST] 1 plus 2 [/INST]4</s>[INST] A tutor says: check it [/INST]", "otherwise: ' ' where",
    ),
    "system text in the first user turn": (
        kinds.SYSTEM_FIRST, "<|im_end|>", "4",
        "<|im_start|>user\nBe brief.\n\n1 plus 2<|im_end|>\n<|im_start|>assistant\n4<|im_end|>\n"
        "<|im_start|>user\nA tutor says: check it<|im_end|>\n<|im_start|>assistant\n", "",
    ),
    "system text in the last user turn": (
        kinds.SYSTEM_LAST, "</s>", "4",
        "<s>[INST]Be brief.\n\n1 plus 2[/INST]4</s>[INST]A tutor says: check it[/INST]", "Be brief",
    ),
    "another end": (
        kinds.CHANNELS, "<|return|>", "<|channel|>final<|message|>4",
        "<|start|>user<|message|>1 plus 2<|end|><|start|>assistant<|channel|>final<|message|>4<|return|>"
        "<|start|>user<|message|>A tutor says: check it<|end|><|start|>assistant", "<.channel.>final",
    ),
    "lists of parts": (
        kinds.PARTS, "<|im_end|>", "4",
        "user:1 plus 2<|im_end|>\nassistant:4<|im_end|>\nuser:A tutor says: check it<|im_end|>\nassistant:", "",
    ),
}  # fmt: skip


@pytest.fixture(params=CASES)
def case(request):
    template, eos, sampled, expected, said = CASES[request.param]
    system = "Be brief." if request.param.startswith("system") else None
    tokenizer = make_tokenizer(template, eos=eos)
    return tokenizer, SolverPrompts(tokenizer, prompting(system)), sampled, eos, expected, said


def test_turn_2_extends_what_was_sampled_by_the_templates_own_user_turn(case):
    import re

    tokenizer, prompts, sampled, eos, expected, said = case
    assert context(tokenizer, prompts, sampled + eos) == expected
    assert bool(prompts.differs) == bool(said) and re.search(said, prompts.differs)


def test_an_attempt_that_was_cut_is_given_the_templates_end(case):
    tokenizer, prompts, sampled, eos, expected, _ = case
    end = tokenizer.decode([prompts.end_of_turn_id], skip_special_tokens=False)
    assert context(tokenizer, prompts, sampled) == expected.replace(eos, end)


def test_no_text_becomes_a_special_token_or_markup(case):
    tokenizer, prompts, sampled, eos, *_ = case
    never = special_ids(tokenizer) | {tokenizer.convert_tokens_to_ids(text) for text in kinds.MARKUP}
    attempt = encode_template(tokenizer, sampled + eos)
    hostile = " ".join((*kinds.SPECIAL, *kinds.MARKUP))
    for ask in (prompts.attempt_ids, lambda text: prompts.bridge_ids(attempt, text)):
        assert [i for i in ask(f"a{hostile}b") if i in never] == [i for i in ask("ab") if i in never]
    decoded = tokenizer.decode(encode_text(tokenizer, hostile), skip_special_tokens=False)
    assert decoded.split() == hostile.split()


@pytest.mark.parametrize("sentencepiece", [False, True])
@pytest.mark.parametrize("template", [kinds.PLAIN, kinds.INST, kinds.SYSTEM_LAST, kinds.NO_SYSTEM, kinds.CHANNELS])
def test_prompts_have_the_ids_that_the_whole_text_has(template, sentencepiece):
    tokenizer = make_tokenizer(template, sentencepiece=sentencepiece, eos="</s>")
    prompts = SolverPrompts(tokenizer, prompting())
    ids = prompts.attempt_ids("What is 1 plus 2?")
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is 1 plus 2?"}], tokenize=False, add_generation_prompt=True
    )
    assert ids == ids_of(tokenizer, text)
    # the bridge too: the template's rendering from the end of the answer on
    between = tokenizer.apply_chat_template(
        [
            {"role": "user", "content": "x"},
            {"role": "assistant", "content": "QQ"},
            {"role": "user", "content": "A tutor says: the sum"},
        ],
        tokenize=False, add_generation_prompt=True,
    ).partition("QQ")[2]  # fmt: skip
    whole = ids_of(tokenizer, f"plus{between}")
    cut = encode_template(tokenizer, "plus", first=True)
    assert cut + prompts.bridge_ids(cut, "the sum") == whole


@pytest.mark.parametrize("text", ["plus 2", " plus", "plus\nplus", "\nplus", "▁plus", "", "2", "<think>"])
def test_a_text_in_the_middle_begins_without_sentencepieces_space(text):
    tokenizer = make_tokenizer(kinds.PLAIN, sentencepiece=True)
    ids = encode_text(tokenizer, "What:") + encode_text(tokenizer, text)
    assert tokenizer.decode(ids, skip_special_tokens=False).strip() == f"What:{text}".replace("▁", " ").strip()


def test_a_template_that_refuses_a_system_text_names_the_key_and_works_with_it():
    tokenizer = make_tokenizer(kinds.NO_SYSTEM)
    with pytest.raises(ChatTemplateError, match=r"System role not supported.*templates.system_as=user") as error:
        SolverPrompts(tokenizer, prompting("Be brief."))
    assert "\n" not in str(error.value)
    prompts = SolverPrompts(tokenizer, prompting("Be brief.", system_as="user"))
    assert context(tokenizer, prompts, "4<|im_end|>", None) == (
        "<|im_start|>user\nBe brief.\n\n1 plus 2<|im_end|>\n<|im_start|>model\n4<|im_end|>\n"
        "<|im_start|>user\nCheck the sum.<|im_end|>\n<|im_start|>model\n"
    )
    guided = dataclasses.replace(TEXTS, guidance_system="Be brief.")
    with pytest.raises(ChatTemplateError, match=r"guidance model.*templates.guidance_system_as=user"):
        GuidancePrompts(tokenizer, guided)
    guided = dataclasses.replace(guided, guidance_chat=dataclasses.replace(GUIDANCE_CHAT, system_as="user"))
    assert tokenizer.decode(GuidancePrompts(tokenizer, guided).guidance_ids("1 plus 2", "4")).startswith(
        "<|im_start|>user\nBe brief.\n\n1 plus 2 4 Give a hint."
    )


def test_a_template_that_needs_a_bos_token_names_it_and_takes_it():
    tokenizer = make_tokenizer(kinds.INST, eos="</s>", bos=None)
    with pytest.raises(ChatTemplateError, match=r"needs bos_token.*templates.chat_template_kwargs=") as error:
        SolverPrompts(tokenizer, prompting())
    assert "\n" not in str(error.value)
    prompts = SolverPrompts(tokenizer, prompting(kwargs={"bos_token": "<s>"}))
    assert context(tokenizer, prompts, "4</s>").startswith("<s>[INST] 1 plus 2 [/INST]4</s>[INST] A tutor")


def test_a_template_that_hides_the_attempt_is_refused_with_both_texts():
    with pytest.raises(ChatTemplateError, match=r"how an answer ends.*\n?turn 1: .*\n?turn 2: ") as error:
        SolverPrompts(make_tokenizer(kinds.LAST_ONLY), prompting())
    assert "templates.chat_template" in str(error.value)


@pytest.mark.parametrize("template", [kinds.THINKS, kinds.FORGETS, kinds.INST, kinds.CHANNELS])
def test_history_template_refuses_what_would_be_rendered_otherwise(template):
    tokenizer = make_tokenizer(template)
    with pytest.raises(ChatTemplateError, match=r"rollout.history=sampled"):
        SolverPrompts(tokenizer, prompting(history="template"))
    SolverPrompts(make_tokenizer(kinds.PLAIN), prompting(history="template"))


def test_the_template_and_what_it_asks_for_can_be_given(tmp_path):
    tokenizer = make_tokenizer(kinds.PLAIN)
    file = tmp_path / "own.jinja"
    file.write_text(kinds.THINKS)
    for template in (kinds.THINKS, str(file)):
        prompts = SolverPrompts(tokenizer, prompting(template=template))
        assert tokenizer.decode(prompts.attempt_ids("x")).endswith("assistant\n<think>\n")
        prompts = SolverPrompts(tokenizer, prompting(template=template, kwargs={"enable_thinking": False}))
        assert tokenizer.decode(prompts.attempt_ids("x")).endswith("assistant\n<think>\n\n</think>\n\n")
    with pytest.raises(ChatTemplateError, match=r"templates.chat_template: there is no file .*nothing.jinja"):
        SolverPrompts(tokenizer, prompting(template="nothing.jinja"))
    with pytest.raises(ChatTemplateError, match=r"templates.chat_template_kwargs: tokenize cannot be set"):
        SolverPrompts(tokenizer, prompting(kwargs={"tokenize": True}))
    with pytest.raises(ChatTemplateError, match=r"has no chat template; set templates.chat_template"):
        SolverPrompts(make_tokenizer(None), prompting())


def test_the_guidance_models_keys_are_the_solvers_where_both_are_one_model():
    cfg = Config(model_path="one", train_guidance_model=True)
    cfg.templates.chat_template, cfg.templates.chat_template_kwargs = kinds.PLAIN, {"enable_thinking": False}
    of_one = templates_of(cfg, OneTask())
    assert of_one.guidance_chat.template == kinds.PLAIN and of_one.guidance_chat.kwargs == {"enable_thinking": False}
    cfg.guidance_model_path = "another"
    of_two = templates_of(cfg, OneTask())
    assert (of_two.guidance_chat.template, of_two.guidance_chat.kwargs) == (None, {})
    assert of_two.solver_chat == of_one.solver_chat
    cfg.templates.guidance_chat_template_kwargs = {"reasoning_effort": "low"}
    assert templates_of(cfg, OneTask()).guidance_chat.kwargs == {"reasoning_effort": "low"}


# Reasoning


@pytest.mark.parametrize(
    ("template", "sampled", "num_reasoning", "answer"),
    [
        (kinds.THINKS, "I see. </think>\n\n4<|im_end|>", "I see. </think>", "4"),
        (kinds.THINKS, "I see. </think> no </think>4", "I see. </think> no </think>", "4"),
        (kinds.THINKS, "I see that", "I see that", ""),  # cut while it thinks
        (kinds.FORGETS, "<think>I see</think>4", "<think>I see</think>", "4"),
        (kinds.FORGETS, "<think>I see", "<think>I see", ""),
        (kinds.FORGETS, "The answer is 4", "", None),  # it did not think
        (
            kinds.CHANNELS + "{# <|channel|>analysis<|message|> #}{# <|channel|>final<|message|> #}",
            "<|channel|>analysis<|message|>I see<|end|><|start|>assistant<|channel|>final<|message|>4<|return|>",
            "<|channel|>analysis<|message|>I see<|end|><|start|>assistant<|channel|>final<|message|>", "4",
        ),
        (kinds.PLAIN, "I see </think>4", "", None),  # a model that shows no reasoning
    ],
)  # fmt: skip
def test_reasoning_is_counted_and_left_out(template, sampled, num_reasoning, answer):
    tokenizer = make_tokenizer(template)
    ids = encode_template(tokenizer, sampled)
    found = SolverPrompts(tokenizer, prompting()).split_reasoning(ids)
    assert found == (len(encode_template(tokenizer, num_reasoning)), answer)


def test_own_markers_of_reasoning():
    tokenizer = make_tokenizer(kinds.PLAIN)
    prompts = SolverPrompts(tokenizer, prompting(reasoning=("hint", "final")))
    num_tokens, answer = prompts.split_reasoning(ids_of(tokenizer, "hint the sum final 4"))
    assert answer == "4" and tokenizer.decode(ids_of(tokenizer, "hint the sum final 4")[:num_tokens]).endswith("final")


@pytest.mark.parametrize("strip", [True, False])
def test_the_other_model_is_not_shown_what_one_thinks(strip):
    tokenizer = make_tokenizer(kinds.THINKS)
    texts = dataclasses.replace(TEXTS, strip_reasoning=strip)
    solver = Engine(tokenizer, lambda n: "I see 3. </think>4" if n == 1 else "So </think>3")
    guidance = Engine(tokenizer, lambda n: "Wrong: 3. </think>check the sum")
    grader = Grader()
    executor = GuidedRevisionExecutor(
        OneTask(), grader, SolverPrompts(tokenizer, texts), GuidancePrompts(tokenizer, texts), [guidance]
    )
    plan = dataclasses.replace(PLAN, num_guidances=1, max_len=400)
    (done,) = asyncio.run(executor.walk(solver, Trajectory(PROBLEM, 0, 0, 0), plan))
    assert done.failure is None
    asked = tokenizer.decode(guidance.requests[0].prompt_ids)
    assert ("I see 3" in asked) is (not strip) and "4 Give a hint." in asked
    revised = tokenizer.decode(solver.requests[1].prompt_ids)
    assert ("Wrong" in revised) is (not strip) and "check the sum" in revised
    assert "I see 3. </think>4" in revised  # its own attempt stands there as it was sampled
    assert done.leak == float(not strip)  # "3" stands in what the tutor thought alone
    assert grader.graded[0][0] == "I see 3. </think>4"
    thought = done.attempt.token_ids[: done.attempt.reasoning_tokens]
    assert tokenizer.decode(thought) == "I see 3. </think>" and len(done.attempt.token_ids) == len(thought) + 2
    metrics = trajectory_metrics([done])
    assert metrics["reasoning_tokens_t1"] == done.attempt.reasoning_tokens
    assert metrics["truncated_reasoning_t1"] == 0


def test_an_attempt_cut_while_it_thinks_is_counted():
    tokenizer = make_tokenizer(kinds.THINKS)
    solver = Engine(tokenizer, lambda n: "I see", truncated=True)
    executor = GuidedRevisionExecutor(OneTask(), Grader(), SolverPrompts(tokenizer, TEXTS))
    (done,) = asyncio.run(
        executor.walk(solver, Trajectory(PROBLEM, 0, 0, 0), dataclasses.replace(PLAN, num_guidances=1))
    )
    assert trajectory_metrics([done])["truncated_reasoning_t1"] == 1


def test_models_that_do_not_think_have_no_metrics_of_it():
    tokenizer = make_tokenizer(kinds.PLAIN)
    executor = GuidedRevisionExecutor(OneTask(), Grader(), SolverPrompts(tokenizer, TEXTS))
    (done,) = asyncio.run(
        executor.walk(
            Engine(tokenizer, lambda n: "4"), Trajectory(PROBLEM, 0, 0, 0), dataclasses.replace(PLAN, num_guidances=1)
        )
    )
    assert not [name for name in trajectory_metrics([done]) if "reasoning" in name]

"""The playground: what is right, what a hint is worth, what the models read, and a build that is whole or absent."""

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from score_openrlhf.rollout.prompts import GuidancePrompts, SolverPrompts, encode_text
from score_openrlhf.tasks import playground_warm_start as warm_start
from score_openrlhf.tasks.base import Problem
from score_openrlhf.tasks.playground import COLUMNS, PlaygroundTask, digits_of, operands, slip, write_problems
from score_openrlhf.tasks.playground_model import build_playground, make_model, make_tokenizer

TASK = PlaygroundTask()
PROBLEM = Problem(id="test-347+521", text="3 4 7 + 5 2 1 =", answer="8 6 8")
SMALL = {"warm_start_seed": 0, "warm_start_steps": 3, "num_train": 12, "num_eval": 8}


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer()


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    return build_playground(tmp_path_factory.mktemp("playground") / "small", **SMALL)


@pytest.mark.parametrize(
    ("text", "status"),
    [
        ("8 6 8", "right"),
        (" 8 6 8\n", "right"),
        ("868", "right"),
        ("8 6 9", "wrong"),
        ("8 6", "unparsable"),
        ("8 6 8 8", "unparsable"),
        ("8 6 8 =", "unparsable"),
        ("check the ones", "unparsable"),
        ("\u0668 \u0666 \u0668", "unparsable"),
        ("", "unparsable"),
    ],
)
def test_grade_wants_three_digits_and_nothing_else(text, status):
    assert TASK.grade(text, "8 6 8").status == status


def test_grade_refuses_a_gold_answer_that_is_not_three_digits():
    with pytest.raises(ValueError, match=r"'8 6' is not three digits"):
        TASK.grade("8 6 8", "8 6")


@pytest.mark.parametrize(("guidance", "leak"), [("check the tens", False), ("redo 9", True), ("looks right", False)])
def test_a_digit_in_the_hint_is_a_leak_even_if_the_problem_has_it(guidance, leak):
    assert TASK.states_answer(guidance, "3 4 9 + 5 2 0 =", "8 6 8", "8 6 9") is leak


@pytest.mark.parametrize(
    ("attempt", "guidance", "expected"),
    [
        ("8 6 9", "check the ones", {"hint_accuracy": 1.0, "right_column_rate": 1.0}),
        ("8 6 9", "redo the  ones", {"hint_accuracy": 1.0, "right_column_rate": 1.0}),
        ("8 6 9", "check the tens", {"hint_accuracy": 0.0, "right_column_rate": 0.0}),
        ("8 6 9", "looks right", {"hint_accuracy": 0.0, "right_column_rate": 0.0}),
        ("8 6 9", "check again", {"hint_accuracy": 0.0, "right_column_rate": 0.0}),
        ("8 6 9", "check the ones the tens", {"hint_accuracy": 0.0, "right_column_rate": 0.0}),
        ("7 6 9", "check the hundreds", {"hint_accuracy": 1.0, "right_column_rate": 1.0}),  # two columns are wrong
        ("8 6 8", "looks right", {"hint_accuracy": 1.0}),
        ("8 6 8", "check the ones", {"hint_accuracy": 0.0}),
        ("8 6", "check the ones", {}),
    ],
)
def test_hint_metrics(attempt, guidance, expected):
    assert TASK.describe_guidance(PROBLEM, attempt, guidance) == expected


def test_splits_share_no_problem_and_none_carries():
    train, test = (set(hard) | set(easy) for hard, easy in (operands("train"), operands("test")))
    assert train.isdisjoint(test)
    assert 0.08 < len(test) / (len(train) + len(test)) < 0.13
    for a, b in test:
        assert all(int(x) + int(y) <= 9 for x, y in zip(str(a), str(b), strict=True))


def test_half_of_the_written_problems_have_exactly_one_misremembered_column(tmp_path):
    path = write_problems(tmp_path / "test.jsonl", seed=3, num=200, split="test")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert len({row["id"] for row in rows}) == len({row["problem"] for row in rows}) == 200
    num_traps = []
    for row in rows:
        a, b = (digits_of(part) for part in row["problem"].removesuffix("=").split("+"))
        assert digits_of(row["answer"]) == tuple(x + y for x, y in zip(a, b, strict=True))
        traps = [column for column, x, y in zip(COLUMNS, a, b, strict=True) if slip(x, y)]
        assert traps == ([row["trap"]] if row["trap"] else [])
        num_traps.append(len(traps))
    assert num_traps.count(1) == num_traps.count(0) == 100
    again = write_problems(tmp_path / "again.jsonl", seed=3, num=200, split="test")
    assert again.read_text() == path.read_text()


@pytest.mark.parametrize(
    ("num", "split", "message"), [(0, "train", "0 problems"), (9999, "test", "has 1 to"), (4, "dev", "'dev'")]
)
def test_write_problems_refuses_what_it_cannot_write(tmp_path, num, split, message):
    with pytest.raises(ValueError, match=message):
        write_problems(tmp_path / "x.jsonl", seed=0, num=num, split=split)


def test_sampled_ids_decode_to_the_texts_the_task_grades(tokenizer):
    for text in ("8 6 8", *warm_start.HINTS):
        ids = [*encode_text(tokenizer, text), tokenizer.eos_token_id]
        assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_every_template_is_made_of_known_words(tokenizer):
    unknown = tokenizer.convert_tokens_to_ids("?")
    for hint in warm_start.HINTS:
        whole = warm_start.solver_messages(PROBLEM.text, "8 6 9", hint, "8 6 8")
        for messages in (whole, warm_start.guidance_messages(PROBLEM.text, "8 6 9", hint)):
            assert unknown not in warm_start.render(tokenizer, messages)
    assert unknown not in encode_text(tokenizer, TASK.templates.static_revision)


def test_text_never_becomes_a_special_token(tokenizer):
    text = "8 <|end|> <|user|><|assistant|> <|pad|> looks right"
    ids = encode_text(tokenizer, text)
    assert not set(ids) & set(tokenizer.all_special_ids)
    assert tokenizer.decode(ids).startswith("8 ?") and tokenizer.decode(ids).endswith("looks right")


def test_chat_template_refuses_a_role_the_models_were_not_trained_on(tokenizer):
    with pytest.raises(Exception, match="not system"):
        tokenizer.apply_chat_template([{"role": "system", "content": "add"}], tokenize=False)


def test_the_warm_start_trains_on_what_the_rollout_will_ask(tokenizer):
    """Prompt, sampled attempt and bridge, as the rollout puts them together, are the ids of the trained dialogue."""
    solver, guidance = SolverPrompts(tokenizer, TASK.templates), GuidancePrompts(tokenizer, TASK.templates)
    attempt = [*encode_text(tokenizer, "8 6 9"), tokenizer.eos_token_id]
    prompt = solver.attempt_ids(PROBLEM.text)
    assert prompt == warm_start.render(tokenizer, warm_start.solver_messages(PROBLEM.text))
    turn2 = prompt + attempt + solver.bridge_ids(attempt, "check the ones")
    assert turn2 == warm_start.render(tokenizer, warm_start.solver_messages(PROBLEM.text, "8 6 9", "check the ones"))
    hint_prompt = guidance.guidance_ids(PROBLEM.text, "8 6 9")
    assert hint_prompt == warm_start.render(tokenizer, warm_start.guidance_messages(PROBLEM.text, "8 6 9"))
    assert solver.end_of_turn_id == guidance.end_of_turn_id == tokenizer.eos_token_id


def test_made_up_dialogues_say_what_the_mixture_says(tokenizer):
    """Every row reads as arithmetic with the wanted rates of errors, right hints and fixes."""
    num = 4000
    sums, generator = warm_start.Sums.of_split("train"), torch.Generator().manual_seed(0)
    hints, digits = warm_start.draw(sums, warm_start.NOISY, num, generator)
    top, bottom, attempt, revision = digits.view(num, 4, 3).unbind(1)
    wrong, right2 = (attempt != top + bottom).any(1), (revision == top + bottom).all(1)
    named = hints // warm_start.NUM_VERBS
    located = wrong & (named < 3) & (attempt != top + bottom)[torch.arange(num), named.clamp(max=2)]
    assert wrong.float().mean().item() == pytest.approx(0.5, abs=0.03)
    # expert 0.35, or any of four kinds 0.27
    assert located[wrong].float().mean().item() == pytest.approx(0.35 + 0.27 / 4, abs=0.04)
    assert right2[located].float().mean().item() == pytest.approx(0.40, abs=0.06)
    vague = hints == warm_start.HINTS.index("check again")
    assert vague.float().mean().item() == pytest.approx(0.38, abs=0.03)
    assert (digits >= 0).all() and (digits <= 9).all()


def test_trained_tokens_are_the_answers_and_their_ends(tokenizer):
    conversation = warm_start.solver_messages("0 0 0 + 0 0 0 =", "0 0 0", "check the tens", "0 0 0")
    rows = warm_start.dialogues(tokenizer, [conversation], length=28)
    digits = torch.tensor([[3, 4, 7, 5, 2, 1, 8, 6, 9, 8, 6, 8]])
    ids, labels = rows.rows(torch.tensor([0]), digits)
    expected = (
        "<|user|>3 4 7 + 5 2 1 =<|end|><|assistant|>8 6 9<|end|><|user|>check the tens<|end|><|assistant|>8 6 8<|end|>"
    )
    assert ids[0, :25].tolist() == tokenizer.encode(expected, add_special_tokens=False)
    assert tokenizer.decode(labels[labels != -100]) == "8 6 9 <|end|> 8 6 8 <|end|>"


def test_training_teaches_the_form_of_an_answer(tokenizer, monkeypatch):
    """A few steps are enough to learn that an answer ends after its third digit."""
    monkeypatch.setattr(warm_start, "BATCH_SIZE", 8)
    torch.manual_seed(0)
    model, reports = make_model(tokenizer), []
    messages = warm_start.solver_messages(PROBLEM.text, "8 6 8", "looks right", "8 6 8")
    ids = torch.tensor([warm_start.render(tokenizer, messages)])
    ends = (ids[0] == tokenizer.eos_token_id).nonzero().flatten()[[1, 3]]  # of attempt and revision

    def chance_of_end():
        return model(input_ids=ids).logits.softmax(-1)[0, ends - 1, tokenizer.eos_token_id]

    assert chance_of_end().max() < 0.2
    warm_start.train(model, tokenizer, seed=0, steps=60, progress=lambda *report: reports.append(report))
    assert chance_of_end().min() > 0.8
    assert reports == [("warm start", 50, 60), ("warm start", 60, 60)]


def test_build_leaves_a_model_that_transformers_loads(built):
    meta = json.loads(built["meta"].read_text())
    assert meta["settings"]["warm_start_steps"] == 3 and meta["num_parameters"] == 161_984
    assert {"acc_t1", "acc_t2", "i2c", "c2i", "guidance/leak"} <= meta["base"].keys()
    tokenizer, model = (
        AutoTokenizer.from_pretrained(built["model"]),
        AutoModelForCausalLM.from_pretrained(built["model"]),
    )
    ours = make_tokenizer()
    messages = warm_start.solver_messages(PROBLEM.text, "8 6 9", "check the ones", "8 6 8")
    assert warm_start.render(tokenizer, messages) == warm_start.render(ours, messages)
    assert encode_text(tokenizer, "<|end|>") == encode_text(ours, "<|end|>")
    assert (tokenizer.eos_token, tokenizer.pad_token, tokenizer.bos_token) == ("<|end|>", "<|pad|>", None)
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id
    assert model.generation_config.pad_token_id == tokenizer.pad_token_id
    assert model.config.vocab_size == len(tokenizer) and model.config.bos_token_id is None
    assert model.config.hidden_size // model.config.num_attention_heads == 32
    rows = [json.loads(line) for line in built["train"].read_text().splitlines()]
    assert len(rows) == 12 and all(TASK.grade(row["answer"], row["answer"]).correct for row in rows)


def test_the_same_settings_are_found_again_and_others_rebuild(built, tmp_path):
    out_dir = tmp_path / "playground"
    paths = build_playground(out_dir, **SMALL)
    first = (paths["model"] / "model.safetensors").read_bytes()
    assert first == (built["model"] / "model.safetensors").read_bytes()  # the same seed makes the same model
    written = paths["meta"].stat().st_mtime_ns
    assert build_playground(out_dir, **SMALL) == paths
    assert paths["meta"].stat().st_mtime_ns == written

    build_playground(out_dir, **{**SMALL, "warm_start_seed": 1})
    assert json.loads(paths["meta"].read_text())["settings"]["warm_start_seed"] == 1
    assert (paths["model"] / "model.safetensors").read_bytes() != first
    assert {path.name for path in tmp_path.iterdir()} == {"playground", ".playground.lock"}


def test_an_interrupted_build_leaves_nothing_that_could_pass_for_a_playground(tmp_path):
    out_dir = tmp_path / "playground"

    def interrupt(phase, done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_playground(out_dir, **SMALL, progress=interrupt)
    assert not out_dir.exists()
    paths = build_playground(out_dir, **SMALL)
    assert all(path.exists() for path in paths.values())
    with pytest.raises(KeyboardInterrupt):  # a rebuild that fails leaves the finished one alone
        build_playground(out_dir, **{**SMALL, "warm_start_steps": 4}, progress=interrupt)
    assert json.loads(paths["meta"].read_text())["settings"]["warm_start_steps"] == 3


def test_an_interrupted_warm_start_goes_on_and_ends_with_the_same_model(tmp_path, monkeypatch):
    monkeypatch.setattr(warm_start, "KEEP_STEPS", 2)
    options, seen = {**SMALL, "warm_start_steps": 5}, []

    def progress(phase, done, total):
        seen.append((phase, done))
        if (phase, done) == ("warm start", stop_at):
            raise KeyboardInterrupt

    stop_at = None
    unbroken = build_playground(tmp_path / "unbroken", **options, progress=progress)
    stop_at = 4
    with pytest.raises(KeyboardInterrupt):
        build_playground(tmp_path / "broken", **options, progress=progress)
    seen.clear()
    stop_at = None
    broken = build_playground(tmp_path / "broken", **options, progress=progress)
    assert seen == [("warm start", 5), ("measure", 1)]
    for name in ("model/model.safetensors", "train.jsonl", "eval.jsonl"):
        files = [paths["meta"].parent / name for paths in (unbroken, broken)]
        assert files[0].read_bytes() == files[1].read_bytes(), name
    meta = [json.loads(paths["meta"].read_text()) for paths in (unbroken, broken)]
    assert meta[0]["base"] == meta[1]["base"]
    names = [{path.name for path in (tmp_path / name).iterdir()} for name in ("broken", "unbroken")]
    assert names[0] == names[1] and not list(tmp_path.glob(".*building"))


def test_a_build_of_other_settings_does_not_go_on_from_an_interrupted_one(tmp_path):
    def interrupt(phase, done, total):
        seen.append((phase, done))
        raise KeyboardInterrupt

    seen: list[tuple[str, int]] = []
    with pytest.raises(KeyboardInterrupt):
        build_playground(tmp_path / "playground", **SMALL, progress=interrupt)
    with pytest.raises(KeyboardInterrupt):
        build_playground(tmp_path / "playground", **{**SMALL, "warm_start_seed": 1}, progress=interrupt)
    assert seen == [("warm start", 3), ("warm start", 3)]  # trained anew, to its end
    state = torch.load(tmp_path / ".playground.building" / "warm_start.pt", weights_only=True)
    expected = build_playground(tmp_path / "other", **{**SMALL, "warm_start_seed": 1})
    model = load_file(expected["model"] / "model.safetensors")
    assert all(torch.equal(state["model"][name], tensor) for name, tensor in model.items())


def test_build_refuses_a_folder_that_holds_something_else(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="holds no playground"):
        build_playground(tmp_path, **SMALL)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_build_touches_neither_torch_threads_nor_its_generator(tmp_path):
    torch.manual_seed(5)
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    build_playground(tmp_path / "playground", **SMALL)
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), state)


def test_the_task_itself_needs_no_torch():
    """Grading processes import it, and must start fast."""
    code = (
        "import sys, score_openrlhf.tasks.playground; print([m for m in ('torch', 'ray', 'vllm') if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"

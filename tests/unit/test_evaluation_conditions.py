"""Controls: whose hints are shuffled, what is masked; and what an evaluation makes of trajectories."""

from __future__ import annotations

import csv
import io

import pytest

from score_openrlhf.cli.sampling import is_override, resolve
from score_openrlhf.config.errors import ConfigError
from score_openrlhf.evaluation.conditions import MASK, masked, shuffled
from score_openrlhf.evaluation.knowledge import RIGHT, vote
from score_openrlhf.evaluation.results import guidance_quality, scaling, summarise, to_csv
from score_openrlhf.evaluation.run import Settings
from score_openrlhf.tasks.base import NO_ERROR, Grade, Problem
from score_openrlhf.tasks.math import MathTask
from score_openrlhf.tasks.playground import PlaygroundTask
from score_openrlhf.trainer.metrics import trajectory_metrics
from tests.fakes import sample, trajectory

MATH, PLAYGROUND = MathTask(), PlaygroundTask()


def hints(num_problems, num_attempts):
    found = []
    for group in range(num_problems):
        for index in range(num_attempts):
            t = trajectory(group, index)
            t.guidance = sample([1], text=f"hint {group}/{index}")
            found.append(t)
    return found


@pytest.mark.parametrize("seed", range(5))
def test_shuffled_hints_come_from_other_problems_and_each_is_used_once(seed):
    own = hints(7, 2)
    texts = shuffled(own, seed)
    assert sorted(texts) == list(range(14))
    assert sorted(texts.values()) == sorted(t.guidance.text for t in own)
    for position, text in texts.items():
        problem, index = text.removeprefix("hint ").split("/")
        assert int(problem) != own[position].group and int(index) == own[position].attempt_index


def test_one_problem_has_no_other_to_take_a_hint_from():
    assert shuffled(hints(1, 3), 0) == {}


@pytest.mark.parametrize(
    ("guidance", "answer", "expected"),
    [
        ("Check the sum: it is 18, not 17.", "18", f"Check the sum: it is {MASK}, not 17."),
        ("Redo step 2.", "18", "Redo step 2."),
        (r"You lost a half: \frac{1}{2} is left.", "0.5", rf"You lost a half: {MASK} is left."),
        (r"So $x = 18$ and \boxed{18}.", "18", f"So ${MASK}$ and {MASK}."),
        ("The tutor says Evelyn, and EVELYN it is.", r"\text{Evelyn}", f"The tutor says {MASK}, and {MASK} it is."),
    ],
)
def test_math_masks_what_equals_the_answer(guidance, answer, expected):
    text = masked(guidance, answer, lambda said: MATH.states_answer(said, "", "", answer))
    assert text == expected
    assert not MATH.states_answer(text, "", "", answer)


def test_what_leaks_without_being_an_expression_is_masked_whole():
    def states(said):
        return PLAYGROUND.states_answer(said, "", "", "8 6 8")

    assert masked("redo 9", "8 6 8", states) == f"redo {MASK}"
    assert masked("redo x9", "8 6 8", states) == MASK
    assert masked("check the tens", "8 6 8", states) == "check the tens"


def test_the_playground_knows_the_error_and_the_approval():
    problem = Problem("p", "3 4 7 + 5 2 1 =", "8 6 8")
    assert PLAYGROUND.error_of(problem, "8 7 8") == "tens"
    assert PLAYGROUND.error_of(problem, "8 6 8") == NO_ERROR
    assert PLAYGROUND.error_of(problem, "8 6") is None and MATH.error_of(problem, "8 7 8") is None
    assert PLAYGROUND.approves("looks  right") and not PLAYGROUND.approves("check again")


def test_votes_are_answers_and_not_texts():
    wrong = Grade("wrong")
    assert vote(MATH, sample([1], text="So the answer is 7."), wrong) == "7"
    assert vote(MATH, sample([1], text=r"I get \boxed{7}"), wrong) == "7"
    assert vote(MATH, sample([1], text=""), Grade("unparsable")) is None
    assert vote(MATH, sample([1], text="anything"), Grade("right")) == RIGHT


def test_metrics_are_those_of_training_over_all_trajectories():
    own = [
        trajectory(0, 0, r1=0.0, r2=1.0, leak=1.0), trajectory(0, 1, r1=1.0, r2=1.0),
        trajectory(1, 0, r1=1.0, r2=0.0), trajectory(1, 1, r1=0.0, r2=0.0, hint_metrics={"hint_accuracy": 1.0}),
        trajectory(2, 0, failure="guide: ValueError", guidance=None, revision=None), trajectory(2, 1),
    ]  # fmt: skip
    results = summarise(MATH, {"own": {0: own}}, "own", greedy=False)
    found = {key: e["value"] for key, e in results["conditions"]["own"]["metrics"].items()}
    expected = trajectory_metrics(own)
    for key in ("acc_t1", "acc_t2", "delta", "i2c", "c2i", "fix_rate", "break_rate", "guidance/leak",
                "guidance/hint_accuracy", "rollout/failed", "truncated_t2", "guidance/length"):  # fmt: skip
        assert found[key] == pytest.approx(expected[key]), key
    assert results["conditions"]["own"]["failures"] == {"guide: ValueError": 1}


def test_lead_is_paired_on_the_attempts_that_both_revised():
    own = [trajectory(0, r2=1.0), trajectory(1, r2=1.0), trajectory(2, r2=0.0)]
    none = [trajectory(0, r2=0.0), trajectory(1, r2=1.0), trajectory(2, failure="revise: ValueError", revision=None)]
    results = summarise(MATH, {"own": {0: own}, "none": {0: none}}, "own", greedy=True)
    assert results["lead"]["none"]["value"] == 0.5 and results["lead"]["none"]["cases"] == 2
    table = {(r["condition"], r["metric"]): r for r in csv.DictReader(io.StringIO(to_csv(results)))}
    assert float(table["own - none", "acc_t2"]["value"]) == 0.5
    assert results["scaling"] == []  # greedy attempts at a problem are one


def test_scaling_by_hand():
    """One problem, attempts right, wrong; revisions right, right."""
    pair = [trajectory(0, 0, r1=1.0, r2=1.0), trajectory(0, 1, r1=0.0, r2=1.0)]
    rows = {(r["samples"], r["measure"]): r["value"] for r in scaling(MATH, pair, 1)}
    assert rows == {
        ("parallel", "pass@2"): 1, ("parallel", "majority@2"): 0.5,  # a tie of right and wrong
        ("sequential", "pass@2"): 1, ("sequential", "majority@2"): 0.75,  # right, right; and wrong, right
        ("sequential", "pass@4"): 1, ("sequential", "majority@4"): 1,
    }  # fmt: skip


def test_hint_quality_within_is_compared_with_as_many_across():
    """Every problem repeats its own hint: alike within, unlike across."""
    own = []
    for group, word in enumerate(("ones", "tens", "hundreds", "sum")):
        for index in range(2):
            t = trajectory(group, index)
            t.guidance = sample([1], text=word)
            own.append(t)
    quality = guidance_quality(MATH, own)
    assert quality["self_bleu_within"] == pytest.approx(1) and quality["self_bleu_across"] == pytest.approx(0.1)
    assert quality["distinct_1_within"] == 0.5 and quality["distinct_1_across"] == 1
    assert quality["distinct"] == 0.5 and quality["error_information_bits"] is None


@pytest.mark.parametrize(("options", "message"), [
    ({"samples": 0}, "samples is 0"), ({"temperature": -1.0}, "temperature is -1"), ({"seeds": ()}, "seeds are"),
    ({"seeds": (1, 1)}, "seeds are"),
])  # fmt: skip
def test_settings_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Settings(**{"samples": 1, "temperature": 1.0, "seeds": (0,), **options})


def test_words_are_told_apart():
    assert is_override("max_steps=2") and is_override("data.max_len=64") and is_override("max_stepz=2")
    assert not is_override("x=2") and not is_override("What is x if x=2?") and not is_override("runs/a.yaml")


def test_options_make_the_configuration():
    assert resolve(None, [], "some/solver", None).cfg.method == "score"
    cfg = resolve(None, ["data.max_len=800"], "some/solver", "some/tutor").cfg
    assert (cfg.model_path, cfg.guidance_model_path, cfg.method) == ("some/solver", "some/tutor", "smart_score")
    assert resolve("configs/rl_guided_score_math.yaml", [], None, "none").cfg.method == "score"
    with pytest.raises(ConfigError, match="did you mean max_steps"):
        resolve(None, ["max_stepz=2"], "some/solver", None)

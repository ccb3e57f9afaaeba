"""Controls: whose hints are shuffled, what is masked; and what an evaluation makes of trajectories."""

from __future__ import annotations

import csv
import dataclasses
import io
import re

import pytest
from rich.console import Console

from score_openrlhf.cli import evaluate
from score_openrlhf.cli.sampling import resolve
from score_openrlhf.config.errors import ConfigError
from score_openrlhf.config.schema import Config
from score_openrlhf.console.summary import show_summary
from score_openrlhf.evaluation.conditions import MASK, masked, shuffled
from score_openrlhf.evaluation.knowledge import RIGHT, same_votes
from score_openrlhf.evaluation.results import guidance_quality, scaling, summarise, to_csv, vote
from score_openrlhf.evaluation.run import Settings
from score_openrlhf.rollout.metrics import trajectory_metrics
from score_openrlhf.tasks.base import NO_ERROR, Grade, Problem
from score_openrlhf.tasks.math import MathTask
from score_openrlhf.tasks.playground import PlaygroundTask
from tests.support.fakes import sample, trajectory

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


def equal(pairs):
    """The grader's equality without the processes that a run asks."""
    return [MATH.equals(answer, other) for answer, other in pairs]


def test_votes_are_answers_and_not_texts():
    wrong = Grade("wrong")
    assert vote(MATH, sample([1], text="So the answer is 7."), wrong) == "7"
    assert vote(MATH, sample([1], text=r"I get \boxed{7}"), wrong) == "7"
    assert vote(MATH, sample([1], text=""), Grade("unparsable")) is None
    assert vote(MATH, sample([1], text="anything"), Grade("right")) == RIGHT


def test_wrong_answers_that_are_equal_vote_together_however_they_are_written():
    ballots = {
        0: [("1/2", r"\frac{1}{2}"), ("0.5", "3"), (RIGHT, None)],
        1: [("1/2", "x"), ("y", "x")],
    }
    assert same_votes(ballots, equal) == {
        0: [("1/2", "1/2"), ("1/2", "3"), (RIGHT, None)],
        1: [("1/2", "x"), ("y", "x")],
    }


def test_an_answer_is_compared_once_with_each_other_answer_of_its_problem():
    asked = []

    def noted(pairs):
        asked.extend(pairs)
        return equal(pairs)

    same_votes({0: [("1", "2"), ("1", "2"), ("3", "1.0")], 1: [("1", "1")]}, noted)
    assert sorted(asked) == [("1.0", "1"), ("2", "1"), ("3", "1"), ("3", "2")]


def test_two_equal_wrong_answers_outvote_a_right_one():
    """Attempts: 1/2, 0.5 and 7 of gold 7. By their spelling each answer has a vote of its own, a tie of three."""
    three = [trajectory(0, i, r1=float(text == "7")) for i, text in enumerate(("1/2", "0.5", "7"))]
    for t, text in zip(three, ("1/2", "0.5", "7"), strict=True):
        t.attempt = t.revision = sample([1], text=f"The answer is ${text}$.")
        t.grade_t2 = t.grade_t1
    four = [*three, dataclasses.replace(three[0], attempt_index=3)]
    rows = {(r["samples"], r["measure"]): r["value"] for r in scaling(MATH, four, 1, equal)}
    assert rows["parallel", "majority@4"] == 0  # three votes for a half
    # of the pairs of two attempts, 7 is drawn in three, each a tie of two answers
    assert rows["parallel", "majority@2"] == pytest.approx(3 / 6 / 2)


def test_metrics_are_those_of_training_with_failed_trajectories_as_wrong():
    own = [
        trajectory(0, 0, r1=0.0, r2=1.0, leak=1.0), trajectory(0, 1, r1=1.0, r2=1.0),
        trajectory(1, 0, r1=1.0, r2=0.0), trajectory(1, 1, r1=0.0, r2=0.0, hint_metrics={"hint_accuracy": 1.0}),
        trajectory(2, 0, failure="guide: ValueError", guidance=None, revision=None), trajectory(2, 1, r1=1.0, r2=1.0),
    ]  # fmt: skip
    own[5].leak_unjudged = True
    own[4].grade_t2 = None
    results = summarise(MATH, {"own": {0: own}}, "own", greedy=False, equal=equal)
    condition = results["conditions"]["own"]
    found = {key: e["value"] for key, e in condition["metrics"].items()}
    expected = trajectory_metrics(own, failed_is_wrong=True)
    for key in ("acc_t1", "acc_t2", "delta", "i2c", "c2i", "fix_rate", "break_rate", "guidance/leak",
                "guidance/leak_unjudged", "guidance/hint_accuracy", "rollout/failed", "truncated_t2",
                "guidance/length"):  # fmt: skip
        assert found[key] == pytest.approx(expected[key]), key
    assert found["acc_t2"] == 3 / 6 and condition["metrics"]["acc_t2"]["cases"] == 6
    assert condition["failures"] == {"guide: ValueError": 1} and condition["num_failed"] == 1


def test_lead_is_paired_on_the_attempts_that_were_revised_again():
    own = [trajectory(0, r2=1.0), trajectory(1, r2=1.0), trajectory(2, r2=0.0)]
    none = [trajectory(0, r2=0.0), trajectory(1, r2=1.0), trajectory(2, failure="revise: ValueError", revision=None)]
    results = summarise(MATH, {"own": {0: own}, "none": {0: none}}, "own", greedy=True, equal=equal)
    assert results["lead"]["none"]["value"] == pytest.approx(1 / 3)  # what failed is wrong, as the third is anyway
    assert results["lead"]["none"]["cases"] == 3
    table = {(r["condition"], r["metric"]): r for r in csv.DictReader(io.StringIO(to_csv(results)))}
    assert float(table["own - none", "acc_t2"]["value"]) == pytest.approx(1 / 3)
    assert float(table["none", "num_failed"]["value"]) == 1
    assert results["scaling"] == []  # greedy attempts at a problem are one


def test_failed_attempts_are_answers_that_are_not_right():
    """Of two attempts one failed: pass@2 is the other's, and its problem stays in."""
    pair = [trajectory(0, 0, r1=1.0, r2=1.0), trajectory(0, 1, failure="attempt: ValueError", revision=None)]
    pair[1].attempt = pair[1].grade_t1 = pair[1].grade_t2 = None
    whole = [trajectory(1, 0), trajectory(1, 1)]
    rows = {(r["samples"], r["measure"]): r for r in scaling(MATH, pair + whole, 2, equal)}
    assert rows["parallel", "pass@2"]["value"] == 1 / 2 and rows["parallel", "pass@2"]["cases"] == 2
    assert rows["sequential", "pass@2"]["value"] == (1 / 2 + 0) / 2


def test_scaling_by_hand():
    """One problem, attempts right, wrong; revisions right, right."""
    pair = [trajectory(0, 0, r1=1.0, r2=1.0), trajectory(0, 1, r1=0.0, r2=1.0)]
    rows = {(r["samples"], r["measure"]): r["value"] for r in scaling(MATH, pair, 1, equal)}
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


def test_options_make_the_configuration():
    assert resolve(None, [], "some/solver", None).cfg.method == "score"
    cfg = resolve(None, ["data.max_len=800"], "some/solver", "some/tutor").cfg
    assert (cfg.model_path, cfg.guidance_model_path, cfg.method) == ("some/solver", "some/tutor", "smart_score")
    assert resolve("configs/rl_guided_score_math.yaml", [], None, "none").cfg.method == "score"
    with pytest.raises(ConfigError, match="did you mean max_steps"):
        resolve(None, ["max_stepz=2"], "some/solver", None)


def shown(*parts) -> str:
    """What a terminal of 120 columns would hold of `show(console, *parts)`."""
    console = Console(record=True, width=120, file=io.StringIO())
    parts[0](console, *parts[1:])
    return console.export_text()


def test_the_table_shows_what_failed_and_which_hints_could_not_be_judged(tmp_path):
    own = [trajectory(0, r1=1.0, r2=1.0), trajectory(1, failure="revise: ValueError", revision=None)]
    own[0].leak_unjudged = True
    results = summarise(MATH, {"own": {0: own}}, "own", greedy=True, equal=equal)
    results |= {"temperature": 0, "samples": 1, "seeds": [0], "seconds": {"sampling": 1, "startup": 1}}
    text = " ".join(shown(evaluate.show, results, tmp_path).split())
    assert "failed, counted as wrong │ 1 of 2" in text
    assert re.search(r"leak_unjudged │ 0\.500 ", text)
    assert "1 of 2 failed and count as wrong under its own guidance: revise: ValueError (1)" in text


def test_the_summary_of_a_run_shows_how_many_failed(tmp_path):
    before = trajectory_metrics([trajectory(0)], failed_is_wrong=True) | {"num_problems": 1}
    after = trajectory_metrics([trajectory(0, failure="guide: X")], failed_is_wrong=True) | {"num_problems": 1}
    summary = {"method": "score", "steps": 3, "before": before, "after": after, "seconds_by_phase": {}}
    summary |= {"wall_seconds": 1.0, "peak_memory_gib": 1.0, "solver_path": None, "guidance_path": None, "best": None}
    text = " ".join(shown(show_summary, Config(output_dir=str(tmp_path)), summary).split())
    assert "num_failed │ 0 │ 1 │ +1 │ trajectories that failed; they count as wrong" in text

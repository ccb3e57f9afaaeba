"""What the report page reads from a run's files, and the HTML it makes of it; the browser's part is in tests/stack."""

import base64
import gzip
import json
import math
import random
import re
import subprocess
import sys

import pytest

from score_openrlhf.cli import main
from score_openrlhf.evaluation.statistics import bootstrap
from score_openrlhf.report.evaluations import half_widths, half_widths_of_change, hint_uses
from score_openrlhf.report.figures import change_of
from score_openrlhf.report.page import curves, render
from score_openrlhf.report.run_data import read_run, read_runs
from score_openrlhf.report.trajectories import MAX_TEXT_CHARS, embed, equal_shares, trajectory_files
from tests.support.report_runs import HOSTILE, make_run, make_trajectory


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("runs") / "finished", hostile=True)


@pytest.fixture
def unfinished(tmp_path):
    return make_run(tmp_path / "unfinished", steps=5, planned=12)


def data_of(page: str, name: str):
    packed = re.search(f'id="{name}">([^<]*)</script>', page).group(1)
    return json.loads(gzip.decompress(base64.b64decode(packed)))


def report_command(*words) -> int:
    return main(["report", *map(str, words)])


# ── the files of a run ──


def test_a_finished_run_shows_its_held_out_figures(finished):
    run = read_run(finished)
    summary = json.loads((finished / "summary.json").read_text())
    assert run.figures.before["acc_t2"] == summary["before"]["acc_t2"]
    assert run.figures.after["acc_t2"] == summary["after"]["acc_t2"]
    assert (run.method, run.planned_steps, run.last_step) == ("rl_guided_score", 12, 12)
    assert run.seconds_by_phase["rollout"] == summary["seconds_by_phase"]["rollout"]
    assert sum(run.seconds_by_phase.values()) == pytest.approx(summary["wall_seconds"])


def test_an_unfinished_run_shows_its_training_steps(unfinished):
    run = read_run(unfinished)
    lines = [json.loads(line) for line in (unfinished / "metrics.jsonl").open()]
    assert run.summary is None and run.figures.source == "training problems, as sampled"
    assert run.figures.before["acc_t1"] == lines[0]["acc_t1"]
    assert run.figures.after["acc_t1"] == lines[-1]["acc_t1"]
    assert "unfinished, 5 of 12 steps" in render([run], max_trajectories=100)


def test_evaluations_on_the_way_count_as_held_out(unfinished):
    lines = [json.loads(line) for line in (unfinished / "metrics.jsonl").open()]
    lines[-1] |= {"eval/acc_t2": 0.75, "eval/num_problems": 60}
    (unfinished / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    figures = read_run(unfinished).figures
    assert (figures.after["acc_t2"], figures.after_label, figures.source) == (0.75, "step 5", "60 held-out problems")


def test_a_cut_last_line_is_left_out_and_said(unfinished):
    with (unfinished / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "acc_t1": 0.')
    run = read_run(unfinished)
    assert run.last_step == 5
    assert "the last line of metrics.jsonl is cut" in render([run], max_trajectories=0)


def test_a_broken_line_elsewhere_is_an_error_with_its_place(unfinished):
    path = unfinished / "metrics.jsonl"
    path.write_text("{oops\n" + path.read_text())
    with pytest.raises(ValueError, match=rf"{path}:1 is not JSON"):
        read_run(unfinished)


def test_a_run_without_a_step_has_a_page(tmp_path):
    (tmp_path / "config.yaml").write_text("run_name: fresh\nstage1_steps: 4\nstage2_steps: 8\n")
    page = render(read_runs([tmp_path]), max_trajectories=100)
    assert "unfinished, 0 of 12 steps" in page and "No step is done yet." in page


def test_a_summary_older_than_the_metrics_is_not_used(finished, tmp_path):
    make_run(tmp_path / "longer", steps=6)
    summary = json.loads((tmp_path / "longer" / "summary.json").read_text()) | {"steps": 3}
    (tmp_path / "longer" / "summary.json").write_text(json.dumps(summary))
    run = read_run(tmp_path / "longer")
    assert run.summary is None and run.notes == ["summary.json is of step 3; the run has gone on since"]


def test_runs_of_one_name_are_told_apart_by_their_folders(tmp_path):
    folders = [make_run(tmp_path / name, steps=3, config={"run_name": "same"}) for name in ("a", "b")]
    assert [run.name for run in read_runs(folders)] == ["same (a)", "same (b)"]
    with pytest.raises(ValueError, match="named twice"):
        read_runs([folders[0], folders[0]])


def test_values_that_are_not_finite_are_gaps_and_are_named(unfinished):
    lines = [json.loads(line) for line in (unfinished / "metrics.jsonl").open()]
    lines[2]["solver/grad_norm"] = math.nan
    (unfinished / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    page = render([read_run(unfinished)], max_trajectories=0)
    assert "solver/grad_norm is not finite at step 3" in page
    series = data_of(page, "curves-data")["runs"][0]["series"]["solver/grad_norm"]
    assert [value is None for value in series] == [False, False, True, False, False]


# ── numbers ──


def test_curves_hold_every_metric_of_every_step(finished):
    data = curves(read_run(finished))
    assert data["steps"] == list(range(1, 13)) and data["stages"] == [1] * 4 + [2] * 8
    assert data["evaluations"]["steps"] == [0, 12]
    assert {"acc_t2", "solver/kl_t2", "guidance/reward", "solver/custom_metric"} <= data["series"].keys()
    assert all(len(values) == 12 for values in data["series"].values())


def test_a_metric_without_a_chart_of_its_own_gets_one(finished):
    charts = data_of(render([read_run(finished)], max_trajectories=0), "curves-data")["charts"]
    other = [chart["title"] for chart in charts if chart["group"] == "Everything else"]
    assert "solver/custom_metric" in other and "acc_t1" not in other


def row(problem: int, right1: bool, right2: bool, hint: str = "look") -> dict:
    trajectory = make_trajectory(random.Random(problem), problem, 0.0, 0)
    trajectory.failure = None
    value = trajectory.to_json()
    value |= {"grade_t1": "right" if right1 else "wrong", "grade_t2": "right" if right2 else "wrong"}
    text = {"text": hint, "token_ids": [1, 2], "log_prob_sum": -1.0, "truncated": False, "policy_version": 0}
    return value | {"guidance": text, "revision": text, "failure": None}


def test_half_width_is_that_of_a_proportion():
    rows = [row(i, right1=i < 30, right2=True) for i in range(100)]
    expected = 1.959964 * math.sqrt(0.3 * 0.7 / 99)
    assert half_widths(rows)["acc_t1"] == pytest.approx(expected, rel=0.05)  # of 2,000 draws
    assert half_widths(rows)["acc_t1"] == bootstrap([[i < 30] for i in range(100)]).half_width  # as `evaluate` has it
    assert math.isnan(half_widths(rows)["acc_t2"])  # all alike: nothing known about the spread


def test_samples_of_one_problem_are_one_draw():
    once = [row(i, right1=i < 30, right2=True) for i in range(100)]
    assert half_widths(once * 4)["acc_t1"] == pytest.approx(half_widths(once)["acc_t1"])


def test_change_is_paired_by_problem():
    before = [row(i, right1=i < 30, right2=True) for i in range(100)]
    after = [row(i, right1=i < 35, right2=True) for i in range(100)]  # five better, ninety-five as they were
    expected = 1.959964 * math.sqrt(0.05 * 0.95 / 99)
    assert half_widths_of_change(before, after)["acc_t1"] == pytest.approx(expected, rel=0.1)
    # fix_rate is 1 before and after, of whatever problems
    assert math.isnan(half_widths_of_change(before, after)["fix_rate"])


def test_hint_uses_count_fixes_of_wrong_attempts():
    before = [row(i, False, False, "check again") for i in range(10)]
    after = [row(i, False, i < 6, "redo the ones") for i in range(8)] + [row(8, True, True, "looks  right\n")] * 2
    first, second, third = hint_uses(before, after)
    assert (first.text, first.before, first.after, first.num_wrong, first.num_fixed) == ("redo the ones", 0, 0.8, 8, 6)
    assert (second.text, second.after, second.num_wrong) == ("looks right", 0.2, 0)
    assert (third.text, third.before, third.after) == ("check again", 1, 0)


def test_free_text_hints_make_no_table():
    assert hint_uses([], [row(i, False, True, f"hint {i}") for i in range(10)]) == []


# ── trajectories ──


def test_trajectory_files_come_evaluations_first(finished):
    labels = [file.label for file in trajectory_files(finished)]
    assert labels[:4] == ["before training", "after training", "step 1", "step 2"] and len(labels) == 14


@pytest.mark.parametrize(
    ("counts", "budget", "shares"),
    [([5, 5], 100, [5, 5]), ([100, 100], 11, [5, 6]), ([1, 100, 100], 21, [1, 10, 10]), ([], 5, []), ([3], 0, [0])],
)
def test_equal_shares(counts, budget, shares):
    assert equal_shares(counts, budget) == shares


def test_a_page_holds_at_most_its_budget_evenly(finished):
    data = embed(finished, 100)
    per_file = [sum(row[0] == index for row in data["rows"]) for index in range(len(data["files"]))]
    assert data["total"] == 2 * 60 + 12 * 24 and sum(per_file) == 100
    assert per_file[:2] == [25, 25] and set(per_file[2:]) == {4, 5}  # half for the evaluations
    assert data == embed(finished, 100)  # the same draw every time
    assert len(embed(finished, 10**6)["rows"]) == data["total"]


def test_rows_say_what_the_file_says(finished):
    data = embed(finished, 10**6)
    texts, rows = data["texts"], data["rows"]
    kept = [json.loads(line) for line in (finished / "trajectories" / "eval_after.jsonl").open()]
    mine = [row for row in rows if data["files"][row[0]]["label"] == "after training"]
    for row_, original in zip(mine, kept, strict=True):
        _, _, problem, answer, attempt, guidance, revision, grade1, _, leak, failure, _, _, facts = row_
        assert (texts[problem], texts[answer]) == (original["problem"], original["answer"])
        assert texts[attempt[0]] == original["attempt"]["text"] and texts[grade1] == original["grade_t1"]
        assert (guidance is None) == (original["guidance"] is None) and (revision is None) == (failure >= 0)
        assert leak == original["leak"] and facts == original["hint_metrics"]


def test_long_texts_lose_their_middle(tmp_path):
    folder = make_run(tmp_path / "long", steps=2, per_step=2, num_eval=2)
    path = folder / "trajectories" / "eval_after.jsonl"
    rows = [json.loads(line) for line in path.open()]
    rows[0]["attempt"]["text"] = "start " + "x" * 50_000 + " end"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    text = max(embed(folder, 100)["texts"], key=len)
    assert text.startswith("start ") and text.endswith(" end") and "42,010 characters left out" in text
    assert len(text) < MAX_TEXT_CHARS + 100


def test_a_broken_trajectory_line_is_an_error_with_its_place(unfinished):
    path = unfinished / "trajectories" / "step_000002.jsonl"
    path.write_text(path.read_text() + "{oops\n")
    with pytest.raises(ValueError, match=rf"{path}:25 is not JSON"):
        embed(unfinished, 10**6)


# ── the page and the command ──


def test_hostile_texts_are_nowhere_in_the_page_as_they_are(finished, tmp_path):
    hostile = make_run(tmp_path / "named", steps=3, hostile=True, config={"run_name": HOSTILE, "model_path": HOSTILE})
    page = render(read_runs([hostile, finished]), max_trajectories=1000)
    assert "<img" not in page and page.count("</script>") == 3
    assert "&lt;/script&gt;&lt;img src=x onerror=" in page  # the name and the hints' table, escaped
    assert HOSTILE + "revision" in data_of(page, "trajectories-data")[0]["texts"]


def test_no_text_of_a_run_becomes_an_element(tmp_path):
    """Its name, its settings, phases, metrics that are not finite, and a hint that is given again and again."""
    script = "<script>alert(1)</script>"
    folders = [make_run(tmp_path / name, steps=3, config={"run_name": script, script: name}) for name in ("a", "b")]
    summary = json.loads((folders[0] / "summary.json").read_text())
    summary["seconds_by_phase"][script] = 9.0
    (folders[0] / "summary.json").write_text(json.dumps(summary))
    with (folders[0] / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 3, script: math.nan}) + "\n")
    for name in ("eval_before", "eval_after"):
        path = folders[0] / "trajectories" / f"{name}.jsonl"
        rows = [json.loads(line) for line in path.open()]
        for given in rows:
            if given["guidance"]:
                given["guidance"]["text"] = script
        path.write_text("".join(json.dumps(given) + "\n" for given in rows))
    for chosen in (folders[:1], folders):
        page = render(read_runs(chosen), max_trajectories=1000)
        html = page.split("<script", 1)[0]  # the first script element is the page's own
        assert "alert(1)" in html and page.count("</script>") == 3
        assert html.count("&lt;script&gt;alert(1)&lt;/script&gt;") == page.count("alert(1)") >= 8


def test_the_page_asks_nothing_of_any_network(finished):
    page = render([read_run(finished)], max_trajectories=100)
    html = page.split("<script", 1)[0]
    assert "src=" not in html and all(target.startswith("#") for target in re.findall('href="([^"]*)"', html))
    assert "default-src 'none'" in page and not re.search(r"fetch\(|XMLHttpRequest|import\(|innerHTML", page)
    assert set(re.findall(r"https?://[^\"' ]*", page)) == {"http://www.w3.org/2000/svg"}


def test_a_change_that_rounds_to_nothing_has_no_sign():
    assert change_of("guidance/length", 3.43, 3.40, None) == ("+0.0", "same")
    assert change_of("acc_t2", 0.5001, 0.5, None) == ("+0.000", "same")
    assert change_of("acc_t2", 0.51, 0.50, None) == ("−0.010", "same")


def test_a_change_beyond_its_interval_is_better_or_worse():
    assert change_of("acc_t2", 0.5, 0.6, 0.05)[1] == "better" and change_of("c2i", 0.5, 0.6, 0.05)[1] == "worse"
    assert change_of("acc_t2", 0.5, 0.6, 0.15)[1] == "same" and change_of("acc_t2", None, 0.6, 0.1) == ("–", "same")


def test_comparison_names_what_makes_figures_incomparable(tmp_path):
    first = make_run(tmp_path / "one", steps=3, config={"alpha": 1.0, "eval": {"seed": 1}})
    second = make_run(tmp_path / "two", steps=3, config={"alpha": 10.0, "eval": {"seed": 2}})
    page = render(read_runs([first, second]), max_trajectories=0)
    assert "the runs differ in eval.seed." in page
    settings = page[page.index("settings in which the runs differ") :]
    assert "<code>alpha</code></th><td>1.0</td><td>10.0</td>" in settings and "<code>run_name</code>" not in settings


def test_command_writes_the_page_beside_the_run(finished, capsys):
    assert report_command(finished) == 0
    assert capsys.readouterr().out.startswith(f"{finished}/report.html (0.")
    assert (finished / "report.html").read_text().startswith("<!doctype html>")


def test_command_compares_runs_in_the_current_folder(finished, unfinished, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert report_command(finished, unfinished) == 0
    assert "2 runs</title>" in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere"], "{tmp}/nowhere is not a folder"),
        (["."], "{tmp} is not a run: it has no config.yaml and no metrics.jsonl"),
        (["unfinished", "--output", "gone/page.html"], "{tmp}/gone is not a folder"),
        (["unfinished", "--max-trajectories", "-1"], "--max-trajectories -1 is negative"),
    ],
)
def test_command_says_what_is_wrong(words, message, unfinished, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert report_command(*words) == 2
    assert message.format(tmp=tmp_path) in capsys.readouterr().err


def test_command_needs_no_torch(finished):
    code = (
        "import sys\nfrom score_openrlhf.cli import parsed\na = parsed(['report', sys.argv[1]])\nstatus = a.run(a)\n"
        "assert not {'torch', 'ray', 'vllm', 'openrlhf'} & set(sys.modules)\nsys.exit(status)"
    )
    subprocess.run([sys.executable, "-c", code, str(finished)], check=True, capture_output=True)

"""The page of results, from files of arms made by hand: its figures, its verdicts and what it leaves out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import evidence
from benchmarks.arms import ABLATIONS, ARMS, BASE, METHODS, SEEDS, STAGE1_STEPS, STAGE2_STEPS, plan
from benchmarks.evidence import CONFIG, commands, other_settings, overrides
from benchmarks.results import collect, mean_curve
from benchmarks.results_page import write
from score_openrlhf.cli.sampling import resolve
from score_openrlhf.config.compose import load_config, save

ROOT = Path(__file__).resolve().parents[2]
NUM_PROBLEMS = 100
# arm -> problems right after the revision, right after it under another problem's hint, wrong columns named of 50
FIGURES = {
    BASE: (50, 45, 15), "score": (52, 0, 0), "smart_score": (57, 45, 15), "rl_guided_score": (73, 49, 35),
    "leak_penalty": (70, 49, 34),
}  # fmt: skip


def make_arm(root: Path, seed: int, arm: str, **changes: int) -> None:
    right, shuffled, named = FIGURES[arm]
    right = changes.get("right", right)
    main = "fixed" if arm == "score" else "own"
    rows = []
    for number in range(NUM_PROBLEMS):
        rows.append({
            "condition": main, "seed": 0, "problem_id": str(number), "hint_metrics": {}, "leak": 0.0,
            "attempt": {"truncated": False}, "revision": {"truncated": False}, "failure": None,
            "guidance": None if arm == "score" else {"truncated": False, "token_ids": [1, 2],
                                                     "text": "redo the ones" if number < named else "check again"},
            "grade_t1": "right" if number < 50 else "wrong", "grade_t2": "right" if number < right else "wrong",
        })  # fmt: skip

    def value(number: float) -> dict:
        return {"value": number}

    conditions = {main: {"metrics": {"acc_t1": value(0.5), "acc_t2": value(right / 100), "c2i": value(0.0)}}}
    results = {"num_problems": NUM_PROBLEMS, "main_condition": main, "conditions": conditions}
    if arm != "score":
        conditions["own"]["metrics"] |= {"guidance/right_column_rate": value(named / 50), "guidance/leak": value(0.0)}
        conditions["fixed"] = {"metrics": {"acc_t2": value(0.5)}}
        conditions["shuffled"] = {"metrics": {"acc_t2": value(shuffled / 100)}}
        results["guidance"] = {"error_information_bits": named / 50, "distinct_2_across": 0.5 - named / 200}
    folder = root / f"seed_{seed}" / arm / "evaluation"
    folder.mkdir(parents=True)
    (folder / "evaluation.json").write_text(json.dumps(results))
    (folder / "trajectories.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if arm == BASE:
        return
    summary = {"steps": 2, "wall_seconds": 60.0, "seconds_by_phase": {"startup": 9.0}, "peak_memory_gib": 5.0}
    (folder.parent / "summary.json").write_text(json.dumps(summary))
    lines = [
        {"acc_t2": step / 10, "solver/sampled_tokens": 100, "guidance/right_column_rate": None} for step in (1, 3)
    ]
    (folder.parent / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.fixture
def root(tmp_path):
    for seed in (1, 2):
        for arm in (BASE, *METHODS):
            make_arm(tmp_path, seed, arm)
    make_arm(tmp_path, 1, "leak_penalty")
    return tmp_path


def test_figures_are_those_of_the_files(root):
    found = collect(root, [1, 2])
    assert found["seeds"] == [1, 2] and found["ablated_seed"] == 1
    arm = found["arms"]["1"]["rl_guided_score"]
    assert arm["metrics"]["acc_t2"] == 0.73 and arm["acc_t2_under"] == {"own": 0.73, "fixed": 0.5, "shuffled": 0.49}
    assert arm["training"] == {
        "steps": 2, "seconds": 60.0, "startup_seconds": 9.0, "solver_tokens": 200, "guidance_tokens": 0,
        "peak_memory_gib": 5.0,
    }  # fmt: skip
    # 16 of 100 problems are right with the one and wrong with the other: 1.96 * sqrt(0.16 * 0.84 / 99) = 0.0722
    # for a normal one, and near it for one that is drawn
    gap = next(gap for gap in found["gaps"] if gap["over"] == "smart_score" and gap["seed"] == 1)
    assert gap["gap"] == pytest.approx(0.16) and gap["half_width"] == pytest.approx(0.0722, abs=0.005)


def test_verdicts_by_hand(root):
    holds = {
        (claim["claim"].split(",")[0], claim["seed"]): claim["holds"] for claim in collect(root, [1, 2])["claims"]
    }
    assert holds["acc_t2 above smart_score", 1] and holds["acc_t2 above score", 2]
    assert holds["right-column rate above the start", 1]  # 0.70 - 0.30
    assert holds["guidance of another problem above the fixed text", 1]  # 0.49 - 0.50
    assert holds["bits that the hint tells about the error", 1]
    assert not holds["diversity of the hints (distinct-2 over problems)", 1]  # 0.325 against 0.425


def test_the_page_says_what_does_not_hold(tmp_path):
    for arm in (BASE, *METHODS):
        make_arm(tmp_path, 1, arm, **({"right": 65} if arm == "rl_guided_score" else {}))
    page = write(tmp_path, seeds=[1], page=tmp_path / "page.md", plot=tmp_path / "images" / "plot.svg").read_text()
    lines = {line.split(" | ")[0]: line for line in page.splitlines()}
    assert lines["| acc_t2 above smart_score"] == "| acc_t2 above smart_score | 0.100 | +0.080 | **no** (seed 1) |"
    assert lines["| acc_t2 above score"].endswith("| yes |")
    assert (tmp_path / "images" / "plot.svg").is_file() and "(images/plot.svg)" in page
    assert json.loads((tmp_path / "results.json").read_text())["seeds"] == [1]
    assert "Ablations" not in page  # none was run


def test_unfinished_arms_and_other_seeds_are_left_out(root):
    (root / "seed_2" / "smart_score" / "evaluation" / "evaluation.json").unlink()
    found = collect(root, [2])
    assert list(found["arms"]) == ["2"] and "smart_score" not in found["arms"]["2"]
    assert {gap["over"] for gap in found["gaps"]} == {"score"}
    with pytest.raises(ValueError, match="no finished arm of seeds \\[3\\]"):
        collect(root, [3])


def test_plan_has_every_method_on_every_seed_and_ablations_on_the_first():
    arms = plan()
    assert len(arms) == len(METHODS) * len(SEEDS) + len(ABLATIONS)
    assert {seed for seed, arm in arms if arm in ABLATIONS} == {SEEDS[0]}
    assert plan((5, 6), ("score", "no_shaping")) == [(5, "score"), (5, "no_shaping"), (6, "score")]


@pytest.mark.parametrize("arm", ARMS)
def test_every_arm_is_a_configuration_that_loads_and_trains_as_long(arm, monkeypatch):
    monkeypatch.chdir(ROOT)
    train, _, _ = commands(101, arm)
    cfg = load_config(train[1], train[2:]).cfg
    assert cfg.seed == cfg.playground.warm_start_seed == 101
    assert cfg.stage1_steps + cfg.stage2_steps == STAGE1_STEPS + STAGE2_STEPS


def test_an_arm_of_other_settings_is_seen(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    now = load_config(CONFIG, overrides(101, "score"))
    assert other_settings(tmp_path, now) == "it has no config.yaml"
    save(now, str(tmp_path / "config.yaml"))
    assert other_settings(tmp_path, now) == ""
    later = load_config(CONFIG, [*overrides(101, "score"), "beta1=0.02", "ray.num_cpus=3"])
    assert other_settings(tmp_path, later) == "beta1 was 0.01 and is 0.02"
    (tmp_path / "config.yaml").write_text("no_such_key: 1\n")
    assert "unknown key no_such_key" in other_settings(tmp_path, now)


def test_an_arm_of_other_settings_is_kept_aside_and_done_anew(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(evidence, "ROOT", tmp_path)
    typed: list[list[str]] = []
    monkeypatch.setattr(evidence, "command", lambda words: typed.append(words) or 0)
    folder = tmp_path / "seed_101"
    for arm in (BASE, "score", "smart_score"):
        make_arm(tmp_path, 101, arm)
    start = str(folder / "playground" / "model")
    save(
        resolve(CONFIG, evidence.base_overrides(101), start, start), str(folder / BASE / "evaluation" / "config.yaml")
    )
    for arm in ("score", "smart_score"):
        save(load_config(CONFIG, overrides(101, arm)), str(folder / arm / "config.yaml"))
    assert evidence.do(101, "score") == 0 and typed == []
    save(load_config(CONFIG, [*overrides(101, "score"), "beta1=0.02"]), str(folder / "score" / "config.yaml"))
    assert evidence.do(101, "score") == 0 and evidence.do(101, "smart_score") == 0
    assert [words[0] for words in typed] == ["playground", "evaluate"]
    assert (folder / "score-1" / "summary.json").is_file() and not (folder / "score").exists()


def test_mean_curve_by_hand():
    assert mean_curve([[0.0, 1.0, None], [0.2, 0.6, 0.4]], 2) == pytest.approx([0.1, 0.45, 0.6666667])

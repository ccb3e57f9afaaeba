"""The same `evaluate` command goes on where it stopped, and never with what was made under other settings."""

from __future__ import annotations

import json
from contextlib import contextmanager
from types import SimpleNamespace

import pytest

import score_openrlhf  # noqa: F401  before OpenRLHF, which imports flash_attn

# isort: split
from score_openrlhf.cli import parsed
from score_openrlhf.config.evaluation import BLOCK_BYTES, weights_digest
from score_openrlhf.errors import status_of
from score_openrlhf.evaluation import run as evaluation_run
from score_openrlhf.evaluation import session
from score_openrlhf.tasks.math import MathTask
from tests.support.fakes import trajectory

ROWS = 4


@pytest.fixture
def bench(tmp_path, monkeypatch):
    """The command with conditions that are made without engines; `stop_after` rows Ctrl-C is pressed."""
    rows = [{"problem": f"{n} plus 1?", "answer": str(n + 1)} for n in range(ROWS)]
    (tmp_path / "problems.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name in ("model", "tutor"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text('{"model_type": "qwen2"}')
    state = SimpleNamespace(folder=tmp_path, out=tmp_path / "out", stop_after=None, sampled=[], started=0)

    @contextmanager
    def running_models(cfg, output_dir, console):
        state.started += 1
        yield SimpleNamespace(task=MathTask(), pool=None, guidance=[])

    def conditions(runner, problems, cfg, settings, report, kept):
        for seed in settings.seeds:
            rows = kept.under("fixed", seed)
            found = []
            for group in range(len(problems)):
                if state.stop_after is not None and len(state.sampled) >= state.stop_after:
                    raise KeyboardInterrupt
                done = rows.get(group, 0)
                if done is None:
                    state.sampled.append((seed, group))
                    done = trajectory(group, r2=float(group % 2))
                    rows.add(done)
                found.append(done)
            collected = {"fixed": {seed: found}}
        return collected

    monkeypatch.setattr(session, "running_models", running_models)
    monkeypatch.setattr(session, "ask", lambda cfg, templates, sets, *_, **__: sets)
    monkeypatch.setattr(evaluation_run, "evaluate", conditions)
    monkeypatch.setattr(evaluation_run, "main_condition", lambda runner: "fixed")
    monkeypatch.setattr("score_openrlhf.platform.start_fork_server", lambda: None)
    return state


def command(bench, *words: str, stop_after: int | None = None) -> int:
    """What the command's exit status is; `bench.sampled` is what it sampled."""
    bench.stop_after = stop_after
    bench.sampled.clear()
    args = parsed([
        "evaluate", "--solver", str(bench.folder / "model"), "--problems", str(bench.folder / "problems.jsonl"),
        "--output", str(bench.out), "--seeds", "3", "--temperature", "0", *words,
    ])  # fmt: skip
    return status_of(lambda: args.run(args))


def test_it_goes_on_where_ctrl_c_stopped_it(bench, capsys):
    assert command(bench, stop_after=3) == 130
    said = capsys.readouterr().err
    assert "interrupted: 3 finished trajectories are kept in" in said and "the same command goes on" in said
    assert not (bench.out / "evaluation.json").exists() and (bench.out / "config.yaml").is_file()
    assert command(bench) == 0
    assert bench.sampled == [(3, 3)] and "going on: 3 trajectories" in capsys.readouterr().out
    rows = [json.loads(line) for line in (bench.out / "trajectories.jsonl").open()]
    assert [row["group"] for row in rows] == [0, 1, 2, 3]
    assert not (bench.out / "progress.jsonl").exists()
    results = json.loads((bench.out / "evaluation.json").read_text())
    assert results["conditions"]["fixed"]["metrics"]["acc_t2"]["value"] == 0.5


def test_what_is_finished_is_shown_and_not_done_again(bench, capsys):
    assert command(bench) == 0
    first = capsys.readouterr().out
    assert command(bench) == 0 and bench.sampled == [] and bench.started == 1
    again = capsys.readouterr().out
    assert "evaluated already" in again and again.endswith(first[first.index("acc_t1") :])
    assert command(bench, "--json") == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["num_problems"] == ROWS and "evaluated already" in err
    assert command(bench, "--no-resume") == 0 and len(bench.sampled) == ROWS
    assert (bench.folder / "out-1" / "evaluation.json").is_file()


@pytest.mark.parametrize("finished", [False, True])
@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--samples", "2"], "eval.num_samples was 1 and is 2"),
        (["--seeds", "3,4"], "eval.seed was [3] and is [3, 4]"),
        (["rollout.revision_max_tokens=7"], "rollout.revision_max_tokens was"),
        (["templates.static_revision=Again."], "templates.static_revision was None and is Again."),
        (["--no-controls"], "controls was True and is False"),
    ],
)
def test_a_changed_setting_is_named_and_nothing_is_mixed(bench, capsys, words, named, finished):
    command(bench, stop_after=None if finished else 3)
    (bench.out / "mine.txt").write_text("anyone's")
    capsys.readouterr()
    assert command(bench, *words) == 0
    said = capsys.readouterr().out
    assert "is of other settings (" in said and named in said and f"is kept as {bench.folder / 'out-1'}" in said
    assert len(bench.sampled) >= ROWS
    assert (bench.folder / "out-1" / ("evaluation.json" if finished else "progress.jsonl")).is_file()
    assert (bench.out / "mine.txt").is_file()  # what is not the command's stays where it is


def test_a_model_that_was_trained_since_is_another(bench, capsys):
    weights = bench.folder / "model" / "model.safetensors"
    content = bytearray(70 * BLOCK_BYTES)
    weights.write_bytes(content)
    command(bench, stop_after=3)
    for place in range(0, len(content), BLOCK_BYTES):
        content[place] = 1
    weights.write_bytes(content)
    capsys.readouterr()
    assert command(bench) == 0 and len(bench.sampled) == ROWS
    assert "the solver's files changed" in capsys.readouterr().out


def test_a_folder_of_an_earlier_version_is_kept_aside(bench, capsys):
    bench.out.mkdir()
    (bench.out / "evaluation.json").write_text('{"num_problems": 3}')
    assert command(bench) == 0 and len(bench.sampled) == ROWS
    assert "it does not say what it measured" in capsys.readouterr().out


def test_the_digest_of_a_hub_name_is_none(tmp_path):
    assert weights_digest("owner/name") is None and weights_digest(None) is None


def test_a_run_is_not_evaluated_twice_at_once(bench, capsys):
    from score_openrlhf.journal import Journal, settings_in

    command(bench, stop_after=3)
    journal = Journal.open(bench.out / "progress.jsonl", settings_in(bench.out / "progress.jsonl"))
    assert command(bench) == 2 and "another process writes" in capsys.readouterr().err
    journal.close()

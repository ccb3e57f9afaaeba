"""The console command: help at once, overrides anywhere."""

import subprocess
import sys
import time
from pathlib import Path

from score_openrlhf.cli import COMMANDS, main, overrides_after_config


def test_help_imports_nothing_heavy():
    script = (
        "import sys, contextlib\n"
        "from score_openrlhf.cli import main\n"
        "with contextlib.suppress(SystemExit): main(['--help'])\n"
        "heavy = {'torch', 'ray', 'vllm', 'deepspeed', 'transformers', 'openrlhf'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for command in COMMANDS:
        assert command in done.stdout
    assert time.perf_counter() - start < 30  # a second on an idle machine; imports of torch alone would take longer


def test_overrides_may_stand_after_options():
    words = ["plan", "c.yaml", "--gpus", "8", "a.b=1", "--json", "c=[1,2]"]
    assert overrides_after_config(words) == ["plan", "c.yaml", "a.b=1", "c=[1,2]", "--gpus", "8", "--json"]
    assert overrides_after_config(["solve", "what is x=1?"]) == ["solve", "what is x=1?"]


def test_overrides_may_stand_anywhere_beside_a_run_s_folder(tmp_path):
    run, output = str(tmp_path / "run"), str(tmp_path / "evaluation")  # an evaluation's folder has a config.yaml too
    for folder in (run, output):
        Path(folder).mkdir()
        Path(folder, "config.yaml").touch()
    words = ["evaluate", "--output", output, run, "--no-controls", "data.max_len=20"]
    wanted = ["evaluate", "--output", output, run, "data.max_len=20", "--no-controls"]
    assert overrides_after_config(words) == wanted
    assert overrides_after_config(["evaluate", "data.max_len=20", "--output", output, run]) == [
        "evaluate", "--output", output, run, "data.max_len=20",
    ]  # fmt: skip


def test_a_dry_run_prints_the_plan(capsys):
    words = ["configs/rl_guided_score_7b_8gpu.yaml", "--gpus", "8", "--json"]
    assert main(["plan", *words]) == 0
    planned = capsys.readouterr().out
    assert main(["train", *words, "--dry-run"]) == 0
    assert capsys.readouterr().out == planned


def test_wrong_key_is_answered_with_the_nearest_and_status_two(capsys):
    assert main(["train", "configs/playground.yaml", "alpah=3"]) == 2
    message = capsys.readouterr().err
    assert "alpah" in message and "alpha" in message

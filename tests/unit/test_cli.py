"""The console command: help at once, overrides anywhere."""

import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from score_openrlhf.cli import COMMANDS, main, parsed


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


def test_overrides_and_the_configuration_may_stand_between_the_options():
    for words in (
        ["c.yaml", "--gpus", "8", "a.b=1", "--json", "c=[1,2]"], ["--gpus=8", "a.b=1", "--json", "c=[1,2]", "c.yaml"],
        ["a.b=1", "c.yaml", "c=[1,2]", "--json", "--gpus", "8"],
    ):  # fmt: skip
        args = parsed(["plan", *words])
        assert (args.config, args.overrides, args.gpus, args.json) == ("c.yaml", ["a.b=1", "c=[1,2]"], 8, True)


def test_an_option_s_value_is_no_configuration(tmp_path):
    run, output = str(tmp_path / "lr=1e-6"), str(tmp_path / "evaluation")  # whose folder has such a file too
    for folder in (run, output):
        Path(folder).mkdir()
        Path(folder, "config.yaml").touch()
    for words in (
        ["--output", output, run, "--no-controls", "data.max_len=20"],
        ["data.max_len=20", "--no-controls", "--output", output, run],
    ):
        args = parsed(["evaluate", *words])
        assert (args.config, args.overrides, args.output, args.controls) == (run, ["data.max_len=20"], output, False)
    assert parsed(["playground", "a=1", "playground"]).config == "playground"
    assert parsed(["report", "--output", "playground", "x"]).runs == ["x"]


def test_a_problem_is_told_from_an_override():
    for text in ("What is x if x=2?", "x=2, y=3: what is x + y?", "2=x", "x"):
        words = ["max_stepz=2", text, "data.max_len=64", "--json", "generation.prompt=a b", "playground"]
        args = parsed(["solve", *words])
        assert args.overrides == ["max_stepz=2", "data.max_len=64", "generation.prompt=a b"]
        assert (args.texts, args.config) == ([text], "playground")


@pytest.mark.parametrize(("words", "message"), [
    (["plan"], "CONFIG is missing"), (["train", "a=1"], "CONFIG is missing"), ([], "COMMAND"),
    (["plan", "a.yaml", "b.yaml"], "one CONFIG at most, not a.yaml and b.yaml"),
    (["solve", "What", "is 2?"], "put the problem in quotes"),
    (["--json", "plan", "playground"], "unrecognized|comes first"),
    (["trian", "playground"], "invalid choice: 'trian'"),
    (["plan", "playground", "--gpu", "8"], "ambiguous option: --gpu"),
])  # fmt: skip
def test_words_that_cannot_be_read_are_answered_with_status_two(words, message, capsys):
    try:
        status = main(words)
    except SystemExit as ended:  # argparse's own
        status = ended.code
    assert status == 2 and re.search(message, capsys.readouterr().err)


def test_a_dry_run_prints_the_plan(capsys):
    words = ["configs/rl_guided_score_7b_8gpu.yaml", "--gpus", "8", "--json"]
    assert main(["plan", *words]) == 0
    planned = capsys.readouterr().out
    assert main(["train", *words, "--dry-run"]) == 0
    shown = capsys.readouterr()
    assert shown.out == planned
    assert "are not asked here, for model_path, data.train, data.eval would have to be downloaded" in shown.err


def test_wrong_key_is_answered_with_the_nearest_and_status_two(capsys):
    assert main(["train", "configs/playground.yaml", "alpah=3"]) == 2
    message = capsys.readouterr().err
    assert "alpah" in message and "alpha" in message

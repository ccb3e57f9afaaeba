"""docs/extending.md, followed on a copy of the tree: every example does what the page says."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"```(?:python|yaml)\n# (?P<file>\S+?)(?:, (?P<place>[^\n]+))?\n(?P<text>.*?)```", re.DOTALL)
MAX_LINES = 45  # of a guidance reward or a baseline, all files together


def blocks(section: str) -> list[re.Match[str]]:
    page = (ROOT / "docs" / "extending.md").read_text()
    found = re.search(rf"^## {section}$(.*?)(?=^## |\Z)", page, re.DOTALL | re.MULTILINE)
    assert found, section
    return list(BLOCK.finditer(found.group(1)))


def put(tree: Path, block: re.Match[str]) -> None:
    """What a reader does with a block."""
    file, place, text = tree / block["file"], block["place"], block["text"]
    if place is None:
        assert not file.exists()
        file.write_text(text)
    elif place == "at the end":
        file.write_text(file.read_text() + "\n\n" + text)
    else:
        before = file.read_text()
        head = re.search(rf"^{place.removeprefix('in ')}\b.*\{{\n", before, re.MULTILINE)
        assert head, place
        file.write_text(before[: head.end()] + text + before[head.end() :])


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("scratch")
    for name in ("score_openrlhf", "configs"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for section in ("A guidance reward", "A baseline", "A task", "A method", "A schedule"):
        for block in blocks(section):
            put(folder, block)
    return folder


@pytest.fixture(scope="module")
def asked(tree) -> dict:
    """What the copy says, in one process of its own."""
    code = """
import json, torch
from contextlib import contextmanager
from pathlib import Path
from score_openrlhf.config.choices import GUIDANCE_BASELINES, SCHEDULES
from score_openrlhf.cluster.placement import place
from score_openrlhf.config.compose import load_config
from score_openrlhf.config.policies import learning_specs
from score_openrlhf.config.reference import reference
from score_openrlhf.config.validate import validate
from score_openrlhf.experience.baselines import Draws, baseline_of
from score_openrlhf.experience.guidance import own_reward
from score_openrlhf.objective import guidance_rewards
from score_openrlhf.tasks import make_task
from score_openrlhf.trainer.run import trainer_class
from types import SimpleNamespace as N

words = ["guidance.reward=repair", "guidance.baseline=median", "rollout.schedule=phased_awake", "model_path=x"]
cfg = load_config("configs/guidance_alone_math.yaml", words).cfg
validate(cfg, check_paths=False)
t = torch.tensor
returns = t([1.0, 0.0, 0.0, 1.0, 9.0])
draws = Draws(returns, t([0] * 5), t([0, 1, 2, 3, 4]), returns, t([True, True, True, True, False]))
task = make_task("my_task.py:Parity")
events = []
@contextmanager
def awake(*names):
    events.append(["wake", *names]); yield; events.append(["sleep", *names])
import score_openrlhf.rollout.generator as generator
generator.collect_phased = lambda *args, guided, awake, **options: [awake("solver").__enter__(), guided, options][1:]
print(json.dumps({
    "names": [name for name in ("repair", "median", "guidance_alone", "phased_awake") if name in reference()],
    "repair": guidance_rewards(t([0.0, 1.0, 0.0]), t([1.0, 1.0, 0.0]), t([0.0, 0.0, 1.0]), kind="repair",
                               leak_penalty=0.5).tolist(),
    "median": baseline_of(GUIDANCE_BASELINES, "median")(draws).tolist(),
    "short": own_reward("my_reward.py:short_hints")(N(r2=1.0, guidance=N(token_ids=[1] * 10))),
    "grades": [task.grade(text, "even").status for text in ("It is odd. No, even.", "odd", "seven")],
    "learning": [spec.name for spec in learning_specs(cfg)],
    "roles": list(place(cfg).roles),
    "trainer": trainer_class(cfg).__name__,
    "collected": SCHEDULES["phased_awake"].load()([], [], None, models=("solver", "guidance"), awake=awake, limit=1),
    "events": events,
}))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tree, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(tree)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_every_name_is_in_the_reference_of_the_configuration(asked):
    assert asked["names"] == ["repair", "median", "guidance_alone", "phased_awake"]


def test_a_guidance_reward_by_name_and_by_file(asked):
    assert asked["repair"] == [1.0, 0.0, -0.5]
    assert asked["short"] == pytest.approx(0.99)


def test_a_baseline_leaves_its_own_row_and_masked_ones_out(asked):
    assert asked["median"] == [0.0, 1.0, 1.0, 0.0, 0.0]


def test_a_task_grades(asked):
    assert asked["grades"] == ["right", "wrong", "unparsable"]


def test_a_method_that_trains_the_guidance_model_alone(asked):
    assert asked["learning"] == ["guidance"] and asked["trainer"] == "SCoReTrainer"
    assert asked["roles"] == ["solver_engines", "guidance_actor", "guidance_engines", "guidance_reference"]


def test_a_schedule_gets_the_models_and_what_wakes_them(asked):
    assert asked["collected"] == [True, {"limit": 1}]
    assert asked["events"][0] == ["wake", "solver", "guidance"] and asked["events"][-1] == [
        "sleep",
        "solver",
        "guidance",
    ]


@pytest.mark.parametrize(("section", "names"), [("A guidance reward", "repair|reward"), ("A baseline", "median")])
def test_a_reward_or_a_baseline_is_short(section, names):
    lines = sum(len(block["text"].splitlines()) for block in blocks(section))
    assert 0 < lines <= MAX_LINES

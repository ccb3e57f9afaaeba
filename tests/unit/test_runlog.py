"""What a run writes for its trackers, and what a resumed run makes of it."""

from __future__ import annotations

import json

from score_openrlhf.config.schema import Config
from score_openrlhf.trainer.runlog import RunLog
from tests.support.wandb_files import read_steps


def log(folder, first_step: int, *steps: int) -> None:
    cfg = Config()
    cfg.run_name, cfg.logger.wandb_mode, cfg.logger.tensorboard = "mine", "offline", False
    run_log = RunLog(cfg, folder, first_step=first_step)
    for step in steps:
        run_log.step(step, {"stage": 1 if step < 3 else 2, "guidance/reward": step / 10, "fix_rate": None, "why": "x"})
    run_log.close()


def test_resumed_run_goes_on_in_the_same_tracker(tmp_path):
    """Interrupted after step 3 with a checkpoint at step 2: step 3 is logged again, under the one id."""
    log(tmp_path, 0, 1, 2, 3)
    first = list(tmp_path.glob("wandb/offline-run-*/run-*.wandb"))
    history = read_steps(tmp_path, 3)
    assert [line["step"] for line in history] == [1, 2, 3]
    assert [line["stage"] for line in history] == [1, 1, 2]
    assert history[2]["guidance/reward"] == 0.3 and not {"fix_rate", "why"} & set(history[2])
    first[0].parent.rename(tmp_path / "first")
    log(tmp_path, 3, 3, 4)
    second = list(tmp_path.glob("wandb/offline-run-*/run-*.wandb"))
    assert [path.name for path in second] == [path.name for path in first]
    assert [line["step"] for line in read_steps(tmp_path, 2)] == [3, 4]
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4]

"""The loop around the steps, with steps, evaluations and saving stood in for."""

from __future__ import annotations

import os
import signal
from types import SimpleNamespace

import pytest

from score_openrlhf.cluster.stop import Stopped, StopRequest
from score_openrlhf.trainer.hack_monitor import HackMonitor
from score_openrlhf.trainer.score import SCoReTrainer


class _Trainer(SCoReTrainer):
    """Evaluates to given accuracies and notes what it saves."""

    def __init__(self, accuracies: list[float], *, eval_steps: int, save_steps: int):
        self.cfg = SimpleNamespace(
            eval=SimpleNamespace(steps=eval_steps, before_and_after=True),
            ckpt=SimpleNamespace(save_steps=save_steps),
            carry_optimizer=True,
        )
        self.stages = SimpleNamespace(num_steps=len(accuracies), switch_step=None, observe=lambda *_: False)
        self.run_log = self.progress = SimpleNamespace(step=lambda *_: None)
        self.accuracies, self.eval_problems = accuracies, ["problem"]
        self.hack_monitor = HackMonitor()
        self.step, self.best, self.saved_step = 0, None, 0
        self.evaluation_settings = {}
        self.saved: list[tuple[int, int | None]] = []

    def train_step(self):
        self.step += 1
        return {}

    def evaluate(self, name):
        return {"acc_t2": self.accuracies[self.step - 1]}

    def save(self):
        self.saved.append((self.step, self.best and self.best["step"]))
        self.saved_step = self.step


@pytest.mark.parametrize(
    ("eval_steps", "save_steps", "saved"),
    [
        # after steps 1 and 2 the pair is the best so far and saved at once; after 3 and 4 it is not; 5 is the last
        (1, -1, [(1, 1), (2, 2), (5, 2)]),
        (2, 3, [(2, 2), (3, 2), (5, 2)]),  # evaluated after 2 (0.6) and 4 (0.5)
        (-1, 2, [(2, None), (4, None), (5, None)]),
    ],
)
def test_the_best_pair_by_held_out_acc_t2_is_saved_and_kept(eval_steps, save_steps, saved):
    trainer = _Trainer([0.5, 0.6, 0.6, 0.5, 0.9], eval_steps=eval_steps, save_steps=save_steps)
    trainer.fit()
    assert trainer.saved == saved  # (step saved, step protected)


def test_the_evaluation_after_training_counts_too():
    trainer = _Trainer([0.5, 0.6], eval_steps=1, save_steps=-1)
    trainer.fit()
    assert trainer.best == {"step": 1, "acc_t2": 0.5}
    assert trainer.note_best({"acc_t2": 0.6})
    assert trainer.best == {"step": 2, "acc_t2": 0.6}


@pytest.fixture
def stop_request(monkeypatch) -> StopRequest:
    """A request of the test's own, which takes SIGUSR1 for the test."""
    request = StopRequest()
    monkeypatch.setattr("score_openrlhf.trainer.score.stop_request", request)
    before = signal.getsignal(signal.SIGUSR1)
    request.listen()
    yield request
    signal.signal(signal.SIGUSR1, before)


@pytest.mark.parametrize("save_steps", [-1, 2])
def test_a_signal_ends_the_run_after_its_step_with_a_checkpoint(stop_request, save_steps):
    trainer = _Trainer([0.5] * 5, eval_steps=-1, save_steps=save_steps)
    step = trainer.train_step

    def step_with_a_signal_in_the_second():
        if trainer.step == 1:
            os.kill(os.getpid(), signal.SIGUSR1)
        return step()

    trainer.train_step = step_with_a_signal_in_the_second
    with pytest.raises(Stopped, match="after step 2 of 5"):
        trainer.fit()
    assert trainer.saved == [(2, None)]  # once, also where step 2 is one that is saved anyway


def test_a_signal_while_it_starts_lets_it_make_one_step(stop_request):
    """A job whose time limit is close whenever it has started would be requeued for ever."""
    os.kill(os.getpid(), signal.SIGUSR1)
    trainer = _Trainer([0.5] * 5, eval_steps=-1, save_steps=-1)
    with pytest.raises(Stopped, match="after step 1 of 5"):
        trainer.fit()
    assert trainer.saved == [(1, None)]

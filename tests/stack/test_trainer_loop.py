"""The loop around the steps, with steps, evaluations and saving stood in for."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from score_openrlhf.trainer.score import SCoReTrainer


class _Trainer(SCoReTrainer):
    """Evaluates to given accuracies and notes what it saves."""

    def __init__(self, accuracies: list[float], *, eval_steps: int, save_steps: int):
        self.cfg = SimpleNamespace(
            eval=SimpleNamespace(steps=eval_steps), ckpt=SimpleNamespace(save_steps=save_steps), carry_optimizer=True
        )
        self.stages = SimpleNamespace(num_steps=len(accuracies), switch_step=None, observe=lambda *_: False)
        self.run_log = self.progress = SimpleNamespace(step=lambda *_: None)
        self.accuracies, self.eval_problems = accuracies, ["problem"]
        self.step, self.best = 0, None
        self.saved: list[tuple[int, int | None]] = []

    def train_step(self):
        self.step += 1
        return {}

    def evaluate(self, name):
        return {"acc_t2": self.accuracies[self.step - 1]}

    def save(self):
        self.saved.append((self.step, self.best and self.best["step"]))


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

"""A DeepSpeed engine in; the same with Adam and its learning-rate schedule at their start, or further on, out."""

from __future__ import annotations

import functools
import math
from typing import Any

import torch

from score_openrlhf.policies.finite import nonfinite_weight


def restart_adam(adam: torch.optim.Optimizer) -> None:
    """Zero moments and step counts in place: the next step is that of a new optimizer on the same weights.

    In place, because ZeRO-2 and the offloaded states of ZeRO-3 hold on to the tensors. torch counts steps in a tensor,
    DeepSpeed's FusedAdam and CPUAdam in an int (deepspeed/ops/adam/): left as it is, the first moments after the reset
    would be taken for long averages, and the first updates be a fraction of what they should be.
    """
    for state in adam.state.values():
        for value in state.values():
            if isinstance(value, torch.Tensor):
                value.zero_()
    for counted in (*adam.state.values(), *adam.param_groups):
        if isinstance(counted.get("step"), int):
            counted["step"] = 0


def use_schedule(engine: Any, num_steps: int, warmup_ratio: float, *, done: int) -> None:
    """Put a DeepSpeed engine `done` optimizer steps into its learning-rate schedule, made `num_steps` long."""
    # the factory that the host gave to deepspeed.initialize (openrlhf/utils/deepspeed/deepspeed.py, sched_factory)
    factory = functools.partial(
        engine.client_lr_scheduler, num_warmup_steps=math.ceil(num_steps * warmup_ratio), num_training_steps=num_steps
    )
    scheduler = engine.lr_scheduler
    scheduler.lr_lambdas = factory(engine.basic_optimizer).lr_lambdas
    scheduler.last_epoch = done - 1
    scheduler.step()


class Learner:
    """A rank of a policy or of the critic: its optimizer can start anew and its schedule can have another length."""

    @property
    def engine(self) -> Any:
        """DeepSpeed's engine."""
        raise NotImplementedError

    @property
    def schedule(self) -> Any:
        """The arguments that hold `lr_warmup_ratio`."""
        raise NotImplementedError

    def nonfinite_weight(self) -> str:
        """The first weight that is not finite, "" if all are; all ranks are asked at once."""
        return nonfinite_weight(self.engine)

    def reset_optimizer(self, scheduler_steps: int) -> None:
        """Start Adam and the schedule, `scheduler_steps` long, anew; the weights stay."""
        restart_adam(self.engine.basic_optimizer)
        use_schedule(self.engine, scheduler_steps, self.schedule.lr_warmup_ratio, done=0)

    def resume_schedule(self, scheduler_steps: int) -> None:
        """Go on in a schedule of `scheduler_steps` where the checkpoint left it."""
        done = self.engine.lr_scheduler.last_epoch
        use_schedule(self.engine, scheduler_steps, self.schedule.lr_warmup_ratio, done=done)

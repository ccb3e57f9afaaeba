"""Steps and phases in; a live bar on a terminal, plain lines elsewhere, out."""

from __future__ import annotations

import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as Bars

from score_openrlhf.errors import printable


class Progress:
    """Shows step, stage, phase, both policies' rewards, tokens per second and the time left."""

    def __init__(self, num_steps: int, first_step: int = 0, console: Console | None = None):
        self.console = console or Console()
        self.num_steps = num_steps
        self.first_step = first_step
        self.started = time.perf_counter()
        self.live = self.console.is_terminal
        self.bars: Bars | None = None
        self.current = "the start-up"  # what is going on
        if self.live:
            self.bars = Bars(
                TextColumn("{task.description}"),
                BarColumn(bar_width=None),
                TextColumn("{task.fields[status]}"),
                console=self.console,
                transient=True,
                expand=True,
            )
            self.task = self.bars.add_task("starting", total=num_steps, completed=first_step, status="")
            self.bars.start()

    def phase(self, name: str, step: int, total: int | None = None) -> None:
        """Say what is being done now; `total` announces a long phase."""
        self.current = f"{name} of step {step + 1}"
        if self.bars:
            number = min(step + 1, self.num_steps)  # what follows the last step belongs to it
            self.bars.update(self.task, description=f"step {number}/{self.num_steps} {name}", total=self.num_steps)
        elif total:
            self.console.print(f"{name}: {total} trajectories", highlight=False)

    def where(self) -> str:
        """What is going on, for the message of a failure: `revise of step 3`."""
        return self.current

    def step(self, step: int, metrics: dict[str, Any]) -> None:
        """A step is done: one line with the numbers people watch."""

        def number(key: str, form: str) -> str:
            return format(metrics[key], form) if metrics.get(key) is not None else "-"

        done = step - self.first_step
        left = (time.perf_counter() - self.started) / max(done, 1) * (self.num_steps - step)
        line = (
            f"step {step}/{self.num_steps} stage {metrics.get('stage', '-')}  acc {number('acc_t1', '.3f')} -> "
            f"{number('acc_t2', '.3f')}  i2c {number('i2c', '.3f')}  c2i {number('c2i', '.3f')}  "
            f"solver {number('solver/reward', '.3f')} |grad| {number('solver/grad_norm', '.2f')}  "
        )
        if metrics.get("guidance/reward") is not None:
            line += f"guidance {number('guidance/reward', '.3f')} |grad| {number('guidance/grad_norm', '.2f')}  "
        line += f"{number('tokens_per_second', '.0f')} tok/s  {number('timing/total', '.1f')} s  left {clock(left)}"
        if self.bars:
            rewards = " ".join(f"{name} {number(f'{name}/reward', '.2f')}" for name in ("solver", "guidance")
                               if metrics.get(f"{name}/reward") is not None)  # fmt: skip
            status = f"{rewards} {number('tokens_per_second', '.0f')} tok/s left {clock(left)}"
            self.bars.update(self.task, completed=step, status=status)
        self.console.print(line, highlight=False, soft_wrap=True)

    def note(self, text: str) -> None:
        """A line about something that happens once."""
        self.console.print(printable(text), highlight=False, markup=False, soft_wrap=True)

    def close(self) -> None:
        if self.bars:
            self.bars.stop()


def clock(seconds: float) -> str:
    """`1:02:03` or `2:03`."""
    minutes, secs = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{secs:02d}" if hours else f"{minutes}:{secs:02d}"

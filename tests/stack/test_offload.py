"""What saves memory changes no number: a run with everything in host memory and layers computed again."""

from __future__ import annotations

import pytest


def test_offload_of_weights_and_optimizer_and_checkpointing_change_no_number(bench, guided_run):
    """Step 1 of the plain run once more; on CPU machines it is DeepSpeed's way through host memory that is tested."""
    saving = {
        "ds.adam_offload": "true",
        "ds.param_offload": "true",
        "ref.offload": "true",
        "actor.gradient_checkpointing_enable": "true",
    }
    run = bench.train("offloaded", **saving, max_steps=1, **{"eval.before_and_after": "false"})
    (line,) = run.metrics
    for key in ("solver/loss", "solver/grad_norm", "guidance/loss", "guidance/grad_norm", "acc_t1"):
        assert line[key] == pytest.approx(guided_run.metrics[0][key], rel=1e-4, abs=1e-6), key

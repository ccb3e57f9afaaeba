"""What stands in on GPU machines for what is not installed: run here on a CPU, through the same classes."""

from __future__ import annotations

import copy
import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from score_openrlhf.platform import detect, hooks


@pytest.fixture
def fused_adam(monkeypatch):
    """DeepSpeed's module of FusedAdam with the stand-in for its compiled kernel in it."""
    monkeypatch.setattr(hooks, "WORKAROUNDS", {})
    monkeypatch.delitem(sys.modules, "score_openrlhf.platform.fused_adam", raising=False)
    ours = importlib.import_module("score_openrlhf.platform.fused_adam")
    module = importlib.import_module("deepspeed.ops.adam.fused_adam")
    monkeypatch.setattr(module, "FusedAdamBuilder", module.FusedAdamBuilder)
    ours.without_compiler(module)
    return module


@pytest.mark.parametrize("adam_w", [True, False])
def test_fused_adam_without_a_compiler_is_torchs_adam(fused_adam, adam_w):
    torch.manual_seed(0)
    start = [torch.nn.Parameter(torch.randn(shape)) for shape in ((7, 3), (5,))]
    options = dict(lr=0.03, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
    mine, theirs = copy.deepcopy(start), copy.deepcopy(start)
    fused = fused_adam.FusedAdam(mine, adam_w_mode=adam_w, **options)
    plain = (torch.optim.AdamW if adam_w else torch.optim.Adam)(theirs, **options)
    for step in range(5):
        for one, other in zip(mine, theirs):
            one.grad = torch.randn(one.shape, generator=torch.Generator().manual_seed(step))
            other.grad = one.grad.clone()
        fused.step()
        plain.step()
        for one, other, first in zip(mine, theirs, start):
            torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-7)
            assert not torch.equal(one, first)
    # the state that DeepSpeed offloads, saves and counts steps in is its own class's
    assert set(fused.state[mine[0]]) == {"step", "exp_avg", "exp_avg_sq"}
    torch.testing.assert_close(fused.state[mine[1]]["exp_avg_sq"], plain.state[theirs[1]]["exp_avg_sq"])
    for one, other in zip(mine, theirs):  # a state that was loaded goes on
        one.grad = other.grad = torch.ones_like(one)
    again = fused_adam.FusedAdam(mine, adam_w_mode=adam_w, **options)
    again.load_state_dict(copy.deepcopy(fused.state_dict()))
    again.step()
    plain.step()
    torch.testing.assert_close(mine[0], theirs[0], rtol=1e-6, atol=1e-7)


def test_what_the_kernel_cannot_do_is_said(fused_adam):
    parameter = torch.nn.Parameter(torch.ones(2))
    optimizer = fused_adam.FusedAdam([parameter], bias_correction=False)
    parameter.grad = torch.ones(2)
    with pytest.raises(ValueError, match="install a CUDA toolkit"):
        optimizer.step()


def test_the_line_that_compiles_the_kernel_is_still_there(fused_adam):
    (workaround,) = hooks.WORKAROUNDS.values()
    (upstream,) = workaround.upstream
    lines = Path(fused_adam.__file__).read_text().splitlines()
    assert upstream.text in lines[upstream.line - 1]


WORKAROUNDS = """
import json
import score_openrlhf
from score_openrlhf.platform import hooks
print(json.dumps(sorted(hooks.WORKAROUNDS)))
"""


@pytest.mark.parametrize("flash", [True, False])
@pytest.mark.parametrize("nvcc", [True, False])
def test_on_gpus_only_what_is_missing_is_stood_in_for(tmp_path, flash, nvcc):
    for name in ["torch", *(["flash_attn"] if flash else [])]:
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise ImportError('must not be imported')\n")
    (tmp_path / "torch" / "version.py").write_text("cuda = '13.0'\n")
    (tmp_path / "toolkit" / "bin").mkdir(parents=True)
    if nvcc:
        (tmp_path / "toolkit" / "bin" / "nvcc").touch(mode=0o755)
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{os.getcwd()}", "CUDA_HOME": str(tmp_path / "toolkit")}
    done = subprocess.run([sys.executable, "-c", WORKAROUNDS], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    wanted = (
        {"fp32", "remote code"} | (set() if flash else {"flash_attn"}) | (set() if nvcc else {"fused_adam_kernel"})
    )
    assert set(json.loads(done.stdout)) == wanted


def test_the_toolkit_is_the_one_torch_would_take(monkeypatch, tmp_path):
    """The same answer as torch's own search, whose module takes a second to import."""
    from torch.utils.cpp_extension import _find_cuda_home

    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "nvcc").touch(mode=0o755)
    for name in ("CUDA_HOME", "CUDA_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    assert str(detect.cuda_home()) == _find_cuda_home() == str(tmp_path)
    assert detect.has_nvcc()
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "other"))
    assert str(detect.cuda_home()) == _find_cuda_home() == str(tmp_path / "other")
    assert not detect.has_nvcc()

"""How many threads an engine without an accelerator takes and in what type it computes: files in, numbers by hand."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from benchmarks.tiny_models import make_model
from score_openrlhf import platform
from score_openrlhf.cli.sampling import resolve
from score_openrlhf.config.schema import Config
from score_openrlhf.platform import cores, settings
from tests.unit.test_platform import cpu_only, run_python


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def machine(root: Path, siblings: list[str]) -> str:
    """A machine whose CPU number i shares its core with `siblings[i]`."""
    for cpu, group in enumerate(siblings):
        write(root / f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list", f"{group}\n")
    return str(root)


@pytest.fixture
def on_cpus(monkeypatch):
    return lambda *cpus: monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(cpus))


@pytest.mark.parametrize(
    ("cpus", "expected"), [((0, 1, 2, 3), 4), ((0, 4), 1), ((0, 1, 4, 5), 2), (tuple(range(8)), 4), ((7,), 1)]
)
def test_two_threads_of_a_core_count_once(tmp_path, on_cpus, cpus, expected):
    root = machine(tmp_path, [f"{cpu % 4},{cpu % 4 + 4}" for cpu in range(8)])
    on_cpus(*cpus)
    assert cores.usable_cores(root) == expected


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"cpu.max": "max 100000"}, 8),
        ({"cpu.max": "250000 100000"}, 3),  # 2.5 CPUs' worth of time
        ({"cpu.max": "50000 100000"}, 1),
        ({"cpu.max": "6400000 100000"}, 8),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 8),
        ({"cpu/cpu.cfs_quota_us": "400000", "cpu/cpu.cfs_period_us": "100000"}, 4),
        ({}, 8),
    ],
)
def test_a_container_gives_a_share_of_the_machine(tmp_path, on_cpus, files, expected):
    root = machine(tmp_path, [str(cpu) for cpu in range(8)])
    for name, text in files.items():
        write(tmp_path / "sys/fs/cgroup" / name, f"{text}\n")
    on_cpus(*range(8))
    assert cores.usable_cores(root) == expected


def test_a_machine_that_tells_nothing_of_its_cores_is_taken_by_its_cpus(tmp_path, on_cpus):
    on_cpus(0, 1, 2)
    assert cores.usable_cores(str(tmp_path)) == 3


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("fpu avx512f avx512_bf16", True),
        ("fpu amx_tile amx_bf16", True),
        ("fpu avx512f avx512_vnni", False),
        ("fpu avx512_bf16x", False),
    ],
)
def test_bf16_is_read_from_the_flags_of_the_cpu(tmp_path, flags, expected):
    write(tmp_path / "cpuinfo", f"processor\t: 0\nmodel name\t: X\nflags\t\t: {flags}\nbugs\t\t: amx_bf16\n")
    assert cores.has_bf16(str(tmp_path / "cpuinfo")) is expected
    assert cores.has_bf16(str(tmp_path / "nothing")) is False


def test_parameters_are_counted_from_the_files_of_any_model(tmp_path):
    path = make_model(tmp_path / "model")
    model = AutoModelForCausalLM.from_pretrained(path)
    assert cores.num_params(str(path)) == sum(p.numel() for p in model.parameters())
    # in two files, with a scalar
    save_file({"a": torch.zeros(3, 4), "b": torch.zeros(())}, tmp_path / "1.safetensors", metadata={"format": "pt"})
    save_file({"c": torch.zeros(5, dtype=torch.bfloat16)}, tmp_path / "2.safetensors")
    assert cores.num_params(str(tmp_path)) == 12 + 1 + 5
    assert cores.num_params("some/hub-name") is None


@pytest.fixture
def eight_cores(monkeypatch):
    """A machine of eight cores with bf16; a model's name tells its size."""
    monkeypatch.setattr(cores, "usable_cores", lambda: 8)
    monkeypatch.setattr(cores, "has_bf16", lambda: True)
    monkeypatch.setattr(cores, "num_params", {"small": 50_000_000, "real": 50_000_001, "hub": None}.__getitem__)


@cpu_only
@pytest.mark.parametrize(
    ("requested", "engines", "model", "expected"),
    [
        (None, 1, "real", 8),
        (None, 2, "real", 4),
        (None, 3, "real", 2),
        (None, 9, "real", 1),
        (None, 1, "hub", 8),
        (None, 1, "small", 1),
        (5, 2, "small", 5),
        (1, 1, "real", 1),
    ],
)
def test_engines_of_real_models_share_the_cores(eight_cores, requested, engines, model, expected):
    assert cores.engine_threads(requested, engines, model) == expected


@cpu_only
def test_one_real_model_of_the_two_is_enough_for_bf16(eight_cores, monkeypatch):
    assert cores.sampling_dtype(["small", "real"]) == "bf16"
    assert cores.sampling_dtype(["small"]) == "fp32"
    monkeypatch.setattr(cores, "has_bf16", lambda: False)
    assert cores.sampling_dtype(["real"]) == "fp32"


def test_an_accelerator_leaves_no_question(eight_cores, monkeypatch):
    monkeypatch.setattr(cores, "is_cpu", lambda: False)
    assert cores.engine_threads(4, 1, "real") is None
    assert cores.sampling_dtype(["real"]) is None


THREADS = """
import json, os
from score_openrlhf import platform
from score_openrlhf.platform import cores
cores.usable_cores, cores.num_params = (lambda: 8), (lambda path: None)
print(json.dumps([platform.use_cores(None, 2, "m"), platform.use_cores({key}, 2, "m"), os.environ["OMP_NUM_THREADS"]]))
"""


@cpu_only
def test_what_the_user_set_comes_before_the_share_and_the_key_before_it(monkeypatch):
    for name in ("OMP_NUM_THREADS", settings.DEFAULTED):
        monkeypatch.delenv(name, raising=False)
    assert run_python(THREADS.format(key=3)) == [4, 3, "3"]
    assert run_python(THREADS.format(key=3), OMP_NUM_THREADS="1") == [1, 3, "3"]
    # a child of a process that has set the defaults does not take them for the user's
    assert run_python(THREADS.format(key=None), OMP_NUM_THREADS="1", **{settings.DEFAULTED: "OMP_NUM_THREADS"}) == [
        4, 4, "4",
    ]  # fmt: skip


@cpu_only
def test_workers_are_told_which_values_are_not_the_users(monkeypatch):
    monkeypatch.setenv(settings.DEFAULTED, "")
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    told = platform.environment()
    assert told["OMP_NUM_THREADS"] == "7" and "OMP_NUM_THREADS" not in told[settings.DEFAULTED].split(",")
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    assert "GOMP_SPINCOUNT" in platform.environment()[settings.DEFAULTED].split(",")


@cpu_only
def test_sampling_alone_takes_the_type_that_is_fast_where_nobody_set_one(tmp_path, monkeypatch):
    monkeypatch.setattr(cores, "has_bf16", lambda: True)
    small = str(make_model(tmp_path / "model"))
    assert resolve(None, [], small, None).cfg.ds.param_dtype == "fp32"
    assert resolve(None, [], "some/solver", None).cfg.ds.param_dtype == "bf16"
    assert resolve(None, [], small, "some/tutor").cfg.ds.param_dtype == "bf16"
    assert resolve(None, ["ds.param_dtype=fp32"], "some/solver", None).cfg.ds.param_dtype == "fp32"
    config = tmp_path / "own.yaml"
    config.write_text("data: {max_len: 600}\n")
    assert resolve(str(config), [], small, "none").cfg.ds.param_dtype == "fp32"
    config.write_text("ds: {param_dtype: bf16}\n")
    assert resolve(str(config), [], small, "none").cfg.ds.param_dtype == "bf16"
    assert Config().ds.param_dtype == "bf16"  # what training takes

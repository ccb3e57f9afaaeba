"""The platform layer's own machinery, without the stack it adapts: hooks, detection, settings, upstream lines."""

from __future__ import annotations

import importlib
import inspect
import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from score_openrlhf import platform
from score_openrlhf.errors import UserError
from score_openrlhf.platform import detect, hooks, settings
from score_openrlhf.platform.passed_on import passed_on

SITE_PACKAGES = Path(sysconfig.get_paths()["purelib"])

cpu_only = pytest.mark.skipif(not detect.is_cpu(), reason="torch is built for an accelerator")


def run_python(code: str, **environment: str) -> dict:
    """The JSON that `code` prints in a fresh interpreter, without what this machine's user would pass on to roles."""
    own = {name: value for name, value in os.environ.items() if name not in passed_on()}
    done = subprocess.run([sys.executable, "-c", code], env={**own, **environment}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def write_torch(folder: Path, **builds: str | None) -> str:
    """A package named torch whose version module says what it is built for; importing it fails."""
    (folder / "torch").mkdir(parents=True)
    (folder / "torch" / "__init__.py").write_text("raise ImportError('torch must not be imported')\n")
    values = {"cuda": None, "hip": None, "xpu": None, **builds}
    (folder / "torch" / "version.py").write_text("".join(f"{key} = {value!r}\n" for key, value in values.items()))
    return str(folder)


STATE = """
import json, os, sys
before = dict(os.environ)
from score_openrlhf import platform
from score_openrlhf.platform import hooks
print(json.dumps({
    "is_cpu": platform.is_cpu(),
    "workarounds": sorted(hooks.WORKAROUNDS),
    "environment": {k: v for k, v in os.environ.items() if before.get(k) != v},
    "ray": platform.ray_init_kwargs(num_gpus=4),
    "engine": platform.engine_kwargs(),
    "attention": platform.attn_implementation("flash_attention_2"),
    "sync": platform.sync_backend("nccl"),
    "imported": sorted({"torch", "ray", "vllm", "deepspeed", "transformers"} & set(sys.modules)),
}))
"""


@pytest.mark.parametrize("build", [{"cuda": "12.8"}, {"hip": "6.4"}, {"xpu": "20250"}])
def test_on_accelerators_fp32_is_added_and_openrlhf_is_left_alone(tmp_path, build):
    state = run_python(STATE, PYTHONPATH=write_torch(tmp_path, **build))

    assert state["is_cpu"] is False
    workarounds = set(state["workarounds"])
    assert {"flash_attn", "fp32", "remote code"} <= workarounds
    assert workarounds <= {"flash_attn", "fp32", "fused_adam_kernel", "remote code"}
    assert state["environment"] == {}
    assert set(state["ray"]) == {"address", "runtime_env"}
    assert state["ray"]["runtime_env"]["env_vars"].keys() == {
        "TOKENIZERS_PARALLELISM", "NCCL_DEBUG", "RAY_ENABLE_ZERO_COPY_TORCH_TENSORS",
    }  # fmt: skip
    assert state["engine"] == {"worker_extension_cls": "openrlhf.trainer.ray.vllm_worker_wrap.WorkerWrap"}
    assert (state["attention"], state["sync"]) == ("flash_attention_2", "nccl")
    assert state["imported"] == []


def test_on_cpu_builds_the_workarounds_are_registered_without_importing_the_stack(tmp_path):
    state = run_python(STATE, PYTHONPATH=write_torch(tmp_path))

    assert state["is_cpu"] is True
    assert {"fp32", "torch_cuda", "flash_attn", "zero3_gather_race", "vllm_sleep"} <= set(state["workarounds"])
    state["environment"].pop(settings.DEFAULTED, None)  # this process may have set it already
    assert state["environment"].items() <= settings.CPU_ENVIRONMENT.items()
    assert (state["attention"], state["sync"]) == ("sdpa", "gloo")
    assert state["imported"] == []


def test_without_torch_there_is_nothing_to_adapt(monkeypatch):
    monkeypatch.setattr(detect.importlib.util, "find_spec", lambda name: None)

    assert detect.is_cpu.__wrapped__() is False


@cpu_only
def test_ray_starts_with_logical_resources_that_fit_the_roles():
    kwargs = platform.ray_init_kwargs(num_gpus=12)

    assert kwargs["address"] == "local"  # whatever runs beside it
    assert kwargs["num_gpus"] == 12
    assert kwargs["num_cpus"] == 20  # one a GPU bundle, and some for the roles without a GPU
    assert platform.ray_init_kwargs(num_gpus=12, num_cpus=3)["num_cpus"] == 3
    assert kwargs["runtime_env"]["worker_process_setup_hook"] == "score_openrlhf.platform.set_up_role"


@cpu_only
def test_a_running_cluster_is_joined_without_asking_for_resources():
    kwargs = platform.ray_init_kwargs(num_gpus=4, num_cpus=8, address="auto")

    # ray.init refuses resources together with an address
    assert set(kwargs) == {"address", "runtime_env"}


@cpu_only
def test_what_the_user_has_set_wins(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")

    assert platform.environment()["OMP_NUM_THREADS"] == "7"


@cpu_only
def test_ray_is_not_started_where_vllm_would_not_find_the_plugin(monkeypatch):
    monkeypatch.setattr(settings, "entry_points", lambda group: [])

    with pytest.raises(UserError, match="pip install --no-deps -e"):
        platform.ray_init_kwargs(num_gpus=1)


def test_the_plugin_that_vllm_loads_is_activate():
    from importlib.metadata import entry_points

    (point,) = (p for p in entry_points(group="vllm.general_plugins") if p.name == settings.VLLM_PLUGIN)

    assert point.load() is platform.activate


def test_activate_twice_installs_one_finder():
    platform.activate()
    platform.activate()

    assert sum(isinstance(finder, hooks._Finder) for finder in sys.meta_path) == 1


def test_an_unknown_workaround_cannot_be_switched_off(monkeypatch):
    monkeypatch.setenv(hooks.DISABLE_VARIABLE, "fp32,flash_atn")

    with pytest.raises(ValueError, match="flash_atn"):
        hooks.enabled()


@pytest.fixture
def registry(monkeypatch):
    """An empty registry, and no finder of the real one."""
    monkeypatch.setattr(hooks, "WORKAROUNDS", {})
    monkeypatch.setattr(sys, "meta_path", [f for f in sys.meta_path if not isinstance(f, hooks._Finder)])


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package with a submodule that a workaround can be for."""
    name = f"upstream_{tmp_path.name}"
    (tmp_path / name).mkdir()
    (tmp_path / name / "__init__.py").write_text("")
    (tmp_path / name / "part.py").write_text("import sys\nvalue = 'own'\nseen = 'stand_in' in sys.modules\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield name
    for module in [m for m in sys.modules if m.split(".")[0] == name]:
        del sys.modules[module]


def test_a_module_is_patched_when_it_is_imported_and_again_when_it_is_imported_anew(registry, package):
    @hooks.after_import("patch", f"{package}.part")
    def patch(module):
        module.value = "patched " + module.value

    hooks.install()
    for _ in range(2):
        part = importlib.import_module(f"{package}.part")
        assert part.value == "patched own"
        assert "value = 'own'" in inspect.getsource(part)
        assert not isinstance(part.__spec__.loader, hooks._PatchingLoader)
        del sys.modules[f"{package}.part"]


def test_a_module_that_is_already_imported_is_patched_at_once(registry, package):
    part = importlib.import_module(f"{package}.part")

    @hooks.after_import("patch", f"{package}.part")
    def patch(module):
        module.value = "patched"

    hooks.install()

    assert part.value == "patched"


def test_around_import_is_open_while_the_module_runs_and_closed_when_it_fails(registry, package, tmp_path):
    from contextlib import contextmanager

    @hooks.around_import("stand_in", f"{package}.part")
    @contextmanager
    def stand_in(module):
        sys.modules["stand_in"] = module
        try:
            yield
        finally:
            del sys.modules["stand_in"]

    hooks.install()
    assert importlib.import_module(f"{package}.part").seen is True
    assert "stand_in" not in sys.modules

    del sys.modules[f"{package}.part"]
    (tmp_path / package / "part.py").write_text("raise RuntimeError('broken upstream')  # a longer file\n")
    with pytest.raises(RuntimeError, match="broken upstream"):
        importlib.import_module(f"{package}.part")
    assert "stand_in" not in sys.modules


def test_a_disabled_workaround_is_not_applied(registry, package, monkeypatch):
    @hooks.after_import("patch", f"{package}.part")
    def patch(module):
        module.value = "patched"

    monkeypatch.setenv(hooks.DISABLE_VARIABLE, "patch")
    hooks.install()

    assert importlib.import_module(f"{package}.part").value == "own"


UPSTREAM_LINES = [(item.name, upstream) for item in hooks.WORKAROUNDS.values() for upstream in item.upstream]


@pytest.mark.parametrize(("name", "upstream"), UPSTREAM_LINES, ids=lambda value: getattr(value, "file", value))
def test_the_upstream_line_that_needs_the_workaround_is_still_there(name, upstream):
    lines = (SITE_PACKAGES / upstream.file).read_text().splitlines()

    assert upstream.text in lines[upstream.line - 1], (
        f"{upstream.file}:{upstream.line} changed; see whether workaround {name} is still needed"
    )


@pytest.mark.parametrize("item", hooks.WORKAROUNDS.values(), ids=lambda item: item.name)
def test_every_workaround_says_what_it_is_for(item):
    assert item.upstream
    assert item.apply.__doc__


def test_flash_attn_stand_ins_unpad_and_pad_again():
    import torch

    from score_openrlhf.platform.flash_attn import pad_input, unpad_input

    hidden = torch.arange(12.0).view(2, 3, 2)
    mask = torch.tensor([[0, 1, 1], [1, 0, 0]])
    tokens, indices, cumulative, longest, lengths = unpad_input(hidden, mask)

    assert tokens.tolist() == [[2.0, 3.0], [4.0, 5.0], [6.0, 7.0]]
    assert (indices.tolist(), cumulative.tolist(), longest) == ([1, 2, 3], [0, 2, 3], 2)
    assert lengths.tolist() == [2, 1]
    assert torch.equal(pad_input(tokens, indices, 2, 3), hidden * mask.unsqueeze(-1))


def test_cores_are_shared_among_the_ranks_on_a_cuda_node(monkeypatch):
    import torch

    seen = []
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(torch, "set_num_threads", seen.append)
    monkeypatch.setattr(settings.cores, "usable_cores", lambda: 96)
    settings.use_cores_for_adam(8)
    if detect.is_cpu():
        assert seen == [] and os.environ["OMP_NUM_THREADS"] == "1"
    monkeypatch.setattr(settings, "is_cpu", lambda: False)
    for ranks in (8, 200):
        settings.use_cores_for_adam(ranks)
    assert seen[-2:] == [12, 1] and os.environ["OMP_NUM_THREADS"] == "1"

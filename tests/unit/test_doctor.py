"""`score-openrlhf doctor`: every finding is a row with its mend, whatever is missing or broken beside it."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest

from benchmarks.tiny_models import make_model
from score_openrlhf.cli import doctor
from score_openrlhf.config.compose import load_config
from score_openrlhf.config.schema import Config
from score_openrlhf.config.sources import PROJECT_CONFIGS
from score_openrlhf.doctor import gpus, host, packages, run_config
from score_openrlhf.doctor.imports import Import, try_imports
from score_openrlhf.doctor.row import FAULT, OK, WARNING, Row, fault, ok, rows_of

ROOT = Path(__file__).resolve().parents[2]


def module(folder: Path, name: str, code: str) -> None:
    (folder / name).mkdir(parents=True)
    (folder / name / "__init__.py").write_text(code)


def command(folder: Path, *words: str) -> subprocess.CompletedProcess:
    """The command with the modules of `folder` before those that are installed."""
    code = "import sys; from score_openrlhf.cli import main; sys.exit(main(sys.argv[1:]))"
    environment = {**os.environ, "PYTHONPATH": f"{folder}:{ROOT}"}
    words = (sys.executable, "-c", code, "doctor", *words)
    return subprocess.run(words, env=environment, cwd=ROOT, capture_output=True, text=True)


def by_name(rows) -> dict[str, Row]:
    return {row.name: row for row in rows}


def test_one_import_after_another_whatever_the_others_do(tmp_path, monkeypatch):
    module(tmp_path, "works", "")
    module(tmp_path, "broken", "raise ImportError('libcudart.so.13: cannot open shared object file\\nmore')")
    module(tmp_path, "half", "import a_module_that_is_nowhere")
    module(tmp_path, "kills", "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
    module(tmp_path, "leaves", "import os; print('a word'); os._exit(3)")
    module(tmp_path, "waits", "import time; time.sleep(60)")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{ROOT}")
    names = ["kills", "broken", "half", "nowhere", "leaves", "works"]
    found = try_imports(names)
    assert list(found) == names
    assert found["works"].works and not any(found[name].works for name in names[:-1])
    assert "libcudart.so.13" in found["broken"].error and not found["broken"].missing
    assert found["nowhere"].missing and not found["half"].missing and "a_module_that_is_nowhere" in found["half"].error
    assert "signal 11" in found["kills"].error and "status 3" in found["leaves"].error
    waits = try_imports(["waits"], timeout_seconds=2)["waits"]
    assert "not imported within" in waits.error and waits.slow


def test_with_a_broken_torch_the_command_still_has_all_its_rows(tmp_path):
    """What a CUDA build without its libraries does; the packages that import it are faults beside it."""
    module(tmp_path, "torch", "raise ImportError('libcudnn.so.9: cannot open shared object file')")
    (tmp_path / "torch" / "version.py").write_text("cuda = '13.0'\n")
    done = command(tmp_path, "configs/playground.yaml", "--json")
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    record = json.loads(done.stdout)
    rows = {row["name"]: row for row in record["rows"]}
    assert not record["ok"] and record["counts"][FAULT] == sum(row["status"] == FAULT for row in record["rows"])
    assert "libcudnn.so.9" in rows["torch"]["found"] and "make install-cuda" in rows["torch"]["mend"]
    assert rows["GPUs"]["status"] == rows["driver"]["status"] == FAULT
    for name in ("Python", "memory", "shared memory", "ports", "ulimit", "HF cache", "configuration", "problems"):
        assert name in rows
    assert all(row["mend"] for row in record["rows"] if row["status"] != OK)


def test_a_check_that_fails_is_a_row():
    def check():
        yield ok("first", "there")
        raise OSError("the disk is gone")

    (row,) = rows_of("disks", check)
    assert row == fault("disks", "the check failed: OSError: the disk is gone", "mend the packages above first")


@pytest.mark.parametrize(("statuses", "expected"), [([OK, WARNING], 0), ([OK, FAULT, WARNING], 1)])
def test_faults_alone_make_the_status(monkeypatch, capsys, statuses, expected):
    rows = [Row(f"check {status}", status, "[red] and more", "mend it" * (status != OK)) for status in statuses]
    monkeypatch.setattr(doctor, "diagnose", lambda config, overrides: rows)
    arguments = namedtuple("Arguments", "config overrides json")
    assert doctor.run(arguments(None, [], False)) == expected
    out = capsys.readouterr().out
    assert all(f"check {status}" in out for status in statuses) and "[red] and more" in out
    assert doctor.run(arguments(None, [], True)) == expected
    assert json.loads(capsys.readouterr().out)["ok"] is (expected == 0)


@pytest.fixture
def on_gpus(monkeypatch):
    for part in (gpus, host, packages, run_config):
        monkeypatch.setattr(part, "is_cpu", lambda: False)


def executable(path: Path, prints: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\necho '{prints}'\n")
    path.chmod(0o755)


TORCH = Import("torch", facts={"cuda": "13.0", "devices": [["NVIDIA H100", 79 * 2**30, [9, 0]]]})


@pytest.mark.parametrize(
    ("release", "headers", "variable", "status", "words"),
    [
        (None, True, None, WARNING, "torch's own Adam kernel stands in"),
        ("13.0", True, None, OK, "13.0 in"),
        ("13.0", False, None, FAULT, "a toolkit without cusparse.h"),
        ("13.2", True, None, FAULT, "DeepSpeed refuses to compile its Adam"),
        ("13.2", True, "1", OK, "DS_SKIP_CUDA_CHECK=1 accepts that"),
        ("12.8", True, "1", FAULT, "12.8 in"),
    ],
)
def test_the_toolkit_against_torchs_build(on_gpus, monkeypatch, tmp_path, release, headers, variable, status, words):
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    if variable:
        monkeypatch.setenv("DS_SKIP_CUDA_CHECK", variable)
    if release:
        executable(tmp_path / "bin" / "nvcc", f"Cuda compilation tools, release {release}, V{release}.88")
    (tmp_path / "include").mkdir()
    for name in gpus.HEADERS:
        if headers or name != "cusparse.h":
            (tmp_path / "include" / name).touch()
    row = by_name(gpus.compilers(TORCH))["nvcc"]
    assert row.status == status and words in row.found and bool(row.mend) == (status != OK)


def test_deepspeed_takes_minor_versions_of_cuda_12_for_each_other():
    """The same verdict as its own table."""
    from deepspeed.ops.op_builder.builder import cuda_minor_mismatch_ok

    for major in ("12", "13"):
        assert gpus._accepted(f"{major}.4", f"{major}.8") == (int(major) in cuda_minor_mismatch_ok)


@pytest.mark.parametrize(("version", "status"), [("580.65.06", OK), ("575.57.08", FAULT), (None, FAULT)])
def test_the_driver_against_torchs_cuda(on_gpus, monkeypatch, tmp_path, version, status):
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    if version:
        executable(tmp_path / "nvidia-smi", version)
    (row,) = gpus.driver(TORCH)
    assert row.status == status
    if status == FAULT:
        assert "580" in row.mend


def test_gpus_that_are_hidden_are_said_to_be(on_gpus, monkeypatch):
    rows = by_name(gpus.devices(TORCH))
    assert rows["GPU 0"].status == OK and "79.0 GiB" in rows["GPU 0"].found
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    row = by_name(gpus.devices(Import("torch", facts={"cuda": "13.0", "devices": []})))["GPUs"]
    assert row.status == FAULT and "unset CUDA_VISIBLE_DEVICES" in row.mend
    old = Import("torch", facts={"cuda": "13.0", "devices": [["Tesla T4", 15 * 2**30, [7, 5]]]})
    assert "ds.param_dtype=fp16" in by_name(gpus.devices(old))["GPU 0"].mend


@pytest.mark.parametrize(
    ("version", "attention", "error", "status"),
    [
        (None, None, None, WARNING),
        (None, "sdpa", None, WARNING),
        (None, "flash_attention_2", None, FAULT),
        ("2.8.3", "flash_attention_2", None, OK),
        ("2.8.3", "sdpa", "ImportError: undefined symbol", FAULT),  # OpenRLHF imports it all the same
    ],
)
def test_flash_attention_is_needed_where_it_is_asked_for(on_gpus, monkeypatch, version, attention, error, status):
    monkeypatch.setattr(gpus, "version_of", lambda name: version)
    monkeypatch.setattr(gpus, "is_installed", lambda name: version is not None)
    missing = "ModuleNotFoundError" if version is None else error
    imports = {name: Import(name, error=missing) for name in ("flash_attn", "flash_attn_2_cuda")}
    (row,) = gpus.flash_attention(imports, attention)
    assert row.status == status
    assert status == OK or "ds.attn_implementation=sdpa" in row.mend


def test_a_package_of_another_version_is_pointed_out(monkeypatch):
    imports = {name: Import(name, facts={}) for name in packages.modules()}
    rows = by_name(packages.packages(imports))
    assert rows["ray"].status == rows["deepspeed"].status == OK
    slow = imports | {"ray": Import("ray", error="not imported within 60 s", slow=True)}
    assert by_name(packages.packages(slow))["ray"].status == WARNING  # no reason to install it anew
    monkeypatch.setattr(packages, "version_of", lambda name: "0.1")
    rows = by_name(packages.packages(imports))
    assert rows["ray"].status == WARNING and packages.pins()["ray"] in rows["ray"].found
    assert rows["torch"].status == OK  # OpenRLHF pins none
    imports["vllm"] = Import("vllm", error="ModuleNotFoundError: no", missing=True)
    monkeypatch.setattr(packages, "version_of", lambda name: None)
    assert by_name(packages.packages(imports))["vllm"].found == "not installed"


def test_limits_disks_and_shared_memory(on_gpus, monkeypatch, tmp_path):
    usage = namedtuple("usage", "total used free")
    for free, status in ((64 << 20, FAULT), (16 << 30, OK)):
        monkeypatch.setattr(host.shutil, "disk_usage", lambda path, free=free: usage(free, 0, free))
        (row,) = host.shared_memory(str(tmp_path))
        assert row.status == status and ("--shm-size" in row.mend) == (status == FAULT)
    for free, status in ((1 << 20, FAULT), (5 << 30, WARNING), (99 << 30, OK)):
        monkeypatch.setattr(host.shutil, "disk_usage", lambda path, free=free: usage(free, 0, free))
        (row,) = host.disks({"disk": str(tmp_path / "not" / "there")})
        assert row.status == status
    for soft, status in ((256, FAULT), (4096, WARNING), (65536, OK), (resource.RLIM_INFINITY, OK)):
        monkeypatch.setattr(host.resource, "getrlimit", lambda kind, soft=soft: (soft, 65536))
        row = by_name(host.limits())["ulimit"]
        assert row.status == status and ("ulimit -n 65536" in row.mend) == (status != OK)


def test_a_proxy_before_ones_own_machine_is_pointed_out(monkeypatch):
    for name in list(os.environ):
        if name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    assert "proxy" not in by_name(host.network())
    monkeypatch.setenv("http_proxy", "http://proxy:3128")
    assert "no_proxy=127.0.0.1" in by_name(host.network())["proxy"].mend
    monkeypatch.setenv("no_proxy", "127.0.0.1,localhost")
    assert "proxy" not in by_name(host.network())


def test_models_data_and_output_of_a_configuration(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    model = make_model(tmp_path / "model")
    (tmp_path / "rows.jsonl").write_text('{"problem": "1 + 1?", "answer": "2"}\n')
    (tmp_path / "bad.jsonl").write_text('{"text": "1 + 1?", "answer": "2"}\n')
    cfg = Config(model_path=str(model), output_dir=str(tmp_path / "runs" / "new"))
    cfg.data.train, cfg.data.eval = str(tmp_path / "rows.jsonl"), str(tmp_path / "bad.jsonl")

    (row,) = run_config.models(cfg)
    assert row.status == OK and "of weights" in row.found
    rows = by_name(run_config.data(cfg))
    assert rows["data.train"].found.endswith("problems 1")
    assert rows["data.eval"].status == FAULT and "data.problem_key" in rows["data.eval"].mend
    (row,) = run_config.output_folder(cfg)
    assert row.status == OK and not (tmp_path / "runs").exists()

    index = {"weight_map": {"a": "model-1-of-2.safetensors"}}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "lacks model-1-of-2.safetensors" in next(run_config.models(cfg)).found
    (model / "tokenizer.json").unlink()
    assert "no tokenizer" in next(run_config.models(cfg)).found
    (model / "model.safetensors").unlink()
    assert "no weights" in next(run_config.models(cfg)).found

    cfg.output_dir = str(tmp_path / "rows.jsonl" / "run")
    (row,) = run_config.output_folder(cfg)
    assert row.status == FAULT and "is a file" in row.found
    cached = Path(host.hub_cache()) / "models--owner--name" / "snapshots" / "1"
    cfg.model_path = "owner/name"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    (row,) = run_config.models(cfg)
    assert row.status == FAULT and "hf download owner/name" in row.mend
    cached.mkdir(parents=True)
    (cached / "config.json").touch()
    (row,) = run_config.models(cfg)
    assert row.status == OK


def test_the_playground_builds_what_is_not_there_yet(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    cfg, rows = run_config.configuration(str(ROOT / "configs" / "playground.yaml"), [])
    assert cfg is not None and rows[0].status == OK
    cfg, rows = run_config.configuration(str(ROOT / "configs" / "playground.yaml"), ["vllm.num_engine=2"])
    assert cfg is None and rows[0].status == FAULT and "vllm.num_engines" in rows[0].found


def test_a_disk_too_small_for_the_checkpoints_is_a_fault(monkeypatch, tmp_path):
    cfg = Config(model_path="Qwen/Qwen2.5-1.5B", output_dir=str(tmp_path))
    assert run_config.checkpoint_bytes(cfg) == 14 * 1_543_714_304  # method score trains one model
    cfg.method = "rl_guided_score"
    assert run_config.checkpoint_bytes(cfg) == 2 * 14 * 1_543_714_304
    usage = namedtuple("usage", "total used free")
    for free, status in ((100 << 30, FAULT), (130 << 30, OK)):  # two kept and one being written: 120.8 GiB
        monkeypatch.setattr("shutil.disk_usage", lambda path, free=free: usage(free, 0, free))
        (row,) = run_config.output_folder(cfg)
        assert row.status == status and "take 120.8" in row.found


def test_the_run_is_planned_for_the_gpus_that_are_there(on_gpus):
    cfg = load_config(str(PROJECT_CONFIGS / "rl_guided_score_math.yaml"), []).cfg  # made for eight of 80 GB

    def planned(count: int, memory: float) -> Row:
        devices = [["a card", int(memory * 2**30), [9, 0]]] * count
        (row,) = run_config.plan(cfg, Import("torch", facts={"cuda": "13.0", "devices": devices}))
        return row

    row = planned(8, 79)
    assert row.status == OK and "1 x 8 GPUs of 79.0 GiB" in row.found
    row = planned(4, 79)
    assert row.status == WARNING and "2 x 4 GPUs" in row.found and "start it on 2" in row.mend
    row = planned(8, 22)
    assert row.status == FAULT and "score-openrlhf plan CONFIG" in row.mend

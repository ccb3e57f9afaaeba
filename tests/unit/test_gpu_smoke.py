"""What `benchmarks.gpu_smoke` calls passed, failed and absent; its runs are tried by running it."""

from __future__ import annotations

import json

import pytest

from benchmarks import gpu_smoke
from benchmarks.gpu_smoke import ABSENT, FAIL, PASS, ROOT, Failed, Part
from score_openrlhf.cluster.placement import place
from score_openrlhf.config import checks
from score_openrlhf.config.compose import load_config
from score_openrlhf.config.validate import validate

STEP = {
    "timing/total": 1.5,
    **{f"{policy}/{name}": 0.5 for policy in gpu_smoke.BOTH for name in ("grad_norm", "engine_logprob_diff")},
}


@pytest.fixture
def run(tmp_path):
    def write(*changes):
        lines = [
            STEP | {f"{policy}/optimizer_steps": step + 1 for policy in gpu_smoke.BOTH} | change
            for step, change in enumerate(changes)
        ]
        (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        return tmp_path

    return write


def test_a_run_that_trained_both_policies_passes(run):
    figures = gpu_smoke.trained(run({}, {}), 2, gpu_smoke.BOTH)
    assert figures["steps"] == 2 and figures["guidance/optimizer_steps"] == 2


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ([{}], "has 1 steps, not 2"),
        ([{}, {"solver/grad_norm": float("nan")}], "solver/grad_norm of the last step is nan"),
        ([{}, {"guidance/engine_logprob_diff": None}], "guidance/engine_logprob_diff of the last step is None"),
        ([{}, {"guidance/optimizer_steps": 1}], "guidance: optimizer steps 1 after 2 updates"),
    ],
)
def test_a_run_that_did_not_is_not_passed(run, changes, words):
    with pytest.raises(Failed, match=words):
        gpu_smoke.trained(run(*changes), 2, gpu_smoke.BOTH)


@pytest.mark.parametrize(("again", "fails"), [(104, False), (106, True)])
def test_a_peak_that_grows_by_resuming_fails(tmp_path, again, fails):
    bench = object.__new__(gpu_smoke.Bench)
    bench.peaks = {"first": 100 << 30, "one_gpu": again << 30}
    if fails:
        with pytest.raises(Failed, match=r"106\.00 GiB after 100\.00"):
            gpu_smoke.peak_after_resume(bench)
    else:
        assert gpu_smoke.peak_after_resume(bench)["peak_gib_resumed"] == again
    bench.peaks = {"first": None, "one_gpu": None}
    with pytest.raises(Failed, match="no peak was measured"):
        gpu_smoke.peak_after_resume(bench)


@pytest.mark.parametrize("on_cpu", [True, False])
def test_every_run_it_starts_is_a_valid_one(monkeypatch, tmp_path, on_cpu):
    """Up to the start: the configuration that each command names, with its words, holds together."""
    found = []

    def only_check(bench, command, log):
        if not log.name.startswith("model"):
            (place,) = [place for place, word in enumerate(command) if word.endswith(".yaml")]
            cfg = load_config(str(ROOT / command[place]), command[place + 1 :]).cfg
            validate(cfg, check_paths=False)
            found.append((cfg, list(command[:place])))
        raise Failed("not started")

    monkeypatch.setattr(checks, "is_cpu", lambda: on_cpu)
    monkeypatch.setattr(gpu_smoke.platform, "is_cpu", lambda: on_cpu)
    monkeypatch.setattr(gpu_smoke.Bench, "_run", only_check)
    bench = object.__new__(gpu_smoke.Bench)
    bench.folder, bench.peaks = tmp_path, {"one_gpu": None}
    (tmp_path / "one_gpu" / "checkpoints").mkdir(parents=True)  # of an earlier part
    for part in gpu_smoke.PARTS:
        with pytest.raises(Failed):
            part.check(bench)
    assert len(found) == len(gpu_smoke.PARTS) - 1  # all but the one that compares
    for (cfg, _), part in zip(found, [part for part in gpu_smoke.PARTS if part.check != gpu_smoke.peak_after_resume]):
        assert place(cfg).num_gpus == part.gpus, part.name
    assert found[1][0].max_steps == 4 and found[1][0].output_dir == found[0][0].output_dir  # goes on from it
    assert found[-1][1][1:] == ["--num_gpus", "4", "launch/train_smart_score.sh"]


def fails(bench):
    raise Failed("seen: nothing")


@pytest.mark.parametrize(
    ("checks", "status"),
    [
        ([(1, True, dict)], 0),
        ([(1, True, dict), (4, True, dict)], 3),  # two GPUs are there
        ([(1, True, dict), (1, False, dict)], 3),
        ([(1, True, fails), (4, True, dict)], 1),
    ],
)
def test_absent_is_not_passed(monkeypatch, capsys, tmp_path, checks, status):
    parts = [
        Part(f"part {index}", gpus, lambda bench, check=check: check(bench) if check is fails else {}, on_cpu=on_cpu)
        for index, (gpus, on_cpu, check) in enumerate(checks)
    ]
    monkeypatch.setattr(gpu_smoke, "PARTS", parts)
    monkeypatch.setattr(gpu_smoke, "Bench", lambda folder: None)
    monkeypatch.setattr(gpu_smoke, "devices", lambda: (2, "two"))
    monkeypatch.setattr(gpu_smoke.platform, "is_cpu", lambda: True)
    assert gpu_smoke.main(["--json", "--folder", str(tmp_path)]) == status
    record = json.loads(capsys.readouterr().out)
    assert len(record["parts"]) == len(parts) == sum(record["counts"].values())
    for (gpus, on_cpu, check), part in zip(checks, record["parts"]):
        wanted = ABSENT if gpus > 2 or not on_cpu else FAIL if check is fails else PASS
        assert part["status"] == wanted and bool(part["reason"]) == (wanted != PASS)

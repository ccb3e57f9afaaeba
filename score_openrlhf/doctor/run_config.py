"""A configuration file in; rows about what its run needs on this machine, out: models, data, output folder, GPUs."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from score_openrlhf.config.compose import load_config
from score_openrlhf.config.errors import ConfigError
from score_openrlhf.config.machine import missing_packages
from score_openrlhf.config.paths import looks_like_path
from score_openrlhf.config.policies import learning_specs, policy_specs
from score_openrlhf.config.schema import Config
from score_openrlhf.config.validate import validate, warnings
from score_openrlhf.doctor.host import existing, hub_cache
from score_openrlhf.doctor.imports import Import
from score_openrlhf.doctor.row import Row, fault, first_line, ok, warning
from score_openrlhf.memory_plan.footprint import GIB, GPU_MEMORY, MASTER_BYTES
from score_openrlhf.platform.detect import is_cpu

HUB_TIMEOUT_SECONDS = 5.0
WEIGHTS = ("*.safetensors", "*.bin")
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json")


def configuration(path: str, overrides: list[str]) -> tuple[Config | None, list[Row]]:
    """The configuration, None where it cannot be read, and a row for each of its problems and warnings."""
    name = "configuration"
    try:
        cfg = load_config(path, overrides).cfg
    except (ValueError, OSError) as error:
        return None, [fault(name, "; ".join(_lines(error)), "see docs/configuration.md")]
    builds = cfg.task.name == "playground"  # its model and problems, before it looks for them
    try:
        validate(cfg, check_paths=not builds)
        problems = list(missing_packages(cfg)) if builds else []
    except ConfigError as error:
        problems = error.problems
    rows = [fault(name, *_problem(problem)) for problem in problems] or [ok(name, f"{path} holds together")]
    return cfg, rows + [warning(name, *_problem(line)) for line in warnings(cfg)]


def _problem(text: str) -> tuple[str, str]:
    """A problem as what was found and what to do, where it says both."""
    found, colon, mend = text.rpartition(": ")
    return (
        (found, mend) if colon and not mend.startswith("/") else (text, "change it in the file, or key=value after it")
    )


def _lines(error: Exception) -> list[str]:
    problems = error.problems if isinstance(error, ConfigError) else str(error).splitlines()
    return [line.strip() for line in problems]


def models(cfg: Config) -> Iterator[Row]:
    """The files of each model that is loaded."""
    starts = {spec.start: spec.name for spec in reversed(policy_specs(cfg))}  # one line for one model
    for model, policy in reversed(starts.items()):
        if not model:
            continue  # a problem of the configuration
        if looks_like_path(model):
            yield from _folder(f"{policy} model", Path(model).expanduser().absolute())
        else:
            yield from _on_hub(f"{policy} model", model, "model")


def _folder(name: str, folder: Path) -> Iterator[Row]:
    if not folder.is_dir():
        return  # a problem of the configuration
    weights = sorted(file for pattern in WEIGHTS for file in folder.glob(pattern))
    size = sum(file.stat().st_size for file in weights)
    if not weights:
        yield fault(name, f"{folder} holds no weights ({' or '.join(WEIGHTS)})", "download or export the model again")
    elif not any((folder / file).is_file() for file in TOKENIZERS):
        yield fault(name, f"{folder} holds no tokenizer ({', '.join(TOKENIZERS)})", "save the tokenizer there too")
    elif missing := _missing_shards(folder):
        yield fault(name, f"{folder} lacks {', '.join(missing)}", "download or export the model again")
    else:
        yield ok(name, f"{folder}, {size / GIB:.2f} GiB of weights")


def _missing_shards(folder: Path) -> list[str]:
    """Files that an index of weights names and that are not there."""
    named: set[str] = set()
    for index in folder.glob("*.index.json"):
        named |= set(json.loads(index.read_text())["weight_map"].values())
    return sorted(file for file in named if not (folder / file).is_file())


def _on_hub(name: str, repository: str, kind: str) -> Iterator[Row]:
    """A hub name: in the cache, else asked for at the hub."""
    cached = Path(hub_cache()) / f"{kind}s--{repository.replace('/', '--')}" / "snapshots"
    if any(cached.glob("*/*")):
        yield ok(name, f"{repository}, in the cache")
        return
    from huggingface_hub import HfApi, constants

    load = f"hf download {repository}" + (" --repo-type dataset" if kind == "dataset" else "")
    mend = f"on a machine with network: {load}, and copy its HF_HOME; or give a folder or file"
    if constants.HF_HUB_OFFLINE:
        yield fault(name, f"{repository} is not in the cache, and the network is forbidden (HF_HUB_OFFLINE)", mend)
        return
    try:
        HfApi().repo_info(repository, repo_type=kind, timeout=HUB_TIMEOUT_SECONDS)
        yield ok(name, f"{repository}, on the hub; it is loaded when the run starts")
    except Exception as error:  # of the many HTTP libraries' own
        yield fault(name, f"{repository} is not in the cache, and the hub says: {first_line(error)}", mend)


def data(cfg: Config) -> Iterator[Row]:
    """Each file of problems: its rows can be read and have the columns; a hub name as a model's."""
    from score_openrlhf.tasks import make_task

    if cfg.task.name == "playground" and not (cfg.data.train and os.path.exists(cfg.data.train)):
        yield ok("problems", "the playground writes its own when it starts")
        return
    for part, source in (("train", cfg.data.train), ("eval", cfg.data.eval)):
        name = f"data.{part}"
        if not source:
            continue
        if not looks_like_path(source):
            yield from _on_hub(name, source, "dataset")
        elif os.path.exists(source):
            limit = cfg.data.max_train_problems if part == "train" else cfg.data.max_eval_problems
            try:
                problems = make_task(cfg.task.name).load(
                    source,
                    split=cfg.data.train_split if part == "train" else cfg.data.eval_split,
                    problem_key=cfg.data.problem_key,
                    answer_key=cfg.data.answer_key,
                    limit=limit,
                )
                yield ok(name, f"{source}, problems {len(problems)}")
            except (ValueError, OSError) as error:
                yield fault(
                    name, first_line(error), "mend the file, or name its columns: data.problem_key, data.answer_key"
                )


def output_folder(cfg: Config) -> Iterator[Row]:
    """Where the run writes: a file can be made there, and the disk holds the checkpoints."""
    for name, folder in (("output_dir", cfg.output_dir), ("checkpoint_path", cfg.checkpoint_path)):
        if not folder:
            continue
        there = existing(folder)
        if not there.is_dir():
            yield fault(name, f"{there} is a file", f"choose another: {name}=/path")
            continue
        try:
            with tempfile.TemporaryFile(dir=there):
                pass
        except OSError as error:
            yield fault(name, f"{there}: {error.strerror}", f"choose another: {name}=/path")
            continue
        if name == "output_dir" and cfg.checkpoint_path:
            yield ok(name, f"{Path(folder).absolute()} can be written to")
            continue
        yield from _checkpoints(cfg, name, folder, there)


def _checkpoints(cfg: Config, name: str, folder: str, there: Path) -> Iterator[Row]:
    import shutil

    free = shutil.disk_usage(there).free
    said = f"{Path(folder).absolute()}, {free / GIB:.1f} GiB free"
    try:
        needed = checkpoint_bytes(cfg) * (cfg.ckpt.max_num + 1)  # a new one is whole before the oldest goes
    except ConfigError:
        yield ok(name, said)
        return
    said += f"; {cfg.ckpt.max_num} checkpoints and the one being written take {needed / GIB:.1f}"
    if free < needed:
        yield fault(name, said, f"ckpt.max_num=1, or another disk: {name}=/path")
    else:
        yield ok(name, said)


def checkpoint_bytes(cfg: Config) -> int:
    """Bytes of one checkpoint: master weights, Adam's two moments and the weights, of each trained policy.

    Raises ConfigError where a model's shape is not known.
    """
    from score_openrlhf.memory_plan.footprint import VALUE_BYTES
    from score_openrlhf.memory_plan.plan import model_shapes

    shapes = model_shapes(cfg)
    trained = [spec.name for spec in learning_specs(cfg) if spec.trains]
    one = 3 * MASTER_BYTES + VALUE_BYTES[cfg.ds.param_dtype]
    return sum(known.shape.num_params * one for policy, known in shapes.items() if policy in trained)


def plan(cfg: Config, torch: Import) -> Iterator[Row]:
    """Roles and memory against the GPUs of this machine; where they take more nodes, against as many as asked for."""
    from score_openrlhf.memory_plan.plan import Cluster, default_cluster, plan_memory

    try:
        asked = default_cluster(cfg, GPU_MEMORY)
    except ConfigError as error:
        yield warning("memory plan", first_line(error.problems[0]), "fill the section model_shape")
        return
    if is_cpu():
        yield ok("GPUs of the run", f"{asked.num_gpus} logical ones on this machine")
        return
    devices = (torch.facts or {}).get("devices") or []
    if not devices:
        return  # a row of its own
    here, least = len(devices), min(memory for _, memory, _ in devices)
    nodes = max(1, -(-asked.num_gpus // here))
    found = plan_memory(cfg, Cluster(nodes, here, least))
    said = f"{nodes} x {here} GPUs of {least / GIB:.1f} GiB; the fullest holds {found.peak.total / GIB:.1f}"
    if not found.fits:
        yield fault(
            "GPUs of the run", f"{said}: {found.problems[0]}", "score-openrlhf plan CONFIG says what would fit"
        )
    elif nodes > 1:
        yield warning("GPUs of the run", said, f"this is one node: start it on {nodes} (docs/clusters.md)")
    else:
        yield ok("GPUs of the run", said)

"""Two policies on the real stack: updated at the same time on GPUs of their own, in turns where they share them.

The roles are built as for a run; each rank and each engine also writes down what it did, and when.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import deepspeed
import pytest
import ray
import torch
from ray.util.placement_group import remove_placement_group

from benchmarks.tiny_models import make_model
from score_openrlhf.cluster.placement import PlacementError
from score_openrlhf.cluster.reservation import reserve
from score_openrlhf.config.schema import Config
from score_openrlhf.config.validate import validate
from score_openrlhf.policies import build as build_module
from score_openrlhf.policies import engines as engines_module
from score_openrlhf.policies.actors import _PolicyActor
from score_openrlhf.policies.build import Roles, build
from score_openrlhf.policies.engines import _RolloutActor
from score_openrlhf.policies.groups import ActorGroup
from score_openrlhf.tasks import make_task
from score_openrlhf.tasks.base import Problem
from score_openrlhf.trainer.rl_guided import RLGuidedSCoReTrainer
from tests.stack.conftest import REWARD
from tests.support.fakes import trajectory

Event = tuple[float, str]  # time.time() and what began or happened then
NUM_RANKS = 2
NUM_GPUS = 3 * NUM_RANKS + 2  # two policies and their reference, two engines that are not started


class _WatchedActor(_PolicyActor):
    """A policy's rank that writes down its updates, and can be told to wait in one for the other policy's."""

    def note(self, event: str) -> None:
        self.events = [*getattr(self, "events", []), (time.time(), event)]

    def take_events(self) -> list[Event]:
        taken, self.events = self.events, []
        return taken

    def meet(self, folder: str | None, name: str) -> None:
        """In the next updates, wait in `folder` until the ranks of both policies are there."""
        self.meeting = (Path(folder), name) if folder else None

    def fit_seeded(self, seed, kl_ctl=0.0):
        self.note("fit")
        if getattr(self, "meeting", None):
            folder, name = self.meeting
            (folder / f"{name}.{self.strategy.get_rank()}").touch()
            deadline = time.monotonic() + 60
            while len(list(folder.iterdir())) < 2 * NUM_RANKS:
                assert time.monotonic() < deadline, "the other policy's update has not begun"
                time.sleep(0.01)
        status = super().fit_seeded(seed, kl_ctl)
        self.note("fitted")
        return status

    def reload_states(self):
        self.note("reload")
        super().reload_states()

    def offload_states(self):
        super().offload_states()
        self.note("offload")

    def weights(self) -> dict[str, torch.Tensor]:
        found = {}
        for name, parameter in self.actor.model.module.named_parameters():
            with deepspeed.zero.GatheredParameters([parameter]):
                found[name] = parameter.detach().clone()
        return found

    def restore(self, folder: str) -> None:
        self.strategy.load_ckpt(self.actor.model, f"{folder}/_actor")


class _WatchedEngine(_RolloutActor):
    """An engine that writes down what of it is asleep, by the rules of vLLM (vllm/v1/executor/abstract.py).

    The calls go on to the real engine, on which sleep does nothing where there is no GPU: what an engine on a GPU
    would get wrong, sampling or receiving weights while they are away, is an error here.
    """

    async def __init__(self, *args, **kwargs):
        self.asleep: set[str] = set()
        self.events: list[Event] = []
        await super().__init__(*args, **kwargs)

    def note(self, event: str) -> None:
        if not self.events or self.events[-1][1] != event:
            self.events.append((time.time(), event))

    async def take_events(self) -> list[Event]:
        taken, self.events = self.events, []
        return taken

    async def sleep(self, level=1):
        assert level == 1, "level 2 drops the weights"
        assert not self.asleep, f"vLLM lets an engine stay as it is of which {self.asleep} is asleep already"
        await super().sleep(level)
        self.asleep = {"weights", "kv_cache"}
        self.note("asleep")

    async def wake_up(self, tags=None):
        for tag in tags or ["weights", "kv_cache"]:
            assert tag in self.asleep, f"{tag} is awake"
            await super().wake_up([tag])
            self.asleep.remove(tag)
            self.note(f"wake {tag}")

    async def update_weight(self, *args, **kwargs):
        assert self.asleep == {"kv_cache"}, "weights are received by an engine without its cache"
        self.note("receive")
        await super().update_weight(*args, **kwargs)

    async def sample(self, request):
        assert not self.asleep
        self.note("sample")
        return await super().sample(request)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("two_policies")
    make_model(folder / "model")
    (folder / "reward.py").write_text(REWARD)
    return folder


@pytest.fixture(scope="module")
def watched(ray_session) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build_module, "PolicyActor", ray.remote(num_gpus=1)(_WatchedActor))
        patch.setattr(engines_module, "RolloutActor", ray.remote(_WatchedEngine))
        yield


def config(folder: Path, **changes: object) -> Config:
    cfg = Config(model_path=str(folder / "model"), method="rl_guided_score", guidance_lr=1e-3)
    cfg.task.reward_func = str(folder / "reward.py")
    cfg.rollout.batch_size, cfg.rollout.n_samples_per_prompt, cfg.guidance_samples = 2, 2, 2
    cfg.rollout.attempt_max_tokens = cfg.rollout.revision_max_tokens = cfg.rollout.guidance_max_tokens = 8
    cfg.rollout.micro_batch_size = cfg.train.micro_batch_size = 2
    cfg.data.max_len, cfg.data.train = 700, "none"
    cfg.actor.adam.lr = 1e-3
    cfg.ds.param_dtype, cfg.ds.attn_implementation = "fp32", "sdpa"
    cfg.vllm.enforce_eager = True
    for name, value in changes.items():
        *sections, last = name.split("__")
        node = cfg
        for section in sections:
            node = getattr(node, section)
        setattr(node, last, value)
    validate(cfg, check_paths=False)
    return cfg


@dataclass
class _Trainer(RLGuidedSCoReTrainer):
    """The trainer on roles of ours, with nothing written and nothing shown."""

    def __init__(self, cfg: Config, roles: Roles, **options):
        problems = [Problem(f"p{n}", f"What is {n} plus {n}?", str(2 * n), {}) for n in range(8)]
        nothing = lambda *args, **kwargs: None  # noqa: E731
        quiet = SimpleNamespace(phase=nothing, note=nothing, trajectories=nothing, output_dir=Path("none"))
        super().__init__(cfg, roles, problems, [], quiet, quiet, Path("none"))


def events_of(policy) -> list[Event]:
    ranks = ray.get(policy.actor_model_group.async_run_method(method_name="take_events"))
    return ranks[0]


# ── Too few GPUs ──


def test_a_cluster_that_is_too_small_is_refused_before_anything_starts(folder, watched):
    with pytest.raises(PlacementError) as error:
        build(config(folder, actor__num_gpus_per_node=4), make_task("math").templates)
    assert "solver_actor 4 + solver_engines 1 + solver_reference 4 + guidance_actor 4" in str(error.value)
    assert f"= 14 GPUs with a CPU each; there are {NUM_GPUS}. The cluster has: " in str(error.value)


def test_gpus_that_others_hold_are_waited_for_up_to_a_deadline(ray_session):
    held = reserve("another job", NUM_GPUS - 1, timeout_seconds=10)
    try:
        with pytest.raises(PlacementError) as error:
            reserve("solver_actor", 4, timeout_seconds=0.5)
        assert str(error.value).startswith("solver_actor waited 0.5 s for 4 GPUs with a CPU each. Free: ")
        assert f" 1 of {NUM_GPUS} GPUs" in str(error.value)
    finally:
        remove_placement_group(held)
    remove_placement_group(reserve("solver_actor", 4, timeout_seconds=10))  # nothing is left of the one that waited


# ── On GPUs of their own ──


class _WithoutEngines(_Trainer):
    def sync(self, policies):
        for policy in policies:
            policy.engines.version = policy.updates


@pytest.fixture(scope="module")
def split(folder, watched) -> Iterator[Roles]:
    """Policies and their one reference on two ranks each, without engines."""
    cfg = config(folder, placement="shared_reference", actor__num_gpus_per_node=NUM_RANKS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build_module, "create_engines", lambda *args, **kwargs: [])
        reserve_groups = build_module.reserve_groups
        patch.setattr(
            build_module,
            "reserve_groups",
            lambda groups, **o: reserve_groups([g for g in groups if not g.role.endswith("_engines")], **o),
        )
        init = _WatchedActor.init_model_from_pretrained
        patch.setattr(
            _WatchedActor,
            "init_model_from_pretrained",
            lambda self, strategy, pretrain, max_steps=None, vllm_engines=None: init(
                self, strategy, pretrain, max_steps, None
            ),
        )
        patch.setattr(build_module, "PolicyActor", ray.remote(num_gpus=1)(_WatchedActor))
        built = build(cfg, make_task("math").templates)
    solver, guidance = built.policies
    assert solver.reference_model_group is guidance.reference_model_group
    yield built
    groups = [solver.reference_model_group, *(policy.actor_model_group for policy in built.policies)]
    for actor in (actor for group in groups for actor in group._actor_handlers):
        ray.kill(actor)


def batch() -> list:
    return [
        trajectory(group, attempt, guidance, r1=float(attempt), r2=float((group + guidance) % 2),
                   attempt=range(10 + group, 20), revision=range(30, 38 + guidance), guidance=range(50, 53 + attempt))
        for group in range(4) for attempt in range(2) for guidance in range(2)
    ]  # fmt: skip


@dataclass
class Learned:
    """One step of both policies: their weights after it, the interval of each one's update, and the clock."""

    weights: dict[str, dict[str, torch.Tensor]]
    fits: dict[str, tuple[float, float]]
    seconds: dict[str, float]
    shared_seconds: dict[str, float]
    wall: float
    metrics: dict[str, float] = field(default_factory=dict)


def learn(cfg: Config, roles: Roles, meeting: Path | None) -> Learned:
    for policy in roles.policies:
        meet = dict(folder=str(meeting) if meeting else None, name=policy.name)
        ray.get(policy.actor_model_group.async_run_method(method_name="meet", **meet))
    trainer = _WithoutEngines(cfg, roles)
    start = time.perf_counter()
    metrics = trainer.update_policies(batch(), stage=2)
    wall = time.perf_counter() - start
    weights, fits = {}, {}
    for policy in roles.policies:
        weights[policy.name] = ray.get(policy.actor_model_group.async_run_method(method_name="weights"))[0]
        times = dict(map(reversed, events_of(policy)))
        fits[policy.name] = (times["fit"], times["fitted"])
    return Learned(weights, fits, trainer.clock.step, trainer.clock.total, wall, metrics)


@pytest.fixture(scope="module")
def both_orders(folder, split) -> tuple[dict, Learned, Learned]:
    """The weights at the start, and the same step made at once and one after the other."""
    for policy in split.policies:
        policy.save(str(folder / policy.name), "start", {})
    before = {
        policy.name: ray.get(policy.actor_model_group.async_run_method(method_name="weights"))[0]
        for policy in split.policies
    }
    (folder / "meeting").mkdir()
    at_once = learn(config(folder, placement="shared_reference"), split, folder / "meeting")
    for policy in split.policies:
        own = str(folder / policy.name)
        ray.get(policy.actor_model_group.async_run_method(method_name="restore", folder=own))
    in_turns = learn(
        config(folder, placement="colocate", vllm__enable_sleep=True, ds__enable_sleep=True), split, meeting=None
    )
    return before, at_once, in_turns


def test_updates_of_two_policies_on_their_own_gpus_overlap(both_orders):
    _, at_once, in_turns = both_orders
    solver, guidance = at_once.fits["solver"], at_once.fits["guidance"]
    assert max(solver[0], guidance[0]) < min(solver[1], guidance[1])
    solver, guidance = in_turns.fits["solver"], in_turns.fits["guidance"]
    assert solver[1] < guidance[0]


def test_weights_and_numbers_are_those_of_one_after_the_other(both_orders):
    before, at_once, in_turns = both_orders
    for policy, weights in at_once.weights.items():
        assert all(torch.equal(value, in_turns.weights[policy][name]) for name, value in weights.items())
        assert any(not torch.equal(value, before[policy][name]) for name, value in weights.items())
    for key, value in at_once.metrics.items():
        if not key.endswith(("/updates", "/optimizer_steps")):
            assert value == in_turns.metrics[key], key


def test_each_policys_seconds_are_its_own_and_the_runs_add_up(both_orders):
    _, at_once, in_turns = both_orders
    for learned in (at_once, in_turns):
        for policy, (start, end) in learned.fits.items():
            assert learned.seconds[f"{policy}_train"] >= end - start
        assert sum(learned.shared_seconds.values()) <= learned.wall
    assert sum(at_once.seconds.values()) > at_once.wall
    assert sum(at_once.shared_seconds.values()) == pytest.approx(at_once.wall, rel=0.1)


# ── On the same GPU ──


@pytest.fixture(scope="module")
def timeline(folder, watched) -> list[tuple[float, str, str]]:
    """Two steps of a colocated run in phases: (time, who, event), engines and policies together, in order of time."""
    sleeping = dict(vllm__enable_sleep=True, ds__enable_sleep=True, rollout__schedule="phased")
    cfg = config(folder, placement="colocate", **sleeping)
    roles = build(cfg, make_task("math").templates)
    engines = {f"{name} engine": engines.handles for name, engines in roles.engines.items()}
    trainer = _Trainer(cfg, roles)
    events = []
    for _ in range(2):
        metrics = trainer.train_step()
        assert metrics["solver/updated"] == metrics["guidance/updated"] == 1
        assert max(metrics["solver/engine_logprob_diff"], metrics["guidance/engine_logprob_diff"]) < 1e-4
    for who, (handle,) in engines.items():
        events += [(when, who, event) for when, event in ray.get(handle.take_events.remote())]
    for policy in roles.policies:
        events += [(when, policy.name, event) for when, event in events_of(policy)]
    for handle in (handle for handles in engines.values() for handle in handles):
        ray.kill(handle)
    return sorted(events)


def by(timeline, who: str) -> list[str]:
    return [event for _, name, event in timeline if name == who]


def test_an_engine_receives_without_its_cache_and_sleeps_whole_after_it(timeline):
    rollout = ["wake weights", "wake kv_cache", "sample", "asleep"]
    sync = ["wake weights", "receive", "wake kv_cache", "asleep"]
    start = ["asleep"]
    assert by(timeline, "guidance engine") == start + 2 * (rollout + sync)
    assert by(timeline, "solver engine") == start + 2 * (rollout + rollout + sync)  # attempts, then revisions


def test_one_engine_or_one_policys_states_are_on_the_gpu_at_a_time(timeline):
    holding: set[str] = set()
    seen = set()
    for _, who, event in timeline:
        if event in ("wake weights", "reload"):
            assert not holding, f"{who} comes while {holding} is there"
            holding.add(who)
        elif event in ("asleep", "offload"):
            holding.discard(who)
        elif event in ("fit", "sample", "receive"):
            assert holding == {who}
        seen |= holding
    assert not holding and seen == {"solver", "guidance", "solver engine", "guidance engine"}


def test_a_step_is_rollout_then_updates_then_syncs(timeline):
    order = [f"{who}: {event}" for _, who, event in timeline if event in ("sample", "fit", "receive")]
    step = [
        "solver engine: sample", "guidance engine: sample", "solver engine: sample",
        "solver: fit", "guidance: fit",
        "solver engine: receive", "guidance engine: receive",
    ]  # fmt: skip
    assert order == 2 * step


# ── Two threads, one reference ──


class _Rank:
    """An actor handle that notes its calls; the first rank holds thread 0's until thread 1's have been sent."""

    def __init__(self, hold: Callable[[], None]):
        self.calls: list[int] = []
        self.hold = hold
        self.forward = self

    def remote(self, thread: int) -> None:
        self.calls.append(thread)
        if thread == 0:
            self.hold()


@pytest.mark.parametrize("locked", [True, False])
def test_calls_of_two_threads_reach_all_ranks_in_the_same_order(locked):
    inside, sent = threading.Event(), threading.Event()

    def hold() -> None:  # with the lock thread 1 cannot send meanwhile, and only the wait's end goes on
        inside.set()
        sent.wait(0.5)

    group = ActorGroup.__new__(ActorGroup)
    group._one_call = threading.Lock()
    group._actor_handlers = [_Rank(hold), *(_Rank(lambda: None) for _ in range(3))]
    call = group.async_run_method if locked else super(ActorGroup, group).async_run_method

    def second() -> None:
        inside.wait()
        call("forward", 1)
        sent.set()

    threads = [threading.Thread(target=call, args=("forward", 0)), threading.Thread(target=second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    orders = {tuple(rank.calls) for rank in group._actor_handlers}
    assert orders == ({(0, 1)} if locked else {(0, 1), (1, 0)})  # what the lock is for

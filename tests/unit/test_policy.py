"""What an update, a sync and a save of a policy ask of its groups and engines, and in which order."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import score_openrlhf  # noqa: F401  before OpenRLHF, which imports flash_attn

# isort: split
from score_openrlhf.experience.maker import PolicyBatch
from score_openrlhf.policies import policy as policy_module
from score_openrlhf.policies.finite import SKIPPED, TAKEN, NonfiniteError
from score_openrlhf.policies.policy import Engines, Policy

BATCH = PolicyBatch([], {}, num_action_tokens=5, has_signal=True)


class Group:
    """A group of ranks that notes what it is asked; an update makes `steps_an_update` optimizer steps."""

    def __init__(self, name: str, events: list[str], steps_an_update: int = 1):
        self.name, self.events, self.steps_an_update = name, events, steps_an_update
        self.steps, self.asked = 0, []
        self.outcomes: list[str] = []  # of the optimizer steps of the next update
        self.bad_weight = ""

    def async_run_method(self, method_name: str, **options: Any) -> list[Any]:
        if method_name in ("optimizer_steps", "nonfinite_weight"):  # questions, which change nothing
            return [self.steps if method_name == "optimizer_steps" else self.bad_weight]
        self.asked.append((method_name, options))
        self.events.append(f"{self.name}.{method_name}")
        if method_name == "fit_seeded":
            num_skipped = self.outcomes.count(SKIPPED)
            self.steps += self.steps_an_update * (not num_skipped)
            prefix = "critic_" if self.name == "critic" else ""
            status = {"outcomes": self.outcomes, "first_nonfinite": "a gradient", "nonfinite_steps": num_skipped}
            return [{f"{self.name}_lr": 0.5, "skipped_windows": 0, **{prefix + key: v for key, v in status.items()}}]
        if method_name == "export_hf":
            Path(options["folder"]).mkdir()
            (Path(options["folder"]) / "weights").write_text("new")
        return [None]

    def async_run_method_batch(self, method_name: str, **options: Any) -> list[Any]:
        return self.async_run_method(method_name, **options)

    def seeds(self) -> list[int]:
        return [options["seed"] for name, options in self.asked if name == "fit_seeded"]


@pytest.fixture
def make(monkeypatch):
    """A policy without Ray and models: groups are `Group`, and `ray.get` gives back what it gets."""
    monkeypatch.setattr(policy_module, "ray", SimpleNamespace(get=lambda refs: refs))

    def make(*, name="solver", seed=3, critic=True, sleep=True, steps_an_update=1) -> Any:
        policy = Policy.__new__(Policy)
        policy.events = []
        policy.name, policy.seed, policy.updates, policy.steps_without_update = name, seed, 0, 0
        policy.max_nonfinite_steps, policy.nonfinite_in_a_row = 3, {"actor": 0, "critic": 0}
        policy.args = SimpleNamespace(
            train=SimpleNamespace(dynamic_batch_enable=False),
            ds=SimpleNamespace(enable_sleep=sleep),
            vllm=SimpleNamespace(enable_sleep=sleep),
        )
        policy.kl_ctl = SimpleNamespace(value=0.25)
        policy.tokenizer = SimpleNamespace(chat_template="a template")
        policy.engines = Engines([], "")
        policy.actor_model_group = Group("actor", policy.events, steps_an_update)
        policy.critic_model_group = Group("critic", policy.events) if critic else None
        policy.broadcast_to_vllm = lambda: policy.events.append("broadcast")
        return policy

    def engine_call(handles, method, **options):
        made[-1].events.append(" ".join([f"engines.{method}", *options.get("tags", [])]))

    made: list[Any] = []
    monkeypatch.setattr(policy_module, "batch_vllm_engine_call", engine_call)

    def keep(**options):
        made.append(make(**options))
        return made[-1]

    return keep


def test_critic_and_actor_learn_one_after_the_other_each_alone_on_the_gpu(make):
    policy = make()
    status = policy.update(BATCH, 0)
    assert policy.events == [
        "actor.append", "critic.append",
        "critic.reload_states", "critic.fit_seeded", "critic.offload_states",
        "actor.reload_states", "actor.fit_seeded", "actor.offload_states",
    ]  # fmt: skip
    assert (status["critic_lr"], status["actor_lr"]) == (0.5, 0.5)
    assert (
        "fit_seeded",
        {"seed": policy.actor_model_group.seeds()[0], "kl_ctl": 0.25},
    ) in policy.actor_model_group.asked


def test_without_sleep_and_critic_an_update_is_append_and_fit(make):
    policy = make(critic=False, sleep=False)
    policy.update(BATCH, 0)
    assert policy.events == ["actor.append", "actor.fit_seeded"]


def test_an_update_is_counted_and_one_that_made_no_optimizer_step_is_an_error(make):
    policy = make()
    policy.update(BATCH, 0)
    policy.update(BATCH, 1)
    assert policy.updates == 2
    still = make(steps_an_update=0)
    with pytest.raises(
        RuntimeError, match=r"update of step 4 had 5 action tokens and made no optimizer step \(still 0\)"
    ):
        still.update(BATCH, 4)
    assert still.updates == 0


def test_the_order_of_micro_batches_is_of_the_seed_the_policy_and_the_step(make):
    def seeds(steps, **options):
        policy = make(**options)
        for step in steps:
            policy.update(BATCH, step)
        assert policy.actor_model_group.seeds() == policy.critic_model_group.seeds()
        return policy.actor_model_group.seeds()

    first = seeds([0, 1, 2])
    assert first[1:] == seeds([1, 2])  # a resumed step repeats the one it replaces
    assert len({*first, *seeds([0, 1, 2], seed=4), *seeds([0, 1, 2], name="guidance")}) == 9


def test_weights_come_to_engines_that_then_sleep_whole(make):
    policy = make()
    policy.update(BATCH, 0)
    policy.update(BATCH, 1)
    policy.events.clear()
    policy.sync()
    assert policy.events == ["broadcast", "engines.wake_up kv_cache", "engines.sleep"]
    assert policy.engines.version == 2  # both updates are in them


def test_engines_that_do_not_sleep_only_get_the_weights(make):
    policy = make(sleep=False)
    policy.sync()
    assert policy.events == ["broadcast"]


def test_a_batch_that_is_not_finite_is_left_out(make):
    policy = make()
    status = policy.update(PolicyBatch([], {}, 5, True, nonfinite="advantages in 1 rows"), 0)
    assert (status["nonfinite_steps"], policy.updates, policy.events) == (1, 0, [])


@pytest.mark.parametrize("learner", ["actor", "critic"])
def test_steps_in_a_row_that_are_not_finite_end_the_run(make, learner):
    policy = make()
    group = policy.actor_model_group if learner == "actor" else policy.critic_model_group
    for step, outcome in enumerate((SKIPPED, SKIPPED, TAKEN, SKIPPED, SKIPPED)):
        group.outcomes = [outcome]
        policy.update(BATCH, step)  # never three in a row
    assert policy.updates == (1 if learner == "actor" else 5)  # of the actor's weights
    other = policy.critic_model_group if learner == "actor" else policy.actor_model_group
    other.outcomes = [TAKEN]  # the other's step does not end the row
    with pytest.raises(NonfiniteError, match=r"3 optimizer steps in a row .* the last in step 6; .* a gradient"):
        policy.update(BATCH, 5)


@pytest.mark.parametrize("learner", ["actor", "critic"])
def test_a_weight_that_is_not_finite_leaves_the_policy_nowhere(make, tmp_path, learner):
    policy = make()
    group = policy.actor_model_group if learner == "actor" else policy.critic_model_group
    group.bad_weight = "model.norm"
    for use in (policy.sync, lambda: policy.save("folder", "tag", {}), lambda: policy.export(str(tmp_path / "out"))):
        with pytest.raises(NonfiniteError, match=r"weight model\.norm is not finite"):
            use()
    assert policy.events == [] and not list(tmp_path.iterdir())


@pytest.mark.parametrize("method", ["reset_optimizer", "resume_schedule"])
def test_actor_and_critic_start_their_schedules_together(make, method):
    policy = make()
    getattr(policy, method)(7)
    for group in (policy.actor_model_group, policy.critic_model_group):
        assert group.asked == [(method, {"scheduler_steps": 7})]


def test_a_checkpoint_holds_the_critic_too(make):
    policy = make()
    policy.save("folder", "tag", {"global_step": 3})
    actor = ("save_policy", {"folder": "folder", "tag": "tag", "client_states": {"global_step": 3}})
    assert policy.actor_model_group.asked == [actor]
    assert policy.critic_model_group.asked == [("save_policy", {"folder": "folder", "tag": "tag"})]


def test_an_export_is_whole_or_the_one_before_it(make, tmp_path):
    folder = tmp_path / "solver"
    folder.mkdir()
    (folder / "weights").write_text("old")
    policy = make()
    ask = policy.actor_model_group.async_run_method

    def fail(method_name, **options):
        ask(method_name, **options)
        raise OSError("disk full")

    policy.actor_model_group.async_run_method = fail
    with pytest.raises(OSError):
        policy.export(str(folder))
    assert (folder / "weights").read_text() == "old"
    policy.actor_model_group.async_run_method = ask
    policy.export(str(folder))
    assert (folder / "weights").read_text() == "new" and not (tmp_path / "solver.tmp").exists()


def test_an_export_has_the_chat_template_that_the_run_was_given(make, tmp_path):
    policy = make()
    policy.export(str(tmp_path / "solver"))
    policy.chat_template = "{{ messages }}"
    policy.export(str(tmp_path / "solver"))
    exports = [options for name, options in policy.actor_model_group.asked if name == "export_hf"]
    assert [options["chat_template"] for options in exports] == [None, "{{ messages }}"]

"""`Policy`: everything one model needs to sample, be scored, learn and be saved; the trainer holds one or two.

The training side is OpenRLHF's own `BasePPOTrainer` (append, fit with reload and offload, broadcast to the engines) on
this policy's groups and its own copy of the arguments; a frozen guidance model has engines and nothing else.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import ray
from openrlhf.trainer.ppo_trainer import BasePPOTrainer
from openrlhf.trainer.ppo_utils.experience import balance_experiences
from openrlhf.trainer.ray.launcher import RayActorGroup
from openrlhf.trainer.ray.vllm_engine import batch_vllm_engine_call
from openrlhf.utils.logging_utils import init_logger

from score_openrlhf.config.schema import Config
from score_openrlhf.experience.maker import PolicyBatch, PolicyExperienceMaker, nonfinite_numbers
from score_openrlhf.policies.finite import SKIPPED, TAKEN, NonfiniteError
from score_openrlhf.policies.strategy import make_strategy
from score_openrlhf.rollout.trajectory import request_seed

logger = init_logger(__name__)


@dataclass
class Engines:
    """The engines of one model and the number of updates their weights have seen."""

    handles: list[Any]
    model_path: str
    version: int = 0


class Policy(BasePPOTrainer):
    """A trained policy: `actor group + reference group + engines + experience maker + KL controller + arguments`."""

    chat_template: str | None = None  # another than its tokenizer's own, to be exported with it

    def __init__(
        self,
        name: str,
        args: SimpleNamespace,
        engines: Engines,
        actor_group: RayActorGroup,
        reference_group: RayActorGroup | None,
        tokenizer: Any,
        seed: int,
        critic_group: RayActorGroup | None = None,
        param_offload: bool = False,
        max_nonfinite_steps: int = 3,
    ):
        super().__init__(
            strategy=make_strategy(args, param_offload=param_offload),
            actor_model_group=actor_group,
            critic_model_group=critic_group,
            reward_model_group=None,
            reference_model_group=reference_group,
            vllm_engines=engines.handles,
            tokenizer=tokenizer,
        )
        self.name = name
        self.engines = engines
        self.seed = seed
        self.max_nonfinite_steps = max_nonfinite_steps
        self.nonfinite_in_a_row = {"actor": 0, "critic": 0}  # optimizer steps skipped since the last one taken
        self.updates = 0  # updates of this policy's weights over its whole life
        self.steps_without_update = 0
        self.maker: PolicyExperienceMaker

    def use_maker(self, maker_class: type[PolicyExperienceMaker], cfg: Config) -> None:
        """Make this policy's experience maker, on its own groups and KL controller."""
        self.maker = maker_class.from_config(
            cfg,
            self.actor_model_group,
            self.critic_model_group,
            None,
            self.reference_model_group,
            self.kl_ctl,
            self.strategy,
            self.tokenizer,
        )

    @property
    def optimizer_steps(self) -> int:
        return ray.get(self.actor_model_group.async_run_method(method_name="optimizer_steps"))[0]

    @property
    def loaded_step(self) -> int:
        """The step of the checkpoint the actor was loaded from, by its own state; 0 when it was not."""
        states = ray.get(self.actor_model_group.async_run_method(method_name="get_checkpoint_states"))
        return int(states[0].get("global_step", 0))

    def init_model(self, scheduler_steps: int) -> list[Any]:
        """Start loading the actor (from `args.ckpt.path` when `args.ckpt.load_enable`); returns Ray refs."""
        return self.actor_model_group.async_init_model_from_pretrained(
            self.strategy, self.engines.model_path, scheduler_steps, self.engines.handles
        )

    def update(self, batch: PolicyBatch, step: int) -> dict[str, Any]:
        """One pass of the host's update over `batch`; returns its status.

        A batch that is not finite is left out, as an optimizer step that is not. Raises NonfiniteError after
        `max_nonfinite_steps` of either in a row, and RuntimeError if the optimizer did not step for no such reason.
        """
        bad = batch.nonfinite or nonfinite_numbers(batch.experiences)
        if bad:
            weight = ray.get(self.actor_model_group.async_run_method(method_name="nonfinite_weight"))[0]
            bad = f"the weight {weight} ({bad})" if weight else bad
            self._count_nonfinite("actor", [SKIPPED], bad, step)
            return {"skipped_windows": 0, "nonfinite_steps": 1}
        before = self.optimizer_steps
        experiences = batch.experiences
        if self.args.train.dynamic_batch_enable:
            experiences = balance_experiences(experiences, self.args)
        append = {"method_name": "append", "experience": experiences}
        ray.get([ref for group in self.learners for ref in group.async_run_method_batch(**append)])
        self._fit_seed = request_seed(self.seed, self.name, "fit", step) % (2**31)
        status = self.ppo_train(step)
        after = self.optimizer_steps
        if after == before and not status["skipped_windows"] and not status["nonfinite_steps"]:
            raise RuntimeError(
                f"{self.name}: the update of step {step} had {batch.num_action_tokens} action tokens and made no "
                f"optimizer step (still {after}); DeepSpeed's accumulation does not fit the batch"
            )
        self.updates += after > before
        for learner, prefix in (("actor", ""), ("critic", "critic_")):
            outcomes, first = (status.pop(f"{prefix}{key}", None) for key in ("outcomes", "first_nonfinite"))
            self._count_nonfinite(learner, outcomes or [], first or "", step)
        return status

    def _count_nonfinite(self, learner: str, outcomes: list[str], first: str, step: int) -> None:
        """Take in what became of optimizer steps; fp16 steps that only lowered the loss scale count neither way."""
        policy = self.name if learner == "actor" else f"{self.name}'s critic"
        num_skipped = outcomes.count(SKIPPED)
        if num_skipped:
            logger.warning(
                "step %d: %s: %d optimizer steps skipped, not finite: %s", step + 1, policy, num_skipped, first
            )
        for outcome in outcomes:
            if outcome == TAKEN:
                self.nonfinite_in_a_row[learner] = 0
            elif outcome == SKIPPED:
                self.nonfinite_in_a_row[learner] += 1
            if self.nonfinite_in_a_row[learner] >= self.max_nonfinite_steps:
                raise NonfiniteError(
                    f"{policy}: {self.max_nonfinite_steps} optimizer steps in a row were not finite, the last in step "
                    f"{step + 1}; the first thing not finite: {first}. None of them was taken: weights, engines and "
                    "checkpoints are as before. Lower the learning rate, or look at the step's trajectories and "
                    "rewards; max_nonfinite_steps is the limit."
                )

    def check_weights(self, use: str) -> None:
        """Raise NonfiniteError, naming the weight, unless all weights are finite: the last line before `use`."""
        for learner, group in zip(("", "'s critic"), self.learners, strict=False):
            name = ray.get(group.async_run_method(method_name="nonfinite_weight"))[0]
            if name:
                raise NonfiniteError(
                    f"{self.name}{learner}: the weight {name} is not finite after {self.updates} updates, so there is "
                    f"no {use}; the last checkpoint is from before it. A smaller learning rate or a larger "
                    "actor.adam.eps may help."
                )

    def ppo_train(self, global_steps: int) -> dict[str, Any]:
        """The host's order (critic, then actor; reload, fit, offload), micro batches ordered by the step's seed."""
        status: dict[str, Any] = {}
        learners: list[tuple[RayActorGroup, dict[str, Any]]] = []
        if self.critic_model_group is not None:
            learners.append((self.critic_model_group, {}))
        learners.append((self.actor_model_group, {"kl_ctl": self.kl_ctl.value}))
        for group, options in learners:
            if self.args.ds.enable_sleep:
                ray.get(group.async_run_method(method_name="reload_states"))
            fit = group.async_run_method(method_name="fit_seeded", seed=self._fit_seed, **options)
            status.update(ray.get(fit)[0])
            if self.args.ds.enable_sleep:
                ray.get(group.async_run_method(method_name="offload_states"))
        return status

    @property
    def learners(self) -> list[RayActorGroup]:
        """The groups that hold an optimizer: the policy's own and, where there is one, the critic's."""
        return [group for group in (self.actor_model_group, self.critic_model_group) if group is not None]

    def reset_optimizer(self, scheduler_steps: int) -> None:
        """Start the optimizers anew, with a learning-rate schedule of `scheduler_steps`."""
        self._on_learners("reset_optimizer", scheduler_steps=scheduler_steps)

    def resume_schedule(self, scheduler_steps: int) -> None:
        """After a checkpoint was loaded: go on in a schedule of this length, not in the one that a run begins with."""
        self._on_learners("resume_schedule", scheduler_steps=scheduler_steps)

    def _on_learners(self, method: str, **options: Any) -> None:
        ray.get([ref for g in self.learners for ref in g.async_run_method(method_name=method, **options)])

    def sync(self) -> float:
        """Send the weights to the policy's engines; returns seconds."""
        start = time.perf_counter()
        self.check_weights("sync with its engines")
        self.broadcast_to_vllm()  # wakes the weights of engines that sleep
        if self.args.vllm.enable_sleep:
            # The host would leave the weights on the GPU, and so would vLLM: to it an engine that is awake in part is
            # asleep, and it does nothing (vllm/v1/executor/abstract.py, sleep). So it is woken whole first.
            batch_vllm_engine_call(self.engines.handles, "wake_up", tags=["kv_cache"])
            batch_vllm_engine_call(self.engines.handles, "sleep")
        self.engines.version = self.updates
        return time.perf_counter() - start

    def save(self, folder: str, tag: str, client_states: dict[str, Any]) -> None:
        """Write `folder/_actor/tag`; `client_states` hold the keys the host's own resume reads."""
        self.check_weights("checkpoint")
        ray.get(
            self.actor_model_group.async_run_method(
                method_name="save_policy", folder=folder, tag=tag, client_states=client_states
            )
        )
        if self.critic_model_group is not None:
            ray.get(self.critic_model_group.async_run_method(method_name="save_policy", folder=folder, tag=tag))

    def export(self, folder: str) -> None:
        """Write the policy in Hugging Face form to `folder`, whole or not at all."""
        import shutil

        self.check_weights("export")
        temporary = f"{folder}.tmp"
        shutil.rmtree(temporary, ignore_errors=True)
        export = dict(folder=temporary, chat_template=self.chat_template)
        ray.get(self.actor_model_group.async_run_method(method_name="export_hf", **export))
        if os.path.isdir(folder):
            shutil.rmtree(folder)
        os.rename(temporary, folder)

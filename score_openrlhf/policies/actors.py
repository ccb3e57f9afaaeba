"""OpenRLHF's Ray actors, subclassed in the one place where a `@ray.remote` class can be: what they lack is added here.

`PolicyActor` adds a step counter, checkpoints into a folder of the caller's choice, a repeatable order of micro
batches and an optimizer that can start anew; `PolicyUpdate` skips optimizer windows without action tokens on all ranks
alike.
"""

from __future__ import annotations

import math
import os
from typing import Any

import openrlhf.trainer.ray.ppo_actor as host_actor
import openrlhf.trainer.ray.ppo_critic as host_critic
import ray
import torch
from openrlhf.trainer.ray.launcher import ReferenceModelActor as HostReferenceActor
from openrlhf.utils.distributed_util import torch_dist_barrier_and_cuda_sync
from peft import PeftModel

from score_openrlhf.policies import lora
from score_openrlhf.policies.optimizer import Learner

DS_FOLDER = "_actor"  # the host's own names: its --ckpt.path points at the folder above
CRITIC_FOLDER = "_critic"


class PolicyUpdate(host_actor.ActorPPOTrainer):
    """The host's update of one policy, safe for windows and micro batches in which every row is masked."""

    num_skipped_windows = 0

    def broadcast_to_vllm(self) -> None:
        if isinstance(self.actor.model.module, PeftModel):
            lora.broadcast(self)
        else:
            super().broadcast_to_vllm()

    def ppo_train(self, kl_ctl: float) -> dict[str, float]:
        self._skipped_micro_batches = 0
        status = super().ppo_train(kl_ctl)
        windows = self._skipped_micro_batches / max(self.strategy.accumulated_gradient, 1)
        status["skipped_windows"] = math.ceil(windows)
        return status

    def training_step(self, experience, kl_ctl, step, loss_batch_info=None):
        """As the host's, but a window without action tokens is left out, where the host would divide by zero.

        The token count in `loss_batch_info` is global, so every rank takes the same branch, and it is the same for all
        micro batches of a window, so DeepSpeed's accumulation counter stays in step.
        """
        if loss_batch_info is not None and float(loss_batch_info["batch_num_tokens"]) == 0:
            self._skipped_micro_batches += 1
            zero = torch.zeros(())
            return {
                "metrics": {"policy_loss": zero, "actor_lr": self.actor_scheduler.get_last_lr()[0]},
                "weights": {"policy_loss": "sample", "actor_lr": None},
                "num_samples": float(experience.action_mask.shape[0]),
                "num_action_tokens": 0.0,
            }
        status = super().training_step(experience, kl_ctl, step, loss_batch_info)
        if status["num_action_tokens"] == 0:
            # means over no tokens are 0/0 in the host's logging; they carry no weight, but NaN * 0 is NaN
            for key, value in status["metrics"].items():
                if isinstance(value, torch.Tensor):
                    status["metrics"][key] = torch.nan_to_num(value.float())
            # the host then divides its token-weighted means by the tokens of all ranks, which may have none either
            # (ppo_actor.py, merged_status): a weight next to nothing instead of 0/0
            status["num_action_tokens"] = 1e-9
        return status


class CriticUpdate(host_critic.CriticPPOTrainer):
    """The host's update of the critic, safe for windows and micro batches in which every row is masked."""

    def ppo_train(self) -> dict[str, float]:
        """As the host's, which logs norm and rate as means over micro batches, of which the last alone steps."""
        self._last: dict[str, float] = {}
        return super().ppo_train() | self._last

    def training_step(self, experience, step, loss_batch_info=None):
        """As the host's, but a window without action tokens is left out on all ranks alike."""
        if loss_batch_info is not None and float(loss_batch_info["batch_num_tokens"]) == 0:
            return dict.fromkeys(("critic_loss", "values", "critic_lr", "critic_grad_norm"), 0.0)
        status = super().training_step(experience, step, loss_batch_info)
        self._last = {key: status[key] for key in ("critic_lr", "critic_grad_norm")}
        return {key: 0.0 if value != value else value for key, value in status.items()}  # a mean over no tokens is NaN


# init_model_from_pretrained names these classes ("configure Trainer"), so they are replaced where it looks them up.
host_actor.ActorPPOTrainer = PolicyUpdate
host_actor.Actor = lora.AdaptedActor
host_critic.CriticPPOTrainer = CriticUpdate


class _PolicyActor(Learner, host_actor.PolicyModelActor.__ray_actor_class__):  # type: ignore[name-defined]
    """One rank of a trained policy."""

    def fit_seeded(self, seed: int, kl_ctl: float = 0.0) -> dict[str, float]:
        """The host's `fit` with the order of micro batches drawn from `seed`, so that a resumed run repeats it."""
        torch.manual_seed(seed)
        return self.fit(kl_ctl)

    def optimizer_steps(self) -> int:
        """Optimizer steps this policy has made, over its whole life (restored with a checkpoint)."""
        return int(self.actor.model.global_steps)

    @property
    def engine(self) -> Any:
        return self.actor.model

    @property
    def schedule(self) -> Any:
        return self.strategy.args.actor

    def save_policy(self, folder: str, tag: str, client_states: dict[str, Any]) -> None:
        """Write weights, optimizer, schedule and `client_states` to `folder/_actor/tag` (the host's layout)."""
        self.strategy.save_ckpt(
            self.actor.model,
            os.path.join(folder, DS_FOLDER),
            tag,
            max_num=1,
            max_mem=float("inf"),
            client_state=client_states,
        )
        torch_dist_barrier_and_cuda_sync()

    def export_hf(self, folder: str) -> None:
        """Write the policy in Hugging Face form, tokenizer and chat template included, to `folder`."""
        model = self.strategy._unwrap_model(self.actor)
        use_cache = model.config.use_cache
        model.config.use_cache = True  # the host switches it off for training
        try:
            if isinstance(model, PeftModel):  # the host would write adapters alone, which no engine loads by itself
                lora.export(model, self.tokenizer, folder, zero_stage=self.strategy.args.ds.zero_stage)
            else:
                self.strategy.save_model(self.actor, self.tokenizer, folder)
        finally:
            model.config.use_cache = use_cache


class _CriticActor(Learner, host_critic.CriticModelActor.__ray_actor_class__):  # type: ignore[name-defined]
    """One rank of the solver's critic."""

    def fit_seeded(self, seed: int) -> dict[str, float]:
        """The host's `fit` with the order of micro batches drawn from `seed`."""
        torch.manual_seed(seed)
        return self.fit()

    @property
    def engine(self) -> Any:
        return self.critic

    @property
    def schedule(self) -> Any:
        return self.strategy.args.critic

    def save_policy(self, folder: str, tag: str) -> None:
        """Write the critic to `folder/_critic/tag` (the host's layout)."""
        self.strategy.save_ckpt(self.critic, os.path.join(folder, CRITIC_FOLDER), tag, max_num=1, max_mem=float("inf"))
        torch_dist_barrier_and_cuda_sync()


CriticActor = ray.remote(num_gpus=1)(_CriticActor)
PolicyActor = ray.remote(num_gpus=1)(_PolicyActor)
ReferenceActor = HostReferenceActor

"""OpenRLHF's Ray actors, subclassed in the one place where a `@ray.remote` class can be: what they lack is added here.

`PolicyActor` adds a step counter, checkpoints into a folder of the caller's choice, a repeatable order of micro
batches and an optimizer that can start anew; `PolicyUpdate` and `CriticUpdate` skip optimizer windows without action
tokens on all ranks alike. Steps that are not finite are skipped by the strategy (`finite.py`).
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
from openrlhf.utils.loss_utils import get_loss_batch_info
from peft import PeftModel

from score_openrlhf.platform.ports import free_port
from score_openrlhf.policies import lora
from score_openrlhf.policies.finite import TAKEN
from score_openrlhf.policies.generation import savable
from score_openrlhf.policies.optimizer import Learner

DS_FOLDER = "_actor"  # the host's own names: its --ckpt.path points at the folder above
CRITIC_FOLDER = "_critic"


class Windows:
    """What both updates need to know of optimizer windows: which have no action tokens, and what the others came to.

    Losses are summed over the window's tokens here: the host averages its micro batches', which is the same only where
    each has as many tokens as the others (actor) or where there are no dynamic batches (critic).
    """

    strategy: Any
    replay_buffer: Any
    args: Any

    def begin(self, *losses: str) -> None:
        self.num_skipped = 0
        self.sums = dict.fromkeys(losses, 0.0)  # over tokens, on this rank, which may have none
        self.num_tokens = 0.0
        self.at_last_step: dict[str, float] = {}  # what the optimizer last stepped with

    def loss_batch_info(self, experience: Any, step: int, given: dict[str, Any] | None) -> dict[str, Any]:
        """The global counts of the window that micro batch `step` is in; with dynamic batches the host gives none."""
        if given is not None:
            return given
        dynamic = self.args.train.dynamic_batch_enable
        return get_loss_batch_info(
            self.strategy, experience.action_mask, replay_buffer=self.replay_buffer, step=step, dynamic_batch=dynamic
        )

    def mark_window(self, engine: Any, step: int) -> None:
        """Tell DeepSpeed whether micro batch `step` ends a window, which with dynamic batches it cannot count.

        The host lets it take each for one, and calls its step after the last alone. ZeRO-2 then keeps the last micro
        batch's gradient and forgets the others (deepspeed/runtime/zero/stage_1_and_2.py, averaged_gradients).
        """
        if self.args.train.dynamic_batch_enable:
            engine.set_gradient_accumulation_boundary(self.ends_window(step))

    def is_empty(self, info: dict[str, Any], step: int) -> bool:
        """Whether the window has no action tokens on any rank; counts it at its end.

        The counts are global, so every rank takes the same branch, and they are the same for all micro batches of a
        window, so DeepSpeed's accumulation counter stays in step.
        """
        empty = float(info["batch_num_tokens"]) == 0
        self.num_skipped += empty and self.ends_window(step)
        return empty

    def ends_window(self, step: int) -> bool:
        if self.args.train.dynamic_batch_enable:
            return bool(self.replay_buffer.dynamic_optimizer_step[step])
        return (step + 1) % max(self.strategy.accumulated_gradient, 1) == 0

    def add(self, losses: dict[str, float], info: dict[str, Any], num_tokens: float) -> None:
        """Take in a micro batch's losses, each a sum over its tokens, scaled for DeepSpeed by the window's counts."""
        scale = float(info["batch_num_tokens"]) / info["dp_size"]
        if num_tokens and all(map(math.isfinite, losses.values())):
            self.num_tokens += num_tokens
            for key, loss in losses.items():
                self.sums[key] += loss * scale

    def note_step(self, step: int, **values: float) -> None:
        """Keep what is true of an optimizer step that was taken."""
        if self.ends_window(step) and self.strategy.guard.steps_now:
            self.at_last_step = values

    def report(self, status: dict[str, Any], prefix: str = "") -> dict[str, Any]:
        """`status` with the losses over all ranks' tokens, and with what became of each window.

        Losses and norms are there only where there were tokens and a step.
        """
        whole = self.strategy.all_reduce({**self.sums, "tokens": self.num_tokens}, "sum")
        num_tokens = whole.pop("tokens")
        own = (*self.sums, "actor_grad_norm", "critic_grad_norm")
        status = {key: value for key, value in status.items() if key not in own}
        status |= {key: value / num_tokens for key, value in whole.items() if num_tokens} | self.at_last_step
        outcomes, first = self.strategy.guard.take() if self.strategy.guard else ([], "")
        return status | {
            f"{prefix}skipped_windows": self.num_skipped,
            f"{prefix}nonfinite_steps": len(outcomes) - outcomes.count(TAKEN),
            f"{prefix}outcomes": outcomes,
            f"{prefix}first_nonfinite": first,
        }


class PolicyUpdate(Windows, host_actor.ActorPPOTrainer):
    """The host's update of one policy, safe for windows and micro batches in which every row is masked."""

    def broadcast_to_vllm(self) -> None:
        if isinstance(self.actor.model.module, PeftModel):
            lora.broadcast(self)
        else:
            super().broadcast_to_vllm()

    def ppo_train(self, kl_ctl: float) -> dict[str, Any]:
        self.begin("policy_loss", *(["entropy_loss"] if self.args.actor.entropy_coef is not None else []))
        return self.report(super().ppo_train(kl_ctl))

    def training_step(self, experience, kl_ctl, step, loss_batch_info=None):
        """As the host's, but a window without action tokens is left out, where the host would divide by zero."""
        info = self.loss_batch_info(experience, step, loss_batch_info)
        if self.is_empty(info, step):
            zero = torch.zeros(())
            return {
                "metrics": {"policy_loss": zero, "actor_lr": self.actor_scheduler.get_last_lr()[0]},
                "weights": {"policy_loss": "sample", "actor_lr": None},
                "num_samples": float(experience.action_mask.shape[0]),
                "num_action_tokens": 0.0,
            }
        self.mark_window(self.actor.model, step)
        status = super().training_step(experience, kl_ctl, step, info)
        metrics = status["metrics"]
        self.add({key: float(metrics[key]) for key in self.sums}, info, status["num_action_tokens"])
        self.note_step(step, actor_grad_norm=metrics.get("actor_grad_norm", 0.0))
        if status["num_action_tokens"] == 0:
            # means over no tokens are 0/0 in the host's logging; they carry no weight, but NaN * 0 is NaN
            for key, value in metrics.items():
                if isinstance(value, torch.Tensor):
                    metrics[key] = torch.nan_to_num(value.float())
            # the host then divides its token-weighted means by the tokens of all ranks, which may have none either
            # (ppo_actor.py, merged_status): a weight next to nothing instead of 0/0
            status["num_action_tokens"] = 1e-9
        return status


class CriticUpdate(Windows, host_critic.CriticPPOTrainer):
    """The host's update of the critic, safe for windows and micro batches in which every row is masked."""

    def ppo_train(self) -> dict[str, Any]:
        """As the host's, which logs norm and rate as means over micro batches, of which the last alone steps."""
        self.begin("critic_loss")
        return self.report(super().ppo_train(), prefix="critic_")

    def training_step(self, experience, step, loss_batch_info=None):
        """As the host's, but a window without action tokens is left out on all ranks alike."""
        info = self.loss_batch_info(experience, step, loss_batch_info)
        if self.is_empty(info, step):
            nothing = dict.fromkeys(("critic_loss", "values", "critic_grad_norm"), 0.0)
            return nothing | {"critic_lr": self.critic_scheduler.get_last_lr()[0]}
        self.mark_window(self.critic, step)
        status = super().training_step(experience, step, info)
        self.add({"critic_loss": status["critic_loss"]}, info, float(experience.action_mask.sum()))
        self.note_step(step, critic_lr=status["critic_lr"], critic_grad_norm=status["critic_grad_norm"])
        return {key: 0.0 if value != value else value for key, value in status.items()}  # a mean over no tokens is NaN


# init_model_from_pretrained names these classes ("configure Trainer"), so they are replaced where it looks them up.
host_actor.ActorPPOTrainer = PolicyUpdate
host_actor.Actor = lora.AdaptedActor
host_critic.CriticPPOTrainer = CriticUpdate


class OwnPort:
    """The port at which the ranks of a group meet: not one that an outgoing connection may take meanwhile."""

    @staticmethod
    def _get_free_port() -> int:
        return free_port()


class _PolicyActor(OwnPort, Learner, host_actor.PolicyModelActor.__ray_actor_class__):  # type: ignore[name-defined]
    """One rank of a trained policy."""

    def fit_seeded(self, seed: int, kl_ctl: float = 0.0) -> dict[str, float]:
        """The host's `fit` with the order of micro batches drawn from `seed`, so that a resumed run repeats it."""
        torch.manual_seed(seed)
        return self.fit(kl_ctl)

    def optimizer_steps(self) -> int:
        """Optimizer steps this policy has made, over its whole life (restored with a checkpoint)."""
        return int(self.engine.global_steps - self.engine.skipped_steps)  # DeepSpeed counts what it skips as well

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

    def export_hf(self, folder: str, chat_template: str | None) -> None:
        """Write the policy in Hugging Face form to `folder`, with its tokenizer, and `chat_template` in place of that
        tokenizer's own."""
        if chat_template is not None:
            self.tokenizer.chat_template = chat_template
        model = self.strategy._unwrap_model(self.actor)
        plain: Any = model.get_base_model() if isinstance(model, PeftModel) else model
        if plain.generation_config is not None:
            plain.generation_config, _ = savable(plain.generation_config)  # said before the start, preflight/models.py
        use_cache = model.config.use_cache
        model.config.use_cache = True  # the host switches it off for training
        try:
            if isinstance(model, PeftModel):  # the host would write adapters alone, which no engine loads by itself
                lora.export(model, self.tokenizer, folder, zero_stage=self.strategy.args.ds.zero_stage)
            else:
                self.strategy.save_model(self.actor, self.tokenizer, folder)
        finally:
            model.config.use_cache = use_cache


class _CriticActor(OwnPort, Learner, host_critic.CriticModelActor.__ray_actor_class__):  # type: ignore[name-defined]
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


class ReferenceModelActor(OwnPort, HostReferenceActor.__ray_actor_class__):  # type: ignore[name-defined]
    """One rank of a reference; as the host's, under whose name it is listed."""


PolicyActor = ray.remote(num_gpus=1)(_PolicyActor)
ReferenceActor = ray.remote(num_gpus=1)(ReferenceModelActor)

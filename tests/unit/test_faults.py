"""What public implementations of this method got wrong, and the tests that fail on each way of getting it wrong.

 1  Turn 2 is graded against another problem than turn 1.
    unit/test_executor.py::test_both_turns_are_graded_against_the_same_problem
 2  The guidance is sampled again for the update and paired with the reward of the old text.
    unit/test_faults.py::test_a_guidance_is_paired_with_the_revision_it_led_to
    unit/test_rows.py::test_guidance_row_is_its_prompt_and_the_sampled_guidance
 3  The guidance's log-probs are detached, or a method is hidden by a flag of its name: no gradient at all.
    unit/test_faults.py::test_the_guidance_loss_reaches_the_parameters
    unit/test_faults.py::test_no_flag_hides_a_method_of_its_name
    stack/test_gradients.py::test_the_guidance_models_gradient_is_that_of_the_equations
 4  The KL is made of numbers or of distances of parameters, or its coefficient is not used: no KL gradient.
    unit/test_objective_faults.py::test_the_kl_moves_the_policy_where_an_item_would_not
    unit/test_objective_faults.py::test_the_kl_is_of_policies_and_not_of_their_parameters
    unit/test_objective_faults.py::test_each_kl_coefficient_is_used_by_its_turn
    stack/test_gradients.py::test_another_objective_would_be_seen
 5  Stage II logs the shaped reward and trains on the plain one.
    unit/test_objective_faults.py::test_stage_2_trains_on_the_shaped_reward
    unit/test_experience_makers.py::test_stage_two_by_hand
    stack/test_gradients.py::test_the_solvers_gradient_is_that_of_the_equations
 6  The revision is scored under the static instruction, though it was sampled under the guided one.
    unit/test_faults.py::test_the_revision_is_scored_in_the_context_it_was_sampled_in
    unit/test_executor.py::test_revision_is_sampled_under_its_own_guidance
 7  The last number of the text is held against the first of the gold answer; a closing phrase stands for an answer.
    unit/test_faults.py::test_an_answer_is_more_than_its_numbers
    unit/test_grading_math.py::test_right
    unit/test_grading_math.py::test_wrong
    unit/test_grading_math.py::test_unparsable_is_apart_from_wrong
 8  A failed guidance becomes an empty or static one, and nobody is told.
    unit/test_faults.py::test_a_failed_guidance_is_counted_and_takes_no_part
    unit/test_executor.py::test_failed_guidance_is_marked_with_its_cause_and_the_others_go_on
    unit/test_rows.py::test_failed_and_masked_trajectories_stay_as_rows_without_actions
 9  A policy is skipped for ever because some statistic was never set.
    unit/test_faults.py::test_a_policy_with_signal_is_updated_at_its_first_due_step
    unit/test_faults.py::test_a_policy_that_stays_without_an_update_is_an_error
10  The guidance model is never checkpointed, or the two policies go on from different steps.
    unit/test_faults.py::test_both_policies_are_saved_and_go_on_from_the_same_step
    unit/test_checkpoint.py::test_policies_of_different_steps_are_refused
11  A KL for the attempt multiplies the revision's log-prob and so does not anchor the attempt.
    unit/test_objective_faults.py::test_the_kl_of_the_attempt_anchors_the_attempt
12  The rewards of the turns are summed to one number, so that the credit of each turn is lost.
    unit/test_objective_faults.py::test_each_turn_keeps_its_own_reward
    unit/test_objective_faults.py::test_a_critic_does_not_carry_the_revisions_reward_into_the_attempt
    unit/test_faults.py::test_openrlhfs_own_agent_shares_budget_and_reward_between_the_turns
13  Turn 1 eats turn 2's token budget; sampling parameters are shared by concurrent samples and changed by them.
    unit/test_faults.py::test_a_long_attempt_takes_nothing_from_the_revision
    unit/test_faults.py::test_openrlhfs_own_agent_shares_budget_and_reward_between_the_turns
14  The attempt is tokenised again for turn 2.
    unit/test_faults.py::test_the_attempt_stays_in_the_tokens_it_was_sampled_in
    stack/test_end_to_end.py::test_second_turn_extends_the_first
"""

from __future__ import annotations

import ast
import asyncio
import dataclasses
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import score_openrlhf  # before OpenRLHF, which imports flash_attn

# isort: split
from openrlhf.models import PolicyLoss
from openrlhf.utils.agent import AgentInstanceBase, MultiTurnAgentExecutor

from benchmarks.tiny_models import make_tokenizer
from score_openrlhf.config.schema import Config
from score_openrlhf.experience.maker import PolicyBatch
from score_openrlhf.experience.rows import solver_row
from score_openrlhf.policies.build import Roles
from score_openrlhf.rollout.metrics import trajectory_metrics
from score_openrlhf.rollout.prompts import SolverPrompts, encode_text
from score_openrlhf.rollout.trajectory import Sample
from score_openrlhf.tasks.base import Problem
from score_openrlhf.tasks.math import MathTask
from score_openrlhf.trainer import checkpoint
from score_openrlhf.trainer.score import NoUpdate, SCoReTrainer
from tests.support.fakes import grade, sample, trajectory
from tests.unit.test_executor import PLAN, PROBLEM, TEMPLATES, Engine, run
from tests.unit.test_experience_makers import guidance_maker

TESTS = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer()


def test_every_fault_has_tests_that_are_there():
    table: dict[int, list[tuple[str, str]]] = {}
    for line in __doc__.splitlines()[1:]:
        if fault := re.match(r" ?(\d+)  \S", line):
            tests = table.setdefault(int(fault[1]), [])
        elif line.strip():
            file, name = re.fullmatch(r"    (\w+/\w+\.py)::(\w+)", line).groups()
            tests.append((file, name))
    assert list(table) == list(range(1, 15))
    for tests in table.values():
        assert tests
        for file, name in tests:
            functions = [node.name for node in ast.parse((TESTS / file).read_text()).body if hasattr(node, "name")]
            assert name in functions, f"{file} has no {name}"


# ── 2 and 3: the guidance model's update ──


def two_guidances():
    """One attempt with two guidances: the first led to a right revision, the second to a wrong one."""
    return [
        trajectory(0, 0, 0, r2=1.0, guidance=(30, 31)),
        trajectory(0, 0, 1, r2=0.0, guidance=(40, 41, 42)),
    ]


def credit(trajectories) -> dict[tuple[int, ...], float]:
    """Advantage of the tokens of each guidance, by its token ids."""
    (experience,) = guidance_maker(kl_coef=0.0, micro=4).make_batch(trajectories, stage=2).experiences
    result = {}
    for ids, mask, advantages in zip(experience.sequences[:, 1:], experience.action_mask, experience.advantages):
        if mask.any():
            (advantage,) = set(advantages[mask.bool()].tolist())
            result[tuple(ids[mask.bool()].tolist())] = advantage
    return result


def test_a_guidance_is_paired_with_the_revision_it_led_to():
    rows = two_guidances()
    assert credit(rows) == credit(rows[::-1]) == {(30, 31): 1.0, (40, 41, 42): -1.0}

    # the faulty way: texts drawn anew take the places, and the rewards, of those that were answered
    again = [dataclasses.replace(row, guidance=other.guidance) for row, other in zip(rows, rows[::-1], strict=True)]
    assert credit(again) == {(30, 31): -1.0, (40, 41, 42): 1.0}


def test_the_guidance_loss_reaches_the_parameters():
    """OpenRLHF's policy loss on our experiences, with a table of logits (token before, token) as the policy."""
    (experience,) = guidance_maker(kl_coef=0.0, micro=4).make_batch(two_guidances(), stage=2).experiences
    table = torch.zeros(50, 50, requires_grad=True)
    before, tokens = experience.sequences[:, :-1], experience.sequences[:, 1:]
    log_probs = table.log_softmax(-1)[before, tokens] * experience.action_mask

    def loss(log_probs):
        return PolicyLoss()(log_probs, log_probs.detach(), experience.advantages, experience.action_mask)[0]

    loss(log_probs).backward()
    # 5 tokens in all; uniform probabilities of 1/50: each chosen token's logit moves by A * 49/50 / 5
    chosen = {(7, 30): 1, (30, 31): 1, (7, 40): -1, (40, 41): -1, (41, 42): -1}
    for place, advantage in chosen.items():
        others = sum(chosen[other] for other in chosen if other[0] == place[0] and other != place)
        assert table.grad[place].item() == pytest.approx(-(advantage * 49 - others) / 50 / 5)
    assert set(table.grad.abs().sum(1).nonzero().flatten().tolist()) == {7, 30, 40, 41}

    # the faulty way: log-probs that were detached, or computed without a graph
    assert not loss(log_probs.detach()).requires_grad


def hidden_methods(sources: list[str]) -> set[tuple[str, str]]:
    """`(class, name)` where `self.name = ...` hides a method of the class or of its bases within `sources`."""
    classes = {}
    for source in sources:
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.ClassDef):
                functions = [f for f in node.body if isinstance(f, (ast.FunctionDef, ast.AsyncFunctionDef))]
                assigned = {
                    target.attr
                    for target in ast.walk(node)
                    if isinstance(target, ast.Attribute) and isinstance(target.ctx, ast.Store)
                    if isinstance(target.value, ast.Name) and target.value.id == "self"
                }
                bases = [base.id for base in node.bases if isinstance(base, ast.Name)]
                classes[node.name] = ({f.name for f in functions if not f.decorator_list}, assigned, bases)

    def methods(name: str) -> set[str]:
        if name not in classes:
            return set()
        own, _, bases = classes[name]
        return own.union(*map(methods, bases))

    return {(name, attribute) for name in classes for attribute in classes[name][1] & methods(name)}


def test_no_flag_hides_a_method_of_its_name():
    faulty = """
class Trainer:
    def train_guidance_model(self): ...
class Guided(Trainer):
    def __init__(self, flag):
        self.train_guidance_model = flag
"""
    assert hidden_methods([faulty]) == {("Guided", "train_guidance_model")}
    package = Path(score_openrlhf.__file__).parent
    assert hidden_methods([path.read_text() for path in package.rglob("*.py")]) == set()


# ── 6 and 14: the context of the revision ──


def test_the_revision_is_scored_in_the_context_it_was_sampled_in(tokenizer):
    trajectories, solver, _, _ = run(tokenizer)
    sampled_in = [tuple(request.prompt_ids) for request in solver.requests[1:]]
    static = SolverPrompts(tokenizer, TEMPLATES)
    for t in trajectories:
        row = solver_row(t)
        start, revision = row.spans[1]
        assert tuple(row.token_ids[:start]) in sampled_in
        assert row.token_ids[start:] == t.revision.token_ids and revision is t.revision

        # the faulty way: the same revision after the fixed instruction, a context it was never sampled in
        faulty = dataclasses.replace(t, bridge_ids=static.bridge_ids(t.attempt.token_ids, None))
        start, _ = solver_row(faulty).spans[1]
        assert tuple(solver_row(faulty).token_ids[:start]) not in sampled_in


class Speller(Engine):
    """Answers letter by letter: tokens of its own choice, others than the tokenizer would take for the text."""

    async def _sample(self, request):
        answer = await super()._sample(request)
        ids = [i for letter in answer.text for i in encode_text(self.tokenizer, letter)]
        return Sample(ids, [-1.0] * len(ids), answer.text, True, request.version)


def test_the_attempt_stays_in_the_tokens_it_was_sampled_in(tokenizer):
    solver = Speller(tokenizer, lambda n: "The answer is 4.")
    trajectories, _, _, _ = run(tokenizer, solver=solver)
    first = solver.requests[0].prompt_ids
    for request, t in zip(solver.requests[1:], trajectories, strict=True):
        sampled = first + t.attempt.token_ids
        assert request.prompt_ids[: len(sampled)] == sampled == solver_row(t).token_ids[: len(sampled)]

    # the faulty way: ids of the decoded text are others, and log-probs of the sampled ones do not belong to them
    again = encode_text(tokenizer, tokenizer.decode(t.attempt.token_ids))
    assert tokenizer.decode(again) == "The answer is 4." and again != t.attempt.token_ids


# ── 7: grading ──


def last_number_against_first(text: str, gold: str) -> bool:
    found = [re.findall(r"\d+(?:\.\d+)?", words) for words in (text, gold)]
    return bool(found[0] and found[1]) and found[0][-1] == found[1][0]


@pytest.mark.parametrize(
    ("text", "gold", "status", "faulty"),
    [
        ("The answer is 1.", r"\frac{1}{2}", "wrong", True),
        (r"The answer is $\frac12$.", "0.5", "right", False),
        ("I get 18. Final Answer: The final answer is . I hope it is correct.", "18", "unparsable", True),
        ("The answer is 18. It took 3 steps.", "18", "right", False),
    ],
)
def test_an_answer_is_more_than_its_numbers(text, gold, status, faulty):
    assert MathTask().grade(text, gold).status == status
    assert last_number_against_first(text, gold) == faulty


# ── 8: failures ──


def test_a_failed_guidance_is_counted_and_takes_no_part(tokenizer):
    def reply(n):
        if n == 2:
            raise ValueError("engine said no")
        return "check the sum"

    trajectories, _, _, _ = run(tokenizer, guidance=Engine(tokenizer, reply))
    metrics = trajectory_metrics(trajectories)
    assert metrics["rollout/failed"] == 1 / 3
    assert metrics["acc_t2"] == 1.0  # of the two that have a revision
    (experience,) = guidance_maker(kl_coef=0.0, micro=4).make_batch(trajectories, stage=2).experiences
    assert (experience.action_mask.sum(1) > 0).tolist() == [True, False, True, False]
    assert not experience.advantages.any()  # both led to a right revision: neither is better

    # the faulty way: an empty hint in its place, whose wrong revision makes the others look good
    empty = dataclasses.replace(
        trajectories[1], failure=None, guidance=sample([5]), revision=sample([6]), grade_t2=grade(0.0)
    )
    rows = [trajectories[0], empty, trajectories[2]]
    (faulty,) = guidance_maker(kl_coef=0.0, micro=4).make_batch(rows, stage=2).experiences
    first_tokens = faulty.action_mask[:3].argmax(1, keepdim=True)
    assert faulty.advantages[:3].gather(1, first_tokens).flatten().tolist() == [0.5, -1.0, 0.5]


# ── 9 and 10: both policies, step by step ──


class FakePolicy:
    """A policy whose batch has as much to learn from as the test says, and whose checkpoint is one file."""

    def __init__(self, name: str, *, num_action_tokens: int = 10, has_signal: bool = True, loaded_step: int = 0):
        self.name = name
        self.maker = self
        self.batch = PolicyBatch([], {}, num_action_tokens, has_signal)
        self.updates = self.optimizer_steps = self.steps_without_update = 0
        self.loaded_step = loaded_step
        self.kl_ctl = SimpleNamespace(value=0.05)
        self.engines = SimpleNamespace(version=0)
        self.kept: dict = {}  # the maker's state

    def make_batch(self, trajectories, *, stage):
        return self.batch

    def update(self, batch, step):
        self.updates += 1
        self.optimizer_steps += 1
        return {"skipped_windows": 0, "nonfinite_steps": 0}

    def sync(self):
        self.engines.version = self.updates

    def state(self):
        return self.kept

    def restore(self, state):
        self.kept = state

    def save(self, folder, tag, client_states):
        target = Path(folder) / "_actor" / tag
        target.mkdir(parents=True)
        (target / "weights").write_text(self.name)


def trainer(root: Path, guidance: FakePolicy, *, limit: int = 3) -> SCoReTrainer:
    cfg = Config(method="rl_guided_score")
    cfg.guidance.max_steps_without_update = limit
    progress = SimpleNamespace(phase=lambda *args, **kwargs: None)
    run_log = SimpleNamespace(output_dir=root, steps=list)
    policies = [FakePolicy("solver", loaded_step=guidance.loaded_step), guidance]
    roles = Roles(policies, {policy.name: policy.engines for policy in policies})
    return SCoReTrainer(cfg, roles, [Problem("p", "1 plus 2?", "3", {})], [], run_log, progress, root)


def test_a_policy_with_signal_is_updated_at_its_first_due_step(tmp_path):
    """No running mean, no first reward, nothing at all has to be there before a policy learns."""
    guidance = FakePolicy("guidance")
    metrics = trainer(tmp_path, guidance).update_policy(guidance, [], 1)
    assert guidance.updates == 1
    assert (metrics["guidance/updated"], metrics["guidance/no_signal"]) == (1.0, 0.0)


def test_what_the_host_says_of_an_update_is_logged_under_the_policys_name(tmp_path):
    class Speaking(FakePolicy):
        def update(self, batch, step):
            said = {
                "entropy_loss": 1.5,
                "is_filter_ratio": 0.25,
                "critic_loss": 0.5,
                "policy_loss": 9.0,
                "values": 1.0,
            }
            return super().update(batch, step) | said

    guidance = Speaking("guidance")
    metrics = trainer(tmp_path, guidance).update_policy(guidance, [], 1)
    assert metrics["guidance/entropy_loss"] == 1.5  # actor.entropy_coef=0 asks for nothing but this line
    assert metrics["guidance/is_filter_ratio"] == 0.25
    assert metrics["guidance/critic_loss"] == 0.5
    assert metrics["guidance/policy_loss"] == 9.0
    assert "guidance/values" not in metrics
    assert metrics["guidance/grad_norm"] is None  # it took no step that would have one


@pytest.mark.parametrize(
    ("nothing", "cause"),
    [
        ({"num_action_tokens": 0}, "all failed, were masked or filtered"),
        ({"has_signal": False}, "every advantage is zero"),
    ],
)
def test_a_policy_that_stays_without_an_update_is_an_error(tmp_path, nothing, cause):
    guidance = FakePolicy("guidance", **nothing)
    guided = trainer(tmp_path, guidance, limit=3)
    guided.cfg.guidance.update_every = 2
    for _ in range(2):
        metrics = guided.update_policy(guidance, [], 1)
        assert (metrics["guidance/updated"], metrics["guidance/no_signal"]) == (0.0, 1.0)
        guided.step += 1
        guided.update_policy(guidance, [], 1)  # a step that is not its turn does not count
        guided.step += 1
    with pytest.raises(NoUpdate, match=f"guidance policy had no update for 3 steps.*{cause}"):
        guided.update_policy(guidance, [], 1)

    guided = trainer(tmp_path, guidance, limit=3)
    guidance.steps_without_update = 2
    guidance.batch = FakePolicy("guidance").batch
    guided.update_policy(guidance, [], 1)
    assert guidance.steps_without_update == 0


def test_both_policies_are_saved_and_go_on_from_the_same_step(tmp_path):
    guided = trainer(tmp_path, FakePolicy("guidance"))
    guided.step = 4
    guided.save()
    saved = checkpoint.newest(tmp_path, ["solver", "guidance"])
    weights = [path.read_text() for path in sorted(saved.path.glob("*/_actor/global_step4/weights"))]
    assert weights == ["guidance", "solver"]

    resumed = trainer(tmp_path, FakePolicy("guidance", loaded_step=4))
    resumed.resume(saved)
    assert resumed.step == 4

    # the faulty way: a solver of step 4 beside the guidance model as it was at the start
    forgetful = trainer(tmp_path, FakePolicy("guidance", loaded_step=4))
    forgetful.roles.policy("guidance").loaded_step = 0
    with pytest.raises(checkpoint.CheckpointError, match="guidance is of step 0"):
        forgetful.resume(saved)


# ── 12 and 13: what the turns share ──


def test_a_long_attempt_takes_nothing_from_the_revision(tokenizer):
    def budgets(attempt: str, plan) -> list[int]:
        solver = Engine(tokenizer, lambda n: attempt if n == 1 else "The answer is 3.", truncated=True)
        run(tokenizer, plan, solver=solver)
        return [request.max_tokens for request in solver.requests]

    plan = dataclasses.replace(PLAN)
    assert budgets("4", plan) == budgets("4 and " * 20, plan) == [40, 30, 30, 30]
    assert plan == PLAN
    with pytest.raises(dataclasses.FrozenInstanceError):
        plan.attempt_max_tokens = 1


class TwoTurns(AgentInstanceBase):
    """An agent of OpenRLHF's kind: turn 1 earns 0, turn 2 earns 11."""

    def __init__(self):
        self.num_steps = 0

    async def reset(self, states):
        return states

    async def step(self, state_dict):
        self.num_steps += 1
        done = self.num_steps == 2
        return {"rewards": torch.tensor(11.0 if done else 0.0), "environment_feedback": " again", "done": done}


def test_openrlhfs_own_agent_shares_budget_and_reward_between_the_turns(tokenizer):
    """Why the two turns have an executor of their own."""

    def walk(attempt: str):
        asked = []

        async def generate(prompt_ids, params, multi_modal_data=None):
            asked.append(params.max_tokens)
            ids = encode_text(tokenizer, attempt)
            output = SimpleNamespace(token_ids=ids, text=attempt, finish_reason="stop", logprobs=None)
            return SimpleNamespace(outputs=[output])

        params = SimpleNamespace(max_tokens=40, logprobs=None)
        engine = SimpleNamespace(generate=generate)
        walked = MultiTurnAgentExecutor(TwoTurns).execute(PROBLEM.text, "3", params, 200, tokenizer, engine)
        return asyncio.run(walked)["reward"], asked, params.max_tokens

    (reward, short, left), (_, long, _) = walk("4"), walk("4 and " * 20)
    assert reward == 11.0  # one number for both turns
    assert long[1] < short[1] - 15  # what turn 1 writes is taken from turn 2
    assert left != 40  # the caller's parameters are not what they were

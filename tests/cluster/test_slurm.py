"""A real SLURM of two nodes: a run that is warned, saves, is requeued, goes on and ends; and one that is cancelled."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.cluster import slurm
from tests.cluster.slurm import Cluster, Job, slurm_cluster
from tests.stack.conftest import ROOT, Bench

reason = slurm.missing()
pytestmark = pytest.mark.skipif(reason is not None, reason=str(reason))

SBATCH = str(ROOT / "launch" / "slurm" / "train_rl_guided.sbatch")
START_SECONDS = 300  # Ray on both nodes, engines and policies, to the first step, on two busy cores
END_SECONDS = 120  # a step, a checkpoint, and both nodes' processes gone
NUM_STEPS = 12


@pytest.fixture(scope="module")
def cluster():
    with slurm_cluster("n1", "n2") as made:
        yield made


# ── the batch script, with a stand-in for the launcher that ends as it is told ──

STAND_IN = """
echo "copy $SLURM_PROCID of start $((${SLURM_RESTART_COUNT:-0} + 1)) at $MASTER_ADDR:$MASTER_PORT with $*"
"""


@pytest.fixture
def project(tmp_path):
    """A folder that is a project to the batch script; its launch/start.sh is what the test writes."""
    (tmp_path / "launch").mkdir()
    return tmp_path


def submit(cluster: Cluster, project: Path, start: str, *words: str) -> Job:
    (project / "launch" / "start.sh").write_text(STAND_IN + start)
    return cluster.submit("--nodes=2", *words, SBATCH, "my.yaml", "data.train=a b.jsonl", cwd=project)


def test_no_project_is_said(cluster, tmp_path):
    job = cluster.submit("--nodes=1", SBATCH, cwd=tmp_path)
    assert job.wait_for("FAILED", seconds=60)["ExitCode"] == "2:0"
    assert f"no launch/start.sh in {tmp_path}" in job.log()
    assert "SCORE_OPENRLHF_ROOT" in job.log()


def test_project_elsewhere(cluster, project, tmp_path_factory):
    (project / "launch" / "start.sh").write_text("pwd")
    folder = tmp_path_factory.mktemp("elsewhere")
    words = (f"--export=ALL,SCORE_OPENRLHF_ROOT={project}", "--nodes=1", SBATCH)
    job = cluster.submit(*words, cwd=folder)
    job.wait_for("COMPLETED", seconds=60)
    assert job.log("n1") == f"{folder}\n"


def test_one_copy_a_node_with_the_words(cluster, project):
    job = submit(cluster, project, "", "--ntasks-per-node=2")  # what is asked of sbatch is not what srun starts
    job.wait_for("COMPLETED", seconds=60)
    said = [job.log(name) for name in ("n1", "n2")]
    words = rf"of start 1 at {re.escape(cluster.nodes['n1'].address)}:(\d+) with configs/rl_guided_score_math.yaml "
    words += r"my.yaml data.train=a b.jsonl\n"
    for rank, line in enumerate(said):
        assert re.fullmatch(f"copy {rank} {words}", line)


def test_the_status_of_a_failed_run_is_the_jobs(cluster, project):
    """One copy that fails does not get the other killed, whose status would hide its own."""
    job = submit(cluster, project, '[ "$SLURM_PROCID" = 0 ] && exit 3; sleep 3; exit 1')
    assert job.wait_for("FAILED", seconds=80)["ExitCode"] == "3:0"
    assert job.shown()["Restarts"] == "0"


def test_a_job_that_may_not_be_requeued_says_how_to_go_on(cluster, project):
    job = submit(cluster, project, "exit 75", "--no-requeue")
    assert job.wait_for("FAILED", seconds=60)["ExitCode"] == "75:0"
    assert "it could not be requeued; submit the same words again to go on" in job.log()


def test_a_warning_during_start_up_waits_for_the_driver(cluster, project):
    """SLURM's own warning, by the file's own header: five minutes before the limit of five minutes.

    The driver is not there yet when it comes: the batch script holds it until there is a process to tell.
    """
    driver = """
[ "${SLURM_RESTART_COUNT:-0}" = 0 ] || exit 0
[ "$SLURM_PROCID" = 0 ] || { while [ ! -e told ]; do sleep 0.1; done; exit 75; }
trap 'touch told; exit 75' USR1
while ! grep -q USR1 "slurm-$SLURM_JOB_ID.out"; do sleep 0.1; done
echo $$ >"$SCORE_OPENRLHF_PID_FILE"
while true; do sleep 0.1; done
"""
    job = submit(cluster, project, driver, "--time=5")
    # SLURM looks at the limits twice a minute
    job.wait_until(lambda: job.shown()["Restarts"] == "1", "to be requeued", seconds=150)
    job.wait_for("PENDING", seconds=60)
    job.start_soon()
    job.wait_for("COMPLETED", seconds=60)
    assert "copy 1 of start 2" in job.log("n2")


# ── the real run ──


@dataclass
class Story:
    """A job from its submission to its end, and what was seen on the way."""

    job: Job
    output: Path
    running: dict[str, list[str]] = field(default_factory=dict)  # command lines by node, while it trained
    warned_at: int = 0  # steps made when the signal was sent
    pending: dict[str, str] = field(default_factory=dict)  # the job between its two starts
    left_pending: list[str] = field(default_factory=list)  # processes on the nodes then
    checkpoints: list[str] = field(default_factory=list)  # and what had been saved
    steps_saved: list[int] = field(default_factory=list)
    ended: dict[str, str] = field(default_factory=dict)
    left: list[str] = field(default_factory=list)  # processes on the nodes after the end

    def steps(self) -> list[int]:
        path = self.output / "metrics.jsonl"
        if not path.is_file():
            return []
        # a line may be half written
        return [json.loads(line)["step"] for line in path.read_text().splitlines(keepends=True) if line[-1] == "\n"]


def train(cluster: Cluster, bench: Bench, name: str, *config: str, **changes: object) -> Story:
    """Submit a tiny run whose training groups have a rank on each node; returns when it has made a step."""
    values: dict[str, object] = {
        "guidance_model_path": bench.folder / "model",
        "data.eval": "null",
        "max_steps": NUM_STEPS,
        "guidance_samples": 2,
        "rollout.batch_size": 2,
        "actor.num_nodes": 2,
        "ckpt.save_steps": -1,  # the signal's checkpoint is the only one before the end
        "ckpt.save_hf": "false",
    }
    words = bench.overrides(name, **(values | changes))
    export = f"--export=ALL,SCORE_OPENRLHF_ROOT={ROOT}"
    job = cluster.submit("--nodes=2", export, SBATCH, *config, *words, cwd=bench.folder)
    story = Story(job, bench.folder / name)
    job.wait_until(lambda: story.steps() or job.shown()["JobState"] in slurm.ENDED, "a step", seconds=START_SECONDS)
    assert story.steps(), job.logs()
    story.running = {name: host.processes() for name, host in cluster.nodes.items()}
    return story


def trains_on_both(story: Story) -> bool:
    """Whether each node ran a rank of a training group, by Ray's titles of its processes; fails with these if not."""
    for name, processes in story.running.items():
        titles = [words for words in processes if words.startswith("ray::")]
        assert any(re.match(r"ray::_?PolicyActor", title) for title in titles), (name, titles)
    return True


def leftovers(story: Story) -> list[str]:
    """Processes on the nodes, when those that are leaving have had their time."""
    try:
        story.job.wait_until(lambda: not story.job.cluster.processes(), "an end of processes", seconds=20)
    except AssertionError:
        return story.job.cluster.processes()
    return []


@pytest.fixture(scope="module")
def finished(cluster, bench) -> Story:
    """Trained, warned as before a time limit, requeued, resumed, finished."""
    story = train(cluster, bench, "slurm")
    story.warned_at = story.steps()[-1]
    cluster.run("scancel", "--signal=USR1", "--batch", story.job.number)
    story.pending = story.job.wait_for("PENDING", seconds=END_SECONDS)
    story.left_pending = leftovers(story)
    story.checkpoints = sorted(path.name for path in (story.output / "checkpoints").iterdir())
    story.steps_saved = story.steps()
    story.job.start_soon()
    story.ended = story.job.wait_for("COMPLETED", seconds=START_SECONDS + END_SECONDS)
    story.left = leftovers(story)
    return story


def test_both_nodes_train(cluster, finished):
    """One Ray of both nodes, and ranks of the training groups on each."""
    said = finished.job.log("n1")
    assert f"Ray runs at {cluster.nodes['n1'].address}:" in said and "on 2 nodes: n1, n2" in said
    assert trains_on_both(finished)


def test_the_warning_saves_both_policies_and_requeues(finished):
    saved = finished.steps_saved[-1]
    assert finished.warned_at <= saved < NUM_STEPS
    assert finished.checkpoints == [f"step_{saved}"]
    manifest = json.loads((finished.output / "checkpoints" / f"step_{saved}" / "manifest.json").read_text())
    assert manifest["policies"] == ["solver", "guidance"]
    assert finished.pending["Restarts"] == "1"
    assert f"stopped by a signal after step {saved} of {NUM_STEPS}" in finished.job.log("n1")
    assert f"steps are left: requeueing job {finished.job.number}\n" in finished.job.log()


def test_both_copies_leave_with_the_drivers_status(finished):
    for rank, name in enumerate(("n1", "n2")):
        assert f"{name}: task {rank}: Exited with exit code 75" in finished.job.log()


def test_a_requeued_job_leaves_the_nodes_empty(finished):
    assert finished.left_pending == []


def test_the_requeued_job_goes_on_by_itself_and_ends(finished):
    saved = finished.steps_saved[-1]
    assert finished.ended["ExitCode"] == "0:0" and finished.ended["Restarts"] == "1"
    assert "start 2" in finished.job.log()
    going_on = rf"going on from \S+step_{saved} \(step {saved} of {NUM_STEPS}\)"
    assert re.search(going_on, " ".join(finished.job.log("n1").split()))
    assert json.loads((finished.output / "summary.json").read_text())["steps"] == NUM_STEPS


def test_every_step_is_made_once(finished):
    assert finished.steps() == list(range(1, NUM_STEPS + 1))


def test_a_finished_job_leaves_the_nodes_empty(finished):
    assert finished.left == []


def test_a_cancelled_job_leaves_the_nodes_empty(cluster, bench):
    """Another method by its configuration, cancelled while it trains."""
    config = str(ROOT / "configs" / "score_math.yaml")
    alone = {"guidance_model_path": "null", "guidance_samples": 1, "max_steps": 10_000}
    story = train(cluster, bench, "cancelled", config, **alone)
    assert trains_on_both(story)
    cluster.run("scancel", story.job.number)
    story.job.wait_for("CANCELLED", seconds=END_SECONDS)
    assert leftovers(story) == []

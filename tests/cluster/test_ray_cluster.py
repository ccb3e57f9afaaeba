"""Two hosts with their own addresses: one run over both, one host lost, and the same command going on."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from score_openrlhf.ray_cluster import temp_dir
from tests.cluster.hosts import Host, hosts, missing
from tests.cluster.ssh import serve, ssh
from tests.stack.conftest import Bench

pytestmark = pytest.mark.skipif(missing() is not None, reason=str(missing()))

ROOT = Path(__file__).resolve().parents[2]
# What the driver's host alone has, and what deepspeed takes along to each.
OF_N1 = {"HF_HOME": "/shared/models", "HF_TOKEN": "hf_of-this-test"}
OF_USER = {"TRANSFORMERS_VERBOSITY": "error"}
SECONDS = 600  # of one command; on two quiet cores it takes about one minute


@dataclass
class Command:
    """What a command printed, and what ran on each host while it did."""

    status: int
    output: str
    roles: dict[str, set[str]] = field(default_factory=dict)


@dataclass
class Story:
    """The same words three times: to step 2, to a lost host, to the end."""

    folder: Path
    first: Command
    left_after_first: dict[str, list[str]]
    logs_of_first: dict[str, str]
    lost: Command
    steps_at_loss: int
    seconds_to_notice: float
    last: Command


def roles_on(host: Host) -> set[str]:
    return {match[1] for line in host.processes() if (match := re.match(r"ray::_?(\w+)", line))}


def ray_logs(host: Host) -> str:
    """All that Ray and its workers have written on a host."""
    logs = (host.own / Path(temp_dir()).name).glob("session_2*/logs/**/*")
    return "".join(path.read_text(errors="replace") for path in sorted(logs) if path.is_file())


@pytest.fixture(scope="module")
def story(bench: Bench, tmp_path_factory) -> Iterator[Story]:
    folder = tmp_path_factory.mktemp("cluster")
    hostfile = folder / "hostfile"
    hostfile.write_text("n1 slots=1\nn2 slots=1\n")
    run = bench.folder / "cluster"

    with hosts("n1", "n2") as (n1, n2), ssh([n1, n2], folder / "ssh", OF_N1) as environment:
        environment["DS_ENV_FILE"] = str(folder / "deepspeed_env")
        Path(environment["DS_ENV_FILE"]).write_text("".join(f"{name}={value}\n" for name, value in OF_USER.items()))

        def train(max_steps: int, meanwhile: Callable[[], None] = lambda: None) -> Command:
            # what a user types; MASTER_ADDR as the hostfile says, since these hosts have no name service
            words = [str(Path(sys.executable).with_name("deepspeed")), "--hostfile", str(hostfile), "--no_ssh_check"]
            words += ["--master_addr", "n1", "launch/train_rl_guided.sh", "configs/rl_guided_score_math.yaml"]
            words += bench.overrides("cluster", **{"actor.num_nodes": 2, "max_steps": max_steps})
            with (folder / "output").open("w+") as output:
                process = n1.start(
                    *words, env=os.environ | environment, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT
                )
                roles: dict[str, set[str]] = {"n1": set(), "n2": set()}
                watch = threading.Thread(target=meanwhile)
                watch.start()
                deadline = time.monotonic() + SECONDS
                while process.poll() is None and time.monotonic() < deadline:
                    for host in (n1, n2):
                        if host.up:
                            roles[host.name] |= roles_on(host)
                    time.sleep(1.0)
                text = (folder / "output").read_text()
                assert process.poll() is not None, f"not ended after {SECONDS} s:\n{text[-6000:]}"
                watch.join()
                return Command(process.returncode, text, roles)

        first = train(2)
        left = {host.name: [line for line in host.processes() if "sshd" not in line] for host in (n1, n2)}

        logs = {host.name: ray_logs(host) for host in (n1, n2)}
        lost_at: list[float] = []

        def lose_n2() -> None:
            deadline = time.monotonic() + SECONDS
            while len(lines(run)) < 3 and time.monotonic() < deadline:
                time.sleep(0.2)
            n2.lose()
            lost_at.append(time.monotonic())

        lost = train(500, lose_n2)
        noticed = time.monotonic() - lost_at[0]
        steps = len(lines(run))
        n2.boot()
        serve(n2, folder / "ssh")
        last = train(steps + 2)
        yield Story(run, first, left, logs, lost, steps, noticed, last)


def lines(run: Path) -> list[dict]:
    path = run / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def test_one_command_trains_over_both_hosts(story):
    assert story.first.status == 0, story.first.output[-6000:]
    assert re.search(r"Ray runs at 10\.\S+ on 2 nodes: n1, n2", story.first.output)
    assert story.first.output.count("step 2/2") == 1, "one copy trains"


def test_groups_are_spread_over_both_hosts(story):
    """ZeRO-3 shards the policies and the references over the hosts: a rank of each is on either."""
    for name in ("PolicyActor", "ReferenceModelActor"):
        for host in ("n1", "n2"):
            assert name in story.first.roles[host], story.first.roles


def test_roles_on_the_other_host_have_the_drivers_environment(story):
    """HF_HOME and the token are set on n1 alone, whose driver passes them on; no log has the token."""
    for host in ("n1", "n2"):
        seen = re.findall(r"score-openrlhf: from the driver: (.*)", story.logs_of_first[host])
        assert len(seen) >= 4, f"four groups have a rank on {host}"
        for line in seen:
            assert f"HF_HOME={OF_N1['HF_HOME']}" in line and "HF_TOKEN (not shown)" in line
            assert "TRANSFORMERS_VERBOSITY=error" in line
        assert OF_N1["HF_TOKEN"] not in story.logs_of_first[host]
    assert OF_N1["HF_TOKEN"] not in story.first.output


def test_nothing_is_left_on_the_hosts(story):
    assert story.left_after_first == {"n1": [], "n2": []}


def test_a_lost_host_is_named_with_the_phase(story):
    assert story.lost.status != 0
    message = re.search(r"host n2 \(10\.\S+\) was lost during ([\w -]+) of step (\d+)", story.lost.output)
    assert message, story.lost.output[-6000:]
    assert int(message[2]) > 2
    assert "goes on from the newest checkpoint" in story.lost.output
    print(f"\nnoticed after {story.seconds_to_notice:.0f} s: {message[0]}")


def test_the_same_command_goes_on(story):
    assert story.last.status == 0, story.last.output[-6000:]
    assert re.search(r"going on from \S+step_\d+", story.last.output)
    rows = lines(story.folder)
    assert [row["step"] for row in rows] == list(range(1, story.steps_at_loss + 3)), "no step lost, none twice"
    assert json.loads((story.folder / "summary.json").read_text())["steps"] == story.steps_at_loss + 2

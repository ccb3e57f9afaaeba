"""Our copy of the host's arguments against the host's real parser."""

from __future__ import annotations

import json
import subprocess
import sys
from types import SimpleNamespace

import pytest

from score_openrlhf.config.host_args import OURS, host_args
from score_openrlhf.config.host_defaults import HOST_DEFAULTS
from score_openrlhf.config.schema import Config

# Runs openrlhf.cli.train_ppo_ray as a program up to the call of parse_args, in a process of its own.
CAPTURE = """
import argparse, json, runpy, sys
import score_openrlhf

class Captured(Exception):
    pass

def capture(self, *args, **kwargs):
    raise Captured({action.dest: action.default for action in self._actions if action.dest != "help"})

argparse.ArgumentParser.parse_args = capture
try:
    runpy.run_module("openrlhf.cli.train_ppo_ray", run_name="__main__")
except Captured as captured:
    print("DEFAULTS " + json.dumps(captured.args[0]))
"""


@pytest.fixture(scope="module")
def host_defaults() -> dict:
    """Dest -> default of the host's parser, in JSON's types."""
    ran = subprocess.run([sys.executable, "-c", CAPTURE], capture_output=True, text=True, timeout=300)
    lines = [line for line in ran.stdout.splitlines() if line.startswith("DEFAULTS ")]
    assert lines, ran.stderr[-3000:]
    return json.loads(lines[-1].removeprefix("DEFAULTS "))


def flatten(node: SimpleNamespace, prefix: str = "") -> dict:
    flat = {}
    for name, value in vars(node).items():
        dest = prefix + name
        flat |= flatten(value, dest + ".") if isinstance(value, SimpleNamespace) else {dest: value}
    return flat


def as_json(value):
    return json.loads(json.dumps(value))


def test_the_table_of_defaults_is_the_hosts(host_defaults):
    host_defaults = {**host_defaults, "logger.wandb.run_name": None}  # the host's is the time of the call
    assert as_json(dict(HOST_DEFAULTS)) == host_defaults


@pytest.mark.parametrize("policy", ["solver", "guidance"])
def test_arguments_have_every_dest_and_the_hosts_default_where_not_ours(host_defaults, policy):
    cfg = Config(model_path="owner/model", method="rl_guided_score")
    args = flatten(host_args(cfg, policy, checkpoint_path="ckpt", model_path="owner/model"))
    assert set(args) == set(host_defaults)
    differing = {dest for dest in args if as_json(args[dest]) != host_defaults[dest]}
    assert differing <= set(OURS)
    assert args["local_rank"] == -1

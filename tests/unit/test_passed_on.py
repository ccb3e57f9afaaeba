"""The variables that reach every role: which, by which way, and that no token is printed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from score_openrlhf import platform
from score_openrlhf.platform import passed_on as module
from score_openrlhf.platform.passed_on import NODES_OWN, PASSED_ON, hidden, main, passed_on, shown

ROOT = Path(__file__).parents[2]
USERS = {
    "HF_HOME": "/shared/hf",
    "HF_TOKEN": "hf_secret1",
    "VLLM_API_KEY": "secret2",
    "https_proxy": "http://me:secret3@proxy:3128",
    "http_proxy": "http://proxy:3128",
    "TOKENIZERS_PARALLELISM": "false",
    "NCCL_SOCKET_IFNAME": "ib0",
    "DS_SKIP_CUDA_CHECK": "1",
    "CUDA_HOME": "/usr/local/cuda",
    "TRANSFORMERS_OFFLINE": "1",
    "TORCH_EXTENSIONS_DIR": "/shared/ext",
    "VLLM_HOST_IP": "10.0.0.1",
    "PATH": "/bin",
    "HOME": "/root",
    "CUDA_VISIBLE_DEVICES": "3",
    "TORCHELASTIC_RUN_ID": "1",
    "RAY_ADDRESS": "auto",
    "WANDB_API_KEY": "secret4",
}
OWN = {"VLLM_HOST_IP", "PATH", "HOME", "CUDA_VISIBLE_DEVICES", "TORCHELASTIC_RUN_ID", "RAY_ADDRESS", "WANDB_API_KEY"}
SECRET = {"HF_TOKEN", "VLLM_API_KEY", "https_proxy"}


@pytest.fixture
def user(monkeypatch) -> None:
    for name in passed_on():
        monkeypatch.delenv(name)
    for name, value in USERS.items():
        monkeypatch.setenv(name, value)


def test_what_is_on_the_list_is_passed_on_and_what_is_a_nodes_own_is_not():
    assert passed_on(USERS).keys() == USERS.keys() - OWN
    assert hidden(USERS).keys() == SECRET
    assert shown(USERS) == {name: USERS[name] for name in USERS.keys() - OWN - SECRET}


def test_the_runtime_environment_has_them_without_secrets(user):
    variables = platform.ray_init_kwargs(num_gpus=1)["runtime_env"]["env_vars"]
    assert shown().items() <= variables.items()
    assert "secret" not in json.dumps(variables)


def test_what_ray_job_submit_has_set_is_not_set_again(user, monkeypatch):
    """Ray refuses a variable that is in the job's runtime environment and in the driver's."""
    job = {"runtime_env": {"env_vars": {"HF_HOME": "/shared/hf", "TOKENIZERS_PARALLELISM": "false"}}}
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps(job))
    variables = platform.ray_init_kwargs(num_gpus=1)["runtime_env"]["env_vars"]
    assert not variables.keys() & job["runtime_env"]["env_vars"].keys() and "DS_SKIP_CUDA_CHECK" in variables


def test_roles_take_the_secrets_from_rays_store(user, monkeypatch):
    from ray.experimental import internal_kv

    store: dict[str, bytes] = {}
    monkeypatch.setattr(internal_kv, "_internal_kv_put", lambda key, value, overwrite: store.update({key: value}))
    monkeypatch.setattr(internal_kv, "_internal_kv_get", store.get)
    where = module.new_secrets_key()
    module.hand_over_secrets({"env_vars": where})
    for name in SECRET:
        monkeypatch.delenv(name)
    module.take_secrets()  # nothing was handed over for a process that knows no key
    assert hidden() == {}
    monkeypatch.setenv(*where.popitem())
    module.take_secrets()
    assert hidden() == {name: USERS[name] for name in SECRET}


def test_a_role_does_not_start_without_its_secrets(monkeypatch):
    from ray.experimental import internal_kv

    monkeypatch.setenv(module.SECRETS_KEY, "nowhere")
    monkeypatch.setattr(internal_kv, "_internal_kv_get", lambda key: None)
    monkeypatch.setattr(module, "SECRETS_SECONDS", 0.1)
    with pytest.raises(RuntimeError, match="did not hand over its tokens"):
        module.take_secrets()


@pytest.mark.parametrize("words", [[], ["--json"]])
def test_the_lines_for_launchers_name_secrets_and_leave_them_out(user, capsys, words):
    assert main(words) == 0
    output = capsys.readouterr()
    assert "secret" not in output.out + output.err
    assert "HF_TOKEN is left out" in output.err
    lines = json.loads(output.out)["env_vars"] if words else dict(x.split("=", 1) for x in output.out.splitlines())
    assert lines == shown()


def test_the_documented_list_is_the_list():
    page = (ROOT / "docs" / "clusters.md").read_text()
    section = page.partition("## Environment variables")[2].partition("\n## ")[0]
    for name in (*PASSED_ON, *NODES_OWN):
        assert f"`{name}`" in section, name

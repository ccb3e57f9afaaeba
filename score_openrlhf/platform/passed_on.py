"""The driver's environment in; the part of it that every role on every node gets, and how it gets there, out.

    python -m score_openrlhf.platform.passed_on > .deepspeed_env                     (for deepspeed --hostfile)
    ray job submit --runtime-env-json "$(python -m score_openrlhf.platform.passed_on --json)" -- ...

Ray starts a role with the environment of its node's `ray start`, whatever the driver's is. What is on the list below
goes with the job's runtime environment (`platform/settings.py`); secrets do not, because Ray writes that to its logs:
roles fetch them from the cluster's key-value store when they start.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import sys
import time
from collections.abc import Mapping

# Prefixes (with their last *) and names; docs/clusters.md has the same list with its reasons, and a test compares.
PASSED_ON = (
    "NCCL_*", "GLOO_*", "UCX_*",
    "HF_*", "HUGGINGFACE_*", "HUGGING_FACE_*", "TRANSFORMERS_*", "TOKENIZERS_*", "XDG_CACHE_HOME",
    "VLLM_*", "FLASHINFER_*",
    "DS_*", "DEEPSPEED_*",
    "TORCH_*", "TORCHDYNAMO_*", "TORCHINDUCTOR_*", "PYTORCH_*", "TRITON_*", "CUBLAS_*",
    "CUDA_HOME", "CUDA_PATH", "CUDA_LAUNCH_BLOCKING", "CC", "CXX", "MAX_JOBS",
    "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "no_proxy", "all_proxy",
    "SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE",
)  # fmt: skip
# On the list by their prefix, and true of one node alone or only of the process they are set for.
NODES_OWN = ("VLLM_HOST_IP", "NCCL_HOSTID", "DS_ENV_FILE", "VLLM_RAY_BUNDLE_INDICES", "VLLM_RAY_PER_WORKER_GPUS")

SECRETS_KEY = "SCORE_OPENRLHF_SECRETS"  # tells a role under which key of Ray's store its secrets are
SECRETS_SECONDS = 60.0
_SECRET_NAME = re.compile(r"(^|_)(TOKEN|KEY|SECRET|PASSWORD|PASSWD|CREDENTIALS?)($|_)", re.IGNORECASE)
_SECRET_VALUE = re.compile(r"://[^/@\s]+:[^/@\s]+@")  # a proxy's user and password
_RAY_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # `ray job submit` sets it for the driver


def passed_on(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The variables that every role gets, secrets included."""
    prefixes = tuple(name[:-1] for name in PASSED_ON if name.endswith("*"))
    return {
        name: value
        for name, value in sorted(environment.items())
        if (name in PASSED_ON or name.startswith(prefixes)) and name not in NODES_OWN
    }


def is_secret(name: str, value: str) -> bool:
    """Whether it must not be printed or logged: a token, a key, an address with a password in it."""
    return bool(_SECRET_NAME.search(name) or _SECRET_VALUE.search(value))


def shown(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """What of `passed_on` may go where it is logged."""
    return {name: value for name, value in passed_on(environment).items() if not is_secret(name, value)}


def hidden(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The rest of `passed_on`: secrets."""
    return {name: value for name, value in passed_on(environment).items() if is_secret(name, value)}


def of_the_job(environment: Mapping[str, str] = os.environ) -> set[str]:
    """Names that `ray job submit` has put into the runtime environment: Ray refuses one that is there twice."""
    config = json.loads(environment.get(_RAY_JOB, "{}"))
    return set((config.get("runtime_env") or {}).get("env_vars") or {})


def new_secrets_key() -> dict[str, str]:
    """For the runtime environment: where roles are to look for secrets, if there are any."""
    return {SECRETS_KEY: f"score_openrlhf_secrets_{secrets.token_hex(8)}"} if hidden() else {}


def hand_over_secrets(runtime_env: Mapping) -> None:
    """On the driver, once it is connected: put the secrets where the roles of `runtime_env` look for them."""
    key = runtime_env["env_vars"].get(SECRETS_KEY)
    if key is not None:
        from ray.experimental.internal_kv import _internal_kv_put

        _internal_kv_put(key, json.dumps(hidden()).encode(), overwrite=True)


def take_secrets() -> None:
    """In a role's process, before anything else: set the driver's secrets. Raises RuntimeError if they do not come."""
    key = os.environ.get(SECRETS_KEY)
    if key is None:
        return
    from ray.experimental.internal_kv import _internal_kv_get

    deadline = time.monotonic() + SECRETS_SECONDS
    while (found := _internal_kv_get(key)) is None:
        if time.monotonic() > deadline:
            raise RuntimeError(f"the driver did not hand over its tokens within {SECRETS_SECONDS:g} s")
        time.sleep(0.05)  # Ray may start a worker before the driver's next line
    os.environ.update(json.loads(found))


def main(words: list[str]) -> int:
    """Print what is passed on, for a launcher that starts the driver elsewhere; secrets are named and left out."""
    if words == ["--json"]:
        print(json.dumps({"env_vars": shown()}))
    else:
        for name, value in shown().items():
            print(f"{name}={value}")
    for name in hidden():
        print(
            f"{name} is left out, since launchers print what they pass on: set it where the driver starts, or run "
            "`hf auth login` once with HF_HOME on the shared file system",
            file=sys.stderr,
        )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""Hosts in; an ssh server on each, and what pdsh and deepspeed need to reach them without a password, out."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from tests.cluster.hosts import Host


@contextlib.contextmanager
def ssh(hosts: list[Host], folder: Path, of_first: Mapping[str, str]) -> Iterator[dict[str, str]]:
    """ssh servers for the block, with keys of their own; yields the environment variables of their users.

    Who comes to the first host by ssh has the variables `of_first` there, as from a shell's startup file.
    """
    folder.mkdir(mode=0o700)
    for name in ("host_key", "user_key"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)], check=True)
    shutil.copy(folder / "user_key.pub", folder / "authorized_keys")
    settings = {
        "HostKey": folder / "host_key",
        "AuthorizedKeysFile": folder / "authorized_keys",
        "PidFile": "none",
        "StrictModes": "no",  # the folder lies below /tmp, which others may write to
        "PermitRootLogin": "prohibit-password",
        "UsePAM": "no",
    }
    (folder / "sshd_config").write_text("".join(f"{name} {value}\n" for name, value in settings.items()))
    Path("/run/sshd").mkdir(exist_ok=True)
    servers = [serve(host, folder, of_first if host is hosts[0] else {}) for host in hosts]
    # ServerAlive: or the client of a host that is lost waits for it for ever, and pdsh for the client
    options = "-o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR -o ServerAliveInterval=10"
    environment = {"PDSH_SSH_ARGS_APPEND": f"-i {folder}/user_key {options}", "PDSH_RCMD_TYPE": "ssh"}
    try:
        for host in hosts:
            _wait_for(host, hosts[0], environment)
        yield environment
    finally:
        for server in servers:
            server.terminate()


def serve(host: Host, folder: Path, variables: Mapping[str, str] | None = None) -> subprocess.Popen:
    """Start the ssh server of a host, again after it was lost."""
    words = ["/usr/sbin/sshd", "-D", "-f", str(folder / "sshd_config")]
    if variables:
        words += ["-o", "SetEnv=" + " ".join(f"{name}={value}" for name, value in variables.items())]
    return host.start(*words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def _wait_for(host: Host, client: Host, environment: dict[str, str]) -> None:
    deadline = time.monotonic() + 20
    words = ["pdsh", "-S", "-w", host.name, "true"]
    while (done := client.run(*words, check=False, env=os.environ | environment)).returncode:
        if time.monotonic() > deadline:
            raise RuntimeError(f"no ssh to {host.name}: {done.stdout}{done.stderr}")
        time.sleep(0.2)

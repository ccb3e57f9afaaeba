"""One process that imports torch, vLLM and DeepSpeed once; every role on this machine is a fork of it.

A CPU run has eight processes (roles, engine cores), each of which would import the same for half a minute of a core's
time; on two cores that is two minutes before the first step, and each holds its own copy in memory. Ray starts its
workers by `py_executable` and vLLM its engine core by multiprocessing's executable: both become `fork_client.py`.

CPU only: a process that has touched CUDA cannot be forked. Processes are forked before anything runs in the server, so
it has no thread pools, connections or generators that a fork would have to mend.

The program of the server; `forking.py` starts it.
"""

from __future__ import annotations

import array
import atexit
import contextlib
import ctypes
import importlib
import json
import multiprocessing.spawn
import os
import runpy
import selectors
import signal
import socket
import sys
import threading
import traceback
import types
from pathlib import Path

# What roles and engine cores import, as far as it does not import Ray: Ray's library reads the job and the raylet of a
# worker from the environment while it is loaded, so each fork loads it for itself (about 2 s of 30).
MODULES = (
    "transformers.trainer",
    "deepspeed",
    "peft",
    "vllm.model_executor.models.llama",
    "vllm.model_executor.models.qwen2",
    "vllm.v1.core.sched.scheduler",
    "vllm.v1.worker.gpu_model_runner",
    "vllm.engine.arg_utils",
    "transformers.models.llama.modeling_llama",
    "transformers.models.qwen2.modeling_qwen2",
)
MAX_FILES = 253  # that the kernel passes in one message
PR_SET_PDEATHSIG = 1


def main() -> int:
    executable, parent, listener = sys.argv[1], int(sys.argv[2]), socket.socket(fileno=int(sys.argv[3]))
    _die_with_parent(parent)
    for name in MODULES:
        try:
            importlib.import_module(name)
        except ImportError as error:
            print(f"fork server: {name} is not imported ahead: {error}", file=sys.stderr)
    assert "ray" not in sys.modules, "a fork of this process could not join Ray: see MODULES"
    multiprocessing.spawn.set_executable(executable)
    _serve(listener)
    return 0


def _serve(listener: socket.socket) -> None:
    """Fork for every connection, and send each how its process ended; for ever."""
    ended_r, ended_w = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(ended_w, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)  # without a handler nothing is written to the pipe
    children: dict[int, socket.socket] = {}
    selector = selectors.DefaultSelector()
    selector.register(listener, selectors.EVENT_READ)
    selector.register(ended_r, selectors.EVENT_READ)
    while True:
        for key, _ in selector.select():
            if key.fileobj is listener:
                connection, _ = listener.accept()
                own = [listener.fileno(), ended_r, ended_w, *(c.fileno() for c in children.values())]
                child = _fork(connection, own)
                if child:
                    children[child] = connection
                    selector.register(connection, selectors.EVENT_READ, data=child)
            elif key.fileobj == ended_r:
                os.read(ended_r, 4096)
                for pid, code in _ended():
                    connection = children.pop(pid)
                    if connection in selector.get_map():
                        selector.unregister(connection)
                        _tell(connection, code)
                    connection.close()
            elif key.data in children:  # the client is gone, as a process that somebody killed: so goes this one
                selector.unregister(key.fileobj)
                os.kill(key.data, signal.SIGKILL)


def _ended() -> list[tuple[int, int]]:
    """Process id and exit code of the forks that have ended."""
    found: list[tuple[int, int]] = []
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return found
        if pid == 0:
            return found
        found.append((pid, os.waitstatus_to_exitcode(status)))


def _tell(connection: socket.socket, number: int) -> None:
    with contextlib.suppress(OSError):  # the client is gone
        connection.sendall(f"{number}\n".encode())


def _fork(connection: socket.socket, own: list[int]) -> int:
    """The process id of a fork that does what the client asks; in the fork this does not return.

    0 if the client left before it had asked. `own` are the server's descriptors, which are closed in the fork.
    """
    header, ancillary, _, _ = connection.recvmsg(8, socket.CMSG_SPACE(MAX_FILES * array.array("i").itemsize))
    files = array.array("i")
    for _, _, data in ancillary:
        files.frombytes(data[: len(data) - len(data) % files.itemsize])
    with connection.makefile("rb") as stream:
        body = stream.read(int.from_bytes(header, "big"))
    if not body:
        connection.close()
        return 0
    child = os.fork()
    if child:
        for fd in files:
            os.close(fd)
        _tell(connection, child)
        return child
    code = 1
    try:
        _die_with_parent(None)
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for fd in [connection.fileno(), *own]:
            os.close(fd)
        call = json.loads(body)
        _give_numbers(list(files), call["files"])
        os.chdir(call["directory"])
        _take_environment(call["environment"])
        code = _run(call["arguments"])
    except BaseException:  # this is the top of a process: what comes here is printed and is its end
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _give_numbers(received: list[int], wanted: list[int]) -> None:
    """Give the received descriptors the numbers they had in the client."""
    top = max([*wanted, *received, 2]) + 1
    for index, fd in enumerate(received):
        os.dup2(fd, top + index)
        os.close(fd)
    for index, number in enumerate(wanted):
        os.dup2(top + index, number)
        os.close(top + index)


def _take_environment(wanted: dict[str, str]) -> None:
    """Make the environment the client's, changing only what differs.

    Process titles (Ray's, vLLM's) are written over the arguments, which are found from where the first variable lies.
    """
    for name in set(os.environ) - set(wanted):
        del os.environ[name]
    for name, value in wanted.items():
        if os.environ.get(name) != value:
            os.environ[name] = value


def _run(arguments: list[str]) -> int:
    """Do what `python ARGUMENTS` does; returns its exit status."""
    while arguments[0].startswith("-") and arguments[0] != "-c":
        arguments = arguments[1:]  # flags of the interpreter (-u, -W...), which runs already
    try:
        if arguments[0] == "-c":
            sys.argv = ["-c", *arguments[2:]]
            sys.modules["__main__"] = main_module = types.ModuleType("__main__")
            exec(compile(arguments[1], "<string>", "exec"), main_module.__dict__)
        else:
            sys.argv = arguments
            sys.path.insert(0, str(Path(arguments[0]).parent))
            runpy.run_path(arguments[0], run_name="__main__")
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            return end.code or 0
        print(end.code, file=sys.stderr)
        return 1
    finally:
        threading._shutdown()  # type: ignore[attr-defined]  # waits for threads as the interpreter does at its end
        atexit._run_exitfuncs()
    return 0


def _die_with_parent(parent: int | None) -> None:
    """Let the kernel kill this process when its parent ends, however that ends."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if parent is not None and os.getppid() != parent:
        sys.exit(0)


if __name__ == "__main__":
    sys.exit(main())

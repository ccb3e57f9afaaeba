"""Stands in for `python` on CPU machines: asks the fork server for a process that has the imports done already.

Usage: `fork_client.py SOCKET ARGUMENT...`, where the arguments are those of a Python call (`script.py ...` or `-c code
...`). Runs with `-I -S` and imports next to nothing. Environment, working directory and open files go to the new
process under their own numbers; signals are passed on and its exit status is this one's. Where there is no server (an
other host, a server that ended) it becomes the real interpreter.
"""

import array
import contextlib
import json
import os
import signal
import socket
import sys


def main() -> int:
    path, arguments = sys.argv[1], sys.argv[2:]
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    files = [fd for fd in map(int, os.listdir("/proc/self/fd")) if fd != connection.fileno() and _is_open(fd)]
    call = {"arguments": arguments, "environment": dict(os.environ), "directory": os.getcwd(), "files": files}
    body = json.dumps(call).encode()
    try:
        connection.connect(path)
        message = [len(body).to_bytes(8, "big")]
        connection.sendmsg(message, [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", files))])
        connection.sendall(body)
        replies = connection.makefile("rb")
        child = int(replies.readline())
    except (OSError, ValueError):  # no server, or it ended before it forked
        os.execv(sys.executable, [sys.executable, *arguments])
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, lambda received, _: _pass_on(child, received))
    status = replies.readline()
    code = int(status) if status else -signal.SIGKILL  # the server was killed, and its processes with it
    if code < 0:
        if -code != signal.SIGKILL:
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)  # end as it ended
    return code


def _is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:  # the descriptor of the listing itself
        return False
    return True


def _pass_on(child: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):  # it has ended, and its status is on the way
        os.kill(child, number)


if __name__ == "__main__":
    sys.exit(main())

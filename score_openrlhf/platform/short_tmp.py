"""A long TMPDIR in; a short name for the same folder out, since the path of a Unix socket has 107 bytes at most.

Ray, vLLM and the fork server keep sockets below TMPDIR: Ray's alone adds 64 bytes, the fork server's the host's name.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path

MAX_BYTES = 20  # what is longer gets another name
ROOTS = ("/tmp", "/var/tmp", "/dev/shm")


def shorten_tmpdir() -> None:
    """Let TMPDIR, where it is long, be a link to the folder it names: what is written stays in that folder.

    The link is the user's own, named after the folder and used again by the next command. TMPDIR stays as it is where
    no link can be made.
    """
    long = os.environ.get("TMPDIR", "")
    if len(os.fsencode(long)) <= MAX_BYTES or not os.path.isdir(long):
        return
    folder = os.path.realpath(long)
    name = f"so-{os.getuid()}-{hashlib.sha256(os.fsencode(folder)).hexdigest()[:8]}"
    for root in ROOTS:
        link = Path(root, name)
        try:
            link.symlink_to(folder)
        except FileExistsError:
            # another user may have made it, to lead us elsewhere
            if link.lstat().st_uid != os.getuid() or os.path.realpath(link) != folder:
                continue
        except OSError:  # a root that is missing or read-only: the next one
            continue
        os.environ["TMPDIR"] = str(link)
        tempfile.tempdir = None  # what tempfile has found before
        return

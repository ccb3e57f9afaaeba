"""The machine in; rows about memory, disks, shared memory, limits, network, Ray and the Hugging Face cache, out."""

from __future__ import annotations

import os
import resource
import shutil
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

from score_openrlhf.doctor.imports import Import
from score_openrlhf.doctor.row import Row, fault, ok, warning
from score_openrlhf.memory_plan.footprint import GIB
from score_openrlhf.platform.detect import is_cpu

MIN_MEMORY_GIB = 6  # the playground takes 6.1
MIN_SHM_GIB = 2  # Ray's object store; NCCL between processes of a node
LITTLE_DISK_GIB, NO_DISK_GIB = 20, 1
RAY_FULL = 0.95  # of the disk, above which Ray spills no objects (RAY_local_fs_capacity_threshold)
MAX_TEMP_DIR = 50  # characters: the path of a Unix socket has 107, and Ray's names below it take the rest
FEW_FILES, WANTED_FILES = 1024, 8192


def memory() -> Iterator[Row]:
    """Host memory: in it wait what sleeps and what is offloaded."""
    import psutil

    found = psutil.virtual_memory()
    said = f"{found.available / GIB:.1f} GiB free of {found.total / GIB:.1f}"
    if found.available < MIN_MEMORY_GIB * GIB:
        yield warning("memory", said, f"even the playground takes {MIN_MEMORY_GIB} GiB: end what else runs")
    else:
        yield ok("memory", said)


def shared_memory(folder: str = "/dev/shm") -> Iterator[Row]:
    """Where Ray keeps objects and NCCL's processes of one node meet."""
    if not os.path.isdir(folder):
        yield warning("shared memory", f"no {folder}", "Ray keeps objects on disk without it; mount a tmpfs there")
        return
    usage = shutil.disk_usage(folder)
    said = f"{usage.free / GIB:.1f} GiB free of {usage.total / GIB:.1f} in {folder}"
    if usage.free < MIN_SHM_GIB * GIB:
        mend = "start the container with --shm-size=16g or --ipc=host; else delete what was left there"
        yield (warning if is_cpu() else fault)("shared memory", said, mend)
    else:
        yield ok("shared memory", said)


def disks(places: dict[str, str]) -> Iterator[Row]:
    """Free space at each place: name -> folder, which need not be there yet."""
    for name, folder in places.items():
        there = existing(folder)
        free = shutil.disk_usage(there).free
        said = f"{free / GIB:.1f} GiB free for {folder}"
        if not os.access(there, os.W_OK):
            yield fault(name, f"{there} cannot be written to", "choose another folder, or change its permissions")
        elif free < NO_DISK_GIB * GIB:
            yield fault(name, said, "free some space or choose another disk")
        elif free < LITTLE_DISK_GIB * GIB:
            yield warning(name, said, "enough for the playground; a 1.5B model's checkpoints take 22 GiB each")
        else:
            yield ok(name, said)


def existing(folder: str) -> Path:
    """`folder`, or the nearest above it that is there; a file where one is in the way."""
    path = Path(folder).expanduser().absolute()
    while not path.exists():
        path = path.parent
    return path


def limits() -> Iterator[Row]:
    """Open files, and memory that may be pinned."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited = resource.RLIM_INFINITY
    said = f"{_count(soft)} open files (at most {_count(hard)})"
    if soft != unlimited and soft < WANTED_FILES:
        mend = f"ulimit -n {65536 if hard in (unlimited, -1) or hard >= 65536 else hard}"
        yield (fault if soft < FEW_FILES else warning)("ulimit", said, f"{mend}: Ray keeps many connections open")
    else:
        yield ok("ulimit", said)
    locked = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
    if not is_cpu() and locked != unlimited and os.path.isdir("/dev/infiniband"):
        yield warning("locked memory", f"{locked / GIB:.2f} GiB may be locked", "InfiniBand wants ulimit -l unlimited")


def _count(value: int) -> str:
    return "unlimited" if value == resource.RLIM_INFINITY else str(value)


def network() -> Iterator[Row]:
    """Ports can be taken, this machine's name leads to itself, and no proxy stands between its processes."""
    try:
        with socket.socket() as server, socket.socket() as client:
            server.bind(("127.0.0.1", 0))
            server.listen()
            client.settimeout(5)
            client.connect(server.getsockname())
            port = server.getsockname()[1]
        yield ok("ports", f"127.0.0.1:{port} was free and answered")
    except OSError as error:
        yield fault("ports", f"no local connection: {error}", "allow connections of this machine to itself")
    name = socket.gethostname()
    try:
        yield ok("host name", f"{name} is {socket.gethostbyname(name)}")
    except OSError:
        yield warning("host name", f"{name} has no address", f"add it to /etc/hosts: 127.0.1.1 {name}")
    proxies = [key for key in os.environ if key.lower() in ("http_proxy", "https_proxy", "all_proxy", "grpc_proxy")]
    spared = os.environ.get("no_proxy", os.environ.get("NO_PROXY", ""))
    if proxies and not any(host in spared for host in ("127.0.0.1", "localhost", "*")):
        yield warning(
            "proxy",
            f"{', '.join(sorted(proxies))} set, no_proxy without 127.0.0.1",
            "export no_proxy=127.0.0.1,localhost and the nodes' addresses, or Ray's own calls go to the proxy",
        )


def ray_beside(ray: Import) -> Iterator[Row]:
    """Other clusters, and the folder that Ray keeps its sockets in."""
    if not ray.works:
        yield fault("Ray cluster", "Ray cannot be imported, see its row", "mend Ray first")
        return
    from score_openrlhf.ray_cluster import other_cluster

    other = other_cluster()
    if other is None:
        yield ok("Ray cluster", "none runs here: a run starts its own")
    else:
        yield ok("Ray cluster", f"{other} is left alone by ray.address=null and joined by ray.address=auto")
    folder = os.environ.get("RAY_TMPDIR") or "/tmp"
    if len(folder) > MAX_TEMP_DIR:
        mend = "set RAY_TMPDIR to a shorter one: the paths of Ray's sockets below it have 107 characters at most"
        yield fault("Ray's folder", f"{folder} has {len(folder)} characters", mend)
    usage = shutil.disk_usage(existing(folder))
    if usage.used / (usage.used + usage.free) > RAY_FULL:
        full = f"the disk of {folder} is {usage.used / (usage.used + usage.free):.0%} full"
        yield warning("Ray's folder", full, "Ray spills no objects above 95%: free some space or set RAY_TMPDIR")


def hub() -> Iterator[Row]:
    """The Hugging Face cache and the flags that forbid the network."""
    folder = hub_cache()
    offline = [name for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE") if _is_set(name)]
    there = existing(folder)
    if not os.access(there, os.W_OK) and not offline:
        yield fault("HF cache", f"{there} cannot be written to", "set HF_HOME to a folder of yours")
        return
    held = len(list(Path(folder).glob("models--*"))) if os.path.isdir(folder) else 0
    said = f"{folder}, models {held}"
    if offline:
        yield warning("HF cache", f"{said}; {', '.join(offline)} set", "what is not in the cache cannot be loaded")
    else:
        yield ok("HF cache", said)


def hub_cache() -> str:
    """Where huggingface_hub keeps what it loads (huggingface_hub/constants.py)."""
    home = os.environ.get("HF_HOME") or os.path.join(
        os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "huggingface"
    )
    return os.path.expanduser(os.environ.get("HF_HUB_CACHE") or os.path.join(home, "hub"))


def _is_set(name: str) -> bool:
    return os.environ.get(name, "").upper() in ("1", "ON", "YES", "TRUE")


def temporary() -> str:
    """Where Python and its libraries put temporary files."""
    return tempfile.gettempdir()

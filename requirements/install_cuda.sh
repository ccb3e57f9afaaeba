#!/usr/bin/env bash
# Make .venv with the stack of requirements/cuda.lock and this project in it, on a machine with NVIDIA GPUs.
#   requirements/install_cuda.sh [--attention flash|sdpa] [--no-driver] [--check]
#   --attention sdpa  leave flash-attn out: needs no nvcc; train with ds.attn_implementation=sdpa
#   --no-driver       the machine that builds has no GPU (a container image): a missing driver is no fault
#   --check           say what is missing and install nothing
# Everything that is missing is named before anything is installed. Safe to interrupt and to repeat: a finished install is
# known by .venv/.installed, which holds the lock's checksum. VENV=/path names another environment than .venv.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=requirements/common.sh
. requirements/common.sh

attention=${ATTENTION:-flash} driver=needed check=
while [ $# -gt 0 ]; do
    case $1 in
        --attention) attention=${2:-}; shift ;;
        --no-driver) driver=spared ;;
        --check) check=yes ;;
        *) sed -n '2,8p' "$0" | cut -c3- >&2; exit 2 ;;
    esac
    shift
done
case $attention in
    flash | sdpa) ;;
    *) echo "--attention is '$attention': give flash or sdpa" >&2; exit 2 ;;
esac
venv=${VENV:-.venv}
lock=requirements/cuda.lock
pin() { grep -m1 "^$1==" "$lock"; }

CUDA_MAJOR=13           # torch of the lock is built for CUDA 13.0
MIN_DRIVER=580          # the first driver that runs CUDA 13
MIN_VENV_GIB=12         # the environment takes 8.3 GiB, pip unpacks beside it
MIN_FLASH_MEMORY_GIB=10 # one compiler of flash-attn takes up to 9

faults=() notes=()
fault() { faults+=("$1"); }
note() { notes+=("$1"); }

gib_free() { df -Pk "$1" | awk 'NR == 2 { print int($4 / 1048576) }'; }

check_system() {
    [ "$(uname -sm)" = "Linux x86_64" ] || fault "this is $(uname -sm): the lock is for Linux x86_64"
    local compiler
    for compiler in gcc g++; do
        command -v $compiler >/dev/null ||
            fault "no $compiler: Triton and DeepSpeed compile with it at run time (apt-get install build-essential)"
    done
    python=$(find_python 2>/dev/null) || { fault "no Python 3.11 or 3.12: install one, or name it with PYTHON=/path/to/python"; return; }
    "$python" -c 'import ensurepip, venv' 2>/dev/null ||
        fault "$python makes no virtual environments: apt-get install python3-venv"
    "$python" -c 'import os, sys, sysconfig; sys.exit(not os.path.isfile(os.path.join(sysconfig.get_paths()["include"], "Python.h")))' ||
        fault "$python comes without Python.h, which compiling at run time needs: apt-get install python3-dev"
}

check_space() {
    local parent=$venv free
    while [ ! -d "$parent" ]; do parent=$(dirname "$parent"); done
    free=$(gib_free "$parent")
    [ -e "$venv/.installed" ] || [ "$free" -ge $MIN_VENV_GIB ] ||
        fault "$free GiB free for $venv: $MIN_VENV_GIB are needed (VENV=/another/disk/venv puts it elsewhere)"
    free=$(gib_free "${TMPDIR:-/tmp}")
    [ "$free" -ge 4 ] || fault "$free GiB free in ${TMPDIR:-/tmp}, where pip builds: 4 are needed (TMPDIR=/another/disk)"
}

check_driver() {
    local found
    if ! command -v nvidia-smi >/dev/null || ! found=$(nvidia-smi --query-gpu=driver_version --format=csv,noheader 2>/dev/null); then
        if [ $driver = spared ]; then
            note "no NVIDIA driver here; the machine that trains needs version $MIN_DRIVER or newer"
        else
            fault "no NVIDIA driver (nvidia-smi answers nothing): version $MIN_DRIVER or newer is needed; --no-driver builds for another machine, make install is for machines without a GPU"
        fi
        return
    fi
    found=$(head -n 1 <<<"$found")
    [ "${found%%.*}" -ge $MIN_DRIVER ] ||
        fault "the NVIDIA driver is $found: torch of the lock is built for CUDA $CUDA_MAJOR and needs $MIN_DRIVER or newer"
}

# torch's own rule (torch/utils/cpp_extension.py, _find_cuda_home)
cuda_home() {
    local nvcc
    if [ -n "${CUDA_HOME:-}${CUDA_PATH:-}" ]; then
        echo "${CUDA_HOME:-$CUDA_PATH}"
    elif nvcc=$(command -v nvcc); then
        dirname "$(dirname "$nvcc")"
    elif [ -d /usr/local/cuda ]; then
        echo /usr/local/cuda
    fi
}

check_toolkit() {
    local home version header missing=()
    local instead="or leave flash-attn out: --attention sdpa (ATTENTION=sdpa make install-cuda)"
    home=$(cuda_home)
    if [ -z "$home" ] || [ ! -x "$home/bin/nvcc" ]; then
        fault "no nvcc${home:+ in $home}, which flash-attn is compiled with: install the CUDA $CUDA_MAJOR toolkit and set CUDA_HOME, $instead"
        return
    fi
    version=$("$home/bin/nvcc" --version | sed -n 's/.*release \([0-9.]*\).*/\1/p')
    [ "${version%%.*}" = "$CUDA_MAJOR" ] ||
        fault "$home/bin/nvcc is of CUDA ${version:-unknown}: torch of the lock is built for $CUDA_MAJOR; set CUDA_HOME to a CUDA $CUDA_MAJOR toolkit, $instead"
    for header in cuda_runtime.h cublas_v2.h cusparse.h cusolverDn.h; do
        [ -f "$home/include/$header" ] || missing+=("$header")
    done
    [ ${#missing[@]} -eq 0 ] ||
        fault "the toolkit in $home is incomplete (no ${missing[*]} in $home/include): set CUDA_HOME to a whole one, $instead"
    local memory
    memory=$(awk '/MemAvailable/ { print int($2 / 1048576) }' /proc/meminfo)
    [ "$memory" -ge $MIN_FLASH_MEMORY_GIB ] ||
        fault "$memory GiB of memory free: compiling flash-attn takes $MIN_FLASH_MEMORY_GIB, $instead"
    export CUDA_HOME=$home
}

check_system
check_space
check_driver
[ "$attention" = sdpa ] || check_toolkit
for line in ${notes[@]+"${notes[@]}"}; do echo "note: $line"; done
if [ ${#faults[@]} -gt 0 ]; then
    echo "nothing was installed; missing:" >&2
    printf '  - %s\n' "${faults[@]}" >&2
    exit 1
fi
if [ -n "$check" ]; then
    echo "nothing is missing for --attention $attention"
    exit 0
fi

# the first word tells make's other targets that this environment serves them
checksum="cuda $attention $(cat "$lock" pyproject.toml | sha256sum | cut -d' ' -f1)"
if [ -f "$venv/.installed" ] && [ "$(cat "$venv/.installed")" = "$checksum" ]; then
    exit 0
fi
start=$SECONDS
total=$(grep -c '==' "$lock")
echo "[1/6] virtual environment in $venv ($("$python" --version))"
[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
pip=("$venv/bin/python" -m pip --disable-pip-version-check --no-input)
install=("${pip[@]}" install --progress-bar off --no-compile)

echo "[2/6] torch and what flash-attn is built with"
counted "$total" "${install[@]}" --constraint "$lock" \
    "$(pin torch)" "$(pin packaging)" "$(pin ninja)" "$(pin psutil)" "$(pin wheel)" "$(pin setuptools)" "$(pin einops)"

if [ "$attention" = flash ]; then
    # its setup.py imports torch, so it is built in this environment; for the cards of this machine alone where there are some
    cards=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null |
        awk -F. '{ print $1 == 8 ? "80" : $1 "0" }' | sort -u | paste -sd';' || true)
    export FLASH_ATTN_CUDA_ARCHS=${FLASH_ATTN_CUDA_ARCHS:-${cards:-80;90;100;120}}
    echo "[3/6] flash-attn, compiled for $FLASH_ATTN_CUDA_ARCHS by $CUDA_HOME (minutes on many cores, hours on few)"
    counted "$total" "${install[@]}" --no-deps --no-build-isolation "$(pin flash-attn)"
else
    echo "[3/6] no flash-attn: train with ds.attn_implementation=sdpa"
fi

echo "[4/6] the rest of $total packages"
rest=$(mktemp)
trap 'rm -f "$rest"' EXIT
grep -v '^flash-attn==' "$lock" >"$rest"
# DS_BUILD_OPS=0: DeepSpeed builds its operators when they are used
DS_BUILD_OPS=0 counted "$total" "${install[@]}" --no-deps --use-pep517 -r "$rest"

echo "[5/6] score-openrlhf itself"
"${pip[@]}" install --quiet --no-deps --no-build-isolation -e . 2>&1 | grep -v '^WARNING: Location' || true

echo "[6/6] checking what a run imports"
ATTENTION=$attention VLLM_LOGGING_LEVEL=WARNING "$venv/bin/python" - <<'PY'
import importlib.metadata
import os
import warnings

warnings.filterwarnings("ignore")
import torch

if torch.version.cuda is None:
    raise SystemExit(f"torch {torch.__version__} is a CPU build: an extra index of pip's offers it; remove that index and repeat")
if os.environ["ATTENTION"] == "flash":
    import flash_attn
import score_openrlhf.policies.build  # brings torch, Ray, DeepSpeed, transformers and vLLM with it

for name in ("torch", "openrlhf", "vllm", "deepspeed", "ray", "score-openrlhf"):
    print(f"      {name} {importlib.metadata.version(name)}")
PY
echo "$checksum" >"$venv/.installed"
echo "      done in $((SECONDS - start)) s; next: $venv/bin/score-openrlhf doctor"

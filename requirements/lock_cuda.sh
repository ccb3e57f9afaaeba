#!/usr/bin/env bash
# requirements/cuda.txt in, requirements/cuda.lock out: every package of a GPU machine, pinned. Reads metadata alone, so
# it takes seconds and needs no GPU. (make lock-cuda)
#   --check  change nothing: fail unless the lock satisfies every requirement of every package in it, lacks none, has
#            none too many, and serves Python 3.12 too (make check-requirements). Status 75: the index did not answer.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=requirements/common.sh
. requirements/common.sh

tools=$(mktemp -d)
trap 'rm -rf "$tools"' EXIT
uv=$(command -v uv || true)
if [ -z "$uv" ]; then
    "$(find_python)" -m venv "$tools/venv"
    if ! "$tools/venv/bin/python" -m pip --disable-pip-version-check --no-input install --quiet uv 2>"$tools/log"; then
        tail -n 3 "$tools/log" >&2
        echo "not checked: uv, which resolves, could not be installed" >&2
        exit 75
    fi
    uv=$tools/venv/bin/uv
fi

# resolve PYTHON-VERSION [more arguments]: name==version lines on stdout
resolve() {
    local version=$1
    shift
    if ! "$uv" pip compile --quiet --no-header --no-annotate --config-file requirements/uv.toml \
        --python-version "$version" --python-platform x86_64-manylinux_2_28 "$@" \
        pyproject.toml requirements/cuda.txt 2>"$tools/log"; then
        cat "$tools/log" >&2
        if grep -qiE 'failed to fetch|error sending request|connection|timed out|dns' "$tools/log"; then
            echo "not checked: the package index did not answer" >&2
            exit 75
        fi
        return 1
    fi
}

pins() { grep -E '^[a-z0-9]' "$1" | sort; }

if [ "${1:-}" != --check ]; then
    resolve 3.11 >"$tools/new"
    {
        echo "# Every package of a GPU machine (Linux, x86_64, Python 3.11 or 3.12; CUDA 13.0), pinned: what"
        echo "# requirements/cuda.txt resolves to. Written by requirements/lock_cuda.sh, installed by install_cuda.sh."
        cat "$tools/new"
    } >requirements/cuda.lock
    echo "requirements/cuda.lock: $(pins requirements/cuda.lock | wc -l) packages"
fi

pins requirements/cuda.lock >"$tools/lock"
for version in 3.11 3.12; do
    resolve "$version" --constraints requirements/cuda.lock >"$tools/$version" ||
        { echo "requirements/cuda.lock contradicts itself or requirements/cuda.txt on Python $version" >&2; exit 1; }
    pins "$tools/$version" >"$tools/found"
    missing=$(comm -13 "$tools/lock" "$tools/found")
    [ -z "$missing" ] || { printf 'requirements/cuda.lock lacks, on Python %s:\n%s\n' "$version" "$missing" >&2; exit 1; }
    [ "$version" != 3.11 ] || cp "$tools/found" "$tools/needed"
done
spare=$(comm -23 "$tools/lock" "$tools/needed")
[ -z "$spare" ] || { printf 'nothing needs these of requirements/cuda.lock:\n%s\n' "$spare" >&2; exit 1; }
echo "requirements/cuda.lock: $(wc -l <"$tools/lock") packages, complete and consistent on Python 3.11 and 3.12"

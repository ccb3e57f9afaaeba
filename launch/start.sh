#!/usr/bin/env bash
# start.sh DEFAULT_CONFIG [CONFIG] [key=value ...]: run the launcher with the project's Python, whoever starts us.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
config=$root/$1
shift
words=()
for word in "$@"; do
    case $word in
        *.yaml | *.yml) config=$word ;;
        */* | -*) words+=("$word") ;;
        *) if [ -f "$root/configs/$word.yaml" ]; then config=$word; else words+=("$word"); fi ;;
    esac
done
python=${PYTHON:-$root/.venv/bin/python}
[ -x "$python" ] || python=python3
exec "$python" -m score_openrlhf.launch "$config" ${words[@]+"${words[@]}"}

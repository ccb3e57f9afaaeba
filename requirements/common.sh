# shellcheck shell=bash
# What the installers share: a Python that serves, and pip's output as one line that counts. Sourced, not run.

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
    return 1
}

# counted TOTAL COMMAND...: run pip, print one line that counts what it collects; on a failure its last lines.
counted() {
    local total=$1 log
    shift
    log=$(mktemp)
    if ! "$@" 2>&1 | tee "$log" | awk -v total="$total" -v tty="$([ -t 1 ] && echo 1 || echo 0)" '
        /^(Collecting|Processing|Requirement already satisfied)/ {
            n++
            name = $1 == "Requirement" ? $4 : $2
            if (tty) printf "\r      %3d/%d %-50.50s", n, total, name
            else if (n % 50 == 0) printf "      %3d/%d\n", n, total
        }
        /^Installing collected packages/ { printf "%s      unpacking\n", tty ? "\r" : "" }
        { fflush() }'; then
        grep -v '^WARNING: Location' "$log" | tail -n 20 >&2
        rm -f "$log"
        echo "the install failed; the last lines of pip are above. Repeat the command to go on." >&2
        return 1
    fi
    rm -f "$log"
}

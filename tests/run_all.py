"""Run the test groups one after another; print how many tests each has and how long it took."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
GROUPS = ("unit", "stack")


def main() -> int:
    rows, worst = [], 0
    for group in GROUPS:
        if not list((ROOT / "tests" / group).glob("test_*.py")):
            continue
        print(f"== {group}", flush=True)
        start = time.perf_counter()
        lines = []
        command = [sys.executable, "-m", "pytest", f"tests/{group}", "-q", "--durations=5", *sys.argv[1:]]
        with subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ) as process:
            assert process.stdout is not None
            for line in process.stdout:
                print(line, end="", flush=True)
                lines.append(line)
        worst = max(worst, process.returncode)
        counts = re.findall(r"(\d+) (passed|failed|skipped|error|errors)", lines[-1] if lines else "")
        rows.append(
            (group, ", ".join(f"{n} {what}" for n, what in counts) or "no result", time.perf_counter() - start)
        )
    print("\ngroup      tests                          seconds")
    for group, counts, seconds in rows:
        print(f"{group:<10} {counts:<30} {seconds:7.0f}")
    return worst


if __name__ == "__main__":
    sys.exit(main())

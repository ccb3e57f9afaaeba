"""OpenRLHF's own test suite, as its wheel ships it, with the platform layer active: all of it passes."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import xml.etree.ElementTree as ElementTree
from pathlib import Path

NUM_TESTS = 221  # of OpenRLHF 0.11.2; none of them needs CUDA


def test_openrlhf_passes_its_own_tests(tmp_path):
    # The wheel's tests are the package "tests" of site-packages, and so is ours: run them from elsewhere, by path and
    # without our settings.
    suite = Path(sysconfig.get_paths()["purelib"]) / "tests"
    report = tmp_path / "report.xml"
    options = ["-q", "-p", "score_openrlhf.platform", "-p", "no:cacheprovider", "--import-mode", "importlib"]
    options += ["-c", "/dev/null", "--rootdir", str(tmp_path), "--junitxml", str(report)]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", str(suite), *options],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]

    counts = ElementTree.parse(report).getroot().find("testsuite").attrib
    assert int(counts["tests"]) >= NUM_TESTS
    assert (counts["failures"], counts["errors"], counts["skipped"]) == ("0", "0", "0")

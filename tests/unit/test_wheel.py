"""What `pip install` of a built wheel gives: the command works from any folder, without the checkout."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

import score_openrlhf
from score_openrlhf.config import packaged

ROOT = Path(__file__).resolve().parents[2]
PARTS = ("score_openrlhf", "configs", "launch", "docs", "requirements", "benchmarks", "tests")
FILES = ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE", "CHANGELOG.md", "Makefile")


def run(*words: str, cwd: Path) -> str:
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(words, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The sdist of a copy of the checkout, and the wheel of that sdist, as an index would hold them."""
    folder = tmp_path_factory.mktemp("dist")
    checkout = folder / "checkout"
    checkout.mkdir()
    for part in PARTS:
        shutil.copytree(ROOT / part, checkout / part, ignore=shutil.ignore_patterns("__pycache__"))
    for file in FILES:
        shutil.copy(ROOT / file, checkout)
    build = "import sys; from setuptools import build_meta as b; print(getattr(b, sys.argv[1])(sys.argv[2]))"
    sdist = folder / run(sys.executable, "-c", build, "build_sdist", str(folder), cwd=checkout).splitlines()[-1]
    with tarfile.open(sdist) as archive:
        archive.extractall(folder / "unpacked", filter="data")
    (source,) = (folder / "unpacked").iterdir()
    wheel = folder / run(sys.executable, "-c", build, "build_wheel", str(folder), cwd=source).splitlines()[-1]
    return sdist, wheel


@pytest.fixture(scope="module")
def installed(built, tmp_path_factory):
    """An environment of its own with the wheel; the dependencies are those of this one."""
    place = tmp_path_factory.mktemp("environment")
    run(sys.executable, "-m", "venv", "--without-pip", str(place), cwd=place)
    python = place / "bin" / "python"
    site = Path(run(str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=place).strip())
    (site / "dependencies.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", str(python)]
    run(*pip, "install", "--quiet", "--ignore-installed", "--no-deps", "--no-index", str(built[1]), cwd=place)
    elsewhere = place / "elsewhere"
    elsewhere.mkdir()
    return site, lambda *words: run(str(place / "bin" / words[0]), *words[1:], cwd=elsewhere)


def test_both_archives_hold_what_is_needed(built):
    sdist, wheel = built
    with zipfile.ZipFile(wheel) as archive:
        files = set(archive.namelist())
    assert {f"score_openrlhf/configs/{name}.yaml" for name in packaged.names()} <= files
    of_package = {str(p.relative_to(ROOT)) for p in (ROOT / "score_openrlhf").rglob("*") if p.is_file()}
    wanted = {name for name in of_package if "__pycache__" not in name}
    assert wanted <= files
    tops = {name.split("/")[0] for name in files}
    assert tops == {"score_openrlhf", f"score_openrlhf-{score_openrlhf.__version__}.dist-info"}
    with tarfile.open(sdist) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    assert {"configs/playground.yaml", "launch/start.sh", "docs/method.md", "setup.py"} <= held


def test_the_command_plans_and_helps_from_another_folder(installed):
    site, call = installed
    where = call("python", "-c", "import score_openrlhf; print(score_openrlhf.__file__)")
    assert Path(where.strip()).is_relative_to(site)
    out = call("score-openrlhf", "plan", "rl_guided_score_7b_8gpu")
    assert "configs/rl_guided_score_math.yaml" in out and "fits 1 x 8 GPUs" in out
    assert "playground" in call("score-openrlhf", "--help")
    assert "rl_guided_score_7b_4nodes" in " ".join(call("score-openrlhf", "playground", "--help").split())


def test_the_version_stands_in_one_place(installed):
    _, call = installed
    assert call("score-openrlhf", "--version") == f"score-openrlhf {score_openrlhf.__version__}\n"
    ask = "from importlib.metadata import version; print(version('score-openrlhf'))"
    assert call("python", "-c", ask).strip() == score_openrlhf.__version__
    assert importlib.metadata.version("score-openrlhf") == score_openrlhf.__version__

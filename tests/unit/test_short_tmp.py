"""A TMPDIR that is too long for the paths of sockets."""

from __future__ import annotations

import os
import socket
import tempfile
from pathlib import Path

import pytest

from score_openrlhf.platform import short_tmp

OF_RAY = "ray/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store"


@pytest.fixture
def long(tmp_path, monkeypatch):
    folder = tmp_path / ("a" * 90)
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", None)
    yield folder
    for root in short_tmp.ROOTS:
        for link in Path(root).glob("so-*"):
            if link.is_symlink() and link.resolve() == folder.resolve():
                link.unlink()


def test_a_long_one_gets_a_short_name_for_the_same_folder(long):
    short_tmp.shorten_tmpdir()
    short = os.environ["TMPDIR"]
    assert len(short) <= 40 and os.path.realpath(short) == str(long.resolve()) and tempfile.gettempdir() == short
    path = Path(short, OF_RAY)
    path.parent.mkdir(parents=True)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
    assert (long / OF_RAY).exists()
    short_tmp.shorten_tmpdir()
    assert os.environ["TMPDIR"] == short  # it is short now, and stays
    os.environ["TMPDIR"] = str(long)
    short_tmp.shorten_tmpdir()
    assert os.environ["TMPDIR"] == short  # the next command finds the same name


def test_somebody_elses_link_is_not_followed(long, tmp_path, monkeypatch):
    roots = [tmp_path / "one", tmp_path / "two"]
    for root in roots:
        root.mkdir()
    monkeypatch.setattr(short_tmp, "ROOTS", [str(root) for root in roots])
    short_tmp.shorten_tmpdir()
    (mine,) = roots[0].iterdir()
    mine.unlink()
    mine.symlink_to(tmp_path)  # elsewhere
    os.environ["TMPDIR"] = str(long)
    short_tmp.shorten_tmpdir()
    assert Path(os.environ["TMPDIR"]).parent == roots[1]


@pytest.mark.parametrize("value", ["/tmp", "/tmp/" + "no-such-folder" * 5, ""])
def test_a_short_one_or_one_that_is_not_there_stays(value, monkeypatch):
    monkeypatch.setenv("TMPDIR", value)
    short_tmp.shorten_tmpdir()
    assert os.environ["TMPDIR"] == value

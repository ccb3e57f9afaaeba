"""What a command has done is on disk as it is done, whole or not at all, and only for the same settings."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from score_openrlhf.journal import Journal, JournalInUse, settings_in

SETTINGS = {"samples": 2, "seeds": [0, 1]}


def opened(path) -> Journal:
    return Journal.open(path, SETTINGS)


def test_records_are_there_when_it_is_opened_again(tmp_path):
    path = tmp_path / "new" / "progress.jsonl"
    assert settings_in(path) is None
    first = opened(path)
    first.add({"place": 1, "text": "a\nb\ud800"})
    first.add({"place": 2, "value": 0.1})
    first.close()
    assert settings_in(path) == SETTINGS
    again = opened(path)
    assert [r["place"] for r in again.records] == [1, 2]
    assert again.records[0]["text"] == "a\nb\ud800" and again.records[1]["value"] == 0.1
    again.add({"place": 3})
    again.close()
    assert [r["place"] for r in opened(path).records] == [1, 2, 3]


@pytest.mark.parametrize(
    "torn", [b'{"place": 3, "te', b'{"place": 3}', b"\x00\x00\x00\n", b"[1]\n", b'{"pl\n{"place": 4}\n']
)
def test_what_a_killed_process_was_writing_is_cut_off(tmp_path, torn):
    path = tmp_path / "progress.jsonl"
    journal = opened(path)
    journal.add({"place": 1})
    journal.close()
    whole = path.read_bytes()
    path.write_bytes(whole + torn)
    again = opened(path)
    assert [r["place"] for r in again.records] == [1]
    again.add({"place": 2})
    again.close()
    assert path.read_bytes().startswith(whole)
    assert [r["place"] for r in opened(path).records] == [1, 2]


def test_a_journal_whose_first_line_is_torn_is_begun_anew(tmp_path):
    path = tmp_path / "progress.jsonl"
    path.write_bytes(b'{"settings": {"sam')
    assert settings_in(path) is None
    journal = opened(path)
    assert journal.records == []
    journal.close()
    assert settings_in(path) == SETTINGS


def test_seconds_of_all_sessions_add_up(tmp_path):
    path = tmp_path / "progress.jsonl"
    lines = [{"settings": SETTINGS}, {"seconds": 1.0}, {"seconds": 2.5}, {"opened": True}, {"seconds": 0.5}]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert opened(path).seconds_before == 3.0


def test_two_processes_do_not_write_one_journal(tmp_path):
    path = tmp_path / "progress.jsonl"
    journal = opened(path)
    with pytest.raises(JournalInUse, match="another process writes"):
        opened(path)
    journal.close()
    opened(path).close()


def test_kill_9_loses_nothing_that_was_added(tmp_path):
    path = tmp_path / "progress.jsonl"
    program = (
        "import sys; from pathlib import Path; from score_openrlhf.journal import Journal\n"
        f"journal = Journal.open(Path(sys.argv[1]), {SETTINGS!r})\n"
        "n = 0\n"
        "while True:\n"
        "    journal.add({'place': n, 'text': 'x' * 5000}); print(n, flush=True); n += 1\n"
    )
    process = subprocess.Popen([sys.executable, "-c", program, str(path)], stdout=subprocess.PIPE, text=True)
    for line in process.stdout:
        if int(line) == 50:
            break
    os.kill(process.pid, signal.SIGKILL)
    said = [int(line) for line in process.stdout.read().split()]
    process.wait()
    time.sleep(0.01)
    places = [r["place"] for r in opened(path).records]
    assert places == list(range(len(places))) and len(places) > max([50, *said])

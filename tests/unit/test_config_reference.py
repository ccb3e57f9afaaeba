"""The committed docs/configuration.md is the one the schema gives."""

from __future__ import annotations

from score_openrlhf.config.keys import keys
from score_openrlhf.config.reference import REFERENCE, reference, write


def test_the_committed_reference_is_current():
    assert REFERENCE.read_text(encoding="utf-8") == reference(), "run python -m score_openrlhf.config.reference"


def test_every_key_has_a_row_with_its_meaning(tmp_path):
    file = tmp_path / "configuration.md"
    write(file)
    rows = {
        line.split("`")[1]: line for line in file.read_text(encoding="utf-8").splitlines() if line.startswith("| `")
    }
    assert set(rows) == set(keys())
    assert all(key.help in rows[name] and key.help.endswith(".") for name, key in keys().items())

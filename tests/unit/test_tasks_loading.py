"""Data files: what is read, how ids are made, and what is said about rows that cannot be used."""

import json

import pyarrow
import pyarrow.parquet
import pytest

from score_openrlhf.tasks.loading import load_problems

KEYS = {"split": "train", "problem_key": "problem", "answer_key": "answer"}


def write(path, *lines):
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines) + "\n")
    return str(path)


def test_jsonl_rows_become_problems_with_the_line_in_the_id_and_other_columns_kept(tmp_path):
    rows = {"problem": "1+1?", "answer": "2", "level": 3}, "", {"problem": "1+1?", "answer": 2}
    problems = load_problems(write(tmp_path / "train.jsonl", *rows), **KEYS)
    assert [problem.id for problem in problems] == ["train.jsonl:1", "train.jsonl:3"]  # line 2 is blank
    assert [problem.answer for problem in problems] == ["2", "2"]  # duplicates stay; a number becomes text
    assert problems[0].extra == {"level": 3}


def test_a_row_s_own_id_counts_unless_an_earlier_row_has_it(tmp_path):
    row = {"id": "p7", "problem": "1+1?", "answer": "2"}
    problems = load_problems(write(tmp_path / "a.jsonl", row, row, row | {"id": 8}), **KEYS)
    assert [problem.id for problem in problems] == ["p7", "a.jsonl:2", "8"]


def test_json_and_parquet_hold_the_same_problems_as_jsonl(tmp_path):
    rows = [{"problem": f"{n}+1?", "answer": n + 1.5} for n in range(5)]
    write(tmp_path / "a.json", json.dumps(rows, indent=1))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    from_lines = load_problems(write(tmp_path / "a.jsonl", *rows), **KEYS)
    for name in ("a.json", "a.parquet"):
        loaded = load_problems(str(tmp_path / name), **KEYS)
        assert [(p.text, p.answer) for p in loaded] == [(p.text, p.answer) for p in from_lines]
        assert loaded[1].id == f"{name}:2"


def test_limit_reads_no_further(tmp_path):
    path = write(tmp_path / "a.jsonl", {"problem": "1?", "answer": 1}, {"problem": "2?", "answer": 2}, "{broken")
    assert len(load_problems(path, limit=2, **KEYS)) == 2


BAD_ROWS = [
    ("{broken", "not JSON: Expecting property name enclosed in double quotes at column 2"),
    ("[1, 2]", "a list, not an object"),
    ({"question": "1?", "answer": "1"}, "no key 'problem'; the row has 'question', 'answer'"),
    ({"problem": " ", "answer": "1"}, "'problem' is empty"),
    ({"problem": "1?", "answer": ""}, "'answer' is empty"),
    ({"problem": "1?", "answer": None}, "'answer' is null"),
    ({"problem": "1?", "answer": True}, "'answer' is a bool"),
    ({"problem": "1?", "answer": []}, "'answer' is an empty list"),
    ('{"problem": "1?", "answer": NaN}', "'answer' is nan"),
]


@pytest.mark.parametrize(("row", "message"), BAD_ROWS)
def test_a_bad_row_is_named_with_file_and_line(tmp_path, row, message):
    path = write(tmp_path / "train.jsonl", {"problem": "1?", "answer": "1"}, row)
    with pytest.raises(ValueError) as error:
        load_problems(path, **KEYS)
    assert f"1 bad row in {path}" in str(error.value)
    assert f"{path}:2: {message}" in str(error.value)


def test_five_bad_rows_are_listed_and_all_are_counted(tmp_path):
    path = write(tmp_path / "train.jsonl", *["{broken"] * 12)
    with pytest.raises(ValueError) as error:
        load_problems(path, **KEYS)
    assert "12 bad rows" in str(error.value)
    assert str(error.value).count("not JSON") == 5
    assert str(error.value).endswith("and 7 more")


def test_bytes_that_are_no_utf8_are_named_by_line(tmp_path):
    path = tmp_path / "train.jsonl"
    path.write_bytes(b'{"problem": "1?", "answer": "1"}\n{"problem": "\xff"}\n')
    with pytest.raises(ValueError, match=r"train.jsonl:2: not UTF-8 at byte 14"):
        load_problems(str(path), **KEYS)


def test_a_missing_file_is_named_in_full_with_its_neighbours(tmp_path, monkeypatch):
    write(tmp_path / "train.jsonl", {"problem": "1?", "answer": "1"})
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=f"data file {tmp_path}/trian.jsonl does not exist; near names there: train"):
        load_problems("trian.jsonl", **KEYS)
    with pytest.raises(ValueError, match=f"there is no directory {tmp_path}/data"):
        load_problems("data/train.jsonl", **KEYS)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", "\n", "holds no rows"),
        ("a.json", '{"problem": "1?"}', "holds a dict; a .json data file is one list"),
        ("a.json", '{"problem": 1}\n{"problem": 2}', "a.json:2: not JSON: Extra data .* is a .jsonl file"),
        ("a.parquet", "no parquet", "is not a parquet file"),
        ("a.csv", "problem,answer", "has the suffix '.csv'; data files are .jsonl, .json, .parquet"),
    ],
)
def test_files_that_are_no_data_files_are_refused(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        load_problems(str(tmp_path / name), **KEYS)


def test_hub_datasets_are_loaded_by_name_and_configuration(monkeypatch):
    import datasets

    calls = []

    def load_dataset(name, config, split):
        calls.append((name, config, split))
        if name == "nobody/nothing":
            raise datasets.exceptions.DatasetNotFoundError("no such dataset")
        return datasets.Dataset.from_list([{"problem": "1+1?", "answer": "2"}])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert load_problems("openai/gsm8k:main", **KEYS)[0].id == "openai/gsm8k:main:1"
    assert calls == [("openai/gsm8k", "main", "train")]
    with pytest.raises(ValueError, match="cannot load 'nobody/nothing', split 'train', from the hub"):
        load_problems("nobody/nothing", **KEYS)

"""Files of every form give the same rows; a damaged one is named, with its line."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from folders import write_jsonl

from workbench.data.files import ENDINGS, at_home, read_rows
from workbench.data.texts import load_texts


def test_every_file_form_gives_the_same_texts(tmp_path):
    texts = ["one", "two words", "a line\u2028separator", "drei"]
    rows = [{"text": text} for text in texts]
    write_jsonl(tmp_path / "a.jsonl", rows)
    (tmp_path / "a.json").write_text(json.dumps(rows))
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress((tmp_path / "a.jsonl").read_bytes()))
    (tmp_path / "a.txt").write_text("\n".join(texts) + "\n", encoding="utf-8")
    pd.DataFrame(rows).to_parquet(tmp_path / "a.parquet")
    for ending in ("jsonl", "json", "jsonl.gz", "txt", "parquet"):
        assert load_texts(tmp_path / f"a.{ending}", n=None) == texts
    assert load_texts(str(tmp_path / "a.txt"), n=4, seed=1) == load_texts(tmp_path / "a.jsonl", n=4, seed=1)


def test_a_table_is_read_with_its_columns(tmp_path):
    rows = [{"text": "a, b", "n": "1"}, {"text": 'say "x"\nnow', "n": ""}, {"text": "y" * 200_000, "n": "3"}]
    pd.DataFrame(rows).to_csv(tmp_path / "a.csv", index=False)
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress((tmp_path / "a.csv").read_bytes()))
    for name in ("a.csv", "a.csv.gz"):
        assert read_rows(tmp_path / name) == rows
        assert load_texts(tmp_path / name, n=None) == [row["text"] for row in rows]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("ending", ["jsonl", "json", "txt", "csv", "jsonl.gz"])
def test_marks_of_the_encoding_are_no_part_of_the_text(tmp_path, encoding, ending):
    texts = ["größe", "zwei"]
    rows = [{"text": text} for text in texts]
    written = {
        "jsonl": "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows),
        "json": json.dumps(rows, ensure_ascii=False),
        "txt": "\r\n".join(texts),
        "csv": "text\r\n" + "\r\n".join(texts),
    }
    data = written[ending.removesuffix(".gz")].encode(encoding)
    path = tmp_path / f"a.{ending}"
    path.write_bytes(gzip.compress(data) if ending.endswith("gz") else data)
    assert load_texts(path, n=None) == texts


@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("a.json", '{"text": "one"}\n{"text": "two"}\n'),
        ("a.json", '{"version": 1, "data": [{"text": "one"}, {"text": "two"}]}'),
        ("a.json", '{"text": ["one", "two"]}'),
        ("a.json", '[\n {"text": "one"},\n {"text": "two"}\n]\n'),
        ("a.jsonl", '[{"text": "one"}, {"text": "two"}]'),
        ("a.jsonl", '[\n {"text": "one"},\n {"text": "two"}\n]\n'),
        ("a.jsonl", '\n{"text": "one"}\n\n{"text": "two"}'),
        ("a.jsonl", '"one"\n"two"\n'),
    ],
)
def test_rows_are_found_however_the_json_is_laid_out(tmp_path, name, written):
    (tmp_path / name).write_text(written)
    assert load_texts(tmp_path / name, n=None) == ["one", "two"]


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("a.jsonl", b'{"text": "x"}\n{"text": "\xff"}\n', r"line 2 of .*a\.jsonl is not UTF-8 text.*0xff"),
        ("a.txt", b"one\ntwo\nd\xe9j\xe0", r"line 3 of .*a\.txt is not UTF-8 text.*0xe9"),
        ("a.csv", b"text\n\xe9", r"line 2 of .*a\.csv is not UTF-8"),
        ("a.jsonl", b'{"text": "x"}\n{"text": \n', r"line 2 of .*a\.jsonl is not JSON"),
        ("a.json", b'[{"text": "x"},\n {"text": }]', r"line 2 of .*a\.json is not JSON"),
        ("a.json", b'{"text": "x"}\n{"text": "y"}\n{"text"', r"line 3 of .*a\.json is not JSON"),
        ("a.json", b"", r"line 1 of .*a\.json is not JSON"),
        ("a.json", b'{"train": [{"text": "x"}], "test": [{"text": "y"}]}', "an object with train, test"),
        ("a.json", b'"hello"', "it holds 'hello'"),
        ("a.json", b"[" * 100_000, "is not JSON"),
        ("a.jsonl", b'{"text": ' + b"9" * 5000 + b"}", r"line 1 of .*a\.jsonl is not JSON"),
        ("a.json", b'{"text": "one"}', "an object with text"),
        ("a.jsonl.gz", b"no gzip", r"a\.jsonl\.gz is not a whole gzip file"),
        ("a.jsonl.gz", gzip.compress(b'{"text": "x"}\n' * 99, mtime=0)[:-9], "is not a whole gzip file"),
        ("a.csv.gz", gzip.compress(b"text\nx\n", mtime=0)[:4], "is not a whole gzip file"),
        ("a.parquet", b"hello", r"a\.parquet is not a whole parquet file"),
        ("a.parquet", b"PAR1" + b"x" * 40 + b"PAR1", "is not a whole parquet file"),
        ("a.csv", b"text,n\nx,1\ny\n", r"line 3 of .*a\.csv does not fit its columns \['text', 'n'\]"),
        ("a.csv", b"text,n\nx,1,2\n", "line 2 of .* does not fit its columns"),
        ("a.csv", b'text\n"never closed\n', r"a\.csv is not CSV"),
        ("a.csv", b"text,text\nx,y\n", "must name each column once, got 'text' again"),
        ("a.docx", b"x", r"a data file must end in \.jsonl.*a\.docx"),
    ],
)
def test_a_damaged_file_is_named_in_one_line(tmp_path, name, data, words):
    (tmp_path / name).write_bytes(data)
    for read in (read_rows, load_texts):
        with pytest.raises(ValueError, match=words) as error:
            read(tmp_path / name)
        assert "\n" not in str(error.value)


def test_endings_may_be_in_capitals(tmp_path):
    for name, data in (("a.JSONL", b'{"text": "x"}'), ("a.CSV", b"text\nx\n"), ("a.Txt", b"x\n")):
        (tmp_path / name).write_bytes(data)
        assert load_texts(tmp_path / name, n=None) == ["x"]


def test_values_of_parquet_are_plain(tmp_path):
    frame = pd.DataFrame({"text": ["a", None], "n": [1, 2], "parts": [np.array(["x", "y"]), None]})
    frame.to_parquet(tmp_path / "a.parquet")
    assert read_rows(tmp_path / "a.parquet") == [
        {"text": "a", "n": 1, "parts": ["x", "y"]},
        {"text": None, "n": 2, "parts": None},
    ]
    frame[:0].to_parquet(tmp_path / "a.parquet")
    assert read_rows(tmp_path / "a.parquet") == []


def test_the_home_folder_is_found(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write_jsonl(tmp_path / "a.jsonl", [{"text": "x"}])
    assert read_rows("~/a.jsonl") == [{"text": "x"}] and load_texts("~/a.jsonl", n=None) == ["x"]
    with pytest.raises(ValueError, match="no such file"):
        load_texts("~nobody-at-all/a.jsonl")
    assert at_home("a/b") == Path("a/b") and len(ENDINGS) == len(set(ENDINGS))


def test_a_small_file_that_unpacks_to_very_much_is_refused(tmp_path: Path):
    (tmp_path / "x.txt.gz").write_bytes(gzip.compress(bytes(2**28 + 1), 1))
    with pytest.raises(ValueError, match=r"x.txt.gz unpacks to more than 100 times its size; give"):
        read_rows(tmp_path / "x.txt.gz")

"""Texts: sampled as promised, refused in one line when they cannot be."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter

import pandas as pd
import pytest
from folders import write_jsonl
from tiny import tiny_tokenizer

import workbench as wb
from workbench.data.texts import DEMO_CORPORA, fingerprint, load_texts


@pytest.fixture
def file(tmp_path):
    rows = [{"text": f"text {i} " + "word " * (i % 7)} for i in range(60)]
    rows[5]["text"], rows[6]["text"], rows[7]["text"] = "", "  \n", None
    return write_jsonl(tmp_path / "texts.jsonl", rows)


def test_a_sample_is_fixed_by_its_seed_and_a_smaller_one_is_its_beginning(file):
    ten = load_texts(file, n=10, seed=3)
    assert ten == load_texts(file, n=10, seed=3)
    assert ten[:4] == load_texts(file, n=4, seed=3)
    assert ten != load_texts(file, n=10, seed=4)
    assert len(set(ten)) == 10


def test_a_sample_is_uniform_over_all_rows(file):
    counts = Counter(text for seed in range(300) for text in load_texts(file, n=19, seed=seed))
    assert len(counts) == 57
    assert 60 < min(counts.values()) < max(counts.values()) < 140  # 100 expected, deviation about 8


def test_empty_documents_are_passed_over_and_counted(file):
    every = load_texts(file, n=None)
    assert len(every) == 57
    assert every[0].startswith("text 0")
    assert every.source["empty"] == 3
    assert every.source["looked_at"] == 60


def test_short_texts_are_passed_over_in_characters_or_in_tokens(file):
    assert min(map(len, load_texts(file, n=None, min_length=20))) >= 20
    tokenizer = tiny_tokenizer()
    long = load_texts(file, n=None, min_length=15, tokenizer=tokenizer)
    assert min(len(tokenizer(text)["input_ids"]) for text in long) >= 15
    assert long.source["too_short"] == 57 - len(long) > 0


def test_a_list_is_taken_as_it_is_and_sampled_when_longer():
    texts = [f"text {i}" for i in range(9)]
    assert load_texts(texts) == texts
    assert set(load_texts(texts, n=4)) < set(texts)


def test_the_demo_corpora_are_there():
    mixed = load_texts("demo", n=None)
    parts = [load_texts(f"demo-{name}", n=None) for name in DEMO_CORPORA]
    assert list(mixed) == [text for part in parts for text in part]
    assert len(load_texts()) == 128


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"name": "c44"}, ["demo-stories", "wikitext2", "did you mean c4?"]),
        ({"name": "demo-story"}, ["did you mean demo-stories"]),
        ({"name": "nowhere/texts.jsonl"}, ["no such file", "texts.jsonl"]),
        ({"name": "demo", "n": 0}, ["n must be", ">= 1", "got 0"]),
        ({"name": "demo", "n": 2.0}, ["n must be", "2.0"]),
        ({"name": "demo-german", "n": 10**6}, ["n must be at most", "got 1000000"]),
        ({"name": ["good", "", "more"]}, ["number 1", "''"]),
        ({"name": ["good", None]}, ["a list of texts", "None"]),
        ({"name": []}, ["no usable row"]),
        ({"name": "demo", "seed": -1}, ["seed must be", ">= 0", "got -1"]),
        ({"name": "demo", "min_length": "5"}, ["min_length must be", "'5'"]),
        ({"name": "demo", "min_length": -5}, ["min_length must be", "-5"]),
        ({"name": "demo", "skip": 1.5}, ["skip must be", "1.5"]),
        ({"name": "demo", "split": "test"}, ["split and location are for sets of the hub", "'test'"]),
        ({"name": "demo", "location": "here"}, ["split and location", "'here'"]),
        ({"name": "c4", "n": None}, ["n must be a number", "c4"]),
        ({"name": "redpajama", "split": "validation"}, ["split must be 'train'"]),
        ({"name": "c4"}, ["allenai/c4", "location="]),
    ],
)
def test_bad_text_arguments_give_one_clear_line(arguments, words):
    with pytest.raises(ValueError) as error:
        wb.load_texts(**arguments)
    assert all(word in str(error.value) for word in words), error.value
    assert "\n" not in str(error.value)


def test_other_texts_are_those_behind_the_first(file):
    first, others = load_texts(file, n=20, seed=3), load_texts(file, n=20, seed=3, skip=20)
    assert not set(first) & set(others) and len(set(others)) == 20
    assert [*first, *others] == load_texts(file, n=40, seed=3)
    rest = load_texts(file, n=None, seed=3, skip=20)
    assert rest[:20] == others and len(rest) == 37
    with pytest.raises(ValueError, match=r"n must be at most 37 for .* behind the 20 skipped"):
        load_texts(file, n=38, skip=20)
    texts = [f"text {i}" for i in range(9)]
    few, more = load_texts(texts, n=5), load_texts(texts, n=4, skip=5)
    assert sorted([*few, *more]) == texts
    with pytest.raises(ValueError, match="no usable row behind the 9 skipped"):
        load_texts(texts, skip=9)


def test_texts_that_occur_again_are_counted_and_never_in_both_parts(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": f"text {i % 10}"} for i in range(40)])
    every = load_texts(path, n=None)
    assert every.source["duplicates"] == 30
    first, others = load_texts(path, n=4), load_texts(path, n=None, skip=4)
    assert set(first) | set(others) == set(every) and not set(first) & set(others)
    assert others.source["repeated"] == 40 - 4 - len(others) > 0


@pytest.mark.parametrize(
    "name", [None, {"a": "b"}, 5, b"text", {"a"}, pd.DataFrame({"text": ["a"]})], ids=lambda name: type(name)
)
def test_what_is_no_list_of_texts_is_refused(name):
    with pytest.raises(ValueError, match="name must be a name, a path or a list of texts") as error:
        load_texts(name)
    assert "\n" not in str(error.value) and type(name).__name__ in str(error.value)


def test_lists_of_other_kinds_are_taken():
    for texts in (("a", "b"), pd.Series(["a", "b"], index=[3, 4]), pd.Series(["a", "b"]).to_numpy()):
        assert load_texts(texts) == ["a", "b"]


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"body": "x"}, r"column must be one of \['body'\] for .*a\.jsonl \(row 3\), got 'text'"),
        (None, r"a\.jsonl must hold rows with named columns, got None as row 3"),
        (5, "got 5 as row 3"),
        (["x"], "as row 3"),
        ({"text": [{"role": "user", "content": "hi"}]}, r"column text of row 3 of .*a\.jsonl must be text"),
        ({"text": "half \ud800"}, "column text of row 3 of .* half a surrogate pair"),
    ],
)
def test_a_row_that_is_no_text_is_named(tmp_path, row, words):
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": "one"}, {"text": "two"}, row])
    with pytest.raises(ValueError, match=words) as error:
        load_texts(path, n=None)
    assert "\n" not in str(error.value)


def test_bad_files_give_one_clear_line(tmp_path, file):
    with pytest.raises(ValueError, match=r"column must be one of \['text'\].*got 'body'"):
        load_texts(file, column="body")
    (tmp_path / "a.jsonl").write_text('{"text": "x"}\n{"text": \n')
    with pytest.raises(ValueError, match=r"line 2 of .*a\.jsonl is not JSON"):
        load_texts(tmp_path / "a.jsonl")
    (tmp_path / "a.docx").write_text("x")
    with pytest.raises(ValueError, match=r"must end in \.jsonl.*a\.docx"):
        load_texts(tmp_path / "a.docx")


def test_real_calibration_texts(shared_data):
    wiki = load_texts(shared_data / "wikitext2_raw_test.jsonl", n=None)
    assert len(wiki) + wiki.source["empty"] == 4358
    assert len(load_texts(shared_data / "c4.jsonl", n=128, min_length=1000)) == 128
    assert len(load_texts(shared_data / "redpajama.jsonl", n=None)) == 318


def test_a_fingerprint_follows_the_content():
    frame = pd.DataFrame({"a": ["x", "y"], "b": [1.0, 2.0]})
    assert fingerprint(frame) == fingerprint(frame.copy())
    assert fingerprint(frame) != fingerprint(frame.assign(b=[1.0, 3.0]))
    assert fingerprint(["a", "b"]) != fingerprint(["b", "a"])
    assert fingerprint(["ab"]) != fingerprint(["a", "b"])
    assert fingerprint({"x": 1, "y": 2}) == fingerprint({"y": 2, "x": 1}) != fingerprint({"x": 2, "y": 1})
    with pytest.raises(ValueError):
        fingerprint(object())


def test_data_needs_no_torch():
    code = "import sys, workbench; workbench.load_texts('demo', n=2); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

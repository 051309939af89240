"""Rows of files and of hub sets, the latter read from local copies of the same form."""

from __future__ import annotations

import gzip
import json
from collections import Counter

import pandas as pd
import pytest
from folders import write_jsonl

from workbench.data.sources import CORPORA, as_text, check_enough, check_file, permuted, read_rows, sample
from workbench.data.texts import load_texts


def test_a_sample_stops_when_it_has_enough_and_passes_rows_over():
    asked = []

    def odd(index, row):
        asked.append(index)
        return row if row % 2 else None

    rows = list(range(100, 140))
    assert sample(rows, odd, name="x", n=None, seed=0) == rows[1::2]
    assert asked == list(range(40))
    asked.clear()
    seven = sample(rows, odd, name="x", n=7, seed=3)
    assert len(seven) == 7
    assert rows[asked[-1]] == seven[-1]
    assert asked == [index for index, _ in permuted(rows, 7, 3)][: len(asked)]


def test_missing_fields_are_empty_text():
    assert [as_text(value) for value in (None, float("nan"), 3, "x")] == ["", "", "3", "x"]


def test_what_there_is_too_little_of_and_what_is_no_file(tmp_path):
    check_enough("x", 3, 3, "")
    with pytest.raises(ValueError, match=r"n must be at most 2 for x, its usable rows \(1 empty\), got 3"):
        check_enough("x", 3, 2, "1 empty")
    with pytest.raises(ValueError, match=r"x has no usable row \(1 empty\)"):
        check_enough("x", None, 0, "1 empty")
    check_file(str(write_jsonl(tmp_path / "a.jsonl", [])), [], "a list")
    with pytest.raises(ValueError, match="got 'gms8k', and no such file exists; did you mean gsm8k"):
        check_file("gms8k", ["gsm8k"], "a list")


def test_a_file_of_another_kind_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"a data file must end in \.jsonl"):
        read_rows(tmp_path / "a.csv")


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


def test_c4_is_read_as_a_stream_of_its_repository(tmp_path):
    for shard in range(3):
        rows = [{"text": f"doc {shard}-{i}", "timestamp": "2019", "url": "u"} for i in range(400)]
        data = gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode())
        path = tmp_path / "en" / f"c4-train.{shard:05}-of-00003.json.gz"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
    (tmp_path / "README.md").write_text(
        "---\nconfigs:\n- config_name: en\n  data_files:\n  - split: train\n"
        "    path: en/c4-train.*.json.gz\n---\n"
    )
    texts = load_texts("c4", n=20, seed=0, location=tmp_path)
    assert len(set(texts)) == 20
    assert all(text.startswith("doc 0-") for text in texts)  # 160 of the first shard, the rest never read
    assert max(int(text.split("-")[1]) for text in texts) < 160
    assert texts == load_texts("c4", n=20, seed=0, location=tmp_path)
    assert texts != load_texts("c4", n=20, seed=1, location=tmp_path)
    # texts that pass rarely are looked for further on
    late = load_texts("c4", n=90, seed=0, min_length=9, location=tmp_path)
    assert len(set(late)) == 90
    with pytest.raises(ValueError, match="at most 1200 for c4"):
        load_texts("c4", n=5000, location=tmp_path)


def test_redpajama_mixes_its_domains_in_proportion(tmp_path):
    for domain, _ in CORPORA["redpajama"].files:
        name = domain.removesuffix("_sample.jsonl")
        # "meta" differs from row to row, as in the real files
        metas = [{"url": "x"}, {"timestamp": 1, "nested": {"a": [1]}}, "{'text': 1}"]
        rows = [{"text": f"{name} {i}", "meta": metas[i % 3]} for i in range(3000)]
        write_jsonl(tmp_path / domain, rows)
    texts = load_texts("redpajama", n=1000, seed=0, location=tmp_path)
    domains = Counter(text.split()[0] for text in texts)
    assert len(set(texts)) == 1000
    crawl = sum(count for name, count in domains.items() if name.startswith("cc_"))
    assert 670 < crawl < 780  # 3921 of 5413 MB
    assert 130 < domains["c4"] < 190


def test_wikitext_and_slimpajama_are_read_from_parquet(tmp_path):
    wiki = tmp_path / "wiki"
    (wiki / "wikitext-2-raw-v1").mkdir(parents=True)
    lines = ["", " = Title = \n", " A paragraph . \n"] * 50
    for split in ("train", "test"):
        path = wiki / "wikitext-2-raw-v1" / f"{split}-00000-of-00001.parquet"
        pd.DataFrame({"text": [line and f"{split}{line}{i}" for i, line in enumerate(lines)]}).to_parquet(
            path
        )
    (wiki / "README.md").write_text(
        "---\nconfigs:\n- config_name: wikitext-2-raw-v1\n  data_files:\n  - split: test\n"
        "    path: wikitext-2-raw-v1/test-*\n  - split: train\n    path: wikitext-2-raw-v1/train-*\n---\n"
    )
    every = load_texts("wikitext2", n=None, location=wiki)
    assert len(every) == 100
    assert every.source["empty"] == 50
    assert all(text.startswith("test") for text in load_texts("wikitext2", n=9, split="test", location=wiki))
    slim = tmp_path / "slim"
    (slim / "data").mkdir(parents=True)
    frame = pd.DataFrame(
        {"text": [f"doc {i}" for i in range(99)], "meta": [{"redpajama_set_name": "C4"}] * 99}
    )
    frame.to_parquet(slim / "data" / "train-00000-of-00001-ab2b35705f029d94.parquet")
    assert len(set(load_texts("slimpajama", n=12, location=slim))) == 12

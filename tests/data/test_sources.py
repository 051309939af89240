"""Rows of files and of hub sets, the latter read from local copies of the same form."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
import time
from collections import Counter
from types import SimpleNamespace

import datasets
import huggingface_hub
import pandas as pd
import pytest
from folders import write_jsonl

from workbench.data.sources import (
    CORPORA,
    PAGE,
    SECONDS_FOR_THE_HUB,
    Draw,
    Source,
    as_text,
    check_file,
    numbered,
)
from workbench.data.texts import load_texts


def test_a_sample_stops_when_it_has_enough_and_passes_rows_over():
    asked = []

    def odd(index, row):
        asked.append(index)
        return row if row % 2 else None

    rows = list(range(100, 140))
    source, why = Source("x", rows), lambda: "even"
    assert source.sample(odd, Draw(None), why) == rows[1::2]
    assert asked == list(range(40))
    asked.clear()
    seven = source.sample(odd, Draw(7, 3), why)
    assert len(seven) == 7
    assert rows[asked[-1]] == seven[-1]
    assert asked == [index for index, _ in numbered(rows, Draw(7, 3), False)][: len(asked)]
    assert source.sample(odd, Draw(4, 3), why) + source.sample(odd, Draw(3, 3, 4), why) == seven
    rest = source.sample(odd, Draw(None, 3, 7), why)
    assert sorted(seven + rest) == rows[1::2]


def test_missing_fields_are_empty_text_and_what_holds_several_is_none():
    assert [as_text(value, "x") for value in (None, float("nan"), 3, "x")] == ["", "", "3", "x"]
    for value in (["a"], {"a": 1}, b"a", "a\ud800"):
        with pytest.raises(ValueError, match="column a of row 3 must be text"):
            as_text(value, "column a of row 3")


def test_what_there_is_too_little_of_and_what_is_no_file(tmp_path):
    source = Source("x", [1, None, 2])
    with pytest.raises(ValueError, match=r"n must be at most 2 for x, its usable rows \(1 empty\), got 3"):
        source.sample(lambda _, row: row, Draw(3), lambda: "1 empty")
    with pytest.raises(ValueError, match=r"x has no usable row behind the 9 skipped \(1 empty\)"):
        source.sample(lambda _, row: row, Draw(None, 0, 9), lambda: "1 empty")
    check_file(str(write_jsonl(tmp_path / "a.jsonl", [])), [], "a list")
    with pytest.raises(ValueError, match="got 'gms8k', and no such file exists; did you mean gsm8k"):
        check_file("gms8k", ["gsm8k"], "a list")
    with pytest.raises(ValueError, match="that is a folder"):
        check_file(str(tmp_path), ["gsm8k"], "a list")


def c4_copy(folder, shards, rows):
    for shard in range(shards):
        made = [{"text": f"doc {shard}-{i}", "timestamp": "2019", "url": "u"} for i in range(rows)]
        data = gzip.compress("".join(json.dumps(row) + "\n" for row in made).encode())
        path = folder / "en" / f"c4-train.{shard:05}-of-{shards:05}.json.gz"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
    (folder / "README.md").write_text(
        "---\nconfigs:\n- config_name: en\n  data_files:\n  - split: train\n"
        "    path: en/c4-train.*.json.gz\n---\n"
    )
    return folder


def test_c4_is_read_as_a_stream_of_its_repository(tmp_path):
    c4_copy(tmp_path, shards=3, rows=1100)
    texts = load_texts("c4", n=20, seed=0, location=tmp_path)
    assert len(set(texts)) == 20
    assert all(text.startswith("doc 0-") for text in texts)  # a page of the first shard, the rest never read
    assert 200 < max(int(text.split("-")[1]) for text in texts) < PAGE
    assert texts == load_texts("c4", n=20, seed=0, location=tmp_path)
    assert texts != load_texts("c4", n=20, seed=1, location=tmp_path)
    # texts that pass rarely are looked for further on
    late = load_texts("c4", n=1200, seed=0, min_length=9, location=tmp_path)
    assert len(set(late)) == 1200
    with pytest.raises(ValueError, match="at most 3300 for c4"):
        load_texts("c4", n=5000, location=tmp_path)


@pytest.mark.parametrize("name", ["c4", "redpajama"])
def test_a_large_sample_begins_with_the_smaller_one_and_another_follows_it(tmp_path, name):
    c4_copy(tmp_path, shards=2, rows=700)
    for domain in CORPORA["redpajama"].files:
        rows = [{"text": f"{domain} {i}"} for i in range(300)]
        write_jsonl(tmp_path / domain, rows)
    large = load_texts(name, n=1100, location=tmp_path)
    small, behind = (load_texts(name, n=128, skip=skip, location=tmp_path) for skip in (0, 128))
    assert large[:128] == small and large[128:256] == behind


def test_no_more_than_a_page_of_a_large_set_is_in_memory():
    held: set[int] = set()
    most = 0

    class Document:
        def __init__(self, number):
            held.add(number)
            self.number = number

        def __del__(self):
            held.discard(self.number)

    def note(index, row):
        nonlocal most
        most = max(most, len(held))
        return index

    documents = (Document(k) for k in range(40 * PAGE))
    source = Source("x", None, ((documents, 1.0),))
    found = source.sample(note, Draw(8 * PAGE), lambda: "")
    assert len(set(found)) == 8 * PAGE and most <= 2 * PAGE + 1


def test_the_commit_of_a_hub_set_is_told(tmp_path):
    commit = "0123456789" * 4
    folder = tmp_path / "hub" / "datasets--allenai--c4" / "snapshots" / commit
    folder.mkdir(parents=True)
    c4_copy(folder, shards=1, rows=9)
    assert load_texts("c4", n=2, location=folder).source["revision"] == commit
    assert load_texts(["a", "b"]).source["revision"] is None


def test_the_hub_is_asked_once_and_its_commit_is_what_is_read(monkeypatch, tmp_path):
    asked, opened = [], []
    commit = "0123456789" * 4

    def told(api, repo, *, timeout):
        asked.append((repo, timeout))
        return SimpleNamespace(sha=commit)

    def local(name, config=None, *, revision=None, **options):
        opened.append((name, revision, *options.values()))
        return real(str(tmp_path), config)

    real = datasets.load_dataset_builder
    c4_copy(tmp_path, shards=1, rows=9)
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", told)
    monkeypatch.setattr(datasets, "load_dataset_builder", local)
    assert load_texts("c4", n=2).source["revision"] == commit
    assert asked == [("allenai/c4", SECONDS_FOR_THE_HUB)] and opened == [("allenai/c4", commit)]


def test_a_hub_that_is_not_there_is_found_out_at_once(root):
    code = "from workbench.data.texts import load_texts\nload_texts('c4')"
    there = dict.fromkeys(("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"), "0")
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | there | {"HF_ENDPOINT": "http://127.0.0.1:9"},  # a port where nobody answers
        cwd=root,
        capture_output=True,
        text=True,
    )
    assert "c4 could not be opened at the hub (allenai/c4)" in done.stderr.splitlines()[-1]
    assert "Retrying" not in done.stderr and time.monotonic() - began < 60


def test_redpajama_mixes_its_domains_in_proportion(tmp_path):
    for domain in CORPORA["redpajama"].files:
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

"""Data sets go by short names: a path is never a label."""

from __future__ import annotations

from pathlib import Path

import pytest

from workbench.data.labels import named_sets
from workbench.runs.run import open_run


@pytest.mark.parametrize(
    ("sets", "labels"),
    [
        ("demo-stories", ["demo-stories"]),
        ("/data/c4.jsonl", ["c4"]),
        ("../../c4.txt.gz", ["c4"]),
        ("~/My Texts (2).csv", ["My-Texts-2"]),
        (Path("x") / "c4.parquet", ["c4"]),
        (["c4", "/data/wiki.v2.jsonl"], ["c4", "wiki.v2"]),
        (["c4", "/data/c4.jsonl"], ["c4", "data-c4"]),
        (["a/c4.jsonl", "b/c4.jsonl"], ["a-c4", "b-c4"]),
        (["tatsu-lab/alpaca"], ["alpaca"]),
        ({"C4": "/data/x.jsonl", "own": "demo"}, ["C4", "own"]),
        ("ü.jsonl", ["texts"]),
    ],
)
def test_labels(sets, labels, tmp_path):
    found = named_sets(sets)
    assert list(found) == labels
    given = list(sets.values()) if isinstance(sets, dict) else sets if isinstance(sets, list) else [sets]
    assert list(found.values()) == given
    run = open_run("r", root=tmp_path)
    for label in found:
        assert run.path(f"angles-{label}.csv").parent == run.folder


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        ([], "at least one"),
        ({}, "at least one"),
        (["x/a/c4.jsonl", "y/a/c4.jsonl"], "must differ in their names, or have labels"),
        ({"a/b": "demo"}, r"a label must be .*got 'a/b'"),
        ({"": "demo"}, "a label must be"),
    ],
)
def test_what_has_no_name_is_refused(sets, message):
    with pytest.raises(ValueError, match=message):
        named_sets(sets)

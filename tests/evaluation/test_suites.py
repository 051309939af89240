"""The suites of the papers are those of the papers."""

from __future__ import annotations

import pytest
from scoring import read_jsonl
from tiny import tiny_model

from workbench.evaluation.evaluate import evaluate
from workbench.evaluation.scores import blimp_groups
from workbench.evaluation.suites import BLIMP_GROUPS, SUITES
from workbench.evaluation.tasks import load_plan, plan_tasks


def test_the_suites_load_from_a_folder(shared_data):
    sizes = {
        "sdd": {25: 1, 5: 58},
        "gro": {0: 58, 5: 57},
        "iterabre": {0: 133},
    }
    for suite, expected in sizes.items():
        loaded = load_plan(plan_tasks(suite), data=shared_data)
        assert {shots: len(part["tasks"]) for shots, part in loaded.tasks.items()} == expected
        assert loaded.skipped == {}


def test_blimp_groups_are_those_of_the_paper(shared_data, tokenizer):
    paradigms = {row["UID"] for row in read_jsonl(shared_data / "blimp.jsonl")}
    grouped = [name for names in BLIMP_GROUPS.values() for name in names]
    assert len(BLIMP_GROUPS) == 13
    assert len(grouped) == len(set(grouped)) == 65
    assert paradigms - set(grouped) == {"tough_vs_raising_1", "tough_vs_raising_2"}
    frame = evaluate(tiny_model(), tokenizer, "blimp", data=shared_data, limit=2, progress=False)
    groups = blimp_groups(frame)
    values, ours = frame.set_index("task")["value"], groups.set_index("task")
    for group, names in BLIMP_GROUPS.items():
        assert ours.loc[f"blimp_{group}", "value"] == pytest.approx(
            values[[f"blimp_{n}" for n in names]].mean()
        )
    assert list(groups.columns) == list(frame.columns)
    assert groups["n"].sum() == 130
    with pytest.raises(ValueError, match="'blimp_wh_island' is not there"):
        blimp_groups(frame[frame["task"] != "blimp_wh_island"])
    with pytest.raises(ValueError, match="none of them"):
        blimp_groups(frame[frame["task"] == "blimp"])


def test_a_suite_fits_a_model_of_a_shorter_context(shared_data, tokenizer):
    assert SUITES["iterabre"].max_length == 1024
    frame = evaluate(
        tiny_model(),
        tokenizer,
        ["race", "blimp_wh_island"],
        data=shared_data,
        limit=2,
        max_length=256,
        progress=False,
    )
    assert frame.set_index("task")["truncated"].to_dict() == {"race": 2, "blimp_wh_island": 0}

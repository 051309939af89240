"""Average recovery and its interval: a plain bootstrap, real items, nothing that the items cannot support."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from tiny import tiny_model

import workbench as wb
from workbench.evaluation.recovery import average_recovery
from workbench.runs.variant import Variant


def answered(rights: dict[str, dict[str, np.ndarray]]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return scores and items of variant -> task -> right or wrong, as ``evaluate_variants`` gives them."""
    about = {"metric": "acc", "n_shot": 0}
    values = [(variant, task, right) for variant, tasks in rights.items() for task, right in tasks.items()]
    items = [
        pd.DataFrame({"variant": variant, "task": task, "item": range(len(right)), "value": right} | about)
        for variant, task, right in values
    ]
    scores = pd.DataFrame(
        {"variant": variant, "task": task, "value": right.mean(), "n": len(right), "parent": ""} | about
        for variant, task, right in values
    )
    return scores.assign(higher_is_better=True), pd.concat(items, ignore_index=True)


def drawn(n: int, share: float, seed: int) -> np.ndarray:
    return (np.random.default_rng(seed).random(n) < share).astype(float)


BASE = {"a": drawn(200, 0.8, 0), "b": drawn(60, 0.5, 1)}
CUT = {"a": BASE["a"] * drawn(200, 0.8, 2), "b": BASE["b"] * drawn(60, 0.7, 3)}


def test_the_interval_is_that_of_a_plain_paired_bootstrap():
    scores, items = answered({"base": BASE, "cut": CUT})
    found = average_recovery(scores, items=items).set_index("variant").loc["cut"]
    rng, ratios = np.random.default_rng(7), []
    for _ in range(4000):
        picked = {task: rng.integers(len(right), size=len(right)) for task, right in BASE.items()}
        base, cut = (np.mean([one[t][picked[t]].mean() for t in picked]) for one in (BASE, CUT))
        ratios.append(cut / base)
    assert (found["ci_low"], found["ci_high"]) == pytest.approx(np.quantile(ratios, [0.025, 0.975]), abs=0.01)
    assert found["ci_low"] < found["recovery"] < found["ci_high"]
    assert found["n"] == 260
    wider = average_recovery(scores, items=items, confidence=0.99).set_index("variant").loc["cut"]
    assert wider["ci_low"] < found["ci_low"] < found["ci_high"] < wider["ci_high"]


@pytest.mark.parametrize("turned", [0, 1, 4])
def test_few_turned_items_support_no_interval(turned):
    right = np.ones(100)
    worse = right.copy()
    worse[:turned] = 0
    scores, items = answered({"base": {"a": right}, "cut": {"a": worse}})
    found = average_recovery(scores, items=items)
    assert found["recovery"].tolist() == [1, 1 - turned / 100]
    assert found[["ci_low", "ci_high"]].isna().all(axis=None)


def test_a_base_that_other_items_would_leave_at_nothing_supports_no_interval():
    poor = np.zeros(12)
    poor[:2] = 1
    scores, items = answered({"base": {"a": poor}, "cut": {"a": 1 - poor}})
    found = average_recovery(scores, items=items).set_index("variant")
    assert found.loc["cut", "recovery"] == pytest.approx(5)
    assert found[["ci_low", "ci_high"]].isna().all(axis=None)


@pytest.mark.parametrize("weigh", ["by size", "alike"])
def test_a_group_is_drawn_in_its_parts_and_counts_as_its_score_does(weigh):
    parts = {"g_x": drawn(300, 0.9, 4), "g_y": drawn(20, 0.4, 5)}
    worse = {"g_x": parts["g_x"] * drawn(300, 0.9, 6), "g_y": parts["g_y"] * drawn(20, 0.5, 7)}
    scores, items = answered({"base": parts, "cut": worse})
    scores["parent"] = "g"
    for name, one in (("base", parts), ("cut", worse)):
        by_size, alike = np.concatenate([*one.values()]).mean(), np.mean([v.mean() for v in one.values()])
        mean = by_size if weigh == "by size" else alike
        row = {"variant": name, "task": "g", "value": mean, "n": 320, "parent": ""}
        scores = pd.concat([scores, pd.DataFrame([scores.iloc[0].to_dict() | row])], ignore_index=True)
    found = average_recovery(scores, items=items).set_index("variant").loc["cut"]
    assert found["n_tasks"] == 1
    width = found["ci_high"] - found["ci_low"]
    # the twenty items of the small part decide where parts count alike
    assert (0.02 < width < 0.12) if weigh == "by size" else (0.2 < width < 0.6)


def test_the_items_of_real_scores_are_found(tokenizer, folder, tmp_path):
    run = wb.open_run("r", root=tmp_path)
    variants = [Variant("base", "m"), Variant("cut", "m", removed=(1, 2, 3, 4))]
    settings = {"include": folder, "progress": False, "run": run}
    found = wb.evaluate_variants(tiny_model(), tokenizer, variants, ["toy_choices"], **settings)
    recovery = average_recovery(found.scores, items=found.items).set_index("variant").loc["cut"]
    assert recovery["n"] == 26 and recovery["n_tasks"] == 1
    assert np.isnan(recovery["ci_low"]) or recovery["ci_low"] < recovery["recovery"] < recovery["ci_high"]
    table = wb.recovery_table(found.scores, items=found.items).set_index("variant")
    assert table.loc["cut", "Items"] == 26


def test_items_of_another_call_are_refused():
    scores, items = answered({"base": BASE, "cut": CUT})
    with pytest.raises(ValueError, match=r"the same items of 'b' \(acc\) for each of \['base', 'cut'\], got"):
        average_recovery(scores, items=items[(items["task"] == "a") | (items["variant"] == "base")])
    with pytest.raises(ValueError, match=r"items needs the columns .*missing \['variant'\]"):
        average_recovery(scores, items=items.drop(columns="variant"))


def test_a_task_with_two_numbers_of_shots_is_two_scores():
    none, five = (answered({"base": BASE, "cut": CUT}) for _ in range(2))
    both = [pd.concat([one, two.assign(n_shot=5)]) for one, two in zip(none, five, strict=True)]
    found = average_recovery(both[0], items=both[1]).set_index("variant").loc["cut"]
    assert found["n_tasks"] == 4 and found["n"] == 520
    assert found["ci_low"] < found["recovery"] < found["ci_high"]


def test_a_score_that_is_none_of_single_items_supports_no_interval():
    scores, items = answered({"base": BASE, "cut": CUT})
    found = average_recovery(scores, items=items.assign(value=items["value"].where(items["task"] == "a")))
    assert found[["ci_low", "ci_high"]].isna().all(axis=None) and found["recovery"].notna().all()

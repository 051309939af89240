"""Is a merge better than its ends: counted by hand, and corrected for how many are asked."""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binomtest

from workbench.merging.gain import merge_gain
from workbench.statistics import holm


def items_of(values):
    """Return items of two tasks, from {variant: {task: 0/1 values}}."""
    rows = [
        {"variant": variant, "task": task, "n_shot": 0, "item": item, "metric": "acc", "value": value}
        for variant, tasks in values.items()
        for task, answers in tasks.items()
        for item, value in enumerate(answers)
    ]
    return pd.DataFrame(rows).assign(prompt="?", target="", response="")


def test_each_task_counts_alike_and_the_p_values_are_corrected():
    rng = np.random.default_rng(0)
    ends = {name: {"a": rng.integers(0, 2, 40), "b": rng.integers(0, 2, 160)} for name in ("x", "y")}
    better = {task: np.maximum(ends["x"][task], ends["y"][task]) for task in "ab"}
    found = merge_gain(items_of(ends | {"m": better, "same": ends["x"]}), ["x", "y"], ["m", "same"])
    for row in found.itertuples():
        of = {"m": better, "same": ends["x"]}[row.variant]
        means = [(of[task] - ends[row.against][task]).mean() for task in "ab"]
        assert row.difference == pytest.approx(np.mean(means))
        assert (row.n, row.n_tasks) == (200, 2)
    np.testing.assert_allclose(found["p_adjusted"], holm(found["p_value"]))
    assert found["better"].tolist() == [True, True, False, False]
    assert found["ci_low"].iloc[0] < found["difference"].iloc[0] < found["ci_high"].iloc[0]
    assert found.loc[2, "difference"] == 0 and found.loc[2, "p_value"] == 1


def test_an_unknown_name_is_refused():
    items = items_of({"x": {"a": [0, 1]}, "m": {"a": [1, 1]}})
    with pytest.raises(ValueError, match="variant must be"):
        merge_gain(items, ["x", "z"], ["m"])


def test_what_most_items_of_a_large_task_say_is_not_said_of_the_mean_over_tasks():
    """Of 1,000 items 60 are lost, of 10 two are won: the mean rises by what two items say."""
    end = {"a": np.ones(1000, int), "b": np.zeros(10, int)}
    merge = {"a": np.repeat([0, 1], [60, 940]), "b": np.repeat([1, 0], [2, 8])}
    row = merge_gain(items_of({"x": end, "m": merge}), ["x"], ["m"]).iloc[0]
    assert row["difference"] == pytest.approx(0.07) and (row["higher"], row["lower"]) == (2, 60)
    assert row["ci_low"] < 0 < row["ci_high"]
    assert row["p_value"] > 0.2 and not row["better"]


def test_the_p_value_is_of_the_mean_over_tasks():
    """All signs of the items that differ, one by one."""
    end = {"a": np.zeros(6, int), "b": np.array([1, 0, 0, 1])}
    merge = {"a": np.array([1, 1, 0, 0, 0, 1]), "b": np.array([0, 1, 1, 1])}
    row = merge_gain(items_of({"x": end, "m": merge}), ["x"], ["m"]).iloc[0]
    changes = [1 / 12] * 3 + [-1 / 8, 1 / 8, 1 / 8]
    sums = [np.dot(signs, np.abs(changes)) for signs in itertools.product((-1, 1), repeat=6)]
    assert row["difference"] == pytest.approx(sum(changes))
    assert row["p_value"] == pytest.approx(np.mean(np.abs(sums) >= sum(changes) - 1e-12))


def test_of_one_task_it_is_mcnemar_s_and_groups_and_shots_are_tasks():
    rng = np.random.default_rng(1)
    values = {name: {t: rng.integers(0, 2, 30) for t in ("arc", "law", "art")} for name in ("x", "m")}
    items = items_of(values)
    scores = pd.DataFrame({"task": ["arc", "law", "art", "mmlu"], "parent": ["", "mmlu", "mmlu", ""]})
    means = {t: values["m"][t].mean() - values["x"][t].mean() for t in ("arc", "law", "art")}
    grouped = merge_gain(items, ["x"], ["m"], scores=scores).iloc[0]
    assert grouped["n_tasks"] == 2
    assert grouped["difference"] == pytest.approx((means["arc"] + (means["law"] + means["art"]) / 2) / 2)
    one = merge_gain(items[items["task"] == "arc"], ["x"], ["m"]).iloc[0]
    assert one["p_value"] == binomtest(one["higher"], one["higher"] + one["lower"]).pvalue
    more = items[(items["task"] != "law") & (items["item"] < 10)].assign(n_shot=5)
    both = merge_gain(pd.concat([items, more]), ["x"], ["m"], scores=scores).iloc[0]
    shots = [(values["m"][t] - values["x"][t])[:10].mean() for t in ("arc", "art")]
    assert both["n_tasks"] == 4
    assert both["difference"] == pytest.approx((2 * grouped["difference"] + sum(shots)) / 4)

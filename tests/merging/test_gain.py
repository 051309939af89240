"""Is a merge better than its ends: counted by hand, and corrected for how many are asked."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

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

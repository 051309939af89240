"""The path of a merge: every t in order, one line a task or seed."""

from __future__ import annotations

import pandas as pd
import pytest

from workbench.plots.merging import merging_path


def test_points_lie_along_t_whatever_the_order_of_rows():
    path = pd.DataFrame({"t": [1.0, 0.0, 0.5], "recovery": [0.9, 0.7, 0.8]})
    (line,) = merging_path(path.assign(ci_low=0.6, ci_high=1.0)).data
    assert list(line.x) == [0, 0.5, 1] and list(line.y) == [0.7, 0.8, 0.9]
    assert list(line.error_y.array) == pytest.approx([0.3, 0.2, 0.1])
    axes = merging_path(path.assign(variant=["<b>", "a", "m"])).layout
    assert axes.xaxis.title.text == "t (0: a, 1: &lt;b&gt;)"
    assert axes.yaxis.title.text == "share of the base's average"


def test_a_line_a_task_or_a_seed():
    path = pd.DataFrame({"t": [0.0, 1.0] * 2, "task": ["a", "a", "b", "b"], "value": [1, 2, 3, 4]})
    assert [list(line.y) for line in merging_path(path, measure="value").data] == [[1, 2], [3, 4]]
    seeds = merging_path(path.rename(columns={"task": "seed"}), measure="value")
    assert [line.name for line in seeds.data] == ["seed a", "seed b"]
    scored = path.assign(task=["arc_easy"] * 2 + ["piqa"] * 2, value=0.5, stderr=0.1, n=25)
    lines = merging_path(scored, measure="value").data
    assert [line.name for line in lines] == ["ARC-E", "PIQA"]
    assert all(0.15 < error < 0.25 for line in lines for error in line.error_y.array)
    with pytest.raises(ValueError, match="recovery"):
        merging_path(path)

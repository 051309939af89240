"""Figures of scores by depth, categories and flips show the frames' own numbers."""

from __future__ import annotations

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest
from frames import category_frame, depth_frame, flip_frame, score_frame

import workbench as plots


def test_scores_and_perplexities_have_panels_of_their_own():
    fig = plots.score_bars(score_frame())
    panels = {trace.xaxis: set(trace.x) for trace in fig.data}
    assert panels == {"x": {"demo_math", "demo_facts", "demo_pairs"}, "x2": {"demo_stories"}}
    assert fig.layout.yaxis.range == (0, 1.02)
    assert fig.layout.yaxis2.title.text == "word_perplexity"


def lines(fig: go.Figure, axis: str = "y") -> dict[str, go.Scatter]:
    """Return the lines of one panel by name."""
    return {trace.name: trace for trace in fig.data if trace.mode != "text" and (trace.yaxis or "y") == axis}


def test_healed_is_solid_not_healed_dotted_and_the_guess_dashed():
    frame = depth_frame()
    found = lines(plots.score_vs_fraction(frame))
    assert {name: trace.line.dash for name, trace in found.items()} == {
        "random guess": "dash",
        "pruned, not healed": "dot",
        "SFT": "solid",
    }
    assert found["pruned, not healed"].marker.color == "white"
    assert found["SFT"].marker.color == found["SFT"].line.color
    assert list(found["random guess"].y) == [0.25, 0.25]
    own = frame.query("series == 'pruned, not healed' and task == 'mmlu'")
    assert list(found["pruned, not healed"].x) == list(own["fraction"])
    assert list(found["pruned, not healed"].y) == list(own["value"])


def test_several_block_sizes_are_a_line_that_begins_with_the_whole_model():
    frame = depth_frame()
    found = lines(plots.score_vs_fraction(frame))["SFT"]
    whole = frame.query("series == 'base' and task == 'mmlu'")["value"].item()
    assert list(found.x) == [0, 0.1, 0.2]
    assert found.y[0] == whole
    alone = lines(plots.score_vs_fraction(frame[frame["series"] != "base"]))["SFT"]
    assert list(alone.x) == [0.1, 0.2]


def test_scores_have_one_scale_and_a_task_without_a_chance_no_line():
    fig = plots.score_vs_fraction(depth_frame().replace("mmlu", "my_task"), chance={"demo_math": 0.1})
    assert {axis.range for axis in fig.select_yaxes()} == {(-0.02, 1.04)}
    assert len({axis.range for axis in fig.select_xaxes()}) == 1
    assert [(trace.yaxis, trace.y[0]) for trace in fig.data if trace.name == "random guess"] == [("y2", 0.1)]
    assert [note.text for note in fig.layout.annotations] == ["my_task", "demo_math"]


def test_numbers_of_shots_are_panels_of_their_own():
    frame = depth_frame().query("task == 'mmlu'")
    fig = plots.score_vs_fraction(pd.concat([frame, frame.assign(n_shot=0)]))
    assert [note.text for note in fig.layout.annotations] == ["mmlu, 5-shot", "mmlu, 0-shot"]
    with pytest.raises(
        ValueError, match=r"each \(series, panel, fraction\) once, got \('SFT', 'mmlu', 0\.1\) again"
    ):
        plots.score_vs_fraction(pd.concat([frame, frame[frame["series"] == "SFT"]]))
    with pytest.raises(ValueError, match="scores where higher is better must have at least one row"):
        plots.score_vs_fraction(depth_frame().query("task == 'texts'"))


def test_the_loss_has_its_guess_at_1_and_a_log_scale():
    fig = plots.loss_vs_fraction(depth_frame())
    found = lines(fig)
    assert list(found["random guess"].y) == [1, 1]
    assert fig.layout.yaxis.type == "log"
    low, high = 10 ** np.array(fig.layout.yaxis.range)
    assert low < 0.05 and high > 1
    assert list(found["pruned, not healed"].y) == list(
        depth_frame().query("series == 'pruned, not healed' and task == 'texts'")["value"]
    )
    with pytest.raises(ValueError, match="metric normalized_loss"):
        plots.loss_vs_fraction(depth_frame().query("task == 'mmlu'"))


def test_categories_have_their_intervals():
    fig = plots.category_bars(category_frame())
    (pruned,) = (trace for trace in fig.data if trace.name == "pruned")
    assert list(pruned.y) == [0.3, 0.79]
    assert list(pruned.error_y.array) == pytest.approx([0.1, 0.07])
    assert list(pruned.error_y.arrayminus) == pytest.approx([0.08, 0.09])


def test_flips_go_left_for_lost_and_right_for_won_on_one_scale():
    fig = plots.flip_bars(flip_frame())
    bars = {(trace.xaxis, trace.name): trace for trace in fig.data}
    assert list(bars["x", "right to wrong"].x) == [-0.4, 0]
    assert list(bars["x", "wrong to right"].x) == [0.02, 0]
    assert list(bars["x2", "right to wrong"].text) == ["2", "60"]
    assert len({axis.range for axis in fig.select_xaxes()}) == 1


def test_a_task_with_two_numbers_of_shots_has_bars_of_its_own_for_each():
    """Bars of one name would lie on each other, and add up."""
    scores = score_frame()
    fig = plots.score_bars(pd.concat([scores, scores[scores["task"] == "demo_math"].assign(n_shot=5)]))
    names = {name for trace in fig.data for name in trace.x}
    assert {"demo_math, 0-shot", "demo_math, 5-shot", "demo_facts"} <= names and "demo_math" not in names
    flips = flip_frame().assign(n_shot=0)
    fig = plots.flip_bars(pd.concat([flips, flips[flips["task"] == "math"].assign(n_shot=5)]))
    names = [name for trace in fig.data for name in trace.y if trace.name == "right to wrong"]
    assert sorted(names) == sorted(["math, 0-shot", "math, 5-shot", "facts"] * 2)

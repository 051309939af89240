"""Figures of scores by depth, categories and flips show the frames' own numbers."""

from __future__ import annotations

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest
from frames import category_frame, depth_frame, flip_frame, score_frame

import workbench as plots
from workbench.plots import style


def test_scores_and_perplexities_have_panels_of_their_own():
    fig = plots.score_bars(score_frame())
    panels = {trace.yaxis: set(trace.y) for trace in fig.data}
    assert panels == {"y": {"demo math", "demo facts", "demo pairs"}, "y2": {"demo stories"}}
    assert fig.layout.xaxis.tickformat == ".0%"
    assert fig.layout.xaxis2.title.text == "word perplexity"


def lines(fig: go.Figure, axis: str = "y") -> dict[str, go.Scatter]:
    """Return the lines of one panel by name."""
    return {trace.name: trace for trace in fig.data if trace.mode != "text" and (trace.yaxis or "y") == axis}


def test_healed_is_solid_not_healed_dotted_and_the_guess_dashed():
    frame = depth_frame()
    found = lines(plots.score_vs_fraction(frame))
    assert {name: trace.line.dash for name, trace in found.items()} == {
        "random guess": "dash",
        "whole model": "solid",
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
    one = lines(plots.score_vs_fraction(frame[(frame["series"] != "SFT") | (frame["fraction"] == 0.1)]))
    assert one["SFT"].mode == "markers" and list(one["SFT"].x) == [0.1]  # nothing was measured between
    assert list(one["whole model"].x) == [0] and one["whole model"].mode == "markers"


def test_the_whole_model_is_drawn_once_from_the_most_items():
    frame = depth_frame()
    more = frame[frame["series"] == "base"].assign(n=400, value=0.77)
    found = lines(plots.score_vs_fraction(pd.concat([frame[frame["series"] != "base"], more])))
    assert list(found["whole model"].y) == [0.77]
    assert found["SFT"].y[0] == 0.77
    # its other points are of the same 100 items as its own first one
    assert found["pruned, not healed"].y[0] == frame["value"].iloc[0]


def test_scores_have_one_scale_and_a_task_without_a_chance_no_line():
    fig = plots.score_vs_fraction(depth_frame().replace("mmlu", "my_task"), chance={"demo_math": 0.1})
    assert {axis.range for axis in fig.select_yaxes()} == {(-0.02, 1.04)}
    assert len({axis.range for axis in fig.select_xaxes()}) == 1
    assert [(trace.yaxis, trace.y[0]) for trace in fig.data if trace.name == "random guess"] == [("y2", 0.1)]
    assert [note.text for note in fig.layout.annotations] == ["my task", "demo math"]


def test_numbers_of_shots_are_panels_of_their_own():
    frame = depth_frame().query("task == 'mmlu'")
    fig = plots.score_vs_fraction(pd.concat([frame, frame.assign(n_shot=0)]))
    assert [note.text for note in fig.layout.annotations] == ["MMLU, 5-shot", "MMLU, 0-shot"]
    with pytest.raises(
        ValueError, match=r"each \(series, panel, fraction\) once, got \('SFT', 'MMLU', 0\.1\) again"
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
    assert 0.2 < low < 0.3 and high > 1
    low_losses = depth_frame().query("task == 'texts'").assign(value=lambda frame: frame["value"] / 10)
    near = plots.loss_vs_fraction(low_losses)
    assert "random guess" not in lines(near) and 10 ** near.layout.yaxis.range[1] < 0.2
    assert list(found["pruned, not healed"].y) == list(
        depth_frame().query("series == 'pruned, not healed' and task == 'texts'")["value"]
    )
    with pytest.raises(ValueError, match="metric normalized_loss"):
        plots.loss_vs_fraction(depth_frame().query("task == 'mmlu'"))


def test_categories_have_their_intervals():
    fig = plots.category_bars(category_frame())
    (pruned,) = (trace for trace in fig.data if trace.name == "pruned")
    assert list(pruned.x) == [0.3, 0.79]
    assert list(pruned.error_x.array) == pytest.approx([0.1, 0.07])
    assert list(pruned.error_x.arrayminus) == pytest.approx([0.08, 0.09])


def test_flips_go_left_for_lost_and_right_for_won_on_one_scale():
    fig = plots.flip_bars(flip_frame())
    bars = {trace.name: trace for trace in fig.data}
    assert list(bars["pruned"].x) == [-0.4, 0, 0.02, 0]
    assert list(bars["SFT"].text) == ["2", "60", "3", ""]
    colours = {name: trace.marker.color for name, trace in bars.items()}
    assert colours == {name: look.color for name, look in style.variant_styles(bars).items()}
    low, high = fig.layout.xaxis.range
    assert low == -high and not any("-" in text or "−" in text for text in fig.layout.xaxis.ticktext)


def test_a_task_with_two_numbers_of_shots_has_bars_of_its_own_for_each():
    """Bars of one name would lie on each other, and add up."""
    scores = score_frame()
    fig = plots.score_bars(pd.concat([scores, scores[scores["task"] == "demo_math"].assign(n_shot=5)]))
    names = {name for trace in fig.data for name in trace.y}
    assert {"demo math, 0-shot", "demo math, 5-shot", "demo facts"} <= names and "demo math" not in names
    flips = flip_frame().assign(n_shot=0)
    fig = plots.flip_bars(pd.concat([flips, flips[flips["task"] == "math"].assign(n_shot=5)]))
    names = [name for trace in fig.data for name in trace.y if trace.name == "pruned"]
    assert sorted(names) == sorted(["math, 0-shot", "math, 5-shot", "facts"] * 2)

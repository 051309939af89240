"""Axes: round ticks that fit, and an end that says what lies beyond it."""

from __future__ import annotations

import numpy as np
import pandas as pd
import plotly.express as px
import pytest

from workbench.plots import axes


@pytest.mark.parametrize("n_layers", [1, 7, 16, 30, 80, 126])
def test_layers_have_whole_ticks_and_not_too_many(n_layers):
    axis = axes.layer_axis(n_layers)
    assert axis["range"] == [-0.5, n_layers - 0.5]
    assert n_layers / axis["dtick"] <= 20 and isinstance(axis["dtick"], int)


def test_ticks_of_a_log_axis_are_round_and_the_lower_end_says_what_is_less():
    axis = axes.log_axis(pd.Series([0.02, 0.3, 1.7]), 0.01)
    assert axis["tickvals"] == pytest.approx([0.01, 0.1, 1, 10])
    assert 10 ** axis["range"][0] < 0.01 < 1.7 < 10 ** axis["range"][1]
    assert axes.log_axis(pd.Series([-1.0, 0.3, 1.7]), 0.01)["ticktext"][0] == "≤ 0.01"
    assert axes.log_axis(pd.Series([1.0, 3.0]), 1.0)["ticktext"][:3] == ["1", "1.2", "1.5"]


def test_the_floor_is_round_at_or_below_the_least_and_at_most_four_decades_down():
    values = pd.Series(np.random.default_rng(0).lognormal(0, 1, 50))
    floor = axes.log_floor(values)
    assert floor <= values.min() < 3 * floor
    assert axes.log_floor(pd.Series([1e-9, 1.0])) == pytest.approx(1e-4)
    assert axes.log_floor(pd.Series([-1.0, 0.0])) == 1e-3


def test_marks_lie_at_the_floor_and_name_it():
    marks = axes.floor_marks([1, 2], 0.05)
    assert list(marks.y) == [0.05, 0.05] and marks.name == "less than 0.05"


@pytest.mark.parametrize("panels", [2, 3, 4, 5, 7])
def test_the_lowest_panel_of_every_column_has_the_title(panels):
    frame = pd.DataFrame({"x": 1, "y": 1, "of": [str(one) for one in range(panels)]})
    fig = px.scatter(frame, x="x", y="y", facet_col="of", facet_col_wrap=3)
    axes.title_below(fig, "iteration", panels, min(3, panels))
    places = {}
    drawn = {trace.xaxis for trace in fig.data}
    for axis in fig.select_xaxes(lambda axis: axis.plotly_name.replace("axis", "") in drawn):
        below = next(one for one in fig.select_yaxes() if one.anchor == axis.plotly_name.replace("axis", ""))
        places.setdefault(round(axis.domain[0], 3), []).append((below.domain[0], axis.title.text))
    for column in places.values():
        (_, lowest), *above = sorted(column)
        assert lowest == "iteration" and not any(text for _, text in above)

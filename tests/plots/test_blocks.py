"""Lines and comparisons of blocks hold the frames' own numbers, and refuse what they cannot draw."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from drawn import ablation_frame

import workbench as plots
from workbench.statistics import rank_agreement


def test_a_loss_that_fell_stays_on_the_log_axes(distances, damage):
    fell = damage.assign(damage=damage["damage"].where(damage["start"] != 2, -0.01))
    points = plots.distance_vs_damage(distances, fell).data[0]
    assert min(points.y) == 1e-3
    assert list(points.customdata[2]) == ["2", -0.01]
    panel = plots.metric_comparison({"damage": fell}).data[0]
    assert panel.y[2] == 1e-3
    assert panel.customdata[2] == -0.01
    assert panel.marker.size[2] == max(panel.marker.size)


def test_lines_show_each_size_and_its_interval(distances):
    fig = plots.distance_lines(distances, sizes=[2, 5])
    lines = {trace.name: trace for trace in fig.data if trace.mode == "lines+markers"}
    assert set(lines) == {"2", "5"}
    two = distances[distances["size"] == 2]
    assert list(lines["2"].y) == list(two["distance"])
    band = fig.data[0]
    assert list(band.y) == [*two["ci_high"], *two["ci_low"][::-1]]
    with pytest.raises(ValueError, match=r"sizes must be some of .* got \[9\]"):
        plots.distance_lines(distances, sizes=[9])


def test_metrics_are_drawn_as_costs_and_the_least_is_filled(distances):
    single = distances[distances["size"] == 1]
    similarity = pd.DataFrame({"layer": single["start"], "similarity": 1 - single["distance"] ** 2})
    fig = plots.metric_comparison({"distance": distances, "similarity": similarity})
    assert list(fig.data[0].y) == list(single["distance"])
    assert list(fig.data[1].y) == pytest.approx(list(single["distance"] ** 2))
    for panel in fig.data:
        filled = [i for i, color in enumerate(panel.marker.color) if color == "#0072b2"]
        assert filled == [int(np.argmin(panel.y))]


def test_the_scatter_states_the_agreement_of_each_size(distances, damage):
    fig = plots.distance_vs_damage(distances, damage)
    agreement = rank_agreement({"a": distances, "b": damage}, by="size").set_index("size")
    for trace in fig.data:
        size = int(trace.name.split(":")[0])
        expected = agreement.loc[size]
        assert trace.name == (
            f"{size}: {expected['spearman']:.2f} [{expected['ci_low']:.2f}, {expected['ci_high']:.2f}]"
        )
    assert sum(len(trace.x) for trace in fig.data) == len(damage)
    few = plots.distance_vs_damage(distances, damage, sizes=[4]).data[0]
    assert len(few.x) == 4
    assert (
        plots.distance_vs_damage(distances, damage[damage["size"] == 1].head(2))
        .data[0]
        .name.endswith("few blocks")
    )


def test_the_calibration_figure_shows_the_removed_layers():
    frame = ablation_frame()
    fig = plots.calibration_comparison(frame, n_layers=9)
    bars = [trace for trace in fig.data if trace.type == "bar"]
    for bar, (_, rows) in zip(bars, frame.groupby("calibration", sort=False), strict=True):
        assert [base + 0.5 for base in bar.base] == list(rows["start"])
        assert list(bar.x) == list(rows["size"])
        assert list(bar.text) == list(rows["removed"])
    with pytest.raises(ValueError, match=r"each \(size, calibration\) once, got \(2, 'C4'\) again"):
        plots.calibration_comparison(pd.concat([frame, frame]))


def test_metrics_without_single_layers_are_refused(distances):
    with pytest.raises(ValueError, match="no block of size 1"):
        plots.metric_comparison({"distance": distances[distances["size"] == 2]})
    with pytest.raises(ValueError, match="at least one named frame"):
        plots.metric_comparison({})

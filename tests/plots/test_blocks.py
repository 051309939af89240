"""Lines and comparisons of blocks hold the frames' own numbers, and refuse what they cannot draw."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from drawn import ablation_frame
from frames import damage_frame, distance_frame

import workbench as plots
from workbench.agreement import rank_agreement
from workbench.plots import axes, style
from workbench.runs.figures import figure_frame


def test_a_loss_that_fell_stays_on_the_log_axes(distances, damage):
    fell = damage.assign(damage=damage["damage"].where(damage["start"] != 2, -0.01))
    points = plots.distance_vs_damage(distances, fell).data[0]
    floor = axes.log_floor(fell["damage"])
    assert 0 < floor < fell.loc[fell["damage"] > 0, "damage"].min() and min(points.y) == floor
    assert list(points.customdata[2]) == ["2", -0.01]
    panel = plots.metric_comparison({"damage": fell}).data[0]
    assert panel.y[2] == axes.log_floor(fell.query("size == 1")["damage"])
    assert panel.customdata[2] == -0.01
    assert panel.marker.size[2] == max(panel.marker.size)


def test_lines_show_each_size_and_its_interval(distances):
    fig = plots.distance_lines(distances, sizes=[2, 5])
    lines = {trace.name: trace for trace in fig.data if trace.mode == "lines+markers"}
    assert set(lines) == {"2 layers", "5 layers"}
    two = distances[distances["size"] == 2]
    assert list(lines["2 layers"].y) == list(two["distance"])
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
        size = int(trace.name.split(" ")[0])
        expected = agreement.loc[size]
        assert trace.name == (
            f"{size} layer{'s' * (size > 1)}: {expected['spearman']:.2f} "
            f"[{expected['ci_low']:.2f}, {expected['ci_high']:.2f}], n={len(trace.x)}"
        )
    assert sum(len(trace.x) for trace in fig.data) == len(damage)
    few = plots.distance_vs_damage(distances, damage, sizes=[4]).data[0]
    assert len(few.x) == 4
    assert (
        plots.distance_vs_damage(distances, damage[damage["size"] == 1].head(2))
        .data[0]
        .name.endswith("few blocks (n=2)")
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
    with pytest.raises(ValueError, match=r"metrics must (be|hold) "):
        plots.metric_comparison({})


def test_what_lies_below_a_log_axis_is_marked_and_keeps_its_number(distances, damage):
    low = damage.assign(damage=damage["damage"].where(damage["start"] % 3 != 2, -0.01))
    fig = plots.distance_vs_damage(distances, low)
    floor = axes.log_floor(low["damage"])
    (marks,) = [trace for trace in fig.data if trace.name == f"less than {floor:g}"]
    below = distances.merge(low[low["damage"] < floor][["start", "size"]])
    assert sorted(marks.x) == sorted(below["distance"]) and set(marks.y) == {floor}
    assert fig.layout.yaxis.ticktext[0] == f"≤ {floor:g}"
    panel = plots.metric_comparison({"damage": low})
    symbols = panel.data[0].marker.symbol
    single = low[low["size"] == 1].sort_values("start")["damage"]
    assert [one == "triangle-down" for one in symbols] == list(single < axes.log_floor(single))
    # nothing below: no mark, and the axis begins near the least
    high = damage.assign(damage=damage["damage"].abs() + 0.2)
    fig = plots.distance_vs_damage(distances, high)
    assert not any("less than" in trace.name for trace in fig.data)
    assert fig.layout.yaxis.ticktext[0] == "0.2"


@pytest.mark.parametrize("similarity", [[1.0] * 7, [1.0, 0.9, 0.8, 1.0, 0.7, 0.6, 0.5], [1.0000001] * 7])
def test_metrics_of_zero_and_less_are_drawn_apart_from_the_least_above(similarity):
    frame = pd.DataFrame({"layer": range(7), "similarity": similarity})
    fig = plots.metric_comparison({"similarity": frame})
    panel, costs = fig.data[0], 1 - np.array(similarity)
    assert list(panel.customdata) == pytest.approx(costs)
    if (costs > 0).any():
        least = costs[costs > 0].min()
        assert all((y < 0.9 * least) == (cost <= 0) for y, cost in zip(panel.y, costs, strict=True))
        assert [one == "triangle-down" for one in panel.marker.symbol] == list(costs <= 0)
        assert fig.layout.yaxis.ticktext[0] == "≤ 0"
    else:
        assert fig.layout.yaxis.type != "log" and list(panel.y) == pytest.approx(costs)


@pytest.mark.parametrize("template", style.TEMPLATES)
@pytest.mark.parametrize("n_layers", [6, 40])
def test_a_legend_of_many_sizes_stands_beside_the_points_and_fits(n_layers, template):
    plots.use_template(template)
    distances = distance_frame(n_layers, n_texts=3)
    fig = plots.distance_vs_damage(distances, damage_frame(distances, sizes=tuple(range(1, n_layers))))
    entries, font = len(fig.data), style.current_template().layout.font.size
    assert (fig.layout.legend.x > 1) == (template != "column")
    beside = fig.layout.margin.b if template == "column" else fig.layout.height
    assert beside >= 1.5 * font * entries


def test_no_label_of_the_calibration_figure_is_cut_or_runs_into_another_panel():
    for template in ("screen", "paper"):
        plots.use_template(template)
        fig = plots.calibration_comparison(ablation_frame())
        texts = [trace for trace in fig.data if trace.type == "scatter" and trace.mode == "text"]
        assert texts and all(trace.cliponaxis is False for trace in texts)
        names = [trace for trace in texts if (trace.xaxis or "x") == "x"]
        (low, high), font = fig.layout.xaxis.range, style.current_template().layout.font.size
        across = (style.current_template().layout.width - 90) * fig.layout.xaxis.domain[1] / (high - low)
        for trace in names:
            for x, text, side in zip(trace.x, trace.text, trace.textposition, strict=True):
                end = x + (1 if side == "middle right" else -1) * len(text) * 0.6 * font / across
                assert low <= end <= high + 0.6


def test_an_interval_is_drawn_to_its_ends_or_runs_out_of_the_axis_without_a_cap(damage):
    single = damage.query("size == 1").assign(damage=0.1, ci_low=0.05, ci_high=0.2).reset_index(drop=True)
    single.loc[1, ["ci_low", "ci_high"]] = -0.3, 7.0  # goes on below any log axis, and far above the values
    single.loc[2, "ci_low"] = 0.004
    fig = plots.metric_comparison({"damage": single})
    low, high = (10**end for end in fig.layout.yaxis.range)
    assert low < 0.004 and high > 7
    arrows, panel = fig.data
    assert (arrows.marker.symbol, list(arrows.x[:2]), arrows.y[0]) == ("arrow-down", [1, 1], 0.1)
    assert arrows.y[1] == pytest.approx(low) and len(arrows.x) == 3  # of that one alone
    minus = panel.error_y.arrayminus
    assert minus[1] == 0 and minus[0] == pytest.approx(0.05) and minus[2] == pytest.approx(0.096)
    told = figure_frame(fig)
    assert len(told) == len(single) and told["error_y_minus"][1] == pytest.approx(0.4)

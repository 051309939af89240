"""Figures hold the frame's own numbers, in the right cells, and refuse what they cannot draw."""

from __future__ import annotations

import json
import re

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest
from frames import damage_frame, distance_frame, score_frame, similarity_frame

import workbench as plots
from workbench.distances.blocks import best_blocks
from workbench.distances.stability import calibration_ablation
from workbench.evaluation.scores import score_intervals
from workbench.plots import style
from workbench.plots.style import variant_styles
from workbench.runs import figures as export
from workbench.statistics import bootstrap_interval, rank_agreement

SCRIPT = "<script>alert(1)</script>"
NO_TEXT = {
    *("distance_heatmap", "damage_heatmap", "distance_beside_damage", "distance_lines", "distance_vs_damage")
}


@pytest.fixture(scope="module")
def distances() -> pd.DataFrame:
    return distance_frame(7)


@pytest.fixture(scope="module")
def damage(distances) -> pd.DataFrame:
    return damage_frame(distances)


@pytest.fixture(scope="module")
def kept() -> pd.DataFrame:
    return pd.DataFrame(
        {"kept": [True] * 5 + [False] * 3, "reason": ["same"] * 5 + ["cut off", "cut off", SCRIPT]}
    )


@pytest.fixture(scope="module")
def log() -> pd.DataFrame:
    one = pd.DataFrame({"step": range(1, 61), "loss": np.linspace(3, 1, 60) + 0.2 * (np.arange(60) % 2)})
    return pd.concat([one.assign(variant="SFT"), one.assign(variant=SCRIPT, loss=one["loss"] / 2)])


@pytest.fixture(scope="module")
def browser() -> None:
    if not export.browser_found():
        pytest.skip("no Chrome or Chromium on this machine; plotly_get_chrome installs one")


@pytest.fixture(autouse=True)
def screen():
    yield
    style.use_template("screen")


def ablation(n_layers: int = 9) -> pd.DataFrame:
    return calibration_ablation(
        {"C4": distance_frame(n_layers), SCRIPT: distance_frame(n_layers, seed=1)}, [2, 4]
    )


def every_figure(distances, damage, kept, log) -> dict[str, go.Figure]:
    return {
        "distance_heatmap": plots.distance_heatmap(distances),
        "damage_heatmap": plots.damage_heatmap(damage),
        "distance_beside_damage": plots.distance_beside_damage(distances, damage),
        "distance_lines": plots.distance_lines(distances),
        "metric_comparison": plots.metric_comparison({"distance": distances, SCRIPT: damage}),
        "distance_vs_damage": plots.distance_vs_damage(distances, damage),
        "calibration_comparison": plots.calibration_comparison(ablation()),
        "kept_reasons": plots.kept_reasons(kept),
        "loss_curve": plots.loss_curve(log),
        "score_bars": plots.score_bars(score_frame().replace("base", SCRIPT)),
        "similarity_distribution": plots.similarity_distribution(
            similarity_frame(30).replace("pruned", SCRIPT)
        ),
    }


def cells(fig: go.Figure, number: int = 0) -> dict[tuple[int, int], float]:
    """Return what a heatmap shows: (start, row) -> value."""
    trace = [trace for trace in fig.data if trace.type == "heatmap"][number]
    z = np.asarray(trace.z, dtype=float)
    return {(int(trace.x[j]), int(trace.y[i])): z[i, j] for i, j in np.argwhere(np.isfinite(z))}


def test_every_cell_of_the_heatmap_is_the_frames_own_number(distances):
    shown = cells(plots.distance_heatmap(distances.sample(frac=1, random_state=0)))
    assert shown == {(row.start, row.size): row.distance for row in distances.itertuples(index=False)}


def test_the_marks_are_the_best_blocks(distances):
    fig = plots.distance_heatmap(distances)
    best = best_blocks(distances)
    marks = next(trace for trace in fig.data if trace.name == "least of its size")
    assert list(marks.x) == list(best["start"])
    assert list(marks.y) == list(best["size"])
    assert not plots.distance_heatmap(distances, mark_best=False).data[1:]


def test_scales_start_at_zero_and_can_be_fixed(distances):
    trace = plots.distance_heatmap(distances).data[0]
    assert (trace.zmin, trace.zmax) == (0.0, distances["distance"].max())
    fixed = plots.distance_heatmap(distances, zmin=0.1, zmax=0.6).data[0]
    assert (fixed.zmin, fixed.zmax) == (0.1, 0.6)


def test_rescaling_stretches_each_size_to_zero_and_one(distances):
    shown = cells(plots.distance_heatmap(distances, rescale=True))
    for size in range(1, 7):
        values = [value for (_, row), value in shown.items() if row == size]
        assert (min(values), max(values)) == (0.0, 1.0)
    assert shown[(0, 7)] == 0.0


def test_sizes_that_were_not_measured_leave_no_gap(damage):
    fig = plots.damage_heatmap(damage)
    assert fig.layout.yaxis.ticktext == ("1", "2", "4")
    four = damage[damage["size"] == 4].set_index("start")["damage"]
    shown = {start: 10**value for (start, row), value in cells(fig).items() if row == 3}
    assert shown == pytest.approx(four.clip(lower=1e-3).to_dict())


def test_damage_is_coloured_by_decades_and_keeps_its_values(damage, tmp_path):
    damage = damage.assign(damage=damage["damage"].where(damage["start"] != 2, -0.01))
    trace = plots.damage_heatmap(damage, zmax=10).data[0]
    assert (trace.zmin, trace.zmax) == (-3, 1)
    assert trace.colorbar.ticktext == ("≤ 0.001", "0.01", "0.1", "1", "10")
    assert "damage (nats per token) -0.0100" in trace.text[0][2]
    (path,) = plots.save_figure(plots.damage_heatmap(damage), tmp_path / "damage.csv")
    written = pd.read_csv(path).query("trace == 0")
    assert sorted(written["z"]) == pytest.approx(sorted(damage["damage"]))
    with pytest.raises(ValueError, match="zmin must be above 0"):
        plots.damage_heatmap(damage, zmin=0)


def test_a_loss_that_fell_stays_on_the_log_axes(distances, damage):
    fell = damage.assign(damage=damage["damage"].where(damage["start"] != 2, -0.01))
    points = plots.distance_vs_damage(distances, fell).data[0]
    assert min(points.y) == 1e-3
    assert list(points.customdata[2]) == ["2", -0.01]
    panel = plots.metric_comparison({"damage": fell}).data[0]
    assert panel.y[2] == 1e-3
    assert panel.customdata[2] == -0.01
    assert panel.marker.size[2] == max(panel.marker.size)


def test_a_model_pruned_before_is_drawn_by_its_original_layers():
    distances = distance_frame(5)
    original = [0, 1, 4, 5, 7]
    fig = plots.distance_heatmap(distances.assign(start=[original[start] for start in distances["start"]]))
    assert "removes 1,4-5" in fig.data[0].text[2][1]
    assert {start for start, _ in cells(fig)} == set(original)


def test_the_hover_names_the_layers_and_the_interval(distances):
    row = distances[(distances["start"] == 2) & (distances["size"] == 3)].iloc[0]
    assert plots.distance_heatmap(distances).data[0].text[2][2] == (
        "start 2, size 3<br>removes 2-4<br>angular distance "
        f"{row['distance']:.4f} [{row['ci_low']:.4f}, {row['ci_high']:.4f}]"
    )


def test_a_chosen_block_is_framed_and_must_exist(distances):
    frame = plots.distance_heatmap(distances, chosen=(3, 2)).data[-1]
    assert (min(frame.x), max(frame.x), min(frame.y), max(frame.y)) == (2.5, 3.5, 1.5, 2.5)
    with pytest.raises(ValueError, match=r"chosen must be a block .* got \(6, 2\)"):
        plots.distance_heatmap(distances, chosen=(6, 2))


def test_distance_beside_damage_shows_the_same_blocks_twice(distances, damage):
    fig = plots.distance_beside_damage(distances, damage)
    left, right = cells(fig, 0), cells(fig, 1)
    assert left.keys() == right.keys()
    assert len(left) == len(damage)


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
    frame = ablation()
    fig = plots.calibration_comparison(frame, n_layers=9)
    bars = [trace for trace in fig.data if trace.type == "bar"]
    for bar, (_, rows) in zip(bars, frame.groupby("calibration", sort=False), strict=True):
        assert [base + 0.5 for base in bar.base] == list(rows["start"])
        assert list(bar.x) == list(rows["size"])
        assert list(bar.text) == list(rows["removed"])
    with pytest.raises(ValueError, match="once a size"):
        plots.calibration_comparison(pd.concat([frame, frame]))


def test_kept_reasons_count_every_example(kept):
    fig = plots.kept_reasons(kept)
    assert fig.layout.title.text == "5 of 8 rewrites kept (62.5%)"
    counts = {reason: n for trace in fig.data for reason, n in zip(trace.y, trace.x, strict=True)}
    assert counts == {"same": 5, "cut off": 2, "&lt;script&gt;alert(1)&lt;/script&gt;": 1}


def test_the_loss_is_smoothed_around_the_raw_line(log):
    fig = plots.loss_curve(log, smooth=4)
    raw, smooth = fig.data[0], fig.data[1]
    sft = log[log["variant"] == "SFT"]
    assert list(raw.y) == list(sft["loss"])
    assert list(smooth.y) == list(sft["loss"].rolling(4, center=True, min_periods=1).mean())
    assert len(plots.loss_curve(sft.drop(columns="variant"), smooth=1).data) == 1


def test_scores_and_perplexities_have_panels_of_their_own():
    fig = plots.score_bars(score_frame())
    panels = {trace.xaxis: set(trace.x) for trace in fig.data}
    assert panels == {"x": {"demo_math", "demo_facts", "demo_pairs"}, "x2": {"demo_stories"}}
    assert fig.layout.yaxis.range == (0, 1.02)
    assert fig.layout.yaxis2.title.text == "word_perplexity"


@pytest.mark.parametrize(("value", "n"), [(0.0, 20), (1.0, 20), (0.987, 400), (0.5, 30)])
def test_right_or_wrong_scores_have_wilson_intervals(value, n):
    from scipy.stats import binomtest

    stderr = np.sqrt(value * (1 - value) / (n - 1))
    found = score_intervals(pd.DataFrame({"value": [value], "stderr": [stderr], "n": [n]})).iloc[0]
    if (value * n).is_integer():
        expected = binomtest(int(value * n), n).proportion_ci(method="wilson")
        assert (found["low"], found["high"]) == pytest.approx(tuple(expected), abs=1e-6)
    assert 0 <= found["low"] < found["high"] <= 1
    assert found["low"] <= value <= found["high"]


def test_other_scores_have_normal_intervals_or_none():
    frame = pd.DataFrame({"value": [4.2, 4.2], "stderr": [0.1, np.nan], "n": [50, 50]})
    found = score_intervals(frame)
    assert found["high"][0] == pytest.approx(4.2 + 1.96 * 0.1, abs=1e-4)
    assert np.isnan(found["low"][1])


def test_the_similarity_figure_shows_every_response_and_the_mean_with_its_interval():
    frame = similarity_frame(30)
    fig = plots.similarity_distribution(frame)
    dots = [trace for trace in fig.data if trace.type == "scatter" and len(trace.x) == 30]
    assert [list(trace.x) for trace in dots] == [
        list(rows) for _, rows in frame.groupby("variant", sort=False)["similarity"]
    ]
    means = [trace for trace in fig.data if trace.type == "scatter" and len(trace.x) == 1]
    for trace, (_, rows) in zip(means, frame.groupby("variant", sort=False)["similarity"], strict=True):
        low, high = bootstrap_interval(rows)
        assert trace.x[0] == pytest.approx(rows.mean())
        assert trace.error_x.array[0] == pytest.approx(high - rows.mean())
        assert trace.error_x.arrayminus[0] == pytest.approx(rows.mean() - low)
    assert "30 responses" in fig.layout.yaxis.ticktext[0]


def test_a_variant_keeps_its_colour_when_others_are_left_out():
    whole = variant_styles(["base", "pruned", "pruned + SFT", "pruned + self-distilled", "merged"])
    assert len(set(whole.values())) == 5
    for name, look in whole.items():
        assert variant_styles([name])[name] == look
    assert len(set(variant_styles(["SFT 2", "SFT 4", "SFT 6"]).values())) == 3


def _strings(value) -> list[str]:
    if isinstance(value, dict):
        return [text for part in value.values() for text in _strings(part)]
    if isinstance(value, list | tuple | np.ndarray):
        return [text for part in value for text in _strings(part)]
    return [value] if isinstance(value, str) else []


def test_text_from_data_is_never_markup(distances, damage, kept, log):
    for name, fig in every_figure(distances, damage, kept, log).items():
        texts = [text for text in _strings(fig.to_dict()) if "script" in text]
        assert texts or name in NO_TEXT, name
        assert not [text for text in texts if "<script" in text], name


def test_a_figure_is_made_without_showing_saving_or_changing_its_frame(
    distances, damage, kept, log, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    before = [frame.copy() for frame in (distances, damage, kept, log)]
    every_figure(distances, damage, kept, log)
    assert not list(tmp_path.iterdir())
    for frame, copy in zip((distances, damage, kept, log), before, strict=True):
        pd.testing.assert_frame_equal(frame, copy)


@pytest.mark.parametrize(
    ("draw", "missing"),
    [
        (lambda bad: plots.distance_heatmap(bad), "start"),
        (lambda bad: plots.damage_heatmap(bad), "damage"),
        (lambda bad: plots.distance_lines(bad), "distance"),
        (lambda bad: plots.distance_vs_damage(bad, bad), "distance"),
        (lambda bad: plots.calibration_comparison(bad), "calibration"),
        (lambda bad: plots.kept_reasons(bad), "kept"),
        (lambda bad: plots.loss_curve(bad), "step"),
        (lambda bad: plots.score_bars(bad), "variant"),
        (lambda bad: plots.similarity_distribution(bad), "similarity"),
    ],
)
def test_missing_columns_are_named(draw, missing):
    with pytest.raises(ValueError, match=f"missing .*'{missing}'.*got \\['nonsense'\\]"):
        draw(pd.DataFrame({"nonsense": [1]}))


def test_other_bad_frames_have_clear_errors(distances):
    with pytest.raises(ValueError, match="distances must be a pandas DataFrame, got list"):
        plots.distance_heatmap([1])
    with pytest.raises(ValueError, match="at least one row"):
        plots.distance_heatmap(distances.head(0))
    with pytest.raises(ValueError, match=r"each \(start, size\) once, got \(0, 1\) again"):
        plots.distance_heatmap(pd.concat([distances, distances.head(1)]))
    with pytest.raises(ValueError, match="at least one block with a number in 'distance'"):
        plots.distance_heatmap(distances.assign(distance=np.nan))
    with pytest.raises(ValueError, match="must share blocks"):
        plots.distance_beside_damage(distances[distances["size"] == 1], damage_frame(distances, (2,)))
    with pytest.raises(ValueError, match="no block of size 1"):
        plots.metric_comparison({"distance": distances[distances["size"] == 2]})
    with pytest.raises(ValueError, match="at least one named frame"):
        plots.metric_comparison({})


def test_templates_are_set_once_and_by_name(distances):
    assert plots.distance_heatmap(distances).layout.template.layout.width == 860
    plots.use_template("paper")
    assert "Times" in plots.distance_heatmap(distances).layout.template.layout.font.family
    with pytest.raises(ValueError, match="one of \\['screen', 'paper'\\], got 'poster'"):
        plots.use_template("poster")


@pytest.mark.browser
@pytest.mark.usefixtures("browser")
def test_every_format_is_written_and_pdf_and_svg_are_vector(distances, damage, tmp_path):
    fig = plots.distance_beside_damage(distances, damage)
    before = json.loads(fig.to_json())
    written = plots.save_figure(fig, tmp_path / "figures" / "v1.2")
    assert [path.name for path in written] == ["v1.2.png", "v1.2.pdf", "v1.2.svg", "v1.2.html"]
    assert written[0].read_bytes().startswith(b"\x89PNG")
    assert b"/Subtype /Image" not in written[1].read_bytes()
    svg = written[2].read_text()
    assert "<image" not in svg
    assert json.loads(fig.to_json()) == before
    assert sorted(path.name for path in written[0].parent.iterdir()) == [
        "plotly.min.js",
        *sorted(p.name for p in written),
    ]


@pytest.mark.browser
@pytest.mark.usefixtures("browser")
def test_the_vector_cells_have_the_colours_of_the_heatmap(distances, tmp_path):
    (path,) = plots.save_figure(plots.distance_heatmap(distances, zmin=0, zmax=1), tmp_path / "heat.svg")
    fills = re.findall(r"<path[^>]*fill: rgb\((\d+), (\d+), (\d+)\)", path.read_text())
    from plotly.colors import sample_colorscale

    nearest = sample_colorscale("Viridis_r", round(255 * distances["distance"].min()) / 255)[0]
    assert tuple(re.findall(r"\d+", nearest)) in fills


def test_vector_cells_cover_each_cell_once(distances):
    fig = export.vector_cells(plots.distance_heatmap(distances))
    assert not [trace for trace in fig.data if trace.type == "heatmap"]
    corners = [
        corner for shape in fig.layout.shapes for corner in re.findall(r"M(-?[\d.]+),(-?[\d.]+)H", shape.path)
    ]
    assert sorted((float(x) + 0.5, float(y) + 0.5) for x, y in corners) == sorted(
        zip(distances["start"], distances["size"], strict=True)
    )
    assert fig.data[0].marker.colorbar.title.text == "angular distance"


def test_html_opens_offline_with_one_script_for_all(distances, tmp_path):
    for name in ("one", "two"):
        (path,) = plots.save_figure(plots.distance_heatmap(distances), tmp_path / f"{name}.html")
        page = path.read_text()
        assert re.findall(r'src="([^"]+)"', page) == ["plotly.min.js"]
        assert path.stat().st_size < 100_000
    assert (tmp_path / "plotly.min.js").stat().st_size > 1_000_000
    assert len(list(tmp_path.iterdir())) == 3


def test_without_a_browser_come_html_and_csv_and_one_clear_line(distances, tmp_path, monkeypatch):
    monkeypatch.setenv("BROWSER_PATH", str(tmp_path / "no-browser"))
    with pytest.warns(
        UserWarning, match=r"No Chrome or Chromium was found, so png, pdf .*plotly_get_chrome"
    ) as caught:
        written = plots.save_figure(plots.distance_heatmap(distances), tmp_path / "heat", ["png", "pdf"])
    assert len(caught) == 1
    assert [path.name for path in written] == ["heat.html", "heat.csv"]
    frame = pd.read_csv(written[1])
    shown = frame[frame["trace"] == 0].set_index(["x", "y"])["z"]
    assert shown.to_dict() == pytest.approx(
        {(r.start, r.size): r.distance for r in distances.itertuples(index=False)}
    )


def test_the_data_of_every_figure_can_be_written(distances, damage, kept, log, tmp_path):
    for name, fig in every_figure(distances, damage, kept, log).items():
        (path,) = plots.save_figure(fig, tmp_path / f"{name}.csv")
        assert len(pd.read_csv(path)) >= 1


def test_an_unknown_format_is_refused_before_anything_is_written(distances, tmp_path):
    with pytest.raises(ValueError, match="formats must be some of png, pdf, svg, html, csv, got \\['gif'\\]"):
        plots.save_figure(plots.distance_heatmap(distances), tmp_path / "heat", "gif")
    assert not list(tmp_path.iterdir())


def test_a_browser_that_will_not_start_is_told_apart_and_nothing_waits_for_ever(tmp_path, monkeypatch):
    monkeypatch.setenv("BROWSER_PATH", "/bin/false")
    with pytest.warns(UserWarning, match="does not start, so png could not be drawn"):
        written = plots.save_figure(go.Figure(go.Scatter(x=[1], y=[2])), tmp_path / "figure.png")
    assert [path.name for path in written] == ["figure.html", "figure.csv"]

"""Figures as files: every format whole, vector where it can be, and one clear line without a browser."""

from __future__ import annotations

import json
import os
import re
import time

import numpy as np
import pandas as pd
import plotly.express as px
import plotly.graph_objects as go
import pytest
from drawn import FIGURES, every_figure, kept_frame, log_frame
from frames import damage_frame, distance_frame, divergence_frame

import workbench as plots
from workbench.runs import figures as export
from workbench.statistics import bootstrap_interval


@pytest.fixture(scope="module")
def distances() -> pd.DataFrame:
    return distance_frame(7)


@pytest.fixture(scope="module")
def damage(distances) -> pd.DataFrame:
    return damage_frame(distances)


@pytest.fixture(scope="module")
def browser() -> None:
    if not export.browser_found():
        pytest.skip("no Chrome or Chromium on this machine; plotly_get_chrome installs one")


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


def test_the_data_of_every_figure_can_be_written(distances, damage, tmp_path):
    made = every_figure(distances, damage, kept_frame(), log_frame())
    made |= {name: getattr(plots, name)(make()) for name, (make, _) in FIGURES.items()}
    for name, fig in made.items():
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


@pytest.mark.browser
@pytest.mark.usefixtures("browser")
@pytest.mark.parametrize("name", FIGURES)
def test_each_figure_is_drawn(name, tmp_path):
    (path,) = export.save_figure(getattr(plots, name)(FIGURES[name][0]()), tmp_path / "figure.svg")
    text = path.read_text()
    assert "<image" not in text and text.count("<path") > 5


def strange_figures() -> dict[str, go.Figure]:
    """Return heatmaps as other packages make them, none of which paths would show exactly."""
    z = np.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    scale = {"zmin": 1, "zmax": 6, "colorscale": "Viridis"}
    numbers = {"x": [0, 1, 2], "y": [0, 1], "z": z, **scale}
    behind = go.Figure([go.Scatter(x=[0, 1], y=[0, 1]), go.Heatmap(**numbers)])
    return {
        "no places": go.Figure(go.Heatmap(z=z)),
        "no scale": go.Figure(go.Heatmap(z=z, x=[0, 1, 2], y=[0, 1])),
        "plotly express": px.imshow(z),
        "words": go.Figure(go.Heatmap(z=z, x=["a", "b", "c"], y=["d", "e"], **scale)),
        "dates": go.Figure(go.Heatmap(z=z, x=pd.date_range("2024-01-01", periods=3), y=[0, 1], **scale)),
        "uneven steps": go.Figure(go.Heatmap(z=z.T, x=[1, 2], y=[1, 2, 4], **scale)),
        "numbers in cells": go.Figure(go.Heatmap(**numbers, texttemplate="%{z:.2f}")),
        "reversed": go.Figure(go.Heatmap(**numbers, reversescale=True)),
        "edges": go.Figure(go.Heatmap(z=z, x=[0, 1, 2, 3], y=[0, 1, 2], **scale)),
        "gaps": go.Figure(go.Heatmap(**numbers, xgap=3)),
        "smooth": go.Figure(go.Heatmap(**numbers, zsmooth="best")),
        "falling": go.Figure(go.Heatmap(z=z, x=[2, 1, 0], y=[0, 1], **scale)),
        "a log axis": go.Figure(go.Heatmap(z=z, x=[1, 2, 3], y=[1, 2], **scale)).update_xaxes(type="log"),
        "over a line": behind,
        "seen through": go.Figure(go.Heatmap(**numbers, opacity=0.4)),
        "hidden": go.Figure(go.Heatmap(**numbers, visible=False)),
    }


@pytest.mark.parametrize("name", strange_figures())
def test_a_heatmap_of_another_kind_stays_as_it_is(name, tmp_path):
    fig = strange_figures()[name]
    drawn = export.vector_cells(fig)
    assert json.loads(drawn.to_json()) == json.loads(fig.to_json())
    (path,) = plots.save_figure(fig, tmp_path / "figure.csv")
    assert len(pd.read_csv(path).query("z.notna()")) == 6


@pytest.mark.browser
@pytest.mark.usefixtures("browser")
def test_numbers_in_cells_and_words_on_axes_are_in_the_svg(tmp_path):
    for name, words in [("numbers in cells", "6.00"), ("words", ">e<"), ("plotly express", "<image")]:
        (path,) = plots.save_figure(strange_figures()[name], tmp_path / "figure.svg")
        assert words in path.read_text()


@pytest.mark.browser
@pytest.mark.usefixtures("browser")
def test_the_page_stays_for_the_next_image_and_draws_it_as_the_first(distances, damage, tmp_path):
    def drawn(name: str) -> list[bytes]:
        paths = plots.save_figure(plots.distance_heatmap(distances), tmp_path / name, ["png", "pdf"])
        return [re.sub(rb"/(?:Creation|Mod)Date \([^)]*\)", b"", path.read_bytes()) for path in paths]

    export._renderer.cache_clear()
    first = drawn("first")
    (tab,) = export._renderer(os.environ.get("BROWSER_PATH"))._kaleido.tabs_ready._queue
    page = tab._current_js_id
    plots.save_figure(
        plots.distance_beside_damage(distances, damage).update_layout(height=900), tmp_path / "b"
    )
    assert drawn("first") == first
    assert tab._current_js_id == page  # loaded anew, it would be another


@pytest.mark.browser
@pytest.mark.usefixtures("browser")
def test_a_browser_that_dies_starts_once_again_and_then_gives_way(distances, tmp_path, monkeypatch):
    fig = plots.distance_heatmap(distances)
    plots.save_figure(fig, tmp_path / "one.png")
    first = export._renderer(os.environ.get("BROWSER_PATH"))
    killed = first._kaleido.subprocess
    killed.kill()
    killed.wait()
    started = time.monotonic()
    (path,) = plots.save_figure(fig, tmp_path / "two.svg")  # without a warning
    assert path.suffix == ".svg" and time.monotonic() - started < 20
    assert export._renderer(os.environ.get("BROWSER_PATH")) is not first

    def dies(self, *_):
        self._kaleido.subprocess.kill()
        raise export.ChannelClosedError

    export._renderer.cache_clear()
    monkeypatch.setattr(export._Renderer, "image", dies)
    started = time.monotonic()
    told = []  # not pytest.warns: the thread that starts the browser sets back the filters of warnings
    monkeypatch.setattr(export.warnings, "warn", lambda text, **_: told.append(text))
    for name in ("three", "four"):
        written = plots.save_figure(fig, tmp_path / name, ["png", "pdf"])
        assert "ends while it draws, so png, pdf could not be drawn" in told.pop()
        assert [path.suffix for path in written] == [".html", ".csv"]
    assert time.monotonic() - started < 20
    export._renderer.cache_clear()


def test_a_text_that_a_spreadsheet_would_run_is_one_in_the_csv(tmp_path):
    names = ["=HYPERLINK(1)", "+1", "-2+3", "@x", "\tx", " =1", "\u200b=1", "plain", "１"]
    fig = go.Figure([go.Scatter(x=["=a()", "b"], y=[1, -2], name=name) for name in names])
    (path,) = plots.save_figure(fig, tmp_path / "figure.csv")
    found = pd.read_csv(path)
    assert list(dict.fromkeys(found["name"].astype(str))) == [
        "'=HYPERLINK(1)", "'+1", "'-2+3", "'@x", "'\tx", "' =1", "'\u200b=1", "plain", "１"]  # fmt: skip
    assert set(found["x"]) == {"'=a()", "b"} and set(found["y"]) == {1, -2}


def test_the_csv_has_what_a_place_stands_for(distances, damage, tmp_path):
    def written(fig):
        (path,) = plots.save_figure(fig, tmp_path / "figure.csv")
        return pd.read_csv(path)

    sizes = {1, 2, 4}
    low = damage.assign(damage=damage["damage"].where(damage["start"] != 2, -0.01))
    for fig in (plots.damage_heatmap(damage), plots.distance_beside_damage(distances, damage)):
        assert set(written(fig)["y"].dropna()) == sizes
    scatter = written(plots.distance_vs_damage(distances, low))
    assert scatter["y"].min() == -0.01
    assert written(plots.metric_comparison({"damage": low}))["y"].min() == -0.01
    uneven = go.Figure(go.Scatter(x=[1], y=[2], error_y={"array": [3], "arrayminus": [1]}))
    assert written(uneven)[["error_y", "error_y_minus"]].to_numpy().tolist() == [[3, 1]]


def test_the_csv_of_a_log_scale_has_the_numbers_and_not_their_logarithms(tmp_path):
    frame = divergence_frame()
    fig = plots.divergence_distribution(frame)
    (path,) = plots.save_figure(fig, tmp_path / "figure.csv")
    found = pd.read_csv(path)
    for name, part in frame.groupby("variant"):
        own = found[found["name"] == name]
        assert set(part["kl"].round(9)) <= set(own["x"].round(9))
        mean = own.dropna(subset="error_x").iloc[0]
        assert mean["x"] == pytest.approx(np.average(part["kl"], weights=part["n_tokens"]))
        low, high = bootstrap_interval(part["kl"], weights=part["n_tokens"])
        assert [mean["x"] - mean["error_x_minus"], mean["x"] + mean["error_x"]] == pytest.approx([low, high])

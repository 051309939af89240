"""Figures as files: every format whole, vector where it can be, and one clear line without a browser."""

from __future__ import annotations

import json
import re

import pandas as pd
import plotly.graph_objects as go
import pytest
from drawn import FIGURES, every_figure, kept_frame, log_frame
from frames import damage_frame, distance_frame

import workbench as plots
from workbench.runs import figures as export


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

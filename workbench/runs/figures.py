"""Figures as files: PNG, PDF, SVG with vector cells, HTML that opens offline, CSV of what is drawn."""

from __future__ import annotations

import asyncio
import atexit
import os
import threading
import warnings
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.colors import sample_colorscale
from plotly.offline import get_plotlyjs

from workbench.runs.files import write_bytes_atomic, write_text_atomic

IMAGES = ("png", "pdf", "svg")
FORMATS = (*IMAGES, "html", "csv")
NO_IMAGES = (
    "{problem}, so {wanted} could not be drawn; HTML and CSV were written instead. Install a browser with "
    "`plotly_get_chrome`, or the system's package (`apt install chromium`)."
)


def save_figure(
    fig: go.Figure,
    path: str | Path,
    formats: str | Iterable[str] | None = None,
    *,
    scale: float = 2,
) -> list[Path]:
    """Write a figure to files, each whole or not at all.

    PDF and SVG are vector throughout (a heatmap's cells too). An HTML file loads ``plotly.min.js`` from its
    own folder, where one copy serves every figure, so it opens offline. ``csv`` is the data that the figure
    draws.

    Args:
        fig: the figure; it is not changed.
        path: file name without ending, or with the ending of the one format wanted.
        formats: some of ``png``, ``pdf``, ``svg``, ``html``, ``csv``; None means the path's own ending, or
            all but ``csv`` where it has none.
        scale: pixels of a PNG per pixel of the figure.

    Returns:
        The paths written. Without a Chrome or Chromium on the machine those are HTML and CSV, and a warning
        says what is missing.

    Raises:
        ValueError: for an unknown format.
    """
    stem, wanted = _stem_and_formats(Path(path), formats)
    images = [name for name in wanted if name in IMAGES]
    if images and (problem := _renderer(os.environ.get("BROWSER_PATH")).problem):
        warnings.warn(NO_IMAGES.format(problem=problem, wanted=", ".join(images)), stacklevel=2)
        wanted = [*dict.fromkeys([*(name for name in wanted if name not in IMAGES), "html", "csv"])]
    return [_write(fig, stem.with_name(f"{stem.name}.{name}"), name, scale) for name in wanted]


def browser_found() -> bool:
    """Return whether images can be drawn: a Chrome or Chromium (or ``BROWSER_PATH``) is here and starts."""
    return _renderer(os.environ.get("BROWSER_PATH")).problem is None


def vector_cells(fig: go.Figure) -> go.Figure:
    """Return a copy of a figure whose heatmaps are drawn as paths, one a shade, with the same colour bar.

    ``go.Heatmap`` is a raster image even inside a PDF or SVG. The cells of one shade share a path: 80 layers
    are 3,240 cells in at most 256 paths, which draw in half a second (as one shape a cell, in 1.5 s; as
    bars, in 5 to 15).
    """
    heatmaps = [trace for trace in fig.data if trace.type == "heatmap"]
    shapes = [*fig.layout.shapes, *(shape for trace in heatmaps for shape in _cell_shapes(trace))]
    traces = [_colour_bar(trace) if trace.type == "heatmap" else trace for trace in fig.data]
    return go.Figure(traces, fig.layout).update_layout(shapes=shapes)


def figure_frame(fig: go.Figure) -> pd.DataFrame:
    """Return the data that a figure draws, one row a point: ``trace``, ``name``, ``x``, ``y``, ``z``."""
    parts = [_trace_frame(number, trace) for number, trace in enumerate(fig.data)]
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=["trace", "name", "x", "y"])


def _stem_and_formats(path: Path, formats: str | Iterable[str] | None) -> tuple[Path, list[str]]:
    ending = path.suffix[1:].lower()
    stem = path.with_suffix("") if ending in FORMATS else path
    if formats is None:
        return stem, [ending] if ending in FORMATS else [*IMAGES, "html"]
    wanted = [*dict.fromkeys([formats] if isinstance(formats, str) else formats)]
    if not wanted or any(name not in FORMATS for name in wanted):
        raise ValueError(f"formats must be some of {', '.join(FORMATS)}, got {wanted}")
    return stem, wanted


def _write(fig: go.Figure, path: Path, name: str, scale: float) -> Path:
    if name == "csv":
        return write_text_atomic(path, figure_frame(fig).to_csv(index=False, lineterminator="\n"))
    if name == "html":
        script = path.with_name("plotly.min.js")
        if not script.is_file() or script.stat().st_size != len(get_plotlyjs().encode()):
            write_text_atomic(script, get_plotlyjs())
        return write_text_atomic(path, fig.to_html(include_plotlyjs="directory", full_html=True))
    drawn = fig if name == "png" else vector_cells(fig)
    image = _renderer(os.environ.get("BROWSER_PATH")).image(drawn, name, scale if name == "png" else 1)
    return write_bytes_atomic(path, image)


class _Renderer:
    """One browser for all images of this process: 0.3 s an image instead of 2.6 s.

    Kaleido's own server waits for ever when its browser fails to start; here that becomes ``problem``.
    """

    def __init__(self) -> None:
        from choreographer.errors import BrowserDepsError, BrowserFailedError, ChromeNotFoundError

        self.problem: str | None = None
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True, name="figure-export").start()
        try:
            self._kaleido = self._wait(self._open())
        except ChromeNotFoundError:
            self.problem = "No Chrome or Chromium was found"
        except (BrowserDepsError, BrowserFailedError):
            self.problem = "The Chrome or Chromium of this machine does not start"
        else:
            atexit.register(lambda: self._wait(self._kaleido.close()))

    async def _open(self) -> Any:
        import kaleido

        # without mathjax=False every export asks a CDN for a script that no figure here uses
        browser = kaleido.Kaleido(n=1, mathjax=False)
        await browser.open()
        return browser

    def image(self, fig: go.Figure, name: str, scale: float) -> bytes:
        sides = {side: fig.layout[side] or fig.layout.template.layout[side] for side in ("width", "height")}
        options = {"format": name, "scale": scale, **{side: size for side, size in sides.items() if size}}
        drawn: bytes = self._wait(self._kaleido.calc_fig(fig.to_dict(), opts=options))
        return drawn

    def _wait(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout=120)


@cache
def _renderer(browser_path: str | None) -> _Renderer:
    """Return the renderer of the process; kaleido itself reads the path from BROWSER_PATH."""
    return _Renderer()


def _cell_shapes(trace: go.Heatmap) -> list[dict[str, Any]]:
    """Return the cells of a heatmap with evenly spaced centres as path shapes, one for each of 256 shades."""
    x, y, z = (np.asarray(values, dtype=float) for values in (trace.x, trace.y, trace.z))
    row, column = np.nonzero(np.isfinite(z))
    width, height = (np.diff(centres).min() if len(centres) > 1 else 1.0 for centres in (x, y))
    share = (z[row, column] - trace.zmin) / ((trace.zmax - trace.zmin) or 1.0)
    shades = np.round(255 * np.clip(share, 0, 1)).astype(int)
    colours = sample_colorscale([list(stop) for stop in trace.colorscale], np.arange(256) / 255)
    axes = {"xref": trace.xaxis or "x", "yref": trace.yaxis or "y", "type": "path", "layer": "below"}
    left, low = x[column] - width / 2, y[row] - height / 2
    shapes = []
    for shade in np.unique(shades):
        corners = zip(left[shades == shade], low[shades == shade], strict=True)
        path = "".join(f"M{a:g},{b:g}H{a + width:g}V{b + height:g}H{a:g}Z" for a, b in corners)
        # the outline in the cell's own colour closes the hairline gaps that PDF viewers show between paths
        line = {"width": 0.4, "color": colours[shade]}
        shapes.append({**axes, "path": path, "fillcolor": colours[shade], "line": line})
    return shapes


def _colour_bar(trace: go.Heatmap) -> go.Scatter:
    scale = {"colorscale": trace.colorscale, "cmin": trace.zmin, "cmax": trace.zmax, "color": [trace.zmin]}
    marker = {**scale, "colorbar": trace.colorbar.to_plotly_json(), "showscale": trace.showscale is not False}
    axes = {"xaxis": trace.xaxis, "yaxis": trace.yaxis}
    return go.Scatter(x=[None], y=[None], mode="markers", marker=marker, showlegend=False, **axes)


def _trace_frame(number: int, trace: Any) -> pd.DataFrame:
    label = {"trace": number, "name": trace.name or ""}
    if trace.type == "heatmap":
        # a logarithmic scale keeps its values beside the colours
        z = np.asarray(trace.z if trace.customdata is None else trace.customdata, dtype=float)
        row, column = np.nonzero(np.isfinite(z))
        cells = {"x": np.asarray(trace.x)[column], "y": np.asarray(trace.y)[row], "z": z[row, column]}
        return pd.DataFrame({**label, **cells})
    columns = {key: list(trace[key]) for key in ("x", "y") if trace[key] is not None}
    errors = {f"error_{key}": trace[f"error_{key}"].array for key in ("x", "y") if f"error_{key}" in trace}
    spread = {key: list(value) for key, value in errors.items() if value is not None}
    drawn = {key: pd.Series(values) for key, values in {**columns, **spread}.items()}
    return pd.DataFrame(drawn).assign(**label)

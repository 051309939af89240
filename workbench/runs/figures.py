"""Figures as files: PNG, PDF, SVG with vector cells, HTML that opens offline, CSV of what is drawn."""

from __future__ import annotations

import asyncio
import atexit
import base64
import os
import threading
import warnings
from collections.abc import Iterable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from choreographer.errors import BrowserClosedError, ChannelClosedError
from plotly.colors import sample_colorscale
from plotly.offline import get_plotlyjs

from workbench.checks import some_of
from workbench.runs.files import spreadsheet_text, write_bytes_atomic, write_text_atomic
from workbench.runs.pages import SCRIPT, figure_html

IMAGES = ("png", "pdf", "svg")
FORMATS = (*IMAGES, "html", "csv")
HERE = Path(__file__).parent
#: the font that exported images carry; a page that has not got it takes the next, whose letters are as wide
FONT = "Workbench Sans"
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
    script: str | Path | None = None,
) -> list[Path]:
    """Write a figure to files, each whole or not at all.

    PDF and SVG are vector throughout; of heatmaps those that ``vector_cells`` can draw exactly, as all of
    this package. An HTML file loads plotly from a file beside it, where one copy serves every figure, so it
    opens offline. ``csv`` is the data that the figure draws; a text in it that a spreadsheet
    would run as a formula has an apostrophe before it.

    Args:
        fig: the figure; it is not changed.
        path: file name without ending, or with the ending of the one format wanted.
        formats: some of ``png``, ``pdf``, ``svg``, ``html``, ``csv``; None means the path's own ending, or
            all but ``csv`` where it has none.
        scale: pixels of a PNG per pixel of the figure.
        script: where that copy of plotly lies; None means ``plotly.min.js`` in the folder of the figure.

    Returns:
        The paths written. Without a Chrome or Chromium on the machine, or when it ends and does not start
        again, those are HTML and CSV, and a warning says what is missing.

    Raises:
        ValueError: for an unknown format.
    """
    stem, wanted = _stem_and_formats(Path(path), formats)
    drawn, problem = _images(_titled(fig, stem.name), [name for name in wanted if name in IMAGES], scale)
    if problem:
        missing = [name for name in wanted if name in IMAGES and name not in drawn]
        warnings.warn(NO_IMAGES.format(problem=problem, wanted=", ".join(missing)), stacklevel=2)
        wanted = [*dict.fromkeys([*(name for name in wanted if name not in missing), "html", "csv"])]
    place = Path(script) if script else stem.with_name(SCRIPT)
    paths = {name: stem.with_name(f"{stem.name}.{name}") for name in wanted}
    return [_write(fig, path, name, drawn.get(name), place) for name, path in paths.items()]


def shared_script(script: Path, page: Path) -> str:
    """Write plotly itself to a file, unless it is there, and return how a page names it (a relative URL)."""
    if not script.is_file() or script.stat().st_size != len(get_plotlyjs().encode()):
        write_text_atomic(script, get_plotlyjs())
    return quote(Path(os.path.relpath(script, page.parent)).as_posix())


def browser_found() -> bool:
    """Return whether images can be drawn: a Chrome or Chromium (or ``BROWSER_PATH``) is here and starts."""
    return _renderer(os.environ.get("BROWSER_PATH")).problem is None


def vector_cells(fig: go.Figure) -> go.Figure:
    """Return a copy of a figure whose heatmaps are drawn as paths, one a shade, with the same colour bar.

    ``go.Heatmap`` is a raster image even inside a PDF or SVG. The cells of one shade share a path: 80 layers
    are 3,240 cells in at most 256 paths, which draw in half a second (as one shape a cell, in 1.5 s; as
    bars, in 5 to 15). A heatmap that paths would not show exactly stays as it is: one with words, dates or
    uneven steps on its axes, numbers written in its cells, no colour scale of its own, or over other traces.
    """
    exact = [_drawn_exactly(fig, number) for number in range(len(fig.data))]
    if not any(exact):
        return go.Figure(fig)
    pairs = list(zip(fig.data, exact, strict=True))
    shapes = [*fig.layout.shapes, *(shape for trace, own in pairs if own for shape in _cell_shapes(trace))]
    traces = [_colour_bar(trace) if own else trace for trace, own in pairs]
    return go.Figure(traces, fig.layout).update_layout(shapes=shapes)


def figure_frame(fig: go.Figure) -> pd.DataFrame:
    """Return the data that a figure draws, one row a point: ``trace``, ``name``, ``x``, ``y``, ``z``.

    Where a place stands for a value (the row of a block size, the end of an axis for what lies beyond it),
    the value itself, which the trace has as ``meta["x"]`` or ``meta["y"]``. Intervals are ``error_x`` and
    ``error_y``, with ``error_x_minus`` and ``error_y_minus`` where they are not symmetric.
    """
    parts = [_trace_frame(number, trace) for number, trace in enumerate(fig.data)]
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=["trace", "name", "x", "y"])


def _stem_and_formats(path: Path, formats: str | Iterable[str] | None) -> tuple[Path, list[str]]:
    ending = path.suffix[1:].lower()
    stem = path.with_suffix("") if ending in FORMATS else path
    if formats is None:
        return stem, [ending] if ending in FORMATS else [*IMAGES, "html"]
    return stem, [*dict.fromkeys(some_of(formats, FORMATS, "formats"))]


def _write(fig: go.Figure, path: Path, name: str, image: bytes | None, script: Path) -> Path:
    if name == "csv":
        frame = figure_frame(fig)
        text = frame.rename(columns=spreadsheet_text).map(spreadsheet_text)
        return write_text_atomic(path, text.to_csv(index=False, lineterminator="\n"))
    if name == "html":
        source = shared_script(script, path)
        return write_text_atomic(path, figure_html(fig.to_dict(), source))
    assert image is not None
    return write_bytes_atomic(path, image)


def _images(fig: go.Figure, names: list[str], scale: float) -> tuple[dict[str, bytes], str | None]:
    """Return the images by their formats, and why some are missing; a browser that died starts once again."""
    drawn: dict[str, bytes] = {}
    figure = vector_cells(fig) if names else fig
    for name in names:
        size = scale if name == "png" else 1
        for again in (False, True):
            renderer = _renderer(os.environ.get("BROWSER_PATH"))
            if renderer.problem:
                return drawn, renderer.problem
            try:
                drawn[name] = renderer.image(figure, name, size)
                break
            except _LOST:
                if again:
                    renderer.problem = _DIED
                else:
                    _renderer.cache_clear()
    return drawn, None if len(drawn) == len(names) else _DIED


_DIED = "The Chrome or Chromium of this machine ends while it draws"
_LOST = (BrowserClosedError, ChannelClosedError, TimeoutError, BrokenPipeError, ConnectionError)


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
            atexit.register(self._close)

    def _close(self) -> None:
        with suppress(*_LOST, OSError):
            self._wait(self._kaleido.close(), 10)

    async def _open(self) -> Any:
        import kaleido

        # with mathjax every export asks a CDN for a script that no figure here uses
        page = kaleido.PageGenerator(mathjax=False, others=[HERE.joinpath("export.js").as_uri()])
        page.header += f'<style id="fonts">{_font_face()}</style><style>@page{{margin:0}}</style>'
        browser: Any = kaleido.Kaleido(n=1, page_generator=page)
        # its page is as good for the next image; loading it anew takes longer than to draw one
        browser._return_kaleido_tab = browser.tabs_ready.put
        await browser.open()
        return browser

    def image(self, fig: go.Figure, name: str, scale: float) -> bytes:
        if self._kaleido.subprocess.poll() is not None:  # asked, it would be waited for to the end
            raise BrowserClosedError
        sides = {side: fig.layout[side] or fig.layout.template.layout[side] for side in ("width", "height")}
        options = {"format": name, "scale": scale, **{side: size for side, size in sides.items() if size}}
        drawn: bytes = self._wait(self._kaleido.calc_fig(fig.to_dict(), opts=options))
        return drawn

    def _wait(self, work: Any, seconds: float = 120) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout=seconds)


def _font_face() -> str:
    data = base64.b64encode(HERE.joinpath("fonts", "WorkbenchSans.woff2").read_bytes()).decode()
    return f'@font-face{{font-family:"{FONT}";src:url(data:font/woff2;base64,{data})}}'


def _titled(fig: go.Figure, name: str) -> go.Figure:
    """Return a copy that says its title to the exporter: of the figure, else the name of the file."""
    meta = fig.layout.meta if isinstance(fig.layout.meta, dict) else {}
    title = meta.get("title") or fig.layout.title.text or name
    return go.Figure(fig).update_layout(meta={**meta, "title": title})


def _axes(trace: Any) -> list[str]:
    told = trace.to_plotly_json()
    return [told.get(f"{axis}axis") or axis for axis in "xy"]


#: what a heatmap may say of itself beside its numbers and still be drawn by paths
_PLAIN = frozenset(("type", "x", "y", "z", "zmin", "zmax", "colorscale", "colorbar", "showscale"))
_PLAIN |= {"showlegend", "xaxis", "yaxis", "name", "meta", "uid", "text", "customdata"}
_PLAIN |= {"hovertemplate", "hoverongaps"}


@cache
def _renderer(browser_path: str | None) -> _Renderer:
    """Return the renderer of the process; kaleido itself reads the path from BROWSER_PATH."""
    return _Renderer()


def _drawn_exactly(fig: go.Figure, number: int) -> bool:
    """Return whether paths show a trace exactly as plotly does: a heatmap as this package makes them."""
    trace, told = fig.data[number], fig.data[number].to_plotly_json()
    before = [one for one in fig.data[:number] if _axes(one) == _axes(trace)]
    if trace.type != "heatmap" or any(one.type != "heatmap" for one in before):
        return False
    if not {"x", "y", "z", "zmin", "zmax", "colorscale"} <= told.keys() or not told.keys() <= _PLAIN:
        return False
    kinds = [fig.layout[name.replace(name[0], f"{name[0]}axis", 1)].type for name in _axes(trace)]
    x, y, z = (np.asarray(trace[name]) for name in "xyz")
    numbers = all(values.dtype.kind in "iuf" for values in (x, y)) and z.dtype.kind in "iuf"
    even = numbers and all(len(np.unique(np.diff(values).round(9))) <= 1 for values in (x, y))
    rising = even and all((np.diff(values) > 0).all() for values in (x, y))
    return rising and z.shape == (len(y), len(x)) and set(kinds) <= {None, "-", "linear"}


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
        # a logarithmic scale keeps its values beside the colours; beside others lie words
        beside = pd.DataFrame(trace.z if trace.customdata is None else trace.customdata)
        numbers = beside.apply(pd.to_numeric, errors="coerce").to_numpy(dtype=float)
        z = np.asarray(trace.z, dtype=float) if np.isnan(numbers).all() else numbers
        row, column = np.nonzero(np.isfinite(z))
        across, down = (_places(trace, key, count) for key, count in zip("xy", z.shape[::-1], strict=True))
        return pd.DataFrame({**label, "x": across[column], "y": down[row], "z": z[row, column]})
    told = trace.to_plotly_json()
    drawn = {key: _places(trace, key) for key in ("x", "y", "labels", "values") if key in told}
    for key in ("x", "y"):
        errors = told.get(f"error_{key}", {})
        sides = {f"error_{key}": errors.get("array"), f"error_{key}_minus": errors.get("arrayminus")}
        drawn |= {side: _places(trace, side, given=one) for side, one in sides.items() if one is not None}
    return pd.DataFrame({key: pd.Series(values) for key, values in drawn.items()}).assign(**label)


def _places(trace: Any, key: str, count: int = 0, given: Any = None) -> np.ndarray:
    """Return where the points of a trace lie, or what that stands for."""
    real = (trace.meta if isinstance(trace.meta, dict) else {}).get(key)
    values = real if real is not None else trace[key] if given is None else given
    return np.asarray(values) if values is not None else np.arange(count)

"""What every figure shares: the two templates, one style a variant, escaped text, the axes of layers."""

from __future__ import annotations

import html
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import chain, cycle
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import plotly.express as px
import plotly.graph_objects as go
from plotly.colors import sample_colorscale
from plotly.subplots import make_subplots

from workbench.checks import one_of
from workbench.distances.blocks import checked_blocks, parse_layers

#: sequential, even in lightness (so it survives a grey print), safe for the colour-blind; light = near =
# removable
SEQUENTIAL = "Viridis_r"
INK = "#1f2328"
DISTANCE = "angular distance"
DAMAGE_UNIT = "(nats per token)"
DAMAGE = f"damage {DAMAGE_UNIT}"
#: nats per token; damage spans decades (the first layers cost whole nats): its log scales begin here
DAMAGE_FLOOR = 1e-3
_LINE = {"orientation": "h", "x": 0, "title": {"text": ""}}


@dataclass(frozen=True)
class Style:
    """How one variant looks in every figure: the colour, and what tells it apart without colour.

    The fields are named as in ``plotly.express``.
    """

    color: str
    line_dash: str = "solid"
    symbol: str = "circle"
    pattern_shape: str = ""


#: the content of ``look.toml``
LOOK = tomllib.loads(Path(__file__).with_name("look.toml").read_text(encoding="utf-8"))
_STYLES = [Style(**style) for style in LOOK["variants"]]


def last_layer(frame: pd.DataFrame) -> int:
    """Return the highest layer that a block of the frame removes.

    >>> last_layer(pd.DataFrame({"removed": ["3-4", "0,6"]}))
    6
    """
    return max(parse_layers(text)[-1] for text in frame["removed"])


def sizes_to_draw(
    frame: pd.DataFrame, sizes: Iterable[int] | None, usual: Iterable[int] = (1, 2, 4, 6, 8, 10)
) -> list[int]:
    """Return the sizes asked for, after a check, or the usual ones that the frame holds."""
    there = sorted(int(size) for size in frame["size"].unique())
    if sizes is None:
        return [size for size in usual if size in there] or there[:6]
    wanted = sorted({int(size) for size in sizes})
    if not wanted or not set(wanted) <= set(there):
        raise ValueError(f"sizes must be some of {there}, got {wanted}")
    return wanted


def plain(value: Any) -> str:
    """Return text from a model or a data set so that plotly shows it instead of reading it as markup.

    >>> plain("<b>50 & more")
    '&lt;b&gt;50 &amp; more'
    """
    return html.escape(str(value), quote=False)


def escaped(frame: pd.DataFrame, *columns: str) -> pd.DataFrame:
    """Return a frame whose texts in these columns are shown as they stand.

    >>> escaped(pd.DataFrame({"variant": ["<i>"]}), "variant")["variant"].item()
    '&lt;i&gt;'
    """
    return frame.assign(**{column: frame[column].map(plain) for column in columns})


def draw(
    kind: Callable[..., go.Figure],
    frame: pd.DataFrame,
    x: str,
    y: str,
    styles: Mapping[str, Style] | None = None,
    by: str = "variant",
    /,
    **options: Any,
) -> go.Figure:
    """Draw a frame by ``plotly.express``: each name in its own style, with intervals, in the template.

    Args:
        kind: ``px.bar`` (told apart by patterns), ``px.scatter`` (symbols) or ``px.line`` (dashes, and
            symbols with ``markers=True``).
        frame: its texts are ``escaped``.
        x: column.
        y: column.
        styles: name -> style, in the order wanted; None takes ``variant_styles``.
        by: the column of names.
        **options: of ``kind``; moreover ``hover``, what the pointer shows (else nothing), and for ``error_x``
            and ``error_y`` the two columns with the ends of each interval.
    """
    hover = options.pop("hover", None)
    styles = styles or variant_styles(frame[by])
    marks = {"bar": ["pattern_shape"], "scatter": ["symbol"], "line": ["line_dash"]}[kind.__name__]
    for mark in ("color", *marks, *(["symbol"] if options.get("markers") else [])):
        of_name = {name: getattr(style, mark) for name, style in styles.items()}
        options |= {mark: by, "color_discrete_map" if mark == "color" else f"{mark}_map": of_name}
    for axis, value in (("x", x), ("y", y)):
        if ends := options.pop(f"error_{axis}", None):
            low, high = (frame[end] for end in ends)
            options |= {f"error_{axis}": high - frame[value], f"error_{axis}_minus": frame[value] - low}
    if kind is not px.bar:
        options["render_mode"] = "svg"  # many points would be drawn by WebGL, a picture inside a PDF
    options["category_orders"] = {by: [*styles], **options.get("category_orders", {})}
    fig = kind(frame, x=x, y=y, template=current_template(), **options)
    if hover is None:
        return fig.update_traces(hovertemplate=None, hoverinfo="skip")
    return fig.update_traces(hovertemplate=f"{hover}<extra></extra>")


def new_figure(title: str | None, *traces: Any) -> go.Figure:
    """Return a figure of some traces in the current template."""
    return go.Figure(traces, {"template": current_template(), "title": {"text": title}})


def new_panels(title: str | None, rows: int, columns: int, /, **options: Any) -> go.Figure:
    """Return an empty figure of several panels in the current template."""
    fig = make_subplots(rows, columns, **options)
    return fig.update_layout(template=current_template(), title={"text": title})


def add_panel(fig: go.Figure, drawn: go.Figure, column: int) -> None:
    """Add the traces of a figure to a column of another one; a name stands in the legend once."""
    named = {trace.name for trace in fig.data if trace.showlegend}
    for trace in drawn.data:
        trace.showlegend = bool(trace.showlegend) and trace.name not in named
        fig.add_trace(trace, row=1, col=column)


def facet_titles(fig: go.Figure) -> go.Figure:
    """Title each panel of ``plotly.express`` by its name alone, without the name of the column."""
    return fig.for_each_annotation(lambda note: note.update(text=note.text.partition("=")[2]))


def legend_above(fig: go.Figure) -> go.Figure:
    """Put the legend in a line above the figure."""
    fig.update_layout(legend={**_LINE, "y": 1.02, "yanchor": "bottom"})
    return fig.update_layout(margin={"t": 92 if fig.layout.title.text else 44})


def legend_below(fig: go.Figure) -> go.Figure:
    """Put the legend in a line below the figure."""
    return fig.update_layout(legend={**_LINE, "y": 0, "yref": "container"}, margin={"b": 110})


def layer_axis(n_layers: int, *, ticks: int = 20) -> dict[str, Any]:
    """Return an axis over layers with whole-numbered ticks, at most about ``ticks`` of them."""
    step = next(step for step in (1, 2, 5, 10, 20, 50) if n_layers / step <= ticks or step == 50)
    return {"tickmode": "linear", "tick0": 0, "dtick": step, "showgrid": False}


def log_axis(values: pd.Series, lowest: float = DAMAGE_FLOOR) -> dict[str, Any]:
    """Return a log axis from ``lowest`` up, ticked at decades, or at 1, 2, 5 where it spans less than two."""
    low, high = np.log10(lowest), np.log10(max(values.max(), 10 * lowest))
    steps = (1, 2, 5) if high - low < 2 else (1,)
    ticks = [step * 10.0**decade for decade in range(int(low) - 1, int(high) + 2) for step in steps]
    room = 0.06 * (high - low)
    labels = {"tickvals": ticks, "ticktext": [f"{tick:g}" for tick in ticks]}
    return {"type": "log", "range": [low - room, high + room], **labels}


def best_marks(x: Any, y: Any, *, size: float, fill: str = "white") -> go.Scatter:
    """Return the marks on the least block of each size."""
    marker = {"symbol": "circle", "size": size, "color": fill, "line": {"color": INK, "width": 1.5}}
    name = "least of its size"
    shown = {"mode": "markers", "marker": marker, "hoverinfo": "skip", "showlegend": True}
    return go.Scatter(x=list(x), y=list(y), name=name, **shown)


def joined(distances: pd.DataFrame, damage: pd.DataFrame) -> pd.DataFrame:
    """Return the blocks that both frames hold, with their distance and their damage.

    Raises:
        ValueError: for missing columns, repeated blocks, or when the frames share no block.
    """
    distances = checked_blocks(distances, "distance", "distances")
    damage = checked_blocks(damage, "damage", "damage")
    both = distances.merge(damage[["start", "size", "damage"]], on=["start", "size"], validate="one_to_one")
    if both.empty:
        sizes = [sorted(int(size) for size in frame["size"].unique()) for frame in (distances, damage)]
        raise ValueError(f"distances and damage must share blocks (start, size), got sizes {sizes}")
    return both


def variant_styles(names: Iterable[Any]) -> dict[Any, Style]:
    """Return a style for each name; base, pruned, SFT, distilled, merged keep theirs across figures."""
    names, styles, free = [*dict.fromkeys(names)], {}, dict(enumerate(_STYLES))
    for name in names:
        places = [place for word, place in LOOK["places"].items() if word in str(name).lower()]
        if places and places[0] in free:
            styles[name] = free.pop(places[0])
    rest = chain(free.values(), cycle(_STYLES))
    return {name: styles.get(name) or next(rest) for name in names}


def size_styles(sizes: Iterable[int]) -> dict[str, Style]:
    """Return a style for each block size, as text: sizes are ordered, so colours run from light to dark."""
    sizes = sorted({int(size) for size in sizes})
    at = [0.85 * (1 - place / max(len(sizes) - 1, 1)) for place in range(len(sizes))]
    colours = sample_colorscale("Viridis", at)
    triples = zip(sizes, colours, cycle(_STYLES), strict=False)
    return {str(size): replace(style, color=color, line_dash="solid") for size, color, style in triples}


#: *screen* for a notebook; *paper* for the text width of a one-column page (6.5 in), 9 pt Times
TEMPLATES = {name: go.layout.Template(LOOK["template"]).update(LOOK[name]) for name in ("screen", "paper")}
_current = "screen"


def use_template(name: str) -> None:
    """Choose the template of every figure made from now on.

    Args:
        name: ``"screen"`` (860 x 480 px, sans serif) or ``"paper"`` (6.5 in wide, 9 pt serif).

    Raises:
        ValueError: for any other name.
    """
    global _current
    _current = one_of(name, TEMPLATES, "name")


def current_template() -> go.layout.Template:
    """Return the template that ``use_template`` chose last; ``"screen"`` when it was never called."""
    return TEMPLATES[_current]

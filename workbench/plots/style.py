"""What every figure shares: the templates, one style a variant, escaped text, the axes of layers."""

from __future__ import annotations

import html
import textwrap
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import chain, cycle
from pathlib import Path
from typing import Any

import pandas as pd
import plotly.express as px
import plotly.graph_objects as go
from plotly.colors import sample_colorscale
from plotly.subplots import make_subplots

from workbench.checks import one_of, some_of
from workbench.distances.blocks import checked_blocks, parse_layers

#: sequential, even in lightness (so it survives a grey print), safe for the colour-blind; light = near =
# removable
SEQUENTIAL = "Viridis_r"
INK = "#1f2328"
DISTANCE = "angular distance"
DAMAGE_UNIT = "(nats per token)"
DAMAGE = f"damage {DAMAGE_UNIT}"
_LINE = {"orientation": "h", "x": 0, "title": {"text": ""}, "tracegroupgap": 0}


@dataclass(frozen=True)
class Style:
    """How one variant looks in every figure: the colour, and what tells it apart without colour.

    The fields are named as in ``plotly.express``.
    """

    color: str
    line_dash: str = "solid"
    symbol: str = "circle"


#: the content of ``look.toml``
LOOK = tomllib.loads(Path(__file__).with_name("look.toml").read_text(encoding="utf-8"))
_STYLES = [Style(**style) for style in LOOK["variants"]]
_SETS = [Style(**style) for style in LOOK["sets"]]


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
    return some_of(sorted({int(size) for size in sizes}), there, "sizes")


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
    y: str | None,
    styles: Mapping[str, Style] | None = None,
    by: str = "variant",
    /,
    **options: Any,
) -> go.Figure:
    """Draw a frame by ``plotly.express``: each name in its own style, with intervals, in the template.

    Args:
        kind: ``px.bar``, ``px.scatter`` (told apart by symbols, too) or ``px.line`` (dashes, and
            symbols with ``markers=True``).
        frame: its texts are ``escaped``.
        x: column.
        y: column.
        styles: name -> style, in the order wanted; None takes ``variant_styles``.
        by: the column of names.
        **options: of ``kind``; moreover ``hover``, what the pointer shows (else nothing), and for ``error_x``
            and ``error_y`` the two columns with the ends of each interval, where the frame has them.
    """
    hover = options.pop("hover", None)
    styles = styles or variant_styles(frame[by])
    marks = {"bar": [], "histogram": [], "scatter": ["symbol"], "line": ["line_dash"]}[kind.__name__]
    for mark in ("color", *marks, *(["symbol"] if options.get("markers") else [])):
        of_name = {name: getattr(style, mark) for name, style in styles.items()}
        options |= {mark: by, "color_discrete_map" if mark == "color" else f"{mark}_map": of_name}
    for axis, value in (("x", x), ("y", y)):
        ends = options.pop(f"error_{axis}", ())
        if ends and {*ends} <= {*frame}:
            low, high = (frame[end] for end in ends)
            options |= {f"error_{axis}": high - frame[value], f"error_{axis}_minus": frame[value] - low}
    if kind in (px.scatter, px.line):
        options["render_mode"] = "svg"  # many points would be drawn by WebGL, a picture inside a PDF
    options["category_orders"] = {by: [*styles], **options.get("category_orders", {})}
    title = options.pop("title", None)
    fig = kind(frame, x=x, y=y, template=current_template(), **{**_size(), **options})
    fig.update_layout(titled(title))
    if hover is None:
        return fig.update_traces(hovertemplate=None, hoverinfo="skip")
    return fig.update_traces(hovertemplate=f"{hover}<extra></extra>")


def bracketed(low: float, high: float, form: str = ".3f") -> str:
    """Return an interval as text behind its value, "" where there is none.

    >>> bracketed(0.1, 0.25), bracketed(float("nan"), float("nan"))
    (' [0.100, 0.250]', '')
    """
    return "" if pd.isna(low) or pd.isna(high) else f" [{low:{form}}, {high:{form}}]"


def new_figure(title: str | None, *traces: Any) -> go.Figure:
    """Return a figure of some traces in the current template."""
    return go.Figure(traces, {"template": current_template(), **titled(title), **_size()})


def new_panels(title: str | None, rows: int, columns: int, /, **options: Any) -> go.Figure:
    """Return an empty figure of several panels in the current template."""
    fig = make_subplots(rows, columns, **options)
    return fig.update_layout(template=current_template(), **titled(title), **_size())


def titled(title: str | None) -> dict[str, Any]:
    """Return the layout of a title: on the screen it is drawn, in print it is the name of the file alone."""
    return {"title": {"text": title if _current == "screen" else None}, "meta": {"title": title}}


def _size() -> dict[str, float]:
    """Return the height, which JupyterLab never takes from a template, and in print the width.

    On the screen a figure is as wide as its place; where it has none, in a file, as wide as its template.
    """
    sides = ("height",) if _current == "screen" else ("width", "height")
    return {side: current_template().layout[side] for side in sides}


def add_panel(fig: go.Figure, drawn: go.Figure, column: int, row: int = 1) -> None:
    """Add the traces of a figure to a panel of another one; a name stands in the legend once."""
    named = {trace.name for trace in fig.data if trace.showlegend}
    for trace in drawn.data:
        trace.showlegend = bool(trace.showlegend) and trace.name not in named
        fig.add_trace(trace, row=row, col=column)


def colour_bar(title: str, **place: Any) -> dict[str, Any]:
    """Return the colour bar of a heatmap, with its title along it."""
    look = {"thickness": px_of(14), "outlinewidth": 0, "ticks": "outside", "xpad": px_of(8)}
    return {"title": {"text": title, "side": "right"}, **look, **place}


def px_of(pixels: float) -> float:
    """Return a length that is so many pixels on the screen, in the current template."""
    return pixels * float(current_template().layout.font.size) / 14


def small() -> float:
    """Return the size of labels inside a figure; 7 pt in print."""
    return max(0.8 * float(current_template().layout.font.size), 9.34)


def narrow() -> bool:
    """Return whether figures are one column of a page wide: panels go below each other."""
    return bool(current_template().layout.width < 400)


def facet_titles(fig: go.Figure) -> go.Figure:
    """Title each panel of ``plotly.express`` by its name alone, without the name of the column."""
    size = current_template().layout.font.size
    fig.for_each_annotation(lambda note: note.update(text=note.text.partition("=")[2], font_size=size))
    return fig.update_layout(margin={"t": px_of(70 if fig.layout.title.text else 28)})


def legend_above(fig: go.Figure) -> go.Figure:
    """Put the legend in lines above the figure, which grows by all but the first."""
    layout, size = fig.layout, current_template().layout.font.size
    fig.update_layout(legend={**_LINE, "y": 1.02, "yanchor": "bottom"})
    more = 1.7 * size * max(0, _legend_lines(fig) - 1)
    fig.update_layout(height=layout.height + more)
    return fig.update_layout(margin={"t": px_of(92) + more if layout.title.text else px_of(20)})


def _legend_lines(fig: go.Figure) -> int:
    """Return how many lines a legend takes: names of one width each, those of a group below each other."""
    traces = [trace for trace in fig.data if trace.showlegend is not False]
    size = current_template().layout.font.size
    across = current_template().layout.width - px_of(90) - 0.5 * size * _longest_tick(fig)
    lengths = [len(trace.name or "") for trace in traces]
    if not all(trace.legendgroup for trace in traces):
        each = px_of(60) + 0.55 * size * max(lengths, default=0)
        return -(-len(lengths) // max(1, int(across // each)))
    groups: dict[str, list[int]] = {}
    for trace, length in zip(traces, lengths, strict=True):
        groups.setdefault(trace.legendgroup, []).append(length)
    rows, used = [1], 0.0  # the lines of each row of groups
    for group in groups.values():
        width = px_of(50) + 0.48 * size * max(group)
        if used and used + width > across:
            rows, used = [*rows, 1], 0.0
        rows[-1], used = max(rows[-1], len(group)), used + width
    return sum(rows)


def _longest_tick(fig: go.Figure) -> int:
    """Return the length of the longest name that stands before the first vertical axis."""
    ticks = fig.layout.yaxis.ticktext or ()
    names = [value for trace in fig.data for value in (trace.y if trace.y is not None else ())[:50]]
    return max((len(str(one)) for one in (*ticks, *names) if isinstance(one, str)), default=0)


def fitted(fig: go.Figure) -> go.Figure:
    """Break the titles of axes into lines no longer than their axes; the third makes the figure higher."""
    layout, letter = fig.layout, 0.52 * current_template().layout.font.size
    around = layout.margin.to_plotly_json()
    # beside a plot stand ticks and titles, whose room is not known before it is drawn
    whole = {"x": current_template().layout.width - px_of(140 if narrow() else 100)}
    whole["y"] = layout.height - around.get("t", px_of(40)) - around.get("b", px_of(56))
    if layout.legend.yanchor == "bottom" and layout.legend.yref != "container":  # it lies above
        whole["y"] -= 1.7 * current_template().layout.font.size * (_legend_lines(fig) - 1)
    most_lines = 2
    for axis in (*fig.select_xaxes(), *fig.select_yaxes()):
        first, last = axis.domain or (0, 1)
        most = max(12, int(whole[axis.plotly_name[0]] * (last - first) / letter))
        parts = (axis.title.text or "").split("<br>")
        lines = [line for part in parts for line in textwrap.wrap(part, most, break_on_hyphens=False)]
        axis.title.text = "<br>".join(lines) or None
        most_lines = max(most_lines, len(lines) if axis.plotly_name.startswith("x") else 0)
    return fig.update_layout(height=layout.height + 3 * letter * (most_lines - 2))


def legend_below(fig: go.Figure) -> go.Figure:
    """Put the legend in lines below the figure."""
    lines = _legend_lines(fig)
    fig.update_layout(legend={**_LINE, "y": 0, "yref": "container", "yanchor": "bottom"})
    return fig.update_layout(margin={"b": px_of(62 + 26 * lines)})


def best_marks(x: Any, y: Any, *, size: float, fill: str = "white") -> go.Scatter:
    """Return the marks on the least block of each size."""
    marker = {"symbol": "circle", "size": size, "color": fill, "line": {"color": INK, "width": 1.3}}
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


def set_styles(names: Iterable[Any]) -> dict[Any, Style]:
    """Return a style for each calibration set; none looks like a variant."""
    return dict(zip(dict.fromkeys(names), cycle(_SETS), strict=False))


def size_styles(sizes: Iterable[int]) -> dict[str, Style]:
    """Return a style for each block size, as text: sizes are ordered, so colours run from light to dark."""
    sizes = sorted({int(size) for size in sizes})
    at = [0.85 * (1 - place / max(len(sizes) - 1, 1)) for place in range(len(sizes))]
    colours = sample_colorscale("Viridis", at)
    triples = zip(sizes, colours, cycle(_STYLES), strict=False)
    return {str(size): replace(style, color=color, line_dash="solid") for size, color, style in triples}


#: *screen* for a notebook; *paper* for both columns of a page (6.75 in), *column* for one (3.25 in), 8 pt
TEMPLATES = {
    name: go.layout.Template(LOOK["template"]).update(LOOK[name]) for name in ("screen", "paper", "column")
}
_current = "screen"


def use_template(name: str) -> None:
    """Choose the template of every figure made from now on.

    Args:
        name: ``"screen"`` (as wide as its place; in a file 860 x 480 px), ``"paper"`` (both columns of a
            page, 6.75 in) or ``"column"`` (one, 3.25 in). In print text has 8 pt, labels inside a figure 7.

    Raises:
        ValueError: for any other name.
    """
    global _current
    _current = one_of(name, TEMPLATES, "name")


def current_template() -> go.layout.Template:
    """Return the template that ``use_template`` chose last; ``"screen"`` when it was never called."""
    return TEMPLATES[_current]


def current_name() -> str:
    """Return the name of the template that figures are made with."""
    return _current

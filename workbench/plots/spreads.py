"""Distributions of responses: half a violin, a dot a response, the mean with its interval."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import plotly.express as px
import plotly.graph_objects as go

from workbench.plots import style
from workbench.statistics import bootstrap_interval

#: columns of the real numbers of a mark -> what they are in the file of the data
_REAL = {"real": "x", "above": "error_x", "under": "error_x_minus"}


def spreads(
    frame: pd.DataFrame,
    value: str,
    title: str | None,
    number: str,
    *,
    unit: str = "",
    weigh: str | None = None,
    drawn_at: Callable[[Any], Any] = np.asarray,
    bounds: tuple[float, float] = (-np.inf, np.inf),
) -> go.Figure:
    """Return each variant's distribution: half a violin, a dot a response, the mean with its interval.

    Args:
        frame: one row a response.
        value: the column to draw.
        title: of the figure.
        number: format of the numbers that are written.
        unit: written after the number of a response.
        weigh: column of weights of the mean, if any.
        drawn_at: where a value lies on the axis.
        bounds: the least and the most that a value can be.
    """
    if frame.empty:
        raise ValueError(f"no row has a number in {value!r}")
    # a fixed jitter: the same frame gives the same picture
    jitter = 0.1 + 0.2 * np.random.default_rng(0).random(len(frame))
    place, label = pd.factorize(frame["variant"])[0], [f"{one:{number}}{unit}" for one in frame[value]]
    frame = frame.assign(at=drawn_at(frame[value].astype(float)), place=place, label=label)
    frame = style.escaped(frame.assign(below=frame["place"] + jitter), "variant")
    styles = style.variant_styles(frame["variant"])
    means = _means(frame, value, weigh, bounds)
    numbers = means[["mean", "low", "high"]].to_numpy()
    counts = zip(means["n"], *numbers.T, strict=True)
    about = [f"mean {mean:{number}}{_spread(n, low, high, number)}" for n, mean, low, high in counts]
    real, low, high = numbers.T
    means = means.assign(about=about, real=real, above=high - real, under=real - low)
    means[["mean", "low", "high"]] = drawn_at(numbers)
    shown = {"custom_data": ["label", value], "hover": "%{customdata[0]}"}
    dots = style.draw(px.scatter, frame, "at", "below", styles, **shown)
    dots.for_each_trace(lambda dot: dot.update(meta={"x": [one[1] for one in dot.customdata]}))
    opacity = float(np.clip(60 * len(styles) / len(frame), 0.15, 0.7))
    dots.update_traces(marker={"size": style.px_of(4), "opacity": opacity, "symbol": "circle"})
    shown = {"custom_data": ["about", *_REAL], "hover": "%{fullData.name}<br>%{customdata[0]}"}
    marks = style.draw(px.scatter, means, "mean", "place", styles, error_x=("low", "high"), **shown)
    line = {"color": style.INK, "width": style.px_of(1.8)}
    marks.update_traces(error_x={"thickness": style.px_of(2), "width": style.px_of(5), "color": style.INK})
    for mark in marks.data:
        columns = zip(*(one[1:] for one in mark.customdata), strict=True)
        mark.meta = dict(zip(_REAL.values(), map(list, columns), strict=True))
    marks.update_traces(marker={"symbol": "diamond", "size": style.px_of(10), "color": "white", "line": line})
    violins = [_half_violin(frame[frame["variant"] == name], one, value) for name, one in styles.items()]
    fig = style.new_figure(title, *violins, *dots.data, *marks.data)
    ticks = [f"{row.variant}<br>{row.about}<br>{row.n} responses" for row in means.itertuples()]
    span = [len(ticks) - 0.35, -0.75 if style.narrow() else -0.65]
    fig.update_yaxes(tickvals=means["place"], ticktext=ticks, range=span, showgrid=False)
    if style.narrow():  # the words stand above their rows
        fig.update_yaxes(showticklabels=False, ticks="")
        look = {"showarrow": False, "xref": "paper", "x": 0, "xanchor": "left", "font_size": style.small()}
        for row in means.itertuples():
            text = f"{row.variant}: {row.about.removeprefix('mean ')}, n={row.n}"
            lines = "<br>".join(textwrap.wrap(text, 60))
            fig.add_annotation(text=lines, y=row.place - 0.6, align="left", **look)
    return fig.update_layout(height=style.px_of(150 + 105 * len(styles)), showlegend=False)


def _spread(n: int, low: float, high: float, number: str) -> str:
    return style.bracketed(low, high, number) or (", all alike" if n > 1 else "")


def _means(frame: pd.DataFrame, value: str, weigh: str | None, bounds: tuple[float, float]) -> pd.DataFrame:
    """Return the mean of each variant with its interval and the number of its rows."""
    rows = []
    for names, part in frame.groupby(["variant", "place"], sort=False):
        weights = part[weigh] if weigh else None
        interval = bootstrap_interval(part[value], weights=weights, bounds=bounds)
        rows.append((*names, len(part), np.average(part[value], weights=weights), *interval))
    return pd.DataFrame(rows, columns=["variant", "place", "n", "mean", "low", "high"])


def _half_violin(rows: pd.DataFrame, own_style: style.Style, value: str) -> go.Violin:
    """Return half a violin above the line of a variant; its width is its own, not that of the others."""
    shape = {"orientation": "h", "side": "negative", "spanmode": "hard", "width": 0.9, "points": False}
    color = {"line": {"color": own_style.color, "width": 1.2}, "fillcolor": own_style.color, "opacity": 0.45}
    real = {"hoverinfo": "skip", "meta": {"x": rows[value].tolist()}}
    return go.Violin(x=rows["at"], y0=rows["place"].iloc[0], **real, **shape, **color)

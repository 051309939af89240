"""Figures of healing: the loss while it falls, in one place, and what a grid search found."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import plotly.express as px
import plotly.graph_objects as go

from workbench.checks import checked
from workbench.plots import style

_MARKS = {
    "least of the value": style.Style("#0072b2"),
    "a training": style.Style("#0072b2"),
    "best": style.Style("#d55e00", symbol="star"),
}
_OWN, _REFERENCE = "the model's own words", "the reference"
_USED = {_OWN: style.Style("#0072b2"), _REFERENCE: style.Style("#e69f00", pattern_shape="/")}


def tuning_figure(trials: pd.DataFrame, *, title: str | None = "Held-out loss over the grid") -> go.Figure:
    """Draw the held-out loss against each searched setting; a line joins the least loss of each value.

    Args:
        trials: of ``tune`` or ``read_trials``: ``trial``, ``state``, ``loss`` (nats a token), one column a
            setting.
        title: of the figure.

    Raises:
        ValueError: for missing columns, or no trial with a loss.
    """
    frame = checked(trials, ["trial", "state", "loss"], "trials")
    frame = frame[frame["loss"].notna()]
    checked(frame, ["loss"], "trials with a loss")
    after = list(frame.columns).index("state") + 1
    settings = list(frame.columns[after : list(frame.columns).index("loss")])
    if not settings:
        raise ValueError(f"trials must have a column a setting between state and loss, got {list(trials)}")
    parts = [frame[["trial", "loss"]].assign(setting=name, value=frame[name]) for name in settings]
    points = pd.concat([part.sort_values("value", kind="stable") for part in parts], ignore_index=True)
    best = points[points["trial"] == frame.loc[frame["loss"].idxmin(), "trial"]]
    least = points.groupby(["setting", "value"], as_index=False)["loss"].min()
    marks = dict(zip(_MARKS, (least, points, best), strict=True))
    parts = pd.concat(marks, names=["mark"]).reset_index("mark")
    parts = parts.assign(tick=parts["value"].map(_tick))
    panels = {"facet_col": "setting", "facet_col_spacing": 0.03, "category_orders": {"setting": settings}}
    shown = {"custom_data": "trial", "hover": "trial %{customdata[0]:.0f}: %{y:.4f}", "title": title}
    fig = style.draw(px.scatter, parts, "tick", "loss", _MARKS, "mark", **panels, **shown)
    fig.update_traces(selector={"name": "least of the value"}, mode="lines", hovertemplate="%{y:.4f}")
    fig.update_traces(selector={"name": "a training"}, marker={"size": 7, "opacity": 0.5})
    star = {"size": 14, "line": {"color": style.INK, "width": 1}}
    fig.update_traces(selector={"name": "best"}, marker=star, hoverinfo="skip")
    fig.update_xaxes(matches=None, type="category", tickangle=0, title="", showgrid=False)
    for axis, setting in zip(fig.select_xaxes(), settings, strict=True):
        ticks = [_tick(value) for value in frame[setting].sort_values().unique()]
        axis.update(title=style.plain(setting.replace("_", " ")), categoryarray=ticks)
    fig.update_yaxes(title="held-out loss (nats per token)", col=1)
    fig.layout.annotations = ()  # the axes say it
    return style.legend_above(fig)


def _tick(value: Any) -> str:
    """Return a setting as a tick: numbers short, texts as they stand, nothing as the word for it."""
    if isinstance(value, str) or pd.isna(value):
        return style.plain(value) if isinstance(value, str) else "None"
    return np.format_float_scientific(value, trim="-", exp_digits=1) if 0 < value < 1e-3 else f"{value:g}"


def kept_reasons(distilled: pd.DataFrame, *, title: str | None = None) -> go.Figure:
    """Draw how many rewrites were kept, and why the others fell back to the reference.

    Args:
        distilled: frame of ``self_distill``: ``kept`` (bool), ``reason``.
        title: of the figure; None writes the share kept.

    Raises:
        ValueError: for missing columns or an empty frame.
    """
    frame = checked(distilled, ["kept", "reason"], "distilled")
    counts = frame.groupby(["kept", "reason"], dropna=False).size().reset_index(name="n")
    counts = style.escaped(counts.sort_values(["kept", "n"]), "reason")
    kept = int(frame["kept"].sum())
    used = np.where(counts["kept"].astype(bool), _OWN, _REFERENCE)
    counts = counts.assign(used=used, label=[f"{n} ({n / len(frame):.1%})" for n in counts["n"]])
    title = title or f"{kept} of {len(frame)} rewrites kept ({kept / len(frame):.1%})"
    fig = style.draw(px.bar, counts, "n", "reason", _USED, "used", text="label", hover="%{y}: %{text}")
    fig.update_traces(textposition="outside", cliponaxis=False)
    fig.update_layout(title={"text": title}, height=170 + 34 * len(counts))
    fig.update_xaxes(title="examples", range=[0, 1.18 * counts["n"].max()])
    fig.update_yaxes(title="", showgrid=False, ticks="", type="category")
    return style.legend_above(fig.update_layout(legend_title_text=""))


def loss_curve(
    log: pd.DataFrame,
    *,
    value: str = "loss",
    smooth: int | None = None,
    title: str | None = "Healing: training loss",
) -> go.Figure:
    """Draw the loss against the training step, one line a variant, and marks where it was held out.

    Args:
        log: ``step``, the ``value`` column, and ``variant`` where several runs are compared (logs of
            ``heal``); where it has ``held_out_loss``, that is drawn with the loss, in the steps that have it.
        value: column to draw; rows without a number in it are left out.
        smooth: steps of a centred running mean drawn over the raw line; None means a twentieth of the steps,
            1 draws the raw line alone.
        title: of the figure.

    Raises:
        ValueError: for missing columns or no number to draw.
    """
    whole = frame = checked(log, ["step", value], "log")
    frame = frame[frame[value].notna()]
    checked(frame, ["step", value], f"log rows with a number in {value!r}")
    frame = style.escaped(frame.assign(variant=frame.get("variant", value)), "variant")
    styles = style.variant_styles(frame["variant"])
    rows = pd.concat([_smoothed(frame[frame["variant"] == name], value, smooth) for name in styles])
    fig = style.draw(px.line, rows, "step", "mean", styles, title=title)
    fig.update_traces(line_width=2.2, hoverinfo=None)
    raw = style.draw(px.line, rows[rows["smoothed"]], "step", value, styles)
    raw.update_traces(line={"width": 1, "dash": "solid"}, opacity=0.35, showlegend=False)
    held_out = _held_out_marks(whole, value, styles)
    fig = go.Figure([*raw.data, *fig.data, *held_out], fig.layout)
    fig.update_xaxes(title="optimizer step", rangemode="tozero")
    fig.update_yaxes(title=f"{style.plain(value)} (nats per token)", rangemode="tozero")
    return fig.update_layout(
        legend_title_text="", hovermode="x unified", showlegend=len(styles) > 1 or bool(held_out)
    )


def _held_out_marks(log: pd.DataFrame, value: str, styles: dict[str, style.Style]) -> list[go.Scatter]:
    """Return the held-out losses beside the training's, in the colours of its lines."""
    if value != "loss" or "held_out_loss" not in log or log["held_out_loss"].isna().all():
        return []
    rows = log[log["held_out_loss"].notna()].sort_values("step", kind="stable")
    rows = style.escaped(rows.assign(variant=rows.get("variant", value)), "variant")
    fig = style.draw(px.line, rows, "step", "held_out_loss", styles, markers=True, hover="%{y:.4f}")
    mark = {"size": 9, "symbol": "diamond", "line": {"width": 1, "color": "white"}}
    fig.update_traces(marker=mark, line={"width": 1.2, "dash": "dot"}, showlegend=True, hoverinfo=None)
    one = len(styles) == 1
    fig.for_each_trace(lambda trace: trace.update(name="held out" if one else f"{trace.name}, held out"))
    return list(fig.data)


def _smoothed(rows: pd.DataFrame, value: str, smooth: int | None) -> pd.DataFrame:
    """Return the rows with their centred running mean, and whether that differs from the rows themselves."""
    window = smooth if smooth is not None else len(rows) // 20
    rows = rows.sort_values("step")
    mean = rows[value].rolling(max(window, 1), center=True, min_periods=1).mean()
    return rows.assign(mean=mean, smoothed=window > 1)

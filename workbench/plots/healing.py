"""Figures of healing: the loss while it falls, in one place, and what a grid search found."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import plotly.express as px
import plotly.graph_objects as go

from workbench.checks import checked
from workbench.plots import axes, style

_OWN, _REFERENCE = "the model's own words", "the reference"
_USED = {_OWN: style.Style("#4a4f57"), _REFERENCE: style.Style("#b9bec5", symbol="square")}


def tuning_figure(trials: pd.DataFrame, *, title: str | None = "Held-out loss over the grid") -> go.Figure:
    """Draw the held-out loss of every training against each searched setting; the best one has a ring.

    Nothing joins them: values between were not tried, and other seeds would scatter.

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
    best = frame.loc[frame["loss"].idxmin(), "trial"]
    points = points.assign(tick=points["value"].map(_tick), name="one training")
    panels = {"facet_col": "setting", "facet_col_spacing": 0.08 if style.narrow() else 0.03}
    panels |= {"category_orders": {"setting": settings}}
    shown = {"custom_data": "trial", "hover": "trial %{customdata[0]:.0f}: %{y:.4f}", "title": title}
    look = {"one training": style.Style("#4a4f57")}
    fig = style.draw(px.scatter, points, "tick", "loss", look, "name", **panels, **shown)
    fig.update_traces(marker={"size": style.px_of(8), "opacity": 0.7})
    ring = {"size": style.px_of(16), "color": "#d55e00", "line": {"width": style.px_of(2)}}
    for number, setting in enumerate(settings, start=1):
        at = points[(points["setting"] == setting) & (points["trial"] == best)]
        own = {"name": f"best (trial {best})", "showlegend": number == 1, "hoverinfo": "skip"}
        shape = {"mode": "markers", "marker": {"symbol": "circle-open", **ring}, **own}
        fig.add_trace(go.Scatter(x=at["tick"], y=at["loss"], **shape), row=1, col=number)
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
    """Draw why rewrites were kept or fell back to the reference, and how long they are beside it.

    Args:
        distilled: frame of ``self_distill``: ``kept`` (bool), ``reason``; where it has ``rewrite`` and
            ``reference``, the lengths are drawn, too.
        title: of the figure; None writes the share kept.

    Raises:
        ValueError: for missing columns or an empty frame.
    """
    frame = checked(distilled, ["kept", "reason"], "distilled")
    frame = style.escaped(frame, "reason")
    used = np.where(frame["kept"].astype(bool), _OWN, _REFERENCE)
    frame = frame.assign(used=used)
    counts = frame.groupby(["used", "reason"], dropna=False).size().reset_index(name="n")
    counts = counts.sort_values(["used", "n"], ascending=[False, True])
    counts = counts.assign(label=[f"{n} ({n / len(frame):.1%})" for n in counts["n"]])
    kept = int(frame["kept"].sum())
    told = f"{kept} of {len(frame)} rewrites kept ({kept / len(frame):.1%})"
    lengths = {"rewrite", "reference"} <= set(frame)
    room = style.px_of(60 + 34 * len(counts)), style.px_of(230)
    panels = {"row_heights": room[: 1 + lengths], "vertical_spacing": 0.24}
    fig = style.new_panels(title or told, 1 + lengths, 1, **panels)
    bars = style.draw(px.bar, counts, "n", "reason", _USED, "used", text="label", hover="%{y}: %{text}")
    inside = {"textposition": "outside", "cliponaxis": False, "textfont_size": style.small()}
    style.add_panel(fig, bars.update_traces(**inside), 1)
    longest = (1.7 if style.narrow() else 1.25) * counts["n"].max()
    fig.update_xaxes(title="examples", range=[0, longest], row=1)
    fig.update_yaxes(title="", showgrid=False, ticks="", type="category", row=1)
    if lengths:
        _add_lengths(fig, frame)
    height = sum(room[: 1 + lengths]) + style.px_of(130 + 60 * lengths)
    return style.legend_above(fig.update_layout(height=height, barmode="stack"))


def _add_lengths(fig: go.Figure, frame: pd.DataFrame) -> None:
    """Draw how many times as long as its reference each rewrite is, in words, on a log scale."""
    sides = (frame[name].fillna("") for name in ("rewrite", "reference"))
    rewritten, given = (texts.str.split().str.len().clip(lower=1) for texts in sides)
    rows = frame.assign(ratio=np.log2(rewritten / given))
    bins = {"nbins": 40, "opacity": 1, "hover": "%{y} examples"}
    style.add_panel(fig, style.draw(px.histogram, rows, "ratio", None, _USED, "used", **bins), 1, 2)
    fig.add_vline(x=0, line={"color": "#8b9199", "width": 1.2, "dash": "dash"}, row=2, col=1)
    low, high = np.floor(rows["ratio"].min()), np.ceil(rows["ratio"].max())
    at = np.arange(min(low, 0), max(high, 1) + 1)
    at = at[at % (1 + len(at) // (7 if style.narrow() else 14)) == 0]
    texts = [f"×{2.0**one:g}" if one >= 0 else f"×1/{2.0**-one:g}" for one in at]
    fig.update_xaxes(title="length of the rewrite (words), reference: 1", row=2)
    fig.update_xaxes(tickvals=at, ticktext=texts, range=[min(low, 0) - 0.2, max(high, 1) + 0.2], row=2)
    fig.update_yaxes(title="examples", row=2)


def loss_curve(
    log: pd.DataFrame,
    *,
    value: str = "loss",
    smooth: int | None = None,
    title: str | None = "Healing: loss while it trains",
) -> go.Figure:
    """Draw the loss against the training step, one line a variant, and marks where it was held out.

    The scale is logarithmic where the loss falls to less than a twentieth: the end is what is compared.

    Args:
        log: ``step``, the ``value`` column, and ``variant`` where several runs are compared (logs of
            ``heal``); where it has ``held_out_loss``, that is drawn with the loss, in the steps that have it.
        value: column to draw; rows without a number in it are left out.
        smooth: over how many steps the thick line is smoothed (an exponential mean, which begins where the
            thin line of single steps does); None means a twentieth of the steps, 1 draws the raw line alone.
        title: of the figure.

    Raises:
        ValueError: for missing columns or no number to draw.
    """
    whole = frame = checked(log, ["step", value], "log")
    frame = frame[frame[value].notna()]
    checked(frame, ["step", value], f"log rows with a number in {value!r}")
    frame = style.escaped(frame.assign(variant=frame.get("variant", value)), "variant")
    styles = style.variant_styles(frame["variant"])
    window = smooth if smooth is not None else frame.groupby("variant")["step"].size().max() // 20
    rows = frame.sort_values("step", kind="stable")
    mean = rows.groupby("variant")[value].transform(lambda one: one.ewm(span=max(window, 1)).mean())
    rows = rows.assign(mean=mean)
    fig = style.draw(px.line, rows, "step", "mean", styles, title=title)
    fig.update_traces(line_width=style.px_of(2.2), hoverinfo=None)
    raw = style.draw(px.line, rows, "step", value, styles) if window > 1 else go.Figure()
    thin = {"line": {"width": style.px_of(1), "dash": "solid"}, "opacity": 0.35, "showlegend": False}
    held_out = _held_out_marks(whole, value, styles)
    fig = go.Figure([*raw.update_traces(**thin).data, *fig.data, *held_out], fig.layout)
    label, least = f"{style.plain(value)} (nats per token)", float(rows["mean"].min())
    if 0 < least < rows["mean"].max() / 20:
        drawn = pd.concat([rows["mean"], whole.get("held_out_loss", pd.Series(dtype=float)).dropna()])
        fig.update_yaxes(title=f"{label}, log", **axes.log_axis(drawn, 0.8 * float(drawn[drawn > 0].min())))
    else:
        fig.update_yaxes(title=label, rangemode="tozero")
    about = f" (thin: each; thick: mean over about {window})" if window > 1 else ""
    few = {"dtick": 1} if rows["step"].max() < 8 else {}  # no half steps
    fig.update_xaxes(title=f"optimizer step{about}", rangemode="tozero", **few)
    fig.update_layout(hovermode="x unified", showlegend=len(styles) > 1 or bool(held_out))
    return style.legend_above(fig)


def _held_out_marks(log: pd.DataFrame, value: str, styles: dict[str, style.Style]) -> list[go.Scatter]:
    """Return the held-out losses beside the training's, in the colours of its lines."""
    if value != "loss" or "held_out_loss" not in log or log["held_out_loss"].isna().all():
        return []
    rows = log[log["held_out_loss"].notna()].sort_values("step", kind="stable")
    rows = style.escaped(rows.assign(variant=rows.get("variant", value)), "variant")
    fig = style.draw(px.line, rows, "step", "held_out_loss", styles, markers=True, hover="%{y:.4f}")
    mark = {"size": style.px_of(9), "symbol": "diamond-open", "line_width": style.px_of(1.6)}  # hides none
    line = {"width": style.px_of(1.4), "dash": "dot"}
    fig.update_traces(marker=mark, line=line, showlegend=True, hoverinfo=None)
    one = len(styles) == 1
    fig.for_each_trace(lambda trace: trace.update(name="held out" if one else f"{trace.name}, held out"))
    return list(fig.data)

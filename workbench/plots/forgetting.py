"""Figures of how far responses moved: pairs, a map, form and length, divergence, loss against similarity."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from workbench.checks import checked
from workbench.forgetting.changes import BARE, FORMS, NO_ANSWER, change_summary, shift_agreement
from workbench.plots.style import INK, Style, current_template, new_figure, plain, variant_styles
from workbench.statistics import bootstrap_interval

#: nats per token; divergences span decades, and those below this are drawn at it
KL_FLOOR = 1e-4
# from the most to the least explicit, light to dark, so that they are told apart in grey
_FORM_COLORS = ("#56b4e9", "#0072b2", "#009e73", "#e69f00", "#5c6370")
_ABOVE = {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"}
_BELOW = {"orientation": "h", "x": 0, "y": 0, "yref": "container", "traceorder": "normal"}
_FORM_PATTERNS = ("", "\\", ".", "/", "x")


def similarity_pairs(
    similarities: pd.DataFrame, *, title: str | None = "The same prompts, ordered by the farthest variant"
) -> go.Figure:
    """Draw every prompt's similarities above each other, prompts ordered by the variant that moved farthest.

    One line joins the variants' responses to one prompt: it shows whether a variant is closer to the base on
    every prompt, or on the average only.

    Args:
        similarities: frame of ``response_similarity`` for several variants: ``variant``, ``id``,
            ``similarity``.
        title: of the figure.

    Raises:
        ValueError: for missing columns, an empty frame, or variants that answered different prompts.
    """
    frame = checked(similarities, ["variant", "id", "similarity"], "similarities")
    table = frame.pivot(index="id", columns="variant", values="similarity")
    table = table[[*dict.fromkeys(frame["variant"])]]
    if table.isna().any(axis=None):
        raise ValueError("similarities must hold every id for every variant, so that prompts can be compared")
    order = table.mean().idxmin()
    table = table.sort_values([order, *(name for name in table if name != order)], kind="stable")
    place = np.arange(1, len(table) + 1)
    gaps = np.stack([table.min(axis=1), table.max(axis=1), np.full(len(table), np.nan)], axis=1)
    fig = new_figure(title, hovermode="closest")
    fig.add_trace(
        go.Scatter(
            x=np.repeat(place, 3),
            y=gaps.ravel(),
            mode="lines",
            line={"color": "#c9cdd2", "width": 1},
            hoverinfo="skip",
            showlegend=False,
        )
    )
    for name, style in variant_styles(table.columns).items():
        fig.add_trace(
            go.Scatter(
                x=place,
                y=table[name],
                mode="markers",
                name=plain(name),
                # open: where variants agree, all of them are seen
                marker={
                    "symbol": f"{style.symbol}-open",
                    "color": style.color,
                    "size": 7,
                    "line": {"width": 1.4},
                },
                customdata=[plain(id_) for id_ in table.index],
                hovertemplate=f"{plain(name)}<br>%{{customdata}}<br>similarity %{{y:.3f}}<extra></extra>",
            )
        )
    fig.update_xaxes(title=f"prompt, ordered by the similarity of {plain(order)}", showgrid=False)
    lowest = min(0.0, float(table.min(axis=None)))
    fig.update_yaxes(title="similarity to the unpruned model's response", range=[lowest - 0.02, 1.03])
    return fig.update_layout(legend=_ABOVE, margin_t=92)


def answer_forms(
    changes: pd.DataFrame,
    *,
    title: str | None = "How the responses state their answer, and how long they are",
) -> go.Figure:
    """Draw the share of each form of answer, and the length of the responses relative to the base's.

    Args:
        changes: frame of ``response_changes``, the base's own rows included.
        title: of the figure.

    Raises:
        ValueError: for missing columns or an empty frame.
    """
    frame = checked(changes, ["variant", "form", "length", "base_length"], "changes")
    summary = change_summary(frame).set_index("variant")
    names = [*summary.index]
    shares = frame.groupby("variant", sort=False)["form"].value_counts(normalize=True).unstack(fill_value=0)
    fig = make_subplots(
        1,
        2,
        column_widths=[0.62, 0.38],
        shared_yaxes=True,
        horizontal_spacing=0.05,
        subplot_titles=["form of the answer", "length against the base's"],
    )
    height = 190 + 42 * len(names)
    fig.update_layout(template=current_template(), title=title, height=height, barmode="stack", bargap=0.35)
    labels = [plain(name) for name in names]
    for form, color, pattern in zip((*FORMS, BARE, NO_ANSWER), _FORM_COLORS, _FORM_PATTERNS, strict=True):
        if form in shares:
            fig.add_trace(_form_bar(form, shares.loc[names, form], labels, color, pattern), row=1, col=1)
    for label, (name, style) in zip(labels, variant_styles(names).items(), strict=True):
        fig.add_trace(_ratio_mark(label, summary.loc[name], style), row=1, col=2)
    fig.add_vline(x=1, line={"color": "#8b9199", "width": 1.2, "dash": "dash"}, row=1, col=2)
    fig.update_xaxes(title="share of responses", range=[0, 1], tickformat=".0%", row=1, col=1)
    longest = float(np.nanmax([summary["ci_high"].max(), summary["length_ratio"].max(), 1.0]))
    fig.update_xaxes(title="times as long", range=[0, 1.12 * longest], row=1, col=2)
    fig.update_yaxes(autorange="reversed", showgrid=False, ticks="")
    return fig.update_layout(legend=_BELOW, margin_b=110)


def divergence_distribution(
    by_response: pd.DataFrame,
    *,
    title: str | None = "Next-token divergence from the base, on the base's own responses",
) -> go.Figure:
    """Draw each variant's divergence, a dot a response, with the mean and its interval, on a log scale.

    Args:
        by_response: frame of ``divergence_by_response``: ``variant``, ``kl`` (nats per token), ``n_tokens``.
            The mean is over tokens; its interval resamples responses.
        title: of the figure.

    Raises:
        ValueError: for missing columns or an empty frame.
    """
    frame = checked(by_response, ["variant", "kl", "n_tokens"], "by_response")
    styles = variant_styles(frame["variant"])
    fig = new_figure(title, height=150 + 105 * len(styles), showlegend=False)
    ticks = []
    for place, (name, style) in enumerate(styles.items()):
        rows = frame[frame["variant"] == name]
        hover = [f"{kl:.3g} nats per token" for kl in rows["kl"]]
        fig.add_traces(spread_marks(_decades(rows["kl"]), place, style, hover=hover))
        mean = float(np.average(rows["kl"], weights=rows["n_tokens"]))
        low, high = bootstrap_interval(rows["kl"], weights=rows["n_tokens"])
        fig.add_trace(_mean_on_decades(mean, low, high, place, plain(name)))
        ticks.append(f"{plain(name)}<br>mean {mean:.3g} [{low:.3g}, {high:.3g}]<br>{len(rows)} responses")
    fig.update_yaxes(
        tickvals=list(range(len(ticks))), ticktext=ticks, range=[len(ticks) - 0.35, -0.65], showgrid=False
    )
    highest = max(1.0, float(np.ceil(_decades(frame["kl"]).max())))
    decades = np.arange(np.log10(KL_FLOOR), highest + 1)
    labels = [f"≤ {KL_FLOOR:g}" if i == 0 else f"{10.0**d:g}" for i, d in enumerate(decades)]
    span = [decades[0] - 0.15, highest + 0.1]
    return fig.update_xaxes(
        title="mean KL(base || variant), nats per token", tickvals=decades, ticktext=labels, range=span
    )


def similarity_map(
    points: pd.DataFrame, *, base: str = "base", title: str | None = "Where the responses lie"
) -> go.Figure:
    """Draw the base's and each variant's responses in the plane of their embeddings, the same prompt joined.

    One panel a variant on the same axes; the base's responses are in every panel.

    Args:
        points: frame of ``embedding_map``: ``variant, id, x, y, x_share, y_share``.
        base: the variant that the others are joined to.
        title: of the figure.

    Raises:
        ValueError: for missing columns, an empty frame, no such base or no other variant.
    """
    frame = checked(points, ["variant", "id", "x", "y", "x_share", "y_share"], "points")
    names = [name for name in dict.fromkeys(frame["variant"]) if name != base]
    if len(names) == frame["variant"].nunique() or not names:
        there = [*dict.fromkeys(frame["variant"])]
        raise ValueError(f"points must hold base {base!r} and another variant, got {there}")
    fig = make_subplots(
        1,
        len(names),
        shared_xaxes="all",
        shared_yaxes="all",
        horizontal_spacing=0.03,
        subplot_titles=[*map(plain, names)],
    )
    fig.update_layout(template=current_template(), title=title, margin={"t": 80, "b": 105})
    own = frame[frame["variant"] == base].set_index("id")
    styles = variant_styles([base, *names])
    for column, name in enumerate(names, start=1):
        other = frame[frame["variant"] == name].set_index("id").loc[own.index]
        for trace in _linked(own, other, base, name, styles):
            fig.add_trace(trace.update(showlegend=trace.name is not None and column == 1), row=1, col=column)
    x_share, y_share = frame[["x_share", "y_share"]].iloc[0]
    middle = (len(names) + 1) // 2
    fig.update_xaxes(title=f"first direction ({x_share:.0%} of the variance)", row=1, col=middle)
    fig.update_yaxes(title=f"second direction ({y_share:.0%})", row=1, col=1)
    return fig.update_layout(legend=_BELOW)


def loss_similarity(
    losses: pd.DataFrame, *, title: str | None = "Is a shift of the answers a sign of lost accuracy?"
) -> go.Figure:
    """Draw the accuracy lost on each task against the similarity of the answers, with both intervals.

    Args:
        losses: frame of ``loss_against_similarity``.
        title: of the figure; Spearman's correlation over the points is written under it.

    Raises:
        ValueError: for missing columns or an empty frame.
    """
    sides = ["lost", "lost_low", "lost_high", "similarity", "similarity_low", "similarity_high"]
    frame = checked(losses, ["variant", "task", *sides], "losses")
    agreement = shift_agreement(frame)
    rho, low, high = (agreement[name] for name in ("spearman", "ci_low", "ci_high"))
    note = (
        f"Spearman of shift and loss {rho:.2f} [{low:.2f}, {high:.2f}]"
        if np.isfinite(rho)
        else "too few points to correlate"
    )
    fig = new_figure(title)
    for name, style in variant_styles(frame["variant"]).items():
        fig.add_trace(_loss_points(frame[frame["variant"] == name], plain(name), style))
    fig.add_hline(y=0, line={"color": "#8b9199", "width": 1.2, "dash": "dash"})
    lowest = min(0.0, float(frame["similarity_low"].min()))
    fig.update_xaxes(title="mean similarity of the task's answers to the base's", range=[lowest - 0.02, 1.04])
    fig.update_yaxes(title="accuracy lost", tickformat="+.0%", range=_lost_range(frame))
    fig.add_annotation(
        text=f"{note} over {agreement['n']} points",
        xref="paper",
        yref="paper",
        x=1,
        y=1,
        xanchor="right",
        yanchor="top",
        showarrow=False,
        bgcolor="rgba(255,255,255,0.85)",
    )
    return fig.update_layout(legend=_ABOVE, margin_t=92)


def _form_bar(form: str, shares: pd.Series, labels: list[str], color: str, pattern: str) -> go.Bar:
    return go.Bar(
        x=shares,
        y=labels,
        orientation="h",
        name=plain(form),
        marker={
            "color": color,
            "line": {"color": "white", "width": 1},
            "pattern": {"shape": pattern, "fillmode": "overlay", "size": 7},
        },
        hovertemplate=f"%{{y}}: %{{x:.1%}} {plain(form)}<extra></extra>",
    )


def _ratio_mark(label: str, row: pd.Series, style: Style) -> go.Scatter:
    ratio, low, high = row["length_ratio"], row["ci_low"], row["ci_high"]
    spread = {"type": "data", "symmetric": False, "color": INK, "width": 4}
    return go.Scatter(
        x=[ratio],
        y=[label],
        mode="markers+text",
        text=["" if np.isnan(ratio) else f"{ratio:.2f}"],
        textposition="top center",
        showlegend=False,
        error_x=spread | {"array": [high - ratio], "arrayminus": [ratio - low]},
        marker={"symbol": style.symbol, "color": style.color, "size": 9},
        hovertemplate=f"{label}: %{{x:.3f}} [{low:.3f}, {high:.3f}]<extra></extra>",
    )


def _decades(values: Any) -> np.ndarray:
    return np.log10(np.maximum(np.asarray(values, dtype=float), KL_FLOOR))


def _mean_on_decades(mean: float, low: float, high: float, place: int, name: str) -> go.Scatter:
    at, left, right = _decades([mean, low, high])
    mark = mean_mark(at, left, right, place, name)
    return mark.update(hovertemplate=f"{name}<br>mean {mean:.3g} [{low:.3g}, {high:.3g}]<extra></extra>")


def _linked(
    own: pd.DataFrame, other: pd.DataFrame, base: str, name: str, styles: dict[Any, Style]
) -> list[go.Scatter]:
    """Return the links of one panel, then the base's points, then the variant's."""
    gap = np.full(len(own), np.nan)
    xs, ys = (np.stack([own[axis], other[axis], gap], axis=1).ravel() for axis in ("x", "y"))
    line = {"color": "#c9cdd2", "width": 0.9}
    traces = [go.Scatter(x=xs, y=ys, mode="lines", line=line, hoverinfo="skip", showlegend=False)]
    for label, rows in ((base, own), (name, other)):
        style = styles[label]
        traces.append(
            go.Scatter(
                x=rows["x"],
                y=rows["y"],
                mode="markers",
                name=plain(base) if label == base else None,
                marker={
                    "symbol": style.symbol if label != base else "circle-open",
                    "color": style.color,
                    "size": 5,
                    "opacity": 0.8,
                },
                customdata=[plain(id_) for id_ in rows.index],
                hovertemplate=f"{plain(label)}<br>%{{customdata}}<extra></extra>",
            )
        )
    return traces


def _loss_points(rows: pd.DataFrame, name: str, style: Style) -> go.Scatter:
    thin = {"type": "data", "symmetric": False, "color": style.color, "thickness": 0.9, "width": 0}
    spread = {
        axis: thin | {"array": rows[f"{key}_high"] - rows[key], "arrayminus": rows[key] - rows[f"{key}_low"]}
        for axis, key in (("error_x", "similarity"), ("error_y", "lost"))
    }
    return go.Scatter(
        x=rows["similarity"],
        y=rows["lost"],
        mode="markers+text",
        name=name,
        # the tasks that lost much are named; the others crowd at the right end
        text=[
            plain(task) if lost >= 0.1 else "" for task, lost in zip(rows["task"], rows["lost"], strict=True)
        ],
        textposition=["top left" if x > 0.5 else "top right" for x in rows["similarity"]],
        textfont={"size": 11},
        cliponaxis=False,
        marker={"symbol": style.symbol, "color": style.color, "size": 9},
        customdata=[plain(task) for task in rows["task"]],
        hovertemplate=f"{name}<br>%{{customdata}}<br>similarity %{{x:.3f}}, lost %{{y:+.3f}}<extra></extra>",
        **spread,
    )


def _lost_range(frame: pd.DataFrame) -> list[float]:
    low, high = min(0.0, float(frame["lost_low"].min())), max(0.2, float(frame["lost_high"].max()))
    room = 0.08 * (high - low)
    return [low - room, high + room]


def similarity_distribution(
    similarities: pd.DataFrame, *, title: str | None = "How close the responses stay to the unpruned model's"
) -> go.Figure:
    """Draw each variant's whole distribution of similarities, with the mean and its interval.

    Every response is a dot: a mean alone hides whether all responses moved a little or a few moved far.

    Args:
        similarities: frames of ``response_similarity`` under each other: ``variant``, ``similarity``
            (cosine, 1 = same direction); one row a response.
        title: of the figure.

    Raises:
        ValueError: for missing columns or an empty frame.
    """
    frame = checked(similarities, ["variant", "similarity"], "similarities")
    frame = frame[frame["similarity"].notna()]
    styles = variant_styles(frame["variant"])
    fig = new_figure(title, height=150 + 105 * len(styles), showlegend=False)
    ticks = []
    for place, (name, style) in enumerate(styles.items()):
        values = frame.loc[frame["variant"] == name, "similarity"].to_numpy(dtype=float)
        mean, (low, high) = float(values.mean()), bootstrap_interval(values)
        fig.add_traces(spread_marks(values, place, style))
        fig.add_trace(mean_mark(mean, low, high, place, plain(name)))
        ticks.append(f"{plain(name)}<br>mean {mean:.3f} [{low:.3f}, {high:.3f}]<br>{len(values)} responses")
    fig.update_yaxes(
        tickvals=list(range(len(ticks))), ticktext=ticks, range=[len(ticks) - 0.35, -0.65], showgrid=False
    )
    lowest = min(0.0, float(frame["similarity"].min()))
    return fig.update_xaxes(
        title="cosine similarity to the unpruned model's response", range=[lowest - 0.03, 1.04]
    )


def spread_marks(
    values: np.ndarray, place: int, style: Style, *, hover: list[str] | None = None
) -> list[Any]:
    """Return half a violin above the line of a variant and its responses as dots below."""
    shape = go.Violin(
        x=values,
        y0=place,
        orientation="h",
        side="negative",
        spanmode="hard",
        width=0.9,
        points=False,
        line={"color": style.color, "width": 1.2},
        fillcolor=style.color,
        opacity=0.45,
        hoverinfo="skip",
    )
    # a fixed jitter: the same frame gives the same picture
    below = place + 0.1 + 0.2 * np.random.default_rng(0).random(len(values))
    dots = go.Scatter(
        x=values,
        y=below,
        mode="markers",
        marker={"color": style.color, "size": 4, "opacity": float(np.clip(60 / len(values), 0.15, 0.7))},
        text=hover,
        hovertemplate="%{text}<extra></extra>" if hover else "%{x:.3f}<extra></extra>",
    )
    return [shape, dots]


def mean_mark(mean: float, low: float, high: float, place: int, name: str) -> go.Scatter:
    """Return a mean with its interval on the line of a variant."""
    return go.Scatter(
        x=[mean],
        y=[place],
        mode="markers",
        error_x={
            "type": "data",
            "symmetric": False,
            "array": [high - mean],
            "arrayminus": [mean - low],
            "width": 5,
            "color": INK,
        },
        marker={"symbol": "diamond", "size": 10, "color": "white", "line": {"color": INK, "width": 1.8}},
        hovertemplate=f"{name}<br>mean {mean:.3f} [{low:.3f}, {high:.3f}]<extra></extra>",
    )

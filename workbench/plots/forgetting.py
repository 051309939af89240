"""Figures of how far responses moved: pairs, a map, form and length, divergence, loss against similarity."""

from __future__ import annotations

import textwrap
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import plotly.express as px
import plotly.graph_objects as go

from workbench.checks import checked
from workbench.evaluation.scores import task_names
from workbench.forgetting.changes import BARE, FORMS, NO_ANSWER, change_summary
from workbench.forgetting.shift import shift_agreement
from workbench.forgetting.similarity import seen, unseen
from workbench.plots import style
from workbench.plots.spreads import spreads
from workbench.tables.markup import task_label

#: nats per token; divergences span decades, and those below this are drawn at it
KL_FLOOR = 1e-4
_FORMS = dict(zip((*FORMS, BARE, NO_ANSWER), style.LOOK["forms"], strict=True))
_REFERENCE = {"color": "#8b9199", "width": 1.2, "dash": "dash"}


def similarity_distribution(
    similarities: pd.DataFrame, *, title: str | None = "How close the responses stay to the unpruned model's"
) -> go.Figure:
    """Draw each variant's whole distribution of similarities, with the mean and its interval.

    Every response is a dot: a mean alone hides whether all responses moved a little or a few moved far.

    Args:
        similarities: frames of ``response_similarity`` under each other: ``variant``, ``similarity``
            (cosine, 1 = same direction); one row a response. Those that the encoder cannot read (``unseen``)
            are left out, as in ``similarity_summary``.
        title: of the figure.

    Raises:
        ValueError: for missing columns or an empty frame.
    """
    frame = checked(similarities, ["variant", "similarity"], "similarities")
    frame = seen(frame[frame["similarity"].notna()])
    fig = spreads(frame, "similarity", title, ".3f", bounds=(-1, 1))
    lowest = min(0.0, float(frame["similarity"].min()))
    fig.update_xaxes(range=[lowest - 0.03, 1.04])
    return fig.update_xaxes(title="cosine similarity to the base's response")


def similarity_pairs(
    similarities: pd.DataFrame, *, title: str | None = "The same prompts, ordered by the farthest variant"
) -> go.Figure:
    """Draw every prompt's similarities as a column of cells, a row a variant; prompts from far to near.

    It shows whether a variant is closer to the base on every prompt, or on the average only. Prompts are
    ordered by the variant that moved farthest on average, those that it answers alike by the others.

    Args:
        similarities: frame of ``response_similarity`` for several variants: ``variant``, ``id``,
            ``similarity``. Prompts of which the encoder cannot read a response are left out.
        title: of the figure.

    Raises:
        ValueError: for missing columns, an empty frame, or variants that answered different prompts.
    """
    frame = checked(similarities, ["variant", "id", "similarity"], "similarities")
    frame = frame[~frame["id"].isin(frame.loc[unseen(frame), "id"])]  # nothing to compare
    table = checked(frame, [], "similarities that the encoder can read").pivot(
        index="id", columns="variant", values="similarity"
    )
    table = table[[*dict.fromkeys(frame["variant"])]]
    if table.isna().any(axis=None):
        raise ValueError("similarities must hold every id for every variant, so that prompts can be compared")
    order = table.mean().idxmin()
    table = table.sort_values([order, *(name for name in table if name != order)], kind="stable")
    place, names = np.arange(1, len(table) + 1), [*map(style.plain, table)]
    cells = go.Heatmap(
        x=place,
        y=np.arange(len(names)),
        z=table.to_numpy().T,
        text=[[style.plain(one) for one in table.index]] * len(names),
        hovertemplate="%{text}<br>similarity %{z:.3f}<extra></extra>",
        colorscale="Viridis",  # light = near, as in the other heatmaps
        zmin=min(0.0, float(table.min().min())),
        zmax=1.0,
        colorbar=style.colour_bar("similarity to the<br>unpruned model's response"),
    )
    fig = style.new_figure(title, cells)
    by = f"prompt, from the least to the most similar by {style.plain(order)}"
    fig.update_xaxes(title="<br>".join(textwrap.wrap(by, 40 if style.narrow() else 90)), showgrid=False)
    span = [len(names) - 0.5, -0.5]
    fig.update_yaxes(tickvals=[*range(len(names))], ticktext=names, range=span, showgrid=False, ticks="")
    return fig.update_layout(height=style.px_of(170 + 52 * len(names)))


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
    frame = style.escaped(frame, "variant")
    summary = change_summary(frame)
    names = list(summary["variant"])
    shares = pd.crosstab(frame["variant"], frame["form"], normalize="index").loc[names]
    wide = {"column_widths": [0.62, 0.38], "shared_yaxes": True}
    fig = style.new_panels(title, 1, 2, horizontal_spacing=0.06 * (1 + style.narrow()), **wide)
    style.add_panel(fig, _form_bars(shares), 1)
    style.add_panel(fig, _ratio_marks(summary), 2)
    fig.add_vline(x=1, line=_REFERENCE, layer="below", row=1, col=2)
    few = {"tickangle": 0, "nticks": 3 if style.narrow() else 6}
    fig.update_xaxes(title="share of responses", range=[0, 1], tickformat=".0%", **few, col=1)
    longest = float(np.nanmax([summary["ci_high"].max(), summary["length_ratio"].max(), 1.0]))
    # room for the numbers behind the marks
    fig.update_xaxes(title="length (base: 1)", range=[0, 1.5 * longest], **few, col=2)
    fig.update_yaxes(autorange="reversed", showgrid=False, ticks="")
    sizes = {"minsize": style.small(), "mode": "hide"}  # a number that does not fit at 7 pt is left out
    fig.update_layout(height=style.px_of(190 + 38 * len(names)), barmode="stack", bargap=0.35)
    fig.update_layout(uniformtext=sizes)
    return style.legend_above(fig).update_layout(legend_traceorder="normal")


def divergence_distribution(
    by_response: pd.DataFrame,
    *,
    title: str | None = "Next-token divergence on the base's own responses",
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
    shown: Any = {"unit": " nats per token", "weigh": "n_tokens", "drawn_at": _decades, "bounds": (0, np.inf)}
    fig = spreads(frame, "kl", title, ".3g", **shown)
    drawn = _decades(frame["kl"])
    lowest, highest = np.floor(drawn.min()), max(np.floor(drawn.min()) + 1, np.ceil(drawn.max()))
    decades = np.arange(lowest, highest + 1)
    labels = [f"{'≤ ' if 10**decade <= KL_FLOOR else ''}{10.0**decade:g}" for decade in decades]
    fig.update_xaxes(tickvals=decades, ticktext=labels, range=[lowest - 0.15, highest + 0.1])
    return fig.update_xaxes(title="mean KL(base || variant), nats per token")


def similarity_map(
    points: pd.DataFrame, *, base: str = "base", title: str | None = "Where the responses lie"
) -> go.Figure:
    """Draw the base's and each variant's responses in the plane of their embeddings.

    One panel a variant on the same axes; the base's responses are in every panel, and an arrow leads from
    their mean to the variant's.

    Args:
        points: frame of ``embedding_map``: ``variant, id, x, y, x_share, y_share``.
        base: the variant that the others are compared with.
        title: of the figure.

    Raises:
        ValueError: for missing columns, an empty frame, no such base or no other variant.
    """
    frame = checked(points, ["variant", "id", "x", "y", "x_share", "y_share"], "points")
    there = list(frame["variant"].unique())
    names = [name for name in there if name != base]
    if len(names) == len(there) or not names:
        raise ValueError(f"points must hold base {base!r} and another variant, got {there}")
    across = 2 if style.narrow() else len(names)
    down = -(-len(names) // across)
    shared = {"shared_xaxes": "all", "shared_yaxes": "all", "subplot_titles": [*map(style.plain, names)]}
    fig = style.new_panels(title, down, across, horizontal_spacing=0.04, vertical_spacing=0.14, **shared)
    styles = style.variant_styles(map(style.plain, [base, *names]))
    styles[style.plain(base)] = replace(styles[style.plain(base)], symbol="circle-open")
    own = frame[frame["variant"] == base].set_index("id")
    for number, name in enumerate(names):
        other = frame[frame["variant"] == name].set_index("id").loc[own.index]
        rows = style.escaped(pd.concat([own, other]).reset_index(), "variant", "id")
        shown = {"custom_data": "id", "hover": "%{fullData.name}<br>%{customdata[0]}"}
        points = style.draw(px.scatter, rows, "x", "y", styles, **shown)
        points.update_traces(marker={"size": style.px_of(6), "opacity": 0.7})
        row, column = divmod(number, across)
        style.add_panel(fig, points, column + 1, row + 1)
        ends = {"x": other["x"].mean(), "y": other["y"].mean(), "ax": own["x"].mean(), "ay": own["y"].mean()}
        axes = {"axref": f"x{number + 1}".replace("x1", "x"), "ayref": f"y{number + 1}".replace("y1", "y")}
        arrow = {"text": "", "showarrow": True, "arrowwidth": style.px_of(2), "arrowcolor": style.INK}
        if np.hypot(ends["x"] - ends["ax"], ends["y"] - ends["ay"]) > 0.02 * np.ptp(frame["x"]):
            fig.add_annotation(**ends, **axes, **arrow, row=row + 1, col=column + 1)
    fig.update_annotations(font_size=style.current_template().layout.font.size)
    x_share, y_share = frame[["x_share", "y_share"]].iloc[0]
    for column in range(across):  # its lowest panel
        row = -(-(len(names) - column) // across)
        title = f"first direction ({x_share:.0%})"
        fig.update_xaxes(title=title, nticks=5, showticklabels=True, row=row, col=column + 1)
    fig.update_yaxes(title=f"second direction ({y_share:.0%})", nticks=6, col=1)
    fig.update_layout(height=style.px_of(130 + 290 * down))
    room = {"margin_t": style.legend_above(fig).layout.margin.t + style.px_of(24)}
    return fig.update_layout(legend_y=1 + style.px_of(30) / fig.layout.height, **room)


def loss_similarity(
    losses: pd.DataFrame, *, title: str | None = "Is a shift of the answers a sign of lost accuracy?"
) -> go.Figure:
    """Draw the accuracy lost on each task against the similarity of the answers, with both intervals.

    Args:
        losses: frame of ``loss_against_similarity``.
        title: of the figure. Spearman's correlation, with how many points and tasks it is over, is written in
            the figure where there are ten tasks: points of one task are one unit of its bootstrap.

    Raises:
        ValueError: for missing columns or an empty frame.
    """
    sides = ["lost", "lost_low", "lost_high", "similarity", "similarity_low", "similarity_high"]
    frame = checked(losses, ["variant", "task", *sides], "losses")
    correlation = _correlation(frame)
    frame = style.escaped(frame.assign(task=task_names(frame).map(task_label)), "variant", "task")
    ends = {"error_x": ("similarity_low", "similarity_high"), "error_y": ("lost_low", "lost_high")}
    hover = "%{fullData.name}<br>%{customdata[0]}<br>similarity %{x:.3f}, lost %{y:+.3f}"
    shown = {"custom_data": "task", "hover": hover, "title": title}
    fig = style.draw(px.scatter, frame, "similarity", "lost", **ends, **shown)
    fig.update_traces(marker_size=style.px_of(9), cliponaxis=False)
    for trace in fig.data:
        trace.update({f"error_{one}": {"color": trace.marker.color, "thickness": 1} for one in "xy"})
    fig.add_hline(y=0, line=_REFERENCE, layer="below")
    lowest = min(0.0, float(frame["similarity_low"].min()))
    about = f"mean similarity of the task's answers to the base's<br>({correlation})"
    fig.update_xaxes(title=about, range=[lowest - 0.02, 1.04])
    low, high = min(0.0, float(frame["lost_low"].min())), max(0.2, float(frame["lost_high"].max()))
    room = 0.1 * (high - low)
    fig.update_yaxes(title="accuracy lost", tickformat=".0%", range=[low - room, high + room])
    # the tasks that lost much are named, in turn above and below; the others crowd at the right end
    named = frame[frame["lost"] >= 0.1].sort_values(["lost", "similarity"], ascending=False)
    near = named[["task", "similarity", "lost"]].round(1).duplicated()  # one name where its points meet
    for number, row in enumerate(named[~near].itertuples()):
        left, up = row.similarity > 0.5, number % 2 == 0
        side = {"xanchor": "right" if left else "left", "xshift": -4 if left else 4}
        side |= {"yanchor": "bottom" if up else "top", "yshift": 1 if up else -1}
        note = {"text": row.task, "showarrow": False, "font_size": style.small()}
        fig.add_annotation(x=row.similarity, y=row.lost, **note, **side)
    return style.legend_above(fig)


def _form_bars(shares: pd.DataFrame) -> go.Figure:
    rows = shares.reset_index().melt("variant", var_name="form", value_name="share")
    rows = rows.assign(form=[_FORMS[form]["name"] for form in rows["form"]])
    rows = rows.assign(label=rows["share"].map(lambda share: f"{share:.0%}" if share >= 0.12 else ""))
    styles = {look["name"]: style.Style(look["color"]) for look in _FORMS.values()}
    hover = "%{y}: %{x:.1%} %{fullData.name}"
    fig = style.draw(px.bar, rows, "share", "variant", styles, "form", hover=hover, text="label")
    look = {"textposition": "inside", "insidetextanchor": "middle", "textangle": 0}
    look |= {"marker_line": {"color": style.INK, "width": 0.6}, "textfont_size": style.small()}
    return fig.update_traces(**look)


def _ratio_marks(summary: pd.DataFrame) -> go.Figure:
    texts = summary["length_ratio"].map(lambda ratio: "" if np.isnan(ratio) else f"{ratio:.2f}")
    ends, hover = ["ci_low", "ci_high"], "%{y}: %{x:.3f}%{customdata[0]}"
    summary = summary.assign(spread=[style.bracketed(*pair) for pair in summary[ends].to_numpy()])
    shown = {"custom_data": "spread", "error_x": ends, "hover": hover}
    fig = style.draw(px.scatter, summary, "length_ratio", "variant", **shown)
    at = summary["ci_high"].fillna(summary["length_ratio"])
    look = {"mode": "text", "textposition": "middle right", "hoverinfo": "skip", "cliponaxis": False}
    fig.add_trace(go.Scatter(x=at, y=summary["variant"], text="\u00a0\u00a0\u00a0" + texts, **look))
    fig.update_traces(marker_size=style.px_of(9), textfont_size=style.small())
    return fig.update_traces(showlegend=False)


def _correlation(frame: pd.DataFrame) -> str:
    """Return Spearman's correlation of shift and loss as text."""
    found = shift_agreement(frame)
    spread = style.bracketed(found["ci_low"], found["ci_high"], ".2f")
    known = f"Spearman of shift and loss {{spearman:.2f}}{spread}, {{n_points}} tasks"
    beside = ";<br>of the share of changed answers and loss {changed_spearman:.2f}"
    text = known + (beside if np.isfinite(found["changed_spearman"]) else "")
    return str(found["note"]) or text.format(**found)


def _decades(values: Any) -> Any:
    return np.log10(np.maximum(np.asarray(values, dtype=float), KL_FLOOR))

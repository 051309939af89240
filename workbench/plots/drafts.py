"""Figures of drafts: acceptance by draft length and position, the speed-up beside theory."""

from __future__ import annotations

import numpy as np
import pandas as pd
import plotly.express as px
import plotly.graph_objects as go

from workbench.checks import checked, one_of
from workbench.plots import style

#: column -> how its axis is called
MEASURES = {
    "acceptance": "accepted share of the drafted tokens",
    "accepted_length": "accepted tokens a target call",
    "tokens_per_call": "new tokens a target call",
    "target_calls_per_token": "target calls a new token",
}


def acceptance_by_length(
    acceptance: pd.DataFrame,
    *,
    measure: str = "acceptance",
    title: str | None = "What the target accepts, by draft length",
) -> go.Figure:
    """Draw a measure of each draft against the draft length, with intervals over prompts.

    Args:
        acceptance: frame of ``acceptance``.
        measure: one of its measures.
        title: of the figure.

    Raises:
        ValueError: for missing columns, an empty frame or another measure.
    """
    one_of(measure, MEASURES, "measure")
    return _lines(acceptance, "acceptance", "draft_length", measure, title, "drafted tokens a round")


def acceptance_by_place(
    positions: pd.DataFrame, *, title: str | None = "What the target accepts, by position in the draft"
) -> go.Figure:
    """Draw how often the token at each position is accepted once those before it are.

    Args:
        positions: frame of ``acceptance_by_position``.
        title: of the figure.

    Raises:
        ValueError: for missing columns or an empty frame.
    """
    return _lines(positions, "positions", "position", "acceptance", title, "position in the draft")


def speed_against_theory(
    speeds: pd.DataFrame, *, title: str | None = "Speed against plain decoding: measured, and by theory"
) -> go.Figure:
    """Draw the measured speed-up of each draft (symbols, intervals) beside what theory gives (lines).

    Args:
        speeds: frame of ``speed_ups``.
        title: of the figure.

    Raises:
        ValueError: for missing columns or an empty frame.
    """
    columns = ["draft", "draft_length", "speed_up", "theory", "speed_up_low", "speed_up_high"]
    frame = style.escaped(checked(speeds, columns, "speeds"), "draft")
    styles = style.variant_styles(frame["draft"])
    # beside each other, so that no interval hides another
    place = pd.factorize(frame["draft"])[0] - (frame["draft"].nunique() - 1) / 2
    frame = frame.assign(at=frame["draft_length"] + 0.025 * np.ptp(frame["draft_length"]) * place)
    hover = "%{fullData.name}<br>%{customdata[0]} drafted tokens: %{y:.2f} times as fast"
    shown = {"hover": hover, "title": title, "error_y": ("speed_up_low", "speed_up_high")}
    told = {"custom_data": "draft_length"}
    fig = style.draw(px.scatter, frame, "at", "speed_up", styles, "draft", **shown, **told)
    fig.update_traces(marker_size=style.px_of(9))
    shown = {"hover": f"theory, {hover}", **told}
    lines = style.draw(px.line, frame, "draft_length", "theory", styles, "draft", **shown)
    for line in lines.data:
        fig.add_trace(line.update(showlegend=False))
    fig.add_hline(y=1, line={"color": style.INK, "width": 1, "dash": "dot"})
    fig.update_xaxes(title="drafted tokens a round", dtick=1)
    fig.update_yaxes(title="times as fast as plain decoding", rangemode="tozero")
    return style.legend_above(fig)


def _lines(frame: pd.DataFrame, what: str, x: str, y: str, title: str | None, axis: str) -> go.Figure:
    """Draw a measure of each draft, with its interval where the frame has one."""
    frame = style.escaped(checked(frame, ["draft", x, y], what).dropna(subset=y), "draft")
    shown = {"markers": True, "hover": f"%{{fullData.name}}<br>{axis} %{{x}}: %{{y:.3f}}", "title": title}
    shown |= {"error_y": (f"{y}_low", f"{y}_high")}
    fig = style.draw(px.line, frame, x, y, style.variant_styles(frame["draft"]), "draft", **shown)
    fig.update_xaxes(title=axis, dtick=1)
    fig.update_yaxes(title=MEASURES[y], rangemode="tozero")
    return style.legend_above(fig)

"""Figures of merges: scores along the path between two variants."""

from __future__ import annotations

import pandas as pd
import plotly.express as px
import plotly.graph_objects as go

from workbench.checks import checked
from workbench.evaluation.scores import score_intervals
from workbench.plots import style
from workbench.tables.markup import task_label

_MEASURES = {
    "value": "score",
    "recovery": "share of the base's average",
    "similarity": "cosine similarity to the base's response",
}


def merging_path(
    path: pd.DataFrame,
    *,
    measure: str = "recovery",
    title: str | None = "Between the two ends of a merge",
) -> go.Figure:
    """Draw a measure against t, the ends included; with its interval where the frame has one.

    Args:
        path: ``t`` (0 = the first end, 1 = the second), the measure, and where there are any ``variant``
            (names the ends), ``task`` (a line each, with the interval of its ``stderr``) or ``seed`` (a line
            each), ``ci_low`` and ``ci_high``.
        measure: the column to draw, such as ``recovery``, ``value`` or ``similarity``.
        title: of the figure.

    Raises:
        ValueError: for missing columns or an empty frame.
    """
    frame = checked(path, ["t", measure], "path").sort_values("t", kind="stable")
    by = next((name for name in ("task", "seed") if name in frame), None)
    names = frame[by].astype(str).map(task_label if by == "task" else str) if by else measure
    if measure == "value" and "stderr" in frame:
        frame = score_intervals(frame).rename(columns={"low": "ci_low", "high": "ci_high"})
    frame = style.escaped(frame.assign(line="seed " + names if by == "seed" else names), "line")
    styles = style.variant_styles(frame["line"])
    shown = {"markers": True, "hover": f"%{{fullData.name}}<br>t %{{x:.2f}}: {measure} %{{y:.3f}}"}
    shown |= {"error_y": ("ci_low", "ci_high")}
    fig = style.draw(px.line, frame, "t", measure, styles, "line", title=title, **shown)
    fig.update_layout(showlegend=by is not None, legend={"title": {"text": ""}})
    ends = frame["variant"].map(style.plain).iloc[[0, -1]] if "variant" in frame else ("first end", "second")
    fig.update_xaxes(title="t (0: {}, 1: {})".format(*ends), range=[-0.04, 1.04])
    named = _MEASURES.get(measure, measure.replace("_", " "))
    fig.update_traces(error_y={"thickness": 1, "width": 2})
    return (style.legend_above(fig) if by else fig).update_yaxes(title=named)

"""Figures of healing: the loss while it falls, in one place, and what a grid search found."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from workbench.export import current_template
from workbench.figures import INK, checked, plain
from workbench.outcome_plots import loss_curve

__all__ = ["LiveLoss", "tuning_figure"]

_COLOR, _BEST = "#0072b2", "#d55e00"


class LiveLoss:
    """The loss of several trainings as they run: one figure, updated in place.

    ``heal(..., progress=live.watch("pruned-sft"))`` draws a line while it trains; ``live.add`` one that is
    done. Outside a notebook nothing is shown, and ``figure`` gives the figure.
    """

    def __init__(self, *, every: float = 1.0, title: str = "Healing: training loss") -> None:
        """Begin without a line.

        Args:
            every: seconds between two updates at least.
            title: of the figure.
        """
        self.every, self.title = every, title
        self.rows: dict[str, list[dict[str, Any]]] = {}
        self._handle: Any = None
        self._shown = float("-inf")

    def watch(self, name: str) -> Callable[[dict[str, Any]], None]:
        """Return what ``heal`` is to call with each row of its log."""

        def see(row: dict[str, Any]) -> None:
            rows = self.rows.setdefault(name, [])
            while rows and rows[-1]["step"] >= row["step"]:  # it went back to a checkpoint
                rows.pop()
            rows.append(row)
            if time.monotonic() - self._shown >= self.every:
                self._show(_status(name, row))

        return see

    def add(self, name: str, log: pd.DataFrame) -> None:
        """Draw the whole log of a training that is done."""
        self.rows[name] = log.to_dict("records")
        self._show()

    def log(self) -> pd.DataFrame:
        """Return every row so far, ``variant`` before the columns of the log."""
        logs = {name: pd.DataFrame(rows) for name, rows in self.rows.items()}
        return pd.concat(logs, names=["variant"]).reset_index("variant").reset_index(drop=True)

    def figure(self, status: str | None = None) -> go.Figure:
        """Return the figure as it is now.

        Raises:
            ValueError: before the first row.
        """
        if not self.rows:
            raise ValueError("LiveLoss must have seen a row of a log before it can draw, it has seen none")
        log = self.log()
        fig = loss_curve(log, title=self.title)
        if status:
            fig.update_layout(title={"subtitle": {"text": plain(status)}})
        return fig.update_xaxes(range=[0, log.get("steps", log["step"]).fillna(log["step"]).max()])

    def _show(self, status: str | None = None) -> None:
        from IPython.core.getipython import get_ipython
        from IPython.display import display

        self._shown = time.monotonic()
        if get_ipython() is None:
            return
        # the bundle itself: a figure that displays itself knows no place to be updated in
        bundle = self.figure(status)._repr_mimebundle_(include=None, exclude=None)
        if self._handle is None:
            self._handle = display(bundle, raw=True, display_id=True)
        else:
            self._handle.update(bundle, raw=True)


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
    best = frame.loc[frame["loss"].idxmin()]
    fig = make_subplots(1, len(settings), shared_yaxes=True, horizontal_spacing=0.03)
    for column, name in enumerate(settings, start=1):
        values = sorted(frame[name].unique())
        for trace in _panel(frame, name, [_tick(value) for value in values], values, best):
            fig.add_trace(trace.update(showlegend=column == 1), row=1, col=column)
        ticks = [_tick(value) for value in values]
        fig.update_xaxes(
            tickangle=0,
            title=name.replace("_", " "),
            type="category",
            categoryarray=ticks,
            showgrid=False,
            col=column,
        )
    fig.update_yaxes(title="held-out loss (nats per token)", col=1)
    legend = {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"}
    return fig.update_layout(template=current_template(), title=title, legend=legend, margin={"t": 92})


def _panel(
    frame: pd.DataFrame, name: str, ticks: list[str], values: list[Any], best: pd.Series
) -> list[go.Scatter]:
    least = [frame.loc[frame[name] == value, "loss"].min() for value in values]
    dots = go.Scatter(
        x=[_tick(value) for value in frame[name]],
        y=frame["loss"],
        mode="markers",
        name="a training",
        marker={"color": _COLOR, "size": 7, "opacity": 0.5},
        customdata=frame["trial"],
        hovertemplate="trial %{customdata}: %{y:.4f}<extra></extra>",
    )
    line = go.Scatter(
        x=ticks, y=least, mode="lines", name="least of the value", line={"color": _COLOR, "width": 2}
    )
    mark = {"symbol": "star", "size": 14, "color": _BEST, "line": {"color": INK, "width": 1}}
    star = go.Scatter(
        x=[_tick(best[name])], y=[best["loss"]], mode="markers", name="best", marker=mark, hoverinfo="skip"
    )
    return [line, dots, star]


def _tick(value: float) -> str:
    return np.format_float_scientific(value, trim="-", exp_digits=1) if 0 < value < 1e-3 else f"{value:g}"


def _status(name: str, row: dict[str, Any]) -> str:
    minutes, seconds = divmod(round(row.get("seconds_left", 0)), 60)
    return (
        f"{name}: step {row['step']} of {row['steps']}, {row['tokens_per_second']:,.0f} tokens/s, "
        f"{minutes}:{seconds:02d} left"
    )

"""The loss while a training runs: a figure that follows it in the notebook."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from workbench.plots.healing import loss_curve
from workbench.plots.style import plain


class LiveLoss:
    """The loss of several trainings as they run: one figure, updated in place.

    ``heal(..., progress=live.watch("pruned-sft"))`` draws a line while it trains; ``live.add`` one that is
    done. Outside a notebook nothing is shown, and ``figure`` gives the figure.
    """

    def __init__(self, *, every: float = 1.0, title: str = "Healing: training loss") -> None:
        """Begin without a line.

        Args:
            every: seconds between two updates at least; more where drawing takes over a twentieth of that.
            title: of the figure.
        """
        self.every, self.title = every, title
        self.rows: dict[str, list[dict[str, Any]]] = {}
        self._handle: Any = None
        self._shown, self._pause = float("-inf"), every

    def watch(self, name: str) -> Callable[[dict[str, Any]], None]:
        """Return what ``heal`` is to call with each row of its log."""

        def see(row: dict[str, Any]) -> None:
            rows = self.rows.setdefault(name, [])
            while rows and rows[-1]["step"] >= row["step"]:  # it went back to a checkpoint
                rows.pop()
            rows.append(row)
            if time.monotonic() - self._shown >= self._pause:
                self._show(_status(name, rows))

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
        show: Any = display
        if self._handle is None:
            self._handle = show(bundle, raw=True, display_id=True)
        else:
            self._handle.update(bundle, raw=True)
        self._pause = max(self.every, 20 * (time.monotonic() - self._shown))  # the training comes first


def _status(name: str, rows: list[dict[str, Any]]) -> str:
    row, held_out = rows[-1], [one["held_out_loss"] for one in rows if one.get("held_out_loss") is not None]
    minutes, seconds = divmod(round(row.get("seconds_left", 0)), 60)
    return (
        f"{name}: step {row['step']} of {row['steps']}, {row['tokens_per_second']:,.0f} tokens/s, "
        f"{minutes}:{seconds:02d} left{f', held-out loss {held_out[-1]:.3f}' if held_out else ''}"
    )

"""Iterative recovery while it runs: the loss by its terms, the stack of layers, the time left."""

from __future__ import annotations

from typing import Any

import pandas as pd
import plotly.graph_objects as go

from workbench.checks import whole_number
from workbench.plots.recovery import TERMS, recovery_progress
from workbench.widgets.live import LiveLoss, live_drawing


class LiveRecovery(LiveLoss):
    """What ``iterate`` does as it runs, in one figure that is updated in place.

    ``iterate(..., progress=live.see)`` draws the terms of the loss and the stack. Ctrl-C (the notebook's stop
    button) ends it after the update that runs; what was done is kept, ``read_iterations`` reads it, and the
    same call goes on.
    """

    label = "recovery loss by its terms, log"

    def __init__(self, n_layers: int, *, every: float = 1.0, title: str = "Iterative recovery") -> None:
        """Begin with the whole stack.

        Args:
            n_layers: of the whole model.
            every: as for ``LiveLoss``.
            title: of the figure.
        """
        super().__init__(every=every, title=title)
        self.n_layers = whole_number(n_layers, "n_layers", 2)

    def see(self, row: dict[str, Any]) -> None:
        """Take a row of the log of a recovery, with ``iteration`` and ``order``."""
        self.watch(f"iteration {row['iteration']}")(row)

    def status(self, name: str, rows: list[dict[str, Any]]) -> str:
        """Say also what each term of the loss is now, and which layers are out, in their order."""
        row = rows[-1]
        terms = ", ".join(f"{term} {row[term]:.3g}" for term in TERMS if term in row)
        return f"{super().status(name, rows)}; {terms}; out: {str(row['order']).replace(' ', ', ')}"

    def drawing(self, status: str = "") -> str:
        """Return what is shown while it runs: the terms of the loss over all updates, then the stack."""
        lines: dict[str, list[dict[str, Any]]] = {}
        before = 0
        for rows in self.rows.values():
            for row in rows:
                at = {"step": before + row["step"], "steps": before + row.get("steps", row["step"])}
                for term in (term for term in TERMS if term in row):
                    lines.setdefault(term, []).append({**at, "loss": row[term]})
            before += rows[-1]["step"]
        return live_drawing(lines, self.title, status, self.label, self._stack(), logarithmic=True)

    def _stack(self) -> list[str]:
        """Return of each layer whether it is there, goes in this iteration or is gone."""
        orders = [set(map(int, str(rows[-1]["order"]).split())) for rows in self.rows.values()]
        gone = orders[-2] if len(orders) > 1 else set()
        return [
            "gone" if layer in gone else "goes" if layer in orders[-1] else "there"
            for layer in range(self.n_layers)
        ]

    def _drawn(self, log: pd.DataFrame) -> go.Figure:
        return recovery_progress(log, self.n_layers, title=self.title)

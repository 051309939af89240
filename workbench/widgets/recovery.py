"""Iterative recovery while it runs: the loss by its terms, the stack of layers, the time left."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from workbench.checks import whole_number
from workbench.plots.recovery import STATES, TERMS, recovery_progress
from workbench.plots.style import INK, plain
from workbench.widgets.live import HEIGHT, LEFT, RIGHT, LiveLoss, live_drawing

#: pixels that the stack of layers takes under the curves
_ROOM = 62


class LiveRecovery(LiveLoss):
    """What ``iterate`` does as it runs, in one figure that is updated in place.

    ``iterate(..., progress=live.see)`` draws the terms of the loss and the stack. Ctrl-C (the notebook's stop
    button) ends it after the update that runs; what was done is kept, ``read_iterations`` reads it, and the
    same call goes on.
    """

    label = "recovery loss by its terms"

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
        orders = [set(map(int, str(rows[-1]["order"]).split())) for rows in self.rows.values()]
        before_that = orders[-2] if len(orders) > 1 else set()
        stack = _stack(before_that, orders[-1] - before_that, self.n_layers)
        return live_drawing(lines, self.title, status, self.label, below=stack, room=_ROOM)

    def figure(self, status: str | None = None) -> go.Figure:
        """Return the figure as it is now.

        Raises:
            ValueError: before the first row.
        """
        if not self.rows:
            raise ValueError(
                "LiveRecovery must have seen a row of a log before it can draw, it has seen none"
            )
        fig = recovery_progress(
            pd.concat(map(pd.DataFrame, self.rows.values())), self.n_layers, title=self.title
        )
        if status:
            fig.update_layout(title={"subtitle": {"text": plain(status)}})
        return fig


def _stack(gone: set[int], going: set[int], n_layers: int) -> Iterator[str]:
    """Yield a box a layer, there, going or gone, the layers' numbers, and what the colours mean."""
    wide, top = (RIGHT - LEFT) / n_layers, HEIGHT + 6
    every = -(-24 * n_layers // (RIGHT - LEFT))
    text = f'y="{top + 34}" text-anchor="middle" font-size="12" fill="{INK}"'
    for layer in range(n_layers):
        state = 1 if layer in going else 2 if layer in gone else 0
        x, words = LEFT + layer * wide, ("there", "goes", "gone")[state]
        yield (
            f'<rect class="live-layer" data-state="{words}" x="{x:.1f}" y="{top}" width="{wide - 1:.1f}" '
            f'height="18" fill="{STATES[state]}"><title>layer {layer}: {words}</title></rect>'
        )
        if layer % every == 0:
            yield f'<text x="{x + wide / 2:.1f}" {text}>{layer}</text>'
    key = "layers: blue there, orange out in this iteration, grey gone before"
    yield f'<text x="{LEFT}" y="{top + 52}" font-size="12" fill="{INK}">{key}</text>'

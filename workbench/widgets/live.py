"""The loss while a training or a recovery runs: a drawing that follows it, then the figure in its place."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from workbench.arguments import looked_at
from workbench.bars import Spot
from workbench.checks import checked, whole_number
from workbench.plots.healing import loss_curve
from workbench.plots.recovery import STATES, TERMS, recovery_progress
from workbench.plots.style import LOOK, Style, plain, variant_styles
from workbench.runs.files import template

#: pixels, those of the figure that takes the drawing's place; left, right, upper and lower end of the curves
WIDTH, HEIGHT = LOOK["screen"]["layout"]["width"], LOOK["screen"]["layout"]["height"]
LEFT, RIGHT, TOP, BOTTOM = 76, WIDTH - 24, 108, HEIGHT - 54
#: points of a line; of more a row in so many is drawn
POINTS = 400
_DRAWING = template(Path(__file__).with_name("live.html.j2"))
_DASHES = {"solid": "none", "dot": "2 4", "dash": "8 5", "dashdot": "8 4 2 4"}


class LiveLoss:
    """The loss of several trainings as they run: one drawing in the notebook, updated in place.

    ``heal(..., progress=live.watch("pruned-sft"))`` draws a line while it trains; ``live.add`` one that is
    done, and shows the whole figure. The drawing is plain HTML that is displayed again: it moves wherever a
    notebook's display can be updated (JupyterLab, VS Code, Colab), while a plotly figure there stays as it
    was first drawn. Outside a notebook nothing is shown, and ``figure`` gives the figure.
    """

    #: what the drawing's upright axis says
    label = "loss (nats per token)"

    @looked_at
    def __init__(self, *, every: float = 1.0, title: str = "Healing: training loss") -> None:
        """Begin without a line.

        Args:
            every: seconds between two updates at least; more where drawing takes over a twentieth of that.
            title: of the figure.
        """
        self.every, self.title = every, title
        self.rows: dict[str, list[dict[str, Any]]] = {}
        self._spot = Spot()
        self._shown, self._pause = float("-inf"), every

    @looked_at
    def watch(self, name: str) -> Callable[[dict[str, Any]], None]:
        """Return what ``heal`` is to call with each row of its log."""

        def see(row: dict[str, Any]) -> None:
            rows = self.rows.setdefault(name, [])
            while rows and rows[-1]["step"] >= row["step"]:  # it went back to a checkpoint
                rows.pop()
            rows.append(row)
            last = row["step"] >= row["steps"]
            if last or time.monotonic() - self._shown >= self._pause:
                self._show(self.status(name, rows))

        return see

    def status(self, name: str, rows: list[dict[str, Any]]) -> str:
        """Say what a training does now: its step, loss, speed and the time left."""
        row, held_out = rows[-1], [one["held_out_loss"] for one in rows if _number(one.get("held_out_loss"))]
        known = f", held-out loss {held_out[-1]:.3f}" if held_out else ""
        minutes, seconds = divmod(round(row.get("seconds_left", 0)), 60)
        return (
            f"{name}: step {row['step']} of {row['steps']}, loss {row['loss']:.3f}{known}, "
            f"{row['tokens_per_second']:,.0f} tokens/s, {minutes}:{seconds:02d} left"
        )

    @looked_at
    def add(self, name: str, log: pd.DataFrame) -> None:
        """Draw the whole log of a training that is done."""
        self.rows[name] = checked(log, ["step", "loss"], "log").to_dict("records")
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
            raise ValueError(f"{type(self).__name__} must have seen a row of a log to draw, it has seen none")
        fig = self._drawn(self.log())
        return fig.update_layout(title={"subtitle": {"text": plain(status)}}) if status else fig

    def _drawn(self, log: pd.DataFrame) -> go.Figure:
        last = log.get("steps", log["step"]).fillna(log["step"]).max()
        return loss_curve(log, title=self.title).update_xaxes(range=[0, 1.01 * last])

    def drawing(self, status: str = "") -> str:
        """Return what is shown while a training runs: an SVG that needs no script and no network."""
        return live_drawing(self.rows, self.title, status, self.label)

    def _show(self, status: str = "") -> None:
        """Show the drawing while a training runs (``status``), else the figure in its place."""
        from IPython.core.getipython import get_ipython

        self._shown = time.monotonic()
        if get_ipython() is None:
            return
        drawn = self.drawing(status)
        self._display({"text/html": drawn, "text/plain": status or self.title})
        if not status:  # behind a drawing, since a figure that is there already is not drawn again
            figure = self.figure()._repr_mimebundle_(include=None, exclude=None)
            self._display({"image/svg+xml": drawn, **figure})  # for where no plotly is drawn
        self._pause = max(self.every, 20 * (time.monotonic() - self._shown))  # the training comes first

    def _display(self, bundle: dict[str, Any]) -> None:
        self._spot.show(bundle)


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


def live_drawing(
    rows: dict[str, list[dict[str, Any]]],
    title: str,
    status: str,
    label: str = LiveLoss.label,
    stack: Sequence[str] = (),
    *,
    logarithmic: bool = False,
) -> str:
    """Return the losses of some trainings as one SVG inside HTML, which needs no script and no network.

    Args:
        rows: of each training: ``step``, ``loss``, and where known ``steps`` (all that there
            will be) and ``held_out_loss``.
        title: stands above it.
        status: what the training does now, under the title.
        label: of the upright axis.
        stack: of each layer whether it is ``"there"``, ``"goes"`` or is ``"gone"``; drawn under the curves.
        logarithmic: the upright axis, for terms of different sizes; what is not above 0 lies at its end.
    """
    every = [row for one in rows.values() for row in one]
    last = max(max(row["step"], row.get("steps") or 0) for row in every)
    losses = [row[name] for row in every for name in ("loss", "held_out_loss") if _number(row.get(name))]
    highest = max([*losses, 1e-9]) * 1.05
    low = float(np.floor(np.log10(min([one for one in losses if one > 0] or [highest / 2]))))
    decades = [10.0**one for one in range(int(low), int(np.floor(np.log10(highest))) + 1)]

    def up(value: float) -> float:
        whole = np.log10(highest) - low
        share = (np.log10(max(value, 10.0**low)) - low) / whole if logarithmic else value / highest
        return round(float(BOTTOM - (BOTTOM - TOP) * share), 1)

    def at(row: dict[str, Any], value: str) -> str:
        return f"{LEFT + (RIGHT - LEFT) * row['step'] / last:.1f},{up(row[value]):.1f}"

    return _DRAWING.render(
        **{"title": title, "status": status, "label": label, "width": WIDTH, "height": HEIGHT},
        **{"left": LEFT, "right": RIGHT, "top": TOP, "bottom": BOTTOM},
        up=[(value, up(value)) for value in (decades if logarithmic else _ticks(highest))],
        across=[(value, LEFT + (RIGHT - LEFT) * value / last) for value in _ticks(last)],
        **{"stack": stack, "colours": dict(zip(("there", "goes", "gone"), STATES, strict=True))},
        lines=[_line(name, rows[name], style, at) for name, style in variant_styles(rows).items()],
    )


def _line(
    name: str, rows: list[dict[str, Any]], style: Style, at: Callable[[dict[str, Any], str], str]
) -> dict[str, Any]:
    """Return the line of a training with the places of its held-out losses."""
    kept = [*rows[: -1 : -(-len(rows) // POINTS)], *rows[-1:]]
    return {
        **{"name": name, "color": style.color, "dashes": _DASHES.get(style.line_dash, "none")},
        "points": " ".join(at(row, "loss") for row in kept if _number(row.get("loss"))),
        "held_out": [at(row, "held_out_loss") for row in rows if _number(row.get("held_out_loss"))],
    }


def _ticks(highest: float) -> list[float]:
    """Return about five round numbers from 0 up to the highest.

    >>> _ticks(63), _ticks(2.2)
    ([0.0, 10.0, 20.0, 30.0, 40.0, 50.0, 60.0], [0.0, 0.5, 1.0, 1.5, 2.0])
    """
    rough = highest / 5
    decade = 10.0 ** np.floor(np.log10(rough))
    step = min((1, 2, 5, 10), key=lambda one: abs(np.log(one * decade / rough))) * decade
    return [round(float(value), 10) for value in np.arange(0, highest * 1.0001, step)]


def _number(value: Any) -> bool:
    return value is not None and bool(np.isfinite(value))

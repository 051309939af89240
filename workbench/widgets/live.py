"""The loss while a training runs: a drawing that follows it in the notebook, then the figure in its place."""

from __future__ import annotations

import html
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from workbench.plots.healing import loss_curve
from workbench.plots.style import INK, LOOK, Style, plain, variant_styles

#: pixels, those of the figure that takes the drawing's place; left, right, upper and lower end of the curves
WIDTH, HEIGHT = LOOK["screen"]["layout"]["width"], LOOK["screen"]["layout"]["height"]
LEFT, RIGHT, TOP, BOTTOM = 76, WIDTH - 24, 108, HEIGHT - 54
#: points of a line; of more a row in so many is drawn
POINTS = 400
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
            last = row["step"] >= row["steps"]
            if last or time.monotonic() - self._shown >= self._pause:
                self._show(self.status(name, rows))

        return see

    def status(self, name: str, rows: list[dict[str, Any]]) -> str:
        """Say what a training does now: its step, loss, speed and the time left."""
        return _status(name, rows)

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

    def _show(self, status: str = "") -> None:
        """Show the drawing while a training runs (``status``), else the figure in its place."""
        from IPython.core.getipython import get_ipython

        self._shown = time.monotonic()
        if get_ipython() is None:
            return
        drawing = {
            "text/html": live_drawing(self.rows, self.title, status, self.label),
            "text/plain": status or self.title,
        }
        self._display(drawing)
        if not status:  # behind a drawing, since a figure that is there already is not drawn again
            figure = self.figure()._repr_mimebundle_(include=None, exclude=None)
            self._display({"image/svg+xml": drawing["text/html"], **figure})  # for where no plotly is drawn
        self._pause = max(self.every, 20 * (time.monotonic() - self._shown))  # the training comes first

    def _display(self, bundle: dict[str, Any]) -> None:
        from IPython.display import display

        show: Any = display
        if self._handle is None:
            self._handle = show(bundle, raw=True, display_id=True)
        else:
            self._handle.update(bundle, raw=True)


def live_drawing(
    rows: dict[str, list[dict[str, Any]]], title: str, status: str, label: str = LiveLoss.label
) -> str:
    """Return the losses of some trainings as one SVG inside HTML, which needs no script and no network.

    Args:
        rows: of each training: ``step``, ``loss``, and where known ``steps`` (all that there
            will be) and ``held_out_loss``.
        title: stands above it.
        status: what the training does now, under the title.
        label: of the upright axis.
    """
    every = [row for one in rows.values() for row in one]
    last = max(max(row["step"], row.get("steps") or 0) for row in every)
    losses = [row[name] for row in every for name in ("loss", "held_out_loss") if _number(row.get(name))]
    highest = max([*losses, 1e-9]) * 1.05
    parts = [*_axes(last, highest, label)]
    for place, (name, style) in enumerate(variant_styles(rows).items()):
        parts += _line(name, rows[name], style, (last, highest), place)
    parts += [_text(10, 26, title, size=17), _text(10, 48, status, name="live-status")]
    told = html.escape(f"{title}. {status}")
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="live-loss" role="img" aria-label="{told}" '
        f'viewBox="0 0 {WIDTH} {HEIGHT}" '
        f'style="max-width:{WIDTH}px;width:100%;background:white;font-family:sans-serif">{"".join(parts)}</svg>'
    )


def _line(
    name: str, rows: list[dict[str, Any]], style: Style, ends: tuple[float, float], place: int
) -> Iterator[str]:
    """Yield the line of a training, its held-out losses as diamonds, and its place in the legend."""
    stride = -(-len(rows) // POINTS)
    kept = [*rows[:-1:stride], *rows[-1:]]
    points = " ".join(_at(row["step"], row["loss"], ends) for row in kept if _number(row.get("loss")))
    drawn = f'stroke="{style.color}" stroke-dasharray="{_DASHES.get(style.line_dash, "none")}"'
    yield f'<polyline class="live-line" points="{points}" fill="none" stroke-width="2" {drawn}/>'
    held_out = [row for row in rows if _number(row.get("held_out_loss"))]
    for row in held_out:
        at = " ".join(_at(row["step"], row["held_out_loss"], ends).split(","))
        mark = f'transform="translate({at}) rotate(45)" fill="{style.color}" stroke="white"'
        yield f'<rect class="live-held-out" x="-4.5" y="-4.5" width="9" height="9" {mark}/>'
    x = LEFT + 230 * place
    yield f'<path d="M{x} 70h28" stroke-width="2" {drawn}/>'
    yield _text(x + 34, 75, f"{name}{' (diamonds: held out)' if held_out else ''}", size=13)


def _axes(last: float, highest: float, label: str) -> Iterator[str]:
    for value in _ticks(highest):
        y = _at(0, value, (last, highest)).split(",")[1]
        yield f'<path d="M{LEFT} {y}H{RIGHT}" stroke="#e3e5e8"/>'
        yield _text(LEFT - 8, float(y) + 5, f"{value:g}", anchor="end", size=13)
    for value in _ticks(last):
        x = _at(value, 0, (last, highest)).split(",")[0]
        yield _text(float(x), BOTTOM + 20, f"{value:g}", anchor="middle", size=13)
    yield f'<path d="M{LEFT} {TOP}V{BOTTOM}H{RIGHT}" fill="none" stroke="{INK}"/>'
    yield _text((LEFT + RIGHT) / 2, HEIGHT - 12, "optimizer step", anchor="middle")
    yield _text(10, TOP - 12, label, size=12)


def _ticks(highest: float) -> list[float]:
    """Return about five round numbers from 0 up to the highest.

    >>> _ticks(63), _ticks(2.2)
    ([0.0, 10.0, 20.0, 30.0, 40.0, 50.0, 60.0], [0.0, 0.5, 1.0, 1.5, 2.0])
    """
    rough = highest / 5
    decade = 10.0 ** np.floor(np.log10(rough))
    step = min((1, 2, 5, 10), key=lambda one: abs(np.log(one * decade / rough))) * decade
    return [round(float(value), 10) for value in np.arange(0, highest * 1.0001, step)]


def _at(step: float, loss: float, ends: tuple[float, float]) -> str:
    """Return where a loss lies in the drawing, as "x,y"."""
    x = LEFT + (RIGHT - LEFT) * step / ends[0]
    return f"{x:.1f},{BOTTOM - (BOTTOM - TOP) * loss / ends[1]:.1f}"


def _text(
    x: float, y: float, text: str, *, anchor: str = "start", size: int = 14, name: str = "live-text"
) -> str:
    look = f'text-anchor="{anchor}" font-size="{size}" fill="{INK}" class="{name}"'
    return f'<text x="{x:.1f}" y="{y:.1f}" {look}>{html.escape(text)}</text>'


def _number(value: Any) -> bool:
    return value is not None and bool(np.isfinite(value))


def _status(name: str, rows: list[dict[str, Any]]) -> str:
    row, held_out = rows[-1], [one["held_out_loss"] for one in rows if _number(one.get("held_out_loss"))]
    minutes, seconds = divmod(round(row.get("seconds_left", 0)), 60)
    return (
        f"{name}: step {row['step']} of {row['steps']}, loss {row['loss']:.3f}"
        f"{f', held-out loss {held_out[-1]:.3f}' if held_out else ''}, "
        f"{row['tokens_per_second']:,.0f} tokens/s, {minutes}:{seconds:02d} left"
    )

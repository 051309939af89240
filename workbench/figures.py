"""What every figure here shares: checked frames, escaped text, one style per variant."""

from __future__ import annotations

import html
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.colors import sample_colorscale

from workbench.blocks import format_layers, layers_in, layers_of, parse_layers
from workbench.export import current_template

#: sequential, even in lightness (so it survives a grey print), safe for the colour-blind; light = near =
# removable
SEQUENTIAL = "Viridis_r"
INK = "#1f2328"
DISTANCE = "angular distance"
DAMAGE_UNIT = "(nats per token)"
DAMAGE = f"damage {DAMAGE_UNIT}"
#: nats per token; damage spans decades (the first layers cost whole nats): its log scales begin here
DAMAGE_FLOOR = 1e-3


@dataclass(frozen=True)
class Style:
    """How one variant looks in every figure: the colour, and what tells it apart without colour."""

    color: str
    dash: str
    symbol: str
    pattern: str


# Okabe and Ito's colours in an order of changing lightness; yellow is left out, it vanishes on white
_STYLES = (
    Style("#5c6370", "solid", "circle", ""),
    Style("#d55e00", "dot", "x", "/"),
    Style("#e69f00", "dash", "square", "."),
    Style("#0072b2", "solid", "diamond", "\\"),
    Style("#009e73", "dashdot", "triangle-up", "x"),
    Style("#cc79a7", "longdash", "star", "-"),
    Style("#56b4e9", "longdashdot", "cross", "+"),
)
# so that a variant keeps its colour in a figure that leaves the others out
_USUAL_PLACE = (("distil", 3), ("sft", 2), ("merge", 4), ("unpruned", 0), ("prune", 1), ("base", 0))


def checked(frame: Any, columns: Iterable[str], what: str) -> pd.DataFrame:
    """Return the frame when it has the columns and at least one row.

    Raises:
        ValueError: naming the missing columns and those that came.
    """
    if not isinstance(frame, pd.DataFrame):
        raise ValueError(f"{what} must be a pandas DataFrame, got {type(frame).__name__}")
    columns = list(columns)
    missing = [column for column in columns if column not in frame.columns]
    if missing:
        raise ValueError(f"{what} needs the columns {columns}; missing {missing}, got {list(frame.columns)}")
    if frame.empty:
        raise ValueError(f"{what} must have at least one row, got an empty frame")
    return frame


def checked_blocks(frame: Any, value: str, what: str) -> pd.DataFrame:
    """Return the rows of a frame that are blocks with a value, by size and start, with what each removes.

    Raises:
        ValueError: for missing columns, for a block that occurs twice, for a frame without one number.
    """
    frame = checked(frame, ["start", "size", value], what)
    frame = frame[frame["start"].notna() & frame[value].notna()].astype({"start": "int64", "size": "int64"})
    if frame.empty:
        raise ValueError(f"{what} must hold at least one block with a number in {value!r}, got none")
    twice = frame[frame.duplicated(["start", "size"])]
    if len(twice):
        block = tuple(int(number) for number in twice.iloc[0][["start", "size"]])
        raise ValueError(f"{what} must hold each (start, size) once, got {block} again; select one set")
    return frame.assign(removed=removed_by(frame)).sort_values(["size", "start"], ignore_index=True)


def removed_by(frame: pd.DataFrame) -> list[str]:
    """Return the layers that each block removes, as the papers print them.

    A model that was pruned before has gaps between its layers; the blocks of size 1 name those that it has.
    A frame of chosen blocks may not hold all of these: there, the blocks are read as runs without gaps.
    """
    if "removed" in frame:
        return [str(text) for text in frame["removed"]]
    layers: list[int] | None = layers_in(frame)
    single = frame.loc[frame["size"] == 1, "start"]
    if not (set(frame["start"]) <= set(single) and len(frame) >= frame["size"].max()):
        layers = None
    blocks = zip(frame["start"], frame["size"], strict=True)
    return [format_layers(layers_of(*block, layers=layers)) for block in blocks]


def last_layer(frame: pd.DataFrame) -> int:
    """Return the highest layer that a block of the frame removes."""
    return max(parse_layers(text)[-1] for text in frame["removed"])


def least(frame: pd.DataFrame, value: str) -> pd.DataFrame:
    """Return one row a size: the block of least value, the shallowest of equals, as ``best_blocks`` does."""
    ordered = frame.sort_values(["size", value, "start"], kind="stable")
    return ordered.groupby("size").head(1).reset_index(drop=True)


def sizes_to_draw(
    frame: pd.DataFrame, sizes: Iterable[int] | None, usual: Iterable[int] = (1, 2, 4, 6, 8, 10)
) -> list[int]:
    """Return the sizes asked for, after a check, or the usual ones that the frame holds."""
    there = sorted(int(size) for size in frame["size"].unique())
    if sizes is None:
        return [size for size in usual if size in there] or there[:6]
    wanted = sorted({int(size) for size in sizes})
    if not wanted or not set(wanted) <= set(there):
        raise ValueError(f"sizes must be some of {there}, got {wanted}")
    return wanted


def plain(value: Any) -> str:
    """Return text from a model or a data set so that plotly shows it instead of reading it as markup."""
    return html.escape(str(value), quote=False)


def new_figure(title: str | None = None, **layout: Any) -> go.Figure:
    """Return an empty figure in the current template."""
    if title is not None:
        layout["title"] = {"text": title}
    return go.Figure(layout={"template": current_template(), **layout})


def layer_axis(n_layers: int, *, ticks: int = 20) -> dict[str, Any]:
    """Return an axis over layers with whole-numbered ticks, at most about ``ticks`` of them."""
    step = next(step for step in (1, 2, 5, 10, 20, 50) if n_layers / step <= ticks or step == 50)
    return {"tickmode": "linear", "tick0": 0, "dtick": step, "showgrid": False}


def log_axis(values: pd.Series, lowest: float = DAMAGE_FLOOR) -> dict[str, Any]:
    """Return a log axis from ``lowest`` up, ticked at decades, or at 1, 2, 5 where it spans less than two."""
    low, high = np.log10(lowest), np.log10(max(values.max(), 10 * lowest))
    steps = (1, 2, 5) if high - low < 2 else (1,)
    ticks = [step * 10.0**decade for decade in range(int(low) - 1, int(high) + 2) for step in steps]
    room = 0.06 * (high - low)
    labels = {"tickvals": ticks, "ticktext": [f"{tick:g}" for tick in ticks]}
    return {"type": "log", "range": [low - room, high + room], **labels}


def best_marks(x: Any, y: Any, *, size: float, fill: str = "white") -> go.Scatter:
    """Return the marks on the least block of each size."""
    return go.Scatter(
        x=list(x),
        y=list(y),
        mode="markers",
        name="least of its size",
        marker={"symbol": "circle", "size": size, "color": fill, "line": {"color": INK, "width": 1.5}},
        hoverinfo="skip",
    )


def joined(distances: pd.DataFrame, damage: pd.DataFrame) -> pd.DataFrame:
    """Return the blocks that both frames hold, with their distance and their damage.

    Raises:
        ValueError: for missing columns, repeated blocks, or when the frames share no block.
    """
    distances = checked_blocks(distances, "distance", "distances")
    damage = checked_blocks(damage, "damage", "damage")
    both = distances.merge(damage[["start", "size", "damage"]], on=["start", "size"], validate="one_to_one")
    if both.empty:
        raise ValueError(
            "distances and damage must share blocks (start, size); "
            f"got sizes {sorted(distances['size'].unique())} and {sorted(damage['size'].unique())}"
        )
    return both


def variant_styles(names: Iterable[Any]) -> dict[Any, Style]:
    """Return a style for each name; base, pruned, SFT, distilled, merged keep theirs across figures."""
    names, styles = [*dict.fromkeys(names)], {}
    free = list(range(len(_STYLES)))
    for name in names:
        place = next((place for word, place in _USUAL_PLACE if word in str(name).lower()), None)
        if place in free:
            free.remove(place)
            styles[name] = _STYLES[place]
    for name in names:
        if name not in styles:
            styles[name] = _STYLES[free.pop(0)] if free else _STYLES[len(styles) % len(_STYLES)]
    return {name: styles[name] for name in names}


def size_styles(sizes: Iterable[int]) -> dict[int, Style]:
    """Return a style for each block size: sizes are ordered, so their colours run from light to dark."""
    sizes = sorted({int(size) for size in sizes})
    at = [0.85 * (1 - place / max(len(sizes) - 1, 1)) for place in range(len(sizes))]
    colours = sample_colorscale("Viridis", at)
    return {
        size: Style(colour, _STYLES[i % 7].dash, _STYLES[i % 7].symbol, _STYLES[i % 7].pattern)
        for i, (size, colour) in enumerate(zip(sizes, colours, strict=True))
    }

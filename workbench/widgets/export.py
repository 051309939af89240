"""A choice of the picker as words, text and figure, to carry it elsewhere. No torch."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pandas as pd

from workbench.checks import one_of
from workbench.distances.blocks import Layers, format_layers
from workbench.tables.sentences import interval, percent
from workbench.widgets.picture import blocks_of


def as_text(form: str, selection: Mapping[str, Any], picture: Callable[[], str]) -> str:
    """Return a selection as a line of Python, as JSON, or as a picture.

    Raises:
        ValueError: for another form.

    >>> as_text("python", {"layers": [3, 4], "n_layers": 16, "removed": "3-4"}, str)
    'layers = (3, 4)  # 3-4, 2 of 16 layers'
    """
    one_of(form, ("python", "json", "svg"), "form")
    if form == "svg":
        return picture()
    if form == "json":
        return json.dumps(selection, indent=1)
    layers = tuple(selection["layers"])
    return f"layers = {layers!r}  # {selection['removed']}, {len(layers)} of {selection['n_layers']} layers"


def reading(
    facts: Mapping[str, Any],
    used: Layers | None,
    where: str | None,
    shown: Layers,
    touched: bool,
    kept: Sequence[Mapping[str, Any]],
) -> str:
    """Say what is used and what that does, where it is saved, what the picker shows and what is kept.

    >>> print(reading({"distance": 0.25}, (3, 4), "selection.json", (3, 4), True, []))
    **Layers 3-4** are used: chosen in the picker, saved in selection.json. Angular distance 0.250.
    Nothing is kept to compare.
    """
    if used is None:
        says = f"Nothing is used yet; the picker shows **{_named(shown)}**, and nothing is saved."
    else:
        how = "chosen in the picker" if touched else "the choice that the picker opened with"
        saved = f"saved in {where}" if where else "saved nowhere, since the picker was told of no run"
        says = f"**{_named(used).capitalize()}** {'are' if len(used) > 1 else 'is'} used: {how}, {saved}."
        if used != shown:
            says += f" The picker shows {_named(shown)}, which is not used: press Use for that."
    others = ", ".join(format_layers(row["layers"]) for row in kept)
    rest = f"Kept to compare: {others}." if others else "Nothing is kept to compare."
    return f"{says} {_measures(facts)}\n{rest}"


def _measures(facts: Mapping[str, Any]) -> str:
    parts = []
    if "distance" in facts:
        parts.append(f"angular distance {facts['distance']:.3f}{interval(facts)}")
    if "damage" in facts:
        spread = interval(facts, "+.3f", "damage")
        parts.append(f"damage {facts['damage']:+.3f} nats a token{spread}")
    for name, what in (("parameters_saved", "of the parameters"), ("flops_saved", "of the FLOPs of a token")):
        if name in facts:
            parts.append(f"saves {percent(facts[name], 2)} {what}")
    text = "; ".join(parts)
    return f"{text[:1].upper()}{text[1:]}." if text else "It is no single block, so it was not measured."


def figure(frame: pd.DataFrame, chosen: Layers, layers: Sequence[int], **settings: Any) -> Any:
    """Return ``distance_heatmap`` with a frame around each block that the choice is made of."""
    from workbench.plots.heatmaps import distance_heatmap

    there = set(zip(frame["start"], frame["size"], strict=True))
    shown = [block for block in blocks_of(chosen, layers) if block in there]
    first, *others = [distance_heatmap(frame, chosen=block, **settings) for block in (*shown, None)]
    return first.add_traces([fig.data[-1] for fig in others[:-1]])


def _named(layers: Layers) -> str:
    return f"layer{'s' if len(layers) > 1 else ''} {format_layers(layers)}"

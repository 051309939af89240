"""The measures that the picker shows: any frame by block or by layer, as one small array each. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from workbench.arguments import check_frame
from workbench.checks import checked
from workbench.distances.blocks import checked_blocks, format_layers, layers_are_known, layers_in

#: what each known measure is called, and its column
LABELS = {
    "distance": "angular distance",
    "damage": "damage (nats per token)",
    "influence": "block influence",
    "similarity": "1 − removal similarity",
}
#: columns that are never the measure itself
_BESIDE = {"start", "size", "layer", "std", "ci_low", "ci_high", "n_texts", "n_tokens", "n"}
_BESIDE |= {"base_loss", "loss"}
_STEPS = 32767


@dataclass(frozen=True)
class Metric:
    """A measure of blocks, low = removable.

    Attributes:
        name: as the picker's columns call it.
        label: as its page calls it.
        single: whether it measures single layers; a block's value is then the sum over its layers.
        table: ``start, size, value, low, high``, NaN where there is no interval.
        n_texts: how many texts it was measured on, None where the frame does not tell.
    """

    name: str
    label: str
    single: bool
    table: pd.DataFrame
    n_texts: int | None

    def block(self, layers: Sequence[int]) -> dict[str, float]:
        """Return value and interval of a set of layers, as far as they are known."""
        values = self._single(layers) if self.single else self._whole(layers)
        names = ("distance", "ci_low", "ci_high")
        if self.name != "distance":
            names = (self.name, f"{self.name}_low", f"{self.name}_high")
        return {name: float(value) for name, value in zip(names, values, strict=True) if np.isfinite(value)}

    def _whole(self, layers: Sequence[int]) -> list[float]:
        rows = self.table[(self.table["start"] == layers[0]) & (self.table["size"] == len(layers))]
        return rows[["value", "low", "high"]].iloc[0].tolist() if len(rows) else [np.nan] * 3

    def _single(self, layers: Sequence[int]) -> list[float]:
        rows = self.table.set_index("start").reindex(list(layers))
        low_high = rows[["low", "high"]].iloc[0].tolist() if len(layers) == 1 else [np.nan] * 2
        return [rows["value"].sum(skipna=False), *low_high]

    def packed(self, layers: Sequence[int], sizes: Sequence[int]) -> tuple[dict[str, Any], bytes]:
        """Return what the page is told, and the numbers by size, then by first layer.

        Values are float32. The ends of an interval are int16 steps from the value: 8 bytes a block in all.
        """
        pairs = [(1 if self.single else size, start) for size in ([1] if self.single else sizes)
                 for start in layers[: len(layers) - (1 if self.single else size) + 1]]  # fmt: skip
        index = pd.MultiIndex.from_tuples(pairs, names=["size", "start"])
        values = self.table.set_index(["size", "start"]).reindex(index)
        told: dict[str, Any] = {"name": self.name, "label": self.label, "single": self.single, "step": 0.0}
        told["texts"] = self.n_texts
        data = values["value"].to_numpy("<f4").tobytes()
        away = (values[["low", "high"]].sub(values["value"], axis=0)).to_numpy(float).T
        if np.isfinite(away).any():
            told["step"] = float(np.nanmax(np.abs(away)) / _STEPS) or 1.0
            steps = np.where(np.isfinite(away), np.rint(away / told["step"]), -_STEPS - 1)
            data += steps.astype("<i2").tobytes()
        return told, data + b"\0" * (-len(data) % 4)


def metrics_of(
    distances: pd.DataFrame,
    damage: pd.DataFrame | None,
    influence: pd.DataFrame | None,
    similarity: pd.DataFrame | None,
    frames: Mapping[str, pd.DataFrame] | None,
    layers: Sequence[int],
) -> list[Metric]:
    """Return the measures of one model in the order that the picker offers them.

    Raises:
        ValueError: for a frame of another model, without a measure, or with a name that is taken.
    """
    given = {"distance": distances, "damage": damage, "influence": influence, "similarity": similarity}
    known = {name: frame for name, frame in given.items() if frame is not None}
    others = dict(frames or {})
    if taken := sorted(set(others) & set(LABELS)):
        raise ValueError(f"frames must have names other than {list(LABELS)}, got {taken[0]!r}")
    found = [_metric(name, frame, layers, name) for name, frame in known.items()]
    found += [_metric(str(name), frame, layers, None) for name, frame in others.items()]
    weights = [getattr(one, "attrs", {}).get("model") for one in (*known.values(), *others.values())]
    told = [model.get("weights") for model in weights if isinstance(model, dict) and model.get("weights")]
    if len(set(told)) > 1:
        raise ValueError("distances and the other frames must be of one model, they have different weights")
    return found


def _metric(name: str, frame: Any, layers: Sequence[int], column: str | None) -> Metric:
    what = {"distance": "distances"}.get(name, name)
    check_frame(what, checked(frame, [], what))
    single = "layer" in frame.columns
    if single:
        frame = frame.assign(start=frame["layer"], size=1)
    column = column or _column(frame, what)
    table = checked_blocks(frame, column, what)
    if strange := sorted(set(table["start"]) - set(layers)):
        allowed = f"{what} must be of the same model, whose layers are {format_layers(layers)}"
        raise ValueError(f"{allowed}, got layer {strange[0]}")
    shown = table.reindex(columns=["start", "size", column, "ci_low", "ci_high"])
    shown = shown.set_axis(["start", "size", "value", "low", "high"], axis=1)
    shown = shown.astype(dict.fromkeys(("value", "low", "high"), float))
    if column == "similarity":  # high = removable: shown as what it loses
        shown = shown.assign(value=1 - shown["value"], low=1 - shown["high"], high=1 - shown["low"])
    n_texts = int(table["n_texts"].iloc[0]) if "n_texts" in table and table["n_texts"].notna().all() else None
    return Metric(name, LABELS.get(name, name), single, shown, n_texts)


def _column(frame: pd.DataFrame, what: str) -> str:
    """Return the one column of a frame that can be its measure."""
    numbers = [name for name in frame.select_dtypes("number") if name not in _BESIDE]
    if len(numbers) == 1:
        return str(numbers[0])
    for name in (*LABELS, "value"):
        if name in numbers:
            return name
    raise ValueError(f"{what} must hold one column of numbers beside start and size, got {numbers or 'none'}")


def single_layers(metrics: Sequence[Metric], layers: Sequence[int]) -> pd.DataFrame | None:
    """Return what removing each layer alone costs, by damage if it was measured, for a greedy choice."""
    tables = {metric.name: metric.table.query("size == 1").dropna(subset="value") for metric in metrics}
    for name in ("damage", "influence", "similarity", "distance"):
        if name in tables and set(tables[name]["start"]) == set(layers):
            costs = tables[name].rename(columns={"start": "layer", "value": "damage"})
            costs.attrs["by"] = name
            return costs.astype({"layer": int})
    return None


def layers_of_model(frame: pd.DataFrame) -> list[int]:
    """Return the model's layers; where they can only be guessed from gaps between blocks, refuse."""
    layers, starts = layers_in(frame), sorted(set(frame["start"]))
    told = layers_are_known(frame) or set(starts) <= set(frame.loc[frame["size"] == 1, "start"])
    if not told and starts != list(range(starts[0], starts[-1] + 1)):
        raise ValueError("distances must have no gaps between blocks, or be as angular_distances gave them")
    return layers


def layer_savings(savings: pd.DataFrame, layers: list[int]) -> dict[str, Any]:
    """Return parameters and FLOPs of each layer and of the whole; a block's are the sum over its layers."""
    columns = ["start", "size", "parameters", "parameters_left", "flops", "flops_left"]
    single = checked(savings, columns, "savings").query("size == 1").sort_values("start")
    if list(single["start"]) not in (layers, list(range(len(layers)))):
        raise ValueError(f"savings must hold the model's {len(layers)} blocks of size 1, got {len(single)}")
    whole = [int(single[name].iloc[0] + single[f"{name}_left"].iloc[0]) for name in ("parameters", "flops")]
    counts = single[["parameters", "flops"]].astype(int)
    return {"_totals": whole, **{f"_{name}": counts[name].tolist() for name in counts}}

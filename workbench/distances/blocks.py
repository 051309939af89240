"""Blocks of layers: how they are named, frames of them, and the best of each size. No torch, no model.

A block is ``(start, size)``: ``size`` layers from ``start`` on. As text, layers are written as in the papers:
``"24-25"``, or ``"3,9-10"`` for a set with gaps. Layers are always named by their original number, also for a
model that has been pruned before: its frames skip the missing layers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from workbench.checks import checked, is_whole, whole_number

Layers = tuple[int, ...]


def layers_of(start: int, size: int, *, layers: Sequence[int] | None = None) -> Layers:
    """Return the layers that block ``(start, size)`` removes: ``start .. start+size-1``.

    Args:
        start: first layer removed, at least 0.
        size: number of layers removed, at least 1.
        layers: the original numbers of the layers that the model has (``kept_layers(model)``), for a model
            that was pruned before: the block is then ``size`` of these in a row. Default: every number from 0
            on.

    Raises:
        ValueError: when ``start`` is not a layer, or the block does not fit.

    >>> layers_of(3, 2)
    (3, 4)
    >>> layers_of(3, 2, layers=[0, 1, 3, 7])
    (3, 7)
    """
    start, size = whole_number(start, "start", least=0), whole_number(size, "size")
    if layers is None:
        return tuple(range(start, start + size))
    kept = [int(layer) for layer in layers]
    if start not in kept:
        raise ValueError(f"start must be one of the model's layers {format_layers(kept)}, got {start}")
    if (first := kept.index(start)) + size > len(kept):
        raise ValueError(f"a block must end within {len(kept)} layers, got start {start}, size {size}")
    return tuple(kept[first : first + size])


def checked_layers(chosen: Any, layers: Sequence[int], what: str = "layers") -> Layers:
    """Return layers in order, each once, after a check that the model has them and keeps one at least.

    Raises:
        ValueError: for anything else.
    """
    is_several = hasattr(chosen, "__iter__") and not isinstance(chosen, (str, bytes, Mapping))
    asked = list(chosen) if is_several else [chosen]
    strange = [one for one in asked if not is_whole(one) or one not in layers]
    allowed = f"{what} must be among the model's layers {format_layers(layers)}"
    if strange or not is_several:
        raise ValueError(f"{allowed}, got {strange[0] if strange else chosen!r}")
    if not asked:
        raise ValueError(f"{allowed}, at least one of them, got none")
    found = tuple(sorted({int(one) for one in asked}))
    if len(found) == len(layers):
        raise ValueError(f"{allowed}, and not all of them: something has to stay")
    return found


def format_layers(layers: Iterable[int]) -> str:
    """Return layers as text, with each run of layers joined.

    Raises:
        ValueError: for what is no layer number.

    >>> format_layers([9, 3, 10])
    '3,9-10'
    """
    ordered = sorted({whole_number(layer, "layer", least=0) for layer in layers})
    breaks = [i for i in range(1, len(ordered)) if ordered[i] != ordered[i - 1] + 1]
    edges = zip([0, *breaks], [*breaks, len(ordered)], strict=True)
    runs = [ordered[i:j] for i, j in edges if i < j]
    return ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def block_text(start: int, size: int, layers: Sequence[int] | None = None) -> str:
    """Return the layers that a block removes as text.

    >>> block_text(24, 2)
    '24-25'
    """
    return format_layers(layers_of(start, size, layers=layers))


def parse_layers(text: str) -> Layers:
    """Return the layers that ``format_layers`` wrote.

    Raises:
        ValueError: for text of another form.

    >>> parse_layers("3,9-10")
    (3, 9, 10)
    """
    layers: list[int] = []
    for part in str(text).split(","):
        ends = part.strip().split("-")
        if len(ends) > 2 or not all(end.strip().isdigit() for end in ends):
            raise ValueError(f"removed layers must look like '24-25' or '3,9-10', got {text!r}")
        layers += range(int(ends[0]), int(ends[-1]) + 1)
    return tuple(layers)


def layer_sets_of(blocks: pd.DataFrame, layers: Sequence[int]) -> list[Layers]:
    """Return the layers of each row of a frame, by its column ``removed``, else by ``start`` and ``size``.

    Raises:
        ValueError: for a frame with neither, no rows, or blocks that `layers` do not hold.
    """
    if "removed" in blocks:
        return [parse_layers(text) for text in blocks["removed"]]
    pairs = checked(blocks, ["start", "size"], "blocks")[["start", "size"]].to_numpy().tolist()
    return [layers_of(*pair, layers=layers) for pair in pairs]


def best_blocks(distances: pd.DataFrame, sizes: Iterable[int] | None = None) -> pd.DataFrame:
    """Return the block to prune for each size: the one of least angular distance (GRO 3.2, SDD 2.1).

    Args:
        distances: frame of ``angular_distances``; a frame of ``block_damage`` works too, by its damage.
        sizes: block sizes; None means every size in the frame.

    Returns:
        Frame ``strategy, size, start, removed`` and the frame's other columns, one row a size. Equal
        distances go to the lower start.

    Raises:
        ValueError: when columns are missing, a block is given twice, or for a size out of range.

    >>> frame = pd.DataFrame({"start": [0, 1, 0], "size": [1, 1, 2], "distance": [0.3, 0.2, 0.4]})
    >>> best_blocks(frame, [1])[["size", "start", "removed", "distance"]].values.tolist()
    [[1, 1, '1', 0.2]]
    """
    value, frame = block_metric(distances)
    chosen = sizes_in(frame, sizes)
    best = least(frame[frame["size"].isin(chosen)], value)
    named = ["strategy", "size", "start", "removed"]
    best = best.assign(strategy="best", removed=_as_text(best, layers_in(frame)))
    result = best[[*named, *best.columns.difference(named, sort=False)]]
    result.attrs = dict(distances.attrs)
    return result


def block_metric(frame: Any) -> tuple[str, pd.DataFrame]:
    """Return the name of the metric, distance or else damage, and the rows that are blocks."""
    columns = getattr(frame, "columns", ())
    value = "damage" if "damage" in columns and "distance" not in columns else "distance"
    return value, _block_rows(frame, value, "distances")


def block_row(frame: pd.DataFrame, start: int, size: int) -> pd.Series:
    """Return the row of one block.

    Raises:
        ValueError: the frame does not have it.
    """
    found = frame[(frame["start"] == start) & (frame["size"] == size)]
    if found.empty:
        raise ValueError(f"a block must be one of the frame's {len(frame)}, got start {start}, size {size}")
    return found.iloc[0]


def checked_blocks(frame: Any, value: str, what: str) -> pd.DataFrame:
    """Return the rows of a frame that are blocks with a value, by size and start, with what each removes.

    Raises:
        ValueError: for missing columns, for a block that occurs twice, for a frame without one number.

    >>> frame = pd.DataFrame({"start": [2, 0], "size": [1, 2], "damage": [0.1, 0.2]})
    >>> checked_blocks(frame, "damage", "damage")["removed"].tolist()
    ['2', '0-1']
    """
    frame = _block_rows(frame, value, what)
    return frame.assign(removed=removed_by(frame)).sort_values(["size", "start"], ignore_index=True)


def _block_rows(frame: Any, value: str, what: str) -> pd.DataFrame:
    frame = checked(frame, ["start", "size", value], what)
    frame = frame[frame["start"].notna() & frame[value].notna()].astype({"start": "int64", "size": "int64"})
    if frame.empty:
        raise ValueError(f"{what} must hold at least one block with a number in {value!r}, got none")
    return checked(frame, [], what, unique=("start", "size"))


def layers_in(blocks: pd.DataFrame) -> list[int]:
    """Return the model's layers: from the frame's provenance, else the starts of its blocks of size 1."""
    if layers_are_known(blocks):
        return sorted(int(layer) for layer in blocks.attrs["model"]["kept_layers"])
    single = blocks.loc[blocks["size"] == 1, "start"]
    if len(single):
        return sorted(int(layer) for layer in single.unique())
    return list(range(int((blocks["start"] + blocks["size"]).max())))


def layers_are_known(blocks: pd.DataFrame) -> bool:
    """Return whether the frame's provenance names the model's layers, also where rows were taken out."""
    model = blocks.attrs.get("model")
    return isinstance(model, dict) and bool(model.get("kept_layers"))


def sizes_in(blocks: pd.DataFrame, sizes: Iterable[int] | None) -> list[int]:
    """Return the sizes asked for, in order, after a check that the frame holds them."""
    there = sorted(int(size) for size in blocks["size"].unique())
    if sizes is None:
        return there
    asked = checked_sizes(sizes, len(layers_in(blocks)))
    missing = [size for size in asked if size not in there]
    if missing:
        raise ValueError(f"size must be one of those in the frame, {format_layers(there)}, got {missing[0]}")
    return asked


def checked_sizes(sizes: Iterable[int] | None, n_layers: int) -> list[int]:
    """Return sizes in order, each between 1 and the layer count less 1, after a check; None: all of these."""
    if sizes is None:
        return list(range(1, n_layers))
    asked: list[Any] = list(sizes) if isinstance(sizes, Iterable) else [sizes]
    if not asked:
        raise ValueError(f"sizes must name at least one size between 1 and {n_layers - 1}, got none")
    for size in asked:
        if not is_whole(size) or not 1 <= size < n_layers:
            raise ValueError(f"size must be between 1 and {n_layers - 1}, below the depth, got {size!r}")
    return sorted({int(size) for size in asked})


def removed_by(frame: pd.DataFrame) -> list[str]:
    """Return the layers that each block removes, as the papers print them.

    A model that was pruned before has gaps between its layers; the frame's provenance names those that it
    has, or else its blocks of size 1. A frame of chosen blocks without provenance may not hold all of these:
    there, the blocks are read as runs without gaps.
    """
    if "removed" in frame:
        return [str(text) for text in frame["removed"]]
    if layers_are_known(frame):
        return _as_text(frame, layers_in(frame))
    single = frame.loc[frame["size"] == 1, "start"]
    whole = set(frame["start"]) <= set(single) and len(frame) >= frame["size"].max()
    return _as_text(frame, layers_in(frame) if whole else None)


def layer_set_frame(
    layer_sets: Iterable[Iterable[int]], present: Sequence[int] | None = None
) -> pd.DataFrame:
    """Return ``start, size, removed`` of sets of layers; ``start`` is <NA> where the layers are no block.

    Args:
        layer_sets: the sets, none of them empty.
        present: the layers that the model has; a block is then a run of these. Default: every number.

    >>> layer_set_frame([(3, 4), (3, 9)]).values.tolist()
    [[3, 2, '3-4'], [<NA>, 2, '3,9']]
    """
    place = (lambda layer: layer) if present is None else list(present).index
    ordered = [sorted(layers) for layers in layer_sets]
    starts = [one[0] if place(one[-1]) - place(one[0]) < len(one) else pd.NA for one in ordered]
    frame = pd.DataFrame({"start": pd.array(starts, dtype="Int64"), "size": [*map(len, ordered)]})
    frame["removed"] = [*map(format_layers, ordered)]
    return frame if frame["start"].hasnans else frame.astype({"start": "int64"})


def _as_text(blocks: pd.DataFrame, layers: Sequence[int] | None) -> list[str]:
    pairs = zip(blocks["start"], blocks["size"], strict=True)
    return [block_text(start, size, layers) for start, size in pairs]


def least(blocks: pd.DataFrame, value: str) -> pd.DataFrame:
    """Return one row a size: the block of least value, the shallowest of equals, as ``best_blocks`` does.

    >>> blocks = pd.DataFrame({"start": [0, 1, 2], "size": 1, "damage": [0.3, 0.1, 0.1]})
    >>> least(blocks, "damage")["start"].tolist()
    [1]
    """
    ordered = blocks.sort_values(["size", value, "start"], kind="stable")
    return ordered.groupby("size").head(1).reset_index(drop=True)

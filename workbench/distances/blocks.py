"""Which layers to remove, read off frames: best, deepest, shallowest, random, greedy. No torch, no model.

Every answer is a frame with one row a removal: ``strategy``, ``size`` (layers removed), ``removed`` (the
layers as the papers print them, ``"24-25"``, or ``"3,9-10"`` for a set with gaps) and, for a block, its
``start``. Layers are always named by their original number, also for a model that has been pruned before:
there the frames of ``distances`` skip the missing layers, and so does everything here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from workbench.checks import checked
from workbench.statistics import removal_cost

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
    """
    if not _is_whole(start) or start < 0:
        raise ValueError(f"start must be a layer number, 0 or more, got {start!r}")
    if not _is_whole(size) or size < 1:
        raise ValueError(f"size must be a whole number of at least 1, got {size!r}")
    if layers is None:
        return tuple(range(int(start), int(start) + int(size)))
    kept = [int(layer) for layer in layers]
    if start not in kept:
        raise ValueError(f"start must be one of the model's layers {format_layers(kept)}, got {start}")
    block = kept[kept.index(start) :][: int(size)]
    if len(block) < size:
        last = kept[-int(size)] if size <= len(kept) else None
        room = f"at most {last} for size {size}" if last is not None else f"of a size up to {len(kept)}"
        raise ValueError(
            f"a block must end within the model's {len(kept)} layers: start {room}, got start {start}"
        )
    return tuple(block)


def format_layers(layers: Iterable[int]) -> str:
    """Return layers as text, runs joined: ``(24, 25)`` -> ``"24-25"``, ``(3, 9, 10)`` -> ``"3,9-10"``."""
    ordered = sorted({int(layer) for layer in layers})
    breaks = [i for i in range(1, len(ordered)) if ordered[i] != ordered[i - 1] + 1]
    edges = zip([0, *breaks], [*breaks, len(ordered)], strict=True)
    runs = [ordered[i:j] for i, j in edges if i < j]
    return ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def parse_layers(text: str) -> Layers:
    """Return the layers that ``format_layers`` wrote: ``"3,9-10"`` -> ``(3, 9, 10)``.

    Raises:
        ValueError: for text of another form.
    """
    layers: list[int] = []
    for part in str(text).split(","):
        ends = part.strip().split("-")
        if len(ends) > 2 or not all(end.strip().isdigit() for end in ends):
            raise ValueError(f"removed layers must look like '24-25' or '3,9-10', got {text!r}")
        layers += range(int(ends[0]), int(ends[-1]) + 1)
    return tuple(layers)


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
    """
    value, frame = block_metric(distances)
    chosen = sizes_in(frame, sizes)
    ordered = frame.sort_values(["size", value, "start"], kind="stable")
    best = ordered.groupby("size", sort=True).head(1)
    best = best[best["size"].isin(chosen)].reset_index(drop=True)
    layers = layers_in(frame)
    removed = [
        format_layers(layers_of(s, n, layers=layers))
        for s, n in zip(best["start"], best["size"], strict=True)
    ]
    best = best.drop(columns="removed", errors="ignore")
    rest = [column for column in best if column not in ("strategy", "size", "start")]
    result = best.assign(strategy="best", removed=removed)[["strategy", "size", "start", "removed", *rest]]
    result.attrs = dict(distances.attrs)
    return result


def deepest_blocks(
    n_layers: int | Sequence[int], sizes: Iterable[int], *, keep_last: bool = True
) -> pd.DataFrame:
    """Return the deepest block of each size, by default leaving the very last layer in place (GRO 3.2, 4.4).

    Args:
        n_layers: the model's layer count, or the original numbers of its layers.
        sizes: block sizes, between 1 and the layer count less 1.
        keep_last: False removes the last layer too (strategy ``"deepest with last"``).

    Returns:
        Frame ``strategy, size, start, removed``.

    Raises:
        ValueError: for a size out of range.
    """
    layers = _layer_numbers(n_layers)
    end = len(layers) - 1 if keep_last else len(layers)
    name = "deepest" if keep_last else "deepest with last"
    return _removals(name, [layers[end - size : end] for size in checked_sizes(sizes, len(layers))])


def shallowest_blocks(n_layers: int | Sequence[int], sizes: Iterable[int]) -> pd.DataFrame:
    """Return the first layers for each size: ``0 .. size-1`` (GRO C.4).

    Args:
        n_layers: the model's layer count, or the original numbers of its layers.
        sizes: block sizes, between 1 and the layer count less 1.

    Returns:
        Frame ``strategy, size, start, removed``.

    Raises:
        ValueError: for a size out of range.
    """
    layers = _layer_numbers(n_layers)
    return _removals("shallowest", [layers[:size] for size in checked_sizes(sizes, len(layers))])


def random_layers(
    n_layers: int | Sequence[int], sizes: Iterable[int], *, n_draws: int = 1, seed: int = 0
) -> pd.DataFrame:
    """Return layers drawn at random, without regard to order (GRO C.4).

    Args:
        n_layers: the model's layer count, or the original numbers of its layers.
        sizes: how many layers to remove, between 1 and the layer count less 1.
        n_draws: independent draws for each size.
        seed: of the draws; a size's draws do not depend on which other sizes are asked for.

    Returns:
        Frame ``strategy, size, start, removed, draw``; ``start`` is <NA> where the layers are no block.

    Raises:
        ValueError: for a size out of range or fewer than one draw.
    """
    layers = _layer_numbers(n_layers)
    if not _is_whole(n_draws) or n_draws < 1:
        raise ValueError(f"n_draws must be a whole number of at least 1, got {n_draws!r}")
    asked = checked_sizes(sizes, len(layers))
    rngs = [(size, np.random.default_rng([seed, size])) for size in asked]
    sets = [sorted(rng.choice(layers, size, replace=False)) for size, rng in rngs for _ in range(n_draws)]
    return _removals("random", sets).assign(draw=list(range(n_draws)) * len(asked))


def greedy_layers(
    score: pd.DataFrame | Callable[[Layers], pd.DataFrame],
    sizes: Iterable[int],
    *,
    strategy: str | None = None,
) -> pd.DataFrame:
    """Return layers removed one by one, each time the one whose removal costs least.

    Args:
        score: a frame with ``layer`` and one metric (``influence``, ``similarity``, ``damage``): the cheapest
            layers go at once, as ShortGPT does with block influence. Or a function of the layers removed so
            far that scores every layer still there, as IteRABRe does, for example
            ``lambda removed: removal_similarity(model, tokenizer, texts, removed=removed)``.
        sizes: how many layers to remove, between 1 and the layer count less 1.
        strategy: name for the column; None means ``"one-shot"`` for a frame and ``"greedy"`` for a function.

    Returns:
        Frame ``strategy, size, start, removed, order``: ``order`` lists the layers as they went, ``"7 3 5"``.

    Raises:
        ValueError: for a size out of range, or a score without a layer and exactly one metric.
    """
    first = score(()) if callable(score) else score
    costs = _layer_costs(first)
    asked = checked_sizes(sizes, len(costs))
    if callable(score):
        order: list[int] = [_cheapest(costs)]
        while len(order) < max(asked):
            order.append(_cheapest(_layer_costs(score(tuple(order))).drop(order, errors="ignore")))
    else:
        order = [int(layer) for layer in costs.sort_values(kind="stable").index]
    name = strategy or ("greedy" if callable(score) else "one-shot")
    went = [" ".join(str(layer) for layer in order[:size]) for size in asked]
    return _removals(name, [order[:size] for size in asked]).assign(order=went)


def removal_strategies(
    distances: pd.DataFrame, sizes: Iterable[int] | None = None, *, n_draws: int = 1, seed: int = 0
) -> pd.DataFrame:
    """Return what each strategy without a model would remove: best, deepest (two ways), shallowest, random.

    Args:
        distances: frame of ``angular_distances``.
        sizes: block sizes, between 1 and the layer count less 1; None means all of these.
        n_draws: random draws for each size.
        seed: of the random draws.

    Returns:
        Frame ``strategy, size, start, removed, draw``, ordered by size; ``draw`` is 0 but for further random
        draws.

    Raises:
        ValueError: when columns are missing or for a size out of range.
    """
    _, frame = block_metric(distances)
    layers = layers_in(frame)
    asked = checked_sizes(range(1, len(layers)) if sizes is None else sizes, len(layers))
    parts = [
        best_blocks(distances, asked)[["strategy", "size", "start", "removed"]],
        deepest_blocks(layers, asked),
        deepest_blocks(layers, asked, keep_last=False),
        shallowest_blocks(layers, asked),
        random_layers(layers, asked, n_draws=n_draws, seed=seed),
    ]
    frames = [part.assign(draw=part.get("draw", 0)).astype({"start": "Int64"}) for part in parts]
    return pd.concat(frames, ignore_index=True).sort_values("size", kind="stable", ignore_index=True)


def block_metric(frame: Any) -> tuple[str, pd.DataFrame]:
    """Return the name of the metric and the rows that are blocks."""
    check_columns("distances", frame, ["start", "size"])
    value = next((name for name in ("distance", "damage") if name in frame), None)
    if value is None:
        raise ValueError(f"distances must have the column distance (or damage), got {list(frame.columns)}")
    blocks = frame[frame["start"].notna() & frame[value].notna()].astype({"start": "int64", "size": "int64"})
    if blocks.duplicated(["start", "size"]).any():
        raise ValueError(
            "distances must hold every block (start, size) once, got some twice; select one set of them"
        )
    if blocks.empty:
        raise ValueError(f"distances must hold at least one block with a {value}, got none")
    return value, blocks


def layers_in(blocks: pd.DataFrame) -> list[int]:
    """Return the model's layers: from the frame's provenance, else the starts of its blocks of size 1."""
    model = blocks.attrs.get("model")
    if isinstance(model, dict) and model.get("kept_layers"):
        return sorted(int(layer) for layer in model["kept_layers"])
    single = blocks.loc[blocks["size"] == 1, "start"]
    if len(single):
        return sorted(int(layer) for layer in single.unique())
    return list(range(int((blocks["start"] + blocks["size"]).max())))


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


def checked_sizes(sizes: Iterable[int], n_layers: int) -> list[int]:
    """Return sizes in order, each between 1 and the layer count less 1, after a check."""
    asked: list[Any] = list(sizes) if isinstance(sizes, Iterable) else [sizes]
    if not asked:
        raise ValueError(f"sizes must name at least one size between 1 and {n_layers - 1}, got none")
    for size in asked:
        if not _is_whole(size) or not 1 <= size < n_layers:
            raise ValueError(
                f"size must be between 1 and {n_layers - 1} for a model of {n_layers} layers, got {size!r}"
            )
    return sorted({int(size) for size in asked})


def _layer_numbers(n_layers: Any) -> list[int]:
    layers = list(range(int(n_layers))) if _is_whole(n_layers) else sorted(int(layer) for layer in n_layers)
    if len(layers) < 2:
        raise ValueError(f"n_layers must be at least 2, or removing leaves nothing, got {n_layers!r}")
    return layers


def _removals(strategy: str, layer_sets: Sequence[Sequence[int]]) -> pd.DataFrame:
    ordered = [sorted(int(layer) for layer in layers) for layers in layer_sets]
    starts = [layers[0] if layers[-1] - layers[0] == len(layers) - 1 else pd.NA for layers in ordered]
    frame = pd.DataFrame(
        {
            "strategy": strategy,
            "size": [len(layers) for layers in ordered],
            "start": pd.array(starts, dtype="Int64"),
            "removed": [format_layers(layers) for layers in ordered],
        }
    )
    return frame if frame["start"].hasnans else frame.astype({"start": "int64"})


def _layer_costs(frame: pd.DataFrame) -> pd.Series:
    costs = removal_cost(frame)
    costs = costs[costs["size"] == 1].set_index("start")["cost"].sort_index()
    if len(costs) < 2:
        raise ValueError(f"score must hold at least two layers, or blocks of size 1, got {len(costs)}")
    return costs


def _cheapest(costs: pd.Series) -> int:
    return int(costs.idxmin())


def check_columns(name: str, frame: Any, columns: list[str]) -> None:
    """Raise a ValueError unless ``frame`` is a frame with these columns."""
    if not isinstance(frame, pd.DataFrame):
        raise ValueError(f"{name} must be a pandas DataFrame, got {type(frame).__name__}")
    missing = [column for column in columns if column not in frame]
    if missing:
        raise ValueError(
            f"{name} must have the columns {columns}; missing {missing}, got {list(frame.columns)}"
        )


def _is_whole(value: Any) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


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


def least(blocks: pd.DataFrame, value: str) -> pd.DataFrame:
    """Return one row a size: the block of least value, the shallowest of equals, as ``best_blocks`` does.

    >>> blocks = pd.DataFrame({"start": [0, 1, 2], "size": 1, "damage": [0.3, 0.1, 0.1]})
    >>> least(blocks, "damage")["start"].tolist()
    [1]
    """
    ordered = blocks.sort_values(["size", value, "start"], kind="stable")
    return ordered.groupby("size").head(1).reset_index(drop=True)

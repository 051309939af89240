"""What to remove without asking for distances: deepest, shallowest, random, greedy. No torch, no model.

Every answer is a frame with one row a choice: ``strategy``, ``size`` (layers removed), ``start`` (<NA> where
the layers are no block) and ``removed`` (the layers as text, see ``blocks``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from workbench.agreement import removal_cost
from workbench.checks import checked, is_whole
from workbench.distances.blocks import best_blocks, block_metric, checked_sizes, layer_set_frame, layers_in

_COLUMNS = ["strategy", "size", "start", "removed"]


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

    >>> deepest_blocks(8, [1, 3])["removed"].tolist()
    ['6', '4-6']
    """
    layers = _layer_numbers(n_layers)
    end = len(layers) - 1 if keep_last else len(layers)
    name = "deepest" if keep_last else "deepest with last"
    return _strategy_frame(name, [layers[end - size : end] for size in checked_sizes(sizes, len(layers))])


def shallowest_blocks(n_layers: int | Sequence[int], sizes: Iterable[int]) -> pd.DataFrame:
    """Return the first layers for each size: ``0 .. size-1`` (GRO C.4).

    Args:
        n_layers: the model's layer count, or the original numbers of its layers.
        sizes: block sizes, between 1 and the layer count less 1.

    Returns:
        Frame ``strategy, size, start, removed``.

    Raises:
        ValueError: for a size out of range.

    >>> shallowest_blocks(8, [1, 3])["removed"].tolist()
    ['0', '0-2']
    """
    layers = _layer_numbers(n_layers)
    return _strategy_frame("shallowest", [layers[:size] for size in checked_sizes(sizes, len(layers))])


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

    >>> random_layers(8, [2], n_draws=2, seed=0)[["strategy", "size", "draw"]].values.tolist()
    [['random', 2, 0], ['random', 2, 1]]
    """
    layers = _layer_numbers(n_layers)
    asked = checked_sizes(sizes, len(layers))
    rngs = [(size, np.random.default_rng([seed, size])) for size in asked]
    sets = [sorted(rng.choice(layers, size, replace=False)) for size, rng in rngs for _ in range(n_draws)]
    return _strategy_frame("random", sets).assign(draw=list(range(n_draws)) * len(asked))


def greedy_layers(
    score: pd.DataFrame | Callable[[tuple[int, ...]], pd.DataFrame],
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

    >>> influence = pd.DataFrame({"layer": range(4), "influence": [0.5, 0.1, 0.3, 0.2]})
    >>> greedy_layers(influence, [2])[["removed", "order"]].values.tolist()
    [['1,3', '1 3']]
    """
    ask = score if callable(score) else lambda gone: score
    costs = _layer_costs(ask(()))
    asked = checked_sizes(sizes, len(costs))
    order = [int(costs.idxmin())]
    while len(order) < max(asked):
        order.append(int(_layer_costs(ask(tuple(order))).drop(order, errors="ignore").idxmin()))
    name = strategy or ("greedy" if callable(score) else "one-shot")
    went = [" ".join(str(layer) for layer in order[:size]) for size in asked]
    return _strategy_frame(name, [order[:size] for size in asked]).assign(order=went)


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

    >>> frame = pd.DataFrame({"start": [0, 1, 2], "size": 1, "distance": [0.3, 0.1, 0.2]})
    >>> removal_strategies(frame, [1]).set_index("strategy")["removed"].drop("random").to_dict()
    {'best': '1', 'deepest': '1', 'deepest with last': '2', 'shallowest': '0'}
    """
    _, frame = block_metric(distances)
    layers = layers_in(frame)
    asked = checked_sizes(sizes, len(layers))
    parts = [
        best_blocks(distances, asked)[_COLUMNS],
        deepest_blocks(layers, asked),
        deepest_blocks(layers, asked, keep_last=False),
        shallowest_blocks(layers, asked),
        random_layers(layers, asked, n_draws=n_draws, seed=seed),
    ]
    frames = [part.assign(draw=part.get("draw", 0)).astype({"start": "Int64"}) for part in parts]
    return pd.concat(frames, ignore_index=True).sort_values("size", kind="stable", ignore_index=True)


def _layer_numbers(n_layers: Any) -> list[int]:
    layers = list(range(int(n_layers))) if is_whole(n_layers) else sorted(int(layer) for layer in n_layers)
    if len(layers) < 2:
        raise ValueError(f"n_layers must be at least 2, or removing leaves nothing, got {n_layers!r}")
    return layers


def _strategy_frame(strategy: str, layer_sets: Sequence[Sequence[int]]) -> pd.DataFrame:
    return layer_set_frame(layer_sets).assign(strategy=strategy)[_COLUMNS]


def _layer_costs(frame: pd.DataFrame) -> pd.Series:
    costs = removal_cost(checked(frame, [], "score, or what it returns,"))
    costs = costs[costs["size"] == 1].set_index("start")["cost"].sort_index()
    if len(costs) < 2:
        raise ValueError(f"score must hold at least two layers, or blocks of size 1, got {len(costs)}")
    return costs

"""In which order a training sees its samples: fixed by the seed before the first step, epoch by epoch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from workbench.generation.engines import by_length

#: updates whose samples are sorted by length together: little padding, and the order still random
POOL = 32


def training_order(
    lengths: Sequence[int], total: int, batch_size: int, seed: int, *, grouped: bool = True
) -> list[int]:
    """Return which sample to take at each place of the whole training, update after update.

    Each epoch is planned by itself: places ``e * n`` to ``(e + 1) * n`` hold every one of the n samples once.
    Every update but the last of the training is full: where an epoch ends inside one, the next epoch fills it
    up with samples that it does not hold yet, so that none counts twice in an update unless ``batch_size`` is
    above n. A last part of an epoch is drawn at random.

    Args:
        lengths: of each sample, for ``grouped``. They must not depend on what is compared: give those of
            prompt and reference for two trainings on the same rows, and both see the same order.
        total: places to fill, over all epochs.
        batch_size: samples an update.
        seed: of the order.
        grouped: whether an update holds samples of like length (little padding), or whichever come (for
            packing). Lengths are sorted inside an epoch only, ``POOL`` updates together.

    >>> training_order([4, 9, 2, 7], total=6, batch_size=2, seed=1)
    [1, 3, 0, 2, 1, 0]
    """
    rng = np.random.default_rng(seed)
    order: list[int] = []
    while len(order) < total:
        begun = order[len(order) // batch_size * batch_size :]
        free, size = -len(order) % batch_size, min(len(lengths), total - len(order))
        drawn = rng.permutation(len(lengths)).tolist()
        first = sorted(drawn, key=set(begun).__contains__)[: min(free, size)]
        taken = set(first)
        others = [k for k in drawn if k not in taken][: size - len(first)]
        order += first + (_grouped(others, lengths, batch_size, rng) if grouped else others)
    return order


def _grouped(drawn: list[int], lengths: Sequence[int], batch_size: int, rng: Any) -> list[int]:
    """Return the same samples, those of like length in one batch; a last short batch is left as drawn."""
    places: list[int] = []
    whole = len(drawn) // batch_size * batch_size
    for start in range(0, whole, POOL * batch_size):
        pool = drawn[start : min(start + POOL * batch_size, whole)]
        batches = by_length([lengths[k] for k in pool], batch_size)
        places += [pool[k] for batch in rng.permutation(len(batches)) for k in batches[batch]]
    return places + drawn[whole:]

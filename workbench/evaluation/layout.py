"""Prompts in rows and batches: what neighbours in sorted order have in common is laid out once.

Sorted by their tokens, inputs with a common beginning are neighbours. A row lays such neighbours out as a
tree; a block is the beginning that many rows share, such as the few-shot examples of an MMLU subject. Blocks
of about one length are computed together, and so are the rows behind them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

#: an input joins a row when it shares so much of its tokens with the one before
_SHARE = 0.2
#: tokens of a row at most, but for one whose first input is longer
_ROW = 512
#: tokens that rows share at least for a cache of their own
_BLOCK = 32
#: how many times the tokens that a pass costs are in the blocks that are computed together, at most
_TOGETHER = 3


@dataclass
class Row:
    """Some inputs as one row of tokens, those in a block before it left out.

    Attributes:
        inputs: which inputs.
        ids: the tokens, each after what it reads.
        positions: each token's place in its input.
        ends: each token's place behind the last token that reads it.
        slots: for each input, where in the row its last tokens are, as many as are asked for.
        block: which of the blocks of its batch is in front of it.
    """

    inputs: list[int]
    ids: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)
    slots: list[list[int]] = field(default_factory=list)
    block: int = 0

    @property
    def shared(self) -> bool:
        """Whether several inputs end at different tokens of it."""
        return self.ends != [len(self.ids)] * len(self.ids)


@dataclass(frozen=True)
class Batch:
    """Rows that are computed together, each behind one of some blocks of tokens, or none behind any."""

    blocks: tuple[tuple[int, ...], ...]
    rows: list[Row]

    @property
    def shared(self) -> bool:
        """Whether inputs share tokens, so that masks say what each reads."""
        return bool(self.blocks) or any(row.shared for row in self.rows)

    @property
    def before(self) -> int:
        """Tokens of the longest block."""
        return max(map(len, self.blocks), default=0)

    @property
    def length(self) -> int:
        """Tokens of a row, padding included; with masks a multiple of 8 with the block, as kernels like."""
        longest = max(len(row.ids) for row in self.rows)
        return longest + -(longest + self.before) % 8 if self.shared else longest

    def in_halves(self) -> tuple[Batch, Batch]:
        """Return the first and the other rows."""
        half = len(self.rows) // 2
        return Batch(self.blocks, self.rows[:half]), Batch(self.blocks, self.rows[half:])


def plan(
    inputs: Sequence[np.ndarray],
    asked: Sequence[int],
    *,
    rows: int,
    tokens: int,
    places: int,
    sharing: bool,
    least: float = 0,
) -> list[Batch]:
    """Lay inputs out in batches, those of the same blocks one after the other, longest rows first.

    Args:
        inputs: tokens of each input, all different.
        asked: how many last tokens of each input are asked for.
        rows: of a batch at most.
        tokens: of a batch at most, padding included; a longer row stands alone.
        places: asked for in a batch at most; a row with more stands alone.
        sharing: whether beginnings are shared at all.
        least: tokens that a block, or a pass of its own by less padding, must save.
    """
    order = sorted(range(len(inputs)), key=lambda k: inputs[k].astype(">u4").tobytes())  # as by numbers
    common = [common_length(inputs[a], inputs[b]) if sharing else 0 for a, b in pairwise(order)]
    runs = _runs([len(inputs[k]) for k in order], common)
    alone: list[Row] = []
    blocks: list[tuple[tuple[int, ...], list[Row]]] = []
    for size, group in _blocks(runs, common, [len(inputs[k]) - asked[k] for k in order], least):
        laid = [laid_out(order, run, inputs, asked, common, size) for run in group]
        if size:
            blocks.append((tuple(inputs[laid[0].inputs[0]][:size].tolist()), laid))
        else:
            alone += laid
    groups: list[tuple[tuple[tuple[int, ...], ...], list[Row]]] = [((), alone)]
    for some in _together(blocks, tokens, least):
        for number, (_, laid) in enumerate(some):
            for row in laid:
                row.block = number
        groups.append((tuple(block for block, _ in some), [row for _, laid in some for row in laid]))
    return [
        Batch(before, part) for before, laid in groups for part in _parts(laid, rows, tokens, places, least)
    ]


def _together(blocks: list[Any], tokens: int, least: float) -> list[list[Any]]:
    """Return (block, rows) in groups that are computed together, where a pass costs more than padding.

    None is shorter than the first by more than ``least`` tokens; together, padded, they have at most
    ``tokens``, and at most ``_TOGETHER`` times ``least``.
    """
    groups: list[list[Any]] = []
    for one in sorted(blocks, key=lambda one: -len(one[0])):
        longest = len(groups[-1][0][0]) if groups else 0
        most = min(tokens, _TOGETHER * least)
        if groups and longest - len(one[0]) <= least and longest * (len(groups[-1]) + 1) <= most:
            groups[-1].append(one)
        else:
            groups.append([one])
    return groups


def common_length(one: np.ndarray, other: np.ndarray) -> int:
    """Return how many tokens two inputs begin with alike."""
    length = min(len(one), len(other))
    different = one[:length] != other[:length]
    first = int(different.argmax()) if length else 0
    return first if length and different[first] else length


def _runs(lengths: list[int], common: list[int]) -> list[list[int]]:
    """Return neighbours in sorted order that share a row."""
    runs, total = [[0]], lengths[0]
    for place, shared in enumerate(common, 1):
        joins = shared >= max(1, _SHARE * lengths[place])
        total += lengths[place] - shared
        if joins and total <= max(_ROW, lengths[runs[-1][0]] * 5 // 4):
            runs[-1].append(place)
        else:
            runs.append([place])
            total = lengths[place]
    return runs


def _blocks(
    runs: list[list[int]], common: list[int], readable: list[int], least: float
) -> list[tuple[int, list[list[int]]]]:
    """Return rows by the block before them, as (tokens of the block, rows); 0 for rows without one."""
    found: list[tuple[int, list[list[int]]]] = []
    for run in runs:
        inside = min((*common[run[0] : run[-1]], *(readable[place] for place in run)))
        if found and run[0]:
            size, group = found[-1]
            both = min(size, inside, common[run[0] - 1])
            if both >= _BLOCK and both * len(group) >= size * (len(group) - 1):
                found[-1] = (both, [*group, run])
                continue
        found.append((inside, [run]))
    return [(size if size * (len(group) - 1) >= max(least, 1) else 0, group) for size, group in found]


def laid_out(
    order: Sequence[int],
    run: Sequence[int],
    inputs: Sequence[np.ndarray],
    asked: Sequence[int],
    common: Sequence[int],
    skipped: int,
) -> Row:
    """Lay neighbours in sorted order out in a row, without their first ``skipped`` tokens."""
    row = Row([order[place] for place in run])
    path: list[int] = []  # where the tokens of the last input are, behind those skipped
    for place in run:
        shared = common[place - 1] - skipped if path else 0
        for slot in path[shared:]:
            row.ends[slot] = len(row.ids)
        fresh = inputs[order[place]][skipped + shared :].tolist()
        path[shared:] = range(len(row.ids), len(row.ids) + len(fresh))
        row.ids += fresh
        row.positions += range(skipped + shared, skipped + len(path))
        row.ends += [0] * len(fresh)
        row.slots.append(path[len(path) - asked[order[place]] :])
    for slot in path:
        row.ends[slot] = len(row.ids)
    return row


def _parts(laid: list[Row], rows: int, tokens: int, places: int, least: float) -> list[list[Row]]:
    """Return rows in batches, the longest first, so that padding and passes together cost least."""
    laid = sorted(laid, key=lambda row: -len(row.ids))
    slots = np.cumsum([len({slot for some in row.slots for slot in some}) for row in laid])
    costs, begins = np.full(len(laid) + 1, np.inf), np.zeros(len(laid) + 1, dtype=int)
    costs[0] = 0
    for first, row in enumerate(laid):
        longest, before = len(row.ids), slots[first - 1] if first else 0
        most = int(np.searchsorted(slots, before + places, side="right")) - first
        most = max(1, min(most, rows, tokens // longest))
        ends = slice(first + 1, first + most + 1)
        found = costs[first] + least + longest * np.arange(1, len(costs[ends]) + 1)
        begins[ends] = np.where(found < costs[ends], first, begins[ends])
        costs[ends] = np.minimum(found, costs[ends])
    parts, last = [], len(laid)
    while last:
        parts.append(laid[begins[last] : last])
        last = int(begins[last])
    return parts[::-1]


def flat_places(batch: Batch) -> Tensor:
    """Return the places that are asked for in the flattened batch ``[n]``, each once."""
    asked = (sorted({slot for some in row.slots for slot in some}) for row in batch.rows)
    length = batch.length
    return torch.tensor([number * length + slot for number, slots in enumerate(asked) for slot in slots])

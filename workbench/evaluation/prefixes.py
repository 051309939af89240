"""Inputs that begin alike, computed once: the choices of an item share a row, a subject's items a cache.

Sorted by their tokens, inputs with a common beginning are neighbours. A row lays such neighbours out as a
tree; a block is the beginning that many rows share, such as the few-shot examples of an MMLU subject. Blocks
of about one length are computed together, and so are the rows behind them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from workbench.models.hooks import inference
from workbench.models.layers import decoder_layers, unwrap
from workbench.models.masks import as_attention_mask, readers, why_no_masks
from workbench.models.probes import input_device

#: an input joins a row when it shares so much of its tokens with the one before
_SHARE = 0.2
#: tokens of a row at most, but for one whose first input is longer
_ROW = 512
#: tokens that rows share at least for a cache of their own, and floating-point operations that it must save
#: on a GPU: what a pass costs that only launches kernels
_BLOCK, _PASS = 32, 8e12
#: how many times the tokens that a pass costs are in the blocks that are computed together, at most
_TOGETHER = 3
#: tokens of a batch on a CPU, floating-point operations of one on a GPU, both at most
_ON_CPU, _WORK = 4096, 7e13
#: tokens that a pass of its own costs on a CPU
_FEW = 16
_exact: WeakKeyDictionary[Any, dict[str, bool]] = WeakKeyDictionary()


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
    common = [_common(inputs[a], inputs[b]) if sharing else 0 for a, b in pairwise(order)]
    runs = _runs([len(inputs[k]) for k in order], common)
    alone: list[Row] = []
    blocks: list[tuple[tuple[int, ...], list[Row]]] = []
    for size, group in _blocks(runs, common, [len(inputs[k]) - asked[k] for k in order], least):
        laid = [_laid(order, run, inputs, asked, common, size) for run in group]
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


def _common(one: np.ndarray, other: np.ndarray) -> int:
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


def _laid(
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


class _Behind(DynamicLayer):  # type: ignore[misc, unused-ignore]  # transformers carries no types
    """A layer's keys and values of blocks, as rows behind them read them; those of the rows are not kept."""

    def __init__(self, keys: Tensor, values: Tensor, which: Tensor | None) -> None:
        """Keep ``[block, head, token, size]``, and each row's block; None where there is but one."""
        super().__init__()  # type: ignore[no-untyped-call, unused-ignore]
        self.keys, self.values, self.which, self.is_initialized = keys, values, which, True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Return ``[row, head, token, size]`` of all that rows read."""
        return self._read(self.keys, key_states), self._read(self.values, value_states)

    def _read(self, kept: Any, new: Tensor) -> Tensor:
        rows = kept.expand(len(new), -1, -1, -1) if self.which is None else kept.index_select(0, self.which)
        return torch.cat([rows, new], dim=2)


def block_cache(model: Any, blocks: Sequence[Sequence[int]]) -> Any:
    """Return the keys and values of blocks ``[layer][2][block, head, token, size]``, padded on the right."""
    longest = max(map(len, blocks))
    ids = [[*block, *[0] * (longest - len(block))] for block in blocks]
    cache: Any = DynamicCache()  # without a configuration all tokens stay; windows are in the masks
    model(on_device(ids, input_device(model)), past_key_values=cache, use_cache=True)
    return [(layer.keys, layer.values) for layer in cache.layers]


def joined(caches: Sequence[Any]) -> Any:
    """Return the keys and values of several caches of blocks as those of one, the longest first."""
    return [tuple(map(_stacked, *layers)) for layers in zip(*caches, strict=True)]


def _stacked(*parts: Tensor) -> Tensor:
    longest = parts[0].shape[2]
    return torch.cat([pad(part, (0, 0, 0, longest - part.shape[2])) for part in parts])


def on_device(values: Any, device: torch.device) -> Tensor:
    """Return numbers as a tensor on a device, without waiting for what it has to do before."""
    made = torch.as_tensor(values)
    return made.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else made.to(device)


def tensors(model: Any, batch: Batch, cache: Any) -> dict[str, Any]:
    """Return what the model is called with for a batch."""
    device, length = input_device(model), batch.length
    ids = on_device([[*row.ids, *[0] * (length - len(row.ids))] for row in batch.rows], device)
    if not batch.shared:
        return {"input_ids": ids}  # padded on the right, where a causal model never looks
    ends = [[*row.ends, *range(len(row.ends) + 1, length + 1)] for row in batch.rows]
    places = [[*row.positions, *[0] * (length - len(row.ids))] for row in batch.rows]
    positions, size = on_device(places, device), batch.before
    sizes = [len(batch.blocks[row.block]) for row in batch.rows] if size else []
    seen = readers(on_device(ends, device), size)
    if min(sizes, default=size) < size:
        cached = torch.arange(size, device=device)
        seen[:, :, :size] = (cached < on_device(sizes, device)[:, None])[:, None]
    asked: dict[str, Any] = {"input_ids": ids, "position_ids": positions, "use_cache": False}
    asked["attention_mask"] = as_attention_mask(model, seen, positions, size)
    if cache is not None:
        which = on_device([row.block for row in batch.rows], device) if len(batch.blocks) > 1 else None
        kept: Any = DynamicCache()
        kept.layers = [_Behind(keys, values, which) for keys, values in cache]
        asked |= {"past_key_values": kept, "use_cache": True}
    return asked


def _work_of_a_token(model: Any) -> int:
    """Return the floating-point operations of a token in the layers, 0 for layers that are on no GPU."""
    return 2 * sum(p.numel() for p in decoder_layers(model).parameters() if p.is_cuda)


def least_saved(model: Any) -> float:
    """Return how many tokens something must save to be worth a pass of its own."""
    work = _work_of_a_token(model)
    return _PASS / work if work else _FEW


def room_for(model: Any) -> int:
    """Return how many tokens a batch holds at most: some 0.1 s of work, and what memory allows."""
    if not (work := _work_of_a_token(model)):
        return _ON_CPU
    text = unwrap(model).config.get_text_config(decoder=True)
    wide = getattr(text, "intermediate_size", None) or 4 * text.hidden_size
    first = next(p for p in decoder_layers(model).parameters() if p.is_cuda)
    free = torch.cuda.mem_get_info(first.device)[0] + torch.cuda.memory_reserved(first.device)
    free -= torch.cuda.memory_allocated(first.device)
    fit = free // 2 // ((8 * text.hidden_size + 4 * wide) * first.element_size())
    return int(max(1, min(fit, max(4096, _WORK / work), 65536)))


def can_share(model: Any) -> bool:
    """Say whether a model computes the same for inputs that share a row and a cache as for each alone.

    Its class is asked first, then a few tokens are run both ways; the answer is kept for the model as it is
    configured.
    """
    config = unwrap(model).config
    setting = f"{config.to_json_string()} {getattr(config, '_attn_implementation', '')}"
    known = _exact.setdefault(unwrap(model), {})
    if setting not in known:
        known[setting] = why_no_masks(model) is None and _agrees(model)
    return known[setting]


def _agrees(model: Any) -> bool:
    base, vocabulary = unwrap(model), unwrap(model).get_input_embeddings().weight.shape[0]
    draw = np.random.default_rng(0)
    block, *tails = (draw.integers(vocabulary, size=n) for n in (9, 6, 4, 3, 7))
    blocks = (block, block[:5])
    ends = (tails[0], np.concatenate([tails[0][:3], tails[1]])), (tails[2], tails[3])
    texts: list[np.ndarray] = []
    rows: list[Row] = []
    for number, (before, some) in enumerate(zip(blocks, ends, strict=True)):
        mine = sorted((np.concatenate([before, tail]) for tail in some), key=lambda text: text.tolist())
        place, common = len(texts), _common(*mine)
        texts += mine
        laid = _laid(range(4), [place, place + 1], texts, [1] * 4, [common] * 3, len(before))
        laid.block = number
        rows.append(laid)
    device = input_device(model)
    try:
        with inference(base):
            cache = block_cache(base, [one.tolist() for one in blocks])
            batch = Batch(tuple(tuple(one.tolist()) for one in blocks), rows)
            found = base(**tensors(base, batch, cache)).logits.float()
            alone = [base(torch.tensor(text[None], device=device)).logits[0, -1].float() for text in texts]
    except Exception:  # of whatever a model says that takes no such masks
        return False
    got = torch.stack([found[number, slot] for number, row in enumerate(rows) for (slot,) in row.slots])
    wanted = torch.stack(alone)
    tolerance = {torch.float32: 1e-4, torch.float64: 1e-9}.get(base.dtype, 0.05)
    return bool((got - wanted).norm() <= tolerance * wanted.norm())


def flat_places(batch: Batch) -> Tensor:
    """Return the places that are asked for in the flattened batch ``[n]``, each once."""
    asked = (sorted({slot for some in row.slots for slot in some}) for row in batch.rows)
    length = batch.length
    return torch.tensor([number * length + slot for number, slots in enumerate(asked) for slot in slots])

"""Inputs that begin alike, computed once: the choices of an item share a row, a subject's items a cache."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from workbench.evaluation.layout import Batch, Row, common_length, laid_out
from workbench.models.hooks import inference
from workbench.models.layers import decoder_layers, unwrap
from workbench.models.masks import as_attention_mask, readers, why_no_masks
from workbench.models.probes import input_device

#: floating-point operations that a cache of a block must save on a GPU: what a pass costs that only launches
_PASS = 8e12
#: tokens of a batch on a CPU, floating-point operations of one on a GPU, both at most
_ON_CPU, _WORK = 4096, 7e13
#: tokens that a pass of its own costs on a CPU
_FEW = 16
_exact: WeakKeyDictionary[Any, dict[str, bool]] = WeakKeyDictionary()


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
        place, common = len(texts), common_length(*mine)
        texts += mine
        laid = laid_out(range(4), [place, place + 1], texts, [1] * 4, [common] * 3, len(before))
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

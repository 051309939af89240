"""Attention masks for rows in which texts share tokens or lie side by side without seeing each other.

A row holds tokens in depth-first order of a tree: what a token reads stands before it, and each token knows
where the tokens end that read it. One number a token so says everything; positions are told apart.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from workbench.models.layers import unwrap

#: kinds of attention that a mask can say
KINDS = {"full_attention", "sliding_attention"}


def why_no_masks(model: Any) -> str | None:
    """Say why a model cannot be given masks of our own, None when it can, as far as its class tells."""
    base = unwrap(model)
    text = base.config.get_text_config(decoder=True)
    checks = {
        "its class brings its own attention": getattr(base, "_supports_attention_backend", False),
        f"its attention is {text._attn_implementation}": text._attn_implementation in ("sdpa", "eager"),
        f"its layers are {', '.join(sorted(map(str, _kinds(text))))}": _kinds(text) <= KINDS,
        "it reads images": not hasattr(base.config, "vision_config"),
    }
    return next((reason for reason, fine in checks.items() if not fine), None)


def readers(ends: Tensor, before: int = 0) -> Tensor:
    """Return what each token of a row reads: ``[row, token, before + token]``, True where it does.

    Args:
        ends: ``[row, token]``: the place behind the last token that reads this one.
        before: tokens in front of all rows, in a cache, that every token reads.
    """
    rows, length = ends.shape
    places = torch.arange(length, device=ends.device)
    seen = (places[None, None] <= places[:, None]) & (places[:, None] < ends[:, None])
    if not before:
        return seen
    return torch.cat([seen.new_ones(rows, length, before), seen], dim=2)


def as_attention_mask(model: Any, seen: Tensor, positions: Tensor, before: int = 0) -> Any:
    """Return what the model takes as ``attention_mask``: one mask for all layers, or one for each kind.

    Args:
        model: one that ``why_no_masks`` has nothing against.
        seen: of ``readers``.
        positions: ``[row, token]``, those of the model's position ids.
        before: tokens in the cache, at the positions from 0 on.
    """
    text = unwrap(model).config.get_text_config(decoder=True)
    kinds = _kinds(text)
    masks = dict.fromkeys(kinds, seen)
    if "sliding_attention" in kinds:
        cached = torch.arange(before, device=positions.device).expand(len(positions), before)
        keys = torch.cat([cached, positions], dim=1)
        near = positions[:, :, None] - keys[:, None] < text.sliding_window
        masks["sliding_attention"] = seen & near
    added = {kind: _as_taken(text, mask, unwrap(model).dtype)[:, None] for kind, mask in masks.items()}
    return added if len(added) > 1 else next(iter(added.values()))


def _as_taken(text: Any, mask: Tensor, dtype: torch.dtype) -> Tensor:
    if text._attn_implementation == "sdpa":
        return mask
    return torch.zeros_like(mask, dtype=dtype).masked_fill_(~mask, torch.finfo(dtype).min)


def _kinds(text: Any) -> set[str]:
    if kinds := getattr(text, "layer_types", None):
        return set(kinds)
    return {"sliding_attention" if getattr(text, "sliding_window", None) else "full_attention"}

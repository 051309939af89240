"""The cache of the drafting decoder: each row at a place of its own, several tokens at a time."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from workbench.generation.cache import GivenPlaces, check_exact

#: the name under which transformers knows the attention
ATTENTION = "workbench_drafting"


class Places:
    """Where the tokens of the current pass go: ``[row, token]``, or None while the prompts are read."""

    at: Tensor | None = None


class RowSlots(GivenPlaces):
    """The cache of one layer; slot i of a row holds its token i, so that a row goes back by going on.

    What a refused token left behind is overwritten before any later token may see its slot.
    """

    def __init__(self, rows: int, slots: int, places: Places) -> None:
        super().__init__(rows, slots)
        self.places = places

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Keep new keys and values; return what attention may see."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        if self.places.at is None:
            width = key_states.shape[2]
            self.keys[:, :, :width], self.values[:, :, :width] = key_states, value_states
            return key_states, value_states
        index = self.places.at[:, None, :, None]
        self.keys.scatter_(2, index.expand_as(key_states), key_states)
        self.values.scatter_(2, index.expand_as(value_states), value_states)
        return self.keys, self.values


def _attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """Transformers' own attention for the prompts; then query heads that share a key head as one."""
    check_exact(options)
    if attention_mask is None:
        return sdpa_attention_forward(module, query, key, value, None, **options)
    rows, heads, width, size = query.shape
    shared = heads // key.shape[1]
    scaling = size**-0.5 if options.get("scaling") is None else options["scaling"]
    grouped = query.reshape(rows, key.shape[1], shared * width, size)
    mask = attention_mask.repeat(1, 1, shared, 1)
    mixed = scaled_dot_product_attention(grouped, key, value, attn_mask=mask, scale=scaling)
    mixed = mixed.reshape(rows, heads, width, value.shape[-1])
    return mixed.transpose(1, 2), None


def seen(places: Tensor, slots: int) -> Tensor:
    """Return which slots each token of a pass sees: its own and those before, ``[row, 1, token, slot]``."""
    return (torch.arange(slots, device=places.device) <= places[..., None])[:, None]


AttentionInterface.register(ATTENTION, _attention)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)

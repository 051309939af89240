"""Caches of fixed size, one part a layer, and the attention over them: for decoding, and for drafting."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.cache_utils import StaticLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

#: the name under which transformers knows the attention
ATTENTION = "workbench_decoding"


class NotExactError(ValueError):
    """The model's attention has a part that this decoder does not do."""


class FixedLayer(StaticLayer):
    """The cache of one layer, of fixed size; positions are given, so masks know of nothing cached."""

    keys: Tensor
    values: Tensor

    def __init__(self, rows: int, slots: int) -> None:
        super().__init__(max_cache_len=slots)
        self.all_rows = rows

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Make room for all rows, also when the first states are those of some."""
        for name, states in (("keys", key_states), ("values", value_states)):
            _, heads, _, size = states.shape
            setattr(self, name, states.new_zeros(self.all_rows, heads, self.max_cache_len, size))
        self.is_initialized = True

    def get_mask_sizes(self, *args: Any, **kwargs: Any) -> tuple[int, int]:
        """While prompts are read, attention sees them alone."""
        return (int(args[0]) if args else int(kwargs["query_length"])), 0

    def get_seq_length(self, *args: Any) -> int:
        """Nothing is cached as far as masks go."""
        return 0


class Slots(FixedLayer):
    """The cache of one layer: filled with shifted prompts, then one slot a step, the same for all rows."""

    def __init__(self, rows: int, slots: int, at: Tensor, shown: list[int]) -> None:
        super().__init__(rows, slots)
        self.at, self.shown = at, shown
        self.filling, self.start = False, 0
        self.index: Tensor | None = None

    def fill(self, start: int, index: Tensor | None) -> None:
        """Take prompts next: of the rows from ``start`` on, each moved along its slots by ``index``."""
        self.start, self.index, self.filling = start, index, True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Keep new keys and values; return what attention may see."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        if not self.filling:
            self.keys.index_copy_(2, self.at, key_states)
            self.values.index_copy_(2, self.at, value_states)
            seen = slice(*self.shown)
            return self.keys[:, :, seen], self.values[:, :, seen]
        rows, width = slice(self.start, self.start + len(key_states)), key_states.shape[2]
        for held, states in ((self.keys, key_states), (self.values, value_states)):
            if self.index is not None:
                states = states.gather(2, self.index[:, None, :, None].expand_as(states))
            held[rows, :, :width] = states
        return key_states, value_states


def _attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """Attend to a cache: prompts as transformers does, then query heads that share a key head as one."""
    wanted = [name for name in ("softcap", "s_aux", "position_bias") if options.get(name) is not None]
    if wanted:
        raise NotExactError(f"its attention has {', '.join(wanted)}")
    if attention_mask is None:
        return sdpa_attention_forward(module, query, key, value, None, **options)
    rows, heads, width, size = query.shape
    scaling = size**-0.5 if options.get("scaling") is None else options["scaling"]
    if attention_mask.dtype == torch.int32:
        if value.shape[-1] != size:
            raise NotExactError(f"its keys have {size} numbers and its values {value.shape[-1]}")
        from workbench.generation.kernel import decode_attention

        return decode_attention(query, key, value, attention_mask, scaling), None
    shared = heads // key.shape[1]
    mask = attention_mask.repeat(1, 1, shared, 1) if width > 1 else attention_mask
    grouped = query.reshape(rows, key.shape[1], shared * width, size)
    mixed = scaled_dot_product_attention(grouped, key, value, attn_mask=mask, scale=scaling)
    return mixed.reshape(rows, heads, width, value.shape[-1]).transpose(1, 2), None


AttentionInterface.register(ATTENTION, _attention)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)

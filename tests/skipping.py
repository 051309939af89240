"""What the tests compare with: a model that skips layers, one forward pass each, no state shared."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from workbench.models.layers import decoder_layers

TEXTS = [
    "Anna has 12 apples and gives 5 to Ben.",
    "The quick brown fox jumps over the lazy dog. She sells sea shells by the sea shore.",
    "Ein kleiner Hund",
    "Question: what is the capital of the land? The town by the river.",
    "x",
]


@contextmanager
def skipping(model: nn.Module, layers: Iterable[int]) -> Iterator[None]:
    """Let these layers hand on what they are given: each output is exchanged for the input."""

    def hand_on(module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        state = args[0] if args else kwargs["hidden_states"]
        return type(output)([state, *output[1:]]) if isinstance(output, tuple | list) else state

    stack = decoder_layers(model)
    handles = [stack[i].register_forward_hook(hand_on, with_kwargs=True) for i in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def raw_states(model: nn.Module, ids: Tensor, mask: Tensor | None = None) -> list[Tensor]:
    """Return ``h[0] .. h[L]``: transformers' own hidden states but for the last, which it gives normed."""
    last: list[Any] = []
    handle = decoder_layers(model)[-1].register_forward_hook(lambda m, a, output: last.append(output))
    try:
        states = model(ids, attention_mask=mask, output_hidden_states=True, use_cache=False).hidden_states
    finally:
        handle.remove()
    raw = last[0][0] if isinstance(last[0], tuple) else last[0]
    if states[-1].shape == raw.shape:
        assert not torch.allclose(states[-1], raw), "the final norm must matter, or the test cannot see it"
    return [*states[:-1], raw]

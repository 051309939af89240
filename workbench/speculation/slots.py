"""The cache of the drafting decoder: each row at a place of its own, several tokens at a time."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from workbench.generation.cache import FixedLayer


class Places:
    """Where the tokens of the current pass go: ``[row, token]``, or None while the prompts are read."""

    at: Tensor | None = None


class RowSlots(FixedLayer):
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


def seen(places: Tensor, slots: int) -> Tensor:
    """Return which slots each token of a pass sees: its own and those before, ``[row, 1, token, slot]``."""
    return (torch.arange(slots, device=places.device) <= places[..., None])[:, None]

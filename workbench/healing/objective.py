"""What a training minimises: here the loss on the learned tokens; `recovery` has another."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from workbench.healing.config import HealingConfig
from workbench.healing.losses import summing_loss
from workbench.healing.samples import Sample


class Objective:
    """The summed cross-entropy of the learned tokens: SFT, self-data distillation, plain texts.

    Attributes:
        names: parts of the loss that are logged on their own, each a column.
        whole: every token of a sequence counts, not the learned ones alone.
        capturable: an update can be captured once and replayed (``steps.FixedSteps``).
    """

    names: tuple[str, ...] = ()
    whole = False
    capturable = True

    def __init__(self) -> None:
        self.seen: list[Tensor] = []
        self.totals: Tensor | None = None

    def settings(self) -> dict[str, Any]:
        """Return what of it decides the adapter, as plain values."""
        return {}

    def check(self, samples: list[Sample], config: HealingConfig) -> None:
        """Refuse what cannot be learned so."""

    def begin(self, model: Any) -> None:
        """Give a fresh adapter its first weights; what was seen before an error does not count."""
        self.seen.clear()
        self.totals = None

    def acts(
        self, model: Any, *, chunk: int, compiled: bool, gaps: bool = False
    ) -> AbstractContextManager[None]:
        """Let the model return the summed loss of a batch, until leaving."""
        return summing_loss(model, chunk=chunk, compiled=compiled, gaps=gaps)

    def weigh(self, weight: Any) -> None:
        """Add the parts of the batches since the last call to those of the update."""
        for parts in self.seen:
            weighted = parts * weight
            self.totals = weighted if self.totals is None else self.totals + weighted
        self.seen.clear()

    def take(self, like: Tensor) -> Tensor:
        """Return the parts of the update, one number a name, and begin with the next."""
        totals = torch.zeros(len(self.names)) if self.totals is None else self.totals
        self.totals = None
        return totals.to(like)

"""Held-out examples while a training runs: their loss, which update left the least, and when to stop."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from workbench.checks import one_of, told
from workbench.healing.losses import mean_loss
from workbench.healing.samples import OrderedSamples, Sample, check_apart, digest, read_examples

HELD_OUT = "held_out_loss"


@dataclass(frozen=True)
class Validation:
    """What is measured while a training runs, and what follows.

    Attributes:
        samples: the held-out ones; none for a training without.
        every: updates between two measurements; None for one at the end of each epoch. The last update is
            always measured.
        keep: ``"last"`` or ``"best"``: which update's adapter comes out.
        patience: stop after so many measurements without a new least loss; None for never.
    """

    samples: list[Sample]
    every: int | None = None
    keep: str = "last"
    patience: int | None = None

    def settings(self) -> dict[str, Any]:
        """Return what decides the adapter, as plain values; without held-out examples nothing."""
        if not self.samples:
            return {}
        rest = {"every": self.every, "keep": self.keep, "patience": self.patience}
        return {"held_out": {"data": digest(self.samples), **rest}}

    def is_due(self, step: int, last: int, ordered: OrderedSamples) -> bool:
        """Return whether the held-out loss is measured after an update."""
        if not self.samples or step == last:
            return bool(self.samples)
        if self.every:
            return step % self.every == 0
        return int(ordered.epoch(step)) > int(ordered.epoch(step - 1))

    def loss(self, model: Any, batch_size: int) -> float:
        """Return the held-out loss of a model inside ``summing_loss``, in nats a learned token."""
        return mean_loss(model, self.samples, batch_size)

    def is_over(self, rows: Sequence[dict[str, Any]]) -> bool:
        """Return whether patience is at its end after the updates with these rows of the log."""
        measured = [row["step"] for row in rows if row.get(HELD_OUT) is not None]
        return bool(self.patience and measured) and (
            sum(step > (best_step(rows) or 0) for step in measured) >= (self.patience or 0)
        )


def best_step(rows: Sequence[dict[str, Any]]) -> int | None:
    """Return the update that left the least held-out loss, the first of equals; None before a measurement."""
    measured = [row for row in rows if row.get(HELD_OUT) is not None]
    return min(measured, key=lambda row: row[HELD_OUT])["step"] if measured else None


def kept_step(log: pd.DataFrame, keep: str) -> int:
    """Return the update whose adapter comes out of a training with such a log."""
    return int(log["step"].loc[log[HELD_OUT].idxmin()] if keep == "best" else log["step"].iloc[-1])


def check_asked(held_out: Any, every: int | None, keep: str, patience: int | None) -> None:
    """Refuse settings that are none, or that need held-out examples where there are none."""
    one_of(keep, ("last", "best"), "keep")
    given = {"keep='best'": keep == "best", "patience": patience, "evaluate_every": every}
    if held_out is None and (needs := [name for name, value in given.items() if value]):
        raise ValueError(f"{needs[0]} needs held_out, the examples to measure the loss on")


def read_held_out(model: Any, tokenizer: Any, examples: Any, held_out: Any, **reading: Any) -> list[Sample]:
    """Return the held-out samples, none where ``held_out`` is None; ``reading`` is that of the examples.

    Raises:
        ValueError: for bad held-out examples, or when all are among those learned.
    """
    if held_out is None:
        return []
    if isinstance(held_out, pd.DataFrame) == isinstance(examples, pd.DataFrame):
        check_apart(examples, held_out)
    with told("held_out", ValueError):
        samples, _ = read_examples(model, tokenizer, held_out, **reading)
    return samples

"""What is chosen in the picker: layers as traits, checked, with the steps back and forth. No torch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import anywidget
import pandas as pd
import traitlets as tr

from workbench.distances.blocks import Layers, checked_layers, format_layers, layers_of, least
from workbench.widgets.presets import Presets

#: steps that can be undone
_STEPS = 200


class BlockError(tr.TraitError, ValueError):
    """A block or layers that the model does not have."""


class LayerChoice(anywidget.AnyWidget):
    """A widget whose state is a choice of layers: one block, several, or layers with gaps between them.

    Attributes:
        start: trait, first removed layer (original number); None where the layers are not one block.
        size: trait, number of layers removed.
        layers: trait, the removed layers as they are shown; observe this one to hear of a choice once. It is
            set by ``choose`` and ``choose_layers``.
    """

    start = tr.Int(allow_none=True)
    size = tr.Int()
    layers = tr.Tuple()

    _layers = tr.List(tr.Int()).tag(sync=True)
    # no echo: it would stand before what observers send, which then waits 40 ms for its acknowledgement
    _chosen: Any = tr.List().tag(sync=True, echo_update=False)
    _steps = tr.List(default_value=[0, 0]).tag(sync=True)

    _moving = False
    _frame: pd.DataFrame
    _blocks: set[tuple[int, int]]
    _ready: Presets
    _past: list[Layers]
    _next: list[Layers]

    def choose(self, start: int, size: int) -> Layers:
        """Choose a block, as a click on its cell does.

        Returns:
            The layers that it removes.

        Raises:
            ValueError: when the frame does not hold the block.
        """
        self._check(start, size)
        return self._take(layers_of(start, size, layers=self._layers))

    def choose_layers(self, layers: Iterable[int]) -> Layers:
        """Choose any layers, with or without gaps, as the strip of layers does.

        Raises:
            ValueError: for a layer that the model does not have, for none and for all of them.
        """
        return self._take(self._checked(layers))

    def choose_preset(self, name: str, size: int | None = None) -> Layers:
        """Choose one of ``presets`` for a number of layers; None means as many as are chosen now."""
        return self._take(self._checked(self._ready.layers(name, self.size if size is None else size)))

    @property
    def presets(self) -> list[str]:
        """Names of the ready choices."""
        return self._ready.names

    def undo(self) -> Layers:
        """Go back to the choice before; returns the layers that are chosen then."""
        return self._step(self._past, self._next, "undo")

    def redo(self) -> Layers:
        """Take back an ``undo``."""
        return self._step(self._next, self._past, "redo")

    @tr.validate("start", "size", "layers", "_chosen")
    def _validate_choice(self, proposal: Any) -> Any:
        name, value = proposal["trait"].name, proposal["value"]
        if self._moving:
            return value
        if name == "layers":
            raise BlockError("layers says what is chosen and cannot be set; use picker.choose(start, size)")
        if name == "_chosen":
            return list(self._checked(value))
        block = {"start": self.start, "size": self.size, name: value}
        self._check(block["start"], block["size"])
        return int(value)

    @tr.observe("start", "size", "_chosen")
    def _follow(self, change: Any) -> None:
        if not self._moving and change["name"] == "_chosen":
            self._take(tuple(change["new"]))
        elif not self._moving and self.start is not None:
            self._take(layers_of(self.start, self.size, layers=self._layers))

    def _take(self, layers: Layers, *, step: bool = False) -> Layers:
        """Choose layers that were checked."""
        if layers == self.layers:
            return layers
        if not step:
            self._past, self._next = [*self._past[-_STEPS:], self.layers], []
        start = layers[0] if self._is_block(layers) else None
        with self._hand(), self.hold_sync(), self.hold_trait_notifications():
            self._chosen, self.start, self.size = list(layers), start, len(layers)
            self.layers, self._steps = layers, [len(self._past), len(self._next)]
        self._moved()
        return layers

    def _moved(self) -> None:
        """Do what a new choice asks for."""

    def _is_block(self, layers: Layers) -> bool:
        block = (layers[0], len(layers))
        return block in self._blocks and layers_of(*block, layers=self._layers) == layers

    def _step(self, here: list[Layers], there: list[Layers], what: str) -> Layers:
        if not here:
            raise ValueError(f"{what} needs a choice to go back to, there is none")
        there.append(self.layers)
        return self._take(here.pop(), step=True)

    @contextmanager
    def _hand(self) -> Iterator[None]:
        """Set several traits as one; each of them alone would be refused."""
        before, self._moving = self._moving, True
        try:
            yield
        finally:
            self._moving = before

    def _check(self, start: Any, size: Any) -> None:
        if (start, size) not in self._blocks:
            allowed = f"size must be one of {format_layers(n for _, n in self._blocks)}"
            if starts := [s for s, n in self._blocks if n == size]:
                allowed = f"start must be one of {format_layers(starts)} for size {size}"
            got = f"got start {start!r}, size {size!r}"
            raise BlockError(f"{allowed}, {got}; choose(start, size) sets both at once")

    def _checked(self, layers: Any) -> Layers:
        try:
            return checked_layers(layers, self._layers)
        except ValueError as error:
            raise BlockError(str(error)) from None

    def _nearest(self, size: int) -> int:
        rows = self._frame[self._frame["size"] == size]
        if rows.empty:
            self._check(None, size)
        return int(least(rows, "distance")["start"].item())

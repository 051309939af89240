"""Run a model with many different sets of layers left out, sharing everything they have in common.

A candidate that leaves out layers 5 and 9 is the whole model up to layer 5. So the model itself runs once; a
candidate branches off at the first layer it leaves out, and from there all candidates go through each layer
as one batch with the model. Candidates that still agree (5, 9 and 5, 12) are one until they part.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from workbench.distances.blocks import format_layers
from workbench.models.hooks import replaced_forwards, state_in, state_out
from workbench.models.layers import decoder_forward, decoder_layers, kept_layers, unwrap

Removal = tuple[int, ...]

#: states that may wait between layers, as a multiple of the tokens that one layer call may see
HELD = 32


class Pack(NamedTuple):
    """Candidates in one tensor.

    Attributes:
        removals: the layers that each candidate has left out, one entry a candidate.
        states: ``[candidate * row, token, width]``, the candidates one after the other.
    """

    removals: list[Removal]
    states: Tensor


def positions_of(model: nn.Module, layers: Iterable[int]) -> Removal:
    """Return where layers, given by their original numbers, are in the model now.

    Raises:
        ValueError: for a layer that the model does not have.
    """
    kept = kept_layers(model)
    wanted = list(layers)
    for layer in wanted:
        if isinstance(layer, bool) or layer not in kept:
            there = f"{len(kept)} layers ({format_layers(kept)})"
            raise ValueError(f"layer must be one of the model's {there}, got {layer!r}")
    return tuple(sorted({kept.index(layer) for layer in wanted}))


class Replay:
    """The layers of a model as steps that any number of candidates take together, for one batch of texts.

    Each layer is called with the very arguments that the model gives it (masks, rotary embeddings, whatever
    its architecture passes), repeated for as many rows as the batch has. How an argument follows the number
    of rows is found by asking the model twice, with the batch once and twice over.

    Args:
        model: any decoder-only transformers model.
        ids: ``[row, token]``, padded on the right, on the model's device.
        max_tokens: most tokens in one layer call (of at least one candidate).
    """

    def __init__(self, model: nn.Module, ids: Tensor, *, max_tokens: int) -> None:
        self.model, self.ids = model, ids
        self.layers = list(decoder_layers(model))
        self.room = max(1, max_tokens // ids.numel())
        self.held = max(1, HELD * max_tokens // ids.numel())
        self.as_tuple = False
        self.arguments, self.embedded = self._layer_arguments(ids)
        twice, _ = self._layer_arguments(ids.repeat(2, 1))
        # most layers get the very same mask and rotary tables: compare each of these once
        axis_of = partial(_row_axis, {})
        self.axes = [_map(axis_of, a, b) for a, b in zip(self.arguments, twice, strict=True)]

    def packs(self, removals: Sequence[Removal]) -> Iterator[Pack]:
        """Yield ``h[L]`` (before the final norm) of the model, as the removal ``()``, then of all candidates.

        All candidates come in one wave unless their states would take too much memory; each wave runs the
        model again and yields it again. ``removals`` are positions in the model as it stands, each sorted and
        not empty.
        """
        ordered = sorted(removals)  # neighbours share most of their way
        for first in range(0, len(ordered), self.held):
            packs = self._wave(ordered[first : first + self.held])
            while packs:  # taken off, so that a pack is free when the next one is read
                yield packs.pop()

    @property
    def vocabulary(self) -> int:
        """Return how many logits the head makes of a state."""
        return int(unwrap(self.model).config.get_text_config(decoder=True).vocab_size)

    def normed(self, states: Tensor) -> Tensor:
        """Return states ``h[L]`` after the model's own final norm, ``[row, token, width]`` for any rows."""
        with self._layers_give(states):
            normed: Tensor = decoder_forward(self.model)(input_ids=self._ids_for(states), use_cache=False)[0]
        return normed

    def logits(self, states: Tensor) -> Tensor:
        """Return the logits ``[row, token, vocabulary]`` that the model's norm and head make of ``h[L]``."""
        with self._layers_give(states):
            logits: Tensor = self.model(input_ids=self._ids_for(states), use_cache=False).logits
        return logits

    def _wave(self, removals: list[Removal]) -> list[Pack]:
        """Return the candidates, and last the model itself, which runs as the candidate of no removal."""
        packs = [Pack([()], self.embedded)]
        for number in range(len(self.layers)):
            packs = self._step(number, packs, removals)
        others = [[i for i, removal in enumerate(pack.removals) if removal] for pack in packs]
        candidates = [self._select(pack, some) for pack, some in zip(packs, others, strict=True) if some]
        (shared,) = (pack for pack in packs if () in pack.removals)
        return [*candidates, self._select(shared, [shared.removals.index(())])]

    def _step(self, number: int, packs: list[Pack], removals: list[Removal]) -> list[Pack]:
        """Take every candidate past one layer: those that keep it run it, those that leave it out wait."""
        wanted = {tuple(layer for layer in removal if layer <= number) for removal in removals}
        running: list[Pack] = []
        waiting: list[Pack] = []
        for pack in packs:
            stay = [i for i, removal in enumerate(pack.removals) if not removal or removal in wanted]
            if stay:
                running.append(self._select(pack, stay))
            for i, removal in enumerate(pack.removals):
                if (*removal, number) in wanted:
                    waiting.append(Pack([(*removal, number)], self._select(pack, [i]).states))
        ran = [Pack(p.removals, self._call(number, p.states)) for p in _merged(running, self.room)]
        return ran + waiting

    def _call(self, number: int, states: Tensor) -> Tensor:
        repeat = partial(_repeat, times=len(states) // len(self.ids))
        args, kwargs = _map(repeat, self.arguments[number], self.axes[number])
        return state_out(self.layers[number](states, *args, **kwargs))

    def _select(self, pack: Pack, which: list[int]) -> Pack:
        if len(which) == len(pack.removals):
            return pack
        rows = pack.states.reshape(len(pack.removals), len(self.ids), *pack.states.shape[1:])
        # a copy, so that a waiting candidate does not keep the whole pack alive
        return Pack([pack.removals[i] for i in which], rows[which].flatten(0, 1))

    def _ids_for(self, states: Tensor) -> Tensor:
        return self.ids[:1].expand(len(states), -1)  # only their shape matters: the layers give the states

    @contextmanager
    def _layers_give(self, states: Tensor) -> Iterator[None]:
        """Let the model run its own embedding, norm and head around layers that only hand over ``states``."""
        output = (states,) if self.as_tuple else states
        # hooks of others have acted on these states already; ours, registered last, decides
        handle = self.layers[-1].register_forward_hook(lambda *_: output)
        try:
            with replaced_forwards(self.layers, lambda layer: lambda *args, **kwargs: output):
                yield
        finally:
            handle.remove()

    def _layer_arguments(self, ids: Tensor) -> tuple[list[tuple[tuple[Any, ...], dict[str, Any]]], Tensor]:
        """Return what the model passes to each layer, and the state ``h[0]``, without running the layers."""
        seen: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
        states: list[Tensor] = []

        def record(*args: Any, **kwargs: Any) -> Any:
            states.append(state_in(args, kwargs))
            rest = {name: value for name, value in kwargs.items() if name != "hidden_states"}
            seen.append((args[1:], rest))
            return (states[0],) if self.as_tuple else states[0]

        with replaced_forwards(self.layers, lambda layer: record):
            decoder_forward(self.model)(input_ids=ids, use_cache=False)
        if len(states) > 1 and states[1].shape != states[0].shape:
            # this decoder takes the first of a tuple, and took the first row of our bare tensor
            assert not self.as_tuple
            self.as_tuple = True
            return self._layer_arguments(ids)
        return seen, states[0]


def _row_axis(seen: dict[tuple[int, int], int | None], once: Any, twice: Any) -> int | None:
    """Return the axis along which an argument follows the number of rows; None when it does not."""
    if not isinstance(once, Tensor):
        if once is not twice and once != twice:
            raise ValueError(
                f"candidates cannot share layers that take a {type(once).__name__}; load the model with "
                f"attn_implementation='sdpa' or 'eager'"
            )
        return None
    if (id(once), id(twice)) not in seen:
        axes = [i for i, (a, b) in enumerate(zip(once.shape, twice.shape, strict=True)) if a != b]
        axis = axes[0] if axes else None
        if not torch.equal(_repeat(once, axis, times=2), twice):
            raise ValueError(
                "candidates cannot share layers whose arguments do not simply repeat with the rows; "
                "this architecture is not supported here"
            )
        seen[id(once), id(twice)] = axis
    return seen[id(once), id(twice)]


def _repeat(value: Any, axis: int | None, *, times: int) -> Any:
    if axis is None or times == 1:
        return value
    if value.shape[axis] == 1:  # no copy: attention masks are large
        return value.expand(*value.shape[:axis], times, *value.shape[axis + 1 :])
    return value.repeat(*(times if i == axis else 1 for i in range(value.ndim)))


def _map(function: Any, first: Any, second: Any) -> Any:
    """Apply a function to the leaves of two trees of the same form."""
    if isinstance(first, dict):
        return {name: _map(function, value, second[name]) for name, value in first.items()}
    if isinstance(first, (tuple, list)):
        return type(first)([_map(function, a, b) for a, b in zip(first, second, strict=True)])
    return function(first, second)


def _merged(packs: list[Pack], room: int) -> list[Pack]:
    """Join neighbouring packs of up to ``room`` candidates; full ones stay as they are, without a copy."""
    merged: list[Pack] = []
    for pack in packs:
        if merged and len(merged[-1].removals) + len(pack.removals) <= room:
            last = merged.pop()
            states = torch.cat([last.states, pack.states.to(last.states.device)])
            pack = Pack(last.removals + pack.removals, states)
        merged.append(pack)
    return merged

"""Run a model with many different sets of layers left out, sharing everything they have in common.

A candidate that leaves out layers 5 and 9 is the whole model up to layer 5. So the model itself runs once; a
candidate branches off at the first layer it leaves out, and from there all candidates go through each layer
as one batch with the model. Candidates that still agree (5, 9 and 5, 12) are one until they part.

That is exact where layers pass on nothing but their state. ``check_shared`` tries it on a few tokens, against
the model's own pass, before any measure counts on it.
"""

from __future__ import annotations

import copy
from collections.abc import Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from workbench.checks import first_line
from workbench.distances.blocks import format_layers
from workbench.models.hooks import hooked, inference, replaced_forwards, state_in, state_out, watch_states
from workbench.models.layers import decoder_forward, decoder_layers, kept_layers, unwrap
from workbench.models.probes import PROBE, input_device, rounding

#: how a layer gives its output: None for a bare tensor, else its kind and how many values it holds
Form = tuple[type, int] | None
Removal = tuple[int, ...]

#: in place of an axis: a container that layers may write into, so every call gets a copy of its own, and what
#: one layer leaves in it for another is missed (which ``check_shared`` then notices)
FRESH = -1
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
            raise ValueError(f"layer must be one of the model's layers {format_layers(kept)}, got {layer!r}")
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
        forms: how each layer gives its output, as ``check_shared`` found; None: asked by a pass of one token.
    """

    def __init__(
        self, model: nn.Module, ids: Tensor, *, max_tokens: int, forms: Sequence[Form] | None = None
    ) -> None:
        self.model, self.ids = model, ids
        self.layers = list(decoder_layers(model))
        self.room = max(1, max_tokens // ids.numel())
        self.held = max(1, HELD * max_tokens // ids.numel())
        self.forms = list(forms) if forms is not None else _plain_pass(model, ids[:1, :1])[1]
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
            return _normed(self.model, self._ids_for(states, 0))

    def logits(self, states: Tensor, *, first: int = 0) -> Tensor:
        """Return the logits ``[row, token, vocabulary]`` that the model's norm and head make of ``h[L]``.

        Args:
            states: some rows of a pack.
            first: which row of the pack is the first of them.
        """
        with self._layers_give(states):
            return _logits(self.model, self._ids_for(states, first))

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

    def _ids_for(self, states: Tensor, first: int) -> Tensor:
        """Return the tokens of rows, which some models read again behind the layers."""
        rows = torch.arange(first, first + len(states), device=self.ids.device)
        return self.ids[rows % len(self.ids)]

    @contextmanager
    def _layers_give(self, states: Tensor) -> Iterator[None]:
        """Let the model run its own embedding, norm and head around layers that only hand over ``states``."""
        outputs = {id(layer): _in_form(f, states) for layer, f in zip(self.layers, self.forms, strict=True)}
        # hooks of others have acted on these states already; ours, registered last, decides
        with (
            hooked() as handles,
            replaced_forwards(self.layers, lambda layer: lambda *args, **kwargs: outputs[id(layer)]),
        ):
            handles.append(self.layers[-1].register_forward_hook(lambda layer, *_: outputs[id(layer)]))
            yield

    def _layer_arguments(self, ids: Tensor) -> tuple[list[tuple[tuple[Any, ...], dict[str, Any]]], Tensor]:
        """Return what the model passes to each layer, and the state ``h[0]``, without running the layers."""
        seen: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
        states: list[Tensor] = []

        def record(*args: Any, **kwargs: Any) -> Any:
            states.append(state_in(args, kwargs))
            rest = {name: value for name, value in kwargs.items() if name != "hidden_states"}
            seen.append((args[1:], rest))
            return _in_form(self.forms[len(seen) - 1], states[0])

        with replaced_forwards(self.layers, lambda layer: record):
            decoder_forward(self.model)(input_ids=ids, use_cache=False)
        return seen, states[0]


def check_shared(model: nn.Module, ids: Tensor, *, head: bool) -> list[Form]:
    """Try on a few tokens whether sharing layers gives what the model itself gives, and return their forms.

    State that flows between layers beside the residual one (keys and values shared by layers, tokens chosen
    by an earlier one) would be that of another pass, and every number wrong without a word.

    Args:
        model: any decoder-only transformers model.
        ids: one text, of which a few tokens are read, forwards and backwards.
        head: compare logits, for a loss; False compares states after the final norm.

    Raises:
        ValueError: in one line, where it does not.
    """
    name = type(unwrap(model)).__name__
    short = ids[:PROBE].to(input_device(model))
    rows = torch.stack([short, short.flip(0)])
    with inference(model):
        wanted, forms = _plain_pass(model, rows, _logits if head else _normed)
        try:
            replay = Replay(model, rows, max_tokens=rows.numel(), forms=forms)
            (pack,) = replay._wave([])
            found = [pack.states, replay.logits(pack.states) if head else replay.normed(pack.states)]
        except torch.OutOfMemoryError:
            raise
        except (TypeError, ValueError, RuntimeError, LookupError, AttributeError, AssertionError) as error:
            raise ValueError(_unshared(name, first_line(error))) from error
    for one, two in zip(found, wanted, strict=True):
        away, allowed = rounding(one, two)
        if (most := float(away.median(dim=1).values.max())) > allowed:
            raise ValueError(_unshared(name, f"a short text's last states come out {most:.1%} off"))
    return forms


def _unshared(name: str, why: str) -> str:
    return (
        f"removal similarity and damage share layers between candidates, but {name} hands more from layer to "
        f"layer than one state ({why}); use without_layers with perplexity for it"
    )


def _plain_pass(model: nn.Module, ids: Tensor, last: Any = None) -> tuple[list[Tensor], list[Form]]:
    """Run the model as it is; return ``h[L]`` and what ``last`` makes of the ids, and the layers' forms."""
    layers = decoder_layers(model)
    forms: list[Form] = []
    states: list[Tensor] = []

    def form(layer: nn.Module, inputs: Any, output: Any) -> None:
        forms.append((type(output), len(output)) if isinstance(output, tuple | list) else None)

    def see(number: int, state: Tensor) -> None:
        states[:] = [state]

    with hooked() as handles:
        for layer in layers:
            handles.append(layer.register_forward_hook(form))
        with watch_states(model, see):
            end = (last or _normed)(model, ids)
    return [*states, end], forms


def _in_form(form: Form, state: Tensor) -> Any:
    """Return a state as a layer's output; what it gives beside the state stays empty."""
    return state if form is None else form[0]([state, *[None] * (form[1] - 1)])


def _normed(model: nn.Module, ids: Tensor) -> Tensor:
    normed: Tensor = decoder_forward(model)(input_ids=ids, use_cache=False)[0]
    return normed


def _logits(model: nn.Module, ids: Tensor) -> Tensor:
    logits: Tensor = model(input_ids=ids, use_cache=False).logits
    return logits


def _row_axis(seen: dict[tuple[int, int], int | None], once: Any, twice: Any) -> int | None:
    """Return the axis along which an argument follows the number of rows; None when it does not, or FRESH."""
    if not isinstance(once, Tensor):
        if once is not twice and once != twice:
            kind = type(once).__name__
            other = "; load it with attn_implementation='sdpa'" if kind == "BlockMask" else ""
            raise ValueError(f"its layers take a {kind}{other}")
        return None if isinstance(once, Hashable) else FRESH
    if (id(once), id(twice)) not in seen:
        axes = [i for i, (a, b) in enumerate(zip(once.shape, twice.shape, strict=True)) if a != b]
        axis = axes[0] if axes else None
        if not torch.equal(_repeat(once, axis, times=2), twice):
            raise ValueError("what its layers take does not simply repeat with the rows")
        seen[id(once), id(twice)] = axis
    return seen[id(once), id(twice)]


def _repeat(value: Any, axis: int | None, *, times: int) -> Any:
    if axis == FRESH:
        return copy.copy(value)
    if axis is None or times == 1:
        return value
    if value.shape[axis] == 1:  # no copy: attention masks are large
        return value.expand(*value.shape[:axis], times, *value.shape[axis + 1 :])
    return value.repeat(*(times if i == axis else 1 for i in range(value.ndim)))


def _map(function: Any, first: Any, second: Any) -> Any:
    """Apply a function to the leaves of two trees of the same form."""
    if isinstance(first, dict) and first:
        return {name: _map(function, value, second[name]) for name, value in first.items()}
    if isinstance(first, (tuple, list)) and first:
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

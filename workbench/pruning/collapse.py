"""Layers merged into one (LaCo): the weights of what stays, and which layers go."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from workbench.checks import one_of, whole_number
from workbench.models.layers import check_in_memory, decoder_layers, kept_layers
from workbench.pruning.removal import prune_, two_states, without_layers
from workbench.pruning.surgery import Change

#: how layers become one: the paper's equation, or what its published code does
MERGINGS = ("equation", "published")
Merges = Sequence[tuple[int, int]]


def layers_merged_away(layers: Sequence[int], merges: Merges) -> tuple[int, ...]:
    """Return which of some layers are gone after merges, in the order in which they went.

    Args:
        layers: original indices of the layers there are, in order.
        merges: ``(layer, count)`` in their order: the next ``count`` layers still there go into ``layer``.

    Raises:
        ValueError: for a layer that is not there any more, or fewer than ``count`` behind it.

    >>> layers_merged_away(range(6), [(3, 2), (1, 2)])
    (4, 5, 2, 3)
    """
    left, gone = list(layers), []
    for layer, count in merges:
        if layer not in left:
            raise ValueError(f"merges: layer {layer} is not among {left}")
        place = left.index(layer) + 1
        away = left[place : place + whole_number(count, "merges: count")]
        if len(away) < count:
            raise ValueError(f"merges: {count} layers behind {layer} are asked for, there are {len(away)}")
        gone += away
        del left[place : place + count]
    return tuple(gone)


def merged_tensors(model: nn.Module, merges: Merges, merging: str) -> dict[tuple[int, str], Tensor]:
    """Return the new value of each parameter that merges change, by its layer's place and its name.

    The equation (LaCo 3.1): ``layer + sum over k of (next_k - layer)``, of every parameter, computed in
    float32. The published code adds the differences to what it has changed already, so that they cancel and
    the layer ends as the *last* one merged into it; and it does so for the matrices of linear layers alone,
    norms and biases stay.
    """
    one_of(merging, MERGINGS, "merging")
    check_in_memory(model)
    places = {layer: place for place, layer in enumerate(kept_layers(model))}
    layers_merged_away(list(places), merges)
    layers, left = list(decoder_layers(model)), list(places)
    new: dict[tuple[int, str], Tensor] = {}
    for layer, count in merges:
        first = left.index(layer)
        group = [places[one] for one in left[first : first + count + 1]]
        del left[first + 1 : first + count + 1]
        for name, own in layers[group[0]].named_parameters():
            values = [new.get((place, name), _of(layers[place], name, own)) for place in group]
            if (value := _merged(layers[group[0]], name, values, merging)) is not None:
                new[group[0], name] = value
    return new


def collapse_changes(model: nn.Module, merges: Merges, merging: str = "equation") -> list[Change]:
    """Return what merges change in the weights of the layers that stay, for ``two_states``."""
    layers, changes = decoder_layers(model), []
    for (place, name), value in merged_tensors(model, merges, merging).items():
        module = layers[place].get_submodule(name.rpartition(".")[0])
        changes.append(
            (module._parameters, name.rpartition(".")[2], nn.Parameter(value, requires_grad=False))
        )
    return changes


@contextmanager
def collapsed_layers(model: nn.Module, merges: Merges, *, merging: str = "equation") -> Iterator[nn.Module]:
    """Run the model with layers merged (LaCo); on leaving it is as before, bit by bit.

    Args:
        model: a decoder-only transformers model; only the merged layers are in memory twice meanwhile.
        merges: ``(layer, count)`` by original index, in their order (``laco`` gives them).
        merging: ``"equation"`` (the paper's) or ``"published"`` (what its code does).

    Yields:
        The same model.

    Raises:
        ValueError: for merges that cannot be, layers of different form, and as ``without_layers``.
    """
    gone = layers_merged_away(kept_layers(model), merges)
    with two_states(collapse_changes(model, merges, merging)), without_layers(model, gone):
        yield model


def collapse_(model: nn.Module, merges: Merges, *, merging: str = "equation") -> nn.Module:
    """Merge layers for good; ``save_pruned`` can write the model then. As ``collapsed_layers`` otherwise."""
    gone = layers_merged_away(kept_layers(model), merges)
    new, layers = merged_tensors(model, merges, merging), decoder_layers(model)
    held = [(layers[place].get_parameter(name), value) for (place, name), value in new.items()]
    prune_(model, gone)
    with torch.no_grad():
        for parameter, value in held:
            parameter.copy_(value)
    return model


def _of(layer: nn.Module, name: str, like: Tensor) -> Tensor:
    found = dict(layer.named_parameters()).get(name)
    if found is None or found.shape != like.shape:
        raise ValueError(f"merges: layers of different form cannot be merged, {name} is not alike in all")
    return found.detach()


@torch.no_grad()
def _merged(layer: Any, name: str, values: list[Tensor], merging: str) -> Tensor | None:
    own = values[0].detach()
    if merging == "published":
        module = layer.get_submodule(name.rpartition(".")[0])
        matrix = name.endswith("weight") and own.ndim == 2 and type(module).__name__ != "Embedding"
        return values[-1].clone() if matrix else None
    total = own.float()
    for value in values[1:]:
        total = total + (value.float() - own.float())
    return total.to(own.dtype)

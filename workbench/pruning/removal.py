"""Remove decoder layers: for a while (`without_layers`), for good (`prune_`), on disk (`save_pruned`).

Layers are always named by their original index, 0..L-1 of the model that was first pruned. Embedding, final
norm and head stay; whatever depends on a layer's place follows or the cut is refused (see `surgery`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from workbench.checks import first_line
from workbench.distances.blocks import checked_layers, format_layers
from workbench.models.costs import attends
from workbench.models.hooks import at_the_end, inference
from workbench.models.layers import kept_layers, layer_container, unwrap
from workbench.pruning.saving import TOLERANCES, outputs
from workbench.pruning.surgery import ABSENT, NAMES, Change, changes_for

#: architectures for which the tests hold that a cut is exact; others are tried out at every cut
VERIFIED = {*NAMES["verified"]}
_PROBE = 8
_FOR_A_WHILE = "_layers_left_out"


@contextmanager
def without_layers(model: nn.Module, layers: Iterable[int]) -> Iterator[nn.Module]:
    """Run the model without some of its layers; on leaving, also by an error, all of it is back, bit by bit.

    The model itself is changed meanwhile: no weight is copied, and generation, key-value cache, hooks on
    the remaining layers and training an adapter all see a model of fewer layers. Uses nest, also with
    `with_adapter`; two threads at once need a model each.

    Args:
        model: a decoder-only transformers model, also inside a PEFT wrapper.
        layers: original indices to leave out, each still in the model, in any order; at least one layer
            stays.

    Yields:
        The same model.

    Raises:
        ValueError: for indices that are not in the model, and for layers that cannot be removed exactly; then
            nothing was changed.

    Example::

        with without_layers(model, [3, 4]):
            loss = model(**batch, labels=batch["input_ids"]).loss
    """
    stack, name = layer_container(model)
    present, training = getattr(stack, name), stack.training
    changes = [*removal_changes(model, layers), (vars(stack), _FOR_A_WHILE, True)]
    reduced = next((value for place, _, value in changes if place is stack._modules), present)

    def follow() -> None:
        if stack.training != training:  # the absent layers have missed a train() or eval() of the model
            present.training = stack.training
            for layer in set(present) - set(reduced):
                layer.train(stack.training)

    with at_the_end(follow), _applied(changes):
        yield model


def removal_changes(model: nn.Module, layers: Iterable[int]) -> list[Change]:
    """Return what removing layers changes in a model, for ``two_states``; nothing is changed yet.

    Raises:
        ValueError: as `without_layers`.
    """
    base = unwrap(model)
    stack, name = layer_container(base)
    kept = _positions_left(kept_layers(base), layers)
    if len(kept) == len(getattr(stack, name)):
        return []
    changes = changes_for(base, stack, name, kept)
    if stack.config.model_type not in VERIFIED:
        _try_out(stack, name, kept, changes)
    return changes


@contextmanager
def two_states(changes: list[Change]) -> Iterator[Callable[[], AbstractContextManager[None]]]:
    """Put a model into a second state, and give what puts it back into the first one for a while.

    Teacher and student of one copy of the weights: inside, the model is the student (its layers left out,
    its weights merged); ``with whole():`` it is the teacher. Modules that were put into the layers meanwhile,
    such as an adapter's, stay there in both.

    Args:
        changes: of ``removal_changes`` and the like.
    """
    before = _before(changes)
    with _applied(changes):
        yield lambda: _applied(before)


def prune_(model: nn.Module, layers: Iterable[int]) -> nn.Module:
    """Remove layers from the model for good; it remembers the original indices of those it kept.

    Args:
        model: a decoder-only transformers model.
        layers: original indices to remove, each still in the model, in any order; at least one layer stays.

    Returns:
        The same model, with `kept_layers(model)` and its configuration up to date.

    Raises:
        ValueError: as `without_layers`; also inside `without_layers`, which would bring the layers back.
    """
    stack, _ = layer_container(model)
    if getattr(stack, _FOR_A_WHILE, False):
        raise ValueError("model must not be inside without_layers, which restores it; leave that first")
    changes = removal_changes(model, layers)
    before = _before(changes)
    try:
        _put(changes)
    except BaseException:  # an interrupt half-way: the old model, not half a new one
        _put(before)
        raise
    return model


def check_prunable(model: nn.Module, layers: Iterable[int] | None = None) -> None:
    """Raise ValueError, naming the reason, when layers cannot be removed so that all else follows exactly.

    Args:
        model: a decoder-only transformers model; nothing in it is changed.
        layers: original indices to remove; None tries the first layer, which moves all others, and the last
            one.
    """
    kept = kept_layers(model)
    for cut in [kept[:1], kept[-1:]] if layers is None else [layers]:
        removal_changes(model, cut)


def _positions_left(present: tuple[int, ...], layers: Iterable[int]) -> list[int]:
    several = isinstance(layers, Iterable) and not isinstance(layers, str | Mapping)
    removed: Any = list(layers) if several else layers
    gone = () if removed == [] else checked_layers(removed, present)
    if several and len(gone) < len(removed):
        raise ValueError(f"layers must name each layer once, got {removed}")
    return [place for place, layer in enumerate(present) if layer not in gone]


@contextmanager
def _applied(changes: list[Change]) -> Iterator[None]:
    """Make changes and take them back, in reverse, also after an interrupt that falls between two of them."""
    before = _before(changes)
    with at_the_end(lambda: _put(before)):
        _put(changes)
        yield


def _before(changes: list[Change]) -> list[Change]:
    return [(place, key, place.get(key, ABSENT)) for place, key, _ in reversed(changes)]


def _put(changes: list[Change]) -> None:
    for place, key, value in changes:
        if value is ABSENT:
            place.pop(key, None)
        else:
            place[key] = value


def _try_out(stack: Any, name: str, kept: list[int], changes: list[Change]) -> None:
    """Compare a cut with the uncut model in which the removed layers hand on their input.

    Catches what the structure does not show: a forward pass that counts layers.

    Raises:
        ValueError: when a short pass, or the same in two parts with the cache, gives other hidden states.
    """
    if any(parameter.is_meta for parameter in stack.parameters()):
        return
    layers = getattr(stack, name)
    removed = [layer for place, layer in enumerate(layers) if place not in set(kept)]
    passing: list[Change] = [(vars(layer), "forward", _pass_on(layer)) for layer in removed]
    with inference(stack):
        cached = _agree(_states(stack, cached=True), _states(stack, cached=False))
        with _applied(passing):
            expected = _states(stack, cached=False)
        with _running(stack, kept), _applied(changes):
            same = _agree(_states(stack, cached=False), expected)
            # where the whole model's own cache gives other states, a cut need not do better
            same = same and (not cached or _agree(_states(stack, cached=True), expected))
    if not same:
        why = "without them it computes something else than with these passing on their input"
        raise ValueError(f"layers cannot be removed exactly from this {type(stack).__name__}: {why}")


@contextmanager
def _running(stack: Any, kept: list[int]) -> Iterator[None]:
    """Say in our words that a cut model does not run, as most hybrids that keep no attention layer."""
    originals = getattr(stack.config, "kept_layers", None) or range(stack.config.num_hidden_layers)
    attending = {place: layer for place, layer in enumerate(originals) if attends(stack.config, place)}
    try:
        yield
    except (ValueError, IndexError, RuntimeError, AttributeError, TypeError) as error:
        reason = f"without them it does not run ({first_line(error)})"
        if attending and attending.keys().isdisjoint(kept):
            all_of_them = format_layers(attending.values())
            reason = f"no attention layer would be left (of {all_of_them}), and its key-value cache needs one"
        raise ValueError(f"layers cannot be removed from this {type(stack).__name__}: {reason}") from error


def _agree(states: Tensor, expected: Tensor) -> bool:
    tolerance = TOLERANCES.get(expected.dtype, 1e-4) * expected.float().std().item()
    return torch.allclose(states, expected, rtol=0, atol=tolerance)


def _pass_on(layer: nn.Module) -> Any:
    forward = layer.forward

    def passing(hidden_states: Tensor, *arguments: Any, **options: Any) -> Any:
        output = forward(hidden_states, *arguments, **options)
        several = isinstance(output, tuple | list)
        return type(output)((hidden_states, *output[1:])) if several else hidden_states

    return passing


def _states(stack: Any, *, cached: bool) -> Tensor:
    device = next(stack.parameters()).device
    ids = (torch.arange(_PROBE, device=device) * 7 + 3)[None] % stack.config.vocab_size
    return outputs(stack, "last_hidden_state", ids, cached=cached)

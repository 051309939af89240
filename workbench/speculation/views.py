"""A draft on the target's own weights: modules, numbering and cache of its own, no weight copied."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from workbench.checks import whole_number
from workbench.healing.adapters import as_variant
from workbench.models.layers import kept_layers, number_of_layers, unwrap
from workbench.runs.run import Run
from workbench.runs.variant import Variant


@contextmanager
def draft_view(model: Any, variant: Variant, *, run: Run | str | Path | None = None) -> Iterator[Any]:
    """See a variant beside the whole model, both at once: a second set of modules around the same weights.

    The view has a layer numbering, a configuration and a cache of its own. Only what the variant changes
    takes memory: the matrices of its adapter, or the tensors of a merge. The model is not touched.

    Args:
        model: the whole model, the target.
        variant: of it, such as ``run.variant("pruned-sft")`` or ``early_exit(model, 16)``.
        run: where the variant's adapter is.

    Yields:
        The variant as a model.

    Raises:
        ValueError: as ``as_variant``, and for a model that is quantized or not in memory as a whole.
    """
    with as_variant(_on_the_same_weights(model), variant, run=run) as draft:
        yield draft


def early_exit(model: Any, layers: int, *, name: str | None = None) -> Variant:
    """Return the variant that keeps the first layers, with the model's final norm and head on them.

    Args:
        model: the whole model.
        layers: how many of its layers to keep, fewer than it has.
        name: of the variant; None for ``early-exit-<layers>``.

    Raises:
        ValueError: for a number that leaves nothing out.
    """
    depth = number_of_layers(model)
    if whole_number(layers, "layers") >= depth:
        raise ValueError(f"layers must be fewer than the model's {depth}, got {layers}")
    source = getattr(unwrap(model), "_source", {}).get("id") or unwrap(model).config._name_or_path or "model"
    note = f"the first {layers} of {depth} layers"
    return Variant(name or f"early-exit-{layers}", source, removed=kept_layers(model)[layers:], note=note)


def _on_the_same_weights(model: Any) -> Any:
    """Return a copy of the tree of modules in which every parameter and buffer shares its memory."""
    base = unwrap(model)
    tensors = [*base.parameters(), *base.buffers()]
    if getattr(base, "is_quantized", False) or any(tensor.is_meta for tensor in tensors):
        raise ValueError(
            "model must have full weights in memory to share them with a draft; load it with "
            "quantization=None and on one device"
        )
    # another Parameter object on the same memory: exchanging its data leaves the target's alone
    known: dict[int, Any] = {id(buffer): buffer for buffer in base.buffers()}
    known |= {id(one): nn.Parameter(one.data, requires_grad=False) for one in base.parameters()}
    twin = copy.deepcopy(base, known)
    return twin.eval()

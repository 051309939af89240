"""Merges of two healed variants of one pruning: a variant like any other, in the run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from safetensors.torch import load_file
from torch import Tensor

from workbench.checks import listed, one_of, whole_number
from workbench.digests import digest
from workbench.healing.adapters import _check_name, _check_weights, _loaded
from workbench.healing.restoring import same_randomness, weights_kept
from workbench.healing.tensors import TENSORS, checked_tensors, holds_tensors, write_tensors
from workbench.merging.slerp import NORMS, Merged, check_pair, checked_t, merged_pair, place_of
from workbench.models.hooks import at_the_end
from workbench.models.identity import describe_model
from workbench.models.layers import kept_layers, number_of_layers, unwrap
from workbench.pruning.removal import without_layers
from workbench.runs.files import atomic_folder
from workbench.runs.run import Run
from workbench.runs.variant import Variant

#: ways to merge the changes that two adapters make to the same weights
METHODS = ("slerp", "linear", "task_arithmetic", "ties", "dare")
#: letters of a merge's name, which files have with an ending
_LONGEST = 94
#: what gives a tensor of a variant: in the weights' own type (to the bit what merging the adapter gives), or
#: in float32
_End = Callable[[torch.dtype | None], Tensor]


def merge_variants(
    model: Any,
    first: Variant,
    second: Variant,
    ts: Sequence[float | Sequence[float]] = (0.25, 0.5, 0.75),
    *,
    run: Run,
    method: str = "slerp",
    norms: str = "linear",
    density: float = 0.5,
    seed: int = 0,
    name: str | None = None,
    remember: bool = True,
) -> list[Variant]:
    """Merge two healed variants of one pruning at some t each, and keep the merges as variants of the run.

    Only the tensors that an adapter changes are computed and kept, as a folder that takes an adapter's place:
    a merge is evaluated, compared, merged again and saved (``merge_adapter_``, ``save_pruned``) as any other
    variant. How the two ends lay to each other is in ``merged/<name>.csv``. A merge that is there is not made
    again.

    Args:
        model: the whole model; unchanged afterwards.
        first: the variant at t = 0.
        second: the variant at t = 1, of the same pruning. One without an adapter is the pruned model itself.
        ts: each a number in [0, 1] or a list over the layers, as for ``slerp``; a merge for each.
        run: where the adapters are and the merges go.
        method: ``"slerp"`` and ``"linear"`` of the whole tensors; ``"task_arithmetic"``: the base plus
            2 (1 - t) of the first change and 2 t of the second, at t = 0.5 their sum; ``"ties"``: the base
            plus the mean of the trimmed changes that agree in sign, weighted by 1 - t and t (Yadav et al.
            2023; mergekit's with ``normalize``); ``"dare"``: peft's, with these weights. Only the first two
            pass through the ends: trimming and dropping change an end as well.
        norms: of slerp.
        density: share of the numbers of a change that ``"ties"`` and ``"dare"`` keep.
        seed: of what ``"dare"`` drops.
        name: of the merges, before their t; None for ``merged-<method>``.
        remember: save the merges as variants of the run, so that ``run.variants()`` has them.

    Returns:
        The merged variants, in the order of ``ts``.

    Raises:
        ValueError: for t outside of [0, 1], variants of different prunings or models, adapters that do not
            fit (the first tensor is named), or numbers that are not finite.
    """
    one_of(method, METHODS, "method")
    one_of(norms, NORMS, "norms")
    if not 0 < density <= 1:
        raise ValueError(f"density must be above 0 and at most 1, got {density!r}")
    whole_number(seed, "seed", 0, 2**63 - 1)
    for t in listed(ts, "ts", "t"):
        checked_t(t)
    shown_as = ["_".join(f"{x:g}" for x in np.atleast_1d(t)) for t in ts]
    if len(set(shown_as)) < len(shown_as):
        raise ValueError(f"ts must differ in their first six digits, which name the merges, got {list(ts)}")
    check_one_pruning(model, first, second)
    made = []
    for t, shown in zip(ts, shown_as, strict=True):
        full = f"{name or f'merged-{method}'}-{shown}"
        if len(full) > _LONGEST:  # a list over many layers
            ends = f"{np.ravel(t)[0]:g}_to_{np.ravel(t)[-1]:g}_of_{np.size(t)}"
            full = f"{name or f'merged-{method}'}-{ends}-{digest(shown)[:8]}"
        settings: Any = {"method": method, "norms": norms, "density": density, "seed": seed}
        folder = f"merged/{full}"
        where: Any = {"run": run, "out": run.path(folder)}
        run.frame(f"{folder}.csv", merge_tensors, model, first, second, t, **settings, **where)
        note = f"{method} of {first.name} and {second.name} at t = {shown}"
        made.append(replace(first, name=full, adapter=folder, note=note))
    return [run.save_variant(one) for one in made] if remember else made


def check_one_pruning(model: Any, first: Variant, second: Variant) -> None:
    """Refuse variants that cannot be merged, before anything is loaded.

    Raises:
        ValueError: for different prunings, different models, or another model than they are of.
    """
    if first.removed != second.removed:
        raise ValueError(f"variants must be of one pruning, got {first.removed} and {second.removed}")
    if (first.model, first.revision) != (second.model, second.revision):
        raise ValueError(f"variants must be of one model, got {first.model!r} and {second.model!r}")
    _check_name(model, first)


def merge_tensors(
    model: Any, first: Variant, second: Variant, t: Any, *, run: Run, out: str | Path, seed: int, **how: Any
) -> pd.DataFrame:
    """Merge every tensor that one of two variants changes, and write the merges into a folder.

    Tensors are merged one by one on the model's device; those that are done wait in the host's memory.

    Args:
        model: the whole model; unchanged afterwards.
        first: the variant at t = 0.
        second: the variant at t = 1.
        t: as for ``slerp``.
        run: where the variants' adapters are.
        out: the folder.
        seed: as for ``merge_variants``.
        **how: ``method``, ``norms`` and ``density`` of ``merge_variants``.

    Returns:
        tensor, t, angle (degrees between the two whole tensors), linear (whether slerp took them as
        parallel), changed_first and changed_second: length of each change over that of the base's tensor.
    """
    at = checked_t(t)
    with without_layers(model, first.removed):
        ends = [ends_of(model, variant, run) for variant in (first, second)]
        parameters = dict(unwrap(model).named_parameters())
        names = [name for name in parameters if name in ends[0] or name in ends[1]]
        if not names:
            raise ValueError(f"variants must have adapters, {first.name!r} and {second.name!r} have none")
        depth, tensors, rows = number_of_layers(model), {}, []
        with torch.no_grad(), same_randomness(unwrap(model).device):
            torch.manual_seed(seed)
            for name in names:
                base = parameters[name].data
                pair = [end.get(name, _itself(base)) for end in ends]
                here = at(place_of(name, depth))
                done = _merged(name, base, pair, here, **how)
                tensors[name] = done.tensor.cpu()
                changes = [_length(one(torch.float32) - base.float()) / _length(base) for one in pair]
                told = {"tensor": name, "t": here, "angle": done.angle, "linear": done.linear}
                rows.append(told | dict(zip(("changed_first", "changed_second"), changes, strict=True)))
        record = {"kept_layers": list(kept_layers(model)), "model": describe_model(model)}
        merge = {"first": first.name, "second": second.name, "t": np.asarray(t).tolist(), **how}
        with atomic_folder(out) as folder:
            write_tensors(folder, tensors, record | {"merge": merge})
    return pd.DataFrame(rows)


def _merged(
    name: str, base: Tensor, pair: list[_End], t: float, method: str, norms: str, density: float
) -> Merged:
    at_an_end = t in (0, 1) and method in ("slerp", "linear")  # to the bit what the end itself is
    whole = [one(None if at_an_end else torch.float32) for one in pair]
    check_pair(name, *whole)
    found = merged_pair(whole[0], whole[1], t, norms)
    if method == "linear" and not at_an_end:
        found = found._replace(tensor=torch.lerp(whole[0], whole[1], t))
    elif method not in ("slerp", "linear"):
        found = found._replace(tensor=base.float() + _combined(base, whole, t, method, density))
    return found._replace(tensor=found.tensor.to(base.dtype))


def _combined(base: Tensor, whole: list[Tensor], t: float, method: str, density: float) -> Tensor:
    """Return the change that two make together."""
    from peft.utils import merge_utils

    changes = [one - base.float() for one in whole]
    weights = torch.tensor([1 - t, t], device=base.device)
    if method == "task_arithmetic":
        return merge_utils.task_arithmetic(changes, 2 * weights)
    if method == "dare":
        return merge_utils.dare_linear(changes, weights, density)
    if density < 1:
        changes = [merge_utils.prune(one, density, method="magnitude") for one in changes]
    return _agreeing(torch.stack(changes), weights)


def _agreeing(changes: Tensor, weights: Tensor) -> Tensor:
    """Return the weighted mean of the numbers that have the sign of their weighted sum.

    ``peft.utils.merge_utils.ties`` divides weighted numbers by how many there are, which suits weights of 1
    each; weights that sum to 1 would be divided twice.

    Args:
        changes: ``[change, ...]``, trimmed.
        weights: ``[change]``.
    """
    from peft.utils import merge_utils

    heavy = merge_utils.reshape_weight_task_tensors(changes, weights)
    counts = heavy * merge_utils.calculate_majority_sign_mask(changes * heavy)
    total = counts.sum(0)
    return (changes * counts).sum(0) / torch.where(total > 0, total, 1)


def ends_of(model: Any, variant: Variant, run: Run) -> Mapping[str, _End]:
    """Return what gives each tensor that a variant changes, by the name of its parameter.

    Each is a function of a type: None for the tensor to the bit as merging the adapter gives it, or float32.

    Args:
        model: without the variant's removed layers, and without its adapter.
        variant: of the run.
        run: where its adapter is.
    """
    if variant.adapter is None:
        return {}
    folder = run.path(variant.adapter)
    if not folder.is_dir():
        raise ValueError(f"variant {variant.name!r} has adapter {variant.adapter!r}, which is not in the run")
    _check_weights(model, folder)
    if not holds_tensors(folder):
        return _of_lora(model, folder)
    checked_tensors(folder)
    return {name: _itself(tensor) for name, tensor in load_file(folder / TENSORS).items()}


def _of_lora(model: Any, folder: Path) -> Mapping[str, _End]:
    from peft.tuners.lora.layer import LoraLayer

    with ExitStack() as stack:
        stack.enter_context(weights_kept(model))
        wrapper = stack.enter_context(_loaded(model, folder, None))
        adapted = wrapper.get_base_model().named_modules()
        modules = {name: module for name, module in adapted if isinstance(module, LoraLayer)}
    # taken off, the modules still know the weights that they change
    found = {}
    for path, module in modules.items():
        inside = getattr(module, "parameter_name", "weight")
        name = f"{path.replace('.base_layer', '')}.{inside}"
        found[name] = _lora_end(module, getattr(module.get_base_layer(), inside))
    return found


def _lora_end(module: Any, weight: Any) -> _End:
    def end(dtype: torch.dtype | None) -> Tensor:
        kept = weight.data

        def restore() -> None:
            weight.data = kept
            module.merged_adapters.clear()

        with at_the_end(restore):
            weight.data = kept if dtype is None else kept.to(dtype)
            module.merge(safe_merge=True)
            merged: Tensor = weight.data
        return merged

    return end


def _itself(base: Tensor) -> _End:
    return lambda dtype: base if dtype is None else base.to(dtype)


def _length(tensor: Tensor) -> float:
    return float(torch.linalg.vector_norm(tensor.float(), dtype=torch.float64))

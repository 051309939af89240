"""What has to follow when layers leave: the configuration, the layers' own indices, and what cannot follow.

The test is the architecture's own: a model built from the new configuration must have, at every layer, the
same modules with the same shapes and settings as the layer that moved there. Then a saved model reloads as
the same function, and nothing in memory still points at an old place.
"""

from __future__ import annotations

import copy
import json
from functools import lru_cache
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from workbench.models.layers import types_of_torch_
from workbench.places import toml_beside

#: the names of ``surgery.toml``, by what they are
NAMES: dict[str, list[str]] = toml_beside(__file__)
#: attributes in which modules keep their own place
INDEX_NAMES = NAMES["index_names"]
_INDEX_LISTS = NAMES["index_lists"]
_OURS = ("kept_layers", "original_num_hidden_layers")
#: stands for an entry that a dictionary does not have
ABSENT = object()

Change = tuple[dict[str, Any], str, Any]  # in this dictionary, this key gets this value


def changes_for(model: Any, stack: Any, name: str, kept: list[int]) -> list[Change]:
    """Return every change that leaves a model with the layers at these positions, as entries of dictionaries.

    Args:
        model: the transformers model, without wrappers.
        stack: the module that runs the layers.
        name: the name of the list of layers in `stack`.
        kept: positions in that list, rising.

    Raises:
        ValueError: when the architecture ties a layer to its place in a way that cannot be followed.
    """
    layers = getattr(stack, name)
    _refuse_shared(layers, kept)
    config = config_without(stack.config, kept)
    whole, rebuilt = compared_builds(stack, name, kept, config)
    sliced = _weight_changes(stack, whole, rebuilt, name, kept)
    container = nn.ModuleList(layers[old] for old in kept)
    container.training = layers.training
    changes: list[Change] = [(stack._modules, name, container)]
    changes += [*sliced, *_config_changes(model, stack.config, config)]
    changes += _setting_changes(stack, whole, rebuilt, skip=name)
    for new, old in enumerate(kept):
        changes += _setting_changes(layers[old], getattr(whole, name)[old], getattr(rebuilt, name)[new])
    return changes


def config_without(config: Any, kept: list[int]) -> Any:
    """Return a copy of a text configuration for the layers at these positions.

    Every list with one entry a layer is sliced, indices of layers are renumbered, and `kept_layers` (original
    indices) and `original_num_hidden_layers` say where the layers come from.
    """
    depth = config.num_hidden_layers
    new = copy.deepcopy(config)
    other = {*_INDEX_LISTS, *NAMES["not_per_layer"]}
    for key, value in vars(config).items():
        if isinstance(value, list | tuple) and len(value) == depth and key not in other:
            vars(new)[key] = type(value)(value[old] for old in kept)
        if isinstance(value, list) and key in _INDEX_LISTS:
            vars(new)[key] = [place for place, old in enumerate(kept) if old in value]
    _follow_counts(new, config, kept)
    vars(new)[config.attribute_map.get("num_hidden_layers", "num_hidden_layers")] = len(kept)
    originals = getattr(config, "kept_layers", None) or range(depth)
    vars(new)["kept_layers"] = [originals[old] for old in kept]
    vars(new).setdefault("original_num_hidden_layers", depth)
    _follow_overrides(new, config, kept)
    return new


def _follow_counts(new: Any, config: Any, kept: list[int]) -> None:
    """Settings that say where a kind of layer begins, ends or recurs: restate them for the kept layers."""
    depth, entries = config.num_hidden_layers, vars(new)
    step, dense = getattr(config, "decoder_sparse_step", None), getattr(config, "mlp_only_layers", None)
    if step is not None and dense is not None:  # Qwen mixtures: name the dense layers one by one
        entries["mlp_only_layers"] = [n for n, old in enumerate(kept) if old in dense or (old + 1) % step]
        entries["decoder_sparse_step"] = 1
    for key in ("first_k_dense_replace", "moe_layer_start_index"):  # DeepSeek, ERNIE: the first k are dense
        if entries.get(key) is not None:
            entries[key] = sum(old < entries[key] for old in kept)
    if entries.get("num_kv_shared_layers"):  # Gemma3n, Gemma4: the last k reuse keys and values
        entries["num_kv_shared_layers"] = sum(old >= depth - config.num_kv_shared_layers for old in kept)
    if "attention_types" in entries and "attention_layers" in entries:  # GPT-Neo: [[kinds, repeats], ...]
        entries["attention_types"] = [[[kind], 1] for kind in entries["attention_layers"]]


def _follow_overrides(new: Any, config: Any, kept: list[int]) -> None:
    """Heterogeneous configurations keep settings of single layers in a dictionary by index."""
    if getattr(config, "is_heterogeneous", False):
        overrides = {int(old): entry for old, entry in config.to_dict()["per_layer_config"].items()}
        new.per_layer_config = {place: overrides[old] for place, old in enumerate(kept) if old in overrides}


def compared_builds(stack: Any, name: str, kept: list[int], config: Any) -> tuple[nn.Module, nn.Module]:
    """Build the stack from the old and from the new configuration, without memory, and compare the two.

    Raises:
        ValueError: naming the first layer that would be another one there, and the settings behind it.
    """
    try:
        kind: Any = type(stack)
        whole, rebuilt = (_blank(kind, *_text(each)) for each in (stack.config, config))
    except (ValueError, TypeError, KeyError, IndexError) as error:
        short = " ".join(str(error).split())[:200]
        raise _refusal(stack, f"no {type(stack).__name__} can be built of them ({short})") from error
    depth = len(getattr(whole, name))
    originals = getattr(stack.config, "kept_layers", None) or range(depth)
    if len(getattr(rebuilt, name)) != len(kept):
        raise _refusal(stack, f"a {kind.__name__} built for {len(kept)} layers has another number of them")
    for new, old in enumerate(kept):
        before = _signature(getattr(whole, name)[old], depth)
        what = _difference(before, _signature(getattr(rebuilt, name)[new], len(kept)))
        if what:
            raise _refusal(stack, f"layer {originals[old]} would take place {new}, where {what}")
    return whole, rebuilt


def _weight_changes(
    stack: Any, whole: nn.Module, rebuilt: nn.Module, name: str, kept: list[int]
) -> list[Change]:
    """Cut the weights outside the layers that hold a part for each layer: Gemma's embeddings by layer.

    Raises:
        ValueError: naming a weight that is of another shape and is not made of such parts.
    """
    before, after = _shapes_beside(whole, name), _shapes_beside(rebuilt, name)
    changes: list[Change] = []
    for path in [path for path in {**before, **after} if before.get(path) != after.get(path)]:
        owner, _, leaf = path.rpartition(".")
        old, new, place = before.get(path), after.get(path), stack.get_submodule(owner)._parameters
        cut = _parts(place.get(leaf), old, new, kept, len(getattr(whole, name)))
        if cut is None:
            raise _refusal(stack, f"weights outside the layers are cut by layer: {path} is {new}, not {old}")
        changes.append((place, leaf, cut))
    return changes


def _parts(weight: Any, old: Any, new: Any, kept: list[int], depth: int) -> nn.Parameter | None:
    """Return the kept layers' parts of a weight with one part a layer, in a row along one axis; or None."""
    if weight is None or tuple(weight.shape) != old or new is None or len(new) != len(old):
        return None
    axes = [axis for axis, size in enumerate(old) if size != new[axis]]
    if len(axes) != 1 or old[axes[0]] % depth:
        return None
    parts = weight.detach().unflatten(axes[0], (depth, -1))
    chosen = parts.index_select(axes[0], torch.tensor(kept, device=weight.device))
    return nn.Parameter(chosen.flatten(axes[0], axes[0] + 1), requires_grad=weight.requires_grad)


def _refusal(stack: Any, reason: str) -> ValueError:
    entries = {key: getattr(stack.config, key, None) for key in NAMES["positional"] + _INDEX_LISTS}
    named = ", ".join(f"{key}={value}" for key, value in entries.items() if value)
    return ValueError(
        f"layers cannot be removed exactly from this {type(stack).__name__}: {reason}"
        f"{f'; its configuration ties layers to places: {named}' if named else ''}; nothing was changed"
    )


def _refuse_shared(layers: nn.ModuleList, kept: list[int]) -> None:
    modules = [module for old in kept for module in set(layers[old].modules())]
    placed = [m for m in modules if m._parameters or not vars(m).keys().isdisjoint(INDEX_NAMES)]
    if len(set(placed)) < len(placed):
        raise ValueError("layers cannot be removed from this model: some share modules, so have no own place")


def _text(config: Any) -> tuple[type, str]:
    """Return a configuration as a key for the cache, and as the JSON that a reload would read."""
    entries = config.to_dict() | {"attn_implementation": config._attn_implementation}
    return type(config), json.dumps(entries, default=str, sort_keys=True)


@lru_cache(maxsize=16)
def _blank(kind: type, config_kind: Any, text: str) -> Any:
    entries = json.loads(text)
    attention = entries.pop("attn_implementation")
    config = config_kind.from_dict(entries)
    config._attn_implementation = attention
    types_of_torch_(config)
    with torch.device("meta"), _Uninitialised():
        return kind(config)


class _Uninitialised(TorchFunctionMode):
    """Leave out initial values, which take most of the time; in this thread only."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", None) == "torch.nn.init":
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return (torch.empty if func in (torch.ones, torch.zeros) else func)(*args, **kwargs)


def _difference(before: dict[str, Any], after: dict[str, Any]) -> str | None:
    """Say in words where two signatures differ, nearest the top of the module first."""
    paths = {*before, *after}
    other = [path for path in paths if before.get(path, ABSENT) != after.get(path, ABSENT)]
    if not other:
        return None
    path = min(other, key=lambda path: (path.count("."), not path.endswith(".kind"), path))
    return f"{path.strip('.')} is {after.get(path, 'absent')} instead of {before.get(path, 'absent')}"


def _signature(layer: nn.Module, depth: int) -> dict[str, Any]:
    """Return kinds, shapes and settings of a layer's modules, but for indices and lists by layer."""
    found: dict[str, Any] = {}
    for path, module in layer.named_modules():
        found[f"{path}.kind"] = type(module).__name__
        tensors = {**module._parameters, **module._buffers}
        found |= {f"{path}.{key}.shape": tuple(t.shape) for key, t in tensors.items() if t is not None}
        found |= {f"{path}.{key}": v for key, v in _settings(module).items() if key not in INDEX_NAMES}
    by_layer = [key for key, value in found.items() if isinstance(value, list) and len(value) == depth]
    return {key: value for key, value in found.items() if key not in by_layer}


def _shapes_beside(stack: nn.Module, name: str) -> dict[str, Any]:
    tensors = stack.state_dict().items()
    return {key: tuple(tensor.shape) for key, tensor in tensors if not key.startswith(f"{name}.")}


def _settings(module: nn.Module) -> dict[str, Any]:
    return {key: value for key, value in vars(module).items() if key[0] != "_" and _is_setting(value)}


def _is_setting(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(_is_setting(item) for item in value)
    return value is None or isinstance(value, bool | int | float | str)


def _config_changes(model: Any, config: Any, new: Any) -> list[Change]:
    """Bring the new entries into every live configuration object that describes the same layers."""
    objects: list[Any] = [getattr(module, "config", None) for module in model.modules()]
    objects.append(model.config.get_text_config(decoder=True))
    same = [c for c in objects if type(c) is type(config) and c.num_hidden_layers == config.num_hidden_layers]
    entries = {key: value for key, value in vars(new).items() if vars(config).get(key, ABSENT) != value}
    live = {id(one): vars(one) for one in same}.values()
    return [(one, key, entries[key]) for one in live for key in entries if key in one or key in _OURS]


def _setting_changes(live: nn.Module, whole: nn.Module, rebuilt: nn.Module, skip: str = "") -> list[Change]:
    """Give live modules the settings in which the two builds differ: indices, lists by layer, counts."""
    before, after = dict(whole.named_modules()), dict(rebuilt.named_modules())
    changes: list[Change] = []
    for path, module in live.named_modules():
        path = path.replace(".base_layer", "")  # an adapter's layer holds the one it wraps
        if path in before and path in after and not (skip and f"{path}.".startswith(f"{skip}.")):
            old = _settings(before[path])
            new = [pair for pair in _settings(after[path]).items() if pair[0] in vars(module)]
            changes += [(vars(module), key, value) for key, value in new if old.get(key, ABSENT) != value]
    return changes

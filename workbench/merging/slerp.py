"""Spherical linear interpolation of weights, tensor by tensor (SDD D).

Between u and v at angle a, s0 = sin((1 - t) a) / sin(a) and s1 = sin(t a) / sin(a). SDD interpolates the
unit vectors and says nothing of the length; here the norm is put back by interpolating the two norms
linearly (``norms="linear"``). mergekit weighs the vectors as they are, s0 u + s1 v (``norms="mergekit"``):
the same where both are equally long. Nearly parallel vectors (|cos| above 0.9995) are interpolated
linearly, as they are, by both, and the ends are taken as they are.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from workbench.checks import one_of, told
from workbench.models.layers import kept_layers, unwrap

#: from this cosine on two vectors count as parallel
PARALLEL = 0.9995
#: numbers that are held in float32 at once
_PIECE = 2**24
NORMS = ("linear", "mergekit")
_LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks)\.(\d+)\.")
_BEFORE_LAYERS = re.compile(r"embed_(?:tokens|in|positions)|embeddings|wte|wpe")


class Merged(NamedTuple):
    """A merged tensor, and how its two sources lay to each other.

    Attributes:
        tensor: in the type and shape of the first.
        angle: between the two, in degrees, 0..180; NaN where one is 0.
        linear: whether it was interpolated linearly.
    """

    tensor: Tensor
    angle: float
    linear: bool


def slerp(a: Any, b: Any, t: float | Sequence[float] = 0.5, *, norms: str = "linear") -> Any:
    """Merge two tensors, state dicts, models or saved models of one pruning by spherical interpolation.

    Variants of a run are merged by ``merge_variants``. Tensors are merged one by one, where the first of the
    two is; beside the result, only one of them is in memory a second time.

    Args:
        a: a tensor; a state dict; a model; or the folder of a model in safetensors.
        b: another of the same kind, shapes and pruning.
        t: 0 gives a, 1 gives b, both to the bit. A list is spread evenly over the layers and interpolated
            between (one number a layer where it is as long); what comes before the layers takes the first,
            what comes after them the last; a head tied to the embedding is the embedding.
        norms: ``"linear"``, or ``"mergekit"`` (see the top of the file).

    Returns:
        A tensor, else a state dict for ``model.load_state_dict``; of folders by the names in their files.

    Raises:
        ValueError: for t outside of [0, 1], tensors of other names or shapes (the first is named), other
            layers, or numbers that are not finite.

    >>> slerp(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 3.0]), 0.5).tolist()
    [1.4142135381698608, 1.4142135381698608]
    """
    one_of(norms, NORMS, "norms")
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        check_pair("a tensor", a, b)
        if not (a.is_floating_point() and b.is_floating_point()):
            raise ValueError(f"a and b must hold real numbers, got {a.dtype} and {b.dtype}")
        return merged_pair(a, b, checked_t(t)(None), norms).tensor
    first, second = _tensors(a), _tensors(b)
    _check_layers(a, b)
    at = checked_t(t)
    _check_alike(first, second)
    alike: dict[tuple[int, torch.Size], str] = {}  # tied tensors are one, and stay one
    of = {name: alike.setdefault((one.data_ptr(), one.shape), name) for name, one in first.items()}
    depth = 1 + max((layer for name in first if (layer := _layer(name)) is not None), default=0)
    merged = {
        name: _named_pair(name, first[name], second[name], at(place_of(name, depth)), norms)
        for name in alike.values()
    }
    return {name: merged[own] for name, own in of.items()}


def merged_pair(a: Tensor, b: Tensor, t: float, norms: str = "linear") -> Merged:
    """Return the spherical interpolation of two tensors, each read as one vector.

    Args:
        a: floating-point, any shape.
        b: of the same shape.
        t: in [0, 1].
        norms: as for ``slerp``.
    """
    b = b.to(a.device)
    dots = [(_dot(u, u), _dot(v, v), _dot(u, v)) for u, v in _pieces(a, b)]
    *squares, dot = (sum(column) for column in zip(*dots, strict=True))
    lengths = [square**0.5 for square in squares]
    product = lengths[0] * lengths[1]
    cosine = dot / product if product else math.nan
    angle = math.acos(min(1.0, max(-1.0, cosine))) if product else math.nan
    between = angle if product else math.pi / 2  # mergekit's, where one is 0
    linear = abs(cosine) > PARALLEL if product else norms == "linear"
    if t in (0, 1):
        return Merged((b if t else a).to(a.dtype).clone(), math.degrees(angle), linear)
    if linear:
        shares = (1 - t, t)
    else:
        whole = math.sin(between)
        shares = math.sin((1 - t) * between) / whole, math.sin(t * between) / whole
        if norms == "linear":
            length = (1 - t) * lengths[0] + t * lengths[1]
            shares = (shares[0] * length / lengths[0], shares[1] * length / lengths[1])
    mixed = [torch.add(u * shares[0], v, alpha=shares[1]).to(a.dtype) for u, v in _pieces(a, b)]
    return Merged(torch.cat(mixed).view(a.shape), math.degrees(angle), linear)


def check_pair(name: str, a: Tensor, b: Tensor) -> None:
    """Refuse two tensors that cannot be merged.

    Raises:
        ValueError: for another shape, or numbers that are not finite.
    """
    if a.shape != b.shape:
        raise ValueError(f"{name} must have one shape in both, it has {tuple(a.shape)} and {tuple(b.shape)}")
    for which, one in (("first", a), ("second", b)):
        if one.is_meta:
            raise ValueError(f"{name} of the {which} must be in memory, it is on the meta device")
        if not torch.isfinite(one).all():
            raise ValueError(f"{name} of the {which} must hold finite numbers, it has NaN or infinite ones")


def checked_t(t: Any) -> Callable[[float | None], float]:
    """Return how far to go at a depth between 0 (before the layers) and 1 (after them).

    Raises:
        ValueError: for anything but numbers in [0, 1].
    """
    several = isinstance(t, list | tuple | np.ndarray)
    values = list(t) if several else [t]
    wrong = [x for x in values if isinstance(x, bool) or not (isinstance(x, Real) and 0 <= float(x) <= 1)]
    if wrong or not values:
        raise ValueError(f"t must be a number in [0, 1] or a list of them over the layers, got {t!r}")
    points = np.linspace(0, 1, len(values))
    return lambda depth: float(np.interp(0.5 if depth is None else depth, points, values))


def place_of(name: str, depth: int) -> float:
    """Return where in the model a tensor is: 0 before the layers and in the first, 1 in the last and after.

    >>> place_of("model.layers.3.mlp.up_proj.weight", 7), place_of("lm_head.weight", 7)
    (0.5, 1.0)
    """
    layer = _layer(name)
    if layer is None:
        return 0.0 if _BEFORE_LAYERS.search(name) else 1.0
    return layer / max(1, depth - 1)


def _layer(name: str) -> int | None:
    found = _LAYER.search(name)
    return int(found.group(1)) if found else None


def _pieces(a: Tensor, b: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield two tensors piece by piece, in float32 at least: never a copy of the whole."""
    for pair in zip(*(one.reshape(-1).split(_PIECE) for one in (a, b)), strict=True):
        u, v = (one if one.dtype == torch.float64 else one.float() for one in pair)
        yield u, v


def _dot(u: Tensor, v: Tensor) -> float:
    return float((u * v).sum(dtype=torch.float64))


def _check_alike(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> None:
    if differ := sorted(first.keys() ^ second.keys()):
        raise ValueError(f"a and b must hold the same tensors, {differ[0]} is in one alone")
    for name, tensor in first.items():
        check_pair(name, tensor, second[name])


def _named_pair(name: str, a: Tensor, b: Tensor, t: float, norms: str) -> Tensor:
    if not a.is_floating_point():
        if not torch.equal(a, b.to(a.device)):
            raise ValueError(f"{name} holds whole numbers that differ and cannot be merged")
        return a.clone()
    return merged_pair(a, b, t, norms).tensor


def _tensors(source: Any) -> Mapping[str, Tensor]:
    """Return tensors by name; those of a folder stay on the disk until they are read."""
    if isinstance(source, nn.Module):
        state: dict[str, Tensor] = unwrap(source).state_dict()
        return state
    if isinstance(source, Mapping) and all(isinstance(one, Tensor) for one in source.values()):
        return source
    if not (isinstance(source, str | Path) and Path(source).is_dir()):
        kinds = "tensors, state dicts, models or folders of models (variants: merge_variants)"
        raise ValueError(f"a and b must be two {kinds}, got {type(source).__name__}")
    files = sorted(Path(source).glob("*.safetensors"))
    if not files:
        raise ValueError(f"{source} must be the folder of a model with weights in safetensors, it has none")
    with told(f"{source} cannot be read", SafetensorError):
        return {name: tensor for file in files for name, tensor in load_file(file).items()}


def _check_layers(a: Any, b: Any) -> None:
    """Refuse models and folders of different prunings, where they say which they are."""
    first, second = _kept(a), _kept(b)
    if first and second and first != second:
        raise ValueError(f"a and b must be of one pruning, they keep layers {first} and {second}")


def _kept(source: Any) -> list[int]:
    from transformers import AutoConfig

    if isinstance(source, nn.Module):
        return list(kept_layers(source))
    if isinstance(source, Mapping):
        return []
    if not (Path(source) / "config.json").is_file():
        raise ValueError(f"{source} must be the folder of a model, it has no config.json")
    config = AutoConfig.from_pretrained(source).get_text_config(decoder=True)
    return list(getattr(config, "kept_layers", None) or range(config.num_hidden_layers))

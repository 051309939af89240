"""Angular distance of every block of layers from one pass over texts (GRO 3.2, SDD 2.1).

Layers are numbered 0..L-1, residual states ``h[0]..h[L]``; ``h[L]`` is before the final norm. Frames name
layers by their original numbers: for a model that was pruned before, ``start`` skips what is gone and
``size`` counts layers that are still there.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from workbench.checks import is_whole
from workbench.distances.stability import mean_distances
from workbench.models.batches import Batch, commonest_token, each_text, make_batches, measured_on, read_tokens
from workbench.models.hooks import check_finite, compiled_layers, compiling_pays, watch_states
from workbench.models.layers import decoder_forward, kept_layers, number_of_layers

#: numbers that are turned to float64 at once (128 MiB)
CHUNK = 2**24


def angular_distance(first: Tensor, second: Tensor) -> Tensor:
    """Return the angle between vectors along the last axis, over pi.

    0 = same direction, 0.5 = orthogonal, 1 = opposite. Computed as ``2 atan2(|u - v|, |u + v|) / pi`` on
    float64 unit vectors: exactly 0 for equal vectors and accurate next to 0, where arccos of a cosine loses
    half the digits, and NaN where rounding takes the cosine past 1.

    Args:
        first: ``[..., width]`` of any dtype.
        second: of a shape that broadcasts with the first.

    Returns:
        float64 ``[...]`` in ``[0, 1]``; NaN where a vector is zero or not finite.
    """
    return _unit_distance(_unit(first), _unit(second))


def angular_distances(
    model: nn.Module,
    tokenizer: Any,
    texts: Any,
    *,
    max_length: int = 4096,
    batch_size: int = 8,
    position: str | int = "last",
    points_per_text: int = 1,
    compiled: bool | None = None,
    confidence: float = 0.95,
    seed: int = 0,
    progress: bool = True,
) -> pd.DataFrame:
    """Measure the angular distance across every block of layers, all sizes in one pass over the texts.

    ``d(start, size)`` is the mean over texts of ``arccos(cos(h[start], h[start+size])) / pi`` at the last
    real token: 0 = the block leaves the direction as it was, 0.5 = orthogonal, 1 = opposite. The block to
    prune for a size is the start of least distance (``best_blocks``). GRO 3.2, SDD 2.1; SDD uses 128 texts of
    up to 4096 tokens.

    The mean is over texts, each counting once whatever its length or batch. For the distances of single
    texts, or the stability of the pick, keep the frame of ``block_angles`` and average it with
    ``mean_distances``.

    Texts that all end in a full stop give the distances *at full stops*, and an interval over such texts:
    ``attrs["end_token"]`` says which token the most of them end in, and what share. ``position="random"``
    measures at other tokens too.

    Args:
        model: any decoder-only transformers model; its layers run without the head.
        tokenizer: its tokenizer; padding side and pad token do not matter. None for texts that are token ids.
        texts: strings, or token ids as lists or 1-D tensors.
        max_length: most tokens read of a text, from its beginning.
        batch_size: texts that run together.
        position: which state stands for a text. ``"last"``: that of its last real token (the papers). An int:
            that of this token, counted from 0, or from the end when negative. ``"random"``: those of
            ``points_per_text`` of its tokens, drawn without the first; in a causal model the state of a text
            that was cut there. ``"mean"``: the mean of the states of all its tokens, in which tokens with
            very large states (often the first) weigh most.
        points_per_text: tokens drawn of each text for ``"random"``, or all but its first where it has fewer.
            A text counts once, by the mean over its points.
        compiled: whether to compile the layers for the pass. None: on a CUDA device, when there is work
            enough for compiling to pay. Numbers then differ by rounding in the model's dtype.
        confidence: coverage of the bootstrap interval over texts, between 0 and 1.
        seed: of the bootstrap, and of the points.
        progress: show a progress bar.

    Returns:
        Frame ``start, size, distance, std, ci_low, ci_high, n_texts`` for every ``start >= 0, size >= 1``
        with ``start + size <= L``, ordered by size, then start; ``attrs`` say where it comes from. ``std`` is
        the standard deviation over texts. With one text, spread and interval are NaN.

    Raises:
        ValueError: for no texts, an empty text, ``max_length``, ``batch_size`` or ``position`` out of range
            (all before the first forward pass), or a state that is zero or not finite.
    """
    reading: dict[str, Any] = {"max_length": max_length, "batch_size": batch_size, "position": position}
    reading |= {"points_per_text": points_per_text, "seed": seed, "compiled": compiled}
    angles = block_angles(model, tokenizer, texts, **reading, progress=progress)
    return mean_distances(angles, confidence=confidence, seed=seed)


def block_angles(
    model: nn.Module,
    tokenizer: Any,
    texts: Any,
    *,
    max_length: int = 4096,
    batch_size: int = 8,
    position: str | int = "last",
    points_per_text: int = 1,
    seed: int = 0,
    compiled: bool | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """Measure the angular distance across every block for each text: what ``angular_distances`` averages.

    Arguments and errors are those of ``angular_distances``.

    Returns:
        Frame ``text, start, size, angle``: ``text`` is the text's position in ``texts``, ``angle`` is in
        ``[0, 1]``. With ``position="random"`` also ``point``, the token, counted from 0.
    """
    tokens = read_tokens(model, tokenizer, texts, max_length)
    points = _points([len(ids) for ids in tokens], position, points_per_text, seed)
    batches = make_batches(tokens, batch_size=batch_size, model=model)
    if compiled is None:
        compiled = compiling_pays(model, sum(batch.ids.numel() for batch in batches))
    shapes = {batch.ids.shape for batch in batches}
    pick = partial(_picked_states, model, points)
    with compiled_layers(model, dynamic=len(shapes) > 1) if compiled else nullcontext():
        states = each_text(model, batches, pick, title="angular distances", progress=progress)
    angles = _pairwise_angles(states.flatten(0, 1)).reshape(*states.shape[:2], -1)
    check_finite("residual states", angles.reshape(len(angles), -1))
    frame = _long_frame(angles, points, kept_layers(model), named=position == "random")
    settings: dict[str, Any] = {"max_length": max_length, "position": position, "compiled": compiled}
    if position == "random":
        settings |= {"points_per_text": points_per_text, "seed": seed}
    if points is not None:
        ends = [int(ids[at]) for ids, some in zip(tokens, points, strict=True) for at in some]
        settings["end_token"] = commonest_token(tokenizer, ends)
    frame.attrs = measured_on(model, tokens, tokenizer=tokenizer, measure="angular distance", **settings)
    return frame


def _points(lengths: list[int], position: Any, count: Any, seed: Any) -> list[list[int]] | None:
    """Return the tokens whose states stand for each text, from 0; None for the mean of all."""
    shortest, named = min(lengths), isinstance(position, str) and position in ("last", "mean", "random")
    if not named and not (is_whole(position) and -shortest <= position < shortest):
        tokens = f"a token between {-shortest} and {shortest - 1} (the shortest text's)"
        raise ValueError(f"position must be 'last', 'mean', 'random' or {tokens}, got {position!r}")
    if position == "random":
        draws = [np.random.default_rng([seed, number]) for number in range(len(lengths))]
        drawn = [rng.permutation(max(1, n - 1))[:count] for rng, n in zip(draws, lengths, strict=True)]
        return [sorted((some + (n > 1)).tolist()) for some, n in zip(drawn, lengths, strict=True)]
    if count != 1:
        raise ValueError(f"points_per_text must be 1 unless position is 'random', got {count}")
    if position == "mean":
        return None
    at = -1 if position == "last" else int(position)
    return [[at if at >= 0 else n + at] for n in lengths]


def _picked_states(model: nn.Module, points: list[list[int]] | None, batch: Batch) -> Tensor:
    """Return ``[row, point, L + 1, width]``: a state a point and layer is all that is kept of a pass."""
    ids, mask = batch.on_device_of(model)
    pick = _picker(mask, points, batch)
    picked: list[Tensor] = []
    with watch_states(model, lambda i, state: picked.append(pick(state).to(ids.device))):
        decoder_forward(model)(input_ids=ids, use_cache=False)
    assert len(picked) == number_of_layers(model) + 1
    return torch.stack(picked, dim=2)


def _pairwise_angles(states: Tensor) -> np.ndarray:
    """Return ``[text, block]``, blocks by start, then size, from ``[text, L + 1, width]``."""
    results = []
    for some in torch.split(states, max(1, CHUNK // states[0].numel())):
        units = _unit(some)
        parts = [_unit_distance(units[:, i, None], units[:, i + 1 :]) for i in range(units.shape[1] - 1)]
        results.append(torch.cat(parts, dim=1).cpu())
    return torch.cat(results).numpy()


def _picker(mask: Tensor, points: list[list[int]] | None, batch: Batch) -> Callable[[Tensor], Tensor]:
    """Return what picks the states of each text: ``[row, token, width]`` to ``[row, point, width]``."""
    if points is None:
        real, counts = mask[..., None], mask.sum(dim=1)[:, None, None]
        return lambda state: torch.where(real, state, 0).sum(1, keepdim=True, dtype=torch.float32) / counts
    most = max(len(some) for some in points)
    # a text of fewer points repeats its last one, which is left out again behind the pass
    at = [[*points[text], *[points[text][-1]] * (most - len(points[text]))] for text in batch.texts]
    rows, columns = torch.arange(len(mask))[:, None], torch.tensor(at)
    return lambda state: state[rows.to(state.device), columns.to(state.device)]


def _unit(vectors: Tensor) -> Tensor:
    # float64 before anything else: in bf16 a distance of 0.01 becomes 0. Apple GPUs have no float64.
    vectors = vectors.to("cpu" if vectors.device.type == "mps" else vectors.device, torch.float64)
    unit: Tensor = vectors / vectors.norm(dim=-1, keepdim=True)
    return unit


def _unit_distance(u: Tensor, v: Tensor) -> Tensor:
    return 2 / math.pi * torch.atan2((u - v).norm(dim=-1), (u + v).norm(dim=-1))


def _long_frame(
    angles: np.ndarray, points: list[list[int]] | None, layers: tuple[int, ...], *, named: bool
) -> pd.DataFrame:
    """Return one row a point and block from ``[text, point, block]``, without points that only fill up."""
    first, end = np.triu_indices(len(layers) + 1, k=1)
    counts = [1] * len(angles) if points is None else [len(some) for some in points]
    angles = angles[np.arange(angles.shape[1]) < np.array(counts)[:, None]]
    each = {"text": np.repeat(np.arange(len(counts)), counts)}
    if named and points is not None:
        each["point"] = np.concatenate(points)
    columns = {name: np.repeat(values, len(first)) for name, values in each.items()}
    blocks = {"start": np.asarray(layers)[first], "size": end - first}
    columns |= {name: np.tile(values, len(angles)) for name, values in blocks.items()}
    return pd.DataFrame(columns).assign(angle=angles.ravel())

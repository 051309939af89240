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
from workbench.models.batches import Batch, each_text, last_real_token, make_batches, measured_on, read_tokens
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

    Args:
        model: any decoder-only transformers model; its layers run without the head.
        tokenizer: its tokenizer; padding side and pad token do not matter. None for texts that are token ids.
        texts: strings, or token ids as lists or 1-D tensors.
        max_length: most tokens read of a text, from its beginning.
        batch_size: texts that run together.
        position: which state stands for a text. ``"last"``: that of its last real token (the papers). An int:
            that of this token, counted from 0, or from the end when negative. ``"mean"``: the mean of the
            states of all its tokens, in which tokens with very large states (often the first) weigh most.
        compiled: whether to compile the layers for the pass. None: on a CUDA device, when there is work
            enough for compiling to pay. Numbers then differ by rounding in the model's dtype.
        confidence: coverage of the bootstrap interval over texts, between 0 and 1.
        seed: of the bootstrap.
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
    angles = block_angles(model, tokenizer, texts, **reading, compiled=compiled, progress=progress)
    return mean_distances(angles, confidence=confidence, seed=seed)


def block_angles(
    model: nn.Module,
    tokenizer: Any,
    texts: Any,
    *,
    max_length: int = 4096,
    batch_size: int = 8,
    position: str | int = "last",
    compiled: bool | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """Measure the angular distance across every block for each text: what ``angular_distances`` averages.

    Arguments and errors are those of ``angular_distances``.

    Returns:
        Frame ``text, start, size, angle``: ``text`` is the text's position in ``texts``, ``angle`` is in
        ``[0, 1]``.
    """
    tokens = read_tokens(model, tokenizer, texts, max_length)
    _check_position(position, min(len(ids) for ids in tokens))
    batches = make_batches(tokens, batch_size=batch_size)
    if compiled is None:
        compiled = compiling_pays(model, sum(batch.ids.numel() for batch in batches))
    shapes = {batch.ids.shape for batch in batches}
    pick = partial(_picked_states, model, position)
    with compiled_layers(model, dynamic=len(shapes) > 1) if compiled else nullcontext():
        states = each_text(model, batches, pick, title="angular distances", progress=progress)
    angles = _pairwise_angles(states)
    check_finite("residual states", angles)
    frame = _long_frame(angles, kept_layers(model))
    settings = {"max_length": max_length, "position": position, "compiled": compiled}
    frame.attrs = measured_on(model, tokens, measure="angular distance", **settings)
    return frame


def _picked_states(model: nn.Module, position: str | int, batch: Batch) -> Tensor:
    """Return ``[row, L + 1, width]``: one state a text and layer is all that is kept of a pass."""
    ids, mask = batch.on_device_of(model)
    pick = _picker(mask, position)
    picked: list[Tensor] = []
    with watch_states(model, lambda i, state: picked.append(pick(state).to(ids.device))):
        decoder_forward(model)(input_ids=ids, use_cache=False)
    assert len(picked) == number_of_layers(model) + 1
    return torch.stack(picked, dim=1)


def _pairwise_angles(states: Tensor) -> np.ndarray:
    """Return ``[text, block]``, blocks by start, then size, from ``[text, L + 1, width]``."""
    results = []
    for some in torch.split(states, max(1, CHUNK // states[0].numel())):
        units = _unit(some)
        parts = [_unit_distance(units[:, i, None], units[:, i + 1 :]) for i in range(units.shape[1] - 1)]
        results.append(torch.cat(parts, dim=1).cpu())
    return torch.cat(results).numpy()


def _picker(mask: Tensor, position: str | int) -> Callable[[Tensor], Tensor]:
    """Return a function that picks the state of each text: ``[row, token, width]`` to ``[row, width]``."""
    if position == "mean":
        counts = mask.sum(dim=1, keepdim=True)
        return lambda state: torch.where(mask[..., None], state, 0).sum(dim=1, dtype=torch.float32) / counts
    last = last_real_token(mask)
    if isinstance(position, int):
        last = last + 1 + position if position < 0 else torch.full_like(last, position)
    rows = torch.arange(len(mask), device=mask.device)
    return lambda state: state[rows, last]


def _unit(vectors: Tensor) -> Tensor:
    # float64 before anything else: in bf16 a distance of 0.01 becomes 0. Apple GPUs have no float64.
    vectors = vectors.to("cpu" if vectors.device.type == "mps" else vectors.device, torch.float64)
    unit: Tensor = vectors / vectors.norm(dim=-1, keepdim=True)
    return unit


def _unit_distance(u: Tensor, v: Tensor) -> Tensor:
    return 2 / math.pi * torch.atan2((u - v).norm(dim=-1), (u + v).norm(dim=-1))


def _long_frame(angles: np.ndarray, layers: tuple[int, ...]) -> pd.DataFrame:
    first, end = np.triu_indices(len(layers) + 1, k=1)
    texts, blocks = angles.shape
    starts, sizes = np.tile(np.asarray(layers)[first], texts), np.tile(end - first, texts)
    frame = pd.DataFrame({"text": np.repeat(np.arange(texts), blocks), "start": starts, "size": sizes})
    return frame.assign(angle=angles.ravel())


def _check_position(position: Any, shortest: int) -> None:
    named = isinstance(position, str) and position in ("last", "mean")
    if not named and not (is_whole(position) and -shortest <= position < shortest):
        raise ValueError(
            f"position must be 'last', 'mean' or a token between {-shortest} and {shortest - 1}, as the "
            f"shortest text has {shortest} tokens, got {position!r}"
        )

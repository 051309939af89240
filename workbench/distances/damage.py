"""Damage: the loss increase when layers are really skipped. What every importance score tries to foretell."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, pad

from workbench.distances.blocks import checked_sizes, layer_set_frame, layer_sets_of, layers_of, least
from workbench.distances.sweep import Form, Replay, check_shared, positions_of
from workbench.models.batches import Batch, each_text, first_of, make_batches, measured_on, read_tokens
from workbench.models.hooks import check_finite
from workbench.models.layers import kept_layers
from workbench.statistics import bootstrap_interval

#: most logits made at once (1 GiB in float32), or one text's where these are more
LOGITS = 2**28
#: what the interval of a frame says
INTERVAL = "of each block by itself, over texts; for the least of many blocks, see least_harmful"


def block_damage(
    model: nn.Module,
    tokenizer: Any,
    texts: Any,
    blocks: Any = None,
    *,
    sizes: Iterable[int] | None = None,
    layer_sets: Iterable[Iterable[int]] | None = None,
    max_length: int = 512,
    max_tokens: int = 16384,
    confidence: float = 0.95,
    seed: int = 0,
    progress: bool = True,
) -> pd.DataFrame:
    """Measure how much the loss on held-out texts rises when blocks of layers are really skipped.

    The loss is the mean next-token cross-entropy over all predicted tokens of all texts, in nats per token.
    Nothing is copied or changed: all candidates go through the model's own layers, sharing what they have in
    common.

    Args:
        model: any decoder-only transformers model with a language head.
        tokenizer: its tokenizer; None for texts that are token ids.
        texts: held-out strings, or token ids as lists or 1-D tensors; at least two tokens each.
        blocks: the blocks to skip: ``(start, size)`` pairs, or a frame with ``start`` and ``size`` or with
            ``removed``, such as those of ``best_blocks`` and ``removal_strategies``.
        sizes: besides, every block of these sizes, between 1 and the layer count less 1.
        layer_sets: besides, sets of layers with or without gaps, such as ``[(3, 9, 10)]``.
        max_length: most tokens read of a text, from its beginning.
        max_tokens: bounds memory: one layer call sees at most so many tokens (or one text, where that is
            longer), and at most 32 times as many states wait between layers.
        confidence: coverage of the bootstrap interval over texts, between 0 and 1.
        seed: of the bootstrap.
        progress: show a progress bar.

    Returns:
        Frame ``start, size, removed, base_loss, loss, damage, ci_low, ci_high, n_texts, n_tokens``;
        ``damage`` is ``loss - base_loss``, with its interval; ``start`` is <NA> for a set with gaps. Each set
        of layers once.

        The interval is that of each block by itself, over texts. The *least harmful* of many blocks was
        chosen by these very texts, so its damage here is too low and its interval too (winner's curse):
        ``least_harmful`` chooses on one half of the texts and measures on the other.

    Raises:
        ValueError: for nothing to skip, a block or layer that the model does not have, sizes out of range, no
            texts, a text of fewer than two tokens, a setting out of range, a loss that is not finite, or an
            architecture whose layers pass on more than their state.
    """
    kept = kept_layers(model)
    asked = _layer_sets(kept, blocks, sizes, layer_sets)
    removals = [positions_of(model, layers) for layers in asked]
    tokens = read_tokens(model, tokenizer, texts, max_length)
    for number, ids in enumerate(tokens):
        if len(ids) < 2:
            raise ValueError(f"a loss needs texts of at least two tokens, text {number} has one")
    batches = make_batches(tokens, max_tokens=max_tokens, model=model)
    forms = check_shared(model, max(tokens, key=len), head=True)
    measure = partial(_mean_losses, model, removals, max_tokens, forms)
    losses = each_text(model, batches, measure, title="damage", progress=progress).numpy()
    check_finite("losses", losses)
    predicted = np.array([len(ids) - 1 for ids in tokens])
    base_loss, *loss = predicted @ losses / predicted.sum()
    rises = losses[:, 1:] - losses[:, :1]
    units: dict[str, Any] = {"weights": predicted, "groups": first_of(tokens)}
    low, high = bootstrap_interval(rises, **units, confidence=confidence, seed=seed)
    frame = layer_set_frame(asked, kept).assign(base_loss=base_loss, loss=loss)
    frame = frame.assign(damage=loss - base_loss, ci_low=low, ci_high=high)
    frame = frame.assign(n_texts=len(tokens), n_tokens=predicted.sum())
    settings = {"max_length": max_length, "interval": INTERVAL}
    frame.attrs = measured_on(model, tokens, tokenizer=tokenizer, measure="block damage", **settings)
    return frame


def least_harmful(
    model: nn.Module, tokenizer: Any, texts: Any, sizes: Iterable[int], *, seed: int = 0, **settings: Any
) -> pd.DataFrame:
    """Find the least harmful block of each size, and measure its damage on texts that did not choose it.

    The least of many noisy damages is too low by its own choice. Here a random half of the texts chooses and
    the other half measures, so that the damage and its interval are those of any other texts. Copies of one
    text stay in one half.

    Args:
        model: as for ``block_damage``.
        tokenizer: its tokenizer; None for texts that are token ids.
        texts: held-out texts, at least two different ones.
        sizes: block sizes, between 1 and the layer count less 1.
        seed: of the halves and of the bootstrap.
        **settings: of ``block_damage``.

    Returns:
        The frame of ``block_damage`` on the second half, one row a size, with ``chosen_damage``: what the
        block cost on the half that chose it.

    Raises:
        ValueError: as ``block_damage``, and for fewer than two different texts.
    """
    tokens = read_tokens(model, tokenizer, texts, settings.get("max_length", 512))
    first = np.array(first_of(tokens))
    different = np.unique(first)
    if len(different) < 2:
        raise ValueError(f"texts must hold at least two different ones, got {len(different)}")
    order = np.random.default_rng(seed).permutation(different)
    chooses = np.isin(first, order[: len(order) // 2])
    one, two = (
        [text for text, here in zip(texts, mask, strict=True) if here] for mask in (chooses, ~chooses)
    )
    best = least(block_damage(model, tokenizer, one, sizes=sizes, seed=seed, **settings), "damage")
    frame = block_damage(model, tokenizer, two, best[["start", "size"]], seed=seed, **settings)
    frame.attrs |= {"measure": "block damage of the least harmful block", "n_chosen_on": len(one)}
    return frame.assign(chosen_damage=best["damage"].to_numpy())


def _layer_sets(kept: Sequence[int], blocks: Any, sizes: Any, layer_sets: Any) -> list[tuple[int, ...]]:
    """Return the sets of layers (original numbers) to leave out, each once, in the order asked for."""
    asked = [] if blocks is None else _blocks_in(kept, blocks)
    for size in [] if sizes is None else checked_sizes(sizes, len(kept)):
        asked += [tuple(kept[first : first + size]) for first in range(len(kept) - size + 1)]
    for layers in layer_sets or ():
        if not isinstance(layers, Iterable) or not (chosen := tuple(sorted(set(layers)))):
            raise ValueError(f"layer_sets must hold sets of layers such as (3, 9), got {layers!r}")
        asked.append(chosen)
    if not asked:
        raise ValueError("blocks, sizes or layer_sets must name at least one set of layers to skip, got none")
    return list(dict.fromkeys(asked))


def _blocks_in(kept: Sequence[int], blocks: Any) -> list[tuple[int, ...]]:
    if isinstance(blocks, pd.DataFrame):
        return layer_sets_of(blocks, kept)
    pairs = list(blocks)
    for pair in pairs:
        if not isinstance(pair, (tuple, list)) or len(pair) != 2:
            raise ValueError(f"blocks must be (start, size) pairs or a frame with these, got {pair!r}")
    return [layers_of(start, size, layers=kept) for start, size in pairs]


def _mean_losses(
    model: nn.Module, removals: list[tuple[int, ...]], max_tokens: int, forms: list[Form], batch: Batch
) -> Tensor:
    """Return each text's mean loss for the model as it is and for each removal: ``[row, 1 + removal]``."""
    ids, mask = batch.on_device_of(model)
    labels = pad(torch.where(mask, ids, -100)[:, 1:], (0, 1), value=-100)
    replay = Replay(model, ids, max_tokens=max_tokens, forms=forms)
    column = {removal: i for i, removal in enumerate([(), *removals])}
    losses = torch.zeros(len(ids), 1 + len(removals), dtype=torch.float64)
    for names, states in replay.packs(removals):
        losses[:, [column[name] for name in names]] = _text_losses(replay, states, labels).T
    return losses


def _text_losses(replay: Replay, states: Tensor, labels: Tensor) -> Tensor:
    """Return each text's mean loss from last states ``[n * row, token, width]``: ``[n, row]`` in float64.

    ``labels`` are ``[row, token]``: the token that comes next, -100 where there is none.
    """
    every = labels.repeat(len(states) // len(labels), 1)
    rows = max(1, LOGITS // (labels.shape[1] * replay.vocabulary))
    sums = []
    for first in range(0, len(states), rows):
        wanted = every[first : first + rows]
        logits = replay.logits(states[first : first + rows], first=first).flatten(0, 1).float()
        losses = cross_entropy(logits, wanted.flatten().to(logits.device), reduction="none")
        sums.append(losses.view(wanted.shape).sum(dim=1, dtype=torch.float64).cpu())
    means = torch.cat(sums) / (every != -100).sum(dim=1).cpu()
    return means.view(-1, len(labels))

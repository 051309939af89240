"""Importance of single layers: Block Influence (ShortGPT) and removal similarity (LaCo, IteRABRe)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from workbench.distances.stability import mean_and_spread
from workbench.distances.sweep import Form, Replay, check_shared, positions_of
from workbench.models.batches import Batch, each_text, first_of, make_batches, measured_on, read_tokens
from workbench.models.hooks import check_finite, inference, watch_states
from workbench.models.layers import decoder_forward, kept_layers, number_of_layers
from workbench.statistics import bootstrap_interval


def block_influence(
    model: nn.Module,
    tokenizer: Any,
    texts: Any,
    *,
    max_length: int = 4096,
    batch_size: int = 8,
    confidence: float = 0.95,
    seed: int = 0,
    progress: bool = True,
) -> pd.DataFrame:
    """Measure how far each layer turns the residual state: ``BI(l) = 1 - mean cos(h[l], h[l+1])`` (ShortGPT).

    The mean is over all real tokens of all texts, so a long text counts more. 0 = the layer leaves the
    direction as it was; remove the layer of least influence.

    Args:
        model: any decoder-only transformers model.
        tokenizer: its tokenizer; None for texts that are token ids.
        texts: strings, or token ids as lists or 1-D tensors.
        max_length: most tokens read of a text, from its beginning.
        batch_size: texts that run together.
        confidence: coverage of the bootstrap interval over texts, between 0 and 1.
        seed: of the bootstrap.
        progress: show a progress bar.

    Returns:
        Frame ``layer, influence, ci_low, ci_high, n_texts, n_tokens``, influence in ``[0, 2]``, one row a
        layer.

    Raises:
        ValueError: for no texts, an empty text, ``max_length`` or ``batch_size`` out of range, or states that
            are zero or not finite.
    """
    tokens = read_tokens(model, tokenizer, texts, max_length)
    batches = make_batches(tokens, batch_size=batch_size, model=model)
    cosines = each_text(model, batches, partial(_mean_cosines, model), title="influence", progress=progress)
    means = cosines.cpu().numpy()
    check_finite("residual states", means)
    lengths = np.array([len(ids) for ids in tokens])
    units: dict[str, Any] = {"weights": lengths, "groups": first_of(tokens), "bounds": (0.0, 2.0)}
    low, high = bootstrap_interval(1 - means, **units, confidence=confidence, seed=seed)
    influence = 1 - lengths @ means / lengths.sum()
    frame = pd.DataFrame({"layer": kept_layers(model), "influence": influence})
    frame = frame.assign(ci_low=low, ci_high=high, n_texts=len(tokens), n_tokens=lengths.sum())
    settings = {"max_length": max_length, "interval": "of each layer by itself, over texts"}
    frame.attrs = measured_on(model, tokens, tokenizer=tokenizer, measure="block influence", **settings)
    return frame


def removal_similarity(
    model: nn.Module,
    tokenizer: Any,
    texts: Any,
    *,
    removed: Iterable[int] = (),
    final_norm: bool = True,
    original: Sequence[Tensor] | None = None,
    max_length: int = 512,
    max_tokens: int = 16384,
    confidence: float = 0.95,
    seed: int = 0,
    progress: bool = True,
) -> pd.DataFrame:
    """Measure how alike the last hidden state stays when one layer is left out (IteRABRe 3.1, after LaCo).

    For each text, the states of all its real tokens are one long vector; the similarity is the cosine of that
    vector with the original model's, averaged over texts. IteRABRe uses 10 sentences of wikitext-2 (appendix
    A).

    Two choices where the paper leaves room. *Which state*: it says "the last hidden state", which in
    transformers (``last_hidden_state``, ``hidden_states[-1]``) and in LaCo's published code is the state
    **after** the final norm, what the head reads; ``final_norm=False`` takes ``h[L]`` before it. *Which layer
    goes*: the text says "the lowest similarity block will be selected", which contradicts its own reason,
    "least impact". Remove the layer whose removal keeps similarity **highest**.

    All candidates run in one pass: they share the layers before the one they leave out, then go on together
    in a growing batch. Values are those of one forward pass for each candidate, up to rounding.

    Args:
        model: any decoder-only transformers model.
        tokenizer: its tokenizer; None for texts that are token ids.
        texts: strings, or token ids as lists or 1-D tensors.
        removed: layers (original numbers) left out of every candidate besides its own: the next step of a
            greedy search (see ``greedy_layers``). The comparison stays with the model as given.
        final_norm: compare after the final norm (True) or before it.
        original: ``last_states`` of the model to compare with; None for the model as given.
        max_length: most tokens read of a text, from its beginning (IteRABRe: 512).
        max_tokens: bounds memory: one layer call sees at most so many tokens (or one text, where that is
            longer), and at most 32 times as many states wait between layers.
        confidence: coverage of the bootstrap interval over texts, between 0 and 1.
        seed: of the bootstrap.
        progress: show a progress bar.

    Returns:
        Frame ``layer, similarity, std, ci_low, ci_high, n_texts``, similarity in ``[-1, 1]``, one row for
        each layer still there.

    Raises:
        ValueError: for no texts, an empty text, a setting out of range, a removed layer that the model does
            not have, fewer than two layers left, states that are zero or not finite, or an architecture whose
            layers pass on more than their state.
    """
    removed = list(removed)
    tokens = read_tokens(model, tokenizer, texts, max_length)
    batches = make_batches(tokens, max_tokens=max_tokens, model=model)
    gone = positions_of(model, removed)
    left = [layer for layer in range(number_of_layers(model)) if layer not in gone]
    if len(left) < 2:
        raise ValueError(f"removed must leave at least two layers to choose from, got {len(gone)} removed")
    candidates = [tuple(sorted((*gone, layer))) for layer in left]
    forms = check_shared(model, max(tokens, key=len), head=False)
    if original is not None and [len(states) for states in original] != [len(ids) for ids in tokens]:
        raise ValueError("original must be last_states of the same texts, cut at the same max_length")
    measure = partial(_similarities, model, candidates, final_norm, max_tokens, forms, original)
    values = each_text(model, batches, measure, title="removal similarity", progress=progress).numpy()
    check_finite("residual states", values)
    frame = pd.DataFrame({"layer": [kept_layers(model)[layer] for layer in left]})
    drawn: dict[str, Any] = {"groups": first_of(tokens), "confidence": confidence, "seed": seed}
    frame = frame.assign(**mean_and_spread("similarity", values, bounds=(-1.0, 1.0), **drawn))
    settings = {"max_length": max_length, "final_norm": final_norm, "removed": sorted(map(int, removed))}
    settings["interval"] = "of each layer by itself, over texts"
    frame.attrs = measured_on(model, tokens, tokenizer=tokenizer, measure="removal similarity", **settings)
    return frame


def last_states(
    model: nn.Module,
    tokenizer: Any,
    texts: Any,
    *,
    final_norm: bool = True,
    max_length: int = 512,
    max_tokens: int = 16384,
) -> list[Tensor]:
    """Return the last hidden state of every text ``[token, width]``, for ``original`` of the similarity.

    Args:
        model: any decoder-only transformers model.
        tokenizer: its tokenizer; None for texts that are token ids.
        texts: strings, or token ids as lists or 1-D tensors.
        final_norm: after the final norm (True) or before it.
        max_length: most tokens read of a text, from its beginning.
        max_tokens: most tokens of a batch.

    Raises:
        ValueError: for no texts, an empty text, a setting out of range, or states that are not finite.
    """
    tokens = read_tokens(model, tokenizer, texts, max_length)
    found: dict[int, Tensor] = {}
    with inference(model):
        for batch in make_batches(tokens, max_tokens=max_tokens, model=model):
            ids, _ = batch.on_device_of(model)
            raw: dict[int, Tensor] = {}
            with watch_states(model, raw.__setitem__):
                normed = decoder_forward(model)(input_ids=ids, use_cache=False)[0]
            states = normed if final_norm else raw[max(raw)]
            found |= {text: states[row, : len(tokens[text])].cpu() for row, text in enumerate(batch.texts)}
    check_finite("states", np.array([[found[k].abs().amax().item()] for k in range(len(tokens))]))
    return [found[text] for text in range(len(tokens))]


def _mean_cosines(model: nn.Module, batch: Batch) -> Tensor:
    """Return each text's mean over real tokens of ``cos(h[l], h[l+1])``: ``[row, layer]`` in float64."""
    ids, mask = batch.on_device_of(model)
    means: list[Tensor] = []
    last: list[Tensor] = []

    def see(number: int, state: Tensor) -> None:
        if number:
            real = torch.where(mask, _cosine(last.pop().to(state.device), state).to(ids.device), 0)
            means.append(real.double().sum(dim=1) / mask.sum(dim=1))
        last.append(state)

    with watch_states(model, see):
        decoder_forward(model)(input_ids=ids, use_cache=False)
    return torch.stack(means, dim=1)


def _cosine(first: Tensor, second: Tensor) -> Tensor:
    # upcast before anything else: float16 overflows in the square of a norm of 320, and bf16 keeps two digits
    first, second = first.float(), second.float()
    cosine: Tensor = torch.linalg.vecdot(first, second) / (first.norm(dim=-1) * second.norm(dim=-1))
    return cosine


def _similarities(
    model: nn.Module,
    candidates: list[tuple[int, ...]],
    final_norm: bool,
    max_tokens: int,
    forms: list[Form],
    original: Sequence[Tensor] | None,
    batch: Batch,
) -> Tensor:
    """Return the cosine of each text and candidate with the original: ``[row, candidate]``."""
    ids, mask = batch.on_device_of(model)
    replay = Replay(model, ids, max_tokens=max_tokens, forms=forms)
    column = {candidate: i for i, candidate in enumerate(candidates)}
    values = torch.zeros(len(ids), len(candidates), dtype=torch.float64)
    base = torch.empty(0)
    for names, states in replay.packs(candidates):
        states = replay.normed(states) if final_norm else states
        if names == [()]:
            if original is not None:
                held = pad_sequence([original[text] for text in batch.texts], batch_first=True)
                states = held.to(states.device)
            base, mask = states, mask.to(states.device)
            continue
        rows = states.reshape(len(names), len(ids), *states.shape[1:]).to(base.device)
        values[:, [column[name] for name in names]] = _text_cosine(rows, base, mask).T.cpu()
    return values


def _text_cosine(states: Tensor, base: Tensor, mask: Tensor) -> Tensor:
    """Return cosines of whole texts: ``[k, row, token, width]`` with ``[row, token, width]``."""

    def total(products: Tensor) -> Tensor:
        return torch.where(mask, products, 0).sum(dim=-1, dtype=torch.float64)

    states, base = states.float(), base.float()
    dot = total(torch.linalg.vecdot(states, base))
    return dot / (total(states.square().sum(-1)) * total(base.square().sum(-1))).sqrt()

"""What iterative recovery is compared with: layers chosen otherwise, and layers merged (LaCo)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from itertools import product
from typing import Any, NamedTuple

import pandas as pd
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from workbench.checks import one_of, whole_number
from workbench.distances.angular import angular_distances
from workbench.distances.blocks import best_blocks, format_layers, layers_of
from workbench.distances.damage import block_damage
from workbench.distances.influence import block_influence, last_states, removal_similarity
from workbench.distances.strategies import greedy_layers
from workbench.evaluation.perplexity import perplexity
from workbench.models.batches import read_tokens
from workbench.models.layers import kept_layers, number_of_layers
from workbench.pruning.collapse import MERGINGS, collapsed_layers, layers_merged_away
from workbench.runs.variant import Variant

Merges = tuple[tuple[int, int], ...]
METHODS = ("similarity", "shortgpt", "gro", "damage")


def choose_layers(
    model: Any,
    tokenizer: Any,
    texts: Sequence[str],
    *,
    target_layers: int,
    method: str = "shortgpt",
    max_length: int = 512,
) -> tuple[int, ...]:
    """Return which layers a method removes, in the order in which they go; the model stays as it is.

    Args:
        model: the whole model, or a pruned one.
        tokenizer: its tokenizer.
        texts: calibration texts.
        target_layers: how many layers stay, from 1 to the depth less 1.
        method: ``"shortgpt"``, the least block influence, at once (Men et al.); ``"gro"``, the block of least
            angular distance (GRO 3.2); ``"similarity"``, greedily the removal that keeps the last state most
            alike (IteRABRe without recovery); ``"damage"``, greedily the removal that costs the least loss.
        max_length: tokens read of a text.

    Raises:
        ValueError: for a target out of range, another method; and as the measures.
    """
    one_of(method, METHODS, "method")
    size = layers_to_go(model, target_layers)
    asked: Any = {"max_length": max_length, "progress": False}
    if method == "gro":
        best = best_blocks(angular_distances(model, tokenizer, texts, **asked), [size]).iloc[0]
        return layers_of(int(best["start"]), size, layers=kept_layers(model))
    score: Any
    if method == "shortgpt":
        score = block_influence(model, tokenizer, texts, **asked)
    elif method == "similarity":
        score = lambda gone: removal_similarity(model, tokenizer, texts, removed=gone, **asked)  # noqa: E731
    else:
        score = lambda gone: _damages(model, tokenizer, texts, gone, asked)  # noqa: E731
    return tuple(map(int, greedy_layers(score, [size])["order"].item().split()))


def shortgpt_layers(
    model: Any, tokenizer: Any, texts: Sequence[str], *, target_layers: int
) -> tuple[int, ...]:
    """Return the layers of least block influence, the least first (ShortGPT); see ``choose_layers``."""
    return choose_layers(model, tokenizer, texts, target_layers=target_layers, method="shortgpt")


class Collapse(NamedTuple):
    """What LaCo does to a model.

    Attributes:
        merges: ``(layer, count)``, for ``collapsed_layers``, ``collapse_``, ``recover`` and a ``Variant``.
        removed: the layers merged away.
        merging: ``"equation"`` or ``"published"``.
        steps: frame of what was tried: layer, count, similarity, merged, layers_left.
    """

    merges: tuple[tuple[int, int], ...]
    removed: tuple[int, ...]
    merging: str
    steps: pd.DataFrame

    def variant(self, name: str, *, model: str, adapter: str | None = None) -> Variant:
        """Return it as a variant of a run, as data."""
        how = {"merges": self.merges, "merging": self.merging, "note": f"LaCo, {self.merging}"}
        return Variant(name, model, removed=self.removed, adapter=adapter, **how)  # type: ignore[arg-type]


def laco(
    model: Any,
    tokenizer: Any,
    texts: Sequence[str],
    *,
    merged_at_once: int = 4,
    threshold: float = 0.65,
    lowest: int = 1,
    highest: int | None = None,
    interval: int = 2,
    merging: str = "equation",
    max_length: int = 512,
) -> Collapse:
    """Merge runs of layers into their first one, from the top down, while the last state stays alike (LaCo).

    At each place, from ``highest - merged_at_once`` down to ``lowest``: merge the layers behind it into it,
    ``merged_at_once`` becoming one (fewer at the end of the model); keep that where the mean cosine of the
    last states of the texts with the original model's is above ``threshold``, and go ``interval`` layers
    down, else go one down. The paper's equation and its published code differ; see ``merging``.

    Args:
        model: the whole model; afterwards as before.
        tokenizer: its tokenizer.
        texts: calibration texts, such as ``CALIBRATION``.
        merged_at_once: how many layers become one (C), at least 2.
        threshold: of the similarity (T), from -1 to 1.
        lowest: the lowest place (L), from 0.
        highest: the highest one (H), to the depth; None for the depth.
        interval: steps down after a merge (I).
        merging: ``"equation"``: ``layer + sum of (next - layer)``, as the paper has it; ``"published"``: its
            code's differences cancel, and the layer becomes the last one merged into it.
        max_length: tokens read of a text.

    Returns:
        What to merge, and what was tried.

    Raises:
        ValueError: for settings out of range, layers of different form, states that are zero or not finite.
    """
    depth = number_of_layers(model)
    how = _Settings(merged_at_once, threshold, lowest, depth if highest is None else highest, interval)
    how.check(depth)
    one_of(merging, MERGINGS, "merging")
    alike = _similarity(model, tokenizer, texts, merging, max_length)
    return _collapse(kept_layers(model), alike, how, merging)


def laco_for(
    model: Any,
    tokenizer: Any,
    texts: Sequence[str],
    *,
    target_layers: int,
    merging: str = "equation",
    held_out: Sequence[str] | None = None,
    at_once: Sequence[int] = (2, 3, 4, 5, 6, 7, 8),
    thresholds: Sequence[float] = (0.35, 0.45, 0.55, 0.65, 0.75, 0.85, 0.95),
    intervals: Sequence[int] = (1, 2),
    lowest: int = 1,
    max_length: int = 512,
) -> Collapse:
    """Search LaCo's settings for a wanted depth: the closest depth, then the least perplexity (ITR 4).

    Args:
        model: as for ``laco``.
        tokenizer: its tokenizer.
        texts: calibration texts.
        target_layers: how many layers should stay.
        merging: as for ``laco``.
        held_out: texts that choose among settings of the closest depth, by perplexity; None for ``texts``.
        at_once: values of ``merged_at_once`` to try.
        thresholds: values of ``threshold``.
        intervals: values of ``interval``.
        lowest: as for ``laco``.
        max_length: as for ``laco``.

    Returns:
        The best; the depth can differ from the one asked for, as in the paper's table 1.

    Raises:
        ValueError: for a target out of range, settings of which none fits the depth, a held-out text of fewer
            than two tokens; as ``laco``.
    """
    layers_to_go(model, target_layers)
    depth = number_of_layers(model)
    found: dict[Merges, Collapse] = {}
    one_of(merging, MERGINGS, "merging")
    fitting = [count for count in at_once if count <= depth]
    every = product(fitting, thresholds, intervals)
    tried = [_Settings(count, level, lowest, depth, interval) for count, level, interval in every]
    if not tried:
        raise ValueError(f"at_once, thresholds and intervals must hold numbers, at_once some up to {depth}")
    for how in tried:
        how.check(depth)
    if held_out is not None and min(map(len, read_tokens(model, tokenizer, held_out, max_length))) < 2:
        raise ValueError("held_out must be texts of at least 2 tokens, one has fewer")
    alike = _similarity(model, tokenizer, texts, merging, max_length)
    for how in tried:
        one = _collapse(kept_layers(model), alike, how, merging)
        found.setdefault(one.merges, one)
    away = {merges: abs(depth - len(one.removed) - target_layers) for merges, one in found.items()}
    closest = [one for merges, one in found.items() if away[merges] == min(away.values())]
    losses = [_loss(model, tokenizer, held_out or texts, one) for one in closest]
    return closest[losses.index(min(losses))]


class _Settings(NamedTuple):
    """How layers are merged: C, T, L, H and I of LaCo."""

    merged_at_once: int
    threshold: float
    lowest: int
    highest: int
    interval: int

    def check(self, depth: int) -> None:
        """Refuse what is out of range."""
        whole_number(self.merged_at_once, "merged_at_once", 2, depth)
        whole_number(self.lowest, "lowest", 0, depth - 1)
        whole_number(self.highest, "highest", self.lowest, depth)
        whole_number(self.interval, "interval")
        if not -1 <= self.threshold <= 1:
            raise ValueError(f"threshold must be from -1 to 1, got {self.threshold!r}")


def _collapse(
    layers: Sequence[int], alike: Callable[[Merges], float], how: _Settings, merging: str
) -> Collapse:
    """Go down the layers and merge where ``alike`` stays above the threshold."""
    left, rows, place = list(layers), [], how.highest - how.merged_at_once
    merges: Merges = ()
    while place >= how.lowest:
        count = min(how.merged_at_once - 1, len(left) - 1 - place)
        layer = left[place] if place < len(left) else None
        tried = merges if layer is None else (*merges, (layer, count))
        similarity = alike(tried) if count > 0 else float("nan")
        merged = similarity > how.threshold
        if merged:
            merges = tried
            del left[place + 1 : place + 1 + count]
        place -= how.interval if merged else 1
        place = len(left) - 1 - how.merged_at_once if merged and place >= len(left) else place
        row = {"layer": layer, "count": count, "similarity": similarity, "merged": merged}
        rows.append(row | {"layers_left": len(left)})
    gone = layers_merged_away(layers, merges)
    return Collapse(merges, tuple(sorted(gone)), merging, pd.DataFrame(rows))


def _loss(model: Any, tokenizer: Any, texts: Sequence[str], one: Collapse) -> float:
    with collapsed_layers(model, one.merges, merging=one.merging):
        frame = perplexity(model, tokenizer, texts, words=False, progress=False)
    return float(frame.loc[frame["metric"] == "loss", "value"].iloc[0])


def layers_to_go(model: Any, target_layers: int) -> int:
    """Return how many layers go so that so many stay.

    Raises:
        ValueError: for none, or as many as there are.
    """
    depth = number_of_layers(model)
    if not 1 <= whole_number(target_layers, "target_layers") < depth:
        raise ValueError(f"target_layers must be from 1 to {depth - 1}, below the depth, got {target_layers}")
    return depth - target_layers


def _damages(model: Any, tokenizer: Any, texts: Sequence[str], gone: Any, asked: Any) -> pd.DataFrame:
    left = [layer for layer in kept_layers(model) if layer not in gone]
    sets = [(*gone, layer) for layer in left]
    frame = block_damage(model, tokenizer, texts, layer_sets=sets, **asked)
    by_set = dict(zip(frame["removed"], frame["damage"], strict=True))
    return pd.DataFrame({"layer": left, "damage": [by_set[format_layers(one)] for one in sets]})


def _similarity(
    model: Any, tokenizer: Any, texts: Sequence[str], merging: str, max_length: int
) -> Callable[[Merges], float]:
    """Return what merges leave alike: the mean over texts of the cosine of all their states as one vector."""

    def states() -> list[Tensor]:
        found = last_states(model, tokenizer, texts, max_length=max_length)
        return [one.double().flatten() for one in found]

    original = states()

    @cache  # settings that differ in their threshold try the same merges
    def alike(merges: Merges) -> float:
        with collapsed_layers(model, merges, merging=merging):
            pairs = zip(original, states(), strict=True)
        mean = float(torch.stack([cosine_similarity(a, b, dim=0) for a, b in pairs]).mean())
        if mean != mean:
            raise ValueError("the model's states must be finite and not 0, they are not: look at its weights")
        return mean

    return alike

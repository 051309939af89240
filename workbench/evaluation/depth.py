"""Scores against the fraction of layers dropped: a model without each of several blocks (GRO 2, 3, 7)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from workbench.distances.blocks import format_layers, layer_sets_of
from workbench.evaluation.evaluate import questions
from workbench.runs.keys import reads
from workbench.runs.variant import Variant

NOT_HEALED = "pruned, not healed"


@reads(questions, instead_of=("data",))
def scores_by_depth(
    model: Any,
    tokenizer: Any,
    blocks: Any,
    tasks: str | Sequence[str] = (),
    *,
    texts: Sequence[str] | None = None,
    texts_name: str = "texts",
    limit: int | float | None = None,
    batch_size: int | str = 32,
    progress: bool = True,
    **options: Any,
) -> pd.DataFrame:
    """Score the model whole and without each of several blocks: the dotted lines of GRO figures 2, 3 and 7.

    The layers are only left out while the tasks run; the model is loaded once and unchanged afterwards.

    Args:
        model: a decoder-only transformers model.
        tokenizer: its tokenizer.
        blocks: what to leave out: a frame with ``start, size`` or ``removed``, such as
            ``best_blocks(distances).head(6)``, or sets of layers such as ``[(7,), (7, 8)]``.
        tasks: as for ``evaluate``.
        texts: held-out texts for the loss (of one longer than the context, its beginning); None leaves it
            out. All blocks share one pass, as in ``block_damage``.
        texts_name: what to call them in the column ``task``.
        limit: items of each task, as for ``evaluate``.
        batch_size: prompts in a batch, or "auto".
        progress: show bars.
        **options: further settings of ``evaluate``.

    Returns:
        The rows of ``evaluate``, and for texts ``loss`` and ``normalized_loss`` as ``perplexity`` defines
        them (stderr NaN), with, in front, series ("pruned, not healed"), healed (False), removed (layers left
        out, "" for none), n_removed, fraction (of the model's layers; 0 = whole).

    Raises:
        ValueError: before anything is scored, for nothing to score, no block, or layers that cannot be
            removed; as ``evaluate`` and ``block_damage``.
    """
    from workbench.evaluation.evaluate import evaluate
    from workbench.models.layers import kept_layers
    from workbench.pruning.removal import check_prunable, without_layers

    if not tasks and texts is None:
        raise ValueError("tasks or texts must be given, got neither")
    whole = kept_layers(model)
    cuts = _layer_sets(blocks, whole)
    for cut in cuts:
        check_prunable(model, cut)
    parts = [] if texts is None else _losses(model, tokenizer, texts, texts_name, cuts, progress)
    settings = {"limit": limit, "batch_size": batch_size, "progress": progress, **options}
    for cut in [(), *cuts] if tasks else []:
        with without_layers(model, cut):
            parts.append((cut, evaluate(model, tokenizer, tasks, **settings)))
    placed = (_placed(rows, cut, len(whole), NOT_HEALED, False) for cut, rows in parts)
    return pd.concat(placed, ignore_index=True)


def at_fractions(
    scores: pd.DataFrame,
    variants: Iterable[Variant],
    n_layers: int,
    *,
    series: Mapping[str, str] | None = None,
) -> pd.DataFrame:
    """Place the scores of a run's variants by the fraction of layers each has lost.

    Args:
        scores: rows of ``evaluate`` with a column ``variant``.
        variants: what these are; several block sizes at once are several variants.
        n_layers: layers of the whole model.
        series: variant -> the line it is a point of, such as ``{"sft-2": "SFT", "sft-4": "SFT"}``; a variant
            that is not named is a line of its own. The whole model begins every line.

    Returns:
        The scores with, in front, series, healed (whether it has an adapter), removed, n_removed, fraction.

    Raises:
        ValueError: for a scored variant that is not among ``variants``, or one with layers beyond
            ``n_layers``.
    """
    known = {variant.name: variant for variant in variants}
    if unknown := [name for name in dict.fromkeys(scores["variant"]) if name not in known]:
        raise ValueError(f"variants must hold every scored variant, {unknown} missing; got {list(known)}")
    frames = []
    for name, rows in scores.groupby("variant", sort=False):
        variant = known[str(name)]
        if any(layer >= n_layers for layer in variant.removed):
            raise ValueError(f"n_layers must be above {max(variant.removed)}, got {n_layers}")
        line = (series or {}).get(variant.name, variant.name)
        frames.append(_placed(rows, variant.removed, n_layers, line, variant.adapter is not None))
    return pd.concat(frames, ignore_index=True)


def _layer_sets(blocks: Any, layers: Sequence[int]) -> list[tuple[int, ...]]:
    if isinstance(blocks, pd.DataFrame):
        blocks = layer_sets_of(blocks, layers)
    sets = [] if blocks is None else [tuple(sorted(set(one))) for one in blocks]
    if not sets or not all(sets):
        raise ValueError(f"blocks must name at least one layer each, and be at least one, got {blocks!r:.80}")
    return list(dict.fromkeys(sets))


def _losses(
    model: Any, tokenizer: Any, texts: Sequence[str], name: str, cuts: list[tuple[int, ...]], progress: bool
) -> list[tuple[tuple[int, ...], pd.DataFrame]]:
    """Return the rows of the loss (nats a token) of the whole model, as (), and without each cut."""
    from workbench.distances.damage import block_damage
    from workbench.evaluation.perplexity import loss_rows, loss_values
    from workbench.generation.prompts import context_length

    length = context_length(model) or 10**9
    found = block_damage(model, tokenizer, list(texts), layer_sets=cuts, max_length=length, progress=progress)
    losses = zip([(), *cuts], [found["base_loss"].iloc[0], *found["loss"]], strict=True)
    return [(cut, loss_rows(name, loss_values(model, loss), len(texts))) for cut, loss in losses]


def _placed(rows: pd.DataFrame, cut: Sequence[int], n_layers: int, series: str, healed: bool) -> pd.DataFrame:
    """Return rows of scores with what was removed in front."""
    front = {"series": series, "healed": healed, "removed": format_layers(cut) if cut else ""}
    front |= {"n_removed": len(cut), "fraction": len(cut) / n_layers}
    return rows.assign(**front)[[*front, *rows.columns.difference([*front], sort=False)]]

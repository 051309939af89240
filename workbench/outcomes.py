"""Scores brought into the form of the papers' figures: by fraction of layers dropped, category, flips."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from workbench.blocks import format_layers, layers_of, parse_layers
from workbench.scores import headline, paired_items

if TYPE_CHECKING:
    from workbench.runs import Variant

#: the order in which ITR reports its categories
CATEGORY_ORDER = ("reasoning", "language", "knowledge", "multilingual")
#: Score of a uniform guess. Exact where all items have as many choices; ARC has a few with three or five.
CHANCE = {
    **dict.fromkeys(("mmlu", "arc_challenge", "arc_easy", "hellaswag", "race", "demo_choice"), 0.25),
    **dict.fromkeys(("boolq", "copa", "piqa", "winogrande", "blimp", "xwinograd", "xstorycloze"), 0.5),
    **dict.fromkeys(("demo_yes_no", "demo_pairs", "demo_german_pairs"), 0.5),
    "xnli": 1 / 3,
    **dict.fromkeys(("gsm8k", "demo_math", "demo_facts", "demo_german_facts"), 0.0),
}
NOT_HEALED = "pruned, not healed"
_Z = 1.959964  # 95 % of a normal distribution


def scores_by_depth(
    model: Any,
    tokenizer: Any,
    blocks: Any,
    tasks: str | Sequence[str] = (),
    *,
    texts: Sequence[str] | None = None,
    texts_name: str = "texts",
    limit: int | float | None = None,
    batch_size: int = 32,
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
        batch_size: prompts, or texts, that ride together.
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
    from workbench.evaluation import evaluate
    from workbench.pruning import check_prunable, kept_layers, without_layers

    if not tasks and texts is None:
        raise ValueError("tasks or texts must be given, got neither")
    whole = kept_layers(model)
    cuts = _layer_sets(blocks, whole)
    for cut in cuts:
        check_prunable(model, cut)
    frames = []
    if texts is not None:
        losses = _losses(model, tokenizer, texts, cuts, progress)
        frames += [_loss_rows(model, texts_name, cut, *losses[cut], len(whole)) for cut in [(), *cuts]]
    for cut in [(), *cuts] if tasks else []:
        with without_layers(model, cut):
            rows = evaluate(
                model, tokenizer, tasks, limit=limit, batch_size=batch_size, progress=progress, **options
            )
        frames.append(_placed(rows, cut, len(whole), NOT_HEALED, False))
    return pd.concat(frames, ignore_index=True)


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


def category_scores(scores: pd.DataFrame) -> pd.DataFrame:
    """Average each variant's scores over the tasks of a category, as ITR table 1 groups them.

    Args:
        scores: rows of ``evaluate`` with a column ``variant``; one metric a task enters, and only where
            higher is better.

    Returns:
        variant, category, value (0 to 1), low, high (95 %, tasks erring independently; NaN where a task's
        error is not known), n_tasks. Categories in the order reasoning, language, knowledge, multilingual,
        any other.

    Raises:
        ValueError: for missing columns, no accuracy, or variants that were not scored on the same tasks of a
            category.
    """
    needed = ["variant", "task", "metric", "value", "stderr", "category"]
    if missing := [name for name in needed if name not in scores]:
        raise ValueError(f"scores must be rows of evaluate with a column variant; missing {missing}")
    rows = headline(scores)
    if "higher_is_better" in rows:
        rows = rows[rows["higher_is_better"].astype(bool)]
    if rows.empty:
        raise ValueError("scores must hold at least one score where higher is better, got none")
    rows = score_intervals(rows.assign(category=rows["category"].fillna("").replace("", "other")))
    _check_same_tasks(rows)
    names = dict.fromkeys(rows["category"])
    order = [*(name for name in CATEGORY_ORDER if name in names)]
    order += [name for name in names if name not in order]
    parts = [
        _category_row(variant, category, rows[(rows["variant"] == variant) & (rows["category"] == category)])
        for category in order
        for variant in dict.fromkeys(rows["variant"])
    ]
    return pd.DataFrame(parts)


def score_intervals(scores: pd.DataFrame) -> pd.DataFrame:
    """Return the 95 % interval of each score, as ``low`` and ``high`` beside the frame's columns.

    Right-or-wrong scores get Wilson's interval from ``n``, which keeps its width at 0 and at 1 where value ±
    1.96 stderr has none; other scores get that. NaN where neither is known.
    """
    value, stderr = scores["value"].astype(float), scores["stderr"].astype(float)
    low, high = value - _Z * stderr, value + _Z * stderr
    if "n" in scores:
        n = scores["n"].astype(float)
        right_or_wrong = np.isclose(
            stderr, np.sqrt(np.clip(value * (1 - value), 0, None) / (n - 1)), rtol=0.02, atol=1e-9
        )
        centre = (value + _Z**2 / (2 * n)) / (1 + _Z**2 / n)
        half = _Z * np.sqrt(np.clip(value * (1 - value), 0, None) / n + _Z**2 / (4 * n**2)) / (1 + _Z**2 / n)
        low = low.mask(right_or_wrong, (centre - half).clip(lower=0))
        high = high.mask(right_or_wrong, (centre + half).clip(upper=1))
    return scores.assign(low=low, high=high)


def flip_counts(base: pd.DataFrame, others: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Count the items of each task that a variant turned from right to wrong, and from wrong to right.

    Args:
        base: the unpruned model's items, from ``read_items``.
        others: variant -> its items of the same tasks; tasks enter whose items are right or wrong.

    Returns:
        variant, task, n (items), right_to_wrong, wrong_to_right; also where nothing turned.

    Raises:
        ValueError: no variant, different items, or no task whose items are right or wrong.
    """
    if not others:
        raise ValueError("others must hold at least one variant, got none")
    rows = []
    for name, items in others.items():
        for task, part in paired_items(base, items).groupby("task", sort=False):
            if not part[["base", "other"]].isin([0, 1]).all(axis=None):
                continue  # a perplexity is neither right nor wrong
            change = part["other"] - part["base"]
            turned = {"right_to_wrong": int((change < 0).sum()), "wrong_to_right": int((change > 0).sum())}
            rows.append({"variant": name, "task": task, "n": len(part), **turned})
    if not rows:
        raise ValueError("base must hold a task whose items are right or wrong, got none")
    return pd.DataFrame(rows)


def _layer_sets(blocks: Any, layers: Sequence[int]) -> list[tuple[int, ...]]:
    if isinstance(blocks, pd.DataFrame):
        if "removed" in blocks:
            sets = [tuple(parse_layers(text)) for text in blocks["removed"]]
        elif {"start", "size"} <= set(blocks.columns):
            pairs = blocks[["start", "size"]].itertuples(index=False, name=None)
            sets = [tuple(layers_of(int(start), int(size), layers=layers)) for start, size in pairs]
        else:
            raise ValueError(f"blocks must have start and size, or removed; got {list(blocks.columns)}")
    else:
        sets = [tuple(sorted(set(one))) for one in blocks]
    if not sets or not all(sets):
        raise ValueError(f"blocks must name at least one layer each, and be at least one, got {blocks!r:.80}")
    return list(dict.fromkeys(sets))


def _losses(
    model: Any, tokenizer: Any, texts: Sequence[str], cuts: list[tuple[int, ...]], progress: bool
) -> dict[tuple[int, ...], tuple[float, int]]:
    """Return loss (nats a token) and number of texts for the whole model, as (), and without each cut."""
    from workbench.damage import block_damage
    from workbench.generation import context_length

    length = context_length(model) or 10**9
    found = block_damage(model, tokenizer, list(texts), layer_sets=cuts, max_length=length, progress=progress)
    losses = {cut: (loss, len(texts)) for cut, loss in zip(cuts, found["loss"], strict=True)}
    return {(): (found["base_loss"].iloc[0], len(texts)), **losses}


def _loss_rows(
    model: Any, task: str, cut: tuple[int, ...], loss: float, n: int, n_layers: int
) -> pd.DataFrame:
    values = {"loss": loss, "normalized_loss": loss / np.log(model.config.get_text_config().vocab_size)}
    common = {"stderr": np.nan, "n": n, "truncated": 0, "higher_is_better": False}
    rows = [
        {"task": task, "metric": metric, "n_shot": 0, "value": value, **common}
        for metric, value in values.items()
    ]
    return _placed(
        pd.DataFrame(rows).assign(parent="", category="language"), cut, n_layers, NOT_HEALED, False
    )


def _placed(rows: pd.DataFrame, cut: Sequence[int], n_layers: int, series: str, healed: bool) -> pd.DataFrame:
    """Return rows of scores with what was removed in front."""
    front = {
        "series": series,
        "healed": healed,
        "removed": format_layers(cut) if cut else "",
        "n_removed": len(cut),
        "fraction": len(cut) / n_layers,
    }
    rows = rows.drop(columns=[*front], errors="ignore")
    for place, (name, value) in enumerate(front.items()):
        rows.insert(place, name, value)
    return rows


def _check_same_tasks(rows: pd.DataFrame) -> None:
    tasks = {name: sorted(part["task"]) for name, part in rows.groupby("variant", sort=False)}
    first = next(iter(tasks))
    for name, these in tasks.items():
        if these != tasks[first]:
            differ = sorted(set(these) ^ set(tasks[first])) or sorted(these)
            raise ValueError(
                f"variants must be scored once on the same tasks; {name!r} and {first!r} differ in {differ}"
            )


def _category_row(variant: str, category: str, part: pd.DataFrame) -> dict[str, Any]:
    """Return the mean over tasks; each side of its interval adds up the tasks' own sides in squares."""
    value = part["value"].mean()
    below = np.linalg.norm(part["value"] - part["low"]) / len(part)
    above = np.linalg.norm(part["high"] - part["value"]) / len(part)
    interval = {"low": np.maximum(value - below, 0), "high": np.minimum(value + above, 1)}
    return {"variant": variant, "category": category, "value": value, **interval, "n_tasks": len(part)}

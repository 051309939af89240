"""Items compared one by one: what each variant answered, paired by item. Frames only, no model."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from workbench.checks import checked, one_of, told
from workbench.evaluation.scores import Prefer, one_metric
from workbench.statistics import holm, paired_difference

_ITEM = ["task", "n_shot", "item"]


def read_items(path: str | Path) -> pd.DataFrame:
    """Every item's result, as ``evaluate(..., items=path)`` wrote it: one row an item and metric.

    Returns:
        task, n_shot, item, metric, value, prompt, target, response, truncated; tokens, where a loss is a
        mean over so many. ``item`` is the item's number in its task; ``response`` is what the metric counted
        (``acc_norm`` can choose another answer than ``acc``). The harness takes perplexities from
        sums over all items; there ``value`` is the item's own mean log-likelihood in nats a unit (word,
        byte). NaN where a metric says something of all items together only.

    Raises:
        ValueError: the file does not exist, or is none that ``evaluate`` wrote.
    """
    if not (path := Path(path)).is_file():
        raise ValueError(f"path must be a file that evaluate(..., items=) wrote, got {path}: no such file")
    with told(
        f"{path} is no items file of evaluate, or damaged", ValueError, LookupError, TypeError, AttributeError
    ):
        entries = (json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line)
        rows = [
            {**entry, "metric": metric, "value": value, "response": others.get(metric, entry["response"])}
            for entry in entries
            for others in [entry.pop("responses", {})]
            for metric, value in entry.pop("scores").items()
        ]
    columns = [*_ITEM, "metric", "value", "prompt", "target", "response", "truncated"]
    columns += ["tokens"] if any("tokens" in row for row in rows) else []
    return pd.DataFrame(rows, columns=columns).astype({"value": float})


def paired_items(
    base: pd.DataFrame, other: pd.DataFrame, *, metric: str | None = None, prefer: Prefer = None
) -> pd.DataFrame:
    """Two variants' results side by side, item by item: what paired intervals and tests are computed on.

    Args:
        base: items of one variant, from ``read_items``.
        other: items of another, of the same tasks.
        metric: which metric; None takes the one that stands for each task (see ``headline``).
        prefer: as for ``headline``, where ``metric`` is None.

    Returns:
        task, n_shot, item, base, other (the two values), prompt, target, base_response, other_response;
        metric and tokens where the items have them.

    Raises:
        ValueError: the frames do not hold the same items with the same prompts.

    >>> base = pd.DataFrame({"task": "a", "n_shot": 0, "item": [0, 1], "value": [1, 0]})
    >>> base = base.assign(prompt="?", target="yes", response="yes")
    >>> paired_items(base, base.assign(value=[0, 0]))[["item", "base", "other"]].values.tolist()
    [[0, 1, 0], [1, 0, 0]]
    """
    sides = (one_metric(frame, metric, prefer=prefer) for frame in (base, other))
    base, other = (frame.set_index(_ITEM).sort_index() for frame in sides)
    if not base.index.equals(other.index) or (base["prompt"] != other["prompt"]).any():
        common = base.index.intersection(other.index)
        same = int((base.loc[common, "prompt"] == other.loc[common, "prompt"]).sum())
        got = f"got {len(base)} and {len(other)} items, {same} of them the same"
        hint = "evaluate both variants with equal tasks, limit, n_shot and seed"
        raise ValueError(f"base and other must hold the same items with the same prompts, {got}; {hint}")
    pairs = {"base": base["value"], "other": other["value"], "prompt": base["prompt"]}
    said = {"base_response": base["response"], "other_response": other["response"]}
    pairs |= {"target": base["target"], **said}
    pairs |= {name: base[name] for name in ("metric", "tokens") if name in base}
    return pd.DataFrame(pairs).reset_index()


def compare_items(
    base: pd.DataFrame | Mapping[str, pd.DataFrame],
    other: pd.DataFrame | None = None,
    *,
    between: Iterable[tuple[str, str]] | None = None,
    metric: str | None = None,
    prefer: Prefer = None,
    scores: pd.DataFrame | None = None,
    confidence: float = 0.95,
    seed: int = 0,
) -> pd.DataFrame:
    """Variants compared task by task on the same items: difference, interval, exact test.

    Two variants: ``compare_items(base, other)``. Several, also with each other and not only with the base:
    ``compare_items(items, between=[("sft", "self-distilled"), ("pruned", "sft")])``.

    Args:
        base: items of one variant, from ``read_items``; without ``other`` those of several: variant -> items,
            or one frame with a column ``variant`` (``Evaluated.items``).
        other: items of another variant, of the same tasks.
        between: which variants to compare, each pair as (first, second); None compares every pair.
        metric: which metric; None takes the one that stands for each task (see ``headline``).
        prefer: as for ``headline``, where ``metric`` is None.
        scores: rows of ``evaluate`` for these items; the tasks of a group are then compared together, under
            the group's name, all items alike (MMLU as one row and not 57). None keeps them apart.
        confidence: coverage of the interval.
        seed: of the resampling and of the test, for values that are not right or wrong.

    Returns:
        With several variants ``variant`` and ``against``; task, n_shot, metric (where the items say it), and
        ``workbench.statistics.paired_difference``: n, difference (mean of second - first: of ``variant`` less
        ``against``), ci_low, ci_high, higher and lower (items of which the second's value is higher, lower),
        ties, p_value (McNemar's exact test for right or wrong, else a randomization test of the difference);
        p_adjusted: corrected by Holm's method for all rows of this frame. Higher is better, but for a loss.
        Losses of texts are compared per token: each text weighs as many as it has, and copies of a text are
        one. Items without a value of their own are left out.

    Raises:
        ValueError: the frames do not hold the same items with the same prompts; ``scores`` lack their tasks;
            a pair names no variant of the items, or the same one twice; fewer than two variants.

    >>> base = pd.DataFrame({"task": "a", "n_shot": 0, "item": range(4), "value": [1, 1, 1, 0]})
    >>> base = base.assign(prompt="?", target="yes", response="yes")
    >>> compare_items(base, base.assign(value=[0, 0, 1, 0]))[["n", "difference", "p_value"]].values.tolist()
    [[4.0, -0.5, 0.5]]
    """
    items: Mapping[str, Any] = _by_variant(base) if other is None else {"base": base, "other": other}
    rows = []
    for first, second in _checked_pairs(items, between if other is None else None):
        pairs = paired_items(items[first], items[second], metric=metric, prefer=prefer)
        found = _compared(pairs, group_of(scores), confidence, seed)
        rows += [{"variant": second, "against": first, **row} for row in found]
    if not rows:
        raise ValueError("base and other must hold a metric with a value for each item, got none")
    frame = pd.DataFrame(rows)
    frame["p_adjusted"] = holm(frame["p_value"])
    return frame.drop(columns=["variant", "against"]) if other is not None else frame


def _by_variant(items: pd.DataFrame | Mapping[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
    """Return the items of each of several variants."""
    if isinstance(items, pd.DataFrame):
        checked(items, ["variant", *_ITEM], "items of several variants (or give other=)")
        parts = items.groupby("variant", sort=False)
        items = {str(name): part.drop(columns="variant") for name, part in parts}
    if len(items) < 2:
        raise ValueError(f"items must hold at least two variants to compare, got {list(items)}")
    return dict(items)


def _checked_pairs(
    items: Mapping[str, pd.DataFrame], between: Iterable[tuple[str, str]] | None
) -> list[tuple[str, str]]:
    pairs = [(one, other) for one, other in (combinations(items, 2) if between is None else between)]
    for pair in pairs:
        if len(set(pair)) < 2:
            raise ValueError(f"between must hold pairs of two different variants, got {pair}")
        for name in pair:
            one_of(name, items, "between")
    if not pairs:
        raise ValueError("between must hold at least one pair of variants, got none")
    return list(dict.fromkeys(pairs))


def _compared(
    pairs: pd.DataFrame, group: Callable[[str], str], confidence: float, seed: int
) -> list[dict[str, Any]]:
    """Return a row a task, or group of tasks, and number of shots."""
    pairs = pairs.assign(task=pairs["task"].map(group)).dropna(subset=["base", "other"])
    keys = [key for key in ("task", "n_shot", "metric") if key in pairs]
    rows = []
    for values, part in pairs.groupby(keys, sort=False):
        of_texts = "tokens" in part and part["tokens"].notna().all()
        units = {"weights": part["tokens"], "groups": _texts(part)} if of_texts else {}
        found = paired_difference(part["base"], part["other"], **units, confidence=confidence, seed=seed)
        rows.append(dict(zip(keys, values, strict=True)) | found)
    return rows


def _texts(part: pd.DataFrame) -> pd.Series:
    """Return what names each item's text, the same for its copies; where no text is kept, the item itself."""
    return part["prompt"].where(part["prompt"] != "", part["item"].astype(str))


def group_of(scores: pd.DataFrame | None) -> Callable[[str], str]:
    """Return a function from a task to the topmost group in whose score it is counted.

    Without scores, or where they name no groups, every task stands on its own.
    """
    if scores is None or "parent" not in scores:
        return str
    parents = dict(zip(scores["task"], scores["parent"].fillna(""), strict=True))

    def root(task: str) -> str:
        if task not in parents:
            raise ValueError(f"scores must hold every task of the items, {task!r} is not among them")
        return root(parents[task]) if parents[task] else task

    return root


def flips(base: pd.DataFrame, other: pd.DataFrame, *, metric: str | None = None) -> pd.DataFrame:
    """The items that one variant gets right and the other wrong.

    Args:
        base: items of one variant, from ``read_items``.
        other: items of another, of the same tasks.
        metric: a metric that is 1 for right and 0 for wrong; None takes each task's own (see ``headline``),
            and leaves out tasks whose metric is not of that kind.

    Returns:
        task, n_shot, item, flip ("right to wrong" or "wrong to right"), prompt, target, base_response,
        other_response.

    Raises:
        ValueError: the frames do not hold the same items, or none of them is right or wrong.

    >>> base = pd.DataFrame({"task": "a", "n_shot": 0, "item": [0, 1], "value": [1, 0]})
    >>> base = base.assign(prompt="?", target="yes", response="yes")
    >>> flips(base, base.assign(value=[0, 0]))[["item", "flip"]].values.tolist()
    [[0, 'right to wrong']]
    """
    pairs = paired_items(base, other, metric=metric)
    pairs = right_or_wrong(pairs).reset_index(drop=True)
    if pairs.empty:
        raise ValueError("base and other must hold a metric that is 0 or 1 for every item, got none")
    pairs = pairs[pairs["base"] != pairs["other"]].reset_index(drop=True)
    pairs.insert(len(_ITEM), "flip", np.where(pairs["base"] == 1, "right to wrong", "wrong to right"))
    return pairs.drop(columns=["base", "other", "metric", "tokens"], errors="ignore")


def right_or_wrong(pairs: pd.DataFrame) -> pd.DataFrame:
    """Return the pairs of tasks whose every item is 0 or 1: a perplexity is neither right nor wrong."""
    binary = pairs[["base", "other"]].isin([0, 1]).all(axis=1)
    return pairs[binary.groupby([pairs["task"], pairs["n_shot"]]).transform("all")]


def flip_examples(base: pd.DataFrame, others: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Return for each variant one item that it lost, of the task where it lost most, to be read.

    Args:
        base: the unpruned model's items, from ``read_items``.
        others: variant -> its items of the same tasks.

    Returns:
        variant, task, prompt, target, base_response, other_response; no row for a variant that lost none.
    """
    columns = ["task", "prompt", "target", "base_response", "other_response"]
    parts = {}
    for name, items in others.items():
        lost = flips(base, items).query("flip == 'right to wrong'")
        where = list(zip(lost["task"], lost["n_shot"], strict=True))
        most = max(where, key=where.count, default=None)
        parts[name] = lost.loc[[place == most for place in where], columns].head(1)
    return pd.concat(parts, names=["variant"]).reset_index("variant").reset_index(drop=True)


def flip_counts(
    base: pd.DataFrame,
    others: Mapping[str, pd.DataFrame],
    *,
    scores: pd.DataFrame | None = None,
    prefer: Prefer = None,
) -> pd.DataFrame:
    """Count the items of each task that a variant turned from right to wrong, and from wrong to right.

    Args:
        base: the unpruned model's items, from ``read_items``.
        others: variant -> its items of the same tasks; tasks enter whose items are right or wrong.
        scores: as for ``compare_items``: counts the tasks of a group together.
        prefer: as for ``headline``.

    Returns:
        variant, task, n_shot, n (items), right_to_wrong, wrong_to_right; also where nothing turned.

    Raises:
        ValueError: no variant, different items, or no task whose items are right or wrong; ``scores`` lack
            their tasks.

    >>> base = pd.DataFrame({"task": "a", "n_shot": 0, "item": [0, 1], "value": [1, 0]})
    >>> base = base.assign(prompt="?", target="yes", response="yes")
    >>> flip_counts(base, {"pruned": base.assign(value=[0, 0])}).values.tolist()
    [['pruned', 'a', 0, 2, 1, 0]]
    """
    pairs = {name: right_or_wrong(paired_items(base, items, prefer=prefer)) for name, items in others.items()}
    if not pairs:
        raise ValueError("variants must hold at least one beside the base, got none")
    frame = pd.concat(pairs, names=["variant"]).reset_index("variant")
    if frame.empty:
        raise ValueError("base must hold a task whose items are right or wrong, got none")
    change = frame["other"] - frame["base"]
    frame = frame.assign(right_to_wrong=change < 0, wrong_to_right=change > 0)
    frame["task"] = frame["task"].map(group_of(scores))
    groups = frame.groupby(["variant", "task", "n_shot"], sort=False)
    counts = {flip: (flip, "sum") for flip in ("right_to_wrong", "wrong_to_right")}
    return groups.agg(n=("item", "size"), **counts).reset_index()

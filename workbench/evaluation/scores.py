"""What scores say: one metric a task, average recovery, items compared one by one. Frames only, no model."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from workbench.checks import checked
from workbench.evaluation.suites import BLIMP_GROUPS
from workbench.statistics import paired_difference

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
_Z = 1.959964  # 95 % of a normal distribution

#: The metric that papers report for a task; another task is shown by the first of ``_PREFERRED`` it has.
HEADLINE = {
    "arc_challenge": "acc_norm",
    "hellaswag": "acc_norm",
    "gsm8k": "exact_match,strict-match",
    "scrolls_qmsum": "rouge2",
    "demo_math": "exact_match,flexible-extract",  # a healed model may state the right answer in another form
}
_PREFERRED = (
    *("exact_match", "acc", "exact_match,strict-match", "acc_norm"),
    *("word_perplexity", "token_perplexity"),
)
_ITEM = ["task", "n_shot", "item"]


def headline(scores: pd.DataFrame) -> pd.DataFrame:
    """One row a task (and variant): the metric that papers report for it, groups without their parts.

    ARC-Challenge and HellaSwag are shown by ``acc_norm`` and GSM8K by strict match, as on the OpenLLM
    Leaderboard v1 (SDD table 8); every other task by exact match, accuracy or perplexity, whichever it has
    first.

    Args:
        scores: rows of ``evaluate``, with a column ``variant`` when there are several.

    >>> scores = pd.DataFrame({"task": "gsm8k", "value": [0.2, 0.3]})
    >>> scores["metric"] = ["exact_match,strict-match", "exact_match,flexible-extract"]
    >>> headline(scores)["value"].tolist()
    [0.2]
    """
    if "parent" in scores:
        scores = scores[scores["parent"].isna() | (scores["parent"] == "")]
    return _one_metric(scores).reset_index(drop=True)


def blimp_groups(scores: pd.DataFrame) -> pd.DataFrame:
    """BLiMP in the 13 groups of ITR (appendix C): the mean accuracy over the paradigms of each.

    Every paradigm counts alike, as in the harness's own average. ``tough_vs_raising_1`` and ``_2`` are in
    none of ITR's tables, so the groups hold 65 of the 67 paradigms.

    Args:
        scores: rows of ``evaluate(..., "blimp")``, with a column ``variant`` when there are several.

    Returns:
        The columns of ``scores``; ``task`` is the group's name ("blimp_agreement"), ``parent`` is "blimp",
        ``stderr`` that of a mean of independent paradigms, ``n`` and ``truncated`` are sums over them.

    Raises:
        ValueError: a paradigm is not among the scores.
    """
    groups = {f"blimp_{name}": f"blimp_{group}" for group, names in BLIMP_GROUPS.items() for name in names}
    keys = [key for key in ("variant", "n_shot") if key in scores]
    rows = scores[(scores["metric"] == "acc") & scores["task"].isin(groups)]
    if rows.empty:
        raise ValueError("scores must hold the tasks of blimp, got none of them")
    return pd.concat(
        [
            _group_means(part, groups).assign(**dict(zip(keys, values, strict=True)))
            for values, part in rows.groupby(keys, sort=False)
        ],
        ignore_index=True,
    ).reindex(columns=scores.columns)


def _group_means(rows: pd.DataFrame, groups: dict[str, str]) -> pd.DataFrame:
    """Return unweighted means over the tasks of each group."""
    if lacking := [name for name in groups if name not in set(rows["task"])]:
        raise ValueError(
            f"scores must hold all paradigms of BLiMP group {groups[lacking[0]].removeprefix('blimp_')!r}, "
            f"{lacking[0]!r} is not there"
        )
    means = rows.groupby(rows["task"].map(groups)).agg(
        value=("value", "mean"),
        stderr=("stderr", lambda errors: np.linalg.norm(errors) / len(errors)),
        n=("n", "sum"),
        truncated=("truncated", "sum"),
    )
    same = {"metric": "acc", "higher_is_better": True, "parent": "blimp", "category": "language"}
    return means.loc[list(dict.fromkeys(groups.values()))].assign(**same).reset_index()


def score_spread(scores: pd.DataFrame, over: str) -> pd.DataFrame:
    """Mean and spread of scores over repeated measurements: prompt orders, or training seeds (GRO C.1, C.2).

    Args:
        scores: rows of ``shot_ablation`` or ``seed_ablation``, or of ``evaluate`` with a column of that name.
        over: the column that numbers the repetitions: "order" or "seed".

    Returns:
        One row for each of what else tells rows apart (method, task, metric, n_shot): those, mean, std (of
        the repetitions, with n - 1; NaN for one), low, high, n (repetitions).

    Raises:
        ValueError: there is no such column, or a repetition counts twice.

    >>> scores = pd.DataFrame({"task": "a", "metric": "acc", "value": [0.25, 0.75], "order": [0, 1]})
    >>> score_spread(scores, "order")[["mean", "low", "high", "n"]].values.tolist()
    [[0.5, 0.25, 0.75, 2.0]]
    """
    keys = [
        key for key in ("method", "variant", "task", "metric", "n_shot", "order", "seed") if key in scores
    ]
    keys = [key for key in keys if key != over and not (over == "seed" and key == "variant")]
    if over not in scores:
        raise ValueError(f"over must be a column of scores, one of {list(scores.columns)}, got {over!r}")
    if scores.duplicated([*keys, over]).any():
        twice = scores[scores.duplicated([*keys, over])].iloc[0]
        raise ValueError(
            f"each {over} must have one score, got two for {over} {twice[over]} of {twice['task']!r}"
        )
    repeated = scores.groupby(keys, sort=False)["value"]
    return repeated.agg(mean="mean", std="std", low="min", high="max", n="count").reset_index()


def recovery(scores: pd.DataFrame, base: str = "base") -> pd.DataFrame:
    """Average score of each variant and its share of the base's average (SDD table 8, "Avg. Recovery").

    Only scores where higher is better enter (accuracies, exact match), one metric a task; perplexities do
    not.

    Args:
        scores: variant, task, metric, value, and what else ``evaluate`` gives.
        base: the unpruned variant's name.

    Returns:
        variant, average (in the unit of ``value``), recovery (fraction of the base's average; 1 = nothing
        lost), n_tasks.

    Raises:
        ValueError: ``base`` is not among the variants, the variants are not scored on the same tasks, or the
            base's average is 0.

    >>> scores = pd.DataFrame({"variant": ["base", "pruned"], "task": "a", "value": [0.8, 0.6]})
    >>> recovery(scores.assign(metric="acc"))["recovery"].round(2).tolist()
    [1.0, 0.75]
    """
    table = _score_table(scores)
    if base not in table.index:
        raise ValueError(f"base must be one of the variants {list(table.index)}, got {base!r}")
    average = table.mean(axis=1)
    if not average[base] > 0:
        raise ValueError(f"recovery is a share of the base's average, but {base!r} scores {average[base]:g}")
    found = pd.DataFrame({"average": average, "recovery": average / average[base], "n_tasks": table.shape[1]})
    return found.reset_index()


def read_items(path: str | Path) -> pd.DataFrame:
    """Every item's result, as ``evaluate(..., items=path)`` wrote it: one row an item and metric.

    Returns:
        task, n_shot, item, metric, value, prompt, target, response, truncated. ``item`` is the item's number
        in its task. The harness takes perplexities from sums over all items; there ``value`` is the item's
        own mean log-likelihood in nats a unit (word, byte).

    Raises:
        ValueError: the file does not exist.
    """
    if not (path := Path(path)).is_file():
        raise ValueError(
            f"path must be a file that evaluate(..., items=path) wrote, got {path}: no such file"
        )
    entries = (json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line)
    rows = [
        {**entry, "metric": metric, "value": value}
        for entry in entries
        for metric, value in entry.pop("scores").items()
    ]
    columns = [*_ITEM, "metric", "value", "prompt", "target", "response", "truncated"]
    return pd.DataFrame(rows, columns=columns)


def paired_items(base: pd.DataFrame, other: pd.DataFrame, *, metric: str | None = None) -> pd.DataFrame:
    """Two variants' results side by side, item by item: what paired intervals and tests are computed on.

    Args:
        base: items of one variant, from ``read_items``.
        other: items of another, of the same tasks.
        metric: which metric; None takes the one that stands for each task (see ``headline``).

    Returns:
        task, n_shot, item, base, other (the two values), prompt, target, base_response, other_response.

    Raises:
        ValueError: the frames do not hold the same items with the same prompts.

    >>> base = pd.DataFrame({"task": "a", "n_shot": 0, "item": [0, 1], "value": [1, 0]})
    >>> base = base.assign(prompt="?", target="yes", response="yes")
    >>> paired_items(base, base.assign(value=[0, 0]))[["item", "base", "other"]].values.tolist()
    [[0, 1, 0], [1, 0, 0]]
    """
    base, other = (_one_metric(frame, metric).set_index(_ITEM).sort_index() for frame in (base, other))
    if not base.index.equals(other.index) or (base["prompt"] != other["prompt"]).any():
        common = base.index.intersection(other.index)
        same = int((base.loc[common, "prompt"] == other.loc[common, "prompt"]).sum())
        raise ValueError(
            "base and other must hold the same items with the same prompts, "
            f"got {len(base)} and {len(other)} items, {same} of them the same; "
            "evaluate both variants with equal tasks, limit, n_shot and seed"
        )
    sides = {"base": base, "other": other}
    values = {side: frame["value"] for side, frame in sides.items()}
    responses = {f"{side}_response": frame["response"] for side, frame in sides.items()}
    return pd.DataFrame(
        values | {"prompt": base["prompt"], "target": base["target"]} | responses
    ).reset_index()


def compare_items(
    base: pd.DataFrame,
    other: pd.DataFrame,
    *,
    metric: str | None = None,
    scores: pd.DataFrame | None = None,
    confidence: float = 0.95,
    seed: int = 0,
) -> pd.DataFrame:
    """Two variants compared task by task on the same items: difference, interval, exact test.

    Args:
        base: items of one variant, from ``read_items``.
        other: items of another, of the same tasks.
        metric: which metric; None takes the one that stands for each task (see ``headline``).
        scores: rows of ``evaluate`` for these items; the tasks of a group are then compared together, under
            the group's name, all items alike (MMLU as one row and not 57). None keeps them apart.
        confidence: coverage of the bootstrap interval over items.
        seed: of the resampling.

    Returns:
        task, n_shot, and ``workbench.statistics.paired_difference``: n, difference (mean of other - base),
        ci_low, ci_high, higher and lower (items that other gets better, worse), ties, p_value (exact;
        McNemar's test for right or wrong). One row a task; p-values are not corrected for the number of
        tasks.

    Raises:
        ValueError: the frames do not hold the same items with the same prompts; ``scores`` lack their tasks.

    >>> base = pd.DataFrame({"task": "a", "n_shot": 0, "item": range(4), "value": [1, 1, 1, 0]})
    >>> base = base.assign(prompt="?", target="yes", response="yes")
    >>> compare_items(base, base.assign(value=[0, 0, 1, 0]))[["n", "difference", "p_value"]].values.tolist()
    [[4.0, -0.5, 0.5]]
    """
    pairs = paired_items(base, other, metric=metric)
    if scores is not None:
        pairs["task"] = pairs["task"].map(_roots(scores))
    return pd.DataFrame(
        [
            {"task": task, "n_shot": n_shot}
            | paired_difference(rows["base"], rows["other"], confidence=confidence, seed=seed)
            for (task, n_shot), rows in pairs.groupby(["task", "n_shot"], sort=False)
        ]
    )


def _roots(scores: pd.DataFrame) -> Callable[[str], str]:
    """Return a function from a task to the topmost group in whose score it is counted."""
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
    return pairs.drop(columns=["base", "other"])


def right_or_wrong(pairs: pd.DataFrame) -> pd.DataFrame:
    """Return the pairs of tasks whose every item is 0 or 1: a perplexity is neither right nor wrong."""
    binary = pairs[["base", "other"]].isin([0, 1]).all(axis=1)
    return pairs[binary.groupby([pairs["task"], pairs["n_shot"]]).transform("all")]


def _one_metric(frame: pd.DataFrame, metric: str | None = None) -> pd.DataFrame:
    """The rows of one metric; by default the one that stands for the row's task."""
    if "metric" not in frame:
        return frame
    if metric is not None:
        if metric not in (known := sorted(set(frame["metric"]))):
            raise ValueError(f"metric must be one of {known}, got {metric!r}")
        return frame[frame["metric"] == metric]
    chosen = {task: _main_metric(task, list(metrics)) for task, metrics in frame.groupby("task")["metric"]}
    return frame[frame["metric"] == frame["task"].map(chosen)]


def _main_metric(task: str, metrics: list[str]) -> str:
    wanted = (HEADLINE.get(task), *_PREFERRED)
    return next((metric for metric in wanted if metric in metrics), metrics[0])


def accuracies(scores: pd.DataFrame) -> pd.DataFrame:
    """Return one metric a task, and of those the ones where higher is better."""
    scores = headline(scores)
    if "higher_is_better" in scores:
        scores = scores[scores["higher_is_better"].astype(bool)]
    return scores


def _score_table(scores: pd.DataFrame) -> pd.DataFrame:
    """Variants x tasks; refuses gaps, since an average over other tasks would be a plausible wrong number."""
    scores = accuracies(scores)
    keys = [key for key in ("task", "n_shot") if key in scores]
    if scores.duplicated(["variant", *keys]).any():
        twice = scores[scores.duplicated(["variant", *keys])].iloc[0]
        raise ValueError(
            f"each variant must have one score a task, got two for {twice['variant']!r}, {twice['task']!r}"
        )
    table = scores.pivot(index="variant", columns=keys, values="value")
    table = table.loc[list(dict.fromkeys(scores["variant"]))]
    if table.isna().any(axis=None):
        name = table.index[table.isna().any(axis=1)][0]
        missing = sorted({str(np.atleast_1d(column)[0]) for column in table.columns[table.loc[name].isna()]})
        raise ValueError(
            f"every variant must be scored on the same tasks; {name!r} lacks {', '.join(missing)}"
        )
    return table


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

    >>> scores = pd.DataFrame({"variant": "base", "task": ["a", "b"], "metric": "acc", "value": [0.4, 0.6]})
    >>> scores = scores.assign(stderr=0.1, category="knowledge")
    >>> category_scores(scores)[["category", "value", "n_tasks"]].values.tolist()
    [['knowledge', 0.5, 2]]
    """
    needed = ["variant", "task", "metric", "value", "stderr", "category"]
    rows = accuracies(checked(scores, needed, "scores"))
    if rows.empty:
        raise ValueError("scores must hold at least one score where higher is better, got none")
    rows = score_intervals(rows.assign(category=rows["category"].fillna("").replace("", "other")))
    _check_same_tasks(rows)
    names = [*dict.fromkeys(rows["category"])]
    order = [*(name for name in CATEGORY_ORDER if name in names)]
    order += [name for name in names if name not in order]
    parts = rows.groupby(["variant", "category"], sort=False)
    return pd.DataFrame(
        [
            {
                "variant": variant,
                "category": category,
                **_mean_over_tasks(parts.get_group((variant, category))),
            }
            for category in order
            for variant in dict.fromkeys(rows["variant"])
            if (variant, category) in parts.groups
        ]
    )


def task_categories(scores: pd.DataFrame) -> dict[str, list[str]]:
    """Return the tasks of each category, where higher is better: the ``groups`` of ``summary_table``.

    >>> row = {"task": "gsm8k", "metric": "exact_match", "category": "reasoning", "higher_is_better": True}
    >>> task_categories(pd.DataFrame([row]))
    {'reasoning': ['gsm8k']}
    """
    rows = headline(scores).query("higher_is_better")
    tasks = rows.groupby("category", sort=False)["task"]
    return {str(category): list(dict.fromkeys(these)) for category, these in tasks}


def score_intervals(scores: pd.DataFrame) -> pd.DataFrame:
    """Return the 95 % interval of each score, as ``low`` and ``high`` beside the frame's columns.

    Right-or-wrong scores get Wilson's interval from ``n``, which keeps its width at 0 and at 1 where value ±
    1.96 stderr has none; other scores get that. NaN where neither is known.

    >>> certain = pd.DataFrame({"value": [1.0], "stderr": [0.0], "n": [100]})
    >>> score_intervals(certain)[["low", "high"]].round(3).values.tolist()
    [[0.963, 1.0]]
    """
    value, stderr = scores["value"].astype(float), scores["stderr"].astype(float)
    low, high = value - _Z * stderr, value + _Z * stderr
    if "n" in scores:
        n = scores["n"].astype(float)
        spread = np.clip(value * (1 - value), 0, None)
        counted = np.isclose(stderr, np.sqrt(spread / (n - 1)), rtol=0.02, atol=1e-9)
        centre = (value + _Z**2 / (2 * n)) / (1 + _Z**2 / n)
        half = _Z * np.sqrt(spread / n + _Z**2 / (4 * n**2)) / (1 + _Z**2 / n)
        low = low.mask(counted, (centre - half).clip(lower=0))
        high = high.mask(counted, (centre + half).clip(upper=1))
    return scores.assign(low=low, high=high)


def flip_examples(base: pd.DataFrame, others: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Return for each variant one item that it lost, of the task where it lost most, to be read.

    Args:
        base: the unpruned model's items, from ``read_items``.
        others: variant -> its items of the same tasks.

    Returns:
        variant, task, prompt, target, base_response, other_response; no row for a variant that lost none.
    """
    parts = []
    for name, items in others.items():
        lost = flips(base, items).query("flip == 'right to wrong'")
        worst = lost[lost["task"] == lost["task"].mode().get(0)]
        parts.append(worst.head(1).assign(variant=name))
    columns = ["variant", "task", "prompt", "target", "base_response", "other_response"]
    return pd.concat(parts, ignore_index=True)[columns]


def flip_counts(base: pd.DataFrame, others: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Count the items of each task that a variant turned from right to wrong, and from wrong to right.

    Args:
        base: the unpruned model's items, from ``read_items``.
        others: variant -> its items of the same tasks; tasks enter whose items are right or wrong.

    Returns:
        variant, task, n (items), right_to_wrong, wrong_to_right; also where nothing turned.

    Raises:
        ValueError: no variant, different items, or no task whose items are right or wrong.

    >>> base = pd.DataFrame({"task": "a", "n_shot": 0, "item": [0, 1], "value": [1, 0]})
    >>> base = base.assign(prompt="?", target="yes", response="yes")
    >>> flip_counts(base, {"pruned": base.assign(value=[0, 0])}).values.tolist()
    [['pruned', 'a', 2, 1, 0]]
    """
    if not others:
        raise ValueError("others must hold at least one variant, got none")
    frames = []
    for name, items in others.items():
        pairs = right_or_wrong(paired_items(base, items))
        change = pairs["other"] - pairs["base"]
        turned = pairs.assign(variant=name, right_to_wrong=change < 0, wrong_to_right=change > 0)
        counts = {flip: (flip, "sum") for flip in ("right_to_wrong", "wrong_to_right")}
        frames.append(turned.groupby(["variant", "task"], sort=False).agg(n=("item", "size"), **counts))
    found = pd.concat(frames).reset_index()
    if found.empty:
        raise ValueError("base must hold a task whose items are right or wrong, got none")
    return found


def _mean_over_tasks(part: pd.DataFrame) -> dict[str, Any]:
    """Return the mean over tasks; each side of its interval adds up the tasks' own sides in squares."""
    value = part["value"].mean()
    below = np.linalg.norm(part["value"] - part["low"]) / len(part)
    above = np.linalg.norm(part["high"] - part["value"]) / len(part)
    interval = {"low": np.maximum(value - below, 0), "high": np.minimum(value + above, 1)}
    return {"value": value, **interval, "n_tasks": len(part)}


def _check_same_tasks(rows: pd.DataFrame) -> None:
    tasks = {name: sorted(part["task"]) for name, part in rows.groupby("variant", sort=False)}
    first = next(iter(tasks))
    for name, these in tasks.items():
        if these != tasks[first]:
            differ = sorted(set(these) ^ set(tasks[first])) or sorted(these)
            raise ValueError(
                f"variants must be scored once on the same tasks; {name!r} and {first!r} differ in {differ}"
            )

"""Tables in the shape that papers print: recovery, summary, trainings, SDD's tables 7 and 8."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from workbench.checks import checked
from workbench.evaluation.scores import accuracies, average_recovery, headline, score_intervals
from workbench.runs.variant import Variant
from workbench.statistics import bootstrap_interval

#: what SDD table 8 says of a variant
_NOTES = ["variant", "size", "saved", "left", "method", "dataset"]


def recovery_table(
    scores: pd.DataFrame, variants: pd.DataFrame | None = None, *, base: str = "base"
) -> pd.DataFrame:
    """Return one row a variant: its scores, their average, its share of the base's (SDD table 8).

    Args:
        scores: rows of ``evaluate`` with a column ``variant``. Only tasks where higher is better enter, one
            metric a task; shares are printed as percentages.
        variants: what else to print of a variant: ``variant`` and any columns, such as ``block size``,
            ``model savings``, ``method``, ``dataset``, in the order wanted.
        base: the unpruned variant, to which recovery is relative.

    Returns:
        Columns: ``variant`` (or those of ``variants``), a column a task (``task (n-shot)``), ``Avg. score``,
        ``Avg. recovery (%)``; numbers in percent, variants in the order of the scores.

    Raises:
        ValueError: when columns are missing, the base is, variants were not scored on the same tasks (an
            average over other tasks would be a plausible wrong number), or ``variants`` does not name each
            variant once.

    >>> rows = [("base", "mmlu", "acc", 0.6), ("pruned", "mmlu", "acc", 0.3)]
    >>> scores = pd.DataFrame(rows, columns=["variant", "task", "metric", "value"])
    >>> recovery_table(scores)["Avg. recovery (%)"].tolist()
    [100.0, 50.0]
    """
    checked(scores, ["variant", "task", "metric", "value"], "scores")
    averages = average_recovery(scores, base).set_index("variant")
    rows = accuracies(scores)
    rows = rows.assign(column=_task_labels(rows))
    table = 100 * rows.pivot(index="variant", columns="column", values="value")
    table = table.loc[averages.index, [*dict.fromkeys(rows["column"])]]
    table["Avg. score"] = 100 * averages["average"]
    table["Avg. recovery (%)"] = 100 * averages["recovery"]
    table.columns.name = None
    return _described(table, variants)


def summary_table(
    scores: pd.DataFrame,
    groups: Mapping[str, Sequence[str]],
    *,
    similarities: pd.DataFrame | None = None,
    intervals: bool = False,
) -> pd.DataFrame:
    """Return one row a variant and one column a group of tasks: the mean score, as measured.

    Args:
        scores: rows of ``evaluate`` with a column ``variant``.
        groups: column name -> its tasks, such as ``{"reasoning": ["demo_math"]}``. The tasks of a group must
            share a unit, so no accuracies together with perplexities.
        similarities: frame ``variant, similarity``, one row a response (to the base's); adds ``similarity``.
        intervals: give ``value ± half of the 95 % interval`` as text instead of numbers.

    Returns:
        ``variant``, the groups, and ``similarity`` (NaN for a variant without responses, such as the base).

    Raises:
        ValueError: for missing columns, a variant that lacks a task of a group, or a group of mixed units.

    >>> rows = [("base", "mmlu", "acc", 0.6), ("base", "race", "acc", 0.4)]
    >>> scores = pd.DataFrame(rows, columns=["variant", "task", "metric", "value"])
    >>> summary_table(scores, {"knowledge": ["mmlu"], "language": ["race"]}).to_dict("records")
    [{'variant': 'base', 'knowledge': 0.6, 'language': 0.4}]
    """
    rows = headline(checked(scores, ["variant", "task", "metric", "value"], "scores"))
    names = [*dict.fromkeys(rows["variant"])]
    values, halves = pd.DataFrame(index=names), pd.DataFrame(index=names)
    for group, tasks in groups.items():
        picked = rows[rows["task"].isin(tasks)]
        _check_group(group, list(tasks), picked, names)
        values[group] = picked.groupby("variant")["value"].mean()
        halves[group] = _half_intervals(picked)
    if similarities is not None:
        known = checked(similarities, ["variant", "similarity"], "similarities").dropna(subset="similarity")
        of_variant = known.groupby("variant")["similarity"]
        values["similarity"] = of_variant.mean()
        halves["similarity"] = of_variant.agg(lambda these: -np.subtract(*bootstrap_interval(these)) / 2)
    table = values.combine(halves, _with_half)[list(values)] if intervals else values
    return table.rename_axis("variant").reset_index()


def training_table(log: pd.DataFrame) -> pd.DataFrame:
    """Return how each training went: steps, tokens, seconds, tokens a second, and where its loss ended.

    Args:
        log: rows of ``heal``'s log with a column ``variant``.

    Returns:
        Frame variant, steps, tokens, seconds, tokens/s, final loss (mean over the last tenth of the steps).

    >>> rows = {"variant": "sft", "step": [1, 2], "tokens": [5, 9], "seconds": [1.0, 2.0], "loss": [2.0, 1.0]}
    >>> training_table(pd.DataFrame(rows)).to_dict("records")[0]["final loss"]
    1.0
    """
    runs = log.groupby("variant", sort=False)
    table = runs.agg(steps=("step", "max"), tokens=("tokens", "max"), seconds=("seconds", "max"))
    table["tokens/s"] = table["tokens"] / table["seconds"]
    table["final loss"] = runs["loss"].agg(lambda loss: loss.tail(max(1, len(loss) // 10)).mean())
    return table.reset_index()


def calibration_table(ablation: pd.DataFrame) -> pd.DataFrame:
    """Return the frame of ``calibration_ablation`` as SDD table 7 prints it, ready for ``to_latex``.

    Raises:
        ValueError: for missing columns.

    >>> row = {"size": 2, "removed": "24-25", "calibration": "C4", "distance": 0.1}
    >>> list(calibration_table(pd.DataFrame([row])))
    ['Block size', 'Removed layers', 'Dataset', 'Score (avg. dist.)']
    """
    frame = checked(ablation, ["size", "removed", "calibration", "distance"], "ablation")
    names = {"size": "Block size", "removed": "Removed layers", "calibration": "Dataset"}
    names["distance"] = "Score (avg. dist.)"
    return frame[[*names]].rename(columns=names)


def _task_labels(rows: pd.DataFrame) -> list[str]:
    if "n_shot" not in rows:
        return [str(task) for task in rows["task"]]
    return [f"{task} ({shots}-shot)" for task, shots in zip(rows["task"], rows["n_shot"], strict=True)]


def _described(table: pd.DataFrame, variants: pd.DataFrame | None) -> pd.DataFrame:
    if variants is None:
        return table.reset_index()
    notes = checked(variants, ["variant"], "variants")
    if sorted(notes["variant"]) != sorted(table.index):
        raise ValueError(
            f"variants must name each scored variant once: {list(table.index)}, got {list(notes['variant'])}"
        )
    return notes.merge(table, on="variant", validate="one_to_one").drop(columns="variant")


def _check_group(group: str, tasks: list[str], picked: pd.DataFrame, names: list[Any]) -> None:
    for name in names:
        there = list(picked.loc[picked["variant"] == name, "task"])
        if sorted(there) != sorted(tasks):
            raise ValueError(
                f"group {group!r} needs one score of each of {tasks}; variant {name!r} has {there}"
            )
    if "higher_is_better" in picked and picked["higher_is_better"].nunique() > 1:
        raise ValueError(f"group {group!r} must hold tasks of one unit, got {sorted(set(picked['metric']))}")


def _half_intervals(picked: pd.DataFrame) -> pd.Series:
    """Return half the 95 % interval of each variant's mean over tasks; tasks err independently."""
    if "stderr" not in picked:
        return pd.Series(np.nan, index=picked["variant"].unique())
    found = score_intervals(picked)
    halves = ((found["high"] - found["low"]) / 2).groupby(found["variant"])
    return halves.agg(lambda these: np.sqrt((these.to_numpy() ** 2).sum()) / len(these))


def _with_half(values: pd.Series, halves: pd.Series) -> pd.Series:
    texts = [
        "–" if np.isnan(value) else f"{value:.3f}" if np.isnan(half) else f"{value:.3f} ± {half:.3f}"
        for value, half in zip(values, halves, strict=True)
    ]
    return pd.Series(texts, index=values.index)


def variant_notes(
    variants: Iterable[Variant],
    parameters: Mapping[str, Any],
    *,
    methods: Mapping[str, str] | None = None,
    datasets: Mapping[str, str] | None = None,
) -> pd.DataFrame:
    """Say of each variant what SDD table 8 prints before its scores.

    Args:
        variants: of a run, such as ``run.variants()``; any number of block sizes.
        parameters: ``parameter_counts(model)`` of the whole model.
        methods: variant -> how it was fine-tuned; a variant that is not named goes by its name, one without
            an adapter by "No FT".
        datasets: variant -> the data it was healed on; "" where not named.

    Returns:
        variant, size (layers removed), saved (share of the parameters), left (parameters), method, dataset.

    Raises:
        ValueError: for a variant with layers that the model does not have.

    >>> cut = Variant("cut", "model", removed=(3, 4))
    >>> notes = variant_notes([cut], {"total": 1000, "layers": [50] * 8})
    >>> notes[["size", "saved", "left"]].to_dict("records")
    [{'size': 2, 'saved': 0.1, 'left': 900}]
    """
    each, total = list(parameters["layers"]), parameters["total"]
    rows = []
    for variant in variants:
        name, removed = variant.name, variant.removed
        if any(layer >= len(each) for layer in removed):
            model = f"parameters are of a model of {len(each)} layers"
            raise ValueError(f"variant {name!r} removes layer {max(removed)}, but {model}")
        gone = sum(each[layer] for layer in removed)
        method = (methods or {}).get(name, name if variant.adapter else "No FT")
        rows.append((name, len(removed), gone / total, total - gone, method, (datasets or {}).get(name, "")))
    return pd.DataFrame(rows, columns=_NOTES)


def sdd_table(scores: pd.DataFrame, notes: pd.DataFrame, *, base: str = "base") -> pd.DataFrame:
    """Return SDD table 8: block size, savings, method, data set, scores, their average, its recovery.

    Args:
        scores: rows of ``evaluate`` with a column ``variant``.
        notes: of ``variant_notes``: ``variant, size, saved, left, method, dataset``.
        base: the unpruned variant.

    Returns:
        Prune block size ("Baseline" for the base), Model savings, Fine-tuning method, Dataset, a column a
        task (percent), Avg. score, Avg. recovery (%); smaller blocks first. ``to_latex(table, group=2)``
        prints it as the paper does.

    Raises:
        ValueError: as ``recovery_table``.
    """
    notes = checked(notes, _NOTES, "notes")
    table = recovery_table(scores, notes, base=base).sort_values("size", kind="stable", ignore_index=True)
    sizes, saved = table["size"], table["saved"]
    left = table["left"].map(_billions)
    front = {
        "Prune block size": sizes.astype(str).where(sizes > 0, "Baseline"),
        "Model savings": (saved.map("{:.2%}".format) + " (" + left + ")").where(sizes > 0, "-"),
        "Fine-tuning method": table["method"],
        "Dataset": table["dataset"],
    }
    return pd.concat([pd.DataFrame(front), table.drop(columns=_NOTES[1:])], axis=1)


def _billions(parameters: int) -> str:
    """Return a number of parameters as the papers print it."""
    for size, letter in ((1e9, "B"), (1e6, "M")):
        if parameters >= size:
            return f"{parameters / size:.2f}{letter}"
    return f"{parameters:.0f}"

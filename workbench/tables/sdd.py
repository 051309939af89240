"""The tables of SDD: recovery, table 7 (calibration sets), table 8 (scores by block size and method)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from workbench.checks import checked
from workbench.evaluation.recovery import average_recovery
from workbench.evaluation.scores import Prefer, accuracies, both_matches
from workbench.runs.variant import Variant
from workbench.tables.markup import WORDS, task_label

#: the column of an interval
INTERVAL = "95 % interval"
#: what SDD table 8 says of a variant
_NOTES = ["variant", "size", "saved", "left", "method", "dataset"]


def recovery_table(
    scores: pd.DataFrame,
    variants: pd.DataFrame | None = None,
    *,
    base: str = "base",
    items: pd.DataFrame | None = None,
    limit: int | float | None = None,
    prefer: Prefer = None,
) -> pd.DataFrame:
    """Return one row a variant: its scores, their average, its share of the base's (SDD table 8).

    Args:
        scores: rows of ``evaluate`` with a column ``variant``. Only tasks where higher is better enter, one
            metric a task; shares are printed as percentages. Where exact matches are counted strictly and
            flexibly, both are printed; the first of the two enters the average.
        variants: what else to print of a variant: ``variant`` and any columns, such as ``block size``,
            ``model savings``, ``method``, ``dataset``, in the order wanted.
        base: the unpruned variant, to which recovery is relative.
        items: the items behind the scores, with ``variant`` (``Evaluated.items``): adds the interval of the
            recovery, as ``average_recovery`` gives it.
        limit: what ``evaluate`` was given, where only the first items of each task were asked: the heads of
            the tasks say so. None takes ``scores.attrs["limit"]`` where it is there.
        prefer: as for ``headline``.

    Returns:
        Columns: ``variant`` (or those of ``variants``), a column a task (``task (n-shot)``), ``Avg. score``,
        ``Avg. recovery (%)``; with ``items`` ``95 % interval`` (text); where the scores say how many items
        there are, ``Items``. Numbers in percent, variants in the order of the scores. ``attrs["note"]`` says
        in words what was averaged.

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
    limit = scores.attrs.get("limit") if limit is None else limit
    averages = average_recovery(scores, base, items=items, prefer=prefer).set_index("variant")
    rows = accuracies(scores, prefer=prefer)
    shown = _with_both_matches(rows, both_matches(scores))
    shown = shown.assign(column=_task_labels(shown, limit))
    table = 100 * shown.pivot(index="variant", columns="column", values="value")
    table = table.loc[averages.index, [*dict.fromkeys(shown["column"])]]
    table["Avg. score"] = 100 * averages["average"]
    table["Avg. recovery (%)"] = 100 * averages["recovery"]
    if items is not None:
        ends = 100 * averages[["ci_low", "ci_high"]]
        table[INTERVAL] = [_range(*pair) for pair in ends.itertuples(index=False, name=None)]
    if "n" in averages:
        table["Items"] = averages["n"]
    table.columns.name = None
    table = _described(table, variants)
    table.attrs |= {"digits": 2, "note": _recovery_note(averages, limit, items is not None)}
    return table


def _with_both_matches(rows: pd.DataFrame, matches: pd.DataFrame) -> pd.DataFrame:
    """Return the rows with the other exact match of a task directly after the one that stands for it."""
    others = matches[~_keys(matches).isin(_keys(rows)) & matches["task"].isin(rows["task"])]
    both = pd.concat([rows, others]).assign(filter="")
    several = both["task"].isin(others["task"])
    both.loc[several, "filter"] = both.loc[several, "metric"].str.split(",").str[-1].str.split("-").str[0]
    places = {task: place for place, task in enumerate(dict.fromkeys(rows["task"]))}
    return both.sort_values("task", key=lambda tasks: tasks.map(places), kind="stable")


def _keys(rows: pd.DataFrame) -> pd.Series:
    return rows["task"].astype(str) + "\n" + rows["metric"]


def _task_labels(rows: pd.DataFrame, limit: int | float | None) -> list[str]:
    """Return each task with its shots, which match it counts, and how many of its items were asked."""
    shots = rows["n_shot"].map("{}-shot".format) if "n_shot" in rows else [""] * len(rows)
    told = zip(rows["task"], shots, rows["filter"], strict=True)
    few = _first_items(limit)
    about = [(task, ", ".join(filter(None, (shot, match, few)))) for task, shot, match in told]
    return [f"{task} ({words})" if words else str(task) for task, words in about]


def _first_items(limit: int | float | None) -> str:
    if limit is None:
        return ""
    return f"first {limit:g}" if limit >= 1 else f"first {100 * limit:g} %"


def _range(low: float, high: float) -> str:
    return "–" if np.isnan(low) else f"{low:.1f} to {high:.1f}"


def _recovery_note(averages: pd.DataFrame, limit: int | float | None, intervals: bool) -> str:
    """Say what an average recovery is over, and what its interval means."""
    tasks, parts = averages["n_tasks"].iloc[0], []
    items = f" ({averages['n'].iloc[0]:,.0f} items)" if "n" in averages else ""
    parts.append(f"Averages over {tasks} {'task' if tasks == 1 else 'tasks'}{items}, each task alike.")
    if limit is not None:
        parts.append(f"Not the whole tasks: {_first_items(limit)} items of each (limit={limit:g}).")
    if intervals:
        parts.append("Intervals: 95 %, paired over items; none where fewer than 5 items turned.")
    return " ".join(parts)


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


def _described(table: pd.DataFrame, variants: pd.DataFrame | None) -> pd.DataFrame:
    if variants is None:
        return table.reset_index()
    notes = checked(variants, ["variant"], "variants")
    if sorted(notes["variant"]) != sorted(table.index):
        raise ValueError(f"variants must name each of {list(table.index)} once, got {list(notes['variant'])}")
    return notes.merge(table, on="variant", validate="one_to_one").drop(columns="variant")


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
        methods: variant -> how it was fine-tuned; a variant that is not named goes by the end of its name
            ("pruned-sft": "SFT"), one without an adapter by "No FT".
        datasets: variant -> the data it was healed on; where not named, what its note says ("... on
            reference"), or "".

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
            raise ValueError(f"parameters are of {len(each)} layers, variant {name!r} removes {max(removed)}")
        gone = sum(each[layer] for layer in removed)
        method = (methods or {}).get(name, _method(name) if variant.adapter else "No FT")
        data = (datasets or {}).get(name, healed_on(variant))
        rows.append((name, len(removed), gone / total, total - gone, method, data))
    return pd.DataFrame(rows, columns=_NOTES)


def healed_on(variant: Variant) -> str:
    """Return in words which responses a variant was trained on, by its note; "" where that does not say.

    >>> healed_on(Variant("healed", "model", note="sdd preset on response"))
    'own rewrites'
    """
    return str(WORDS["datasets"].get(variant.note.rpartition(" on ")[2], ""))


def _method(name: str) -> str:
    """Return in words how a variant was healed, by its name."""
    known = [word for word in WORDS["methods"] if re.search(rf"(?:^|[-_.+]){word}(?:$|[-_.+])", name.lower())]
    return str(WORDS["methods"][max(known, key=len)]) if known else name


def sdd_table(
    scores: pd.DataFrame,
    notes: pd.DataFrame,
    *,
    base: str = "base",
    items: pd.DataFrame | None = None,
    limit: int | float | None = None,
    prefer: Prefer = None,
    narrow: bool = False,
) -> pd.DataFrame:
    """Return SDD table 8: block size, savings, method, data set, scores, their average, its recovery.

    Args:
        scores: rows of ``evaluate`` with a column ``variant``.
        notes: of ``variant_notes``: ``variant, size, saved, left, method, dataset``.
        base: the unpruned variant.
        items: as for ``recovery_table``: adds the interval of the recovery.
        limit: as for ``recovery_table``.
        prefer: as for ``headline``.
        narrow: what decides first, for a screen or a column of a page: block, savings in percent, method with
            its data set, recovery with its interval, average score, then the tasks under their short names.

    Returns:
        Prune block size ("Baseline" for the base), Model savings, Fine-tuning method, Dataset, a column a
        task (percent), Avg. score, Avg. recovery (%), and what ``recovery_table`` adds; smaller blocks first.
        ``to_latex(table, group=2, best=["Avg. recovery (%)"])`` prints it as the paper does.

    Raises:
        ValueError: as ``recovery_table``.
    """
    notes = checked(notes, _NOTES, "notes")
    whole = recovery_table(scores, notes, base=base, items=items, limit=limit, prefer=prefer)
    table = whole.sort_values("size", kind="stable", ignore_index=True)
    sizes, saved, left = table["size"], table["saved"], table["left"].map(_billions)
    front = {
        "Prune block size": sizes.astype(str).where(sizes > 0, "Baseline"),
        "Model savings": (saved.map("{:.2%}".format) + " (" + left + ")").where(sizes > 0, "-"),
        "Fine-tuning method": table["method"],
        "Dataset": table["dataset"],
    }
    found = pd.concat([pd.DataFrame(front), table.drop(columns=_NOTES[1:])], axis=1)
    found = _narrowed(found, saved) if narrow else found
    found.attrs = dict(whole.attrs)
    return found


def _narrowed(table: pd.DataFrame, saved: pd.Series) -> pd.DataFrame:
    """Return SDD table 8 with the columns that decide in front."""
    recovery = table["Avg. recovery (%)"].map("{:.1f}".format)
    if INTERVAL in table:
        told = " (" + table[INTERVAL] + ")"
        recovery += told.where(table[INTERVAL] != "–", "")
    data = (" (" + table["Dataset"] + ")").where(table["Dataset"] != "", "")
    front = {
        "Block": table["Prune block size"],
        "Saved": saved.map("{:.1%}".format).where(saved > 0, "-"),
        "Method": table["Fine-tuning method"] + data,
        "Recovery (%)": recovery,
        "Avg. score": table["Avg. score"],
    }
    last = list(table).index("Avg. score")
    return pd.concat([pd.DataFrame(front), table.iloc[:, 4:last].rename(columns=_short)], axis=1)


def _short(label: str) -> str:
    """Return a task's label with what the papers call the task, and without its shots."""
    task, _, rest = label.partition(" (")
    about = [word for word in rest.rstrip(")").split(", ") if word and not word.endswith("-shot")]
    return task_label(task) + (f" ({', '.join(about)})" if about else "")


def _billions(parameters: int) -> str:
    """Return a number of parameters as the papers print it."""
    for size, letter in ((1e9, "B"), (1e6, "M")):
        if parameters >= size:
            return f"{parameters / size:.2f}{letter}"
    return f"{parameters:.0f}"

"""The papers' own result tables as calls: SDD table 8, ITR tables 1 and 2. Frames in, a frame out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import pandas as pd

from workbench.figures import checked
from workbench.outcomes import CATEGORY_ORDER
from workbench.tables import recovery_table

if TYPE_CHECKING:
    from workbench.runs import Variant

#: what the papers call the tasks
_TASK_NAMES = {
    "arc_challenge": "ARC-C",
    "arc_easy": "ARC-E",
    "blimp": "BLiMP",
    "boolq": "BoolQ",
    "copa": "COPA",
    "gsm8k": "GSM8k",
    "hellaswag": "HellaSwag",
    "mmlu": "MMLU",
    "piqa": "PIQA",
    "race": "RACE",
    "winogrande": "Winogrande",
    "wikitext": "Wiki",
}
#: ITR reports accuracy for every task but the perplexity, also where the leaderboard takes acc_norm
_ACCURACY = ("acc", "exact_match", "exact_match,strict-match", "acc_norm")


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
    """
    each, total = list(parameters["layers"]), parameters["total"]
    rows = []
    for variant in variants:
        if any(layer >= len(each) for layer in variant.removed):
            raise ValueError(
                f"variant {variant.name!r} removes layer {max(variant.removed)}, but parameters are of a "
                f"model of {len(each)} layers"
            )
        gone = sum(each[layer] for layer in variant.removed)
        usual = variant.name if variant.adapter else "No FT"
        rows.append(
            {
                "variant": variant.name,
                "size": len(variant.removed),
                "saved": gone / total,
                "left": total - gone,
                "method": (methods or {}).get(variant.name, usual),
                "dataset": (datasets or {}).get(variant.name, ""),
            }
        )
    return pd.DataFrame(rows)


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
    notes = checked(notes, ["variant", "size", "saved", "left", "method", "dataset"], "notes")
    table = recovery_table(scores, notes, base=base)
    order = notes.merge(table.assign(row=range(len(table))), how="left").sort_values("size", kind="stable")
    table = table.loc[order["row"].tolist()].reset_index(drop=True)
    sizes = ["Baseline" if not size else str(size) for size in table["size"]]
    saved = [
        "-" if not size else f"{share:.2%} ({_billions(left)})"
        for size, share, left in zip(table["size"], table["saved"], table["left"], strict=True)
    ]
    front = {
        "Prune block size": sizes,
        "Model savings": saved,
        "Fine-tuning method": table["method"],
        "Dataset": table["dataset"],
    }
    rest = table.drop(columns=["size", "saved", "left", "method", "dataset"])
    return pd.concat([pd.DataFrame(front), rest], axis=1)


def iterabre_table(scores: pd.DataFrame, notes: pd.DataFrame) -> pd.DataFrame:
    """Return ITR table 1: perplexity and accuracies (percent) by category, a row a model and approach.

    Args:
        scores: rows of ``evaluate`` with a column ``variant``: tasks with a ``category``, and at most one
            word-level perplexity.
        notes: ``variant``, ``model``, ``approach``, ``layers`` (how many it has).

    Returns:
        Columns in two levels, for ``to_latex`` and ``to_html``: Model, Approach, #L and Wiki ↓ stand alone;
        the others are under Reasoning, Language, Knowledge, Multilingual, Other. Rows as in ``notes``.

    Raises:
        ValueError: for missing columns, a variant that is not scored, or one that lacks a task.
    """
    notes = checked(notes, ["variant", "model", "approach", "layers"], "notes")
    table, categories = _in_percent(scores, list(notes["variant"]))
    front = {"Model": notes["model"], "Approach": notes["approach"], "#L": notes["layers"]}
    columns = {("", name): list(values) for name, values in front.items()}
    for category in (None, *CATEGORY_ORDER, "other"):
        for task in (task for task in table if categories[task] == category):
            head = "Wiki ↓" if category is None else _TASK_NAMES.get(task, task)
            columns[((category or "").capitalize(), head)] = table[task].tolist()
    return pd.DataFrame(columns)


def direct_iterative_table(
    scores: pd.DataFrame,
    notes: pd.DataFrame,
    *,
    direct: str = "Direct+R",
    iterative: str = "Iterative+R",
) -> pd.DataFrame:
    """Return ITR table 2: direct against iterative removal with the difference of each pair.

    Args:
        scores: rows of ``evaluate`` with a column ``variant``.
        notes: ``variant``, ``model``, ``approach`` (``direct`` or ``iterative``), ``dropped`` (layers).
        direct: what ``approach`` says of the direct variants.
        iterative: what it says of the iterative ones.

    Returns:
        Model, Approach, #Dropped layers, Wiki ↓, the tasks (percent), Avg diff: for each model and number of
        dropped layers the two rows and their "Diff", positive where the iterative one is better (the lower
        perplexity, the higher accuracy). Avg diff is over accuracies, in the row of Diff. The last row is the
        average of each column's differences.

    Raises:
        ValueError: for missing columns, a pair that is not complete, or a variant that lacks a task.
    """
    notes = checked(notes, ["variant", "model", "approach", "dropped"], "notes")
    table, categories = _in_percent(scores, list(notes["variant"]))
    signs = pd.Series({task: 1 if categories[task] else -1 for task in table})
    rows, differences = [], []
    for (model, dropped), part in notes.groupby(["model", "dropped"], sort=False):
        pair = part.set_index("approach")["variant"]
        if sorted(part["approach"]) != sorted([direct, iterative]):
            raise ValueError(
                f"notes must hold one {direct!r} and one {iterative!r} of {model!r} with {dropped} dropped, "
                f"got {list(part['approach'])}"
            )
        difference = signs * (table.loc[pair[iterative]] - table.loc[pair[direct]])
        differences.append(difference)
        about = {"Model": model, "#Dropped layers": dropped}
        rows += [{**about, "Approach": name, **table.loc[pair[name]]} for name in (direct, iterative)]
        mean = difference[signs > 0].mean()
        rows.append({**about, "Approach": "Diff", **difference, "Avg diff": mean})
    rows.append({"Model": "Tasks avg diff", "Approach": "", **pd.DataFrame(differences).mean()})
    frame = pd.DataFrame(rows)
    frame["#Dropped layers"] = frame["#Dropped layers"].astype("Int64")
    frame = frame[["Model", "Approach", "#Dropped layers", *table, "Avg diff"]]
    return frame.rename(
        columns={task: "Wiki ↓" if not categories[task] else _TASK_NAMES.get(task, task) for task in table}
    )


def _in_percent(scores: pd.DataFrame, names: list[Any]) -> tuple[pd.DataFrame, dict[str, str | None]]:
    """Return variants x tasks and each task's category, None for the perplexity, which comes first."""
    frame = checked(scores, ["variant", "task", "metric", "value", "category"], "scores")
    if "parent" in frame:
        frame = frame[frame["parent"].fillna("") == ""]
    perplexities = frame[frame["metric"] == "word_perplexity"]
    accuracies = frame[frame["metric"].isin(_ACCURACY)]
    rank = accuracies["metric"].map(_ACCURACY.index)
    accuracies = accuracies[
        rank == rank.groupby([accuracies["variant"], accuracies["task"]]).transform("min")
    ]
    if perplexities["task"].nunique() > 1:
        raise ValueError(f"scores must hold one perplexity, got {sorted(set(perplexities['task']))}")
    rows = pd.concat([perplexities, accuracies.assign(value=100 * accuracies["value"])])
    categories: dict[str, str | None] = dict.fromkeys(perplexities["task"])
    named = accuracies["category"].replace("", "other")
    categories |= dict(zip(accuracies["task"], named, strict=True))
    if rows.duplicated(["variant", "task"]).any():
        twice = rows[rows.duplicated(["variant", "task"])].iloc[0]
        raise ValueError(f"scores must hold one of each, got two of {twice['variant']!r}, {twice['task']!r}")
    table = rows.pivot(index="variant", columns="task", values="value").reindex(names)[[*categories]]
    if table.isna().any(axis=None):
        name = table.index[table.isna().any(axis=1)][0]
        missing = [task for task in table if pd.isna(table.loc[name, task])]
        raise ValueError(f"every variant must be scored on the same tasks; {name!r} lacks {missing}")
    return table, categories


def _billions(parameters: int) -> str:
    """Return a number of parameters as the papers print it."""
    for size, letter in ((1e9, "B"), (1e6, "M")):
        if parameters >= size:
            return f"{parameters / size:.2f}{letter}"
    return f"{parameters:.0f}"

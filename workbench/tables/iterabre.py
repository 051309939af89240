"""Tables 1 to 3 of IteRABRe: scores by category, direct against iterative removal, multilingual."""

from __future__ import annotations

from typing import Any

import pandas as pd

from workbench.checks import checked, one_of
from workbench.evaluation.scores import CATEGORY_ORDER, Prefer, headline, named_categories, score_table
from workbench.evaluation.suites import SUITES
from workbench.tables.markup import task_label


def iterabre_table(
    scores: pd.DataFrame, notes: pd.DataFrame, *, perplexity: str | None = None, prefer: Prefer = "acc"
) -> pd.DataFrame:
    """Return ITR table 1: perplexity and accuracies (percent) by category, a row a model and approach.

    Args:
        scores: rows of ``evaluate`` with a column ``variant``: tasks with a ``category``.
        notes: ``variant``, ``model``, ``approach``, ``layers`` (how many it has).
        perplexity: the task whose word-level perplexity is printed. None takes WikiText where it is there,
            else the only task that has one, texts that a loss was measured on (``perplexity``) last.
        prefer: as for ``category_scores``, which has the same default: ITR reports plain accuracy, also of
            tasks that the leaderboard, and ``recovery_table``, show by ``acc_norm``.

    Returns:
        Columns in two levels, for ``to_latex`` and ``to_html``: Model, Approach, #L and the perplexity
        ("Wiki ↓") stand alone; the others are under Reasoning, Language, Knowledge, Multilingual, Other, in
        the paper's order. Rows as in ``notes``.

    Raises:
        ValueError: for missing columns, a variant that is not scored or lacks a task, a task with two numbers
            of shots, several perplexities of which none is named.
    """
    notes = checked(notes, ["variant", "model", "approach", "layers"], "notes")
    table, categories = _in_percent(scores, list(notes["variant"]), perplexity, prefer)
    front = {"Model": notes["model"], "Approach": notes["approach"], "#L": notes["layers"]}
    columns = {("", name): list(values) for name, values in front.items()}
    for category in (None, *CATEGORY_ORDER, "other"):
        for task in (task for task in sorted(table, key=_place) if categories[task] == category):
            columns[((category or "").capitalize(), _head(task, category))] = table[task].tolist()
    found = pd.DataFrame(columns)
    found.attrs["digits"] = 2
    return found


def direct_iterative_table(
    scores: pd.DataFrame,
    notes: pd.DataFrame,
    *,
    direct: str = "Direct+R",
    iterative: str = "Iterative+R",
    perplexity: str | None = None,
    prefer: Prefer = "acc",
) -> pd.DataFrame:
    """Return ITR table 2: direct against iterative removal with the difference of each pair.

    Args:
        scores: rows of ``evaluate`` with a column ``variant``.
        notes: ``variant``, ``model``, ``approach`` (``direct`` or ``iterative``), ``dropped`` (layers).
        direct: what ``approach`` says of the direct variants.
        iterative: what it says of the iterative ones.
        perplexity: as for ``iterabre_table``.
        prefer: as for ``iterabre_table``.

    Returns:
        Model, Approach, #Dropped layers, Wiki ↓, the tasks (percent), Avg diff: for each model and number of
        dropped layers the two rows and their "Diff", positive where the iterative one is better (the lower
        perplexity, the higher accuracy). Avg diff is over accuracies, in the row of Diff. The last row is the
        average of each column's differences.

    Raises:
        ValueError: for missing columns, a pair that is not complete, or a variant that lacks a task.
    """
    notes = checked(notes, ["variant", "model", "approach", "dropped"], "notes")
    table, categories = _in_percent(scores, list(notes["variant"]), perplexity, prefer)
    signs = pd.Series({task: 1 if categories[task] else -1 for task in table})
    rows, differences = [], []
    for (model, dropped), part in notes.groupby(["model", "dropped"], sort=False):
        pair = part.set_index("approach")["variant"]
        if sorted(part["approach"]) != sorted([direct, iterative]):
            wanted = f"one {direct!r} and one {iterative!r} of {model!r} with {dropped} dropped"
            raise ValueError(f"notes must hold {wanted}, got {list(part['approach'])}")
        difference = signs * (table.loc[pair[iterative]] - table.loc[pair[direct]])
        differences.append(difference)
        about = {"Model": model, "#Dropped layers": dropped}
        rows += [{**about, "Approach": name, **table.loc[pair[name]]} for name in (direct, iterative)]
        rows.append({**about, "Approach": "Diff", **difference, "Avg diff": difference[signs > 0].mean()})
    rows.append({"Model": "Tasks avg diff", "Approach": "", **pd.DataFrame(differences).mean()})
    columns = ["Model", "Approach", "#Dropped layers", *table, "Avg diff"]
    frame = pd.DataFrame(rows, columns=columns).astype({"#Dropped layers": "Int64"})
    frame = frame.rename(columns={task: _head(task, categories[task]) for task in table})
    frame.attrs["digits"] = 2
    return frame


def multilingual_table(scores: pd.DataFrame, notes: pd.DataFrame, *, prefer: Prefer = "acc") -> pd.DataFrame:
    """Return ITR table 3: accuracies (percent) on multilingual tasks, a row a model and approach.

    Args:
        scores: rows of ``evaluate`` with a column ``variant``; tasks of the category ``multilingual``, and
            where the harness gives them their languages.
        notes: as for ``iterabre_table``.
        prefer: as for ``iterabre_table``.

    Returns:
        Model, Approach, L, a column a task.

    Raises:
        ValueError: for missing columns, no multilingual task, or a variant that lacks one.
    """
    notes = checked(notes, ["variant", "model", "approach", "layers"], "notes")
    frame = checked(scores, ["variant", "task", "metric", "value", "category"], "scores")
    frame = checked(frame[frame["category"] == "multilingual"], ["task"], "scores of multilingual tasks")
    table, _ = _in_percent(frame, list(notes["variant"]), None, prefer)
    front = {"Model": notes["model"], "Approach": notes["approach"], "L": notes["layers"]}
    columns = {name: list(values) for name, values in front.items()}
    found = pd.DataFrame(columns | {_head(task, "multilingual"): table[task].tolist() for task in table})
    found.attrs["digits"] = 2
    return found


def _place(task: str) -> int:
    """Return where the paper prints a task; those that it does not print follow as they came."""
    printed = [name for name, _ in SUITES["iterabre"].tasks]
    return printed.index(task) if task in printed else len(printed)


def _head(task: str, category: str | None) -> str:
    """Return what the papers call a task; the one without a category is the perplexity."""
    return task_label(str(task)) + (" ↓" if category is None else "")


def _in_percent(
    scores: pd.DataFrame, names: list[Any], perplexity: str | None, prefer: Prefer
) -> tuple[pd.DataFrame, dict[str, str | None]]:
    """Return variants x tasks and each task's category, None for the perplexity, which comes first."""
    frame = checked(scores, ["variant", "task", "metric", "value", "category"], "scores")
    frame = frame[frame["variant"].isin(names)]
    rows = headline(frame, prefer=prefer)
    accuracies = rows[rows["metric"].str.match("acc|exact_match")]
    by_word = frame[frame["metric"] == "word_perplexity"]
    wanted = _chosen_perplexity(by_word, set(frame.loc[frame["metric"] == "loss", "task"]), perplexity)
    perplexities = by_word[by_word["task"] == wanted]
    shares = accuracies.assign(value=100 * accuracies["value"])
    table = score_table(pd.concat([perplexities, shares]), ["task"])
    for name in names:
        one_of(name, table.index, "variant of notes")
    kinds = named_categories(accuracies)
    categories = dict.fromkeys(perplexities["task"]) | dict(zip(accuracies["task"], kinds, strict=True))
    return table.loc[names], categories


def _chosen_perplexity(by_word: pd.DataFrame, texts: set[str], asked: str | None) -> str | None:
    """Return the task whose perplexity is printed, None where there is none."""
    there = list(dict.fromkeys(by_word["task"]))
    if asked is not None:
        return str(one_of(asked, there, "perplexity"))
    tasks = [task for task in there if task not in texts] or there
    if "wikitext" in there or not there:
        return "wikitext" if there else None
    if len(tasks) > 1:
        raise ValueError(f"perplexity must be given where scores hold several: one of {', '.join(there)}")
    return str(tasks[0])

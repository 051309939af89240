"""The tables of a run for a paper, from its frames, and the names of variants that a reader understands."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import pandas as pd

from workbench.distances.blocks import best_blocks, checked_blocks, format_layers, least
from workbench.evaluation.scores import accuracies, score_intervals, task_categories, task_names
from workbench.forgetting.similarity import similarity_summary
from workbench.places import toml_beside
from workbench.runs.run import Run
from workbench.tables.layouts import summary_table, training_table, with_ends
from workbench.tables.markup import WORDS, task_label, to_html, to_latex, to_markdown
from workbench.tables.sdd import _method, healed_on, sdd_table

#: how many digits wide a table may be in \small: in one column, in both; what is wider is set smaller
_ONE, _BOTH = 46, 104
_SIZES = {_BOTH: r"\small", 117: r"\footnotesize", 10**9: r"\scriptsize"}
#: signs half as wide as a digit
_NARROW = set(" .,:;()[]ijlt'|!")


@dataclass(frozen=True)
class Sheet:
    """One table of a paper.

    Attributes:
        name: of its files, without ending.
        needs: the frames of the run that it is made from; a ``*`` stands for any name.
        caption: what it shows.
        best: columns whose best value is bold, within each group.
        group: the first columns whose values are printed where they change.
        value: the column of the first of those frames without which there is nothing to print.
        nothing: why there may be no row.
    """

    name: str
    needs: list[str]
    caption: str
    value: str
    best: tuple[str, ...] = ()
    group: int = 0
    nothing: str = "no row is left to print"

    def forms(self, run: Run) -> dict[str, str]:
        """Return the table as the content of its files, by their endings.

        Raises:
            ValueError: where the frames hold nothing to print.
        """
        first = matching(run, self.needs[0])
        if not any(run.read(name)[self.value].notna().any() for name in first):
            raise ValueError(f"{self.value} in {first[0]} is NaN throughout")
        table = _MADE[self.name](run)
        if table.empty:
            raise ValueError(self.nothing)
        html = to_html(table, caption=self.caption)
        return {"tex": self._latex(table), "md": to_markdown(table), "html": html}

    def _latex(self, table: pd.DataFrame) -> str:
        """Return the table for LaTeX, over both columns of a page where one is too narrow for it."""
        width = sum(max(_width(_shown(one)) for one in (name, *table[name])) + 2 for name in table)
        label = f"tab:{self.name}"
        text = to_latex(table, caption=self.caption, label=label, best=self.best, group=self.group)
        size = next(size for most, size in _SIZES.items() if width <= most)
        text = text.replace("\\centering\n", f"\\centering{size}\\setlength{{\\tabcolsep}}{{4pt}}\n", 1)
        return text if width <= _ONE else text.replace("{table}", "{table*}")


def _shown(value: object) -> str:
    return f"{value:.2f}" if isinstance(value, float) else str(value)


def _width(text: str) -> float:
    """Return how wide a text is, in digits."""
    return sum(0.55 if sign in _NARROW else 1 for sign in text)


def every_sheet() -> list[Sheet]:
    """Return the tables that there can be."""
    listed = toml_beside(__file__, "sheets")
    return [Sheet(name, **told) for name, told in listed.items()]


def sheets(run: Run) -> list[Sheet]:
    """Return the tables that the frames of a run allow."""
    return [sheet for sheet in every_sheet() if all(matching(run, need) for need in sheet.needs)]


def attempted(make: Callable[[Run], Any], needs: Iterable[str], run: Run) -> tuple[Any, str]:
    """Return what the frames of a run make, or None and in a line why it cannot be made of them."""
    try:
        for need in needs:
            frames = [name for name in matching(run, need) if name.endswith((".csv", ".jsonl"))]
            if frames and all(run.read(name).empty for name in frames):
                return None, f"{frames[0]} has no rows"
        return make(run), ""
    except ValueError as error:
        return None, " ".join(str(error).split())
    except Exception as error:  # one less, and said, is better than none of the others
        return None, f"{type(error).__name__}: {' '.join(str(error).split())}"


def matching(run: Run, pattern: str) -> list[str]:
    """Return the names of a run's results that a pattern fits; a ``*`` stands for any text."""
    return fnmatch.filter(run.files(), pattern)


def base_name(run: Run) -> str:
    """Return the name of the unpruned variant."""
    whole = (variant.name for variant in run.variants() if not variant.removed and not variant.adapter)
    name = next(whole, None)
    if name is None:
        raise ValueError(f"run {run.name!r} must hold the unpruned variant, got {run.variants()}")
    return name


def healing_logs(run: Run) -> pd.DataFrame:
    """Return the logs of the trainings of a run under each other."""
    files = [name for name in matching(run, "healing-*.csv") if "/" not in name]
    named = {name.removeprefix("healing-").removesuffix(".csv"): name for name in files}
    order = [variant.name for variant in run.variants() if variant.name in named]
    logs = {name: run.read(named[name]) for name in dict.fromkeys([*order, *named])}
    return readable(pd.concat(logs, names=["variant"]).reset_index("variant"))


def reader_name(variant: str) -> str:
    """Return a variant's name in words, where it says how it was healed, merged or cut; any other as it is.

    >>> reader_name("pruned-sft"), reader_name("pruned-self-distilled"), reader_name("base")
    ('pruned + SFT', 'pruned + self-distilled', 'base')
    >>> reader_name("merged-slerp-0.5"), reader_name("early-exit-24")
    ('merged, SLERP at 0.5', 'first 24 layers')
    """
    merged, cut = re.fullmatch(r"merged-(\w+)-([\d._]+)", variant), re.fullmatch(r"early-exit-(\d+)", variant)
    if merged and merged[1] in WORDS["merges"]:
        return f"merged, {WORDS['merges'][merged[1]]} at {merged[2].replace('_', ', ')}"
    if cut:
        return f"first {cut[1]} layers"
    for word in sorted(WORDS["methods"], key=len, reverse=True):
        before = variant[: -len(word)]
        if variant.lower().endswith(word) and before.rstrip("-_.+") not in ("", before):
            method = str(WORDS["methods"][word])
            return f"{before.rstrip('-_.+')} + {method if method.isupper() else method.lower()}"
    return variant


def readable(frame: pd.DataFrame) -> pd.DataFrame:
    """Return a frame whose variants have names that a reader understands; all keep theirs where two meet."""
    columns = [name for name in ("variant", "against", "series") if name in frame]
    names = {name: reader_name(str(name)) for column in columns for name in frame[column].unique()}
    if len(set(names.values())) < len(names):
        return frame
    return frame.assign(**{column: frame[column].map(names) for column in columns})


def _interval(
    rows: pd.DataFrame, value: str, digits: int, low: str = "ci_low", high: str = "ci_high"
) -> list[str]:
    """Return a column as value [low, high] of its 95 % interval, where it has one."""
    ends = rows.reindex(columns=[low, high]).astype(float)
    return [*with_ends(rows[value], ends[low], ends[high], digits)]


def _sdd(run: Run) -> pd.DataFrame:
    """Return SDD table 8, what decides first."""
    scores = run.read("scores.csv")
    told = "variant_notes.csv" in run.files()
    notes = run.read("variant_notes.csv") if told else _notes_without_a_model(run)
    notes = notes[notes["variant"].isin(scores["variant"])]
    table = sdd_table(scores, notes, base=base_name(run), items=run.read("items.jsonl"), narrow=True)
    table.attrs["digits"] = 1
    return table


def _notes_without_a_model(run: Run) -> pd.DataFrame:
    """Return ``variant_notes`` with the shares of the parameters that the picker knew."""
    selection = run.read_json("selection.json") if "selection.json" in run.files() else {"layers": []}
    seen = {one["removed"]: one.get("parameters_saved", 0.0) for one in selection.get("kept", [])}
    seen[format_layers(selection["layers"])] = selection.get("parameters_saved", 0.0)
    rows = []
    for variant in run.variants():
        saved = seen.get(format_layers(variant.removed), 0.0)
        method = _method(variant.name) if variant.adapter else "No FT"
        rows.append((variant.name, len(variant.removed), saved, 0, method, healed_on(variant)))
    return pd.DataFrame(rows, columns=["variant", "size", "saved", "left", "method", "dataset"])


def _results(run: Run) -> pd.DataFrame:
    return _sdd(run)[["Block", "Saved", "Method", "Recovery (%)", "Avg. score"]]


def _tasks(run: Run) -> pd.DataFrame:
    """Return a row a task, so that many tasks fit; a column a variant."""
    rows = score_intervals(accuracies(readable(run.read("scores.csv"))))
    rows = rows.assign(told=_interval(100 * rows[["value", "low", "high"]], "value", 1, "low", "high"))
    names, rows["task"] = rows["variant"].unique(), task_names(rows).map(task_label)
    table = rows.pivot(index="task", columns="variant", values="told").loc[rows["task"].unique(), names]
    return table.rename_axis(index="Task", columns=None).reset_index()


def _scores(run: Run) -> pd.DataFrame:
    scores = run.read("scores.csv")
    similarities = run.read("similarity.csv") if "similarity.csv" in run.files() else None
    table = summary_table(scores, task_categories(scores), similarities=similarities, intervals=True)
    return readable(table).rename(columns=lambda name: str(name).capitalize())


def _blocks(run: Run) -> pd.DataFrame:
    damage = checked_blocks(run.read("damage.csv"), "damage", "damage")
    sizes = set(run.read("distances.csv")["size"]) & set(damage["size"])
    best = best_blocks(run.read("distances.csv"), sorted(map(int, sizes)))
    of_nearest = best[["start", "size"]].merge(damage, on=["start", "size"], how="left")
    cheapest = best[["size"]].merge(least(damage, "damage"), on="size")
    columns = {"Size": best["size"], "Nearest": best["removed"], "Distance": _interval(best, "distance", 3)}
    columns |= {"Its damage": _interval(of_nearest, "damage", 3), "Least harmful": cheapest["removed"]}
    return pd.DataFrame({**columns, "Damage": _interval(cheapest, "damage", 3)})


def _training(run: Run) -> pd.DataFrame:
    table = training_table(healing_logs(run))
    return table.drop(columns=["seconds", "tokens/s"]).rename(columns=str.capitalize)


def _calibration(run: Run) -> pd.DataFrame:
    rows = run.read("calibration.csv")
    rows = rows.assign(told=[f"{row.removed} ({row.distance:.3f})" for row in rows.itertuples()])
    table = rows.pivot(index="size", columns="calibration", values="told")[[*rows["calibration"].unique()]]
    return table.rename_axis(columns=None).reset_index().rename(columns={"size": "Size"})


def _differences(run: Run) -> pd.DataFrame:
    rows = readable(run.read("comparisons.csv")).query("p_adjusted < 0.05")
    rows = rows[rows["metric"].str.match("acc|exact_match")]
    values = {"Variant": rows["variant"], "Against": rows["against"]}
    values |= {"Task": rows["task"].map(task_label), "Items": rows["n"]}
    percents = 100 * rows[["difference", "ci_low", "ci_high"]]
    values["Difference"] = _interval(percents, "difference", 1)
    values["p (Holm)"] = [f"{one:.3f}" if one >= 1e-3 else "< 0.001" for one in rows["p_adjusted"]]
    return pd.DataFrame(values)


def _similarity(run: Run) -> pd.DataFrame:
    rows = similarity_summary(readable(run.read("similarity.csv")))
    values = {"Variant": rows["variant"], "Mean similarity": _interval(rows, "mean", 3)}
    values |= {"Median": rows["median"], "Identical": rows["identical"].map("{:.0%}".format)}
    return pd.DataFrame({**values, "Responses": rows["n"].astype(int)})


#: table -> how it is made; ``sheets.toml`` says the rest of each
_MADE: dict[str, Callable[[Run], pd.DataFrame]] = {
    "results": _results,
    "tasks": _tasks,
    "scores": _scores,
    "blocks": _blocks,
    "calibration": _calibration,
    "training": _training,
    "differences": _differences,
    "similarity": _similarity,
}

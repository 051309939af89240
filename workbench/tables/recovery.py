"""What iterations of removal and recovery say, in a sentence or a few of Markdown."""

from __future__ import annotations

import pandas as pd

from workbench.checks import checked, one_of
from workbench.evaluation.scores import task_names
from workbench.tables.sentences import counted, escaped, named


def iteration_reading(iterations: pd.DataFrame) -> str:
    """Say which layers went in which order, and how alike the last state stayed.

    Args:
        iterations: of ``iterate``.

    Raises:
        ValueError: for missing columns, or no removal.

    >>> frame = pd.DataFrame({"phase": ["P", "P"], "layer": [7, 3], "similarity": [0.99, 0.9]})
    >>> iteration_reading(frame)
    'The layers went in the order **7, 3**; the similarity of the last state fell from 0.990 to 0.900.'
    """
    frame = checked(iterations, ["phase", "layer", "similarity"], "iterations")
    gone = checked(frame[frame["phase"] == "P"], ["layer"], "iterations of phase P")
    order = ", ".join(str(int(layer)) for layer in gone["layer"])
    first, last = gone["similarity"].iloc[0], gone["similarity"].iloc[-1]
    how = "fell" if last < first else "went"
    return (
        f"The layers went in the order **{order}**; the similarity of the last state {how} from {first:.3f} "
        f"to {last:.3f}."
    )


def recovery_gain_reading(changes: pd.DataFrame) -> str:
    """Say how often recovery won something back, and where it lost.

    Args:
        changes: of ``phase_change``: scores where more is better.

    Raises:
        ValueError: for missing columns, or no change by recovery.

    >>> frame = pd.DataFrame({"phase": ["P", "P+R"], "task": ["a", "a"], "change": [-0.2, 0.1]})
    >>> recovery_gain_reading(frame)
    'Pruning changed a score by -0.200 on average, recovery by +0.100; recovery gained in 1 of 1 case.'
    """
    frame = checked(changes, ["phase", "task", "change"], "changes")
    cut, back = (frame.loc[frame["phase"] == phase, "change"] for phase in ("P", "P+R"))
    checked(frame[frame["phase"] == "P+R"], ["change"], "changes of phase P+R")
    losing = (frame["phase"] == "P+R") & (frame["change"] < 0)
    lost = list(dict.fromkeys(task_names(frame)[losing]))
    where = f"; it lost somewhere in {named(lost)}" if lost else ""
    return (
        f"Pruning changed a score by {cut.mean():+.3f} on average, recovery by {back.mean():+.3f}; recovery "
        f"gained in {int((back > 0).sum())} of {counted(len(back), 'case')}{where}."
    )


def methods_reading(
    scores: pd.DataFrame, *, ours: str = "iterate", metric: str = "word_perplexity", by: str = "approach"
) -> str:
    """Say whether one approach has the lowest perplexity, against each other one, with its spread over seeds.

    Args:
        scores: ``metric, value`` and the approach of each, one row a seed; where it has ``layers``, an
            approach that kept another number of them than ours says so.
        ours: the approach that is compared with the others.
        metric: of the rows that count; lower is better.
        by: the column of approaches.

    Raises:
        ValueError: for missing columns, no such metric or approach.

    >>> frame = pd.DataFrame({"approach": ["iterate", "laco"], "value": [30, 80]})
    >>> frame = frame.assign(metric="word_perplexity")
    >>> methods_reading(frame)
    '**iterate** 30.00 (1 seed), lowest; laco 80.00 (1 seed).'
    """
    frame = checked(scores, [by, "metric", "value"], "scores")
    frame = checked(frame[frame["metric"] == metric], [by, "value"], f"scores with the metric {metric}")
    one_of(ours, dict.fromkeys(frame[by]), "ours")
    means = frame.groupby(by, sort=False)["value"].agg(["mean", "std", "count"]).sort_values("mean")
    told, other = {}, _other_layers(frame, ours, by)
    for name, row in means.iterrows():
        spread = "" if pd.isna(row["std"]) else f" ± {row['std']:.2f}"
        seeds = counted(int(row["count"]), "seed")
        told[name] = f"{escaped(name)} {row['mean']:.2f}{spread} ({seeds}{other.get(name, '')})"
    mine = told.pop(ours).replace(escaped(ours), named([ours]), 1)
    place = list(means.index).index(ours)
    rank = "lowest" if place == 0 else f"rank {place + 1} of {len(means)} from the lowest"
    return "; ".join([f"{mine}, {rank}", *told.values()]) + "."


def _other_layers(frame: pd.DataFrame, ours: str, by: str) -> dict[str, str]:
    """Return in words how many layers approaches kept, for those that kept another number than ours."""
    if "layers" not in frame:
        return {}
    kept = frame.groupby(by)["layers"].first()
    return {name: f", with {layers} layers" for name, layers in kept.items() if layers != kept[ours]}

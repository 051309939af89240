"""The frames of the parts of `findings.py` as those of a record: what its page needs, small."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

import workbench as wb
from workbench.evaluation.suites import CHANCE

Frames = dict[str, pd.DataFrame]
KEYS = ["data", "rows", "seed"]
TELLING = ["arc_easy", "hellaswag", "piqa", "blimp"]
BLIND = "deepest|shallowest|random"
PAIR = ("sft", "self-distilled")


def read_parts(parts: Iterable[Path], kind: str, name: str) -> pd.DataFrame:
    """Return a frame of all parts of a kind, one below the other; empty where none has it."""
    found = [
        pd.read_csv(file)
        for part in parts
        if part.name.startswith(kind)
        for file in sorted(part.glob(f"{name}.csv.gz"))
    ]
    return pd.concat(found, ignore_index=True) if found else pd.DataFrame()


def summed_up(parts: list[Path]) -> Frames:
    """Return the frames of a record: what the page needs, small enough to be committed."""
    plain = ("calibration", "damage", "influence", "removal", "agreement", "least_harmful")
    frames: Frames = {name: read_parts(parts, "distances", name) for name in plain}
    for name in ("distances", "stability"):
        frames[name] = read_parts(parts, "distances", f"{name}-*")
    frames["strategies"] = read_parts(parts, "strategies", "damage")
    scores, items = (read_parts(parts, "strategies", name) for name in ("scores", "items"))
    frames["strategy_scores"] = headline_scores(scores, ["variant", "size"])
    frames["strategy_items"] = pooled(items, ["size"], first="distance-0", tasks=TELLING)
    frames["blind"] = blind_choices(items)
    items = read_parts(parts, "healing", "items")
    base = read_parts(parts, "strategies-6", "items")
    frames["scores"] = headline_scores(read_parts(parts, "healing", "scores"), ["variant", *KEYS])
    if len(items):
        whole = with_reference(items, base)
        frames["healing_items"] = pooled(whole, KEYS, first="sft")
        above = above_chance(frames["strategy_scores"])
        frames["recovery"] = recovered(whole, above)
        frames["won_back"] = won_back(whole, above)
    for name in ("kept", "premise"):
        frames[name] = read_parts(parts, "healing", name)
    frames["training"] = trained(read_parts(parts, "healing", "training-*"))
    similarity = read_parts(parts, "healing", "similarity")
    groups = [*KEYS, "prompts"]
    if len(similarity):
        frames["similarity"] = means(similarity, [*groups, "variant"], ["similarity", "cut_off", "truncated"])
        frames["closeness"] = paired(similarity, groups, "similarity")
        frames["closeness_of_all"] = closeness_of_all(similarity)
    divergence = read_parts(parts, "healing", "divergence")
    if len(divergence):
        columns = ["kl", "same_choice", "agrees_for", "n_tokens"]
        frames["divergence"] = means(divergence, [*groups, "variant"], columns)
        frames["divergence_gap"] = paired(divergence, groups, "kl")
    changes = read_parts(parts, "healing", "changes")
    if len(changes):
        columns = ["length", "base_length", "same_form", "same_text", "finished"]
        changes["same_form"] = changes["form"] == changes["base_form"]
        frames["changes"] = means(changes, [*groups, "variant"], columns)
        frames["why"] = lengths_matched(similarity, changes)
    responses = read_parts(parts, "healing", "responses")
    if len(responses):
        frames["responses"] = responses.groupby([*KEYS, "variant", "prompts"]).head(1)
    return {name: frame for name, frame in frames.items() if len(frame)}


def headline_scores(scores: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    """Return one accuracy a task and variant, the one that papers report, with n and its standard error."""
    if scores.empty:
        return scores
    rows = scores[scores["parent"].isna()]
    wanted = rows.groupby("task")["metric"].transform(
        lambda names: "acc_norm" if names.iloc[0] and set(names) >= {"acc_norm"} else "acc"
    )
    only = rows["task"].isin(["arc_challenge", "hellaswag"])
    rows = rows[rows["metric"] == wanted.where(only, "acc")]
    return rows[[*keys, "task", "metric", "value", "stderr", "n"]].reset_index(drop=True)


def item_table(items: pd.DataFrame) -> pd.DataFrame:
    """Return one value an item, of the metric that stands for its task."""
    normed = items["task"].isin(["arc_challenge", "hellaswag"])
    rows = items[items["metric"] == np.where(normed, "acc_norm", "acc")].copy()
    group = rows["task"].str.extract(r"^(blimp|mmlu)", expand=False)
    rows["item"] = rows["task"] + ":" + rows["item"].astype(str)
    rows["task"] = group.fillna(rows["task"])
    return rows


def by_variant(rows: pd.DataFrame, name: str = "variant") -> pd.DataFrame:
    """Return a column of values for each variant, a row an item of a task."""
    return rows.pivot(index=["task", "item"], columns=name, values="value")


def pooled(
    items: pd.DataFrame, keys: list[str], *, first: str, tasks: list[str] | None = None
) -> pd.DataFrame:
    """Compare every variant with one of them on the same items, each task and the mean over tasks."""
    if items.empty:
        return items
    rows = item_table(items)
    rows = rows[rows["task"].isin(tasks)] if tasks else rows
    found = []
    for group, part in rows.groupby(keys):
        wide = by_variant(part)
        for other in wide.columns.drop(first, errors="ignore") if first in wide else ():
            pair = wide[[first, other]].dropna()
            labels = dict(zip(keys, group if isinstance(group, tuple) else (group,), strict=True))
            labels |= {"variant": other, "against": first}
            for task, one in pair.groupby(level="task"):
                found.append({**labels, "task": task, **wb.paired_difference(one[first], one[other])})
            found.append({**labels, "task": "mean of tasks", **mean_of_tasks(pair[first], pair[other])})
    return pd.DataFrame(found)


def mean_of_tasks(first: pd.Series, other: pd.Series) -> dict[str, float]:
    """Return the mean over tasks of the mean difference, with a normal interval; items are drawn in each."""
    change = (other - first).groupby(level="task")
    error = float(np.sqrt((change.var(ddof=1) / change.size()).sum()) / change.ngroups)
    difference = float(change.mean().mean())
    half = 1.96 * error
    ends = {"ci_low": difference - half, "ci_high": difference + half}
    return {"n": len(first), "difference": difference, **ends}


def with_reference(items: pd.DataFrame, base: pd.DataFrame) -> pd.DataFrame:
    """Put base and pruned, scored once, beside the healed variants of every training."""
    if base.empty:
        return items
    names = {"base-0": "base", "distance-0": "pruned"}
    shared = base[base["variant"].isin(names)].assign(variant=base["variant"].map(names))
    parts = [items]
    for values, _ in items.groupby(KEYS):
        parts.append(shared.assign(**dict(zip(KEYS, values, strict=True))))
    return pd.concat(parts, ignore_index=True)


def blind_choices(items: pd.DataFrame) -> pd.DataFrame:
    """Compare the mean of a size's blind choices with the choice by distance, on items that all answered."""
    found = []
    for size, part in item_table(items).groupby("size") if len(items) else ():
        wide = by_variant(part[part["task"].isin(TELLING)])
        blind = [name for name in wide if pd.Series([name]).str.match(BLIND).all()]
        if blind and "distance-0" in wide:
            wide = wide[["distance-0", *blind]].dropna()
            gap = mean_of_tasks(wide["distance-0"], wide[blind].mean(axis=1))
            found.append({"size": size, "choices": len(blind), **gap})
    return pd.DataFrame(found)


def resampled(wide: pd.DataFrame, n: int = 2000) -> tuple[pd.Series, np.ndarray]:
    """Return each column's mean over tasks, and that of `n` draws of the items within each task."""
    rng, drawn = np.random.default_rng(0), np.zeros((n, wide.shape[1]))
    for _, one in wide.groupby(level="task"):
        counts = rng.multinomial(len(one), np.full(len(one), 1 / len(one)), size=n) / len(one)
        drawn += counts @ one.to_numpy(float)
    return wide.groupby(level="task").mean().mean(), drawn / wide.index.get_level_values("task").nunique()


def recovered(items: pd.DataFrame, tasks: list[str]) -> pd.DataFrame:
    """Return the share of the base's average over some tasks that each variant keeps, with its interval."""
    found = []
    for values, part in item_table(items).groupby(KEYS):
        wide = by_variant(part[part["task"].isin(tasks)])
        if "base" not in wide:
            continue
        wide = wide.dropna()
        mean, drawn = resampled(wide)
        shares = drawn / drawn[:, [wide.columns.get_loc("base")]]
        for number, name in enumerate(wide.columns):
            low, high = np.percentile(shares[:, number], [2.5, 97.5])
            row = dict(zip(KEYS, values, strict=True)) | {"variant": name, "average": mean[name]}
            row |= {"recovery": mean[name] / mean["base"], "ci_low": low, "ci_high": high, "n": len(wide)}
            found.append(row)
    return pd.DataFrame(found)


def won_back(items: pd.DataFrame, tasks: list[str]) -> pd.DataFrame:
    """Return what pruning lost and each training won back on the same items, and the share of it.

    The last row is the mean of all trainings, item by item; its interval is over items alone.
    """
    rows = item_table(items)
    rows = rows[rows["task"].isin(tasks)]
    healed = ~rows["variant"].isin(["base", "pruned"])
    label = rows["data"] + " " + rows["rows"].astype(str) + ", " + rows["variant"]
    label += rows["seed"].map(", seed {}".format)
    rows = rows.assign(name=label.where(healed, rows["variant"]))
    wide = by_variant(rows.drop_duplicates(["name", "task", "item"]), "name").dropna()
    if not {"base", "pruned"} <= set(wide):
        return pd.DataFrame()
    wide["mean of trainings"] = wide.drop(columns=["base", "pruned"]).mean(axis=1)
    mean, drawn = resampled(wide)
    lost = drawn[:, wide.columns.get_loc("base")] - drawn[:, wide.columns.get_loc("pruned")]
    found = []
    for number, name in enumerate(wide.columns):
        if name != "pruned":
            gain = mean_of_tasks(wide["pruned"], wide[name])
            shares = (drawn[:, number] - drawn[:, wide.columns.get_loc("pruned")]) / lost
            low, high = np.percentile(shares, [2.5, 97.5])
            share = (mean[name] - mean["pruned"]) / (mean["base"] - mean["pruned"])
            row = {"variant": name, "average": mean[name], **gain}
            found.append(row | {"share": share, "share_low": low, "share_high": high})
    return pd.DataFrame(found).assign(tasks=", ".join(sorted(tasks)))


def trained(log: pd.DataFrame) -> pd.DataFrame:
    if log.empty:
        return log
    last = {name: (name, "max") for name in ("tokens", "seconds")}
    found = log.groupby([*KEYS, "variant"]).agg(steps=("step", "max"), loss=("loss", "last"), **last)
    return found.assign(tokens_per_second=found["tokens"] / found["seconds"]).reset_index()


def means(rows: pd.DataFrame, keys: list[str], columns: list[str]) -> pd.DataFrame:
    groups = rows.groupby(keys, sort=False)
    found = groups[columns].mean()
    found[f"{columns[0]}_std"] = groups[columns[0]].std()
    return found.assign(n=groups.size()).reset_index()


def paired(rows: pd.DataFrame, keys: list[str], value: str) -> pd.DataFrame:
    """Compare the two methods on the same prompts: mean of self-distilled less SFT, with its interval."""
    found = []
    for values, part in rows.groupby(keys, sort=False):
        wide = part.pivot(index="id", columns="variant", values=value).dropna()
        if {*PAIR} <= set(wide):
            labels = dict(zip(keys, values, strict=True))
            found.append(labels | wb.paired_difference(*(wide[name] for name in PAIR)))
    return pd.DataFrame(found)


def closeness_of_all(similarity: pd.DataFrame) -> pd.DataFrame:
    """Compare the methods on each prompt, its mean over trainings that have both; intervals over prompts."""
    both = similarity.groupby(KEYS)["variant"].transform(lambda names: {*PAIR} <= set(names))
    rows = similarity[both].groupby(["prompts", "id", "variant"], as_index=False)["similarity"].mean()
    found = paired(rows, ["prompts"], "similarity")
    rows["id"] = rows["prompts"] + " " + rows["id"].astype(str)
    whole = paired(rows.assign(prompts="all"), ["prompts"], "similarity")
    trainings = len(similarity[both][KEYS].drop_duplicates())
    return pd.concat([found, whole], ignore_index=True).assign(trainings=trainings)


def lengths_matched(similarity: pd.DataFrame, changes: pd.DataFrame) -> pd.DataFrame:
    """Ask why one method stays closer: how similarity goes with the length of the response, and without it.

    `slope`: similarity for a doubling or halving of the length against the base's. `difference`: of the two
    methods on the same prompts. `same_length`: that difference where both responses are as far in length from
    the base's (within a quarter).
    """
    rows = similarity.merge(changes[[*KEYS, "prompts", "variant", "id", "length", "base_length"]])
    rows["stretch"] = np.log2((rows["length"] + 1) / (rows["base_length"] + 1)).abs()
    found = []
    for values, part in rows.groupby([*KEYS, "prompts"], sort=False):
        healed = part[part["variant"] != "pruned"]
        wide = healed.pivot(index="id", columns="variant", values=["similarity", "stretch", "length"])
        if not {*PAIR} <= set(healed["variant"]):
            continue
        gap = wide["similarity"]["self-distilled"] - wide["similarity"]["sft"]
        alike = (wide["stretch"]["self-distilled"] - wide["stretch"]["sft"]).abs() < 0.25
        fit = stats.linregress(healed["stretch"], healed["similarity"]) if len(healed) > 2 else None
        row = dict(zip([*KEYS, "prompts"], values, strict=True)) | {"difference": gap.mean()}
        row |= {"same_length": gap[alike].mean(), "n_same_length": int(alike.sum()), "n": len(gap)}
        row |= {"slope": fit.slope if fit else np.nan, "correlation": fit.rvalue if fit else np.nan}
        lengths = wide["length"].mean()
        row |= {"length_sft": lengths["sft"], "length_self_distilled": lengths["self-distilled"]}
        row["length_base"] = healed["base_length"].mean()
        found.append(row)
    return pd.DataFrame(found)


def above_chance(scores: pd.DataFrame) -> list[str]:
    """Return the tasks on which the whole model is clearly above a guess."""
    base = set(scores.loc[scores["variant"] == "base-0", "task"])
    return sorted(base - set(at_chance(scores)))


def at_chance(scores: pd.DataFrame) -> list[str]:
    """Return the tasks on which the whole model is not clearly above a guess."""
    base = scores[scores["variant"] == "base-0"]
    low = base["value"] - 1.96 * base["stderr"]
    return sorted(base["task"][low <= base["task"].map(CHANCE).fillna(0)])

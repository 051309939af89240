"""The record of `findings.py` as frames, claims, figures and a page of the documentation.

    python benchmarks/findings_page.py     # the newest record -> docs/findings.md, docs/findings/
    python benchmarks/findings_page.py --record FOLDER --out FOLDER   # a trial

A claim is confirmed or refuted where its 95 % interval lies on one side of nothing, and undecided otherwise.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from measuring import RECORDS, ROOT
from scipy import stats

import workbench as wb
from workbench.evaluation.suites import CHANCE
from workbench.plots.style import new_figure, variant_styles
from workbench.tables.claims import CLAIMS, verdict

Frames = dict[str, pd.DataFrame]
KEYS = ["data", "rows", "seed"]
MARKS = "<!-- findings: written by benchmarks/findings_page.py -->", "<!-- end of findings -->"
TELLING = ["arc_easy", "hellaswag", "piqa", "blimp"]
BLIND = "deepest|shallowest|random"


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
    frames: Frames = {}
    for name in ("calibration", "damage", "influence", "removal", "agreement", "least_harmful"):
        frames[name] = read_parts(parts, "distances", name)
    frames["distances"] = read_parts(parts, "distances", "distances-*")
    frames["stability"] = read_parts(parts, "distances", "stability-*")
    frames["strategies"] = read_parts(parts, "strategies", "damage")
    frames["strategy_scores"] = headline_scores(
        read_parts(parts, "strategies", "scores"), ["variant", "size"]
    )
    frames["strategy_items"] = pooled(
        read_parts(parts, "strategies", "items"), ["size"], first="distance-0", tasks=TELLING
    )
    frames["blind"] = blind_choices(read_parts(parts, "strategies", "items"))
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
        frames["closeness"] = paired(similarity, groups, "similarity", "sft", "self-distilled")
        frames["closeness_of_all"] = closeness_of_all(similarity)
    divergence = read_parts(parts, "healing", "divergence")
    if len(divergence):
        frames["divergence"] = means(
            divergence, [*groups, "variant"], ["kl", "same_choice", "agrees_for", "n_tokens"]
        )
        frames["divergence_gap"] = paired(divergence, groups, "kl", "sft", "self-distilled")
    changes = read_parts(parts, "healing", "changes")
    if len(changes):
        columns = ["length", "base_length", "same_form", "same_text", "finished"]
        changes["same_form"] = changes["form"] == changes["base_form"]
        frames["changes"] = means(changes, [*groups, "variant"], columns)
        frames["why"] = lengths_matched(similarity, changes)
    responses = read_parts(parts, "healing", "responses")
    frames["responses"] = (
        responses.groupby([*KEYS, "variant", "prompts"]).head(1) if len(responses) else responses
    )
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
        wide = part.pivot(index=["task", "item"], columns="variant", values="value")
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
    return {
        "n": len(first),
        "difference": difference,
        "ci_low": difference - half,
        "ci_high": difference + half,
    }


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
        wide = part[part["task"].isin(TELLING)].pivot(
            index=["task", "item"], columns="variant", values="value"
        )
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
        part = part[part["task"].isin(tasks)]
        wide = part.pivot(index=["task", "item"], columns="variant", values="value")
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
    label = (
        rows["data"]
        + " "
        + rows["rows"].astype(str)
        + ", "
        + rows["variant"]
        + rows["seed"].map(", seed {}".format)
    )
    wide = (
        rows.assign(name=label.where(healed, rows["variant"]))
        .drop_duplicates(["name", "task", "item"])
        .pivot(index=["task", "item"], columns="name", values="value")
        .dropna()
    )
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
    groups = log.groupby([*KEYS, "variant"])
    found = groups.agg(
        steps=("step", "max"), loss=("loss", "last"), tokens=("tokens", "max"), seconds=("seconds", "max")
    )
    return found.assign(tokens_per_second=found["tokens"] / found["seconds"]).reset_index()


def means(rows: pd.DataFrame, keys: list[str], columns: list[str]) -> pd.DataFrame:
    groups = rows.groupby(keys, sort=False)
    found = groups[columns].mean()
    found[f"{columns[0]}_std"] = groups[columns[0]].std()
    return found.assign(n=groups.size()).reset_index()


def paired(rows: pd.DataFrame, keys: list[str], value: str, first: str, other: str) -> pd.DataFrame:
    """Compare two variants on the same prompts: mean of `other` less `first`, with its interval."""
    found = []
    for values, part in rows.groupby(keys, sort=False):
        wide = part.pivot(index="id", columns="variant", values=value).dropna()
        if {first, other} <= set(wide):
            found.append(
                dict(zip(keys, values, strict=True)) | wb.paired_difference(wide[first], wide[other])
            )
    return pd.DataFrame(found)


def closeness_of_all(similarity: pd.DataFrame) -> pd.DataFrame:
    """Compare the methods on each prompt, its mean over trainings that have both; intervals over prompts."""
    both = similarity.groupby(KEYS)["variant"].transform(
        lambda names: {"sft", "self-distilled"} <= set(names)
    )
    rows = similarity[both].groupby(["prompts", "id", "variant"], as_index=False)["similarity"].mean()
    found = paired(rows, ["prompts"], "similarity", "sft", "self-distilled")
    rows["id"] = rows["prompts"] + " " + rows["id"].astype(str)
    whole = paired(rows.assign(prompts="all"), ["prompts"], "similarity", "sft", "self-distilled")
    return pd.concat([found, whole], ignore_index=True).assign(
        trainings=len(similarity[both][KEYS].drop_duplicates())
    )


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
        if not {"sft", "self-distilled"} <= set(healed["variant"]):
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


def spread(values: pd.Series) -> tuple[float, float, float]:
    """Return the mean over trainings with its 95 % interval (Student's t over data sets and seeds)."""
    values = values.dropna()
    mean = float(values.mean())
    if len(values) < 2:
        return mean, float("nan"), float("nan")
    half = stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    return mean, mean - half, mean + half


def agreed(rows: pd.DataFrame, sign: int = 1) -> str:
    """Return the verdict that every row's own interval gives, and undecided where they do not agree."""
    found = {verdict(sign * r.difference, sign * r.ci_low, sign * r.ci_high) for r in rows.itertuples()}
    return found.pop() if len(found) == 1 else "undecided"


def interval(row: Any) -> str:
    return f"{row['difference']:+.3f} [{row['ci_low']:+.3f}, {row['ci_high']:+.3f}]"


def above_chance(scores: pd.DataFrame) -> list[str]:
    """Return the tasks on which the whole model is clearly above a guess."""
    base = set(scores.loc[scores["variant"] == "base-0", "task"])
    return sorted(base - set(at_chance(scores)))


def at_chance(scores: pd.DataFrame) -> list[str]:
    """Return the tasks on which the whole model is not clearly above a guess."""
    base = scores[scores["variant"] == "base-0"]
    low = base["value"] - 1.96 * base["stderr"]
    return sorted(base["task"][low <= base["task"].map(CHANCE).fillna(0)])


def claims(frames: Frames) -> pd.DataFrame:
    """Return the claims that the record touches: verdict, number, what it rests on."""
    rows = [*block_claims(frames), *healing_claims(frames), *draft_claims(frames)]
    untouched = {"C6": "no training on more rows came to its end", "C7": "notebook 08 asks it of a run"}
    untouched |= {"C8": "notebook 09 asks it of a run"}
    untouched |= {"C9": "the study of it is unfinished"}
    there = {row[0] for row in rows}
    rows += [(name, "not measured", why, "") for name, why in untouched.items() if name not in there]
    table = pd.DataFrame(rows, columns=["claim", "verdict", "number", "rests on"]).sort_values("claim")
    table.insert(1, "says", table["claim"].map(CLAIMS))
    return table.sort_values("claim", key=lambda c: c.str[1:].astype(int)).reset_index(drop=True)


def block_claims(frames: Frames) -> list[tuple[str, str, str, str]]:
    rows = []
    if {"strategies", "strategy_items", "blind"} <= set(frames):
        rows.append(blind_claim(frames))
    if "strategy_scores" in frames:
        guess = at_chance(frames["strategy_scores"])
        number = f"not above a guess from the start: {', '.join(guess) or 'none'}"
        undecided = "mmlu" in guess
        rows.append(("C2", "undecided" if undecided else "see the scores", number, "the base's own scores"))
    if "agreement" in frames:
        one = frames["agreement"]
        pair = one[
            (one["first"] == "angular distance") & (one["second"] == "block influence") & (one["size"] == 1)
        ]
        if len(pair):
            row = pair.iloc[0]
            number = (
                f"Spearman {row['spearman']:.2f} [{row['ci_low']:.2f}, {row['ci_high']:.2f}] "
                f"over {row['n']:.0f} layers"
            )
            rows.append(
                ("C10", verdict(row["spearman"], row["ci_low"], row["ci_high"]), number, "single layers, C4")
            )
    return rows


def blind_claim(frames: Frames) -> tuple[str, str, str, str]:
    """Return C1 size by size: scores of blind choices against distance's, on the same items, and the loss."""
    told = frames["strategies"]
    best = told[told["strategy"] == "distance"].set_index("size")["damage"]
    items = frames["strategy_items"].query("task == 'mean of tasks'")
    items = items[items["variant"].str.match(BLIND)]
    numbers, verdicts = [], {}
    for row in frames["blind"].to_dict("records"):
        size = row["size"]
        own = items[items["size"] == size]
        loss = told[(told["size"] == size) & told["strategy"].str.match(BLIND)]["damage"]
        numbers.append(
            f"{size} layers: of {len(own)} blind choices {int((own['ci_high'] < 0).sum())} score clearly "
            f"lower, {int((own['ci_low'] > 0).sum())} clearly higher, on average {interval(row)}; loss "
            f"higher in {int((loss > best[size]).sum())} of {len(loss)}"
        )
        verdicts[size] = "confirmed" if (own["ci_high"] < 0).all() else "undecided"
        verdicts[size] = "refuted" if (own["ci_low"] > 0).all() else verdicts[size]
    said = {
        verdict: [str(size) for size in verdicts if verdicts[size] == verdict]
        for verdict in verdicts.values()
    }
    word = (
        next(iter(said))
        if len(said) == 1
        else ", ".join(f"{name} at {' and '.join(sizes)} layers" for name, sizes in sorted(said.items()))
    )
    return "C1", word, "; ".join(numbers), "mean accuracy on four sets above chance, the same items"


def healing_claims(frames: Frames) -> list[tuple[str, str, str, str]]:
    rows = []
    if "won_back" in frames:
        table = frames["won_back"].set_index("variant")
        lost, gain = table.loc["base"], table.loc["mean of trainings"]
        sets = len(lost["tasks"].split(", "))
        number = (
            f"pruning costs {lost['difference']:.3f} [{lost['ci_low']:.3f}, {lost['ci_high']:.3f}] of "
            f"{lost['average']:.3f}; {len(table) - 2} trainings win back {interval(gain)} on average, "
            f"{gain['share']:.0%} [{gain['share_low']:.0%}, {gain['share_high']:.0%}] of it"
        )
        most = verdict(gain["share"] - 0.5, gain["share_low"] - 0.5, gain["share_high"] - 0.5)
        rows.append(("C3", most, number, f"{sets} sets above chance, the same items; most: more than half"))
    if "healing_items" in frames:
        items = frames["healing_items"].query("task == 'mean of tasks' and variant == 'self-distilled'")
        told = [
            f"{row['data']} {row['rows']}: {row['difference']:+.4f} [{row['ci_low']:+.4f}, "
            f"{row['ci_high']:+.4f}]"
            for row in items.to_dict("records")
        ]
        if told:
            number = f"self-distilled less SFT, {'; '.join(told)}"
            basis = f"mean accuracy on nine sets, the same items; pairs of trainings: {len(told)}"
            rows.append(("C4", agreed(items), number, basis))
            if items["rows"].nunique() > 1:
                rows.append(more_rows(frames))
    if "closeness_of_all" in frames:
        table = frames["closeness_of_all"].set_index("prompts")
        row, cells = table.loc["all"], frames["closeness"]
        number = (
            f"similarity to the base, self-distilled less SFT: {interval(row)}; of {len(cells)} pairs of "
            f"training and kind of prompt {int((cells['ci_low'] > 0).sum())} clearly nearer, "
            f"{int((cells['ci_high'] < 0).sum())} clearly farther"
        )
        basis = f"Sentence-BERT, {row['n']:.0f} prompts of three kinds, one seed; pairs of trainings: "
        basis += f"{row['trainings']:.0f}"
        rows.append(("C5", verdict(row["difference"], row["ci_low"], row["ci_high"]), number, basis))
    return rows


def draft_claims(frames: Frames) -> list[tuple[str, str, str, str]]:
    """Return what the record of merges and drafts beside this one says (`drafts_real.py`)."""
    rows = []
    if "drafts_gain" in frames:
        gain = frames["drafts_gain"].query("variant == 'merged-slerp-0.5'")
        told = [f"against {row['against']} {interval(row)}" for row in gain.to_dict("records")]
        left = gain["layers_left"].iloc[0]
        basis = f"{left} of 30 layers left, mean of four sets, 1,000 items, one seed"
        rows.append(("C7", agreed(gain), f"SLERP at 0.5 {', '.join(told)}", basis))
    if "drafts_comparison" in frames:
        pair = frames["drafts_comparison"].query("variant == 'self-distilled' and against == 'sft'")
        told = [f"{row['layers_left']} layers left: {interval(row)}" for row in pair.to_dict("records")]
        said = [
            f"{verdict(row['difference'], row['ci_low'], row['ci_high'])} at {row['layers_left']} layers left"
            for row in pair.to_dict("records")
        ]
        basis = "share of single drafted tokens that the whole model accepts, 252 prompts, one seed"
        rows.append(("C8", ", ".join(said), f"self-distilled less SFT, {'; '.join(told)}", basis))
    return rows


def more_rows(frames: Frames) -> tuple[str, str, str, str]:
    """Return what four times the rows of self-distilled data bring."""
    table = frames["recovery"].query("variant == 'self-distilled' and seed == 0")
    wide = table.pivot_table(index="data", columns="rows", values="recovery").dropna()
    few, many = wide.columns.min(), wide.columns.max()
    gain = wide[many] - wide[few]
    mean, low, high = spread(gain)
    number = ", ".join(
        f"{name} {wide.loc[name, few]:.3f} -> {wide.loc[name, many]:.3f}" for name in wide.index
    )
    return "C6", verdict(mean, low, high), f"recovery at {few} and {many} rows: {number}", "one seed"


def figures(frames: Frames, folder: Path) -> dict[str, str]:
    """Write the page's figures; return file names by what they show."""
    folder.mkdir(parents=True, exist_ok=True)
    wb.use_template("screen")
    made: dict[str, go.Figure] = {}
    if {"distances", "damage"} <= set(frames):
        of_c4 = frames["distances"].query("calibration == 'C4'").drop(columns="calibration")
        made["blocks"] = wb.distance_beside_damage(of_c4, frames["damage"])
    if "strategies" in frames:
        made["strategies"] = strategy_figure(frames["strategies"])
    if "similarity" in frames:
        made["similarity"] = closeness_figure(frames["similarity"])
    if "recovery" in frames:
        made["recovery"] = recovery_figure(frames["recovery"])
    for name, figure in made.items():
        figure.write_image(folder / f"{name}.png", width=860, height=figure.layout.height or 420, scale=1.5)
    return {name: f"findings/{name}.png" for name in made}


def strategy_figure(rows: pd.DataFrame) -> go.Figure:
    rows = rows.assign(size=rows["size"].astype(str))
    figure = new_figure("What each strategy's choice costs, on texts that chose nothing")
    symbols = ["circle", "triangle-right", "triangle-left", "x", "diamond", "star-open"]
    for symbol, (name, part) in zip(symbols, rows.groupby("strategy", sort=False), strict=False):
        dots = {"mode": "markers", "marker": {"size": 11, "opacity": 0.8, "symbol": symbol}}
        figure.add_scatter(x=part["damage"], y=part["size"] + " layers", name=name, **dots)
    figure.update_yaxes(title="removed, of 30", type="category")
    ticks = [0.5, 1, 2, 5, 10, 20]
    figure.update_xaxes(title="rise of the loss, nats a token", type="log", tickvals=ticks, ticktext=ticks)
    return figure.update_layout(height=360)


def closeness_figure(rows: pd.DataFrame) -> go.Figure:
    """Draw each training's mean over prompts with its 95 % interval (normal); pruned is the same in all."""
    figure, styles = new_figure("Which responses stay close?"), variant_styles(rows["variant"])
    rows = rows[rows["data"].isin(rows.loc[rows["variant"] != "pruned", "data"])]
    for name, part in rows.groupby("variant", sort=False):
        part = part.drop_duplicates(["data", "prompts"]) if name == "pruned" else part
        label = part["data"] + ", asked " + part["prompts"]
        half = 1.96 * part["similarity_std"] / np.sqrt(part["n"])
        marker = {"size": 9, "color": styles[name].color, "symbol": styles[name].symbol}
        error = {"type": "data", "array": half, "thickness": 1}
        figure.add_scatter(
            x=part["similarity"], y=label, name=name, mode="markers", marker=marker, error_x=error
        )
    figure.update_xaxes(title="mean similarity to the base's responses (each training, 100 prompts)")
    return figure.update_layout(height=520)


def recovery_figure(rows: pd.DataFrame) -> go.Figure:
    figure = new_figure("Six of thirty layers out: what is left, what healing wins back")
    styles = variant_styles(rows["variant"])
    for name, part in rows[rows["variant"] != "base"].groupby("variant", sort=False):
        ends = {"array": part["ci_high"] - part["recovery"], "arrayminus": part["recovery"] - part["ci_low"]}
        label = part["data"] + " " + part["rows"].astype(str) + ", " + str(name)
        if name == "pruned":  # the same in every training
            part, label = part.head(1), ["pruned"]
            ends = {side: values.head(1) for side, values in ends.items()}
        marker = {"size": 9, "color": styles[name].color, "symbol": styles[name].symbol}
        dots = {"error_x": {"type": "data", "thickness": 1, **ends}, "mode": "markers", "marker": marker}
        figure.add_scatter(x=part["recovery"], y=label, name=name, **dots)
    figure.add_vline(x=1, line_dash="dot")
    figure.update_xaxes(title="share of the unpruned model's average over the sets above chance")
    return figure.update_layout(height=400)


def table(frame: pd.DataFrame, digits: int = 3) -> str:
    return wb.to_markdown(frame, digits=digits) + "\n"


def page(frames: Frames, pictures: Mapping[str, str], about: Mapping[str, Any]) -> str:
    """Return the page: claims first, then what each rests on."""
    parts = about["parts"]
    gpu = next((part["machine"].get("gpu") or part["machine"].get("cpu") for part in parts), "?")
    date = about.get("date", "")
    lines = [
        "# Findings on a real model",
        "",
        "What the papers' method does to SmolLM2-135M-Instruct (30 layers; `make smollm2`), on public data. "
        f"Every number is of the record of {date} ({gpu}; {len(parts)} parts; frames in "
        "`benchmarks/records`), made by `benchmarks/findings.py` and laid out by "
        "`benchmarks/findings_page.py`. A verdict is *confirmed* or *refuted* where the 95 % interval lies "
        "on one side of nothing, else *undecided*. "
        "**One seed: every interval is over items, prompts or texts, on which both sides answered; none says "
        "what another seed or another model would give.**",
        "",
        "## The papers' claims",
        "",
        table(claims(frames)),
    ]
    if about.get("notes"):
        lines += ["What this record does not hold:", "", *[f"- {note}" for note in about["notes"]], ""]
    lines += section(pictures, "blocks", "## Which blocks go?", agreement_text(frames), calibration(frames))
    lines += section(pictures, "strategies", "## Against cutting blindly", "", strategy_table(frames))
    lines += section(
        pictures, "recovery", "## What healing wins back", share_text(frames), score_summary(frames)
    )
    lines += section(
        pictures, "similarity", "## Which responses stay close, and why", why_text(frames), why(frames)
    )
    lines += section(pictures, "drafts", "## Merges and drafts", drafts_text(frames), drafts_table(frames))
    return "\n".join(lines).rstrip() + "\n"


def share_text(frames: Frames) -> str:
    if "won_back" not in frames:
        return ""
    rows = frames["won_back"].drop(columns="tasks").rename(columns={"ci_low": "low", "ci_high": "high"})
    rows["variant"] = rows["variant"].replace({"base": "base (what pruning lost)"})
    return (
        f"Against the pruned model, on {frames['won_back']['tasks'].iloc[0]} (the sets on which the unpruned "
        "model is clearly above a guess); `share`: of what pruning lost. The mean of all nine sets would say "
        "that pruning costs nothing: BoolQ rises from below its majority class to it, which is no gain.\n\n"
        + table(rows)
    )


def drafts_text(frames: Frames) -> str:
    if "drafts_recovery" not in frames:
        return ""
    rows = frames["drafts_recovery"].set_index("variant")["average"]
    tasks = ", ".join(sorted(frames["drafts_scores"]["task"].unique()))
    low = ", ".join(
        f"{name} {rows[name]:.3f}" for name in ("base", "pruned", "sft", "self-distilled") if name in rows
    )
    left = frames["drafts_recovery"]["layers_left"].iloc[0]
    return (
        f"With {left} of 30 layers left the mean of {tasks} is near a guess and healing does not raise it "
        f"({low}), so what a merge adds there says little. What the whole model accepts of a draft does "
        "rise with healing"
        + (
            ", by SFT nearly as much as by self-distilled data: " + "; ".join(told) + "."
            if (told := sign_texts(frames))
            else "."
        )
    )


def sign_texts(frames: Frames) -> list[str]:
    pair = frames["drafts_comparison"].query("variant == 'self-distilled' and against == 'sft'")
    return [
        f"with {row['layers_left']} layers left self-distilled is ahead on {row['higher']} prompts and "
        f"behind on {row['lower']} of {row['n']} (sign test, adjusted p = {row['p_adjusted']:.1g}), the mean "
        f"difference being {interval(row)}"
        for row in pair.to_dict("records")
    ]


def drafts_table(frames: Frames) -> str:
    if "drafts_acceptance" not in frames:
        return ""
    rows = frames["drafts_acceptance"]
    rows = rows[rows["draft_length"].isin([1, 3])]
    shown = ["layers_left", "draft", "draft_length", "acceptance", "acceptance_low", "acceptance_high"]
    pairs = frames["drafts_comparison"]
    columns = ["layers_left", "variant", "against", "n", "difference", "ci_low", "ci_high", "higher", "lower"]
    return (
        table(rows[[*shown, "tokens_per_call"]].sort_values(["layers_left", "draft_length", "acceptance"]))
        + "\n`acceptance`: share of drafted tokens that the whole model would have chosen, greedy; "
        "`tokens_per_call`: tokens a pass of the whole model. Pairs on the same prompts, draft length 1:\n\n"
        + table(pairs[columns])
    )


def section(pictures: Mapping[str, str], name: str, *texts: str) -> list[str]:
    heading, *rest = texts
    shown = [f"![{heading.strip('# ')}]({pictures[name]})", ""] if name in pictures else []
    return [heading, "", *shown, *[text + "\n" for text in rest if text]] if any(rest) or shown else []


def agreement_text(frames: Frames) -> str:
    if "agreement" not in frames:
        return ""
    rows = frames["agreement"]
    rows = rows[(rows["first"] == "angular distance") & (rows["second"] == "damage")]
    told = ", ".join(f"{row.spearman:.2f} at size {row.size}" for row in rows.itertuples(index=False))
    return f"Spearman's correlation of distance and damage, blocks of one size at a time: {told}."


def calibration(frames: Frames) -> str:
    return table(wb.calibration_table(frames["calibration"])) if "calibration" in frames else ""


def strategy_table(frames: Frames) -> str:
    if "strategies" not in frames:
        return ""
    rows = frames["strategies"].copy()
    scores = frames["strategy_scores"]
    scores = scores[scores["task"].isin(TELLING)].groupby(["variant", "size"])["value"].mean()
    rows["variant"] = rows["strategy"] + "-" + rows["draw"].astype(int).astype(str)
    rows["accuracy"] = [scores.get((row.variant, row.size), np.nan) for row in rows.itertuples()]
    shown = ["size", "strategy", "removed", "damage", "ci_low", "ci_high", "accuracy"]
    return table(rows[shown].sort_values(["size", "damage"])) + (
        "\n`damage`: rise of the loss on 48 C4 texts that chose nothing, with its 95 % interval. "
        "`accuracy`: mean of "
        "ARC-Easy, HellaSwag, PIQA, BLiMP (300 items of a set; at size 6 base, distance, deepest, "
        "shallowest 600); none where it was not scored."
    )


def score_summary(frames: Frames) -> str:
    if "scores" not in frames:
        return ""
    base = frames["strategy_scores"]
    base = base[
        base["variant"].isin(["base-0", "distance-0", "deepest-0", "shallowest-0"]) & (base["size"] == 6)
    ]
    base = base.assign(trained="")
    healed = frames["scores"].assign(trained=lambda f: f["data"] + " " + f["rows"].astype(str))
    rows = pd.concat([base, healed], ignore_index=True)
    wide = rows.pivot_table(index=["variant", "trained"], columns="task", values="value", sort=False)
    above = above_chance(frames["strategy_scores"])
    wide = wide.assign(**{"nine sets": wide.mean(axis=1), "above chance": wide[above].mean(axis=1)})
    seeds = frames["scores"]["seed"].nunique()
    return (
        table(wide.reset_index())
        + f"\n{seeds} seed{'s, means over them' * (seeds > 1)}. At a guess from the start: "
        + (f"{', '.join(at_chance(frames['strategy_scores']))}.")
    )


def why(frames: Frames) -> str:
    shown = []
    if "why" in frames:
        mean = (
            frames["why"]
            .groupby(["data", "rows", "prompts"], sort=False)
            .mean(numeric_only=True)
            .reset_index()
        )
        shown.append(table(mean.drop(columns=["seed", "n"])))
    if "premise" in frames:
        mean = (
            frames["premise"]
            .groupby(["data", "rows", "text"], sort=False)
            .mean(numeric_only=True)
            .reset_index()
        )
        shown.append(
            "What the two data sets are to the base: loss of the base on each text (nats a token), "
            "words, and similarity "
            "to the answer that the base itself gives to the bare prompt.\n\n"
            + table(mean.drop(columns=["seed"]))
        )
    return "\n".join(shown)


def why_text(frames: Frames) -> str:
    """Say in numbers which explanation holds: length, kept share, or the data itself."""
    told = []
    if "closeness" in frames:
        cells = frames["closeness"].rename(columns={"data": "trained on", "prompts": "asked"})
        shown = ["trained on", "asked", "n", "difference", "ci_low", "ci_high", "higher", "lower"]
        told.append(
            "Similarity to the base's responses, self-distilled less SFT, on the same prompts:\n\n"
            + table(cells[shown])
        )
    if "premise" in frames:
        rows = frames["premise"]
        rows = rows[rows["rows"] == rows["rows"].min()]
        near = rows.pivot_table(index="data", columns="text", values="similarity")
        sets = ", ".join(
            f"{row.Index} {row.rewrite:.3f} against {row.reference:.3f}" for row in near.itertuples()
        )
        loss = rows.groupby("text")["loss"].mean()
        told.append(
            "Self-data distillation rests on rewrites that are nearer to what the base itself would say. In "
            f"likelihood they are: its loss is {loss['rewrite']:.2f} nats a token on rewrites and "
            f"{loss['reference']:.2f} on references. In Sentence-BERT similarity to its own answer to the "
            f"bare prompt they are not (rewrite against reference: {sets}; first 200 rows of each set, no "
            "interval)."
        )
        words = rows.pivot_table(index="data", columns="text", values="words")
        lengths = [
            f"{row.Index} {row.own:.0f}, {row.reference:.0f}, {row.rewrite:.0f}" for row in words.itertuples()
        ]
        told.append(f"Words of its own answer, the reference, the rewrite: {'; '.join(lengths)}.")
    if "kept" in frames:
        kept = frames["kept"].query("kept").groupby(["data", "rows"])["share"].sum()
        told.append(
            "Kept rewrites (else the reference is learned): "
            + ", ".join(f"{data} {rows:,} rows {share:.1%}" for (data, rows), share in kept.items())
            + "."
        )
    if "kept" in frames:
        odd = frames["kept"].query("reason == 'no reasoning'")
        told += [
            f"Of the rewrites of {row['data']} {row['share']:.1%} were refused for their lack of reasoning."
            for row in odd.to_dict("records")
        ]
    if "why" in frames:
        told.append(
            "On maths the shorter rewrites show in the responses, and where those of both are as long, "
            "little is left of the difference (a reading of few prompts, not a test):\n"
        )
        for row in frames["why"].to_dict("records"):
            told[-1] += "\n" + (
                f"- {row['data']}, asked {row['prompts']}: {row['length_base']:.0f} tokens (base), "
                f"{row['length_sft']:.0f} (SFT), {row['length_self_distilled']:.0f} (self-distilled); the "
                f"difference is {row['difference']:+.3f}, and {row['same_length']:+.3f} on the "
                f"{row['n_same_length']:.0f} prompts where both are as far in length from the base's"
            )
    return "\n\n".join(told)


def readme(frames: Frames, about: Mapping[str, Any]) -> str:
    """Return what the README shows of a record: one figure, the claims, the date."""
    shown = claims(frames)[["claim", "says", "verdict", "number"]]
    return "\n".join(
        [
            "![Angular distance and damage of every block of SmolLM2](docs/findings/blocks.png)",
            "",
            "*SmolLM2-135M-Instruct, 30 layers, on C4: what the metric predicts (left), what "
            "skipping the block "
            "really does (right).*",
            "",
            table(shown),
            f"(Record of {about['date']}; [all of it](docs/findings.md), with what each verdict rests on.)",
        ]
    )


def into_readme(text: str, file: Path) -> None:
    """Put a text between the README's two marks."""
    whole = file.read_text(encoding="utf-8")
    first, rest = whole.split(MARKS[0])
    _, last = rest.split(MARKS[1])
    file.write_text(f"{first}{MARKS[0]}\n\n{text}\n\n{MARKS[1]}{last}", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--record", type=Path, help="default: the newest of benchmarks/records")
    parser.add_argument("--out", type=Path, default=ROOT / "docs")
    options = parser.parse_args()
    folder = options.record or max(RECORDS.glob("*-findings-*/"))
    frames = {file.stem: pd.read_csv(file) for file in sorted(folder.glob("*.csv"))}
    beside = sorted(RECORDS.glob("*-drafts-*/"))
    if beside and not options.record:
        frames |= {f"drafts_{file.stem}": pd.read_csv(file) for file in beside[-1].glob("*.csv")}
    about = json.loads((folder / "record.json").read_text())
    about["date"] = folder.name[:10]
    pictures = figures(frames, options.out / "findings")
    (options.out / "findings.md").write_text(page(frames, pictures, about), encoding="utf-8")
    claims(frames).to_csv(folder / "claims.csv", index=False)
    if options.out == ROOT / "docs":
        into_readme(readme(frames, about), ROOT / "README.md")
    print(f"{options.out / 'findings.md'}: {len(pictures)} figures")


if __name__ == "__main__":
    main()

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
from workbench.tables.claims import CLAIMS, verdict

Frames = dict[str, pd.DataFrame]
KEYS = ["data", "rows", "seed"]
MARKS = "<!-- findings: written by benchmarks/findings_page.py -->", "<!-- end of findings -->"
TELLING = ["arc_easy", "hellaswag", "piqa", "blimp"]


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
    items = read_parts(parts, "healing", "items")
    base = read_parts(parts, "strategies-6", "items")
    frames["scores"] = headline_scores(read_parts(parts, "healing", "scores"), ["variant", *KEYS])
    if len(items):
        whole = with_reference(items, base)
        frames["healing_items"] = pooled(whole, KEYS, first="sft")
        frames["recovery"] = recovered(whole)
    for name in ("kept", "premise"):
        frames[name] = read_parts(parts, "healing", name)
    frames["training"] = trained(read_parts(parts, "healing", "training-*"))
    similarity = read_parts(parts, "healing", "similarity")
    groups = [*KEYS, "prompts"]
    if len(similarity):
        frames["similarity"] = means(similarity, [*groups, "variant"], ["similarity", "cut_off", "truncated"])
        frames["closeness"] = paired(similarity, groups, "similarity", "sft", "self-distilled")
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


def recovered(items: pd.DataFrame) -> pd.DataFrame:
    """Return the share of the base's average over tasks that each variant keeps, with its interval."""
    rng, found = np.random.default_rng(0), []
    for values, part in item_table(items).groupby(KEYS):
        wide = part.pivot(index=["task", "item"], columns="variant", values="value")
        if "base" not in wide:
            continue
        wide = wide.dropna()
        drawn = np.zeros((1000, wide.shape[1]))
        for _, one in wide.groupby(level="task"):
            counts = rng.multinomial(len(one), np.full(len(one), 1 / len(one)), size=1000) / len(one)
            drawn += counts @ one.to_numpy()
        mean = wide.groupby(level="task").mean().mean()
        drawn /= wide.index.get_level_values("task").nunique()
        shares = drawn / drawn[:, [wide.columns.get_loc("base")]]
        for number, name in enumerate(wide.columns):
            low, high = np.percentile(shares[:, number], [2.5, 97.5])
            row = dict(zip(KEYS, values, strict=True)) | {"variant": name, "average": mean[name]}
            row |= {"recovery": mean[name] / mean["base"], "ci_low": low, "ci_high": high, "n": len(wide)}
            found.append(row)
    return pd.DataFrame(found)


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


def at_chance(scores: pd.DataFrame) -> list[str]:
    """Return the tasks on which the whole model is not clearly above a guess."""
    base = scores[scores["variant"] == "base-0"]
    low = base["value"] - 1.96 * base["stderr"]
    return sorted(base["task"][low <= base["task"].map(CHANCE).fillna(0)])


def claims(frames: Frames) -> pd.DataFrame:
    """Return the claims that the record touches: verdict, number, what it rests on."""
    rows = [*block_claims(frames), *healing_claims(frames)]
    untouched = {"C7": "notebook 08", "C8": "notebook 09", "C9": "notebook 07"}
    rows += [(name, "not asked", f"{where} asks it of a run", "") for name, where in untouched.items()]
    table = pd.DataFrame(rows, columns=["claim", "verdict", "number", "rests on"]).sort_values("claim")
    table.insert(1, "says", table["claim"].map(CLAIMS))
    return table.sort_values("claim", key=lambda c: c.str[1:].astype(int)).reset_index(drop=True)


def block_claims(frames: Frames) -> list[tuple[str, str, str, str]]:
    rows = []
    if "strategies" in frames and "strategy_items" in frames:
        told = frames["strategies"].assign(
            name=lambda f: f["strategy"] + "-" + f["draw"].astype(int).astype(str)
        )
        blind = told[told["strategy"].isin(["deepest", "shallowest", "random"])]
        best = told[told["strategy"] == "distance"].set_index("size")["damage"]
        gap = blind["damage"] - blind["size"].map(best)
        items = frames["strategy_items"].query("task == 'mean of tasks'")
        items = items[items["variant"].str.match("deepest|shallowest|random")]
        mean, low, high = spread(items["difference"])
        number = (
            f"of {len(items)} blind choices {int((items['ci_high'] < 0).sum())} score clearly lower, "
            f"{int((items['ci_low'] > 0).sum())} clearly higher; on average {mean:+.3f} "
            f"[{low:+.3f}, {high:+.3f}]; loss {gap.mean():+.2f} nats a token, higher in "
            f"{int((gap > 0).sum())} "
            f"of {len(gap)}"
        )
        rows.append(
            ("C1", verdict(-mean, -high, -low), number, "mean accuracy on four sets above chance, sizes 2-10")
        )
    if "strategy_scores" in frames:
        guess = at_chance(frames["strategy_scores"])
        known = [task for task in ("boolq", "mmlu") if task in guess]
        number = f"at a guess from the start: {', '.join(guess) or 'none'}"
        undecided = len(known) == 2 or "mmlu" in guess
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
                ("C10", verdict(row["spearman"], row["ci_low"], row["ci_high"]), number, "single layers")
            )
    return rows


def healing_claims(frames: Frames) -> list[tuple[str, str, str, str]]:
    rows = []
    if "recovery" in frames:
        table = frames["recovery"].pivot_table(index=KEYS, columns="variant", values="recovery")
        healed = table[["sft", "self-distilled"]].mean(axis=1)
        lost = 1 - table["pruned"]
        share = (healed - table["pruned"]) / lost.where(lost > 0)
        mean, low, high = spread(healed - table["pruned"])
        number = (
            f"pruned keeps {table['pruned'].mean():.1%} of the base's average, healed {healed.mean():.1%} "
            f"({mean:+.1%} [{low:+.1%}, {high:+.1%}]): {share.mean():.0%} of what was lost"
        )
        most = verdict(share.mean() - 0.5, spread(share)[1] - 0.5, spread(share)[2] - 0.5)
        rows.append(("C3", most, number, f"{len(table)} pairs of trainings, nine sets"))
    if "healing_items" in frames:
        items = frames["healing_items"].query("task == 'mean of tasks' and variant == 'self-distilled'")
        mean, low, high = spread(items["difference"])
        clear = (
            f"{int((items['ci_low'] > 0).sum())} clearly better, "
            f"{int((items['ci_high'] < 0).sum())} clearly worse"
        )
        number = (
            f"self-distilled less SFT {mean:+.4f} [{low:+.4f}, {high:+.4f}]; of {len(items)} pairs {clear}"
        )
        rows.append(("C4", verdict(mean, low, high), number, "mean accuracy on nine sets, the same items"))
        by_rows = items.groupby("rows")["difference"].mean()
        if len(by_rows) > 1:
            rows.append(more_rows(frames))
    if "closeness" in frames:
        gap = frames["closeness"]
        mean, low, high = spread(gap.groupby(KEYS)["difference"].mean())
        kinds = gap.groupby("prompts")["difference"].mean()
        where = ", ".join(f"{name} {value:+.3f}" for name, value in kinds.items())
        number = (
            f"similarity to the base, self-distilled less SFT: {mean:+.3f} [{low:+.3f}, "
            f"{high:+.3f}] ({where})"
        )
        rows.append(
            ("C5", verdict(mean, low, high), number, "Sentence-BERT, 100 prompts of each of three kinds")
        )
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
    figure = go.Figure()
    for name, part in rows.groupby("strategy", sort=False):
        mean = part.groupby("size")["damage"].mean()
        figure.add_scatter(x=mean.index, y=mean, name=name, mode="lines+markers")
    figure.update_xaxes(title="layers removed, of 30")
    figure.update_yaxes(title="rise of the loss, nats a token", type="log")
    return figure.update_layout(title="What each strategy's choice costs, on texts that chose nothing")


def closeness_figure(rows: pd.DataFrame) -> go.Figure:
    figure = go.Figure()
    for name, part in rows.groupby("variant", sort=False):
        label = part["data"] + ", asked " + part["prompts"]
        figure.add_scatter(
            x=part["similarity"], y=label, name=name, mode="markers", marker={"size": 9, "opacity": 0.7}
        )
    figure.update_xaxes(title="mean similarity to the base's responses (one dot a training)")
    return figure.update_layout(title="Which responses stay close?", height=520)


def recovery_figure(rows: pd.DataFrame) -> go.Figure:
    figure = go.Figure()
    for name, part in rows[rows["variant"] != "base"].groupby("variant", sort=False):
        ends = {"array": part["ci_high"] - part["recovery"], "arrayminus": part["recovery"] - part["ci_low"]}
        label = part["data"] + " " + part["rows"].astype(str) + ", " + str(name)
        dots = {"error_x": {"type": "data", "thickness": 1, **ends}, "mode": "markers"}
        figure.add_scatter(x=part["recovery"], y=label, name=name, opacity=0.8, **dots)
    figure.add_vline(x=1, line_dash="dot")
    figure.update_xaxes(title="share of the unpruned model's average over nine sets (one dot a seed)")
    figure.update_yaxes(categoryorder="category descending")
    return figure.update_layout(
        title="Six of thirty layers out: what is left, what healing wins back", height=520
    )


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
        "What the papers' method does to SmolLM2-135M-Instruct (30 layers; `make smollm2`), on "
        "public data. Every "
        f"number is of one record ({date}; {gpu}; {len(parts)} parts; frames in "
        f"`benchmarks/records`), made by "
        "`benchmarks/findings.py` and laid out by `benchmarks/findings_page.py`. A verdict is *confirmed* or "
        "*refuted* where the 95 % interval lies on one side of nothing, else *undecided*.",
        "",
        "## The papers' claims",
        "",
        table(claims(frames)),
    ]
    lines += section(pictures, "blocks", "## Which blocks go?", agreement_text(frames), calibration(frames))
    lines += section(pictures, "strategies", "## Against cutting blindly", "", strategy_table(frames))
    lines += section(pictures, "recovery", "## What healing wins back", "", score_summary(frames))
    lines += section(
        pictures, "similarity", "## Which responses stay close, and why", why_text(frames), why(frames)
    )
    return "\n".join(lines).rstrip() + "\n"


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
        "shallowest 600)."
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
    wide["mean"] = wide.mean(axis=1)
    return table(wide.reset_index()) + "\nMeans over seeds; of GSM8K 8,000 rows are all it has (7,373)."


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
    if "premise" in frames:
        rows = frames["premise"].pivot_table(index=KEYS, columns="text", values="similarity")
        mean, low, high = spread(rows["rewrite"] - rows["reference"])
        told.append(
            f"On its own training prompts a rewrite is {mean:+.3f} [{low:+.3f}, {high:+.3f}] nearer "
            f"to the base's own "
            "answer than the reference is (cosine): the most that learning from it could bring."
        )
        losses = frames["premise"].pivot_table(index=KEYS, columns="text", values="loss")
        told.append(
            f"The base's loss is {losses['reference'].mean():.2f} on references and "
            f"{losses['rewrite'].mean():.2f} on "
            "rewrites, so the rewrites are its own words."
        )
    if "why" in frames:
        rows = frames["why"]
        told.append(
            f"The difference between the methods is {rows['difference'].mean():+.3f} over all prompts and "
            f"{rows['same_length'].mean():+.3f} where both responses are as far in length from the "
            f"base's; similarity "
            f"falls by {-rows['slope'].mean():.3f} for each doubling or halving of the length."
        )
    return " ".join(told)


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
            table(shown[shown["verdict"] != "not asked"]),
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

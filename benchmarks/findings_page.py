"""The record of `findings.py` as claims, figures and a page of the documentation.

    python benchmarks/findings_page.py     # the newest record -> docs/findings.md, docs/findings/
    python benchmarks/findings_page.py --record FOLDER --out FOLDER   # a trial

A claim is confirmed or refuted where its 95 % interval lies on one side of nothing, and undecided otherwise.
"""

from __future__ import annotations

import argparse
import functools
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from findings_claims import claims, drafts_pair, interval
from findings_frames import TELLING, Frames, above_chance, at_chance
from findings_iterate import iterating_text, methods_figure, methods_table
from measuring import RECORDS, ROOT

import workbench as wb
from workbench.plots.style import new_figure, variant_styles
from workbench.tables.markup import task_label

MARKS = "<!-- findings: written by benchmarks/findings_page.py -->", "<!-- end of findings -->"
Text = Callable[[Frames], str]


def rests_on(*names: str) -> Callable[[Text], Text]:
    """Leave a text empty where the record lacks a frame that it rests on."""

    def of(write: Text) -> Text:
        @functools.wraps(write)
        def text(frames: Frames) -> str:
            return write(frames) if {*names} <= frames.keys() else ""

        return text

    return of


def read(folder: Path, beside: Mapping[str, Path]) -> tuple[Frames, dict[str, Any]]:
    """Return the frames of a record and of those beside it, and what they say of themselves."""
    frames = {file.stem: pd.read_csv(file) for file in sorted(folder.glob("*.csv"))}
    about = json.loads((folder / "record.json").read_text())
    about["notes"] = list(about.get("notes", []))
    for name, place in beside.items():
        frames |= {f"{name}_{file.stem}": pd.read_csv(file) for file in place.glob("*.csv")}
        about["notes"] += json.loads((place / "record.json").read_text()).get("notes", [])
    return frames, about | {"date": folder.name[:10]}


def newest() -> tuple[Path, dict[str, Path]]:
    """Return the folder of the newest record, and those of the newest of drafts and of iterating."""
    beside = {name: max(RECORDS.glob(f"*-{name}-*/"), default=None) for name in ("drafts", "iterate")}
    there = {name: place for name, place in beside.items() if place is not None}
    return max(RECORDS.glob("*-findings-*/")), there


def figures(frames: Frames, folder: Path) -> dict[str, str]:
    """Write the page's figures; return file names by what they show."""
    folder.mkdir(parents=True, exist_ok=True)
    wb.use_template("screen")
    made: dict[str, go.Figure] = {}
    if {"distances", "damage"} <= set(frames):
        of_c4 = frames["distances"].query("calibration == 'C4'").drop(columns="calibration")
        made["blocks"] = wb.distance_beside_damage(of_c4, frames["damage"])
    draw = {"strategies": strategy_figure, "similarity": closeness_figure, "recovery": recovery_figure}
    draw["iterate_scores"] = methods_figure
    made |= {name: of(frames[name]) for name, of in draw.items() if name in frames}
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
    order = [f"{size} layers" for size in sorted(rows["size"].astype(int).unique())]
    figure.update_yaxes(title="removed, of 30", type="category", categoryarray=order)
    ticks = [0.5, 1, 2, 5, 10, 20]
    figure.update_xaxes(title="rise of the loss, nats a token", type="log", tickvals=ticks, ticktext=ticks)
    return figure.update_layout(height=360)


def add_dots(figure: go.Figure, styles: Any, name: str, values: Any, labels: Any, **ends: Any) -> None:
    """Draw a variant's values with their intervals."""
    marker = {"size": 9, "color": styles[name].color, "symbol": styles[name].symbol}
    error = {"type": "data", "thickness": 1, **ends}
    figure.add_scatter(x=values, y=labels, name=name, mode="markers", marker=marker, error_x=error)


def closeness_figure(rows: pd.DataFrame) -> go.Figure:
    """Draw each training's mean over prompts with its 95 % interval (normal); pruned is the same in all."""
    figure, styles = new_figure("Which responses stay close?"), variant_styles(rows["variant"])
    rows = rows[rows["data"].isin(rows.loc[rows["variant"] != "pruned", "data"])]
    for name, part in rows.groupby("variant", sort=False):
        part = part.drop_duplicates(["data", "prompts"]) if name == "pruned" else part
        half = 1.96 * part["similarity_std"] / np.sqrt(part["n"])
        label = part["data"] + ", asked " + part["prompts"]
        add_dots(figure, styles, str(name), part["similarity"], label, array=half)
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
        add_dots(figure, styles, str(name), part["recovery"], label, **ends)
    figure.add_vline(x=1, line_dash="dot")
    figure.update_xaxes(title="share of the unpruned model's average over the sets above chance")
    return figure.update_layout(height=400)


def table(frame: pd.DataFrame, digits: int = 3) -> str:
    return wb.to_markdown(frame, digits=digits) + "\n"


def page(frames: Frames, pictures: Mapping[str, str], about: Mapping[str, Any]) -> str:
    """Return the page: claims first, then what each rests on."""
    parts = about["parts"]
    gpu = next((part["machine"].get("gpu") or part["machine"].get("cpu") for part in parts), "?")
    lines = [
        "# Findings on a real model",
        "",
        "What the papers' method does to SmolLM2-135M-Instruct (30 layers; `make smollm2`), on public data. "
        f"Every number is of the record of {about['date']} ({gpu}; {len(parts)} parts; frames in "
        "`benchmarks/records`), made by `benchmarks/findings.py` and laid out by "
        "`benchmarks/findings_page.py`. A verdict is *confirmed* or *refuted* where the 95 % interval lies "
        "on one side of nothing, else *undecided*. "
        "**Intervals are over items, prompts or texts on which both sides answered, except where a row says "
        "trainings or seeds; of those there are few, and one model.**",
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
    if "iterate_scores" in frames:
        heading = "## Iterating against removing at once"
        lines += section(pictures, "iterate_scores", heading, iterating_text(frames), methods_table(frames))
    lines += section(pictures, "drafts", "## Merges and drafts", *(of(frames) for of in DRAFTS))
    return "\n".join(lines).rstrip() + "\n"


@rests_on("won_back")
def share_text(frames: Frames) -> str:
    rows = frames["won_back"].drop(columns="tasks").rename(columns={"ci_low": "low", "ci_high": "high"})
    rows["variant"] = rows["variant"].replace({"base": "base (what pruning lost)"})
    return (
        f"Against the pruned model, on {frames['won_back']['tasks'].iloc[0]} (the sets on which the unpruned "
        "model is clearly above a guess); `share`: of what pruning lost. The mean of all nine sets would say "
        "that pruning costs nothing: BoolQ rises from below its majority class to it, which is no gain.\n\n"
        + table(rows)
    )


@rests_on("drafts_recovery")
def drafts_text(frames: Frames) -> str:
    tasks = ", ".join(map(task_label, sorted(frames["drafts_scores"]["task"].unique())))
    means = frames["drafts_recovery"].groupby(["layers_left", "variant"])["average"].mean()
    lines = []
    for left, rows in means.groupby(level="layers_left"):
        names = [name for name in ("base", "pruned", "sft", "self-distilled") if (left, name) in rows]
        lines.append(f"{left} layers left: " + ", ".join(f"{name} {rows[left, name]:.3f}" for name in names))
    told = [
        f"\n- {row['layers_left']} layers left, seed {row['seed']}: self-distilled is ahead of SFT on "
        f"{row['higher']} prompts and behind on {row['lower']} of {row['n']} (sign test, adjusted "
        f"p = {row['p_signs']:.1g}), the mean difference being {interval(row)}"
        for row in drafts_pair(frames)
    ]
    return (
        f"Mean accuracy on {tasks}, means over seeds: {'; '.join(lines)}. Healing does not raise it, so what "
        "a merge adds there says little. What the whole model accepts of a draft does rise with healing, by "
        f"SFT nearly as much as by self-distilled data:\n{''.join(told)}"
    )


@rests_on("drafts_acceptance")
def drafts_table(frames: Frames) -> str:
    rows = frames["drafts_acceptance"]
    keys = ["layers_left", "draft_length", "draft"]
    shown = ["acceptance", "acceptance_low", "acceptance_high", "tokens_per_call"]
    groups = rows[rows["draft_length"].isin([1, 3])].groupby(keys, sort=False)
    means = groups[shown].mean().assign(seeds=groups["seed"].nunique()).reset_index()
    pairs = frames["drafts_comparison"].sort_values(["layers_left", "variant", "against", "seed"])
    columns = ["layers_left", "seed", "variant", "against", "difference", "ci_low", "ci_high"]
    return (
        table(means.sort_values(["layers_left", "draft_length", "acceptance"]))
        + "\n`acceptance`: share of drafted tokens that the whole model would have chosen, greedy, mean over "
        "seeds of the value and of the ends of its interval over prompts; `tokens_per_call`: tokens a pass "
        "of the whole model. Pairs on the same 252 prompts, draft length 1:\n\n"
        + table(pairs[[*columns, "higher", "lower"]])
    )


@rests_on("drafts_speed")
def drafts_speed(frames: Frames) -> str:
    rows = frames["drafts_speed"].query("draft_length in (1, 4)")
    best = frames["drafts_speed"].sort_values("speed_up").iloc[-1]
    shown = ["speed_up", "speed_up_low", "speed_up_high", "theory", "cost", "acceptance"]
    found = "no draft of these is" if best["speed_up_high"] < 1 else "not every draft is"
    most = "{speed_up:.2f} [{speed_up_low:.2f}, {speed_up_high:.2f}]".format(**best)
    return (
        f"Against the clock, beside plain decoding with the same decoder, {best['n']:.0f} prompts one by "
        f"one, 128 tokens: {found} faster than plain decoding (at best {most} times as fast), and theory "
        "says so: a model this small leaves little to win, and an adapter that is on adds its kernels to "
        "every step of a draft.\n\n"
        + table(rows[["layers_left", "seed", "draft", "draft_length", *shown]])
        + "\n`cost`: of a draft's step, in steps of the whole model; `theory`: what this cost, the cost of "
        "verifying and the acceptance give."
    )


#: what is said of merges and drafts, in this order
DRAFTS = (drafts_text, drafts_table, drafts_speed)


def section(pictures: Mapping[str, str], name: str, *texts: str) -> list[str]:
    heading, *rest = texts
    shown = [f"![{heading.strip('# ')}]({pictures[name]})", ""] if name in pictures else []
    return [heading, "", *shown, *[text + "\n" for text in rest if text]] if any(rest) or shown else []


@rests_on("agreement")
def agreement_text(frames: Frames) -> str:
    rows = frames["agreement"]
    rows = rows[(rows["first"] == "angular distance") & (rows["second"] == "damage")]
    told = ", ".join(f"{row.spearman:.2f} at size {row.size}" for row in rows.itertuples(index=False))
    return f"Spearman's correlation of distance and damage, blocks of one size at a time: {told}."


@rests_on("calibration")
def calibration(frames: Frames) -> str:
    return table(wb.calibration_table(frames["calibration"]))


@rests_on("strategies")
def strategy_table(frames: Frames) -> str:
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
        "shallowest 600); none where it was not scored. The block that distance picks can cost much more "
        "than the one of least damage (sizes 4, 8 and 10): look at the damage before cutting."
    )


@rests_on("scores")
def score_summary(frames: Frames) -> str:
    base = frames["strategy_scores"]
    four = base["variant"].isin(["base-0", "distance-0", "deepest-0", "shallowest-0"])
    base = base[four & (base["size"] == 6)].assign(trained="")
    healed = frames["scores"].assign(trained=lambda f: f["data"] + " " + f["rows"].astype(str))
    rows = pd.concat([base, healed], ignore_index=True)
    wide = rows.pivot_table(index=["variant", "trained"], columns="task", values="value", sort=False)
    above = above_chance(frames["strategy_scores"])
    wide = wide.assign(**{"nine sets": wide.mean(axis=1), "above chance": wide[above].mean(axis=1)})
    seeds = frames["scores"]["seed"].nunique()
    guessed = map(task_label, at_chance(frames["strategy_scores"]))
    return (
        table(wide.rename(columns=task_label).reset_index())
        + f"\n{seeds} seed{'s, means over them' * (seeds > 1)}. At a guess from the start: "
        + f"{', '.join(guessed)}."
    )


def over_seeds(frame: pd.DataFrame, kind: str, drop: list[str]) -> str:
    means = frame.groupby(["data", "rows", kind], sort=False).mean(numeric_only=True).reset_index()
    counts = [name for name in means if name == "n" or name.startswith("n_")]
    return table(means.drop(columns=["seed", *drop]).astype(dict.fromkeys({*counts} - {*drop}, int)))


@rests_on("why")
def lengths(frames: Frames) -> str:
    return over_seeds(frames["why"], "prompts", ["n"])


@rests_on("premise")
def premise(frames: Frames) -> str:
    return (
        "What the two data sets are to the base: loss of the base on each text (nats a token), words, and "
        "similarity to the answer that the base itself gives to the bare prompt.\n\n"
    ) + over_seeds(frames["premise"], "text", [])


@rests_on("closeness")
def closeness_text(frames: Frames) -> str:
    cells = frames["closeness"].rename(columns={"data": "trained on", "prompts": "asked"})
    shown = ["trained on", "seed", "asked", "n", "difference", "ci_low", "ci_high", "higher", "lower"]
    told = "Similarity to the base's responses, self-distilled less SFT, on the same prompts:\n\n"
    return told + table(cells[shown])


@rests_on("premise")
def premise_text(frames: Frames) -> str:
    rows = frames["premise"]
    rows = rows[rows["rows"] == rows["rows"].min()]
    near = rows.pivot_table(index="data", columns="text", values="similarity")
    words = rows.pivot_table(index="data", columns="text", values="words").round().astype(int)
    sets = [f"{row.Index} {row.rewrite:.3f} against {row.reference:.3f}" for row in near.itertuples()]
    counts = [f"{row.Index} {row.own}, {row.reference}, {row.rewrite}" for row in words.itertuples()]
    loss = rows.groupby("text")["loss"].mean()
    return (
        "Self-data distillation rests on rewrites that are nearer to what the base itself would say. In "
        f"likelihood they are: its loss is {loss['rewrite']:.2f} nats a token on rewrites and "
        f"{loss['reference']:.2f} on references. In Sentence-BERT similarity to its own answer to the "
        f"bare prompt they are not (rewrite against reference: {', '.join(sets)}; first 200 rows of each "
        "set, no interval).\n\n"
        f"Words of its own answer, the reference, the rewrite: {'; '.join(counts)}."
    )


@rests_on("kept")
def kept_text(frames: Frames) -> str:
    rows = frames["kept"]
    kept = (
        rows.query("kept").groupby(["data", "rows", "seed"])["share"].sum().groupby(["data", "rows"]).mean()
    )
    shares = ", ".join(f"{data} {n:,} rows {share:.1%}" for (data, n), share in kept.items())
    silent = rows.query("reason == 'no reasoning'").groupby("data")["share"].mean()
    refused = [
        f"Of the rewrites of {data} {share:.1%} were refused for their lack of reasoning."
        for data, share in silent.items()
    ]
    return "\n\n".join([f"Kept rewrites (else the reference is learned): {shares}.", *refused])


@rests_on("why")
def lengths_text(frames: Frames) -> str:
    groups = frames["why"].groupby(["data", "prompts"], sort=False)
    rows = groups.mean(numeric_only=True).assign(trainings=groups.size(), n=groups["n_same_length"].sum())
    cells = [
        f"\n- {data}, asked {prompts}: {row['length_base']:.0f} tokens (base), "
        f"{row['length_sft']:.0f} (SFT), {row['length_self_distilled']:.0f} (self-distilled); the "
        f"difference is {row['difference']:+.3f}, and {row['same_length']:+.3f} on the "
        f"{row['n']:.0f} responses where both are as far in length from the base's"
        for (data, prompts), row in rows.iterrows()
    ]
    return (
        "How long the responses are, means over seeds. Where those of both are as long, little is left of "
        "the difference (a reading of few prompts, not a test):\n"
    ) + "".join(cells)


@rests_on("divergence", "divergence_gap")
def divergence_text(frames: Frames) -> str:
    keys = ["data", "prompts"]
    kl = frames["divergence"].pivot_table(index=keys, columns="variant", values="kl", sort=False).dropna()
    gap = frames["divergence_gap"].groupby(keys)[["difference"]].mean()
    seeds = frames["divergence_gap"].groupby(keys)["seed"].nunique().rename("seeds")
    return (
        "By next tokens it is the other way round: on the base's own responses the self-distilled variant's "
        "distribution is nearer to the base's than SFT's (Kullback-Leibler divergence, nats a token, means "
        "over seeds). Free responses part after the first token on which two models differ, and what "
        "Sentence-BERT compares is what comes after it.\n\n"
    ) + table(
        kl.join(gap).join(seeds).reset_index().rename(columns={"data": "trained on", "prompts": "asked"})
    )


def why_text(frames: Frames) -> str:
    """Say in numbers which explanation holds: length, kept share, or the data itself."""
    return joined(
        frames, closeness_text, divergence_text, premise_text, kept_text, lengths_text, between="\n\n"
    )


def why(frames: Frames) -> str:
    return joined(frames, lengths, premise, between="\n")


def joined(frames: Frames, *writers: Text, between: str) -> str:
    return between.join(text for write in writers if (text := write(frames)))


def readme(frames: Frames, about: Mapping[str, Any]) -> str:
    """Return what the README shows of a record: one figure, the claims, the date."""
    shown = claims(frames)[["claim", "says", "verdict", "number"]]
    shown["number"] = shown["number"].str.replace(r" \(\d[^)]*\)", "", regex=True)  # counts are on the page
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
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    parser.add_argument("--record", type=Path, help="default: the newest of benchmarks/records")
    parser.add_argument("--out", type=Path, default=ROOT / "docs")
    options = parser.parse_args()
    folder, beside = (options.record, {}) if options.record else newest()
    frames, about = read(folder, beside)
    pictures = figures(frames, options.out / "findings")
    (options.out / "findings.md").write_text(page(frames, pictures, about), encoding="utf-8")
    claims(frames).to_csv(folder / "claims.csv", index=False)
    if options.out == ROOT / "docs":
        into_readme(readme(frames, about), ROOT / "README.md")
    print(f"{options.out / 'findings.md'}: {len(pictures)} figures")


if __name__ == "__main__":
    main()

"""What a table or a figure says, in a sentence or a few of Markdown, with the numbers and their spread.

Frames in, text out; a notebook shows it with ``say``. A reading tells differences and ties, never causes.
"""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from workbench.distances.blocks import best_blocks, checked_blocks
from workbench.evaluation.scores import average_recovery, category_scores, headline
from workbench.forgetting.changes import shift_agreement
from workbench.runs.provenance import library_versions
from workbench.statistics import paired_difference

#: columns of a search's trials that are no settings
_MEASURED = {"trial", "state", "loss", "train_loss", "steps", "tokens", "seconds", "error"}


def say(text: str) -> None:
    """Show Markdown below the cell of a notebook."""
    from IPython import display

    page: Any = display  # its functions have no types
    page.display(page.Markdown(text))


def about(model: Any) -> pd.DataFrame:
    """Return the model, the hardware and the versions that results come from, for ``text_table``.

    Returns:
        Frame of texts ``what, here``, one row a fact.
    """
    from workbench.models.costs import parameter_counts
    from workbench.models.identity import describe_model
    from workbench.models.layers import unwrap

    told, device, versions = describe_model(model), unwrap(model).device, library_versions()
    libraries = [f"{name} {versions[name]}" for name in ("torch", "transformers", "peft")]
    facts = {
        "model": f"{told['id']} ({told['architecture']})",
        "layers": str(told["n_layers"]),
        "parameters": f"{parameter_counts(model)['total']:,}",
        "precision": told["dtype"],
        "device": f"{device}: {_processor(device)}",
        "versions": ", ".join([f"Python {platform.python_version()}", *libraries]),
    }
    return pd.DataFrame(facts.items(), columns=["what", "here"])


def block_reading(distances: pd.DataFrame, start: int, size: int, savings: pd.DataFrame | None = None) -> str:
    """Say how far a block moves the residual stream, and what its removal saves.

    Args:
        distances: of ``angular_distances``.
        start: first layer of the block.
        size: layers in it.
        savings: of ``block_savings`` for the same model.

    >>> frame = pd.DataFrame({"start": [0, 1, 0], "size": [1, 1, 2], "distance": [0.25, 0.125, 0.3]})
    >>> block_reading(frame, 0, 2)
    '**Layers 0-1**: angular distance 0.300.'
    """
    row = _block(checked_blocks(distances, "distance", "distances"), start, size)
    text = f"**Layers {row['removed']}**: angular distance {row['distance']:.3f}{_interval(row)}"
    if savings is None:
        return f"{text}."
    saved = _block(savings, start, size)
    parameters, flops = (_percent(saved[f"{name}_saved"], 2) for name in ("parameters", "flops"))
    return f"{text}; {parameters} of the parameters, {flops} of the FLOPs of a token."


def stability_reading(stability: pd.DataFrame, *, sure: float = 0.9) -> str:
    """Say for how many sizes resampled texts pick the same block (``pick_stability``).

    >>> rows = {"size": [1, 2], "stability": [1.0, 0.6], "runner_up": [3, 5], "n_texts": 64}
    >>> print(stability_reading(pd.DataFrame(rows)))  # doctest: +NORMALIZE_WHITESPACE
    In at least 90 % of the resamples of 64 texts the pick is the same for 1 of 2 sizes; less sure: size 2
    (60 %, else start 5).
    """
    n = stability["n_texts"].iloc[0]
    if n < 2:
        return "With one text there is nothing to resample: how sure the pick is cannot be said."
    shaky = stability[stability["stability"] < sure]
    each = [f"size {r.size} ({_percent(r.stability)}, else start {r.runner_up})" for r in _rows(shaky)]
    return (
        f"In at least {_percent(sure)} of the resamples of {n} texts the pick is the same for "
        f"{len(stability) - len(shaky)} of {len(stability)} sizes"
        + (f"; less sure: {', '.join(each)}." if each else ".")
    )


def damage_reading(distances: pd.DataFrame, damage: pd.DataFrame, sizes: Iterable[int]) -> str:
    """Say for each size what skipping the nearest block costs, beside the least harmful block.

    Args:
        distances: of ``angular_distances``.
        damage: of ``block_damage``, every block of the sizes.
        sizes: block sizes to tell of.
    """
    lines = []
    for pick in _rows(best_blocks(distances, list(sizes))):
        of_size = damage[damage["size"] == pick.size].sort_values("damage")
        got, least = _block(of_size, pick.start, pick.size), of_size.iloc[0]
        other = (
            f"the least harmful is **{least['removed']}**, {least['damage']:+.3f}{_interval(least, '+.3f')}"
        )
        lines.append(
            f"- size {pick.size}: the nearest block, **{got['removed']}**, costs {got['damage']:+.3f} nats a "
            f"token{_interval(got, '+.3f')}; "
            + ("no block costs less." if got["damage"] == least["damage"] else f"{other}.")
        )
    return "\n".join(lines)


def look_reading(seen: Mapping[str, Any], n_texts: int) -> str:
    """Say what one look found (``BlockPicker.look``): the loss on held-out texts, and the answer.

    >>> found = {"removed": "3-4", "base_loss": 1.0, "loss": 1.5, "base_text": "a", "text": "b"}
    >>> print(look_reading(found, 24))  # doctest: +NORMALIZE_WHITESPACE
    Without layers 3-4 the loss on 24 held-out texts goes from 1.000 to 1.500 nats a token (+0.500), and the
    question gets another answer.
    """
    added = seen["loss"] - seen["base_loss"]
    return (
        f"Without layers {seen['removed']} the loss on {n_texts} held-out texts goes from "
        f"{seen['base_loss']:.3f} to {seen['loss']:.3f} nats a token ({added:+.3f}), "
        f"and the question gets {'the same' if seen['text'] == seen['base_text'] else 'another'} answer."
    )


def looks_reading(looks: pd.DataFrame, n_texts: int) -> str:
    """Say which of the blocks that were looked at costs least (``BlockPicker.kept`` with ``damage``).

    >>> looks_reading(pd.DataFrame({"removed": ["3", "0"], "damage": [0.5, 0.25]}), 24)
    'Of 2 blocks, leaving out **0** costs least (3: +0.500, 0: +0.250 nats a token, on 24 texts).'
    """
    least = looks.loc[looks["damage"] == looks["damage"].min(), "removed"]
    each = ", ".join(f"{row.removed}: {row.damage:+.3f}" for row in _rows(looks))
    each += f" nats a token, on {n_texts} texts"
    return f"Of {len(looks)} blocks, leaving out {_named(least)} costs least ({each})."


def distillation_reading(distilled: pd.DataFrame) -> str:
    """Say how many rewrites were kept, and how long references and responses are (``self_distill``).

    >>> row = {"kept": True, "reference": "one two", "response": "one two three four"}
    >>> print(distillation_reading(pd.DataFrame([row])))  # doctest: +NORMALIZE_WHITESPACE
    **1 of 1** rewrites were kept (100.0 %). On average a reference has 2 words, a response to learn from 4.
    """
    words = distilled[["reference", "response"]].map(lambda text: len(text.split())).mean()
    kept = distilled["kept"]
    return (
        f"**{kept.sum()} of {len(kept)}** rewrites were kept ({_percent(kept.mean(), 1)}). On average a "
        f"reference has {words['reference']:.0f} words, a response to learn from {words['response']:.0f}."
    )


def tuning_reading(trials: pd.DataFrame) -> str:
    """Say which settings of a search leave the least loss (``tune``).

    >>> tuning_reading(pd.DataFrame({"trial": [0, 1], "rank": [4, 8], "loss": [0.5, 0.25]}))
    'Held-out loss of 2 trainings, nats a token: from **0.250** (rank 8) to 0.500.'
    """
    done = trials.dropna(subset="loss")
    best = done[done["loss"] == done["loss"].min()]
    names = [name for name in trials if name not in _MEASURED]
    settings = [", ".join(f"{name} {row[name]}" for name in names) for row in best.to_dict("records")]
    return (
        f"Held-out loss of {len(done)} trainings, nats a token: from **{done['loss'].min():.3f}** "
        f"({_escaped(' or '.join(settings))}) to {done['loss'].max():.3f}."
    )


def summary_reading(summary: pd.DataFrame, n: int, *, base: str = "base") -> str:
    """Say what each variant scores beside the base (``summary_table``), and what chance alone can do.

    Args:
        summary: a row a variant, a column a group of tasks.
        n: items of each task.
        base: the unpruned variant.

    >>> print(summary_reading(pd.DataFrame({"variant": ["base", "cut"], "reasoning": [1.0, 0.5]}), 50))
    - **cut**: reasoning 0.50 (base 1.00).
    <BLANKLINE>
    With 50 items a task, a difference of less than 0.20 between two scores can be chance.
    """
    table = summary.set_index("variant").drop(columns="similarity", errors="ignore")
    lines = []
    for name in table.index.drop(base):
        each = [
            f"{group} {table.loc[name, group]:.2f} (base {table.loc[base, group]:.2f})" for group in table
        ]
        lines.append(f"- **{_escaped(name)}**: {', '.join(each)}.")
    return "\n".join([*lines, "", _chance(n)])


def recovery_reading(scores: pd.DataFrame, *, base: str = "base") -> str:
    """Say what share of the base's average each variant keeps, and where it lost most (``recovery``).

    Args:
        scores: rows of ``evaluate`` with a column ``variant``.
        base: the unpruned variant.
    """
    by_category = category_scores(scores).pivot(index="variant", columns="category", values="value")
    lost = (by_category.loc[base] - by_category.drop(base)).round(12)
    lines = []
    for row in _rows(average_recovery(scores, base).query("variant != @base")):
        of_variant = lost.loc[row.variant]
        most = _named(of_variant.index[of_variant == of_variant.max()], mark="*")
        where = f"most in {most} ({-of_variant.max():+.3f})" if of_variant.max() > 0 else "in no category"
        lines.append(
            f"- **{_escaped(row.variant)}** keeps {_percent(row.recovery, 1)} of the unpruned model's "
            f"average over {row.n_tasks} tasks; it lost {where}."
        )
    return "\n".join(lines)


def comparison_reading(comparisons: pd.DataFrame, *, level: float = 0.05) -> str:
    """Say how many paired differences are unlikely to be chance (``compare_items`` of several variants).

    >>> print(comparison_reading(pd.DataFrame({"p_value": [0.01, 0.5], "difference": [-0.2, 0.1]})))
    ... # doctest: +NORMALIZE_WHITESPACE
    **1 of 2** differences have p < 0.05, where chance alone would give about 0.1: 1 for the worse, 0 for the
    better.
    """
    clear = comparisons[comparisons["p_value"] < level]
    return (
        f"**{len(clear)} of {len(comparisons)}** differences have p < {level:g}, where chance alone would "
        f"give about {level * len(comparisons):.1f}: {(clear['difference'] < 0).sum()} for the worse, "
        f"{(clear['difference'] > 0).sum()} for the better."
    )


def flips_reading(flips: pd.DataFrame) -> str:
    """Say how many items each variant turned (``flip_counts``).

    >>> row = {"variant": "cut", "task": "math", "n": 50, "right_to_wrong": 20, "wrong_to_right": 1}
    >>> flips_reading(pd.DataFrame([row]))
    '- **cut**: of 50 items 20 turned from right to wrong, 1 from wrong to right.'
    """
    turned = flips.groupby("variant", sort=False)[["n", "right_to_wrong", "wrong_to_right"]].sum()
    return "\n".join(
        f"- **{_escaped(row.variant)}**: of {row.n} items {row.right_to_wrong} turned from right to wrong, "
        f"{row.wrong_to_right} from wrong to right."
        for row in _rows(turned.reset_index())
    )


def depth_reading(depth: pd.DataFrame, *, share: float = 0.9) -> str:
    """Say up to how many layers each task keeps a share of its score (``scores_by_depth``).

    Args:
        depth: rows without and with layers left out.
        share: of the whole model's score.
    """
    rows = headline(depth).query("higher_is_better")
    scores = rows.pivot(index="n_removed", columns="task", values="value")
    keeps = scores.ge(share * scores.loc[0]).cummin()
    lines = []
    for task in scores:
        most = keeps.index[keeps[task]].max()
        lines.append(
            f"- *{_escaped(task)}* keeps {_percent(share)} of its score with up to {most} "
            f"{'layer' if most == 1 else 'layers'} left out; without {scores.index[-1]} it scores "
            f"{scores[task].iloc[-1]:.2f}."
        )
    return "\n".join([*lines, "", _chance(int(rows["n"].min()))])


def similarity_reading(similarity: pd.DataFrame) -> str:
    """Say which variants stay closest and which move farthest, compared on the same prompts.

    Args:
        similarity: of ``response_similarity`` for several variants; with a column ``prompts``, by its sets.

    >>> values = {"variant": ["a", "a", "b", "b"], "id": [0, 1, 0, 1], "similarity": [0.9, 0.8, 0.5, 0.4]}
    >>> print(similarity_reading(pd.DataFrame(values)))  # doctest: +NORMALIZE_WHITESPACE
    - closest to the unpruned model **a** (mean 0.850), farthest **b** (mean 0.450); on the same 2 prompts
    they differ by 0.400 (95 % interval 0.400 to 0.400).
    """
    sets = similarity.groupby("prompts", sort=False) if "prompts" in similarity else [("", similarity)]
    lines = []
    for name, part in sets:
        rows = part.pivot(index="id", columns="variant", values="similarity")
        means = rows.mean().round(12).sort_values(ascending=False, kind="stable")
        ends = {value: means.index[means == value] for value in (means.iloc[0], means.iloc[-1])}
        closest, farthest = (f"{_named(ends[mean])} (mean {mean:.3f})" for mean in means.iloc[[0, -1]])
        gap = paired_difference(rows[means.index[-1]], rows[means.index[0]])
        lines.append(
            (f"- *{_escaped(name)}*: " if name else "- ")
            + f"closest to the unpruned model {closest}, farthest {farthest}; on the same {gap['n']} prompts "
            f"they differ by {gap['difference']:.3f}{_interval(gap)}"
            + ("." if gap["ci_low"] > 0 else ", so the order may be chance.")
        )
    return "\n".join(lines)


def closest_reading(similarity: pd.DataFrame) -> str:
    """Say on what share of the prompts each variant is the closest to the base, alone or with another.

    >>> values = {"variant": ["a", "a", "b", "b"], "id": [0, 1, 0, 1], "similarity": [1, 1, 1, 0.4]}
    >>> print(closest_reading(pd.DataFrame(values)))  # doctest: +NORMALIZE_WHITESPACE
    Closest to the base, alone or with another: **a** on 100 %, **b** on 50 % of 2 prompts; on 1 of them
    several are equally close.
    """
    rows = similarity.pivot(index="id", columns="variant", values="similarity")
    closest = rows.eq(rows.max(axis=1), axis=0)
    shares = closest.mean().sort_values(ascending=False, kind="stable")
    each = ", ".join(f"**{_escaped(name)}** on {_percent(value)}" for name, value in shares.items())
    return (
        f"Closest to the base, alone or with another: {each} of {len(rows)} prompts; on "
        f"{(closest.sum(axis=1) > 1).sum()} of them several are equally close."
    )


def divergence_reading(by_response: pd.DataFrame) -> str:
    """Say how many responses of the base each variant would leave (``divergence_by_response``).

    >>> print(divergence_reading(pd.DataFrame({"variant": "cut", "agrees_for": [4, 9], "n_tokens": [9, 9]})))
    - **cut** would choose another next token in 1 of 2 responses, in the median after 4 tokens.
    """
    lines = []
    for name, part in by_response.groupby("variant", sort=False):
        left = part.loc[part["agrees_for"] < part["n_tokens"], "agrees_for"]
        after = f", in the median after {left.median():.0f} tokens" if len(left) else ""
        many = f"in {len(left)} of {len(part)} responses"
        lines.append(f"- **{_escaped(name)}** would choose another next token {many}{after}.")
    return "\n".join(lines)


def shift_reading(losses: pd.DataFrame) -> str:
    """Say whether answers that moved farther go with more accuracy lost (``loss_against_similarity``)."""
    found = shift_agreement(losses)
    ordered = losses.sort_values("similarity", kind="stable")
    shown = {
        "The largest shift that lost less than 0.1": ordered[ordered["lost"] < 0.1].head(1),
        "The smallest shift that lost 0.1 or more": ordered[ordered["lost"] >= 0.1].tail(1),
    }
    lines = [
        f"- {what}: **{_escaped(row.variant)}** on *{_escaped(row.task)}*, similarity {row.similarity:.2f}, "
        f"lost {row.lost:+.2f}."
        for what, rows in shown.items()
        for row in _rows(rows)
    ]
    rank = f"{found['spearman']:.2f} (95 % interval {found['ci_low']:.2f} to {found['ci_high']:.2f})"
    what = f"shift (1 - similarity) and accuracy lost, over {found['n']} points"
    return "\n".join([f"- Spearman's rank correlation of {what}: {rank}.", *lines])


def _processor(device: Any) -> str:
    if device.type == "cuda":
        import torch

        return torch.cuda.get_device_name(device)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    info = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*:\s*(.+)", info.read_text()) if info.is_file() else None
    return f"{found.group(1) if found else platform.machine()}, {cores} cores"


def _rows(frame: pd.DataFrame) -> Iterable[Any]:
    rows: Iterable[Any] = frame.itertuples(index=False)
    return rows


def _block(frame: pd.DataFrame, start: int, size: int) -> pd.Series:
    return frame[(frame["start"] == start) & (frame["size"] == size)].iloc[0]


def _interval(row: Any, form: str = ".3f") -> str:
    """Return the interval in brackets, with the number of texts where known; "" where there is none."""
    if "ci_low" not in row or pd.isna(row["ci_low"]):
        return ""
    texts = f", {row['n_texts']:.0f} texts" if "n_texts" in row else ""
    return f" (95 % interval {row['ci_low']:{form}} to {row['ci_high']:{form}}{texts})"


def _chance(n: int) -> str:
    """Say how far two shares of ``n`` items can lie apart by chance: 95 % of a normal, at one half each."""
    largest = f"{1.96 * np.sqrt(0.5 / n):.2f}"
    return f"With {n} items a task, a difference of less than {largest} between two scores can be chance."


def _percent(share: float, digits: int = 0) -> str:
    return f"{100 * share:.{digits}f} %"


def _named(names: Iterable[Any], mark: str = "**") -> str:
    return " and ".join(f"{mark}{_escaped(name)}{mark}" for name in names)


def _escaped(text: Any) -> str:
    """Return a text from data so that Markdown shows it as it stands, on one line."""
    return re.sub(r"([\\`*_\[\]|#<>$~&])", r"\\\1", " ".join(str(text).split()))

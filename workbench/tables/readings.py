"""What blocks and trainings say, in a sentence or a few of Markdown, with the numbers and their spread.

Frames in, text out; a notebook shows it with ``say``. A reading tells differences and ties, never causes.
"""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from workbench.distances.blocks import best_blocks, block_row, checked_blocks, format_layers
from workbench.distances.stability import mean_distances
from workbench.runs.provenance import library_versions
from workbench.tables.sentences import counted, each_row, escaped, interval, named, percent

_BY_SIZE = 'by="size" tells more'
#: columns of a search's trials that are no settings
_MEASURED = {"trial", "state", "loss", "train_loss", "steps", "tokens", "seconds", "error"}


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
    row = block_row(checked_blocks(distances, "distance", "distances"), start, size)
    layers = f"**{'Layer' if size == 1 else 'Layers'} {escaped(row['removed'])}**"
    text = f"{layers}: angular distance {row['distance']:.3f}{interval(row)}"
    if savings is None:
        return f"{text}."
    saved = block_row(savings, start, size)
    parameters, flops = (percent(saved[f"{name}_saved"], 2) for name in ("parameters", "flops"))
    return f"{text}; {parameters} of the parameters, {flops} of the FLOPs of a token."


def end_token_reading(distances: pd.DataFrame) -> str:
    """Say at which token distances at the last token were measured (``angular_distances``, ``block_angles``).

    >>> frame = pd.DataFrame()
    >>> frame.attrs["end_token"] = {"id": 4, "text": ".", "share": 0.75}
    >>> print(end_token_reading(frame))  # doctest: +NORMALIZE_WHITESPACE
    75 % of the texts end in one token, \".\": there the distances are those at this token.
    """
    told = distances.attrs.get("end_token")
    if not told:
        return "At which token the texts end is not known of this frame."
    if told["share"] < 0.5:
        commonest = f"{_token(told['text'])}, ends {percent(told['share'])}"
        return f"The texts end in many tokens; the commonest, {commonest} of them."
    which = "these are the distances" if told["share"] == 1 else "there the distances are those"
    every = "Every text ends" if told["share"] == 1 else f"{percent(told['share'])} of the texts end"
    return f"{every} in one token, {_token(told['text'])}: {which} at this token."


def _token(text: str) -> str:
    """Return a token so that it is seen, also where it is a line end or spaces."""
    return f'"{escaped(text)}"' if text.strip() else f"`{text!r}`"


def end_point_reading(angles: pd.DataFrame, points: pd.DataFrame, sizes: Iterable[int]) -> str:
    """Say whether the nearest blocks at the last token are also the nearest at random tokens.

    Args:
        angles: of ``block_angles`` at the last token.
        points: of ``block_angles`` with ``position="random"``, on the same texts.
        sizes: block sizes to tell of.
    """
    last, anywhere = (best_blocks(mean_distances(frame), list(sizes)) for frame in (angles, points))
    pairs = list(zip(last["size"], last["removed"], anywhere["removed"], strict=True))
    other = [
        f"size {size}: **{there}** instead of **{here}**" for size, here, there in pairs if here != there
    ]
    many = counted(len(pairs), "size")
    if not other:
        return f"{end_token_reading(angles)} At random tokens the nearest blocks are the same for {many}."
    return (
        f"{end_token_reading(angles)} At random tokens of the same texts {len(other)} of {many} have another "
        f"nearest block: {'; '.join(other)}."
    )


def stability_reading(stability: pd.DataFrame, *, sure: float = 0.9) -> str:
    """Say for how many sizes resamples pick the same block (``pick_stability``, of one kind or several).

    >>> rows = {"size": [1, 2], "stability": [1.0, 0.6], "runner_up": [3, 5], "n_texts": 64, "over": "texts"}
    >>> print(stability_reading(pd.DataFrame(rows)))  # doctest: +NORMALIZE_WHITESPACE
    - over other texts: in at least 90 % of the resamples of 64 texts the pick is the same for 1 of 2 sizes;
    less sure: size 2 (60 %, else start 5).
    """
    drawn = {"texts": "over other texts", "endpoints": "over other end points", "both": "over both"}
    parts = stability.assign(over=stability.get("over", "texts")).groupby("over", sort=False)
    return "\n".join(f"- {drawn[str(over)]}: {_stable(part, sure)}" for over, part in parts)


def _stable(stability: pd.DataFrame, sure: float) -> str:
    known, n = stability.dropna(subset=["stability"]), stability["n_texts"].iloc[0]
    if known.empty:
        return "with one text, or one point of each, there is nothing to resample."
    shaky = known[known["stability"] < sure]
    each = [f"size {r.size} ({percent(r.stability)}, else start {r.runner_up})" for r in each_row(shaky)]
    return (
        f"in at least {percent(sure)} of the resamples of {n} texts the pick is the same for "
        f"{len(known) - len(shaky)} of {counted(len(known), 'size')}"
        + (f"; less sure: {', '.join(each)}." if each else ".")
    )


def agreement_reading(agreement: pd.DataFrame) -> str:
    """Say how far metrics rank the same blocks alike (``rank_agreement``), size by size where it tells sizes.

    Over blocks of all sizes together any two metrics agree that grow with the size, whatever they rank.

    >>> rows = {"first": "a", "second": "b", "size": [1, 2], "n": [9, 8], "spearman": [0.7, -0.2]}
    >>> rows |= {"ci_low": [0.1, -0.7], "ci_high": [0.9, 0.5]}
    >>> print(agreement_reading(pd.DataFrame(rows)))  # doctest: +NORMALIZE_WHITESPACE
    - **a** and **b** rank the blocks of one size alike (the interval is above 0) at 1 of 2 sizes: from -0.20
    (size 2, 8 blocks) to 0.70 (size 1, 9 blocks).
    """
    lines = []
    for (first, second), part in agreement.groupby(["first", "second"], sort=False):
        pair, known = f"- **{escaped(first)}** and **{escaped(second)}**", part.dropna(subset=["spearman"])
        if known.empty:
            lines.append(f"{pair}: too few blocks, or all alike, to rank.")
        elif "size" not in known or len(part) == 1:
            row = known.iloc[0]
            rank = f"{row['spearman']:.2f}{interval(row, '.2f')}"
            blocks = f"all sizes together, which metrics that grow with the size share; {_BY_SIZE}"
            blocks = f"size {row['size']}" if "size" in known else blocks
            lines.append(f"{pair}: rank correlation {rank} over {row['n']} blocks of {blocks}.")
        else:
            ends = (known.loc[known["spearman"].idxmin()], known.loc[known["spearman"].idxmax()])
            low, high = (f"{r['spearman']:.2f} (size {r['size']}, {counted(r['n'], 'block')})" for r in ends)
            lines.append(
                f"{pair} rank the blocks of one size alike (the interval is above 0) at "
                f"{(known['ci_low'] > 0).sum()} of {counted(len(part), 'size')}: from {low} to {high}."
            )
    return "\n".join(lines)


def damage_reading(
    distances: pd.DataFrame, damage: pd.DataFrame, sizes: Iterable[int], *, texts: str = ""
) -> str:
    """Say for each size what skipping the nearest block costs, beside the least harmful block.

    Args:
        distances: of ``angular_distances``.
        damage: of ``block_damage``, every block of the sizes.
        sizes: block sizes to tell of.
        texts: what the damage was measured on; "" says nothing of it.
    """
    lines = [f"On held-out texts of **{escaped(texts)}**:", ""] if texts else []
    for pick in each_row(best_blocks(distances, list(sizes))):
        of_size = damage[damage["size"] == pick.size].sort_values("damage")
        if not (of_size["start"] == pick.start).any():
            lines.append(
                f"- size {pick.size}: the nearest block, **{escaped(pick.removed)}**, was not measured."
            )
            continue
        got, least = block_row(of_size, pick.start, pick.size), of_size.iloc[0]
        rest = f"the least harmful is **{escaped(least['removed'])}**, {least['damage']:+z.3f}"
        rest += interval(least, "+z.3f")
        if got["damage"] == least["damage"]:
            rest = "no block costs less" if len(of_size) > 1 else "no other block was measured"
        lines.append(
            f"- size {pick.size}: the nearest block, **{escaped(got['removed'])}**, costs "
            f"{got['damage']:+z.3f} nats a token{interval(got, '+z.3f')}; {rest}."
        )
    return "\n".join(lines)


def choice_reading(
    distances: pd.DataFrame, damage: pd.DataFrame, layers: Sequence[int], *, texts: str = "held-out texts"
) -> str:
    """Say what the metric and the damage say of a chosen block, and what each alone would choose.

    Of layers that are no one block it says only that.

    Args:
        distances: of ``angular_distances``.
        damage: of ``block_damage``.
        layers: what was chosen, in rising order.
        texts: what the damage was measured on.

    >>> rows = {"start": [0, 1], "size": [1, 1], "removed": ["0", "1"]}
    >>> near = pd.DataFrame({**rows, "distance": [0.2, 0.1]})
    >>> cost = pd.DataFrame({**rows, "damage": [0.5, 0.7]})
    >>> print(choice_reading(near, cost, [1], texts="c4"))  # doctest: +NORMALIZE_WHITESPACE
    Chosen: **1**, angular distance 0.100 (the nearest of size 1), damage +0.700 nats a token on c4. The
    least harmful of size 1 is **0**: angular distance 0.200, damage +0.500. A careful user would take **0**
    (`block_start = 0`), where what counts is the loss on such texts.
    """
    near = checked_blocks(distances, "distance", "distances")
    start, size = min(layers), len(layers)
    if list(layers) != list(range(start, start + size)):
        return f"Chosen: **{format_layers(layers)}**, which is no one block: distances say nothing of it."
    chosen, nearest = block_row(near, start, size), best_blocks(near, [size]).iloc[0]
    is_nearest = nearest["start"] == start
    note = (
        f"the nearest of size {size}"
        if is_nearest
        else f"the nearest is {escaped(nearest['removed'])}, {nearest['distance']:.3f}"
    )
    text = f"Chosen: **{escaped(chosen['removed'])}**, angular distance {chosen['distance']:.3f} ({note})"
    of_size = damage[damage["size"] == size].sort_values("damage")
    if not (of_size["start"] == start).any():
        return f"{text}; its damage was not measured in notebook 01."
    cost, least = block_row(of_size, start, size), of_size.iloc[0]
    text += f", damage {cost['damage']:+z.3f}{interval(cost, '+z.3f')} nats a token on {escaped(texts)}."
    if least["damage"] == cost["damage"]:
        return f"{text} No block of its size costs less: metric and damage leave nothing better to take."
    away = f"angular distance {block_row(near, least['start'], size)['distance']:.3f}"
    text += f" The least harmful of size {size} is **{escaped(least['removed'])}**: {away}, damage "
    text += f"{least['damage']:+z.3f}{interval(least, '+z.3f')}."
    if not _told_apart(least, cost, "ci"):
        return f"{text} The intervals overlap: on other texts it may be the other way round."
    return (
        f"{text} A careful user would take **{escaped(least['removed'])}** "
        f"(`block_start = {least['start']}`), where what counts is the loss on such texts."
    )


def _told_apart(low: Any, high: Any, of: str) -> bool:
    """Return whether the intervals of two rows lie apart; True where none is known."""
    ends = low.get(f"{of}_high"), high.get(f"{of}_low")
    return any(end is None or pd.isna(end) for end in ends) or ends[0] < ends[1]


def look_reading(seen: Mapping[str, Any], n_texts: int) -> str:
    """Say what one look found (``BlockPicker.look``): the loss on held-out texts, and the answer.

    >>> found = {"removed": "3-4", "base_loss": 1.0, "loss": 1.5, "base_text": "a", "text": "b"}
    >>> print(look_reading(found, 24))  # doctest: +NORMALIZE_WHITESPACE
    Without layers 3-4 the loss on 24 held-out texts goes from 1.000 to 1.500 nats a token (+0.500), and the
    question gets another answer.
    """
    added = seen["loss"] - seen["base_loss"]
    layers = "layer" if str(seen["removed"]).isdecimal() else "layers"
    return (
        f"Without {layers} {escaped(seen['removed'])} the loss on {n_texts} held-out texts goes from "
        f"{seen['base_loss']:.3f} to {seen['loss']:.3f} nats a token ({added:+z.3f}), "
        f"and the question gets {'the same' if seen['text'] == seen['base_text'] else 'another'} answer."
    )


def looks_reading(looks: pd.DataFrame, n_texts: int) -> str:
    """Say which of the blocks that were looked at costs least (``BlockPicker.kept`` with ``damage``).

    >>> looks_reading(pd.DataFrame({"removed": ["3", "0"], "damage": [0.5, 0.25]}), 24)
    'Of 2 blocks, leaving out **0** costs least (3: +0.500, 0: +0.250 nats a token, on 24 texts).'
    """
    least = looks.loc[looks["damage"] == looks["damage"].min(), "removed"]
    each = ", ".join(f"{escaped(row.removed)}: {row.damage:+z.3f}" for row in each_row(looks))
    each += f" nats a token, on {n_texts} texts"
    first, *others = looks.sort_values("damage", kind="stable").to_dict("records")
    near = [one["removed"] for one in others if not _told_apart(first, one, "damage")]
    near = [one for one in near if one not in set(least)]
    told = f" On other texts it may be {named(near)}: the intervals overlap." if near else ""
    return f"Of {len(looks)} blocks, leaving out {named(least)} costs least ({each}).{told}"


def distillation_reading(distilled: pd.DataFrame) -> str:
    """Say how many rewrites were kept, how many were cut off, how long all are (``self_distill``).

    >>> row = {"kept": True, "reference": "one two", "response": "one two three four"}
    >>> print(distillation_reading(pd.DataFrame([row])))  # doctest: +NORMALIZE_WHITESPACE
    **1 of 1** rewrites were kept (100.0 %). On average a reference has 2 words, a response to learn from 4.
    """
    words = distilled[["reference", "response"]].map(lambda text: len(text.split())).mean()
    kept, cut = distilled["kept"], distilled.get("reason", pd.Series(dtype=str)) == "cut off"
    lost = f" **{cut.sum()}** ({percent(cut.mean())}) had not ended at `max_new_tokens` and were cut off, so "
    lost += "the reference stays: a larger one, or prompts with shorter answers, may keep more."
    return (
        f"**{kept.sum()} of {len(kept)}** rewrites were kept ({percent(kept.mean(), 1)})."
        f"{lost if cut.any() else ''} On average a reference has {words['reference']:.0f} words, a "
        f"response to learn from {words['response']:.0f}."
    )


def tuning_reading(trials: pd.DataFrame) -> str:
    """Say which settings of a search leave the least loss (``tune``).

    >>> tuning_reading(pd.DataFrame({"trial": [0, 1], "rank": [4, 8], "loss": [0.5, 0.25]}))
    'Held-out loss of 2 trainings, nats a token: from **0.250** (rank 8) to 0.500.'
    """
    done = trials.dropna(subset="loss")
    if done.empty:
        why = next((f" ({escaped(said)})" for said in trials.get("error", []) if said), "")
        return f"None of {counted(len(trials), 'training')} ended with a loss{why}."
    best = done[done["loss"] == done["loss"].min()]
    names = [name for name in trials if name not in _MEASURED]
    settings = [", ".join(f"{name} {row[name]}" for name in names) for row in best.to_dict("records")]
    return (
        f"Held-out loss of {counted(len(done), 'training')}, nats a token: from **{done['loss'].min():.3f}** "
        f"({escaped(' or '.join(settings))}) to {done['loss'].max():.3f}."
    )


def _processor(device: Any) -> str:
    if device.type == "cuda":
        import torch

        return torch.cuda.get_device_name(device)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    info = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*:\s*(.+)", info.read_text()) if info.is_file() else None
    return f"{found.group(1) if found else platform.machine()}, {cores} cores"

"""What a record of `findings.py`, and that of `drafts_real.py` beside it, says to the papers' claims."""

from __future__ import annotations

from typing import Any

import pandas as pd
from findings_frames import BLIND, Frames, at_chance
from findings_iterate import iterating, listed
from scipy import stats

from workbench.statistics import holm
from workbench.tables.claims import CLAIMS, verdict
from workbench.tables.markup import task_label

#: what is said of a claim that no frame of the record speaks to
UNTOUCHED = {
    "C6": "no training on more rows came to its end",
    "C7": "notebook 08 asks it of a run",
    "C8": "notebook 09 asks it of a run",
    "C9": "the study of it is unfinished",
}
#: verdict, number, what it rests on
Said = tuple[str, str, str]


def claims(frames: Frames) -> pd.DataFrame:
    """Return the claims that the record touches: verdict, number, what it rests on."""
    found = {name: say(frames) for name, (needs, say) in SAID.items() if {*needs} <= frames.keys()}
    found = {name: row for name, row in found.items() if row}
    silent = {name: ("not measured", why, "") for name, why in UNTOUCHED.items() if name not in found}
    rows = [(name, CLAIMS[name], *row) for name, row in (found | silent).items()]
    table = pd.DataFrame(rows, columns=["claim", "says", "verdict", "number", "rests on"])
    return table.sort_values("claim", key=lambda c: c.str[1:].astype(int)).reset_index(drop=True)


def interval(row: Any, digits: int = 3) -> str:
    """Return a difference with its interval."""
    low, high = (f"{row[end]:+.{digits}f}" for end in ("ci_low", "ci_high"))
    return f"{row['difference']:+.{digits}f} [{low}, {high}]"


def judged(row: Any, value: str = "difference") -> str:
    """Return the verdict of one row's own interval."""
    return verdict(row[value], row["ci_low"], row["ci_high"])


def agreed(rows: pd.DataFrame) -> str:
    """Return the verdict that every row's own interval gives, and undecided where they do not agree."""
    found = {judged(row) for row in rows.to_dict("records")}
    return found.pop() if len(found) == 1 else "undecided"


def blind(frames: Frames) -> Said:
    """Say size by size how blind choices score against distance's, on the same items, and what they lose."""
    told = frames["strategies"]
    best = told[told["strategy"] == "distance"].set_index("size")["damage"]
    items = frames["strategy_items"].query("task == 'mean of tasks'")
    items = items[items["variant"].str.match(BLIND)]
    numbers: list[str] = []
    sizes: dict[str, list[str]] = {}
    for row in frames["blind"].to_dict("records"):
        size = row["size"]
        own = items[items["size"] == size]
        lower, higher = own["ci_high"] < 0, own["ci_low"] > 0
        loss = told[(told["size"] == size) & told["strategy"].str.match(BLIND)]["damage"]
        numbers.append(
            f"{size} layers {interval(row)} ({lower.sum()} of {len(own)} clearly lower, {higher.sum()} "
            f"clearly higher; loss higher in {(loss > best[size]).sum()} of {len(loss)})"
        )
        word = "refuted" if higher.all() else "confirmed" if lower.all() else "undecided"
        sizes.setdefault(word, []).append(str(size))
    each = [f"{word} at {listed(some)} layers" for word, some in sorted(sizes.items())]
    said = ", ".join(each if len(sizes) > 1 else sizes)
    basis = "mean accuracy on four sets above chance, the same items; confirmed: every blind choice is lower"
    return said, f"blind choices less that by distance: {'; '.join(numbers)}", basis


def collapse(frames: Frames) -> Said:
    guess = at_chance(frames["strategy_scores"])
    number = f"not above a guess from the start: {', '.join(map(task_label, guess)) or 'none'}"
    return "undecided" if "mmlu" in guess else "see the scores", number, "the base's own scores"


def single_layers(frames: Frames) -> Said | None:
    asked = "first == 'angular distance' and second == 'block influence' and size == 1"
    for row in frames["agreement"].query(asked).to_dict("records"):
        ends = f"[{row['ci_low']:.2f}, {row['ci_high']:.2f}]"
        number = f"Spearman {row['spearman']:.2f} {ends} over {row['n']:.0f} layers"
        return judged(row, "spearman"), number, "single layers, C4"
    return None


def restored(frames: Frames) -> Said:
    table = frames["won_back"].set_index("variant")
    lost, gain = table.loc["base"], table.loc["mean of trainings"]
    number = (
        f"pruning costs {lost['difference']:.3f} [{lost['ci_low']:.3f}, {lost['ci_high']:.3f}] of "
        f"{lost['average']:.3f}; {len(table) - 2} trainings win back {interval(gain)} on average, "
        f"{gain['share']:.0%} [{gain['share_low']:.0%}, {gain['share_high']:.0%}] of it"
    )
    most = verdict(gain["share"] - 0.5, gain["share_low"] - 0.5, gain["share_high"] - 0.5)
    sets = len(lost["tasks"].split(", "))
    return most, number, f"{sets} sets above chance, the same items; most: more than half"


def distilled_items(frames: Frames) -> pd.DataFrame:
    return frames["healing_items"].query("task == 'mean of tasks' and variant == 'self-distilled'")


def heals_better(frames: Frames) -> Said | None:
    """Say what every pair of trainings says, and their mean (Student's t over the pairs)."""
    items = distilled_items(frames)
    if items.empty:
        return None
    clear = [row for row in items.to_dict("records") if judged(row) != "undecided"]
    row = over_trainings(items["difference"]) if len(items) > 2 else items.iloc[0]
    number = f"self-distilled less SFT {interval(row, 4)}; of {len(items)} pairs {len(clear)} told apart"
    basis = f"mean accuracy on nine sets, the same items; {len(items)} pairs of trainings, t over them"
    return judged(row), number, basis


def over_trainings(values: pd.Series) -> dict[str, float]:
    """Return a mean and its 95 % interval by Student's t, trainings as the sampling unit."""
    half = stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / len(values) ** 0.5
    mean = values.mean()
    return {"difference": mean, "ci_low": mean - half, "ci_high": mean + half}


def more_rows(frames: Frames) -> Said | None:
    """Say what more rows bring to trainings of the same set and seed (Student's t over these pairs)."""
    told, pairs = [], {}
    for variant, name in {"self-distilled": "self-distilled", "sft": "SFT"}.items():
        table = frames["recovery"]
        table = table[table["variant"] == variant]
        for (data, seed), part in table.sort_values("rows").groupby(["data", "seed"]):
            if len(part) > 1:
                gain = part["recovery"].iloc[-1] - part["recovery"].iloc[0]
                pairs[name, data, part["rows"].iloc[0], part["rows"].iloc[-1], seed] = gain
    if not pairs:
        return None
    gains = pd.Series(pairs).rename_axis(["variant", "data", "few", "many", "seed"])
    own = gains["self-distilled"]
    for (data, few, many), part in own.groupby(["data", "few", "many"]):
        beside = gains["SFT"].xs(data, level="data")
        each = [", ".join(f"{one:+.3f}" for one in some) for some in (part, beside)]
        told.append(f"{data} from {few:,} to {many:,} rows {each[0]} (SFT {each[1]})")
    row = over_trainings(own)
    number = f"recovery of self-distilled {interval(row)} on average: {'; '.join(told)}"
    return judged(row), number, f"{len(own)} pairs of trainings, t over them"


def stays_closer(frames: Frames) -> Said:
    """Say it by Sentence-BERT on free responses, and by the divergence of next tokens on the base's own."""
    cells = frames["closeness"]
    row = over_trainings(cells.groupby(["data", "rows", "seed"])["difference"].mean())
    number = f"similarity, self-distilled less SFT: {interval(row)}{counted(cells)}"
    said = judged(row)
    if "divergence_gap" in frames:
        gaps = frames["divergence_gap"]
        gap = over_trainings(gaps.groupby(["data", "rows", "seed"])["difference"].mean())
        gains = {"difference": -gap["difference"], "ci_low": -gap["ci_high"], "ci_high": -gap["ci_low"]}
        number += f"; divergence of next tokens, likewise, in nats: {interval(gap)}"
        number += counted(gaps.assign(ci_low=-gaps["ci_high"], ci_high=-gaps["ci_low"]))
        said = f"{judged(gains)} by next tokens, {said} by similarity"
    trainings = len(cells.groupby(["data", "rows", "seed"]))
    return said, number, f"300 prompts of three kinds; {trainings} pairs of trainings, t over them"


def counted(cells: pd.DataFrame) -> str:
    """Count the pairs of training and kind of prompt that are told apart."""
    nearer, farther = (cells["ci_low"] > 0).sum(), (cells["ci_high"] < 0).sum()
    return f" ({nearer} of {len(cells)} clearly nearer, {farther} clearly farther)"


def slerp(frames: Frames) -> Said:
    """Say at each depth what every seed says; confirmed where the merge beats both ends in each."""
    gain = frames["drafts_gain"].query("variant == 'merged-slerp-0.5'")
    said, told = [], []
    for left, part in gain.groupby("layers_left"):
        said.append(f"{agreed(part)} at {left} layers left")
        ends = part["difference"].min(), part["difference"].max()
        higher, lower = (part["ci_low"] > 0).sum(), (part["ci_high"] < 0).sum()
        told.append(
            f"{left} layers left, {part['seed'].nunique()} seeds and two ends each: {ends[0]:+.3f} to "
            f"{ends[1]:+.3f}, {higher} clearly higher, {lower} clearly lower"
        )
    number = f"SLERP at 0.5 less an end, {'; '.join(told)}".replace("1 seeds", "1 seed")
    return ", ".join(said), number, "mean of four sets, 1,000 items"


def drafts_pair(frames: Frames) -> list[dict[Any, Any]]:
    """Return the rows that compare drafts healed on self-distilled data with those of SFT.

    ``p_signs``: of the sign test over prompts, corrected by Holm's method for all pairs of a run.
    """
    rows = frames["drafts_comparison"]
    signs = [
        stats.binomtest(up, up + down).pvalue for up, down in zip(rows["higher"], rows["lower"], strict=True)
    ]
    by_run = pd.Series(signs, rows.index).groupby([rows["layers_left"], rows["seed"]])
    rows = rows.assign(p_signs=by_run.transform(holm))
    return rows.query("variant == 'self-distilled' and against == 'sft'").to_dict("records")


def accepted_more(frames: Frames) -> Said:
    """Say at each depth what every seed says."""
    said, told = [], []
    for left, part in pd.DataFrame(drafts_pair(frames)).groupby("layers_left"):
        said.append(f"{agreed(part)} at {left} layers left")
        seeds = ", ".join(interval(row) for row in part.to_dict("records"))
        told.append(f"{left} layers left, {len(part)} seed{'s' * (len(part) > 1)}: {seeds}")
    basis = "share of single drafted tokens that the whole model accepts, 252 prompts"
    return ", ".join(said), f"self-distilled less SFT, {'; '.join(told)}", basis


#: claim -> the frames that it needs, and what is said of it
SAID = {
    "C1": (("strategies", "strategy_items", "blind"), blind),
    "C2": (("strategy_scores",), collapse),
    "C3": (("won_back",), restored),
    "C4": (("healing_items",), heals_better),
    "C5": (("closeness_of_all",), stays_closer),
    "C6": (("healing_items", "recovery"), more_rows),
    "C7": (("drafts_gain",), slerp),
    "C8": (("drafts_comparison",), accepted_more),
    "C9": (("iterate_scores",), iterating),
    "C10": (("agreement",), single_layers),
}

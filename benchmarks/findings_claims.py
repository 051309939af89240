"""What a record of `findings.py`, and that of `drafts_real.py` beside it, says to the papers' claims."""

from __future__ import annotations

from typing import Any

import pandas as pd
from findings_frames import BLIND, Frames, at_chance
from scipy import stats

from workbench.tables.claims import CLAIMS, verdict

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
            f"{size} layers: of {len(own)} blind choices {lower.sum()} score clearly lower, "
            f"{higher.sum()} clearly higher, on average {interval(row)}; loss higher in "
            f"{(loss > best[size]).sum()} of {len(loss)}"
        )
        word = "refuted" if higher.all() else "confirmed" if lower.all() else "undecided"
        sizes.setdefault(word, []).append(str(size))
    each = [f"{word} at {' and '.join(some)} layers" for word, some in sorted(sizes.items())]
    said = ", ".join(each if len(sizes) > 1 else sizes)
    return said, "; ".join(numbers), "mean accuracy on four sets above chance, the same items"


def collapse(frames: Frames) -> Said:
    guess = at_chance(frames["strategy_scores"])
    number = f"not above a guess from the start: {', '.join(guess) or 'none'}"
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
    items = distilled_items(frames)
    told = [f"{row['data']} {row['rows']}: {interval(row, 4)}" for row in items.to_dict("records")]
    basis = f"mean accuracy on nine sets, the same items; pairs of trainings: {len(told)}"
    return (agreed(items), f"self-distilled less SFT, {'; '.join(told)}", basis) if told else None


def more_rows(frames: Frames) -> Said | None:
    """Say what four times the rows of self-distilled data bring (Student's t over the data sets)."""
    if distilled_items(frames)["rows"].nunique() < 2:
        return None
    table = frames["recovery"].query("variant == 'self-distilled' and seed == 0")
    wide = table.pivot_table(index="data", columns="rows", values="recovery").dropna()
    few, many = wide.columns.min(), wide.columns.max()
    gain = wide[many] - wide[few]
    half = stats.t.ppf(0.975, len(gain) - 1) * gain.std(ddof=1) / len(gain) ** 0.5
    said = verdict(gain.mean(), gain.mean() - half, gain.mean() + half)
    told = [f"{name} {wide.loc[name, few]:.3f} -> {wide.loc[name, many]:.3f}" for name in wide.index]
    return said, f"recovery at {few} and {many} rows: {', '.join(told)}", "one seed"


def stays_closer(frames: Frames) -> Said:
    row, cells = frames["closeness_of_all"].set_index("prompts").loc["all"], frames["closeness"]
    number = (
        f"similarity to the base, self-distilled less SFT: {interval(row)}; of {len(cells)} pairs of "
        f"training and kind of prompt {(cells['ci_low'] > 0).sum()} clearly nearer, "
        f"{(cells['ci_high'] < 0).sum()} clearly farther"
    )
    basis = f"Sentence-BERT, {row['n']:.0f} prompts of three kinds, one seed; pairs of trainings: "
    return judged(row), number, f"{basis}{row['trainings']:.0f}"


def slerp(frames: Frames) -> Said:
    gain = frames["drafts_gain"].query("variant == 'merged-slerp-0.5'")
    told = [f"against {row['against']} {interval(row)}" for row in gain.to_dict("records")]
    left = gain["layers_left"].iloc[0]
    basis = f"{left} of 30 layers left, mean of four sets, 1,000 items, one seed"
    return agreed(gain), f"SLERP at 0.5 {', '.join(told)}", basis


def drafts_pair(frames: Frames) -> list[dict[Any, Any]]:
    """Return the rows that compare drafts healed on self-distilled data with those of SFT."""
    pair = frames["drafts_comparison"].query("variant == 'self-distilled' and against == 'sft'")
    return pair.to_dict("records")


def accepted_more(frames: Frames) -> Said:
    pair = drafts_pair(frames)
    told = [f"{row['layers_left']} layers left: {interval(row)}" for row in pair]
    said = [f"{judged(row)} at {row['layers_left']} layers left" for row in pair]
    basis = "share of single drafted tokens that the whole model accepts, 252 prompts, one seed"
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
    "C10": (("agreement",), single_layers),
}

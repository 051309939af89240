"""What a run's frames say to the papers' claims: the verdict follows from numbers that a reader can check."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

import workbench as wb
from workbench.tables.claims import CLAIMS, NEEDS, SFT, claims_table, missing_frames

DISTILLED = "pruned-self-distilled"


def verdict_of(claim: str, **frames: pd.DataFrame) -> tuple[str, str]:
    names = {name.replace("__", "."): frame for name, frame in frames.items()}
    row = wb.claims_table(names).set_index("claim").loc[claim]
    return row["verdict"], row["number"]


def blocks(value: str, best: int, n_layers: int = 8, spread: float = 0.01) -> pd.DataFrame:
    """Return blocks of sizes 1 and 2 whose cost is least at ``best`` and grows away from it."""
    rows = [(start, size) for size in (1, 2) for start in range(n_layers - size + 1)]
    frame = pd.DataFrame(rows, columns=["start", "size"])
    frame[value] = 0.1 + 0.1 * (frame["start"] - best).abs()
    return frame.assign(ci_low=frame[value] - spread, ci_high=frame[value] + spread)


def test_nothing_is_claimed_of_an_empty_run():
    table = claims_table({})
    assert list(table["claim"]) == list(CLAIMS) == [f"C{n}" for n in range(1, 11)]
    assert set(table["verdict"]) == {"not asked"}
    assert table["number"].str.match(r"notebook \d\d").all()
    needed = {name for names, _ in NEEDS.values() for name in names}
    assert set(wb.claim_frames()) == needed | {"distilled.jsonl"}


def test_c1_counts_blind_blocks_that_clearly_cost_more():
    distances = blocks("distance", best=4)
    verdict, number = verdict_of("C1", distances__csv=distances, damage__csv=blocks("damage", best=4))
    assert (verdict, number[:33]) == ("confirmed", "4 of 4 blind blocks clearly cost ")
    wide = blocks("damage", best=4, spread=5)
    assert verdict_of("C1", distances__csv=distances, damage__csv=wide)[0] == "undecided"
    opposite = blocks("damage", best=4).assign(damage=lambda f: 1 - f["damage"])
    opposite = opposite.assign(ci_low=opposite["damage"] - 0.01, ci_high=opposite["damage"] + 0.01)
    assert verdict_of("C1", distances__csv=distances, damage__csv=opposite)[0] == "refuted"


def depth(reasoning: list[float], knowledge: list[float], stderr: float = 0.01) -> pd.DataFrame:
    rows = [
        {"task": task, "metric": "acc", "n_removed": n, "value": value, "stderr": stderr, "category": kind}
        for task, kind, values in (("piqa", "reasoning", reasoning), ("boolq", "knowledge", knowledge))
        for n, value in enumerate(values)
    ]
    return pd.DataFrame(rows).assign(n_shot=0, parent="", higher_is_better=True, n=100)


def test_c2_measures_above_a_guess_and_is_open_where_the_base_guesses():
    found = verdict_of("C2", depth__csv=depth([0.9, 0.55, 0.5], [0.9, 0.85, 0.8]))
    assert found == ("confirmed", "half is kept up to 0 layers (reasoning) and 2 (knowledge), +2 [+2, +2]")
    assert verdict_of("C2", depth__csv=depth([0.9, 0.85, 0.8], [0.9, 0.55, 0.5]))[0] == "refuted"
    verdict, number = verdict_of("C2", depth__csv=depth([0.9, 0.6, 0.5], [0.51, 0.5, 0.5]))
    assert verdict == "undecided" and "no better than a guess on every task of knowledge" in number


def test_c2_is_open_where_the_errors_do_not_tell_the_two_apart():
    few = depth([0.9, 0.7, 0.5], [0.9, 0.72, 0.5], stderr=0.15)
    verdict, number = verdict_of("C2", depth__csv=few)
    assert verdict == "undecided" and number.endswith("+1 [-2, +2]")
    unknown = verdict_of(
        "C2", depth__csv=depth([0.9, 0.55, 0.5], [0.9, 0.85, 0.8], stderr=np.nan).assign(n=1)
    )
    assert unknown == ("undecided", "half is kept up to 0 layers (reasoning) and 2 (knowledge), +2")


def test_c2_takes_a_task_at_two_numbers_of_shots():
    once = depth([0.9, 0.55, 0.5], [0.9, 0.85, 0.8])
    twice = pd.concat([once, once[once["task"] == "boolq"].assign(n_shot=5)], ignore_index=True)
    assert verdict_of("C2", depth__csv=twice) == verdict_of("C2", depth__csv=once)


def test_no_number_of_a_claim_is_nan():
    scores, items = scored({"base": 200, "pruned": 195, SFT: 197})
    verdict, number = verdict_of("C3", scores__csv=scores, items__jsonl=items)
    assert number.endswith(f"{SFT} 98.5%") and verdict == "undecided"
    row = {
        "variant": DISTILLED,
        "against": SFT,
        "task": ["a", "b"],
        "metric": "acc",
        "difference": [0.2, 0.1],
    }
    unknown = pd.DataFrame(row).assign(ci_low=np.nan, ci_high=np.nan)
    assert verdict_of("C4", comparisons__csv=unknown) == (
        "undecided",
        "self-distilled less SFT +0.150, 2 tasks",
    )
    flat = pd.DataFrame({"layer": range(8), "influence": 0.5})
    told = verdict_of("C10", distances__csv=blocks("distance", best=4), influence__csv=flat)
    assert told == ("undecided", "too few layers, or all alike, to rank")


def test_variants_of_the_same_data_are_not_compared():
    rows = pd.DataFrame({"id": range(9), "similarity": 0.5})
    frames = {"similarity.csv": pd.concat([rows.assign(variant=name) for name in (SFT, DISTILLED)])}
    kept = pd.DataFrame({"kept": [True, False]})
    for distilled, expected in ((kept, "undecided"), (kept.assign(kept=False), "not asked")):
        row = claims_table({**frames, "distilled.jsonl": distilled}).set_index("claim").loc["C5"]
        assert row["verdict"] == expected
        assert ("no rewrite was kept" in row["number"]) == (expected == "not asked")


def test_what_is_missing_is_named_with_its_notebook():
    frames = {"depth.csv": pd.DataFrame()}
    assert missing_frames(frames, ["depth.csv"]) == ""
    assert "similarity.csv" in missing_frames(frames, ["depth.csv", "similarity.csv"])
    assert "notebook 06" in missing_frames(frames, ["depth.csv", "similarity.csv"])


def scored(right: dict[str, int], n: int = 200) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return scores and items of variants that answer so many of ``n`` items."""
    items = pd.concat(
        [
            pd.DataFrame({"item": range(n), "value": np.arange(n) < count}).assign(variant=name)
            for name, count in right.items()
        ]
    )
    items = items.assign(task="piqa", n_shot=0, metric="acc", prompt="?", value=items["value"].astype(float))
    scores = items.groupby("variant", sort=False)["value"].mean().reset_index()
    scores = scores.assign(task="piqa", metric="acc", n_shot=0, parent="", higher_is_better=True, n=n)
    return scores, items


@pytest.mark.parametrize(("healed", "expected"), [(195, "confirmed"), (112, "refuted"), (152, "undecided")])
def test_c3_asks_whether_more_than_half_came_back(healed: int, expected: str):
    scores, items = scored({"base": 200, "pruned": 100, SFT: healed})
    verdict, number = verdict_of("C3", scores__csv=scores, items__jsonl=items)
    assert verdict == expected
    assert f"pruned keeps 50.0% of the base's average, {SFT} {healed / 200:.1%}" in number


def test_c4_takes_a_pair_in_either_order():
    rows = {"task": ["a", "b"], "metric": "acc", "difference": [-0.2, -0.1], "ci_low": [-0.25, -0.15]}
    rows |= {"ci_high": [-0.15, -0.05], "variant": SFT, "against": DISTILLED}
    verdict, number = verdict_of("C4", comparisons__csv=pd.DataFrame(rows))
    # standard errors .05 / 1.96 each: the mean's half width is sqrt(2) x .05 / 2
    assert (verdict, number) == ("confirmed", "self-distilled less SFT +0.150 [+0.115, +0.185], 2 tasks")


def test_c5_pairs_prompts_and_c10_ranks_layers():
    rows = pd.DataFrame({"id": range(40)})
    near = rows.assign(variant=SFT, similarity=np.linspace(0.4, 0.6, 40))
    far = rows.assign(variant=DISTILLED, similarity=np.linspace(0.3, 0.5, 40) + 0.01 * (rows["id"] % 2))
    assert verdict_of("C5", similarity__csv=pd.concat([near, far]))[0] == "refuted"
    assert verdict_of("C5", similarity__csv=near)[0] == "not asked"
    influence = pd.DataFrame({"layer": range(8), "influence": 0.1 + 0.1 * np.abs(np.arange(8) - 4)})
    verdict, number = verdict_of("C10", distances__csv=blocks("distance", best=4), influence__csv=influence)
    assert verdict == "confirmed" and number.startswith("Spearman 1.00")


def test_c8_pairs_drafts_by_prompt():
    one = {"kind": "maths", "prompt": range(30), "draft_length": 1, "proposed": "1 1 1 1"}
    sft = pd.DataFrame(one | {"draft": SFT, "accepted": ["1 0 0 1", "0 0 0 1", "0 1 1 0"] * 10})
    better = sft.assign(draft=DISTILLED, accepted=["1 1 1 1", "0 1 0 1", "1 1 1 1"] * 10)
    verdict, number = verdict_of("C8", draft_rounds__jsonl=pd.concat([sft, better]))
    assert verdict == "confirmed" and "+0.417" in number
    assert verdict_of("C8", draft_rounds__jsonl=sft)[0] == "not asked"


def gains(*rows: tuple[str, str, float, float]) -> pd.DataFrame:
    """Rows of merge, end, difference and half its interval's width."""
    told = [
        {"variant": merge, "against": end, "difference": gap, "ci_low": gap - half, "ci_high": gap + half}
        for merge, end, gap, half in rows
    ]
    return pd.DataFrame(told).assign(better=lambda f: f["ci_low"] > 0)


def test_c7_asks_a_merge_to_beat_both_ends():
    both = gains(("m-0.25", "a", 0.03, 0.01), ("m-0.25", "b", -0.02, 0.01), ("m-0.5", "a", 0.05, 0.01))
    both = pd.concat([both, gains(("m-0.5", "b", 0.02, 0.01))])
    said, number = verdict_of("C7", merging_gain__csv=both)
    assert said == "confirmed"
    assert number == "m-0.5: +0.050 [+0.04, +0.06] over a, +0.020 [+0.01, +0.03] over b"
    one = gains(("m-0.5", "a", 0.05, 0.01), ("m-0.5", "b", 0.02, 0.03))
    assert verdict_of("C7", merging_gain__csv=one)[0] == "undecided"
    worse = gains(("m-0.5", "a", 0.05, 0.01), ("m-0.5", "b", -0.02, 0.01))
    assert verdict_of("C7", merging_gain__csv=worse)[0] == "refuted"


@pytest.mark.parametrize(
    ("direct", "stderr", "wanted"), [(60, 1, "confirmed"), (40, 1, "refuted"), (60, 20, "undecided")]
)
def test_c9_compares_the_deepest_state_with_removing_at_once(direct, stderr, wanted):
    values = {"iterate-9-P+R": 30, "iterate-8-P": 70, "iterate-8-P+R": 50, "Direct+R": direct, "Direct": 90}
    rows = [{"variant": name, "value": value} for name, value in values.items()]
    scores = pd.DataFrame(rows).assign(task="C4", metric="word_perplexity", stderr=stderr)
    row = claims_table({"iterative-scores.csv": scores}).set_index("claim").loc["C9"]
    assert row["verdict"] == wanted
    assert row["number"] == f"perplexity, iterating against at once: 50 against {direct} on C4"
    longer = scores.assign(variant=scores["variant"].replace("Direct+R", "Direct-long+R"))
    both = pd.concat([longer, scores.query("variant == 'Direct+R'").assign(value=99)])
    row = claims_table({"iterative-scores.csv": both}).set_index("claim").loc["C9"]
    assert row["verdict"] == wanted
    assert row["number"].endswith(f"at once with as many updates: 50 against {direct} on C4")

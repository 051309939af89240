"""Sentences on merges and drafts say what the frames say, with their numbers."""

from __future__ import annotations

import pandas as pd

from workbench.tables.drafts import drafts_reading, merging_reading, speed_reading


def gain_of(*rows):
    names = ["variant", "against", "difference", "ci_low", "ci_high", "p_adjusted", "better"]
    return pd.DataFrame(rows, columns=names).assign(n=100)


def test_a_merge_counts_as_better_only_where_it_beats_both_ends():
    rows = [("m", "a", 0.10, 0.05, 0.15, 0.001, True), ("m", "b", 0.02, -0.01, 0.05, 0.6, False)]
    text = merging_reading(gain_of(*rows))
    assert text.startswith("No merge is better") and "0.020 above **b**" in text and "p 0.6;" in text
    rows[1] = ("m", "b", 0.08, 0.04, 0.12, 0.01, True)
    text = merging_reading(gain_of(*rows, ("x", "a", -0.1, -0.2, 0.0, 1.0, False)))
    assert (
        text.startswith("Better than either end by more than chance: **m**.") and "0.080 above **b**" in text
    )
    angles = pd.DataFrame({"angle": [1.0, 3.0, 2.0], "linear": [True, False, True]})
    told = merging_reading(gain_of(*rows), angles)
    assert "2.0 degrees apart at the median and 3.0 at most; 2 of 3 tensors" in told


def test_pairs_that_are_not_told_apart_are_said_to_be_so():
    names = ["variant", "against", "kind", "difference", "ci_low", "ci_high", "p_adjusted"]
    rows = [("b", "a", "maths", 0.12, 0.1, 0.14, 0.001), ("c", "a", "open", -0.01, -0.03, 0.01, 0.7)]
    lines = drafts_reading(pd.DataFrame(rows, columns=names).assign(n=30)).splitlines()
    assert "**b** is accepted more often than **a** on maths: 12 points" in lines[0]
    assert "**c** and **a** are not told apart on open: -1 points" in lines[1] and "30 prompts" in lines[1]


def test_the_fastest_is_named_beside_theory_and_drafting_that_does_not_pay_is_said_so():
    frame = pd.DataFrame({"draft": ["a", "b"], "draft_length": [2, 4], "speed_up": [0.9, 1.4]})
    frame = frame.assign(theory=[1.0, 1.5], cost=0.4, acceptance=0.8, speed_up_low=0.8, speed_up_high=1.6)
    text = speed_reading(frame)
    assert "Best is **b** with 4 tokens a round: 1.40 times as fast" in text and "theory gives 1.50" in text
    assert "differ by 10 % at most" in text
    assert "does not pay" in speed_reading(frame.head(1)) and "does not pay" not in text
    assert "not told apart" in text  # its interval reaches below 1
    assert "told apart" not in speed_reading(frame.assign(speed_up_low=1.1))


def test_where_all_are_alike_there_is_no_interval_and_the_sentence_says_so():
    text = merging_reading(gain_of(("m", "a", 0.0, float("nan"), float("nan"), 1.0, False)))
    assert "(all alike, corrected p 1; 100 items)" in text
    names = ["variant", "against", "difference", "ci_low", "ci_high", "p_adjusted"]
    row = ("b", "a", 0.0, float("nan"), float("nan"), 1.0)
    assert "(all alike, corrected p 1; 9 prompts)" in drafts_reading(
        pd.DataFrame([row], columns=names).assign(n=9)
    )

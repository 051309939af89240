"""What scores and items say: the frame's own numbers, computed here another way."""

from __future__ import annotations

import re

import numpy as np
import pandas as pd
import pytest
from frames import flip_frame, score_frame

from workbench.tables import findings


def numbers(text: str) -> list[float]:
    return [float(found) for found in re.findall(r"(?<![\w.])[+-]?\d+\.\d+", text)]


def test_recovery_names_the_categories_that_lost_most():
    scores = score_frame().assign(category=lambda s: s["task"].str.removeprefix("demo_"))
    lines = findings.recovery_reading(scores).splitlines()
    assert len(lines) == 3
    shares = scores[scores["higher_is_better"]].pivot(index="variant", columns="task", values="value")
    kept = shares.loc["pruned + SFT"].sum() / shares.loc["base"].sum()
    assert (
        lines[1].startswith(f"- **pruned + SFT** keeps {100 * kept:.1f} % of") and "over 3 tasks" in lines[1]
    )
    assert f"most in *facts* ({0.007 - 1:+.3f})" in lines[1]
    same = pd.concat([scores.query("variant == 'base'").assign(variant=name) for name in ("base", "copy")])
    assert findings.recovery_reading(same).endswith("it lost in no category.")
    tied = same.assign(value=lambda s: s["value"] - (s["variant"] == "copy") * 0.25)
    assert "most in *facts* and *math* and *pairs* (-0.250)" in findings.recovery_reading(tied)


def test_the_summary_says_what_chance_can_do():
    summary = pd.DataFrame({"variant": ["base", "cut"], "math": [1.0, 0.25], "similarity": [np.nan, 0.5]})
    with pytest.raises(ValueError, match="summary: column 'math' must hold numbers"):
        findings.summary_reading(summary.assign(math="many"), 100)
    text = findings.summary_reading(summary, 100)
    assert "math 0.25 (base 1.00)" in text and "similarity" not in text
    drawn = np.random.default_rng(0).binomial(100, 0.5, size=(2, 40_000)) / 100
    assert np.quantile(np.abs(drawn[0] - drawn[1]), 0.95) == pytest.approx(numbers(text)[-1], abs=0.011)


def test_comparisons_and_flips_are_counted():
    frame = pd.DataFrame({"p_value": [0.01, 0.04, 0.05, 1.0], "difference": [-0.5, 0.5, -0.5, 0.0]})
    text = findings.comparison_reading(frame)
    assert "**1 of 4** differences are clear" in text and "1 for the worse, 0 for the better" in text
    assert "Without the correction 2 would be" in text
    lines = findings.flips_reading(flip_frame()).splitlines()
    assert lines == [
        f"- **{name}**: of 130 items {lost} turned from right to wrong, {won} from wrong to right."
        for name, lost, won in (("pruned", 20, 1), ("SFT", 62, 3))
    ]


def test_a_task_keeps_its_score_up_to_the_first_fall():
    rows = {"n_removed": [0, 1, 2, 3], "value": [1.0, 0.9, 0.5, 0.95], "n": 40, "higher_is_better": True}
    depth = pd.DataFrame(rows).assign(task="a_b*c", metric="acc")
    first = findings.depth_reading(depth).splitlines()[0].removeprefix("- ")
    assert first == r"*a b\*c* keeps 90 % of its score with up to 1 layer left out; without 3 it scores 0.95."


def pair(variant: str, against: str, task: str, difference: float, p_value: float) -> dict:
    ends = {"ci_low": difference - 0.1, "ci_high": difference + 0.1}
    names = {"variant": variant, "against": against, "task": task}
    return names | {"difference": difference, "p_value": p_value} | ends


def test_pairs_without_the_base_are_told_first():
    rows = [
        pair("sft", "base", "a*b", -0.5, 1e-6),
        pair("own", "base", "a*b", 0.0, 1.0),
        pair("own", "sft", "a*b", 0.5, 1e-6),
        pair("own", "sft", "facts", -0.4, 1e-5),
        pair("own", "sft", "pairs", -0.1, 0.04),
    ]
    lines = findings.comparison_reading(pd.DataFrame(rows)).splitlines()
    assert lines[0] == (
        r"- **own** against **sft**: clearly better on *a\*b* (+0.500, 95 % interval +0.400 to +0.600); "
        "clearly worse on *facts* (-0.400, 95 % interval -0.500 to -0.300); "
        "no clear difference on 1 of 3 tasks."
    )
    assert lines[1].startswith("- **sft** against **base**: clearly worse on")
    assert lines[2] == "- **own** against **base**: no clear difference on 1 of 1 task."
    # 0.04 alone would count; of five comparisons it does not
    assert (
        lines[-1].startswith("**3 of 5** differences are clear") and "Without the correction 4" in lines[-1]
    )
    other = findings.comparison_reading(pd.DataFrame(rows), base="own").splitlines()
    assert other[0].startswith("- **sft** against **base**")


def test_recovery_is_told_with_items_interval_and_limit():
    rng = np.random.default_rng(0)
    parts = [
        pd.DataFrame(
            {"variant": name, "task": "t", "item": range(90), "value": (rng.random(90) < share) * 1.0}
        )
        for name, share in (("base", 0.9), ("cut", 0.5))
    ]
    items = pd.concat([*parts, parts[0].assign(variant="same")]).assign(n_shot=0, metric="acc")
    scores = items.groupby(["variant", "task", "n_shot", "metric"], as_index=False, sort=False)[
        "value"
    ].mean()
    scores = scores.assign(n=90, stderr=0.05, parent="", higher_is_better=True, category="")
    text = findings.recovery_reading(scores, items=items, limit=90)
    cut, same, _, limit = text.splitlines()
    value, low, high = numbers(cut.replace("95 %", ""))[:3]
    assert low < value < high and "over 1 task, 90 items" in cut
    assert "100.0 % (too few items turned for an interval)" in same and "in no category" in same
    assert limit == "Not the whole tasks: the first 90 items of each."
    assert "interval" not in findings.recovery_reading(
        scores
    ) and "whole tasks" not in findings.recovery_reading(scores)


def test_the_category_that_lost_most_is_told_in_the_metrics_of_the_recovery():
    rows = [
        ("base", "acc", 0.5, "a"),
        ("base", "acc_norm", 0.6, "a"),
        ("cut", "acc", 0.4, "a"),
        ("cut", "acc_norm", 0.6, "a"),
    ]
    scores = pd.DataFrame(rows, columns=["variant", "metric", "value", "category"])
    scores = scores.assign(task="arc_challenge", stderr=0.1, higher_is_better=True)
    assert "keeps 100.0 % of the" in findings.recovery_reading(
        scores
    ) and "in no category" in findings.recovery_reading(scores)
    assert "keeps 80.0 % of the" in findings.recovery_reading(scores, prefer="acc")


def deep(**columns) -> pd.DataFrame:
    rows = {"n_removed": [0, 1, 2, 3], "value": [1.0, 0.9, 0.5, 0.95], "n": 4, "higher_is_better": True}
    return pd.DataFrame(rows).assign(task="t", metric="acc").assign(**columns)


def test_depths_are_told_for_each_number_of_shots_and_with_the_best_block_of_a_size():
    both = pd.concat([deep(n_shot=0), deep(n_shot=5, value=[1.0, 1.0, 1.0, 0.2])])
    lines = findings.depth_reading(both).splitlines()
    assert lines[0].startswith("- *t* (0-shot) keeps 90 % of its score with up to 1 layer left out")
    assert lines[1].startswith("- *t* (5-shot) keeps 90 % of its score with up to 2 layers left out")
    twice = pd.concat([deep(), deep(value=0.1).query("n_removed == 1")])
    assert "up to 1 layer left out" in findings.depth_reading(twice)
    assert "scores nothing with the whole model" in findings.depth_reading(deep(value=[0.0, 0.1, 0.0, 0.0]))
    with pytest.raises(ValueError, match=r"must hold the whole model \(n_removed 0\), got \[1, 2, 3\]"):
        findings.depth_reading(deep().query("n_removed > 0"))


def test_a_task_that_falls_with_the_first_cut_is_not_said_to_keep_anything():
    for values in ([1.0, 0.5, 0.5, 0.4], [1.0, 0.5, 1.0, 0.4]):  # a later rise is not a score that was kept
        line = findings.depth_reading(deep(value=values, n_shot=0)).splitlines()[0]
        wanted = "- *t* falls below 90 % of its 1.00 already with 1 layer left out; without 3 it scores 0.40."
        assert line == wanted


@pytest.mark.parametrize(
    ("n", "told"),
    [
        (1, "With 1 item a task, any difference"),
        (2, "less than 0.98"),
        (4, "of less than 0.69"),
        (100, "less than 0.14"),
    ],
)
def test_what_chance_can_do_is_true_for_any_number_of_items(n, told):
    assert told in findings.summary_reading(pd.DataFrame({"variant": ["base", "cut"], "math": [1.0, 0.5]}), n)
    assert told in findings.depth_reading(deep(n=n))

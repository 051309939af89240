"""What scores, items and responses say: the frame's own numbers, computed here another way."""

from __future__ import annotations

import re

import numpy as np
import pandas as pd
import pytest
from frames import flip_frame, loss_frame, score_frame
from scipy.stats import spearmanr

from workbench.tables import findings

SIMILARITIES = {"near": [1.0, 0.9, 1.0, 0.8], "far": [0.2, 0.9, 0.1, 0.4], "tied": [1.0, 0.3, 0.2, 0.1]}


def numbers(text: str) -> list[float]:
    return [float(found) for found in re.findall(r"(?<![\w.])[+-]?\d+\.\d+", text)]


@pytest.fixture
def similarity() -> pd.DataFrame:
    parts = {name: pd.DataFrame({"id": range(4), "similarity": v}) for name, v in SIMILARITIES.items()}
    return pd.concat(parts, names=["variant"]).reset_index("variant")


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
    text = findings.summary_reading(summary, 100)
    assert "math 0.25 (base 1.00)" in text and "similarity" not in text
    drawn = np.random.default_rng(0).binomial(100, 0.5, size=(2, 40_000)) / 100
    assert np.quantile(np.abs(drawn[0] - drawn[1]), 0.95) == pytest.approx(numbers(text)[-1], abs=0.011)


def test_comparisons_and_flips_are_counted():
    frame = pd.DataFrame({"p_value": [0.01, 0.04, 0.05, 1.0], "difference": [-0.5, 0.5, -0.5, 0.0]})
    assert "**2 of 4**" in findings.comparison_reading(frame)
    assert findings.comparison_reading(frame).endswith("1 for the worse, 1 for the better.")
    lines = findings.flips_reading(flip_frame()).splitlines()
    assert lines == [
        f"- **{name}**: of 130 items {lost} turned from right to wrong, {won} from wrong to right."
        for name, lost, won in (("pruned", 20, 1), ("SFT", 62, 3))
    ]


def test_a_task_keeps_its_score_up_to_the_first_fall():
    rows = {"n_removed": [0, 1, 2, 3], "value": [1.0, 0.9, 0.5, 0.95], "n": 40, "higher_is_better": True}
    depth = pd.DataFrame(rows).assign(task="a_b", metric="acc")
    first = findings.depth_reading(depth).splitlines()[0]
    assert first == r"- *a\_b* keeps 90 % of its score with up to 1 layer left out; without 3 it scores 0.95."


def test_similarities_are_compared_on_the_same_prompts(similarity):
    text = findings.similarity_reading(similarity)
    assert text.startswith(
        "- closest to the unpruned model **near** (mean 0.925), farthest **far** and **tied**"
    )
    gap = np.mean(SIMILARITIES["near"]) - np.mean(SIMILARITIES["tied"])
    assert f"on the same 4 prompts they differ by {gap:.3f}" in text
    same = pd.concat([similarity[similarity["variant"] == "far"].assign(variant=name) for name in "ab"])
    assert findings.similarity_reading(same.assign(prompts="s*")).startswith(r"- *s\**: ")
    assert "may be chance" in findings.similarity_reading(same)


def test_the_closest_share_counts_ties(similarity):
    text = findings.closest_reading(similarity)
    assert "**near** on 100 %, **far** on 25 %, **tied** on 25 % of 4 prompts; on 2 of them" in text


def test_divergence_tells_where_a_variant_would_leave():
    rows = {"variant": ["a", "a", "a", "b"], "agrees_for": [2, 7, 9, 9], "n_tokens": 9}
    lines = findings.divergence_reading(pd.DataFrame(rows)).splitlines()
    assert lines[0].endswith("in 2 of 3 responses, in the median after 4 tokens.")
    assert lines[1] == "- **b** would choose another next token in 0 of 1 responses."


def test_the_shift_is_ranked_against_the_loss():
    frame = loss_frame()
    lines = findings.shift_reading(frame).splitlines()
    rho = spearmanr(1 - frame["similarity"], frame["lost"]).statistic
    assert f"over 6 points: {rho:.2f} (95 % interval" in lines[0]
    assert "**SFT** on *b*, similarity 0.45, lost +0.05" in lines[1]
    assert "**pruned** on *b*, similarity 0.95, lost +0.30" in lines[2]

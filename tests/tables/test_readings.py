"""Readings tell the frame's own numbers, computed here another way; ties are ties, texts are escaped."""

from __future__ import annotations

import platform
import re

import numpy as np
import pandas as pd
import pytest
from frames import damage_frame, distance_frame, flip_frame, loss_frame, savings_frame, score_frame
from scipy.stats import spearmanr
from tiny import tiny_model

from workbench.tables import readings

SIMILARITIES = {"near": [1.0, 0.9, 1.0, 0.8], "far": [0.2, 0.9, 0.1, 0.4], "tied": [1.0, 0.3, 0.2, 0.1]}


def numbers(text: str) -> list[float]:
    return [float(found) for found in re.findall(r"(?<![\w.])[+-]?\d+\.\d+", text)]


@pytest.fixture
def similarity() -> pd.DataFrame:
    parts = {name: pd.DataFrame({"id": range(4), "similarity": v}) for name, v in SIMILARITIES.items()}
    return pd.concat(parts, names=["variant"]).reset_index("variant")


def test_about_tells_model_hardware_and_versions():
    model = tiny_model()
    told = readings.about(model).set_index("what")["here"]
    assert told["parameters"] == f"{sum(p.numel() for p in model.parameters()):,}"
    assert told["layers"] == str(model.config.num_hidden_layers)
    assert told["device"].startswith("cpu: ")
    assert platform.python_version() in told["versions"] and "torch 2." in told["versions"]


def test_say_shows_markdown(capsys):
    pytest.importorskip("IPython")
    readings.say("**x**")
    assert "Markdown" in capsys.readouterr().out


def test_a_block_is_told_with_its_interval_and_what_it_saves():
    distances, savings = distance_frame(), savings_frame()
    row = distances[(distances["start"] == 2) & (distances["size"] == 3)].iloc[0]
    text = readings.block_reading(distances, 2, 3, savings)
    assert text.startswith("**Layers 2-4**")
    assert numbers(text)[:3] == [round(row[name], 3) for name in ("distance", "ci_low", "ci_high")]
    assert "24 texts" in text and f"{100 * 600_000 / 2_400_000:.2f} % of the parameters" in text
    alone = readings.block_reading(distances.assign(ci_low=np.nan, ci_high=np.nan), 2, 3)
    assert "interval" not in alone and "parameters" not in alone


def test_a_pick_from_one_text_has_no_stability():
    frame = pd.DataFrame({"size": [1], "stability": [np.nan], "runner_up": [pd.NA], "n_texts": [1]})
    assert "nothing to resample" in readings.stability_reading(frame)
    sure = frame.assign(stability=1.0, n_texts=9)
    assert readings.stability_reading(sure).endswith("the same for 1 of 1 sizes.")


def test_the_nearest_block_stands_beside_the_least_harmful_one():
    distances = distance_frame()
    damage = damage_frame(distances).assign(removed=lambda d: d["start"].astype(str))
    lines = readings.damage_reading(distances, damage, [1, 2, 4]).splitlines()
    for line, size in zip(lines, (1, 2, 4), strict=True):
        near = min(distances[distances["size"] == size].itertuples(), key=lambda row: row.distance)
        harm = damage[damage["size"] == size].set_index("start")["damage"]
        assert line.startswith(
            f"- size {size}: the nearest block, **{near.start}**, costs {harm[near.start]:+.3f}"
        )
        least = min(harm)
        assert ("no block costs less" in line) == (harm[near.start] == least)
        assert f"{least:+.3f}" in line


def test_blocks_that_cost_the_same_are_all_named():
    looks = pd.DataFrame({"removed": ["3", "0", "5"], "damage": [0.25, 0.5, 0.25]})
    assert "leaving out **3** and **5** costs least" in readings.looks_reading(looks, 9)


def test_a_look_tells_whether_the_answer_is_the_same():
    seen = {"removed": "3", "base_loss": 1.5, "loss": 1.25, "base_text": "a", "text": "a"}
    assert "(-0.250)" in readings.look_reading(seen, 4) and "the same answer" in readings.look_reading(
        seen, 4
    )


def test_trials_that_tie_are_all_named_and_diverged_ones_do_not_count():
    trials = pd.DataFrame({"trial": [0, 1, 2], "rank": [4, 8, 16], "loss": [0.5, 0.5, np.nan]})
    text = readings.tuning_reading(trials)
    assert "of 2 trainings" in text and "(rank 4 or rank 8)" in text


def test_the_distillation_counts_rows_and_words():
    frame = pd.DataFrame({"kept": [True, False], "reference": ["a b", "c"], "response": ["a b c d", "c"]})
    text = readings.distillation_reading(frame)
    assert "**1 of 2**" in text and "(50.0 %)" in text
    assert f"{np.mean([2, 1]):.0f} words" in text


def test_recovery_names_the_categories_that_lost_most():
    scores = score_frame().assign(category=lambda s: s["task"].str.removeprefix("demo_"))
    lines = readings.recovery_reading(scores).splitlines()
    assert len(lines) == 3
    shares = scores[scores["higher_is_better"]].pivot(index="variant", columns="task", values="value")
    kept = shares.loc["pruned + SFT"].sum() / shares.loc["base"].sum()
    assert (
        lines[1].startswith(f"- **pruned + SFT** keeps {100 * kept:.1f} % of") and "over 3 tasks" in lines[1]
    )
    assert f"most in *facts* ({0.007 - 1:+.3f})" in lines[1]
    same = pd.concat([scores.query("variant == 'base'").assign(variant=name) for name in ("base", "copy")])
    assert readings.recovery_reading(same).endswith("it lost in no category.")
    tied = same.assign(value=lambda s: s["value"] - (s["variant"] == "copy") * 0.25)
    assert "most in *facts* and *math* and *pairs* (-0.250)" in readings.recovery_reading(tied)


def test_the_summary_says_what_chance_can_do():
    summary = pd.DataFrame({"variant": ["base", "cut"], "math": [1.0, 0.25], "similarity": [np.nan, 0.5]})
    text = readings.summary_reading(summary, 100)
    assert "math 0.25 (base 1.00)" in text and "similarity" not in text
    drawn = np.random.default_rng(0).binomial(100, 0.5, size=(2, 40_000)) / 100
    assert np.quantile(np.abs(drawn[0] - drawn[1]), 0.95) == pytest.approx(numbers(text)[-1], abs=0.011)


def test_comparisons_and_flips_are_counted():
    frame = pd.DataFrame({"p_value": [0.01, 0.04, 0.05, 1.0], "difference": [-0.5, 0.5, -0.5, 0.0]})
    assert "**2 of 4**" in readings.comparison_reading(frame)
    assert readings.comparison_reading(frame).endswith("1 for the worse, 1 for the better.")
    lines = readings.flips_reading(flip_frame()).splitlines()
    assert lines == [
        f"- **{name}**: of 130 items {lost} turned from right to wrong, {won} from wrong to right."
        for name, lost, won in (("pruned", 20, 1), ("SFT", 62, 3))
    ]


def test_a_task_keeps_its_score_up_to_the_first_fall():
    rows = {"n_removed": [0, 1, 2, 3], "value": [1.0, 0.9, 0.5, 0.95], "n": 40, "higher_is_better": True}
    depth = pd.DataFrame(rows).assign(task="a_b", metric="acc")
    first = readings.depth_reading(depth).splitlines()[0]
    assert first == r"- *a\_b* keeps 90 % of its score with up to 1 layer left out; without 3 it scores 0.95."


def test_similarities_are_compared_on_the_same_prompts(similarity):
    text = readings.similarity_reading(similarity)
    assert text.startswith(
        "- closest to the unpruned model **near** (mean 0.925), farthest **far** and **tied**"
    )
    gap = np.mean(SIMILARITIES["near"]) - np.mean(SIMILARITIES["tied"])
    assert f"on the same 4 prompts they differ by {gap:.3f}" in text
    same = pd.concat([similarity[similarity["variant"] == "far"].assign(variant=name) for name in "ab"])
    assert readings.similarity_reading(same.assign(prompts="s*")).startswith(r"- *s\**: ")
    assert "may be chance" in readings.similarity_reading(same)


def test_the_closest_share_counts_ties(similarity):
    text = readings.closest_reading(similarity)
    assert "**near** on 100 %, **far** on 25 %, **tied** on 25 % of 4 prompts; on 2 of them" in text


def test_divergence_tells_where_a_variant_would_leave():
    rows = {"variant": ["a", "a", "a", "b"], "agrees_for": [2, 7, 9, 9], "n_tokens": 9}
    lines = readings.divergence_reading(pd.DataFrame(rows)).splitlines()
    assert lines[0].endswith("in 2 of 3 responses, in the median after 4 tokens.")
    assert lines[1] == "- **b** would choose another next token in 0 of 1 responses."


def test_the_shift_is_ranked_against_the_loss():
    frame = loss_frame()
    lines = readings.shift_reading(frame).splitlines()
    rho = spearmanr(1 - frame["similarity"], frame["lost"]).statistic
    assert f"over 6 points: {rho:.2f} (95 % interval" in lines[0]
    assert "**SFT** on *b*, similarity 0.45, lost +0.05" in lines[1]
    assert "**pruned** on *b*, similarity 0.95, lost +0.30" in lines[2]


def test_names_from_data_cannot_write_markdown():
    nasty = "<b>*x*</b>_y_ |`z`| $1\n# head"
    frame = pd.DataFrame({"variant": [nasty], "agrees_for": [1], "n_tokens": [1]})
    shown = readings.divergence_reading(frame)
    assert "\n" not in shown
    assert not re.search(r"(?<![\\*])[<>_|`$#]", shown)

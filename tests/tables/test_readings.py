"""What blocks and trainings say: the frame's own numbers, computed here another way; ties are ties."""

from __future__ import annotations

import platform
import re

import numpy as np
import pandas as pd
import pytest
from frames import damage_frame, distance_frame, savings_frame
from tiny import tiny_model

from workbench.agreement import rank_agreement
from workbench.distances.blocks import format_layers
from workbench.tables import readings


def numbers(text: str) -> list[float]:
    return [float(found) for found in re.findall(r"(?<![\w.])[+-]?\d+\.\d+", text)]


def test_about_tells_model_hardware_and_versions():
    model = tiny_model()
    told = readings.about(model).set_index("what")["here"]
    assert told["parameters"] == f"{sum(p.numel() for p in model.parameters()):,}"
    assert told["layers"] == str(model.config.num_hidden_layers)
    assert told["device"].startswith("cpu: ")
    assert platform.python_version() in told["versions"] and "torch 2." in told["versions"]


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
    assert readings.stability_reading(sure).endswith("the same for 1 of 1 size.")


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
    assert f"{np.mean([2, 1]):.0f} words" in text and "max_new_tokens" not in text
    told = readings.distillation_reading(frame.assign(reason=["same final answer", "cut off"]))
    assert "**1** (50 %) had not ended at `max_new_tokens` and were cut off" in told


@pytest.mark.parametrize(
    "rows", [lambda f: f["size"] == 2, lambda f: f["size"] == 3, lambda f: f["start"] > 1]
)
def test_blocks_of_a_pruned_model_keep_their_names_when_the_frame_is_filtered(rows):
    """Layers 2 and 5 are gone; the blocks are runs of the layers that are left."""
    left = [0, 1, 3, 4, 6, 7]
    blocks = [(start, size) for size in (1, 2, 3) for start in left[: len(left) - size + 1]]
    frame = pd.DataFrame(blocks, columns=["start", "size"]).assign(distance=0.25)
    frame.attrs["model"] = {"kept_layers": left}
    for start, size in frame[rows(frame)][["start", "size"]].itertuples(index=False):
        block = left[left.index(start) :][:size]
        text = readings.block_reading(frame[rows(frame)], start, size)
        assert f" {format_layers(block)}**" in text


def test_agreement_is_told_size_by_size_and_a_pooled_one_says_so():
    distances = distance_frame(9)
    damage = damage_frame(distances, (1, 2, 4))
    metrics = {"distance": distances, "dam*age": damage}
    pooled, apart = (readings.agreement_reading(rank_agreement(metrics, by=by)) for by in (None, "size"))
    rows = rank_agreement(metrics, by="size")
    assert r"**dam\*age**" in pooled and "of all sizes together" in pooled
    assert f"at {(rows['ci_low'] > 0).sum()} of 3 sizes: from {rows['spearman'].min():.2f} (size" in apart
    assert f"to {rows['spearman'].max():.2f} (size" in apart
    few = rank_agreement({"a": distances.head(2), "b": damage.query("size == 1").head(2)})
    assert "too few blocks" in readings.agreement_reading(few)


def test_damage_that_was_measured_for_some_blocks_only_is_told_as_such():
    distances = distance_frame()
    damage = damage_frame(distances).assign(removed=lambda d: d["start"].astype(str))
    near = min(distances[distances["size"] == 2].itertuples(), key=lambda row: row.distance)
    others = damage[(damage["size"] != 2) | (damage["start"] != near.start)]
    assert "was not measured" in readings.damage_reading(distances, others, [2])
    alone = damage[(damage["size"] == 2) & (damage["start"] == near.start)]
    assert readings.damage_reading(distances, alone, [2]).endswith("; no other block was measured.")
    with pytest.raises(ValueError, match=r"a block must be .* got start 99, size 2"):
        readings.block_reading(distances, 99, 2)


def test_one_layer_is_a_layer_and_a_search_without_a_loss_has_no_best():
    assert readings.block_reading(distance_frame(), 3, 1).startswith("**Layer 3**")
    trials = pd.DataFrame({"trial": [0, 1], "rank": [4, 8], "loss": [np.nan, np.nan]})
    assert readings.tuning_reading(trials) == "None of 2 trainings ended with a loss."


def test_the_token_at_which_texts_end_is_said_in_every_case():
    frame = pd.DataFrame()
    assert readings.end_token_reading(frame).endswith("is not known of this frame.")
    for share, words in ((1.0, "Every text ends"), (0.8, "80 % of the texts end"), (0.2, "many tokens")):
        frame.attrs["end_token"] = {"id": 4, "text": "<b>", "share": share}
        said = readings.end_token_reading(frame)
        assert words in said
        assert "<b>" not in said  # text of a tokenizer is no markup


def test_other_nearest_blocks_at_random_tokens_are_named():
    angles = pd.DataFrame(
        {"text": [0, 0, 1, 1], "start": [0, 1, 0, 1], "size": 1, "angle": [0.1, 0.2, 0.1, 0.2]}
    )
    angles.attrs["end_token"] = {"id": 4, "text": "\n", "share": 1.0}
    assert r"Every text ends in one token, `'\n'`: these" in readings.end_token_reading(angles)
    angles.attrs["end_token"] = {"id": 4, "text": ".", "share": 1.0}
    turned = angles.assign(angle=[0.2, 0.1, 0.2, 0.1], point=3)
    assert "are the same for 1 size" in readings.end_point_reading(angles, angles.assign(point=3), [1])
    assert "size 1: **1** instead of **0**" in readings.end_point_reading(angles, turned, [1])


def test_names_of_blocks_are_text_whatever_a_stored_frame_says():
    nasty = "3<img src=x onerror=alert(1)>[a](javascript:b)"
    rows = {"start": [0, 1], "size": 1, "removed": [nasty, f"{nasty}4"], "distance": [0.2, 0.3]}
    near, cost = pd.DataFrame(rows), pd.DataFrame(rows).assign(damage=[0.5, 0.1])
    looks = cost.assign(loss=2.0, base_loss=1.0, text="a", base_text="b")
    said = readings.damage_reading(near, cost, [1]), readings.choice_reading(near, cost, [0])
    said += readings.looks_reading(looks, 4), readings.look_reading(looks.iloc[0].to_dict(), 4)
    for text in said:
        assert "onerror" in text
        assert "<" not in text.replace("\\<", "") and "](" not in text.replace("\\](", "")


def test_a_choice_is_advised_only_where_the_intervals_tell_the_blocks_apart():
    rows = {"start": [0, 1], "size": 1, "removed": ["0", "1"]}
    near = pd.DataFrame(rows).assign(distance=[0.2, 0.1])
    noise = pd.DataFrame(rows).assign(damage=[-0.005, 0.001], ci_low=[-0.079, -0.053], ci_high=[0.024, 0.007])
    said = readings.choice_reading(near, noise, [1])
    assert "careful user" not in said and said.endswith("on other texts it may be the other way round.")
    clear = noise.assign(damage=[0.1, 0.9], ci_low=[0.0, 0.8], ci_high=[0.2, 1.0])
    assert "A careful user would take **0**" in readings.choice_reading(near, clear, [1])


def test_blocks_that_were_looked_at_are_told_apart_by_their_intervals():
    looks = pd.DataFrame({"removed": ["0", "1", "2"], "damage": [0.5, 0.1, 0.12]})
    looks = looks.assign(damage_low=looks["damage"] - 0.05, damage_high=looks["damage"] + 0.05)
    assert readings.looks_reading(looks, 9).endswith("On other texts it may be **2**: the intervals overlap.")
    narrow = looks.assign(damage_low=looks["damage"], damage_high=looks["damage"])
    assert "do not tell" not in readings.looks_reading(narrow, 9)
    assert "do not tell" not in readings.looks_reading(looks.assign(damage_low=np.nan, damage_high=np.nan), 9)


def test_one_layer_is_a_layer():
    seen = {"removed": "0", "loss": 2.0, "base_loss": 1.0, "text": "a", "base_text": "b"}
    assert readings.look_reading(seen, 4).startswith("Without layer 0 the loss")
    assert readings.look_reading({**seen, "removed": "0,3"}, 4).startswith("Without layers 0,3 the loss")

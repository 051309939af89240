from __future__ import annotations

from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
from skipping import TEXTS, skipping
from tiny import CONFIGS, tiny_model, tiny_tokenizer

import workbench as wb
from workbench.distances.angular import angular_distances
from workbench.distances.blocks import best_blocks
from workbench.distances.damage import block_damage, least_harmful
from workbench.distances.influence import block_influence, removal_similarity
from workbench.distances.strategies import removal_strategies
from workbench.pruning.removal import prune_, without_layers

TEXTS = [text for text in TEXTS if len(text) > 1]


@pytest.fixture(scope="module")
def model():
    return tiny_model("llama")


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


def damage(model, tokenizer, blocks=None, **options):
    return block_damage(model, tokenizer, TEXTS, blocks, progress=False, **options)


@torch.no_grad()
def mean_loss(model, tokenizer, layers=()) -> float:
    """The model's own loss on each text alone, weighted by the tokens it predicts."""
    total, count = 0.0, 0
    with skipping(model, layers):
        for text in TEXTS:
            ids = tokenizer(text, return_tensors="pt").input_ids
            total += model(ids, labels=ids, use_cache=False).loss.item() * (ids.shape[1] - 1)
            count += ids.shape[1] - 1
    return total / count


@pytest.mark.parametrize("architecture", list(CONFIGS))
def test_agrees_with_really_skipping_in_every_architecture(architecture, tokenizer):
    model = tiny_model(architecture)
    frame = damage(model, tokenizer, [(0, 1), (2, 3)], layer_sets=[(1, 3, 6)])
    expected = [mean_loss(model, tokenizer, layers) for layers in ([0], [2, 3, 4], [1, 3, 6])]
    np.testing.assert_allclose(frame["loss"], expected, atol=5e-6)
    np.testing.assert_allclose(frame["base_loss"], mean_loss(model, tokenizer), atol=5e-6)
    np.testing.assert_allclose(frame["damage"], frame["loss"] - frame["base_loss"], atol=1e-12)


def test_every_block_of_a_size(model, tokenizer):
    frame = damage(model, tokenizer, sizes=[2, 5])
    assert list(zip(frame["start"], frame["size"], strict=True)) == [
        *((start, 2) for start in range(6)),
        *((start, 5) for start in range(3)),
    ]
    expected = [
        mean_loss(model, tokenizer, range(start, start + size))
        for start, size in zip(frame["start"], frame["size"], strict=True)
    ]
    np.testing.assert_allclose(frame["loss"], expected, atol=5e-6)
    assert frame["removed"].tolist()[:2] == ["0-1", "1-2"]


def test_every_pair_of_layers_shares_and_parts_rightly(model, tokenizer):
    pairs = [(i, j) for i in range(7) for j in range(i + 1, 7)]
    frame = damage(model, tokenizer, layer_sets=pairs)
    expected = [mean_loss(model, tokenizer, pair) for pair in pairs]
    np.testing.assert_allclose(frame["loss"], expected, atol=5e-6)
    assert frame["start"].isna().sum() == 15  # the other six follow each other


@pytest.mark.parametrize("max_tokens", [1, 50, 120])
@pytest.mark.parametrize("held", [1, 3])
def test_no_memory_bound_changes_a_number(model, tokenizer, max_tokens, held, monkeypatch):
    expected = damage(model, tokenizer, sizes=[1, 3])
    monkeypatch.setattr("workbench.distances.sweep.HELD", held)
    monkeypatch.setattr("workbench.distances.damage.LOGITS", 331 * 40)
    pd.testing.assert_frame_equal(
        damage(model, tokenizer, sizes=[1, 3], max_tokens=max_tokens), expected, atol=5e-6, rtol=0
    )


def test_agrees_with_the_surgery(model, tokenizer):
    frame = damage(model, tokenizer, [(1, 2)])
    with without_layers(model, [1, 2]):
        assert mean_loss(model, tokenizer) == pytest.approx(frame.loc[0, "loss"], abs=5e-6)


def test_frames_of_blocks_and_of_strategies_are_taken_as_they_come(model, tokenizer):
    distances = angular_distances(model, tokenizer, TEXTS, progress=False)
    best = best_blocks(distances)
    frame = damage(model, tokenizer, best)
    assert frame["start"].tolist() == best["start"].tolist()
    assert frame["size"].tolist() == [1, 2, 3, 4, 5, 6, 7]  # all seven: embedding and head alone
    strategies = removal_strategies(distances, [2], seed=1)
    frame = damage(model, tokenizer, strategies)
    assert frame["removed"].tolist() == strategies["removed"].drop_duplicates().tolist()
    frame = damage(model, tokenizer, distances[["start", "size"]].head(2))
    assert frame["removed"].tolist() == ["0", "1"]


def test_a_pruned_model_is_asked_by_original_numbers(tokenizer):
    whole = tiny_model("llama")
    expected = mean_loss(whole, tokenizer, [1, 2, 3, 4])
    model = prune_(whole, [2, 3])
    frame = damage(model, tokenizer, [(1, 2)])
    assert frame.loc[0, "removed"] == "1,4"
    assert frame.loc[0, "start"] == 1
    assert frame.loc[0, "loss"] == pytest.approx(expected, abs=5e-6)
    with pytest.raises(ValueError, match="layer must be one of the model's layers 0-1,4-6, got 2"):
        damage(model, tokenizer, layer_sets=[(2,)])


def test_interval_holds_the_damage(model, tokenizer):
    frame = damage(model, tokenizer, sizes=[1])
    assert frame["damage"].between(frame["ci_low"], frame["ci_high"]).all()
    assert frame["n_texts"].unique().tolist() == [len(TEXTS)]
    assert frame["n_tokens"].unique() == sum(len(tokenizer(t).input_ids) - 1 for t in TEXTS)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "must name at least one set of layers to skip, got none"),
        ({"sizes": [0]}, "size must be between 1 and 6, below the depth, got 0"),
        ({"sizes": [7]}, "size must be between 1 and 6, below the depth, got 7"),
        ({"blocks": [(6, 2)]}, "within 7 layers, got start 6, size 2"),
        ({"blocks": [(9, 1)]}, "start must be one of the model's layers 0-6, got 9"),
        ({"blocks": [3]}, r"blocks must be \(start, size\) pairs"),
        ({"blocks": pd.DataFrame({"layer": [1]})}, "blocks needs the columns"),
        ({"layer_sets": [()]}, "layer_sets must hold sets of layers"),
        ({"layer_sets": [3]}, "layer_sets must hold sets of layers"),
        ({"layer_sets": [(3, 9)]}, r"layer must be one of the model's layers 0-6, got 9"),
        ({"layer_sets": [(0.5,)]}, "got 0.5"),
        ({"sizes": [1], "max_tokens": 0}, "max_tokens must be a whole number"),
    ],
)
def test_errors(model, tokenizer, options, message):
    with pytest.raises(ValueError, match=message):
        damage(model, tokenizer, **options)


def test_one_token_predicts_nothing(model):
    with pytest.raises(ValueError, match="texts of at least two tokens, text 1 has one"):
        block_damage(model, None, [[4, 5], [6]], [(0, 1)])


class TestLeastHarmful:
    def test_one_half_chooses_and_the_other_measures(self, model, tokenizer):
        texts = [*TEXTS, "Sing a song of six pence.", "A pocket full of rye."]
        frame = least_harmful(model, tokenizer, texts, [1, 3], seed=5, progress=False)
        order = np.random.default_rng(5).permutation(len(texts))
        one = [texts[i] for i in sorted(order[: len(texts) // 2])]
        two = [text for text in texts if text not in one]
        first = block_damage(model, tokenizer, one, sizes=[1, 3], progress=False)
        for row in frame.itertuples():
            of_size = first[first["size"] == row.size]
            assert row.start == of_size.loc[of_size["damage"].idxmin(), "start"]
            assert row.chosen_damage == pytest.approx(of_size["damage"].min())
            again = block_damage(model, tokenizer, two, [(row.start, row.size)], seed=5, progress=False)
            assert row.damage == pytest.approx(again["damage"].item(), abs=1e-6)
        assert frame["n_texts"].tolist() == [len(two)] * 2
        assert frame.attrs["n_chosen_on"] == len(one)

    def test_copies_stay_on_one_side(self, model, tokenizer):
        frame = least_harmful(model, tokenizer, [TEXTS[0], TEXTS[1]] * 8, [1], progress=False)
        assert frame["n_texts"].item() == 8
        assert frame.attrs["duplicates"] == 7
        assert np.isnan(frame["ci_low"]).all()
        with pytest.raises(ValueError, match="at least two different ones, got 1"):
            least_harmful(model, tokenizer, [TEXTS[0]] * 8, [1], progress=False)


def test_the_interval_says_what_it_is_of(model, tokenizer):
    attrs = damage(model, tokenizer, sizes=[1]).attrs
    assert "least_harmful" in attrs["interval"]
    assert attrs["control_texts"] == attrs["duplicates"] == 0


def test_a_text_given_many_times_is_one_text_to_every_interval(model, tokenizer):
    measures = {
        "damage": partial(block_damage, sizes=[1]),
        "influence": block_influence,
        "similarity": removal_similarity,
        "distance": angular_distances,
    }
    texts = TEXTS[:2]
    for value, measure in measures.items():
        once = measure(model, tokenizer, texts, progress=False)
        often = measure(model, tokenizer, texts * 16, progress=False)
        np.testing.assert_allclose(often[value], once[value], atol=1e-6)
        np.testing.assert_allclose(often[["ci_low", "ci_high"]], once[["ci_low", "ci_high"]], atol=1e-4)
        assert often.attrs["duplicates"] == 30
        assert once["ci_high"].sub(once["ci_low"]).min() > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"confidence": 95}, "confidence must be between 0 and 1, got 95"),
        ({"confidence": "0.95"}, "confidence must be between 0 and 1, got '0.95'"),
        ({"confidence": True}, "confidence must be between 0 and 1, got True"),
        ({"confidence": float("nan")}, "confidence must be between 0 and 1, got nan"),
        ({"seed": -1}, "seed must be a whole number >= 0, got -1"),
        ({"seed": True}, "seed must be a whole number >= 0, got True"),
        ({"seed": 0.5}, "seed must be a whole number >= 0, got 0.5"),
        ({"seed": "0"}, "seed must be a whole number >= 0, got '0'"),
    ],
)
def test_interval_and_seed_are_checked_before_any_pass(tokenizer, options, message):
    model = tiny_model("llama")
    model.model.embed_tokens.register_forward_pre_hook(lambda *_: pytest.fail("the model ran"))
    measures = (wb.angular_distances, wb.block_influence, wb.removal_similarity)
    for measure in (*measures, partial(wb.block_damage, sizes=[1])):
        with pytest.raises(ValueError, match=message):
            measure(model, tokenizer, TEXTS, progress=False, **options)

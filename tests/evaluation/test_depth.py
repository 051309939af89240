"""Scores by depth are the scores of single variants, put together."""

from __future__ import annotations

import pandas as pd
import pytest
from tiny import tiny_model

import workbench as wb
from workbench.evaluation.depth import at_fractions, scores_by_depth
from workbench.models.layers import kept_layers
from workbench.pruning.removal import without_layers
from workbench.runs.variant import Variant

TEXTS = ["Anna has 12 apples and gives 5 to Ben.", "The quick brown fox jumps over the lazy dog."]


TASK = "demo_yes_no"


VARIANTS = [
    Variant("base", "m"),
    Variant("cut", "m", removed=(2, 3)),
    Variant("sft-2", "m", removed=(2, 3), adapter="a"),
    Variant("sft-4", "m", removed=(1, 2, 3, 4), adapter="b"),
]


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.fixture(scope="module")
def depths(model, tokenizer) -> pd.DataFrame:
    blocks = pd.DataFrame({"start": [3, 2], "size": [1, 3]})
    return scores_by_depth(model, tokenizer, blocks, [TASK], texts=TEXTS, limit=4, progress=False)


def test_each_depth_is_scored_as_that_variant_alone(depths, model, tokenizer):
    assert list(dict.fromkeys(depths["removed"])) == ["", "3", "2-4"]
    assert depths["fraction"].drop_duplicates().tolist() == [0, 1 / 7, 3 / 7]
    assert not depths["healed"].any()
    for removed, layers in (("", []), ("3", [3]), ("2-4", [2, 3, 4])):
        rows = depths[depths["removed"] == removed].set_index("metric")["value"]
        with without_layers(model, layers):
            alone = wb.evaluate(model, tokenizer, [TASK], limit=4, progress=False)
            losses = wb.perplexity(model, tokenizer, TEXTS, progress=False)
        expected = pd.concat([alone, losses]).set_index("metric")["value"]
        for metric in ("acc", "loss", "normalized_loss"):
            assert rows[metric] == pytest.approx(expected[metric], abs=1e-5)
    assert kept_layers(model) == tuple(range(7))


def test_blocks_may_be_sets_with_gaps(model, tokenizer):
    found = scores_by_depth(model, tokenizer, [(5, 1), (1, 5)], texts=TEXTS, progress=False)
    assert list(dict.fromkeys(found["removed"])) == ["", "1,5"]
    assert set(found["metric"]) == {"loss", "normalized_loss"}


@pytest.mark.parametrize(
    ("blocks", "options", "message"),
    [
        ([(1,)], {}, "tasks or texts must be given"),
        ([], {"texts": TEXTS}, "at least one layer each"),
        ([()], {"texts": TEXTS}, "at least one layer each"),
        ([(9,)], {"texts": TEXTS}, "9"),
        (pd.DataFrame({"layer": [1]}), {"texts": TEXTS}, "blocks needs the columns"),
    ],
)
def test_bad_blocks_are_refused_before_anything_is_scored(
    model, tokenizer, blocks, options, message, monkeypatch
):
    monkeypatch.setattr("workbench.evaluation.evaluate.evaluate", None)
    with pytest.raises(ValueError, match=message):
        scores_by_depth(model, tokenizer, blocks, **options)


def scores_of(*names: str) -> pd.DataFrame:
    common = {"task": "mmlu", "metric": "acc", "value": 0.5, "stderr": 0.05, "n": 100}
    return pd.DataFrame([{"variant": name, **common} for name in names])


def test_variants_are_placed_by_what_they_lost():
    placed = at_fractions(
        scores_of("base", "cut", "sft-2", "sft-4"), VARIANTS, 16, series={"sft-2": "SFT", "sft-4": "SFT"}
    )
    assert list(placed["series"]) == ["base", "cut", "SFT", "SFT"]
    assert list(placed["healed"]) == [False, False, True, True]
    assert list(placed["fraction"]) == [0, 2 / 16, 2 / 16, 4 / 16]
    assert list(placed["removed"]) == ["", "2-3", "2-3", "1-4"]
    with pytest.raises(ValueError, match=r"every scored variant, \['other'\] missing"):
        at_fractions(scores_of("other"), VARIANTS, 16)
    with pytest.raises(ValueError, match="n_layers must be above 4, got 4"):
        at_fractions(scores_of("sft-4"), VARIANTS, 4)

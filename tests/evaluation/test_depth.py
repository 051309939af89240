"""Scores by depth, by category and as flips are the scores of single variants, put together."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from frames import score_frame
from tiny import tiny_model, tiny_tokenizer

import workbench as wb
from workbench.evaluation.depth import at_fractions, scores_by_depth
from workbench.evaluation.scores import CHANCE, category_scores, flip_counts, score_intervals
from workbench.evaluation.suites import CATEGORIES
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
def tokenizer():
    return tiny_tokenizer()


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
        (pd.DataFrame({"layer": [1]}), {"texts": TEXTS}, "blocks must have start and size, or removed"),
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


def test_a_category_is_the_mean_of_its_tasks_with_independent_errors():
    scores = score_frame()
    categories = {"demo_math": "reasoning", "demo_facts": "knowledge", "demo_pairs": "knowledge"}
    scores = scores.assign(category=scores["task"].map(categories).fillna("language"))
    found = category_scores(scores.sample(frac=1, random_state=0)).set_index(["variant", "category"])
    assert list(dict.fromkeys(category for _, category in found.index)) == ["reasoning", "knowledge"]
    row = found.loc[("pruned + SFT", "knowledge")]
    assert row["value"] == pytest.approx((0.007 + 1) / 2)
    tasks = score_intervals(scores).query("variant == 'pruned + SFT' and category == 'knowledge'")
    below = np.sqrt(((tasks["value"] - tasks["low"]) ** 2).sum()) / 2
    assert row["low"] == pytest.approx(row["value"] - below)
    assert row["low"] < row["value"] < row["high"] <= 1
    assert row["n_tasks"] == 2


def test_categories_of_different_tasks_are_refused():
    scores = score_frame().assign(category="reasoning")
    gap = scores[~((scores["variant"] == "pruned") & (scores["task"] == "demo_math"))]
    with pytest.raises(ValueError, match=r"'pruned' and 'base' differ in \['demo_math'\]"):
        category_scores(gap)
    with pytest.raises(ValueError, match="where higher is better"):
        category_scores(scores.assign(higher_is_better=False))
    with pytest.raises(ValueError, match=r"missing \['category'\]"):
        category_scores(score_frame())


def test_unknown_errors_give_no_interval():
    found = category_scores(score_frame().assign(category="", stderr=np.nan))
    assert set(found["category"]) == {"other"}
    assert found[["low", "high"]].isna().all(axis=None)


def items(values: list[float], task: str = "math") -> pd.DataFrame:
    n = len(values)
    rows = {"task": task, "n_shot": 0, "item": range(n), "metric": "acc", "value": values}
    return pd.DataFrame(rows).assign(prompt="p", target="t", response="r")


def test_flips_are_counted_also_where_nothing_turned():
    base = pd.concat([items([1, 1, 0, 0]), items([1, 0], "facts"), items([-3.2], "stories")])
    other = pd.concat([items([0, 0, 1, 0]), items([1, 0], "facts"), items([-4.2], "stories")])
    found = flip_counts(base, {"pruned": other, "same": base})
    assert found.to_dict("list") == {
        "variant": ["pruned", "pruned", "same", "same"],
        "task": ["facts", "math", "facts", "math"],
        "n": [2, 4, 2, 4],
        "right_to_wrong": [0, 2, 0, 0],
        "wrong_to_right": [0, 1, 0, 0],
    }
    with pytest.raises(ValueError, match="right or wrong"):
        flip_counts(items([-3.2]), {"v": items([-3.1])})
    with pytest.raises(ValueError, match="at least one variant"):
        flip_counts(base, {})
    with pytest.raises(ValueError, match="same items with the same prompts"):
        flip_counts(base, {"v": items([1])})


def test_the_chance_of_choices_is_that_of_their_number(shared_data):
    first = pd.read_json(shared_data / "hellaswag.jsonl", lines=True, nrows=50)
    assert (first["endings"].map(len) == 1 / CHANCE["hellaswag"]).all()
    questions = pd.read_json(shared_data / "mmlu_test.jsonl", lines=True, nrows=50)
    assert (questions["choices"].map(len) == 1 / CHANCE["mmlu"]).all()


def test_every_task_of_the_papers_with_choices_has_a_chance():
    names = ("arc_challenge", "arc_easy", "hellaswag", "copa", "piqa", "gsm8k", "blimp", "race", "winogrande")
    names += ("boolq", "mmlu", "xwinograd", "xstorycloze", "xnli")
    assert set(names) <= set(CHANCE)
    assert set(names) <= set(CATEGORIES)

"""Order, number of few-shot examples and training seed: the same questions, asked and trained otherwise."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scoring import GENERATE, rows, write_jsonl
from tiny import tiny_model, tiny_tokenizer

from workbench.evaluation.evaluate import evaluate
from workbench.evaluation.harness import shot_order
from workbench.evaluation.scores import read_items, score_spread
from workbench.evaluation.variants import seed_ablation, shot_ablation
from workbench.runs.variant import Variant


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("project") / "toys" / "tasks"
    path.mkdir(parents=True)
    (path / "sums.yaml").write_text(GENERATE, encoding="utf-8")
    write_jsonl(path / "train.jsonl", rows(9, seed=1))
    write_jsonl(path / "test.jsonl", rows(6, seed=2))
    return path


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


@pytest.fixture(scope="module")
def model():
    return tiny_model(max_position_embeddings=512)


def test_orders_are_distinct_permutations_and_the_first_is_as_drawn():
    orders = [shot_order(3, k) for k in range(6)]
    assert orders[0] == [0, 1, 2]
    assert len({tuple(order) for order in orders}) == 6
    assert all(sorted(order) == [0, 1, 2] for order in orders)
    assert orders == [shot_order(3, k) for k in range(6)]


def test_an_order_moves_the_examples_and_nothing_else(model, tokenizer, folder, tmp_path):
    parts = []
    for order in (0, 1):
        items = tmp_path / f"{order}.jsonl"
        options = {"include": folder, "items": items, "progress": False}
        evaluate(model, tokenizer, "toy_sums", n_shot=4, shot_order=order, **options)
        prompts = read_items(items).drop_duplicates("item")["prompt"]
        parts.append([prompt.split("\n\n") for prompt in prompts])
    places = shot_order(4, 1)
    for drawn, moved in zip(*parts, strict=True):
        assert moved[:4] == [drawn[place] for place in places]
        assert moved[4] == drawn[4]
        assert moved[:4] != drawn[:4]


def test_every_number_and_order_is_one_measurement(model, tokenizer, folder):
    frame = shot_ablation(
        model, tokenizer, "toy_sums", shots=(0, 1, 2, 3), orders=3, include=folder, progress=False
    )
    counts = frame[frame["metric"] == "exact_match,whole"].groupby("n_shot")["order"].agg(list).to_dict()
    assert counts == {0: [0], 1: [0], 2: [0, 1], 3: [0, 1, 2]}
    alone = evaluate(model, tokenizer, "toy_sums", n_shot=3, include=folder, progress=False)
    first = frame[(frame["n_shot"] == 3) & (frame["order"] == 0)].drop(columns="order").reset_index(drop=True)
    pd.testing.assert_frame_equal(first, alone)
    spread = score_spread(frame, "order").set_index(["metric", "n_shot"])
    values = frame.query("metric == 'exact_match,number' and n_shot == 3")["value"].to_numpy()
    row = spread.loc[("exact_match,number", 3)]
    assert row["mean"] == pytest.approx(values.mean())
    assert row["std"] == pytest.approx(values.std(ddof=1))
    assert row["n"] == 3
    assert np.isnan(spread.loc[("exact_match,number", 1), "std"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"shots": ()}, "shots must be different whole numbers"),
        ({"shots": (1, 1)}, "shots must be different whole numbers"),
        ({"shots": (-1,)}, "shots must be different whole numbers"),
        ({"orders": 0}, "orders must be a whole number"),
        ({"n_shot": 3}, r"settings must not hold \['n_shot'\]"),
        ({"shots": (12,)}, "must be at most 9, its examples, got 12"),
    ],
)
def test_ablations_out_of_range_are_refused(model, tokenizer, folder, settings, message):
    with pytest.raises(ValueError, match=message):
        shot_ablation(model, tokenizer, "toy_sums", include=folder, progress=False, **settings)


def test_seeds_are_variants_of_one_method(tokenizer, folder, run):
    model = tiny_model(max_position_embeddings=512)
    variants = {
        "cut-2": {seed: Variant(f"cut-2-{seed}", "tiny", removed=(1 + seed, 2 + seed)) for seed in (0, 1, 2)},
        "cut-1": {seed: Variant(f"cut-1-{seed}", "tiny", removed=(1 + seed,)) for seed in (0, 1)},
    }
    frame = seed_ablation(
        model, tokenizer, variants, "toy_sums", run=run, include=folder, limit=3, progress=False
    )
    assert list(frame.columns[:4]) == ["method", "seed", "variant", "task"]
    spread = score_spread(frame, "seed")
    assert spread.groupby("method")["n"].first().to_dict() == {"cut-2": 3, "cut-1": 2}
    twice = {"a": {0: variants["cut-1"][0]}, "b": {0: variants["cut-1"][0]}}
    with pytest.raises(ValueError, match="each under one method and seed"):
        seed_ablation(model, tokenizer, twice, "toy_sums", run=run, include=folder, progress=False)


def test_a_spread_over_what_is_not_there_is_refused():
    frame = pd.DataFrame({"task": ["a", "a"], "metric": "acc", "n_shot": 0, "value": [0.1, 0.2], "order": 0})
    with pytest.raises(ValueError, match="over must be a column"):
        score_spread(frame, "seed")
    with pytest.raises(ValueError, match="each order must have one score"):
        score_spread(frame, "order")

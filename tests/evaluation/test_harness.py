"""The harness around a model in memory: tidy rows, truncation counted, everything put back."""

from __future__ import annotations

import json
import logging
import random

import numpy as np
import pytest
import torch
from scoring import TASKS
from tiny import tiny_model, tiny_tokenizer

from workbench.evaluation.evaluate import evaluate
from workbench.evaluation.harness import shot_order
from workbench.evaluation.items import read_items


def test_rows_are_tidy(scored):
    frame = scored[0].set_index(["task", "metric"])
    assert len(frame) == 2 + 1 + 2 * 2 + 3
    assert frame.loc[("toy_choices", "acc"), "n"] == 26
    assert frame.loc[("toy_choice", "acc"), "parent"] == "toy_choices"
    assert frame.loc[("toy_choices", "acc"), "parent"] == ""
    assert not frame.loc[("toy_texts", "word_perplexity"), "higher_is_better"]
    assert frame.loc[("toy_sums", "exact_match,number"), "higher_is_better"]
    assert (frame["truncated"] == 0).all()
    assert frame["stderr"].notna().all()


def test_items_add_up_to_the_scores(scored):
    frame, items = scored
    means = items.groupby(["task", "metric"])["value"].agg(["mean", "count"])
    for row in frame[frame["higher_is_better"] & (frame["task"] != "toy_choices")].itertuples():
        assert means.loc[(row.task, row.metric), "mean"] == pytest.approx(row.value)
        assert means.loc[(row.task, row.metric), "count"] == row.n == 13
    choice = items[(items["task"] == "toy_choice") & (items["metric"] == "acc")]
    assert ((choice["target"] == choice["response"]) == (choice["value"] == 1)).all()


@pytest.mark.parametrize("fails", [False, True])
def test_everything_is_put_back(folder, fails, capfd):
    import lm_eval.api.task

    model, tokenizer = tiny_model(), tiny_tokenizer()
    tokenizer.padding_side, tokenizer.pad_token = "right", None
    model.train()
    model.lm_head.eval()
    level, bar = logging.getLogger("lm_eval").level, lm_eval.api.task.tqdm
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    if fails:
        handle = model.register_forward_pre_hook(lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            evaluate(model, tokenizer, TASKS, include=folder, limit=2, progress=False)
        handle.remove()
    else:
        evaluate(model, tokenizer, TASKS, include=folder, limit=2, progress=False)
    assert (tokenizer.padding_side, tokenizer.pad_token) == ("right", None)
    assert model.training
    assert model.model.layers[0].training
    assert not model.lm_head.training
    now = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    assert now == states
    assert (logging.getLogger("lm_eval").level, lm_eval.api.task.tqdm) == (level, bar)
    out, err = capfd.readouterr()
    assert (out, err) == ("", "")


def test_one_bar_and_nothing_else(model, tokenizer, folder, capfd):
    evaluate(model, tokenizer, TASKS, include=folder, limit=3)
    out, err = capfd.readouterr()
    assert out == ""
    assert {part.split(":")[0] for part in err.replace("\n", "\r").split("\r") if part.strip()} == {
        "evaluation"
    }


def test_truncation_is_counted_and_marked(model, tokenizer, folder, tmp_path):
    frame = evaluate(
        model, tokenizer, ["toy_sums", "toy_choice"], include=folder, max_length=24, progress=False,
        items=tmp_path / "items.jsonl",
    )  # fmt: skip
    rows_ = [json.loads(line) for line in (folder / "test.jsonl").read_text(encoding="utf-8").splitlines()]
    sums = [len(tokenizer(f"Question: {row['question']}\nAnswer:")["input_ids"]) > 24 - 6 for row in rows_]
    longest = [
        max(len(tokenizer(f"{row['question']} {c}")["input_ids"]) for c in row["choices"]) > 25
        for row in rows_
    ]
    assert sum(sums) > 0
    assert 0 < sum(longest) < 13
    counts = frame.groupby("task")["truncated"].first()
    assert (counts["toy_sums"], counts["toy_choice"]) == (sum(sums), sum(longest))
    items = read_items(tmp_path / "items.jsonl")
    marked = items[(items["task"] == "toy_choice") & (items["metric"] == "acc")]["truncated"]
    assert list(marked) == longest


def test_orders_are_distinct_permutations_and_the_first_is_as_drawn():
    orders = [shot_order(3, k) for k in range(6)]
    assert orders[0] == [0, 1, 2]
    assert len({tuple(order) for order in orders}) == 6
    assert all(sorted(order) == [0, 1, 2] for order in orders)
    assert orders == [shot_order(3, k) for k in range(6)]

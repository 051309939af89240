"""States scored alike: what the pieces give on their own."""

from __future__ import annotations

import pytest

import workbench as wb


def test_scores_and_perplexities_are_those_of_each_state_by_itself(run, demo_model):
    model, tokenizer = demo_model
    states = [wb.Variant("base", "demo"), wb.Variant("cut", "demo", removed=(1, 2))]
    texts = {"stories": wb.load_texts("demo-stories", n=3)}
    scores = wb.state_scores(
        model, tokenizer, states, ["demo_pairs"], texts, run=run, limit=4, progress=False
    )
    assert set(scores["variant"]) == {"base", "cut"} and set(scores["task"]) == {"demo_pairs", "stories"}
    with wb.without_layers(model, [1, 2]):
        alone = wb.perplexity(model, tokenizer, texts["stories"], task="stories", progress=False)
        tasks = wb.evaluate(model, tokenizer, ["demo_pairs"], limit=4, progress=False)
    cut = scores[scores["variant"] == "cut"]
    words = alone["metric"] == "word_perplexity"
    kept = cut[(cut["task"] == "stories") & (cut["metric"] == "word_perplexity")]
    assert kept["value"].item() == pytest.approx(alone.loc[words, "value"].item(), rel=1e-6)
    merged = cut.merge(tasks, on=["task", "metric"], suffixes=("", "_alone"))
    assert len(merged) == len(tasks) and merged["value"].equals(merged["value_alone"])
    assert run.variants() == []  # another notebook would score them again

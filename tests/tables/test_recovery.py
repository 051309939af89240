"""Sentences on iterations and methods."""

import pandas as pd
import pytest

from workbench.tables.iterabre import multilingual_table
from workbench.tables.recovery import methods_reading, recovery_gain_reading


def test_methods_are_ranked_with_their_spread_over_seeds():
    scores = pd.DataFrame({"approach": ["ours", "ours", "laco"], "value": [30.0, 34.0, 29.0]})
    said = methods_reading(scores.assign(metric="word_perplexity"), ours="ours")
    assert said == "**ours** 32.00 ± 2.83 (2 seeds), rank 2 of 2 from the lowest; laco 29.00 (1 seed)."
    with pytest.raises(ValueError, match="ours must be one of"):
        methods_reading(scores.assign(metric="word_perplexity"), ours="theirs")


def test_what_recovery_lost_is_said_too():
    changes = pd.DataFrame(
        {"phase": ["P", "P+R", "P", "P+R"], "task": ["a", "a", "b", "b"], "change": [-0.2, 0.1, -0.1, -0.05]}
    )
    said = recovery_gain_reading(changes)
    assert said.startswith("Pruning changed a score by -0.150 on average, recovery by +0.025")
    assert said.endswith("gained in 1 of 2 cases; it lost somewhere in **b**.")


def test_table_3_holds_the_multilingual_tasks_in_percent():
    scores = pd.DataFrame(
        {
            "variant": ["base", "base", "base", "cut", "cut", "cut"],
            "task": ["xwinograd", "xnli", "arc_easy"] * 2,
            "metric": "acc",
            "value": [0.8, 0.5, 0.7, 0.6, 0.4, 0.5],
            "stderr": 0.01,
            "category": ["multilingual", "multilingual", "reasoning"] * 2,
            "n_shot": 0,
        }
    )
    notes = pd.DataFrame(
        {"variant": ["base", "cut"], "model": "m", "approach": ["whole", "ours"], "layers": [8, 6]}
    )
    table = multilingual_table(scores, notes)
    assert list(table.columns[:3]) == ["Model", "Approach", "L"]
    assert [list(row) for row in table.iloc[:, 3:].round(6).to_numpy()] == [[80.0, 50.0], [60.0, 40.0]]
    with pytest.raises(ValueError, match="multilingual"):
        multilingual_table(scores[scores["category"] == "reasoning"], notes)


def test_an_approach_that_kept_another_number_of_layers_says_so():
    frame = pd.DataFrame(
        {"approach": ["ours", "laco", "direct"], "value": [30, 10, 40], "layers": [28, 30, 28]}
    )
    told = methods_reading(frame.assign(metric="word_perplexity"), ours="ours")
    assert "laco 10.00 (1 seed, with 30 layers)" in told and told.count("layers") == 1

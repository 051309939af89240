"""The run in one table, and its trainings."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from frames import score_frame, similarity_frame

from workbench.statistics import bootstrap_interval
from workbench.tables.layouts import summary_table, training_table

GROUPS = {"reasoning": ["demo_math"], "knowledge": ["demo_facts"], "language": ["demo_pairs"]}


def test_the_summary_gives_what_was_measured():
    similarities = similarity_frame(40)
    table = summary_table(score_frame(), GROUPS, similarities=similarities).set_index("variant")
    assert list(table.columns) == [*GROUPS, "similarity"]
    assert table.loc["pruned + SFT", "knowledge"] == 0.007
    means = similarities.groupby("variant")["similarity"].mean()
    assert table.loc["pruned", "similarity"] == means["pruned"]
    assert np.isnan(table.loc["base", "similarity"])


def test_the_summary_states_intervals():
    similarities = similarity_frame(40)
    table = summary_table(score_frame(), GROUPS, similarities=similarities, intervals=True).set_index(
        "variant"
    )
    assert table.loc["pruned", "reasoning"] == "0.487 [0.438, 0.536]"
    assert table.loc["base", "language"] == "1.000 [0.990, 1.000]"
    assert table.loc["base", "similarity"] == "–"
    low, high = bootstrap_interval(similarities.query("variant == 'pruned'")["similarity"])
    assert table.loc["pruned", "similarity"].endswith(f"[{low:.3f}, {high:.3f}]")


def test_a_group_of_tasks_is_their_mean_with_independent_errors():
    table = summary_table(score_frame(), {"both": ["demo_math", "demo_facts"]}, intervals=True)
    assert table["both"][1] == "0.738 [0.712, 0.762]"
    with pytest.raises(
        ValueError, match=r"group 'all' needs one score of each of \['demo_math', 'nonsense'\]"
    ):
        summary_table(score_frame(), {"all": ["demo_math", "nonsense"]})
    with pytest.raises(ValueError, match="one unit"):
        summary_table(score_frame(), {"all": ["demo_math", "demo_stories"]})


def test_trainings_are_summed_up_in_the_order_they_ran():
    log = pd.DataFrame({"step": range(1, 21), "tokens": range(10, 210, 10), "seconds": np.arange(1.0, 21.0)})
    log["loss"] = 21.0 - log["step"]
    table = training_table(pd.concat([log.assign(variant="z"), log.head(2).assign(variant="a")]))
    assert list(table["variant"]) == ["z", "a"] and list(table["steps"]) == [20, 2]
    assert list(table["tokens/s"]) == [10.0, 10.0]
    assert list(table["final loss"]) == [(2 + 1) / 2, 19.0]  # the last two of twenty, the last of two
    assert "held-out loss" not in table
    log["held_out_loss"] = [None] * 9 + [3.5] + [None] * 9 + [2.5]
    assert training_table(log.assign(variant="z"))["held-out loss"].tolist() == [2.5]

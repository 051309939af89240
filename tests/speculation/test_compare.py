"""Drafts compared on the same prompts, by hand."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from workbench.speculation.compare import compare_drafts
from workbench.statistics import holm


def rounds_of(rates):
    """Return rounds of one token a time: {draft: share accepted of each of several prompts}."""
    rows = [
        {
            "draft": draft,
            "kind": "even" if prompt % 2 else "odd",
            "prompt": prompt,
            "draft_length": 1,
            "n_tokens": 20,
            "accepted": " ".join(["1"] * taken + ["0"] * (10 - taken)),
            "proposed": " ".join(["1"] * 10),
        }
        for draft, prompts in rates.items()
        for prompt, taken in enumerate(prompts)
    ]
    return pd.DataFrame(rows)


def test_differences_are_paired_by_prompt_and_corrected():
    a = np.array([1, 5, 3, 8, 2, 9, 4, 6, 0, 7])
    rounds = rounds_of({"a": a, "b": np.minimum(a + 1, 10), "c": a[::-1]})
    found = compare_drafts(rounds, [("a", "b"), ("a", "c")])
    assert found["difference"].tolist() == [pytest.approx(0.1), pytest.approx(0)]
    assert found["higher"].tolist()[0] == 10 and found["p_value"].iloc[0] == pytest.approx(2 / 2**10)
    np.testing.assert_allclose(found["p_adjusted"], holm(found["p_value"]))
    kinds = compare_drafts(rounds, [("a", "b")], by_kind=True)
    assert kinds["kind"].tolist() == ["odd", "even"] and (kinds["n"] == 5).all()
    with pytest.raises(ValueError, match="between must be"):
        compare_drafts(rounds, [("a", "z")])
    with pytest.raises(ValueError, match="draft_length must be"):
        compare_drafts(rounds, [("a", "b")], draft_length=4)
    with pytest.raises(ValueError, match="the same prompts"):
        compare_drafts(rounds.iloc[:-1], [("a", "c")])

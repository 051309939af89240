"""A whole distribution: every response is there, and the mean is the one that a reader would compute."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from workbench.plots.spreads import spreads
from workbench.plots.style import use_template


def test_every_response_is_a_dot_and_the_mean_is_weighted():
    frame = pd.DataFrame({"variant": ["a"] * 3 + ["b"] * 2, "kl": [1.0, 2.0, 4.0, 3.0, 5.0]})
    frame["n_tokens"] = [1, 1, 2, 1, 3]
    drawn_at = {"drawn_at": lambda values: np.log10(np.maximum(values, 0.1))}
    fig = spreads(frame, "kl", "Title", ".2f", weigh="n_tokens", **drawn_at)
    dots = [trace for trace in fig.data if trace.marker.symbol == "circle"]
    assert [list(trace.meta["x"]) for trace in dots] == [[1.0, 2.0, 4.0], [3.0, 5.0]]
    assert np.concatenate([trace.x for trace in dots]) == pytest.approx(np.log10(frame["kl"]))
    means = [trace for trace in fig.data if trace.marker.symbol == "diamond"]
    assert [trace.meta["x"][0] for trace in means] == pytest.approx([2.75, 4.5])


def test_an_interval_ends_where_the_values_must_end():
    frame = pd.DataFrame({"variant": "a", "similarity": [0.05, 0.2, 0.24, 0.28, 0.76, 0.79]})
    free, bound = (
        spreads(frame, "similarity", None, ".3f", **kept).data[-1].meta for kept in ({}, {"bounds": (-1, 1)})
    )
    assert free["x"][0] + free["error_x"][0] > 1
    assert bound["x"][0] + bound["error_x"][0] == pytest.approx(1)


@pytest.mark.parametrize("template", ["screen", "column"])
def test_what_has_no_interval_says_so_and_not_nan(template):
    use_template(template)
    frame = pd.DataFrame({"variant": ["a"] * 3 + ["b"], "similarity": [0.9, 0.9, 0.9, 0.5]})
    fig = spreads(frame, "similarity", None, ".3f")
    shown = [*(fig.layout.yaxis.ticktext or ()), *(note.text for note in fig.layout.annotations)]
    shown += [text for trace in fig.data if trace.customdata is not None for text, *_ in trace.customdata]
    assert not any("nan" in text for text in shown)
    assert any("0.900, all alike" in text for text in shown)

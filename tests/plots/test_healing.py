"""The live loss curve and the figure of the grid."""

from __future__ import annotations

import base64

import nbformat
import numpy as np
import pandas as pd
import pytest

from workbench.plots.healing import tuning_figure
from workbench.runs.notebooks import execute
from workbench.runs.pages import PLOTLY
from workbench.widgets.live import LiveLoss


def rows(n, steps=20):
    return [
        {"step": k, "steps": steps, "loss": 5 / k, "tokens_per_second": 3050.4, "seconds_left": 74.6}
        for k in range(1, n + 1)
    ]


def trials():
    grid = [(rank, rate) for rank in (4, 8) for rate in (1e-4, 2e-5, 6e-5)]
    frame = pd.DataFrame(grid, columns=["rank", "learning_rate"])
    frame = frame.assign(trial=range(6), state="complete", loss=[1.5, 1.7, 1.6, 1.3, 1.8, 1.4], steps=9)
    frame.loc[4, ["state", "loss"]] = ["diverged", np.nan]
    return frame[["trial", "state", "rank", "learning_rate", "loss", "steps"]]


def test_the_curve_grows_with_every_row_and_forgets_what_is_trained_again():
    live = LiveLoss()
    with pytest.raises(ValueError, match="it has seen none"):
        live.figure()
    see = live.watch("pruned-sft")
    for row in rows(8):
        see(row)
    fig = live.figure()
    assert list(fig.data[-1].x) == list(range(1, 9))
    assert fig.layout.xaxis.range == (0, 20)
    for row in rows(6)[4:]:  # back to step 5
        see(row)
    assert live.log()["step"].tolist() == [1, 2, 3, 4, 5, 6]
    live.add("pruned-self-distilled", pd.DataFrame(rows(20)).drop(columns="steps"))
    fig = live.figure("pruned-sft: <b>")
    assert {trace.name for trace in fig.data if trace.showlegend is not False} == {
        "pruned-sft",
        "pruned-self-distilled",
    }
    assert fig.layout.title.subtitle.text == "pruned-sft: &lt;b&gt;"


def numbers(values):
    """Return a list that plotly may have packed."""
    if isinstance(values, dict):
        return np.frombuffer(base64.b64decode(values["bdata"]), dtype=values["dtype"]).tolist()
    return list(values)


CELL = """
import time
import pandas as pd
from workbench.widgets.live import LiveLoss
live = LiveLoss(every=0.05)
for name in ("sft", "distilled"):
    see = live.watch(name)
    for k in range(1, 6):
        see({"step": k, "steps": 5, "loss": 1 / k, "tokens_per_second": 1.0, "seconds_left": 5 - k})
        time.sleep(0.06)
    live.add(name, pd.DataFrame(live.rows[name]))
"""


@pytest.mark.slow
def test_in_a_notebook_it_is_one_figure_that_ends_whole(run):
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(CELL)])
    notebook = execute(notebook, run.folder / "test.ipynb", run)
    (output,) = notebook.cells[0].outputs
    figure = output["data"][PLOTLY]
    assert [trace["name"] for trace in figure["data"]] == ["sft", "distilled"]
    assert [numbers(trace["x"]) for trace in figure["data"]] == [[1, 2, 3, 4, 5]] * 2
    assert "subtitle" not in figure["layout"]["title"]


def test_the_grid_is_drawn_by_setting_with_its_best():
    fig = tuning_figure(trials())
    assert [fig.layout.xaxis.title.text, fig.layout.xaxis2.title.text] == ["rank", "learning rate"]
    lines = [trace for trace in fig.data if trace.mode == "lines"]
    assert list(lines[0].y) == [1.5, 1.3]
    assert list(lines[1].x) == ["2e-5", "6e-5", "1e-4"]
    assert list(lines[1].y) == [1.7, 1.4, 1.3]
    stars = [trace for trace in fig.data if trace.name == "best"]
    assert [list(star.x) for star in stars] == [["8"], ["1e-4"]]
    assert "nats" in fig.layout.yaxis.title.text
    with pytest.raises(ValueError, match="trials with a loss must have at least one row"):
        tuning_figure(trials().assign(loss=np.nan))
    with pytest.raises(ValueError, match="missing \\['state'\\]"):
        tuning_figure(trials().drop(columns="state"))

"""Figures of healing: what was kept, the loss, the grid."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

import workbench as plots
from workbench.plots.healing import tuning_figure


def trials():
    grid = [(rank, rate) for rank in (4, 8) for rate in (1e-4, 2e-5, 6e-5)]
    frame = pd.DataFrame(grid, columns=["rank", "learning_rate"])
    frame = frame.assign(trial=range(6), state="complete", loss=[1.5, 1.7, 1.6, 1.3, 1.8, 1.4], steps=9)
    frame.loc[4, ["state", "loss"]] = ["diverged", np.nan]
    return frame[["trial", "state", "rank", "learning_rate", "loss", "steps"]]


def test_kept_reasons_count_every_example(kept):
    fig = plots.kept_reasons(kept)
    assert fig.layout.title.text == "5 of 8 rewrites kept (62.5%)"
    counts = {reason: n for trace in fig.data for reason, n in zip(trace.y, trace.x, strict=True)}
    assert counts == {"same": 5, "cut off": 2, "&lt;script&gt;alert(1)&lt;/script&gt;": 1}


def test_the_loss_is_smoothed_around_the_raw_line(log):
    fig = plots.loss_curve(log, smooth=4)
    raw, smooth = (next(trace for trace in fig.data if trace.opacity == dim) for dim in (0.35, None))
    sft = log[log["variant"] == "SFT"]
    assert list(raw.y) == list(sft["loss"])
    assert list(smooth.y) == list(sft["loss"].rolling(4, center=True, min_periods=1).mean())
    assert len(plots.loss_curve(sft.drop(columns="variant"), smooth=1).data) == 1


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


def test_a_raw_line_has_the_colour_of_its_mean(log):
    few = pd.DataFrame({"step": [2, 1], "loss": [1.0, 2.0], "variant": "one"})
    many = log[log["variant"] == "SFT"].assign(variant="two")
    fig = plots.loss_curve(pd.concat([few, many]))
    raw = next(trace for trace in fig.data if trace.opacity)
    colours = {trace.name: trace.line.color for trace in fig.data if not trace.opacity}
    assert [*colours] == ["one", "two"]
    assert raw.line.color == colours["two"] != colours["one"]
    assert list(next(trace for trace in fig.data if trace.name == "one").x) == [1, 2]

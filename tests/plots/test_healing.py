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
    weights = 0.6 ** np.arange(len(sft))  # 1 - 2 / (4 + 1)
    means = [np.average(sft["loss"][: end + 1], weights=weights[end::-1]) for end in range(len(sft))]
    assert list(smooth.y) == pytest.approx(means) and smooth.y[0] == raw.y[0]
    assert len(plots.loss_curve(sft.drop(columns="variant"), smooth=1).data) == 1


def test_the_grid_is_drawn_by_setting_with_its_best():
    fig = tuning_figure(trials())
    assert [fig.layout.xaxis.title.text, fig.layout.xaxis2.title.text] == ["rank", "learning rate"]
    assert not [trace for trace in fig.data if "lines" in trace.mode]  # nothing was tried between
    ranks, rates = (trace for trace in fig.data if trace.name == "one training")
    assert sorted(zip(ranks.x, ranks.y, strict=True)) == [
        *(("4", loss) for loss in (1.5, 1.6, 1.7)),
        *(("8", loss) for loss in (1.3, 1.4)),
    ]
    assert list(fig.layout.xaxis2.categoryarray) == ["2e-5", "6e-5", "1e-4"] and len(rates.x) == 5
    rings = [trace for trace in fig.data if trace.name == "best (trial 3)"]
    assert [list(ring.x) for ring in rings] == [["8"], ["1e-4"]]
    assert [list(ring.y) for ring in rings] == [[1.3], [1.3]]
    assert "nats" in fig.layout.yaxis.title.text
    with pytest.raises(ValueError, match="trials with a loss must have at least one row"):
        tuning_figure(trials().assign(loss=np.nan))
    with pytest.raises(ValueError, match="missing \\['state'\\]"):
        tuning_figure(trials().drop(columns="state"))


def test_a_raw_line_has_the_colour_of_its_mean(log):
    few = pd.DataFrame({"step": [2, 1], "loss": [1.0, 2.0], "variant": "one"})
    many = log[log["variant"] == "SFT"].assign(variant="two")
    fig = plots.loss_curve(pd.concat([few, many]))
    raw = {trace.name: trace.line.color for trace in fig.data if trace.opacity}
    colours = {trace.name: trace.line.color for trace in fig.data if not trace.opacity}
    assert [*colours] == ["one", "two"]
    assert raw == colours and colours["two"] != colours["one"]
    assert list(next(trace for trace in fig.data if trace.name == "one").x) == [1, 2]


@pytest.mark.parametrize("names", [["one"], ["SFT", "distilled"]])
def test_the_held_out_loss_is_drawn_in_the_steps_that_have_it(names):
    steps = np.arange(1, 41)
    held_out = np.where(steps % 10 == 0, 2.0 - steps / 40, np.nan)
    rows = pd.DataFrame({"step": steps, "loss": 2.5 - steps / 40, "held_out_loss": held_out})
    log = pd.concat([rows.assign(variant=name) for name in names]) if len(names) > 1 else rows
    fig = plots.loss_curve(log)
    marks = {trace.name: trace for trace in fig.data if "held out" in (trace.name or "")}
    assert set(marks) == ({f"{name}, held out" for name in names} if len(names) > 1 else {"held out"})
    for trace in marks.values():
        assert list(trace.x) == [10, 20, 30, 40]
        assert list(trace.y) == pytest.approx([1.75, 1.5, 1.25, 1.0])
    assert fig.layout.showlegend
    colours = {trace.line.color for trace in fig.data}
    assert len(colours) == len(names)
    bare = plots.loss_curve(log.assign(held_out_loss=np.nan))
    assert len(bare.data) == len(plots.loss_curve(log.drop(columns="held_out_loss")).data)


def test_settings_that_are_words_lists_or_nothing_are_ticks(tmp_path):
    trials = pd.DataFrame(
        {
            "trial": range(4),
            "state": "complete",
            "targets": ["ffn", '["q_proj"]', "all-linear", "ffn"],
            "max_steps": [None, 10, 20, None],
            "loss": [0.4, 0.3, 0.2, np.nan],
        }
    )
    fig = plots.tuning_figure(trials)
    assert list(fig.layout.xaxis.categoryarray) == ['["q_proj"]', "all-linear", "ffn"]
    assert list(fig.layout.xaxis2.categoryarray) == ["10", "20", "None"]

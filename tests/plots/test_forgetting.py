"""Figures of shifted responses show the frames' own numbers."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from frames import change_frame, divergence_frame, loss_frame, map_frame, similarity_frame

import workbench as plots
from workbench.forgetting.shift import shift_agreement
from workbench.statistics import bootstrap_interval


def test_the_similarity_figure_shows_every_response_and_the_mean_with_its_interval():
    frame = similarity_frame(30)
    fig = plots.similarity_distribution(frame)
    dots = [trace for trace in fig.data if trace.type == "scatter" and len(trace.x) == 30]
    assert [list(trace.x) for trace in dots] == [
        list(rows) for _, rows in frame.groupby("variant", sort=False)["similarity"]
    ]
    means = [trace for trace in fig.data if trace.type == "scatter" and len(trace.x) == 1]
    for trace, (_, rows) in zip(means, frame.groupby("variant", sort=False)["similarity"], strict=True):
        low, high = bootstrap_interval(rows)
        assert trace.x[0] == pytest.approx(rows.mean())
        assert trace.error_x.array[0] == pytest.approx(high - rows.mean())
        assert trace.error_x.arrayminus[0] == pytest.approx(rows.mean() - low)
    assert "30 responses" in fig.layout.yaxis.ticktext[0]


def test_responses_that_the_encoder_cannot_read_are_in_no_mean():
    frame = similarity_frame(30)
    frame["unseen"] = frame["id"] == frame["id"].iloc[0]
    fig = plots.similarity_distribution(frame)
    first, rest = frame["variant"].iloc[0], frame[~frame["unseen"]]
    mean = rest.loc[rest["variant"] == first, "similarity"].mean()
    assert (
        f"mean {mean:.3f}" in fig.layout.yaxis.ticktext[0] and "29 responses" in fig.layout.yaxis.ticktext[0]
    )


def test_pairs_are_ordered_by_the_farthest_variant_and_stay_pairs():
    frame = similarity_frame(25)
    fig = plots.similarity_pairs(frame.sample(frac=1, random_state=0))
    table = frame.pivot(index="id", columns="variant", values="similarity")
    (cells,) = fig.data
    rows = dict(zip(fig.layout.yaxis.ticktext, np.array(cells.z), strict=True))
    farthest = rows[table.mean().idxmin()]
    assert set(rows) == set(table) and list(farthest) == sorted(farthest)
    for name, values in rows.items():
        assert [table.loc[int(id_), name] for id_ in cells.text[0]] == list(values)
    with pytest.raises(ValueError, match="every id for every variant"):
        plots.similarity_pairs(frame.iloc[1:])


def test_forms_are_shares_and_lengths_ratios():
    fig = plots.answer_forms(change_frame())
    bars = {trace.name: dict(zip(trace.y, trace.x, strict=True)) for trace in fig.data if trace.type == "bar"}
    assert bars["in a sentence"] == {"base": 0.6, "pruned": 0.6, "pruned + SFT": 0}
    assert bars["after ####"]["pruned + SFT"] == 0.9
    assert "in a box" not in bars
    ratio = next(trace for trace in fig.data if trace.type == "scatter" and trace.y[0] == "pruned + SFT")
    frame = change_frame().query("variant == 'pruned + SFT'")
    assert ratio.x[0] == pytest.approx(frame["length"].sum() / frame["base_length"].sum())


def test_divergences_are_on_decades_with_the_mean_over_tokens():
    frame = divergence_frame()
    fig = plots.divergence_distribution(frame)
    rows = frame[frame["variant"] == "pruned"]
    mean = np.average(rows["kl"], weights=rows["n_tokens"])
    low, high = bootstrap_interval(rows["kl"], weights=rows["n_tokens"])
    assert f"mean {mean:.3g} [{low:.3g}, {high:.3g}]<br>30 responses" in fig.layout.yaxis.ticktext[0]
    dots = next(trace for trace in fig.data if trace.type == "scatter" and len(trace.x) == 30)
    assert list(dots.x) == pytest.approx(np.log10(np.maximum(rows["kl"], 1e-4)))
    assert fig.layout.xaxis.ticktext[0] == "≤ 0.0001"
    near = plots.divergence_distribution(frame.assign(kl=frame["kl"].clip(0.2, 3))).layout.xaxis
    assert list(near.ticktext) == ["0.1", "1", "10"] and near.range[0] > -1.3  # no empty decades


def test_pairs_leave_out_what_the_encoder_cannot_read():
    frame = similarity_frame()
    shown = plots.similarity_pairs(frame.assign(unseen=frame["id"] == frame["id"].iloc[0])).data[0]
    assert len(shown.x) == frame["id"].nunique() - 1


def test_every_column_of_the_maps_panels_has_its_axis_below_the_lowest():
    plots.use_template("column")
    frame = map_frame()
    fig = plots.similarity_map(pd.concat([frame, frame[:12].assign(variant="pruned + self-distilled")]))
    below = [axis for axis in fig.select_xaxes() if axis.title.text]
    assert [axis.anchor for axis in below] == ["y2", "y3"] and all(axis.showticklabels for axis in below)


def test_the_map_has_every_response_and_an_arrow_from_mean_to_mean():
    frame = map_frame()
    fig = plots.similarity_map(frame.sort_values(["variant", "id"], ascending=[True, False]))
    base, far = (frame[frame["variant"] == name].set_index("id") for name in ("base", "pruned + SFT"))
    panel = {trace.name: trace for trace in fig.data if trace.xaxis == "x2"}
    assert sorted(panel["base"].x) == sorted(base["x"])
    assert sorted(panel["pruned + SFT"].y) == sorted(far["y"])
    (arrow,) = [note for note in fig.layout.annotations if note.showarrow]  # the other one moved nowhere
    assert (arrow.x, arrow.ax) == pytest.approx((far["x"].mean(), base["x"].mean()))
    assert (arrow.xref, arrow.axref, arrow.yref, arrow.ayref) == ("x2", "x2", "y2", "y2")
    assert "31%" in fig.layout.xaxis.title.text
    with pytest.raises(ValueError, match="base 'whole' and another variant"):
        plots.similarity_map(frame, base="whole")


def test_loss_against_similarity_states_its_correlation():
    frame = loss_frame()
    fig = plots.loss_similarity(frame)
    assert shift_agreement(frame)["note"] == "no correlation from 3 tasks, fewer than 10"
    assert fig.layout.xaxis.title.text.endswith("(no correlation from 3 tasks, fewer than 10)")
    many = pd.concat(
        [frame.assign(task=frame["task"] + str(k), changed=1 - frame["similarity"]) for k in range(4)]
    )
    found = shift_agreement(many)
    assert plots.loss_similarity(many).layout.xaxis.title.text.partition("<br>")[2] == (
        f"(Spearman of shift and loss {found['spearman']:.2f} "
        f"[{found['ci_low']:.2f}, {found['ci_high']:.2f}], 12 tasks"
        f";<br>of the share of changed answers and loss {found['changed_spearman']:.2f})"
    )
    (pruned,) = (trace for trace in fig.data if trace.name == "pruned")
    assert list(pruned.x) == [0.99, 0.95, 0.97]
    assert list(pruned.error_x.array) == pytest.approx([0.02] * 3)
    assert [note.text for note in fig.layout.annotations] == ["a", "b"]
    assert "2 tasks" in plots.loss_similarity(frame.head(2)).layout.xaxis.title.text

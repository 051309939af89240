"""Figures of scores by depth, categories, flips and shifted responses show the frames' own numbers."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest
from frames import (
    category_frame,
    change_frame,
    depth_frame,
    divergence_frame,
    flip_frame,
    loss_frame,
    map_frame,
    similarity_frame,
)

import workbench as plots
from workbench.forgetting.changes import shift_agreement
from workbench.plots import style
from workbench.runs import figures as export
from workbench.statistics import bootstrap_interval

SCRIPT = "<script>alert(1)</script>"
FIGURES = {
    "score_vs_fraction": (depth_frame, "SFT"),
    "loss_vs_fraction": (depth_frame, "SFT"),
    "category_bars": (category_frame, "pruned"),
    "flip_bars": (flip_frame, "pruned"),
    "similarity_pairs": (lambda: similarity_frame(20), "pruned"),
    "similarity_map": (map_frame, "pruned"),
    "answer_forms": (change_frame, "pruned"),
    "divergence_distribution": (divergence_frame, "pruned"),
    "loss_similarity": (loss_frame, "pruned"),
}


@pytest.fixture(autouse=True)
def screen():
    yield
    style.use_template("screen")


def lines(fig: go.Figure, axis: str = "y") -> dict[str, go.Scatter]:
    """Return the lines of one panel by name."""
    return {trace.name: trace for trace in fig.data if trace.mode != "text" and (trace.yaxis or "y") == axis}


@pytest.mark.parametrize("name", FIGURES)
def test_each_figure_takes_its_frame_as_it_is_and_shows_text_as_text(name, tmp_path):
    make, variant = FIGURES[name]
    frame = make().replace(variant, SCRIPT)
    before = frame.copy()
    fig = getattr(plots, name)(frame)
    pd.testing.assert_frame_equal(frame, before)
    text = json.dumps(fig.to_plotly_json(), default=lambda value: np.asarray(value).tolist())
    assert "<script" not in text and "&lt;script&gt;" in text
    (path,) = export.save_figure(fig, tmp_path / f"{name}.csv")
    assert len(pd.read_csv(path)) >= 1


@pytest.mark.parametrize("name", FIGURES)
def test_each_figure_has_both_looks_and_a_title_that_can_go(name):
    frame = FIGURES[name][0]()
    style.use_template("paper")
    fig = getattr(plots, name)(frame, title=None)
    assert "Times" in fig.layout.template.layout.font.family
    assert not fig.layout.title.text


@pytest.mark.parametrize("name", FIGURES)
def test_what_a_frame_lacks_is_named(name):
    with pytest.raises(ValueError, match=r"missing .*got \['nonsense'\]"):
        getattr(plots, name)(pd.DataFrame({"nonsense": [1]}))
    with pytest.raises(ValueError, match="at least one row"):
        getattr(plots, name)(FIGURES[name][0]().head(0))


def test_healed_is_solid_not_healed_dotted_and_the_guess_dashed():
    frame = depth_frame()
    found = lines(plots.score_vs_fraction(frame))
    assert {name: trace.line.dash for name, trace in found.items()} == {
        "random guess": "dash",
        "pruned, not healed": "dot",
        "SFT": "solid",
    }
    assert found["pruned, not healed"].marker.color == "white"
    assert found["SFT"].marker.color == found["SFT"].line.color
    assert list(found["random guess"].y) == [0.25, 0.25]
    own = frame.query("series == 'pruned, not healed' and task == 'mmlu'")
    assert list(found["pruned, not healed"].x) == list(own["fraction"])
    assert list(found["pruned, not healed"].y) == list(own["value"])


def test_several_block_sizes_are_a_line_that_begins_with_the_whole_model():
    frame = depth_frame()
    found = lines(plots.score_vs_fraction(frame))["SFT"]
    whole = frame.query("series == 'base' and task == 'mmlu'")["value"].item()
    assert list(found.x) == [0, 0.1, 0.2]
    assert found.y[0] == whole
    alone = lines(plots.score_vs_fraction(frame[frame["series"] != "base"]))["SFT"]
    assert list(alone.x) == [0.1, 0.2]


def test_scores_have_one_scale_and_a_task_without_a_chance_no_line():
    fig = plots.score_vs_fraction(depth_frame().replace("mmlu", "my_task"), chance={"demo_math": 0.1})
    assert {axis.range for axis in fig.select_yaxes()} == {(-0.02, 1.04)}
    assert len({axis.range for axis in fig.select_xaxes()}) == 1
    assert [(trace.yaxis, trace.y[0]) for trace in fig.data if trace.name == "random guess"] == [("y2", 0.1)]
    assert [note.text for note in fig.layout.annotations] == ["my_task", "demo_math"]


def test_numbers_of_shots_are_panels_of_their_own():
    frame = depth_frame().query("task == 'mmlu'")
    fig = plots.score_vs_fraction(pd.concat([frame, frame.assign(n_shot=0)]))
    assert [note.text for note in fig.layout.annotations] == ["mmlu, 5-shot", "mmlu, 0-shot"]
    with pytest.raises(ValueError, match=r"'SFT' has two of 'mmlu' at 0\.1; give them series of their own"):
        plots.score_vs_fraction(pd.concat([frame, frame[frame["series"] == "SFT"]]))
    with pytest.raises(ValueError, match="scores where higher is better must have at least one row"):
        plots.score_vs_fraction(depth_frame().query("task == 'texts'"))


def test_the_loss_has_its_guess_at_1_and_a_log_scale():
    fig = plots.loss_vs_fraction(depth_frame())
    found = lines(fig)
    assert list(found["random guess"].y) == [1, 1]
    assert fig.layout.yaxis.type == "log"
    low, high = 10 ** np.array(fig.layout.yaxis.range)
    assert low < 0.05 and high > 1
    assert list(found["pruned, not healed"].y) == list(
        depth_frame().query("series == 'pruned, not healed' and task == 'texts'")["value"]
    )
    with pytest.raises(ValueError, match="metric normalized_loss"):
        plots.loss_vs_fraction(depth_frame().query("task == 'mmlu'"))


def test_categories_have_their_intervals():
    fig = plots.category_bars(category_frame())
    (pruned,) = (trace for trace in fig.data if trace.name == "pruned")
    assert list(pruned.y) == [0.3, 0.79]
    assert list(pruned.error_y.array) == pytest.approx([0.1, 0.07])
    assert list(pruned.error_y.arrayminus) == pytest.approx([0.08, 0.09])


def test_flips_go_left_for_lost_and_right_for_won_on_one_scale():
    fig = plots.flip_bars(flip_frame())
    bars = {(trace.xaxis, trace.name): trace for trace in fig.data}
    assert list(bars["x", "right to wrong"].x) == [-0.4, 0]
    assert list(bars["x", "wrong to right"].x) == [0.02, 0]
    assert list(bars["x2", "right to wrong"].text) == ["2", "60"]
    assert len({axis.range for axis in fig.select_xaxes()}) == 1


def test_pairs_are_ordered_by_the_farthest_variant_and_stay_pairs():
    frame = similarity_frame(25)
    fig = plots.similarity_pairs(frame.sample(frac=1, random_state=0))
    table = frame.pivot(index="id", columns="variant", values="similarity")
    points = {trace.name: trace for trace in fig.data if trace.name}
    farthest = points[table.mean().idxmin()]
    assert list(farthest.y) == sorted(farthest.y)
    for name, trace in points.items():
        assert [table.loc[int(id_), name] for id_ in trace.customdata] == list(trace.y)
    with pytest.raises(ValueError, match="every id for every variant"):
        plots.similarity_pairs(frame.iloc[1:])


def test_forms_are_shares_and_lengths_ratios():
    fig = plots.answer_forms(change_frame())
    bars = {trace.name: dict(zip(trace.y, trace.x, strict=True)) for trace in fig.data if trace.type == "bar"}
    assert bars["the answer is 7"] == {"base": 0.6, "pruned": 0.6, "pruned + SFT": 0}
    assert bars["#### 7"]["pruned + SFT"] == 0.9
    assert "boxed" not in bars
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


def test_the_map_joins_the_same_prompts_on_the_same_axes():
    frame = map_frame()
    fig = plots.similarity_map(frame.sort_values(["variant", "id"], ascending=[True, False]))
    base, far = (frame[frame["variant"] == name].set_index("id") for name in ("base", "pruned + SFT"))
    panel = [trace for trace in fig.data if trace.xaxis == ("x2")]
    links = next(trace for trace in panel if trace.mode == "lines")
    ends = np.array(links.x, dtype=float).reshape(-1, 3)[:, :2]
    assert sorted(map(tuple, ends)) == sorted(zip(base["x"], far["x"], strict=True))
    assert "31% of the variance" in fig.layout.xaxis.title.text + (fig.layout.xaxis2.title.text or "")
    with pytest.raises(ValueError, match="base 'whole' and another variant"):
        plots.similarity_map(frame, base="whole")


def test_loss_against_similarity_states_its_correlation():
    frame = loss_frame()
    fig = plots.loss_similarity(frame)
    found = shift_agreement(frame)
    (note,) = fig.layout.annotations
    assert note.text == (
        f"Spearman of shift and loss {found['spearman']:.2f} "
        f"[{found['ci_low']:.2f}, {found['ci_high']:.2f}] over 6 points"
    )
    (pruned,) = (trace for trace in fig.data if trace.name == "pruned")
    assert list(pruned.x) == [0.99, 0.95, 0.97]
    assert list(pruned.error_x.array) == pytest.approx([0.02] * 3)
    assert list(pruned.text) == ["", "b", ""]
    assert "too few" in plots.loss_similarity(frame.head(2)).layout.annotations[0].text


@pytest.mark.browser
@pytest.mark.parametrize("name", FIGURES)
def test_each_figure_is_drawn(name, tmp_path):
    if not export.browser_found():
        pytest.skip("no Chrome or Chromium on this machine; plotly_get_chrome installs one")
    (path,) = export.save_figure(getattr(plots, name)(FIGURES[name][0]()), tmp_path / "figure.svg")
    text = path.read_text()
    assert "<image" not in text and text.count("<path") > 5

"""Figures of iterative recovery: what is drawn where."""

import xml.etree.ElementTree as ET

import pandas as pd
import pytest
from recovery.test_phases import ITERATIONS, SCORES

from workbench.plots import style
from workbench.plots.recovery import (
    loss_terms,
    phase_changes,
    phase_lines,
    recovery_progress,
    stack_over_iterations,
)
from workbench.recovery.phases import phase_change, phase_scores
from workbench.widgets.live import LiveRecovery

LOG = pd.DataFrame({"step": [1, 2, 1, 2], "hidden": [8.0, 4.0, 6.0, 3.0], "logits": [1.0, 0.5, 0.8, 0.0]})
LOG = LOG.assign(loss=LOG["hidden"] + LOG["logits"], iteration=[1, 1, 2, 2], order=["3", "3", "3 5", "3 5"])
PHASES = phase_scores(SCORES, ITERATIONS, base="base", prefix="a-")


def test_the_stack_shows_each_layer_there_going_or_gone():
    (trace,) = stack_over_iterations(ITERATIONS).data
    assert [list(row) for row in trace.z] == [
        [0, 0, 0],
        [0, 0, 0],
        [0, 0, 0],
        [0, 1, 2],
        [0, 0, 0],
        [0, 0, 1],
        [0, 0, 0],
    ]


def _long(n_layers: int, iterations: int) -> pd.DataFrame:
    gone = list(range(2, 2 + iterations))
    rows = [
        (number + 1, "P", layer, n_layers - number - 1, " ".join(map(str, gone[: number + 1])))
        for number, layer in enumerate(gone)
    ]
    return pd.DataFrame(rows, columns=["iteration", "phase", "layer", "layers_left", "order"])


@pytest.mark.parametrize("template", ["screen", "paper", "column"])
def test_numbers_of_a_deep_stack_lie_where_they_have_room(template):
    style.use_template(template)
    shallow = stack_over_iterations(_long(12, 3))
    assert [note.text for note in shallow.layout.annotations] == ["2", "3", "4"]
    deep = stack_over_iterations(_long(80, 4))
    assert not deep.layout.annotations  # a row is lower than a number
    assert list(deep.layout.xaxis.ticktext) == ["0", "1<br>(2)", "2<br>(3)", "3<br>(4)", "4<br>(5)"]
    long = stack_over_iterations(_long(80, 60))
    assert not long.layout.annotations
    few = {"screen": 5, "paper": 5, "column": 10}[template]  # 7 pt have no room under each iteration
    assert list(long.layout.xaxis.tickvals) == [*range(0, 61, few)]
    assert long.layout.xaxis.ticktext[:2] == ("0", f"{few}<br>({few + 1})")


def test_phases_of_many_iterations_have_ticks_apart():
    changes = pd.DataFrame(
        [(i, phase, "a", 0.1) for i in range(1, 41) for phase in ("P", "R")],
        columns=["iteration", "phase", "task", "change"],
    )
    fig = phase_changes(changes, _long(80, 40).astype({"layer": float}))
    assert fig.data[0].texttemplate is None  # 7 pt have no room in 80 columns
    assert fig.layout.xaxis.tickvals[:2] == ("1 P (2)", "4 P (5)") and len(fig.layout.xaxis.tickvals) <= 16


def test_terms_follow_one_another_and_what_is_zero_is_no_point_of_a_logarithmic_axis():
    traces = {trace.name: trace for trace in loss_terms(LOG).data}
    assert list(traces["hidden"].x) == [1, 2, 3, 4] and list(traces["logits"].x) == [1, 2, 3]
    with pytest.raises(ValueError, match="column of a term"):
        loss_terms(LOG[["step"]])


def test_phases_are_told_apart_by_dashes_with_intervals():
    fig = phase_lines(PHASES)
    lines = {trace.name: trace for trace in fig.data}
    assert lines["P"].line.dash == "dot" and lines["P+R"].line.dash == "solid"
    assert list(lines["P"].y) == [0.9, 0.5, 0.4] and list(lines["P+R"].y) == [0.9, 0.7, 0.3]
    assert lines["P"].error_y.array[1] == pytest.approx(1.96 * 0.01, rel=1e-2)
    with pytest.raises(ValueError, match="task"):
        phase_lines(pd.concat([PHASES, PHASES]))


def test_panels_are_named_in_words_and_perplexity_says_so():
    frame = pd.concat(
        [
            PHASES.assign(task="arc_easy", metric="acc"),
            PHASES.assign(task="English", metric="word_perplexity"),
        ]
    )
    titles = {note.text for note in phase_lines(frame).layout.annotations}
    assert titles == {"ARC-E", "English, perplexity"}


def test_changes_name_the_layer_that_went():
    (trace,) = phase_changes(phase_change(PHASES), ITERATIONS).data
    assert list(trace.x) == ["1 P (3)", "1 R", "2 P (5)", "2 R"]
    assert list(trace.z[0]) == pytest.approx([-0.4, 0.2, -0.3, -0.1])


def test_it_is_drawn_as_it_runs():
    live = LiveRecovery(7)
    with pytest.raises(ValueError, match="has seen none"):
        live.figure()
    for row in LOG.to_dict("records"):
        live.see(row | {"steps": 2, "tokens_per_second": 10.0, "seconds_left": 5.0})
    told = live.status("iteration 2", live.rows["iteration 2"])
    assert "step 2 of 2, loss 3.000" in told and told.endswith("hidden 3, logits 0; out: 3, 5")
    drawn = ET.fromstring(live.drawing("two minutes left"))
    states = [one.get("data-state") for one in drawn.iter() if one.get("class") == "live-layer"]
    assert states == ["there", "there", "there", "gone", "there", "goes", "there"]
    lines = [one.get("points").split() for one in drawn.iter() if one.get("class") == "live-line"]
    assert [len(line) for line in lines] == [4, 4]  # hidden and logits over the updates of both iterations
    fig, again = live.figure("two minutes left"), recovery_progress(LOG, 7)
    assert [len(trace.z) for trace in fig.data if trace.type == "heatmap"] == [7]
    assert [list(t.y) for t in fig.data if t.name] == [list(t.y) for t in again.data if t.name]
    assert "two minutes left" in fig.layout.title.subtitle.text


def test_a_term_a_thousand_times_smaller_moves_as_far():
    live = LiveRecovery(7)
    for row in LOG.assign(attention=LOG["hidden"] / 1000).to_dict("records"):
        live.see(row | {"steps": 2, "tokens_per_second": 10.0, "seconds_left": 5.0})
    drawn = ET.fromstring(live.drawing("now"))
    lines = [one.get("points").split() for one in drawn.iter() if one.get("class") == "live-line"]
    heights = [[float(point.split(",")[1]) for point in line] for line in lines]
    spans = [max(line) - min(line) for line in heights]
    assert spans[1] == pytest.approx(spans[0], abs=0.2) and spans[0] > 20
    shown = [one.text for one in drawn.iter() if one.tag.endswith("text")]
    assert {"0.001", "0.01", "0.1", "1"} <= set(shown)

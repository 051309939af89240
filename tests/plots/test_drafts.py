"""Figures of drafts: what is drawn is what the frames hold."""

from __future__ import annotations

import pandas as pd
import pytest

from workbench.plots.drafts import acceptance_by_length, acceptance_by_place, speed_against_theory


def test_a_line_a_draft_with_the_intervals_of_the_frame():
    frame = pd.DataFrame({"draft": ["a", "a", "<b>", "<b>"], "draft_length": [1, 2, 1, 2]})
    frame["acceptance"] = [0.8, 0.7, 0.5, 0.4]
    frame = frame.assign(acceptance_low=frame["acceptance"] - 0.1, acceptance_high=frame["acceptance"] + 0.2)
    fig = acceptance_by_length(frame)
    assert [trace.name for trace in fig.data] == ["a", "&lt;b&gt;"]
    assert list(fig.data[0].y) == [0.8, 0.7] and list(fig.data[1].x) == [1, 2]
    assert list(fig.data[0].error_y.array) == pytest.approx([0.2, 0.2])
    assert list(fig.data[0].error_y.arrayminus) == pytest.approx([0.1, 0.1])
    with pytest.raises(ValueError, match="measure must be"):
        acceptance_by_length(frame, measure="speed")
    with pytest.raises(ValueError, match="acceptance"):
        acceptance_by_length(frame.drop(columns="acceptance"))


def test_positions_that_nothing_reached_are_left_out():
    frame = pd.DataFrame({"draft": "a", "position": [1, 2, 3], "acceptance": [0.5, 0.2, None]})
    assert list(acceptance_by_place(frame).data[0].x) == [1, 2]


def test_measured_as_marks_and_theory_as_lines():
    frame = pd.DataFrame({"draft": "a", "draft_length": [1, 2], "speed_up": [1.1, 1.3], "theory": [1.2, 1.4]})
    fig = speed_against_theory(frame.assign(speed_up_low=1.0, speed_up_high=1.5))
    marks, line = fig.data
    assert list(marks.y) == [1.1, 1.3] and list(line.y) == [1.2, 1.4]
    assert marks.mode == "markers" and line.mode == "lines" and not line.showlegend

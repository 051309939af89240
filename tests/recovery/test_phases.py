"""Scores before and after recovery."""

import pandas as pd
import pytest

from workbench.plots.recovery import phase_changes, phase_lines
from workbench.recovery.phases import phase_change, phase_scores
from workbench.tables.recovery import recovery_gain_reading

ITERATIONS = pd.DataFrame(
    {
        "iteration": [1, 1, 2, 2],
        "phase": ["P", "P+R"] * 2,
        "layer": pd.array([3, None, 5, None], dtype="Int64"),
        "layers_left": [6, 6, 5, 5],
        "removed": ["3", "3", "3,5", "3,5"],
        "order": ["3", "3", "3 5", "3 5"],
    }
)
NAMES = ["base", "a-6-P", "a-6-P+R", "a-5-P", "a-5-P+R", "other"]
SCORES = pd.DataFrame(
    {"variant": NAMES, "task": "t", "metric": "acc", "value": [0.9, 0.5, 0.7, 0.4, 0.3, 0.1], "stderr": 0.01}
)


def test_scores_get_their_iteration_and_phase_and_others_are_left_out():
    found = phase_scores(SCORES, ITERATIONS, base="base", prefix="a-")
    places = found[["iteration", "phase", "layers_left", "value"]].values.tolist()
    assert places == [
        [0, "P", 7, 0.9],
        [0, "P+R", 7, 0.9],
        [1, "P", 6, 0.5],
        [1, "P+R", 6, 0.7],
        [2, "P", 5, 0.4],
        [2, "P+R", 5, 0.3],
    ]
    with pytest.raises(ValueError, match="variants of the iterations such as 'b-6-P'"):
        phase_scores(SCORES, ITERATIONS, prefix="b-")


def test_a_phase_is_compared_with_the_one_before_it():
    changed = phase_change(phase_scores(SCORES, ITERATIONS, base="base", prefix="a-"))
    assert list(changed["phase"]) == ["P", "P+R", "P", "P+R"]
    assert changed["change"].tolist() == pytest.approx([-0.4, 0.2, -0.3, -0.1])


def test_each_number_of_shots_is_compared_with_itself():
    shots = pd.concat([SCORES.assign(n_shot=0), SCORES.assign(n_shot=5, value=SCORES["value"] - 0.3)])
    changed = phase_change(phase_scores(shots, ITERATIONS, base="base", prefix="a-"))
    for _, part in changed.groupby("n_shot"):
        assert part["change"].tolist() == pytest.approx([-0.4, 0.2, -0.3, -0.1])
    assert set(changed["n_shot"]) == {0, 5}
    lower = changed.assign(change=changed["change"].where(changed["n_shot"] == 0, 1.0))
    assert "it lost somewhere in **t, 0-shot**" in recovery_gain_reading(lower)
    fig = phase_changes(changed, ITERATIONS)
    assert list(fig.data[0].y) == ["t, 0-shot", "t, 5-shot"]
    found = phase_scores(shots, ITERATIONS, base="base", prefix="a-")
    drawn = phase_lines(found.drop_duplicates(["n_shot", "phase", "iteration"]))
    assert {"t, 0-shot", "t, 5-shot"} <= {note.text for note in drawn.layout.annotations}

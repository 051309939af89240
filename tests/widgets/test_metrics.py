"""Measures beside the distance: whose values they show, and which frames are refused."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from frames import damage_frame, distance_frame

from workbench.widgets.metrics import metrics_of
from workbench.widgets.picker import BlockPicker

N = 8


@pytest.fixture
def distances() -> pd.DataFrame:
    return distance_frame(N)


@pytest.fixture
def influence() -> pd.DataFrame:
    values = np.linspace(0.5, 0.1, N)
    frame = {"layer": range(N), "influence": values, "ci_low": values - 0.01, "ci_high": values + 0.02}
    return pd.DataFrame(frame)


def facts(picker: BlockPicker) -> dict:
    return picker.selection()


def test_a_measure_of_single_layers_adds_up_over_any_set(distances, influence):
    similarity = influence.rename(columns={"influence": "similarity"})
    picker = BlockPicker(distances, None, influence, similarity, start=2, size=1)
    one = facts(picker)
    assert one["influence"] == pytest.approx(influence["influence"][2])
    assert one["influence_high"] == pytest.approx(influence["ci_high"][2])
    # similarity is high where a layer can go: shown is what is lost, and the interval turns round
    assert one["similarity"] == pytest.approx(1 - influence["influence"][2])
    assert one["similarity_low"] == pytest.approx(1 - influence["ci_high"][2])
    picker.choose_layers([1, 4, 6])
    several = facts(picker)
    assert several["influence"] == pytest.approx(influence["influence"][[1, 4, 6]].sum())
    assert "influence_low" not in several
    assert "distance" not in several


def test_damage_and_other_frames_are_facts_of_a_block(distances):
    damage = damage_frame(distances, sizes=(1, 2))
    other = distances.rename(columns={"distance": "kl"})[["start", "size", "kl"]]
    picker = BlockPicker(distances, damage, frames={"my kl": other}, start=3, size=2)
    row = damage.query("start == 3 and size == 2").iloc[0]
    assert facts(picker)["damage"] == row["damage"]
    assert facts(picker)["my kl"] == other.query("start == 3 and size == 2")["kl"].item()
    picker.choose(3, 4)
    assert "damage" not in facts(picker)
    assert picker.keep()["my kl"].item() == other.query("start == 3 and size == 4")["kl"].item()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"damage": 3}, "damage must be a pandas DataFrame, got int"),
        ({"damage": pd.DataFrame({"start": [0], "size": [1]})}, "damage needs the columns"),
        ({"damage": damage_frame(distance_frame(N + 1))}, r"damage must be of the same model.*got layer 8"),
        ({"frames": {"distance": distance_frame(N)}}, "frames must have names other than"),
        ({"frames": {"x": pd.DataFrame({"layer": [0], "a": [1.0], "b": [2.0]})}}, "x must hold one column"),
        ({"presets": {"mine": (3, 99)}}, r"presets\['mine'\] must be among.*got 99"),
        ({"seed": -1}, "seed must be"),
    ],
)
def test_frames_that_do_not_fit_are_refused_in_one_line(distances, given, words):
    with pytest.raises(ValueError, match=words) as caught:
        BlockPicker(distances, **given)
    assert "\n" not in str(caught.value)


def test_measures_of_different_weights_are_refused(distances, influence):
    distances.attrs["model"] = {"weights": "a", "kept_layers": list(range(N))}
    influence.attrs["model"] = {"weights": "b", "kept_layers": list(range(N))}
    with pytest.raises(ValueError, match="different weights"):
        metrics_of(distances, None, influence, None, None, range(N))
    influence.attrs["model"]["weights"] = "a"
    assert [one.name for one in metrics_of(distances, None, influence, None, None, range(N))] == [
        "distance",
        "influence",
    ]

"""Ready choices: each against the function that computes it elsewhere."""

from __future__ import annotations

import pandas as pd
import pytest
from frames import damage_frame, distance_frame

from workbench.distances.blocks import best_blocks, parse_layers
from workbench.distances.strategies import deepest_blocks, greedy_layers, random_layers, shallowest_blocks
from workbench.widgets.picker import BlockPicker


@pytest.fixture
def damage() -> pd.DataFrame:
    return damage_frame(distance_frame(12), sizes=(1, 2, 3))


@pytest.fixture
def picker(damage) -> BlockPicker:
    return BlockPicker(distance_frame(12), damage, presets={"IteRABRe": (9, 3)}, seed=4)


def removed(frame: pd.DataFrame) -> tuple[int, ...]:
    return parse_layers(frame["removed"].iloc[0])


def test_every_ready_choice_is_that_of_its_function(picker, damage):
    single = damage[damage["size"] == 1][["start", "damage"]].rename(columns={"start": "layer"})
    expected = {
        "least distance": removed(best_blocks(distance_frame(12), [3])),
        "least damage": removed(best_blocks(damage, [3])),
        "deepest (keeping the last)": removed(deepest_blocks(12, [3])),
        "shallowest": removed(shallowest_blocks(12, [3])),
        "greedy (by damage of single layers)": removed(greedy_layers(single, [3])),
        "random (seed 4)": removed(random_layers(12, [3], seed=4)),
        "IteRABRe: 3,9": (3, 9),
    }
    assert picker.presets == list(expected)
    for name, layers in expected.items():
        assert picker.choose_preset(name, 3) == layers
    assert picker.choose_preset("IteRABRe") == (3, 9)


def test_random_draws_again_and_a_new_picker_draws_the_same(picker, damage):
    draws = [picker.choose_preset("random (seed 4)", 4) for _ in range(3)]
    expected = random_layers(12, [4], n_draws=3, seed=4)["removed"].map(parse_layers)
    assert draws == expected.tolist()
    assert len(set(draws)) == 3
    assert BlockPicker(distance_frame(12), damage, seed=4).choose_preset("random (seed 4)", 4) == draws[0]


def test_what_is_not_there_is_named(picker):
    with pytest.raises(ValueError, match=r"preset must be one of \['least distance'"):
        picker.choose_preset("best")
    with pytest.raises(ValueError, match="damage has sizes 1-3, got 5"):
        picker.choose_preset("least damage", 5)
    picker._handle_custom_msg({"do": "preset", "name": "shallowest", "size": 2, "id": 1}, [])
    assert picker.layers == (0, 1)

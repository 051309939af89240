"""The choice carried elsewhere: used, written, said, exported."""

from __future__ import annotations

import json

import pytest
from frames import damage_frame, distance_frame, savings_frame

from workbench.plots.heatmaps import distance_heatmap
from workbench.widgets.picker import BlockPicker


def picker(**settings) -> BlockPicker:
    distances = distance_frame(16)
    damage = damage_frame(distances)
    return BlockPicker(distances, damage, savings=savings_frame(16), start=3, size=2, **settings)


def test_use_writes_the_choice_to_the_run_and_a_later_cell_keeps_to_it(run):
    one = picker(run=run)
    assert one.used is None
    one._handle_custom_msg({"do": "use", "layers": [5, 6], "id": 1}, [])
    assert one._used == {"layers": [5, 6], "where": "selection.json"}
    one.choose(9, 3)
    assert one.settle() == (5, 6)
    assert run.read_json("selection.json")["layers"] == [5, 6]
    assert one.layers == (9, 10, 11)
    assert "**Layers 5-6** are used: chosen in the picker, saved in selection.json" in one.reading()
    assert "shows layers 9-11, which is not used" in one.reading()


def test_without_the_button_what_is_shown_is_used(run):
    one = picker(run=run)
    assert "Nothing is used yet; the picker shows **layers 3-4**" in one.reading()
    assert one.settle() == (3, 4)
    assert "the choice that the picker opened with" in one.reading()
    clicked = picker(run=run)
    clicked.set_state({"_chosen": [7]})
    assert clicked.settle() == (7,)
    assert run.read_json("selection.json")["layers"] == [7]
    assert "**Layer 7** is used: chosen in the picker" in clicked.reading()


def test_use_may_do_something_else_and_its_failure_is_said():
    written = []
    one = picker(use=lambda it: written.append(it.layers))
    assert one.use() == (3, 4)
    assert written == [(3, 4)]

    def fails(_):
        raise OSError("the disk is full")

    sent = []
    two = picker(use=fails)
    two.send = sent.append
    two._handle_custom_msg({"do": "use", "layers": [3, 4], "id": 7}, [])
    assert sent == [{"heard": 7, "why": "the disk is full"}]
    assert two.used is None


def test_a_choice_is_exported_as_python_json_and_picture():
    one = picker()
    one.choose_layers([3, 9])
    found: dict = {}
    exec(one.export(), found)
    assert found["layers"] == (3, 9)
    selection = json.loads(one.export("json"))
    assert (selection["layers"], selection["start"], selection["n_layers"]) == ([3, 9], None, 16)
    assert one.export("svg").startswith("<svg")
    with pytest.raises(ValueError, match="form must be one of"):
        one.export("yaml")


def test_the_figure_frames_every_block_of_the_choice():
    one = picker()
    plain = len(distance_heatmap(distance_frame(16)).data)
    assert len(one.figure().data) == plain + 1
    one.choose_layers([3, 4, 9])
    names = [trace.name for trace in one.figure().data[plain:]]
    assert names == ["chosen: 3-4", "chosen: 9"]
    assert [trace.name for trace in one.figure((0, 1)).data[plain:]] == ["chosen: 0-1"]

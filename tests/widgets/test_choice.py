"""What is chosen: blocks and sets with gaps, refused ones, steps back and forth."""

from __future__ import annotations

import pytest
import traitlets
from frames import distance_frame

from workbench.widgets.picker import BlockPicker


@pytest.fixture
def picker() -> BlockPicker:
    return BlockPicker(distance_frame(16), start=3, size=2)


def test_layers_with_gaps_are_a_choice_without_a_start(picker):
    heard = []
    picker.observe(lambda change: heard.append((change["new"], picker.start, picker.size)), "layers")
    assert picker.choose_layers([9, 3, 10, 3]) == (3, 9, 10)
    assert picker.choose_layers((5, 6, 7)) == (5, 6, 7)
    assert heard == [((3, 9, 10), None, 3), ((5, 6, 7), 5, 3)]
    assert picker.get_state("_chosen") == {"_chosen": [5, 6, 7]}


def test_layers_says_what_is_shown_and_cannot_be_set(picker):
    with pytest.raises(ValueError, match=r"use picker\.choose\(start, size\)"):
        picker.layers = (3, 9, 10)
    assert (picker.layers, picker.start, picker.size) == ((3, 4), 3, 2)
    assert picker.selection()["layers"] == [3, 4]


@pytest.mark.parametrize(
    ("layers", "words"),
    [
        ([3, 99], "layers must be among the model's layers 0-15, got 99"),
        ([-1], "got -1"),
        ([2.5], "got 2.5"),
        (["3"], "got '3'"),
        ([True], "got True"),
        ([], "at least one of them, got none"),
        (range(16), "something has to stay"),
        ("3-4", "got '3-4'"),
    ],
)
def test_layers_that_cannot_go_are_refused_and_nothing_changes(picker, layers, words):
    with pytest.raises(ValueError, match=words):
        picker.choose_layers(layers)
    with pytest.raises((ValueError, traitlets.TraitError)):
        picker.set_state({"_chosen": layers})
    assert (picker.layers, picker.start, picker.size) == ((3, 4), 3, 2)
    assert not picker.touched


def test_undo_and_redo_walk_through_the_choices(picker):
    with pytest.raises(ValueError, match="undo needs a choice to go back to"):
        picker.undo()
    picker.choose(5, 4)
    picker.choose(5, 4)  # the same again is no step
    picker.set_state({"_chosen": [3, 9]})
    assert picker._steps == [2, 0]
    assert picker.undo() == (5, 6, 7, 8)
    assert (picker.undo(), picker.start, picker.size) == ((3, 4), 3, 2)
    assert picker._steps == [0, 2]
    assert picker.redo() == (5, 6, 7, 8)
    picker.choose(0, 1)
    assert picker._steps == [2, 0]
    with pytest.raises(ValueError, match="redo"):
        picker.redo()
    assert picker.undo() == (5, 6, 7, 8)


def test_a_choice_is_touched_once_anything_was_chosen(picker):
    assert not picker.touched
    picker.choose(3, 2)
    assert not picker.touched
    picker.set_state({"_chosen": [4]})
    picker.undo()
    assert picker.touched


def test_observers_hear_of_a_click_before_anything_is_sent_and_other_windows_do_once_it_has_settled():
    picker, told = BlockPicker(distance_frame(8), start=1, size=2), []
    picker._send = lambda message, buffers=None: told.append(message)
    picker.observe(lambda change: told.append(change["new"]), "layers")
    picker.set_state({"_chosen": [4, 5]})  # as the page sends it
    assert told[0] == (4, 5)
    assert not any("_chosen" in message["state"] for message in told[1:])
    picker._still.now()
    assert told[-1]["method"] == "update" and told[-1]["state"]["_chosen"] == [4, 5]

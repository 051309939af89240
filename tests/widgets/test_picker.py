"""The picker as a state object: what a click sends, what a call does, what a look in a thread may not do."""

from __future__ import annotations

import json
import threading
from concurrent.futures import CancelledError

import numpy as np
import pandas as pd
import pytest
import traitlets
from frames import damage_frame, distance_frame, savings_frame

from workbench.distances.blocks import best_blocks
from workbench.widgets.picker import BlockPicker


@pytest.fixture
def distances() -> pd.DataFrame:
    return distance_frame(16)


@pytest.fixture
def picker(distances) -> BlockPicker:
    return BlockPicker(distances, savings=savings_frame(16))


def message(picker: BlockPicker, **content) -> None:
    """Send what the page sends for a button or a key."""
    picker._handle_custom_msg(content, [])


def found(loss: float = 1.5) -> dict:
    return {"base_loss": 1.0, "loss": loss, "prompt": "p", "base_text": "a", "text": "b"}


def test_the_first_choice_is_the_best_block_of_two(distances):
    best = best_blocks(distances, [2]).iloc[0]
    picker = BlockPicker(distances)
    assert (picker.start, picker.size) == (best["start"], 2)
    assert picker.layers == (best["start"], best["start"] + 1)
    assert BlockPicker(distances, start=3, size=4).layers == (3, 4, 5, 6)
    assert BlockPicker(distances, size=6).start == best_blocks(distances, [6])["start"].item()


def test_choose_does_what_a_click_does(picker):
    heard = []
    picker.observe(lambda change: heard.append(change["new"]), "layers")
    assert picker.choose(3, 2) == (3, 4)
    by_call = (picker.start, picker.size, picker.get_state("_chosen"))
    picker.choose(0, 1)
    picker.set_state({"_chosen": [3, 4]})
    assert (picker.start, picker.size, picker.get_state("_chosen")) == by_call
    assert picker.layers == (3, 4)
    assert heard == [(3, 4), (0,), (3, 4)]
    picker.choose(3, 2)
    assert len(heard) == 3


def test_traits_can_be_set_one_at_a_time(picker):
    picker.choose(3, 2)
    picker.start = 5
    assert picker.layers == (5, 6)
    picker.size = np.int64(3)
    assert picker.layers == (5, 6, 7)


@pytest.mark.parametrize(
    ("start", "size", "words"),
    [
        (15, 2, "start must be one of 0-14 for size 2, got start 15, size 2"),
        (-1, 2, "start must be one of 0-14 for size 2, got start -1"),
        (0, 16, "size must be one of 1-15, got start 0, size 16"),
        (0, 0, "size must be one of 1-15"),
        ("3", 2, "got start '3'"),
    ],
)
def test_a_block_that_is_not_there_is_refused_and_nothing_changes(picker, start, size, words):
    picker.choose(3, 2)
    with pytest.raises(ValueError, match=words):
        picker.choose(start, size)
    assert (picker.start, picker.size, picker.layers) == (3, 2, (3, 4))


def test_a_trait_set_out_of_range_is_refused_too(picker):
    picker.choose(12, 4)
    for change in ({"start": 14}, {"size": 5}):
        with pytest.raises((ValueError, traitlets.TraitError), match="choose\\(start, size\\)"):
            picker.set_trait(*change.popitem())
    with pytest.raises(traitlets.TraitError, match="got 99"):
        picker.set_state({"_chosen": [99]})
    assert (picker.start, picker.size, picker.layers) == (12, 4, (12, 13, 14, 15))


def unpacked(picker: BlockPicker, which: int = 0) -> np.ndarray:
    """Return value, low and high of every block of a measure, as the page reads them."""
    data, found = picker._cells, []
    for told in picker._metrics:
        sizes = [1] if told["single"] else picker._sizes
        count = sum(len(picker._layers) - size + 1 for size in sizes)
        values = np.frombuffer(data[: 4 * count], "<f4").astype(float)
        steps = np.full((2, count), np.nan)
        used = 4 * count
        if told["step"]:
            steps = np.frombuffer(data[used : used + 4 * count], "<i2").reshape(2, -1).astype(float)
            steps[steps == -32768] = np.nan
            used += 4 * count
        found.append(np.stack([values, *(values + steps * told["step"])]))
        data = data[-(-used // 4) * 4 :]
    assert not data
    return found[which]


def test_what_is_sent_to_the_page_are_the_frames(distances):
    damage = damage_frame(distances)
    damage = damage.assign(ci_low=damage["damage"] - 0.5, ci_high=damage["damage"] + 1.25)
    shuffled = distances.sample(frac=1, random_state=0)
    picker = BlockPicker(shuffled, damage, savings=savings_frame(16))
    values = unpacked(picker)
    assert values.shape[1] == 16 * 17 // 2 - 1
    expected = distances[distances["size"] < 16].sort_values(["size", "start"])
    for row, column in zip(values, ("distance", "ci_low", "ci_high"), strict=True):
        np.testing.assert_allclose(row, expected[column], atol=2e-6)
    pairs = expected.merge(damage, on=["start", "size"], how="left", suffixes=("_d", ""))
    for row, column in zip(unpacked(picker, 1), ("damage", "ci_low", "ci_high"), strict=True):
        np.testing.assert_allclose(row, pairs[column], atol=5e-5)
    assert picker._sizes == list(range(1, 16))
    assert (sum(picker._parameters), picker._totals[0]) == (16 * 200_000, 1_000_000 + 16 * 200_000)


@pytest.mark.parametrize(("n_layers", "limit"), [(16, 80_000), (80, 150_000)])
def test_the_payload_stays_small_with_three_measures_and_their_intervals(n_layers, limit):
    distances = distance_frame(n_layers)
    other = distances.rename(columns={"distance": "value"})
    damage = distances.rename(columns={"distance": "damage"})
    picker = BlockPicker(distances, damage, frames={"other": other}, savings=savings_frame(n_layers))
    assert np.isfinite(unpacked(picker, 2)).all()
    state = picker.get_state()
    size = sum(len(value) if isinstance(value, bytes) else len(json.dumps(value)) for value in state.values())
    assert size < limit


def test_a_frame_of_some_sizes_without_intervals_is_enough(distances):
    few = distances.loc[distances["size"].isin([2, 4]), ["start", "size", "distance"]]
    picker = BlockPicker(few, size=4)
    assert picker._sizes == [2, 4]
    values = unpacked(picker)
    assert np.isfinite(values[0]).all()
    assert np.isnan(values[1:]).all()
    with pytest.raises(ValueError, match=r"size must be one of 2,4"):
        picker.choose(0, 3)


def test_a_model_pruned_before_keeps_its_original_numbers():
    original = [0, 1, 4, 5, 7]
    distances = distance_frame(5)
    distances["start"] = [original[start] for start in distances["start"]]
    picker = BlockPicker(distances, savings=savings_frame(5), start=1, size=3)
    assert picker.layers == (1, 4, 5)
    assert picker.keep()["removed"].item() == "1,4-5"
    with pytest.raises(ValueError, match="start must be one of 0-1,4-5 for size 2"):
        picker.choose(2, 2)
    with pytest.raises(ValueError, match="start must be one of 0-1,4-5 for size 2"):
        picker.choose(7, 2)


def test_frames_that_do_not_fit_are_refused(distances):
    with pytest.raises(ValueError, match="missing \\['distance'\\]"):
        BlockPicker(distances.drop(columns="distance"))
    with pytest.raises(ValueError, match="got 15"):
        BlockPicker(distances, savings=savings_frame(15))
    with pytest.raises(ValueError, match="start must be one of"):
        BlockPicker(distances, start=15, size=2)
    with pytest.raises(ValueError, match="at least one row"):
        BlockPicker(distance_frame(1))


def test_choices_are_kept_compared_and_dropped(picker, distances):
    picker.choose(3, 2)
    picker.keep()
    message(picker, do="keep", layers=[5, 6, 7, 8])
    assert picker.layers == (5, 6, 7, 8)
    picker.keep()
    kept = picker.kept
    assert list(zip(kept["start"], kept["size"], kept["removed"], strict=True)) == [
        (3, 2, "3-4"),
        (5, 4, "5-8"),
    ]
    row = distances.query("start == 5 and size == 4").iloc[0]
    assert (kept["distance"][1], kept["ci_low"][1]) == (row["distance"], row["ci_low"])
    assert kept["parameters_saved"][1] == pytest.approx(800_000 / 4_200_000)
    message(picker, do="drop", layers=[3, 4])
    assert list(picker.kept["removed"]) == ["5-8"]


def test_the_selection_is_written_to_the_run_and_read_back(picker, run):
    picker.choose(5, 4)
    picker.keep()
    picker.choose(3, 2)
    picker.save(run)
    selection = run.read_json("selection.json")
    assert selection["layers"] == [3, 4]
    assert (selection["start"], selection["size"], selection["n_layers"]) == (3, 2, 16)
    assert [row["removed"] for row in selection["kept"]] == ["5-8"]
    assert "distances" in run.provenance("selection.json")["inputs"]


def test_a_look_runs_in_a_thread_and_its_result_stays_with_the_block(picker):
    threads = []

    def look(layers, cancelled):
        threads.append(threading.current_thread())
        return found(loss=len(layers))

    picker.look_with(look, auto=False)
    picker.choose(3, 2)
    picker.keep()
    result = picker.look().result(timeout=10)
    assert threads[0] is not threading.main_thread()
    assert (result["loss"], result["removed"], picker._look["state"]) == (2, "3-4", "done")
    assert picker.kept.loc[0, ["base_loss", "loss"]].tolist() == [1.0, 2]
    assert picker.look().result(timeout=10) == result
    assert len(threads) == 1
    assert picker.selection()["loss"] == 2


def test_choosing_another_block_cancels_the_look(picker):
    began, stopped = threading.Event(), threading.Event()

    def look(layers, cancelled):
        began.set()
        while not cancelled():
            pass
        stopped.set()

    picker.look_with(look, auto=False).choose(3, 2)
    future = picker.look()
    assert began.wait(10)
    picker.choose(5, 1)
    assert picker._look["state"] == "cancelled"
    assert future.result(timeout=10) is None
    assert stopped.is_set()
    assert picker._look["state"] == "cancelled"


def test_a_late_result_never_covers_the_next_one(picker):
    go_on = threading.Event()

    def look(layers, cancelled):
        if layers == (3, 4):
            go_on.wait(10)  # a look that does not listen
        return found(loss=layers[0])

    picker.look_with(look, auto=False).choose(3, 2)
    late = picker.look()
    picker.choose(5, 2)
    waiting = picker.look()
    picker.choose(7, 2)
    last = picker.look()
    go_on.set()
    assert last.result(timeout=10)["loss"] == 7
    assert late.result(timeout=10) is None
    with pytest.raises(CancelledError):
        waiting.result(timeout=10)
    assert picker._look["removed"] == "7-8"


def test_a_look_that_fails_says_so_on_the_page_and_to_the_caller(picker):
    def look(layers, cancelled):
        raise RuntimeError("<b>out of memory</b>")

    picker.look_with(look)
    with pytest.raises(RuntimeError, match="out of memory"):
        picker.look().result(timeout=10)
    assert (picker._look["state"], picker._look["error"]) == ("failed", "<b>out of memory</b>")


def test_looks_follow_every_choice_only_where_one_asked_for_it(picker):
    calls = []

    def look(layers, cancelled):
        calls.append(layers)
        return found()

    picker.choose(0, 1)
    picker.look_with(look)
    picker.look().result(timeout=10)
    picker.choose(3, 2)
    assert not picker.auto_look
    assert calls == [(0,)]
    picker.look_with(look, auto=True)
    picker.choose_layers([5, 9])
    assert picker.look().result(timeout=10)["removed"] == "5,9"
    assert calls == [(0,), (5, 9)]


def test_a_look_needs_something_to_look_with(picker):
    with pytest.raises(ValueError, match="look_with"):
        picker.look()
    message(picker, do="nonsense")
    picker.close()

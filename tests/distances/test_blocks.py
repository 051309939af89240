from __future__ import annotations

import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from frames import random_distances

from workbench.distances.blocks import (
    best_blocks,
    checked_blocks,
    format_layers,
    layer_set_frame,
    layers_of,
    parse_layers,
)


class TestLayers:
    def test_of_a_block(self):
        assert layers_of(24, 2) == (24, 25)
        assert layers_of(np.int64(3), np.int64(1)) == (3,)

    def test_of_a_block_in_a_pruned_model(self):
        assert layers_of(3, 3, layers=(0, 1, 3, 6, 7, 9)) == (3, 6, 7)

    @pytest.mark.parametrize(
        ("start", "size", "layers", "message"),
        [
            (-1, 2, None, "start must be a whole number >= 0, got -1"),
            (1.5, 2, None, "got 1.5"),
            (0, 0, None, "size must be a whole number >= 1, got 0"),
            (True, 1, None, "got True"),
            (2, 1, (0, 1, 3), "start must be one of the model's layers 0-1,3, got 2"),
            (3, 2, (0, 1, 3), "within 3 layers, got start 3, size 2"),
            (0, 4, (0, 1, 3), "within 3 layers"),
        ],
    )
    def test_errors(self, start, size, layers, message):
        with pytest.raises(ValueError, match=message):
            layers_of(start, size, layers=layers)

    @pytest.mark.parametrize(
        ("layers", "text"),
        [
            ((24, 25), "24-25"),
            ((7,), "7"),
            ((3, 9, 10), "3,9-10"),
            ((1, 3, 5), "1,3,5"),
            ((0, 1, 2, 8), "0-2,8"),
        ],
    )
    def test_as_text_and_back(self, layers, text):
        assert format_layers(reversed(layers)) == text
        assert parse_layers(text) == layers

    @pytest.mark.parametrize("text", ["", "a", "1-2-3", "1,,2", "-1"])
    def test_other_text_is_refused(self, text):
        with pytest.raises(ValueError, match="removed layers must look like"):
            parse_layers(text)


class TestBestBlocks:
    def test_least_distance_of_each_size(self):
        frame = random_distances()
        best = best_blocks(frame)
        assert best["size"].tolist() == list(range(1, 9))
        for _, row in best.iterrows():
            of_size = frame[frame["size"] == row["size"]]
            assert row["distance"] == of_size["distance"].min()
            assert row["removed"] == format_layers(range(row["start"], row["start"] + row["size"]))
        assert best["n_texts"].tolist() == [5] * 8

    def test_order_of_rows_does_not_matter_and_equals_go_to_the_lower_start(self):
        frame = random_distances().assign(distance=0.5)
        shuffled = best_blocks(frame.sample(frac=1, random_state=1))
        assert shuffled["start"].tolist() == [0] * 8
        pd.testing.assert_frame_equal(shuffled, best_blocks(frame))

    def test_sizes(self):
        assert best_blocks(random_distances(), [4, 2])["size"].tolist() == [2, 4]

    def test_of_damage(self):
        frame = random_distances().rename(columns={"distance": "damage"})
        assert (
            best_blocks(frame, [3])["start"].tolist()
            == best_blocks(random_distances(), [3])["start"].tolist()
        )

    @pytest.mark.parametrize("size", [0, 8, -1, 2.0])
    def test_size_out_of_range(self, size):
        with pytest.raises(ValueError, match=f"size must be between 1 and 7, below the depth, got {size}"):
            best_blocks(random_distances(), [size])

    def test_other_errors(self):
        with pytest.raises(ValueError, match="size must be one of those in the frame, 1-3, got 4"):
            best_blocks(random_distances().query("size < 4"), [4])
        with pytest.raises(ValueError, match=r"distances needs the columns .*missing \['distance'\]"):
            best_blocks(random_distances().drop(columns="distance"))
        with pytest.raises(ValueError, match=r"each \(start, size\) once, got \(0, 1\) again"):
            best_blocks(pd.concat([random_distances()] * 2))
        with pytest.raises(ValueError, match="must be a pandas DataFrame, got list"):
            best_blocks([1])
        with pytest.raises(ValueError, match="at least one size between 1 and 7, got none"):
            best_blocks(random_distances(), [])


def test_needs_no_torch():
    rooms = ", ".join(f"workbench.distances.{name}" for name in ("blocks", "strategies", "stability"))
    code = f"import sys, {rooms}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_frame_of_chosen_blocks_takes_its_layers_from_its_provenance():
    chosen = pd.DataFrame({"start": [2, 1, 3], "size": [1, 2, 2], "distance": [0.1, 0.2, 0.3]})
    chosen.attrs["model"] = {"kept_layers": [0, 1, 2, 3, 4]}
    assert best_blocks(chosen, [2])["removed"].tolist() == ["1-2"]


class TestFrames:
    def test_the_rows_that_are_blocks_with_a_number_say_what_they_remove(self):
        frame = pd.DataFrame(
            {"start": [2, 0, pd.NA, 1], "size": [1, 2, 2, 1], "damage": [0.1, 0.2, 0.3, None]}
        )
        found = checked_blocks(frame, "damage", "damage")
        assert found[["start", "size", "removed"]].values.tolist() == [[2, 1, "2"], [0, 2, "0-1"]]
        with pytest.raises(ValueError, match="at least one block with a number in 'damage', got none"):
            checked_blocks(frame.assign(damage=np.nan), "damage", "damage")

    def test_a_set_of_layers_is_a_block_where_the_model_has_no_layer_between(self):
        sets = [(4, 1), (5,), (2, 4)]
        assert layer_set_frame(sets)["start"].tolist() == [pd.NA, 5, pd.NA]
        frame = layer_set_frame(sets[:2], [0, 1, 4, 5])
        assert frame.values.tolist() == [[1, 2, "1,4"], [5, 1, "5"]]
        assert frame["start"].dtype == "int64"

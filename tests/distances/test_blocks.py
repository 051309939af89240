from __future__ import annotations

import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from workbench.distances.blocks import (
    best_blocks,
    deepest_blocks,
    format_layers,
    greedy_layers,
    layers_of,
    parse_layers,
    random_layers,
    removal_strategies,
    shallowest_blocks,
)


def distance_frame(n_layers=8, seed=0):
    rng = np.random.default_rng(seed)
    rows = [(start, size) for size in range(1, n_layers + 1) for start in range(n_layers - size + 1)]
    frame = pd.DataFrame(rows, columns=["start", "size"])
    return frame.assign(distance=rng.random(len(frame)), n_texts=5)


class TestLayers:
    def test_of_a_block(self):
        assert layers_of(24, 2) == (24, 25)
        assert layers_of(np.int64(3), np.int64(1)) == (3,)

    def test_of_a_block_in_a_pruned_model(self):
        assert layers_of(3, 3, layers=(0, 1, 3, 6, 7, 9)) == (3, 6, 7)

    @pytest.mark.parametrize(
        ("start", "size", "layers", "message"),
        [
            (-1, 2, None, "start must be a layer number, 0 or more, got -1"),
            (1.5, 2, None, "got 1.5"),
            (0, 0, None, "size must be a whole number of at least 1, got 0"),
            (True, 1, None, "got True"),
            (2, 1, (0, 1, 3), "start must be one of the model's layers 0-1,3, got 2"),
            (3, 2, (0, 1, 3), "start at most 1 for size 2, got start 3"),
            (0, 4, (0, 1, 3), "of a size up to 3"),
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
        frame = distance_frame()
        best = best_blocks(frame)
        assert best["size"].tolist() == list(range(1, 9))
        for _, row in best.iterrows():
            of_size = frame[frame["size"] == row["size"]]
            assert row["distance"] == of_size["distance"].min()
            assert row["removed"] == format_layers(range(row["start"], row["start"] + row["size"]))
        assert best["n_texts"].tolist() == [5] * 8

    def test_order_of_rows_does_not_matter_and_equals_go_to_the_lower_start(self):
        frame = distance_frame().assign(distance=0.5)
        shuffled = best_blocks(frame.sample(frac=1, random_state=1))
        assert shuffled["start"].tolist() == [0] * 8
        pd.testing.assert_frame_equal(shuffled, best_blocks(frame))

    def test_sizes(self):
        assert best_blocks(distance_frame(), [4, 2])["size"].tolist() == [2, 4]

    def test_of_damage(self):
        frame = distance_frame().rename(columns={"distance": "damage"})
        assert (
            best_blocks(frame, [3])["start"].tolist() == best_blocks(distance_frame(), [3])["start"].tolist()
        )

    @pytest.mark.parametrize("size", [0, 8, -1, 2.0])
    def test_size_out_of_range(self, size):
        with pytest.raises(
            ValueError, match=f"size must be between 1 and 7 for a model of 8 layers, got {size}"
        ):
            best_blocks(distance_frame(), [size])

    def test_other_errors(self):
        with pytest.raises(ValueError, match="size must be one of those in the frame, 1-3, got 4"):
            best_blocks(distance_frame().query("size < 4"), [4])
        with pytest.raises(ValueError, match="must have the column distance"):
            best_blocks(distance_frame().drop(columns="distance"))
        with pytest.raises(ValueError, match="some twice"):
            best_blocks(pd.concat([distance_frame()] * 2))
        with pytest.raises(ValueError, match="must be a pandas DataFrame, got list"):
            best_blocks([1])
        with pytest.raises(ValueError, match="at least one size between 1 and 7, got none"):
            best_blocks(distance_frame(), [])


class TestStrategies:
    def test_deepest_keeps_the_last_layer_unless_told(self):
        assert deepest_blocks(8, [1, 3])["removed"].tolist() == ["6", "4-6"]
        assert deepest_blocks(8, [1, 3], keep_last=False)["removed"].tolist() == ["7", "5-7"]
        assert deepest_blocks(8, [7])["removed"].tolist() == ["0-6"]

    def test_shallowest(self):
        assert shallowest_blocks(8, [1, 3])["removed"].tolist() == ["0", "0-2"]

    def test_of_a_pruned_model(self):
        kept = (0, 1, 4, 5, 7)
        assert deepest_blocks(kept, [2])["removed"].tolist() == ["4-5"]
        assert shallowest_blocks(kept, [3])["removed"].tolist() == ["0-1,4"]
        assert set(parse_layers(random_layers(kept, [3]).loc[0, "removed"])) <= set(kept)

    def test_random_is_seeded_and_without_repeats(self):
        frame = random_layers(32, [2, 10], n_draws=50, seed=3)
        pd.testing.assert_frame_equal(frame, random_layers(32, [2, 10], n_draws=50, seed=3))
        assert len(frame) == 100
        drawn = [parse_layers(text) for text in frame["removed"]]
        assert [len(set(layers)) for layers in drawn] == [2] * 50 + [10] * 50
        assert set().union(*drawn) == set(range(32))
        alone = random_layers(32, [10], n_draws=50, seed=3)
        assert alone["removed"].tolist() == frame["removed"].tolist()[50:]
        assert not random_layers(32, [10], seed=4)["removed"].equals(
            random_layers(32, [10], seed=3)["removed"]
        )

    @pytest.mark.parametrize("strategy", [deepest_blocks, shallowest_blocks, random_layers])
    @pytest.mark.parametrize("size", [0, 8])
    def test_sizes_out_of_range(self, strategy, size):
        with pytest.raises(
            ValueError, match=f"size must be between 1 and 7 for a model of 8 layers, got {size}"
        ):
            strategy(8, [size])

    def test_n_draws(self):
        with pytest.raises(ValueError, match="n_draws must be a whole number of at least 1, got 0"):
            random_layers(8, [2], n_draws=0)

    def test_all_in_one_frame(self):
        frame = removal_strategies(distance_frame(), [2, 5], n_draws=3)
        counts = frame.groupby("strategy").size().to_dict()
        assert counts == {"best": 2, "deepest": 2, "deepest with last": 2, "random": 6, "shallowest": 2}
        assert all(
            len(parse_layers(row.removed)) == row.size_
            for row in frame.rename(columns={"size": "size_"}).itertuples()
        )
        assert removal_strategies(distance_frame())["size"].unique().tolist() == list(range(1, 8))


class TestGreedy:
    def test_a_frame_goes_at_once(self):
        influence = pd.DataFrame({"layer": range(5), "influence": [0.5, 0.1, 0.3, 0.2, 0.9]})
        frame = greedy_layers(influence, [1, 3])
        assert frame["removed"].tolist() == ["1", "1-3"]
        assert frame["order"].tolist() == ["1", "1 3 2"]
        assert frame["strategy"].unique().tolist() == ["one-shot"]

    def test_high_similarity_goes_first(self):
        similarity = pd.DataFrame({"layer": range(4), "similarity": [0.2, 0.9, 0.5, 0.99]})
        assert greedy_layers(similarity, [2])["order"].tolist() == ["3 1"]

    def test_a_function_is_asked_again_after_each_removal(self):
        asked = []

        def score(removed):
            asked.append(removed)
            left = [layer for layer in range(5) if layer not in removed]
            # once layer 1 is gone its neighbours become dear, as they do in a model
            costs = [layer + 10 * (1 in removed and layer in (0, 2)) for layer in left]
            return pd.DataFrame({"layer": left, "damage": [9, *costs[1:]] if not removed else costs})

        frame = greedy_layers(score, [2, 3])
        assert asked == [(), (1,), (1, 3)]
        assert frame["order"].tolist() == ["1 3", "1 3 4"]
        assert frame["removed"].tolist() == ["1,3", "1,3-4"]
        assert frame["start"].isna().all()

    def test_blocks_of_one_count_as_layers(self):
        frame = distance_frame(5)
        single = frame[frame["size"] == 1].sort_values("distance")["start"]
        assert greedy_layers(frame, [2])["order"].tolist() == [" ".join(str(s) for s in single[:2])]

    def test_errors(self):
        influence = pd.DataFrame({"layer": range(5), "influence": range(5)})
        with pytest.raises(ValueError, match="size must be between 1 and 4 for a model of 5 layers, got 5"):
            greedy_layers(influence, [5])
        with pytest.raises(ValueError, match="a metric must be a frame with layer"):
            greedy_layers(influence.drop(columns="influence"), [1])


def test_needs_no_torch():
    rooms = "workbench.distances.blocks, workbench.distances.stability"
    code = f"import sys, {rooms}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_frame_of_chosen_blocks_takes_its_layers_from_its_provenance():
    chosen = pd.DataFrame({"start": [2, 1, 3], "size": [1, 2, 2], "distance": [0.1, 0.2, 0.3]})
    chosen.attrs["model"] = {"kept_layers": [0, 1, 2, 3, 4]}
    assert best_blocks(chosen, [2])["removed"].tolist() == ["1-2"]

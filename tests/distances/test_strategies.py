from __future__ import annotations

import pandas as pd
import pytest
from frames import random_distances

import workbench as wb
from workbench.distances.blocks import parse_layers
from workbench.distances.strategies import (
    deepest_blocks,
    greedy_layers,
    random_layers,
    removal_strategies,
    shallowest_blocks,
)


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
        with pytest.raises(ValueError, match=f"size must be between 1 and 7, below the depth, got {size}"):
            strategy(8, [size])

    def test_n_draws(self):
        with pytest.raises(ValueError, match="n_draws must be a whole number >= 1, got 0"):
            wb.random_layers(8, [2], n_draws=0)

    def test_all_in_one_frame(self):
        frame = removal_strategies(random_distances(), [2, 5], n_draws=3)
        counts = frame.groupby("strategy").size().to_dict()
        assert counts == {"best": 2, "deepest": 2, "deepest with last": 2, "random": 6, "shallowest": 2}
        assert all(
            len(parse_layers(row.removed)) == row.size_
            for row in frame.rename(columns={"size": "size_"}).itertuples()
        )
        assert removal_strategies(random_distances())["size"].unique().tolist() == list(range(1, 8))


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
        frame = random_distances(5)
        single = frame[frame["size"] == 1].sort_values("distance")["start"]
        assert greedy_layers(frame, [2])["order"].tolist() == [" ".join(str(s) for s in single[:2])]

    def test_errors(self):
        influence = pd.DataFrame({"layer": range(5), "influence": range(5)})
        with pytest.raises(ValueError, match="size must be between 1 and 4, below the depth, got 5"):
            greedy_layers(influence, [5])
        with pytest.raises(ValueError, match="a metric needs layer"):
            greedy_layers(influence.drop(columns="influence"), [1])

"""Rank agreement: against scipy, and against values that are known."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from workbench import rank_agreement
from workbench.agreement import removal_cost, spearman, spearman_interval

RNG = np.random.default_rng(0)


class TestSpearmanInterval:
    @pytest.mark.parametrize("n", [3, 4, 5, 8])
    def test_few_pairs_in_one_order_are_not_certain(self, n):
        low, high = spearman_interval(np.tile(np.arange(n, dtype=float), (2, 1)))
        assert np.isnan([low, high]).all() if n < 4 else low < 0.9
        assert n < 4 or high == 1
        turned = spearman_interval(np.stack([np.arange(n), -np.arange(n)]).astype(float))
        np.testing.assert_allclose(turned, (-high, -low))

    @pytest.mark.parametrize("events", [0, 1, 2])
    def test_too_few_events_have_no_interval(self, events):
        wrong = np.zeros(80)
        wrong[:events] = 1
        assert np.isnan(spearman_interval(np.stack([RNG.random(80), wrong]))).all()
        assert np.isnan(spearman_interval(np.stack([-wrong, wrong]))).all()

    def test_rare_events_without_relation_hold_zero(self):
        rng = np.random.default_rng(0)
        wrong = np.r_[np.ones(4), np.zeros(76)]
        ends = np.array([spearman_interval(np.stack([rng.random(80), wrong])) for _ in range(300)])
        assert ((ends[:, 0] < 0) & (ends[:, 1] > 0)).mean() > 0.92

    @pytest.mark.parametrize(("n", "rho"), [(8, 0.0), (8, 0.8), (24, 0.5), (24, 0.8)])
    def test_covers_as_often_as_it_says(self, n, rho):
        rng = np.random.default_rng(n)
        true, hits = 6 / np.pi * np.arcsin(rho / 2), []
        for _ in range(400):
            first, noise = rng.normal(size=(2, n))
            low, high = spearman_interval(np.stack([first, rho * first + (1 - rho**2) ** 0.5 * noise]))
            hits.append(low <= true <= high)
        assert np.mean(hits) > 0.91


class TestSpearman:
    def test_agrees_with_scipy_with_ties(self):
        x, y = RNG.integers(5, size=40), RNG.integers(5, size=40)
        assert spearman(x, y) == pytest.approx(stats.spearmanr(x, y).statistic)

    def test_turned_round_and_constant(self):
        sides = ([1.0, 2, 3, 4], [4, 3, 2, 1], [5, 5, 5, 5])
        np.testing.assert_allclose([spearman(side, [10, 20, 30, 50]) for side in sides], [1, -1, np.nan])


def blocks(column, values, size=1):
    return pd.DataFrame({"start": range(len(values)), "size": size, column: values})


class TestRankAgreement:
    def test_similarity_counts_the_other_way_and_layers_are_blocks_of_one(self):
        distance = blocks("distance", [0.1, 0.3, 0.2, 0.4, 0.5])
        similarity = pd.DataFrame({"layer": range(5), "similarity": [0.9, 0.7, 0.8, 0.6, 0.5]})
        frame = rank_agreement({"angle": distance, "removal": similarity})
        assert frame[["first", "second", "n"]].values.tolist() == [["angle", "removal", 5]]
        assert frame.loc[0, "spearman"] == pytest.approx(1)
        assert frame.loc[0, "ci_high"] == pytest.approx(1)

    def test_only_shared_blocks_count_and_sizes_may_be_apart(self):
        distance = pd.concat([blocks("distance", RNG.random(9), size) for size in (1, 2, 3)])
        damage = pd.concat([blocks("damage", RNG.random(7), size) for size in (2, 3)])
        frame = rank_agreement({"d": distance, "loss": damage}, by="size")
        assert frame[["size", "n"]].values.tolist() == [[2, 7], [3, 7]]
        for size, rho in zip(frame["size"], frame["spearman"], strict=True):
            one, two = (f[f["size"] == size].iloc[:7, 2] for f in (distance, damage))
            assert rho == pytest.approx(stats.spearmanr(one, two).statistic)
        pd.testing.assert_frame_equal(rank_agreement({"d": distance, "loss": damage}), frame)
        together = rank_agreement({"d": distance, "loss": damage}, by=None)
        assert together.loc[0, "n"] == 14
        assert "size" not in together
        assert together.loc[0, "ci_low"] <= together.loc[0, "spearman"] <= together.loc[0, "ci_high"]

    def test_sizes_are_never_pooled_without_being_asked(self):
        """Two metrics that agree on nothing but that more layers are worse."""
        rng = np.random.default_rng(2)
        parts = [
            [blocks(name, size + rng.random(12), size) for size in (1, 2, 4, 8)]
            for name in ("distance", "damage")
        ]
        frames = {"d": pd.concat(parts[0]), "loss": pd.concat(parts[1])}
        assert rank_agreement(frames, by=None)["spearman"].item() > 0.85
        apart = rank_agreement(frames)
        assert apart["size"].tolist() == [1, 2, 4, 8]
        assert apart["spearman"].abs().max() < 0.6
        assert (apart["ci_low"] < 0).all()

    def test_every_pair(self):
        frames = {name: blocks("influence", RNG.random(6)) for name in "abc"}
        agreement = rank_agreement(frames)
        assert list(zip(agreement["first"], agreement["second"], strict=True)) == [
            ("a", "b"),
            ("a", "c"),
            ("b", "c"),
        ]

    def test_too_few_or_constant_blocks_are_nan_not_certainty(self):
        two = {"a": blocks("distance", [0.1, 0.2]), "b": blocks("damage", [1, 2])}
        assert rank_agreement(two)[["spearman", "ci_low", "ci_high"]].isna().all(axis=None)
        flat = {"a": blocks("distance", [0.1, 0.2, 0.3]), "b": blocks("damage", [1, 1, 1])}
        assert rank_agreement(flat)[["spearman", "ci_low", "ci_high"]].isna().all(axis=None)

    def test_scattered_sets_are_left_out(self):
        damage = blocks("damage", [1.0, 2.0]).astype({"start": "Int64"})
        damage.loc[2] = [pd.NA, 2, 3.0]
        assert len(removal_cost(damage)) == 2

    @pytest.mark.parametrize(
        ("frames", "message"),
        [
            ({"a": blocks("distance", [1])}, "at least two named frames"),
            ({"a": blocks("distance", [1]), "b": blocks("score", [1])}, "got .'start', 'size', 'score'."),
            ({"a": blocks("distance", [1]), "b": [1]}, "must be a mapping of names to pandas DataFrames"),
            ({"a": blocks("distance", [1], 1), "b": blocks("damage", [1], 2)}, "'a' and 'b' share none"),
        ],
    )
    def test_errors(self, frames, message):
        with pytest.raises(ValueError, match=message):
            rank_agreement(frames)

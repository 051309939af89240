from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from workbench.statistics import (
    bootstrap_interval,
    paired_difference,
    rank_agreement,
    removal_cost,
    resample_counts,
    spearman,
)

RNG = np.random.default_rng(0)


class TestBootstrapInterval:
    def test_agrees_with_scipy(self):
        values = RNG.gamma(2.0, size=60)
        low, high = bootstrap_interval(values, n_resamples=20000)
        expected = stats.bootstrap((values,), np.mean, method="percentile", n_resamples=20000, rng=1)
        assert low == pytest.approx(expected.confidence_interval.low, abs=0.02)
        assert high == pytest.approx(expected.confidence_interval.high, abs=0.02)

    def test_covers_the_truth_as_often_as_it_says(self):
        hits = 0
        for seed in range(300):
            low, high = bootstrap_interval(np.random.default_rng(seed).normal(size=60), n_resamples=500)
            hits += low <= 0 <= high
        assert 0.90 <= hits / 300 <= 0.98

    def test_the_same_seed_gives_the_same_interval_and_columns_share_resamples(self):
        values = RNG.normal(size=(20, 3))
        low, high = bootstrap_interval(values, seed=5)
        for column in range(3):
            one = bootstrap_interval(values[:, column], seed=5)
            np.testing.assert_allclose(one, (low[column], high[column]), rtol=1e-12)
        assert bootstrap_interval(values[:, 0], seed=6) != bootstrap_interval(values[:, 0], seed=5)

    def test_weights_are_those_of_a_ratio_of_sums(self):
        values, weights = RNG.normal(size=8), np.array([1, 5, 2, 0, 7, 3, 1, 1])
        counts = resample_counts(8)
        by_hand = [(c * weights * values).sum() / (c * weights).sum() for c in counts]
        np.testing.assert_allclose(
            bootstrap_interval(values, weights=weights), np.quantile(by_hand, [0.025, 0.975])
        )
        np.testing.assert_allclose(bootstrap_interval(values, weights=[3] * 8), bootstrap_interval(values))

    def test_one_value_gives_no_interval_and_equal_values_one_of_no_width(self):
        assert np.isnan(bootstrap_interval([0.3])).all()
        np.testing.assert_allclose(bootstrap_interval([0.3, 0.3]), (0.3, 0.3))

    @pytest.mark.parametrize(
        ("values", "options", "message"),
        [
            ([], {}, "values must be .* at least one"),
            ([1.0, np.nan], {}, "values must be finite, got 1 that are not"),
            ([1.0, 2.0], {"confidence": 1.0}, "confidence must be between 0 and 1, got 1.0"),
            ([1.0, 2.0], {"n_resamples": 0}, "n_resamples must be a whole number >= 1, got 0"),
            ([1.0, 2.0], {"weights": [1]}, "weights must be 2 numbers"),
            ([1.0, 2.0], {"weights": [0, 0]}, "not all 0"),
            ([1.0, 2.0], {"weights": [-1, 2]}, "weights must be 2 numbers >= 0"),
        ],
    )
    def test_errors(self, values, options, message):
        with pytest.raises(ValueError, match=message):
            bootstrap_interval(values, **options)


class TestPairedDifference:
    def test_is_the_exact_mcnemar_test_for_right_and_wrong(self):
        first = np.array([1] * 30 + [0] * 20)
        second = np.array([1] * 22 + [0] * 8 + [1] * 2 + [0] * 18)
        result = paired_difference(first, second)
        # the discordant items are 8 and 2: the two-sided binomial tail by hand
        assert result["p_value"] == pytest.approx(2 * sum([1, 10, 45]) / 2**10)
        assert (result["higher"], result["lower"], result["ties"], result["n"]) == (2, 8, 40, 50)
        assert result["difference"] == pytest.approx(-6 / 50)
        assert result["ci_low"] < -6 / 50 < result["ci_high"]

    def test_no_difference(self):
        result = paired_difference([1, 0, 1], [1, 0, 1])
        assert result["p_value"] == 1
        assert (result["difference"], result["ci_low"], result["ci_high"]) == (0, 0, 0)

    def test_items_must_match(self):
        with pytest.raises(ValueError, match="one value for each item, got 2 and 3"):
            paired_difference([1, 0], [1, 0, 1])


class TestSpearman:
    def test_agrees_with_scipy_with_ties(self):
        x, y = RNG.integers(5, size=40), RNG.integers(5, size=40)
        assert spearman(x, y) == pytest.approx(stats.spearmanr(x, y).statistic)

    def test_rows_and_constants(self):
        x = np.array([[1.0, 2, 3, 4], [4, 3, 2, 1], [5, 5, 5, 5]])
        np.testing.assert_allclose(spearman(x, np.tile([10.0, 20, 30, 50], (3, 1))), [1, -1, np.nan])


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
        together = rank_agreement({"d": distance, "loss": damage})
        assert together.loc[0, "n"] == 14
        assert "size" not in together
        assert together.loc[0, "ci_low"] <= together.loc[0, "spearman"] <= together.loc[0, "ci_high"]

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
            ({"a": blocks("distance", [1]), "b": [1]}, "got list"),
            ({"a": blocks("distance", [1], 1), "b": blocks("damage", [1], 2)}, "'a' and 'b' share none"),
        ],
    )
    def test_errors(self, frames, message):
        with pytest.raises(ValueError, match=message):
            rank_agreement(frames)

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy import stats

from workbench import bootstrap_interval, holm, paired_difference
from workbench.statistics import resample_counts

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
        values, weights = RNG.normal(size=80), RNG.integers(1, 9, size=80)
        counts = resample_counts(80)
        by_hand = [(c * weights * values).sum() / (c * weights).sum() for c in counts]
        np.testing.assert_allclose(
            bootstrap_interval(values, weights=weights), np.quantile(by_hand, [0.025, 0.975])
        )
        for n in (8, 80):
            some = values[:n]
            np.testing.assert_allclose(
                bootstrap_interval(some, weights=[3] * n), bootstrap_interval(some), atol=1e-12
            )
            # a unit of no weight is no unit
            more = bootstrap_interval([*some, 50.0], weights=[1] * n + [0])
            np.testing.assert_allclose(more, bootstrap_interval(some), atol=1e-12)

    @pytest.mark.parametrize("n", [2, 3, 5, 10, 24, 40])
    def test_few_units_cover_as_often_as_they_say(self, n):
        rng = np.random.default_rng(n)
        for draws, mean, least in (
            (rng.normal(size=(n, 1500)), 0, 0.925),
            (rng.exponential(size=(n, 1500)), 1, 0.86 if n < 4 else 0.91),
        ):
            low, high = bootstrap_interval(draws, n_resamples=600)
            assert least < ((low <= mean) & (mean <= high)).mean() < 0.98

    def test_few_weighted_units_cover_too(self):
        rng = np.random.default_rng(0)
        hits = []
        for _ in range(250):
            weights = rng.integers(20, 500, size=8)
            low, high = bootstrap_interval(rng.normal(size=8), weights=weights, n_resamples=300)
            hits.append(low <= 0 <= high)
        assert 0.89 < np.mean(hits) < 0.99

    def test_values_of_one_group_are_one_unit(self):
        values = RNG.normal(size=(7, 2))
        copied = np.tile(values, (30, 1))
        groups = np.tile([f"text {i}" for i in range(7)], 30)
        for found, expected in zip(
            bootstrap_interval(copied, groups=groups), bootstrap_interval(values), strict=True
        ):
            np.testing.assert_allclose(found, expected)
        weights = [1, 2, 3, 4]
        mean = bootstrap_interval([1.0, 4.0, 2.0, 8.0], weights=weights, groups=[0, 0, 1, 1])
        np.testing.assert_allclose(mean, bootstrap_interval([3.0, 38 / 7], weights=[3, 7]))
        assert np.isnan(bootstrap_interval([1.0, 2.0, 3.0], groups=["a", "a", "a"])).all()
        with pytest.raises(ValueError, match="groups must name the unit of each of 2 values, got 1"):
            bootstrap_interval([1.0, 2.0], groups=[0])

    def test_what_has_no_spread_gives_no_interval(self):
        assert np.isnan(bootstrap_interval([0.3])).all()
        assert np.isnan(bootstrap_interval([0.3] * 9)).all()
        assert np.isnan(bootstrap_interval([0.1 + 0.2, 0.3] * 50)).all()  # rounding is no spread
        low, high = bootstrap_interval(np.stack([np.zeros(50), RNG.normal(size=50)], axis=1))
        assert np.isnan([low[0], high[0]]).all()
        assert low[1] < high[1]

    @pytest.mark.parametrize(("right", "n"), [(60, 60), (0, 60), (3, 4), (1, 24)])
    def test_right_and_wrong_answers_have_wilsons(self, right, n):
        found = bootstrap_interval([1.0] * right + [0.0] * (n - right))
        assert found == pytest.approx(tuple(stats.binomtest(right, n).proportion_ci(method="wilson")))
        assert found[0] < found[1]

    def test_cosines_and_differences_that_happen_to_be_0_or_1_are_no_answers(self):
        assert np.isnan(bootstrap_interval([1.0] * 9, bounds=(-1, 1))).all()
        assert np.isnan(bootstrap_interval([0.0] * 9, bounds=(0, np.inf))).all()
        low, high = bootstrap_interval([1.0] + [0.0] * 5, bounds=(-1, 1))
        assert low < 0 < high  # one of six moved: no evidence that others would
        assert bootstrap_interval([1.0, 0.0], bounds=(0, 1)) == bootstrap_interval([1.0, 0.0])

    def test_ends_stay_within_what_a_value_can_be(self):
        values = [0.99, 0.98, 0.7]
        assert bootstrap_interval(values)[1] > 1
        low, high = bootstrap_interval(values, bounds=(-1, 1))
        assert (low, high) == (bootstrap_interval(values)[0], 1)
        assert np.isnan(bootstrap_interval([0.5], bounds=(0, 1))).all()

    def test_rare_values_widen_and_never_vanish(self):
        low, high = bootstrap_interval([0.0] * 23 + [2.5])
        assert low < 2.5 / 24 < high
        assert np.isfinite([low, high]).all()

    @pytest.mark.parametrize(
        ("values", "options", "message"),
        [
            ([], {}, "values must be .* at least one"),
            ([1.0, np.nan], {}, "values must be finite, got 1 that are not"),
            ([1.0, 2.0], {"confidence": "0.9"}, "confidence must be between 0 and 1, got '0.9'"),
            ([1.0, 2.0], {"confidence": np.nan}, "confidence must be between 0 and 1, got nan"),
            ([1.0, 2.0], {"seed": -1}, "seed must be a whole number >= 0, got -1"),
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
        assert result["difference"] == 0
        assert -1 <= result["ci_low"] < 0 < result["ci_high"] <= 1

    @pytest.mark.parametrize(("n", "loss"), [(100, 0.01), (40, 0.02), (100, 0.0), (300, 0.02)])
    def test_few_flips_cover_the_true_loss(self, n, loss):
        rng = np.random.default_rng(n)
        found = [paired_difference(np.ones(n), rng.random(n) >= loss) for _ in range(400)]
        assert all(one["ci_low"] < one["ci_high"] for one in found)
        assert np.mean([one["ci_low"] <= -loss <= one["ci_high"] for one in found]) >= 0.92

    def test_many_flips_cover_as_often_as_they_say(self):
        rng = np.random.default_rng(3)
        hits = []
        for _ in range(500):
            kind = rng.choice([0, 1, 2, 3], p=[0.5, 0.2, 0.1, 0.2], size=60)
            found = paired_difference(np.isin(kind, (0, 1)), np.isin(kind, (0, 2)))
            hits.append(found["ci_low"] <= -0.1 <= found["ci_high"])
        assert 0.92 < np.mean(hits) < 0.98

    def test_other_values_without_a_difference_support_no_interval(self):
        result = paired_difference([0.2, 0.5, 0.7], [0.2, 0.5, 0.7])
        assert np.isnan([result["ci_low"], result["ci_high"]]).all()
        assert np.isnan(paired_difference([1], [0])["ci_low"])
        moved = paired_difference([0.2, 0.5, 0.7, 0.1], [0.3, 0.4, 0.9, 0.2])
        assert moved["ci_low"] < moved["difference"] < moved["ci_high"]
        assert paired_difference([0.0, 0.0], [1.0, 1.0])["ci_high"] == 1

    def test_the_p_value_is_of_the_mean_and_not_of_how_many_are_above(self):
        """26 of 30 values rise a little, the others fall far: what is tested is what is printed."""
        change = np.concatenate([RNG.uniform(0.01, 0.02, 26), [-2.0, -1.5, -1.0, -0.5]])
        result = paired_difference(np.zeros(30), change)
        assert result["difference"] < 0 and (result["higher"], result["lower"]) == (26, 4)
        assert result["p_value"] > 0.05
        clear = paired_difference(np.zeros(60), RNG.normal(1, 1, 60))
        assert clear["p_value"] == pytest.approx(0.0002) and clear["ci_low"] > 0

    def test_all_signs_of_few_units_are_tried_and_units_are_weighted(self):
        change, weight = RNG.normal(size=7), RNG.uniform(1, 9, 7)
        result = paired_difference(np.zeros(7), change, weights=weight)
        sums = [np.dot(signs, change * weight) for signs in itertools.product((-1, 1), repeat=7)]
        mean = change @ weight / weight.sum()
        assert result["difference"] == pytest.approx(mean)
        assert result["p_value"] == pytest.approx(np.mean(np.abs(sums) >= abs(change @ weight) - 1e-12))
        ends = bootstrap_interval(change, weights=weight)
        assert (result["ci_low"], result["ci_high"]) == pytest.approx(ends)

    def test_items_of_one_group_are_one_unit(self):
        change = RNG.normal(size=6)
        names, copies = np.repeat(np.arange(6), 15), np.repeat(change, 15)
        alone = paired_difference(np.zeros(6), change)
        assert paired_difference(np.zeros(90), copies, groups=names) == pytest.approx(alone)
        assert paired_difference(np.zeros(90), copies)["p_value"] < alone["p_value"]

    def test_chance_is_called_a_difference_as_often_as_the_level_says(self):
        rng = np.random.default_rng(3)
        found = [paired_difference(np.zeros(12), rng.exponential(1, 12) - 1)["p_value"] for _ in range(300)]
        even = [paired_difference(np.zeros(12), rng.normal(size=12))["p_value"] for _ in range(300)]
        assert np.mean(np.array(even) < 0.05) < 0.08 and np.mean(np.array(found) < 0.05) < 0.12

    def test_items_must_match(self):
        with pytest.raises(ValueError, match="one value for each item, got 2 and 3"):
            paired_difference([1, 0], [1, 0, 1])


class TestHolm:
    def test_is_the_step_down_of_bonferroni(self):
        p = RNG.random(24) ** 3
        order, expected, most = np.argsort(p), np.empty(24), 0.0
        for rank, where in enumerate(order):
            most = max(most, (24 - rank) * p[where])
            expected[where] = min(1, most)
        np.testing.assert_allclose(holm(p), expected)
        assert (holm(p) >= p).all()

    def test_holds_the_family_wise_level(self):
        rng = np.random.default_rng(0)
        errors = [(holm(rng.random(24)) < 0.05).any() for _ in range(1500)]
        assert np.mean(errors) == pytest.approx(0.05, abs=0.02)

    def test_no_test_is_none_and_what_is_no_p_value_is_refused(self):
        np.testing.assert_allclose(holm([0.02, np.nan, 0.04]), [0.04, np.nan, 0.04])
        assert holm([]).shape == (0,)
        assert np.isnan(holm([np.nan])).all()
        assert holm([0.7, 0.6]).tolist() == [1, 1]
        for wrong in (-0.1, 1.5):
            with pytest.raises(ValueError, match="p_values must be between 0 and 1"):
                holm([0.2, wrong])


def test_one_unit_that_differs_tells_nothing():
    assert paired_difference([0.25, 0.5, 0.5], [0.75, 0.5, 0.5])["p_value"] == 1.0

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from workbench.distances.stability import calibration_ablation, mean_distances, pick_stability


def angle_frame(n_texts=40, n_layers=6, noise=0.02, seed=0):
    """Angles of a model whose layers 3 and 4 do least, with noise from text to text."""
    rng = np.random.default_rng(seed)
    strength = np.array([0.3, 0.2, 0.15, 0.05, 0.06, 0.25])[:n_layers]
    rows = [
        (text, start, size, strength[start : start + size].sum() / 3 + noise * rng.normal())
        for text in range(n_texts)
        for size in range(1, n_layers + 1)
        for start in range(n_layers - size + 1)
    ]
    return pd.DataFrame(rows, columns=["text", "start", "size", "angle"])


class TestMeanDistances:
    def test_is_the_mean_over_texts(self):
        angles = angle_frame()
        frame = mean_distances(angles)
        expected = angles.groupby(["size", "start"])["angle"].agg(["mean", "std", "count"]).reset_index()
        np.testing.assert_allclose(frame["distance"], expected["mean"])
        np.testing.assert_allclose(frame["std"], expected["std"])
        assert frame["n_texts"].tolist() == expected["count"].tolist()
        assert frame[["start", "size"]].equals(expected[["start", "size"]])

    def test_interval_shrinks_with_texts_and_widens_with_confidence(self):
        few, many = mean_distances(angle_frame(10)), mean_distances(angle_frame(160))
        width = [(frame["ci_high"] - frame["ci_low"]).mean() for frame in (few, many)]
        assert width[1] < width[0] / 3
        wide = mean_distances(angle_frame(10), confidence=0.99)
        assert (wide["ci_high"] - wide["ci_low"]).mean() > width[0]

    def test_order_of_rows_does_not_matter(self):
        angles = angle_frame()
        shuffled = angles.sample(frac=1, random_state=1)
        pd.testing.assert_frame_equal(mean_distances(shuffled), mean_distances(angles))

    def test_errors(self):
        with pytest.raises(ValueError, match="angles needs the columns"):
            mean_distances(angle_frame().drop(columns="text"))
        with pytest.raises(ValueError, match="one angle for every text and block, got some missing"):
            mean_distances(angle_frame().drop(index=5))


class TestPickStability:
    def test_a_clear_pick_is_stable(self):
        frame = pick_stability(angle_frame(noise=0.001))
        assert (frame.loc[frame["size"] > 1, "stability"] == 1).all()
        assert frame.loc[frame["size"] == 2, "removed"].item() == "3-4"
        assert frame["runner_up"].isna()[1:].all()

    def test_is_the_share_of_resamples_that_pick_the_same(self):
        angles = angle_frame(n_texts=12, noise=0.05)
        frame = pick_stability(angles, [1], n_resamples=4000).iloc[0]
        table = angles[angles["size"] == 1].pivot(index="text", columns="start", values="angle").to_numpy()
        rng = np.random.default_rng(7)
        picks = [table[rng.integers(12, size=12)].mean(axis=0).argmin() for _ in range(4000)]
        shares = np.bincount(picks, minlength=6) / 4000
        assert 0.4 < frame["stability"] < 0.99
        assert frame["stability"] == pytest.approx(shares[frame["start"]], abs=0.04)
        assert frame["runner_up"] == np.argsort(shares)[-2 if shares.argmax() == frame["start"] else -1]

    def test_sizes_and_one_text(self):
        assert pick_stability(angle_frame(), [4, 2])["size"].tolist() == [2, 4]
        assert pick_stability(angle_frame(1))["stability"].isna().all()
        with pytest.raises(ValueError, match="size must be between 1 and 5 for a model of 6 layers, got 6"):
            pick_stability(angle_frame(), [6])


class TestCalibrationAblation:
    def test_is_table_7(self):
        sets = {name: mean_distances(angle_frame(seed=seed)) for seed, name in enumerate(("C4", "RedPajama"))}
        frame = calibration_ablation(sets, [2, 4])
        assert list(frame)[:5] == ["size", "calibration", "start", "removed", "distance"]
        assert frame[["size", "calibration"]].values.tolist() == [
            [2, "C4"],
            [2, "RedPajama"],
            [4, "C4"],
            [4, "RedPajama"],
        ]
        assert frame.loc[0, "removed"] == "3-4"
        assert frame.loc[0, "distance"] == sets["C4"].query("size == 2")["distance"].min()
        assert {"ci_low", "ci_high", "n_texts"} <= set(frame)
        assert calibration_ablation(sets)["size"].unique().tolist() == [1, 2, 3, 4, 5]

    def test_errors(self):
        small = mean_distances(angle_frame(n_layers=5))
        with pytest.raises(ValueError, match="at least one named frame"):
            calibration_ablation({})
        with pytest.raises(ValueError, match="must all come from one model"):
            calibration_ablation({"a": small, "b": mean_distances(angle_frame())})
        with pytest.raises(ValueError, match="size must be between 1 and 4 for a model of 5 layers, got 6"):
            calibration_ablation({"a": small}, [6])

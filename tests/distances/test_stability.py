from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

import workbench as wb
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
        with pytest.raises(ValueError, match="size must be between 1 and 5, below the depth, got 6"):
            pick_stability(angle_frame(), [6])


class TestOverEndPoints:
    """The same texts cut elsewhere: a point of each is drawn."""

    @staticmethod
    def by_hand(angles, picked, text_draws, rng, n=3000):
        table = angles.pivot(index=["text", "point"], columns="start", values="angle")
        points = [group.to_numpy() for _, group in table.groupby("text")]
        hits = 0
        for _ in range(n):
            drawn = rng.integers(len(points), size=len(points)) if text_draws else range(len(points))
            cut = [points[text][rng.integers(len(points[text]))] for text in drawn]
            hits += np.mean(cut, axis=0).argmin() == picked
        return hits / n

    @staticmethod
    def pointed(n_texts=9, n_points=(2, 6), seed=1):
        rng = np.random.default_rng(seed)
        rows = [
            (text, point, start, 1, 0.2 + 0.02 * (start != 1) * point + 0.1 * rng.normal())
            for text in range(n_texts)
            for point in range(n_points[text % len(n_points)])
            for start in range(3)
        ]
        return pd.DataFrame(rows, columns=["text", "point", "start", "size", "angle"])

    @pytest.mark.parametrize(("over", "text_draws"), [("endpoints", False), ("both", True)])
    def test_is_the_share_of_cuts_that_pick_the_same(self, over, text_draws):
        angles = self.pointed()
        found = pick_stability(angles, over=over, n_resamples=3000).iloc[0]
        expected = self.by_hand(angles, found["start"], text_draws, np.random.default_rng(8))
        assert 0.3 < found["stability"] < 0.97
        assert found["stability"] == pytest.approx(expected, abs=0.04)
        assert found["over"] == over

    def test_over_texts_a_text_keeps_all_its_points(self):
        angles = self.pointed()
        means = angles.groupby(["text", "start", "size"], as_index=False)["angle"].mean()
        with_points, without = pick_stability(angles), pick_stability(means)
        pd.testing.assert_frame_equal(with_points, without)
        pd.testing.assert_frame_equal(mean_distances(angles), mean_distances(means))

    def test_other_picks_can_be_judged(self):
        angles = self.pointed()
        shares = [
            pick_stability(angles, over="both", picks=pd.DataFrame({"size": [1], "start": [start]}))
            for start in range(3)
        ]
        assert [one["start"].item() for one in shares] == [0, 1, 2]
        assert sum(one["stability"].item() for one in shares) == pytest.approx(1)
        with pytest.raises(ValueError, match="picks must name one block of size 1 that angles hold, got"):
            pick_stability(angles, picks=pd.DataFrame({"size": [1], "start": [7]}))

    def test_one_point_a_text_cannot_be_cut_elsewhere(self):
        assert pick_stability(self.pointed(n_points=(1,)), over="endpoints")["stability"].isna().all()
        assert pick_stability(self.pointed(n_points=(1,)), over="both")["stability"].notna().all()
        assert pick_stability(self.pointed(n_texts=1), over="both")["stability"].isna().all()

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"over": "points"}, "over must be one of texts, endpoints, both, got 'points'"),
            ({"over": "endpoints"}, r"needs block_angles\(position='random'\)"),
            ({"n_resamples": 0}, "n_resamples must be a whole number >= 1, got 0"),
            ({"seed": -1}, "seed must be a whole number >= 0, got -1"),
        ],
    )
    def test_errors(self, options, message):
        with pytest.raises(ValueError, match=message):
            wb.pick_stability(angle_frame(), **options)


def test_copies_of_a_text_are_one_unit():
    angles = angle_frame(n_texts=6, noise=0.05)
    copied = pd.concat([angles.assign(text=angles["text"] + 6 * k) for k in range(5)], ignore_index=True)
    copied.attrs["first_of"] = list(range(6)) * 5
    once, often = mean_distances(angles), mean_distances(copied)
    np.testing.assert_allclose(often["ci_low"], once["ci_low"])
    np.testing.assert_allclose(often["distance"], once["distance"])
    pd.testing.assert_series_equal(pick_stability(copied)["stability"], pick_stability(angles)["stability"])
    blind = mean_distances(copied.copy().pipe(lambda frame: pd.DataFrame(frame.to_dict("list"))))
    assert (blind["ci_high"] - blind["ci_low"]).mean() < (once["ci_high"] - once["ci_low"]).mean() / 2


def test_a_run_keeps_what_intervals_need(run):
    angles = angle_frame(n_texts=6, noise=0.05)
    copied = pd.concat([angles, angles.assign(text=angles["text"] + 6)], ignore_index=True)
    copied.attrs |= {"first_of": list(range(6)) * 2, "end_token": {"id": 3, "text": ".", "share": 0.5}}
    run.write("angles.csv", copied)
    kept = run.read("angles.csv")
    pd.testing.assert_frame_equal(mean_distances(kept), mean_distances(copied))
    assert mean_distances(kept).attrs["end_token"]["share"] == 0.5
    assert "by itself" in mean_distances(kept).attrs["interval"]


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
        with pytest.raises(ValueError, match="distances must be a mapping of names to pandas"):
            wb.calibration_ablation({})
        with pytest.raises(ValueError, match="must come from one model"):
            calibration_ablation({"a": small, "b": mean_distances(angle_frame())})
        with pytest.raises(ValueError, match="size must be between 1 and 4, below the depth, got 6"):
            calibration_ablation({"a": small}, [6])

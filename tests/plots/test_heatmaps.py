"""Heatmaps hold the frame's own numbers, in the right cells."""

from __future__ import annotations

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest
from frames import damage_frame, distance_frame

import workbench as plots
from workbench.distances.blocks import best_blocks, format_layers
from workbench.plots import axes
from workbench.widgets.picker import BlockPicker


def cells(fig: go.Figure, number: int = 0) -> dict[tuple[int, int], float]:
    """Return what a heatmap shows: (start, row) -> value."""
    trace = [trace for trace in fig.data if trace.type == "heatmap"][number]
    z = np.asarray(trace.z, dtype=float)
    return {(int(trace.x[j]), int(trace.y[i])): z[i, j] for i, j in np.argwhere(np.isfinite(z))}


def test_every_cell_of_the_heatmap_is_the_frames_own_number(distances):
    shown = cells(plots.distance_heatmap(distances.sample(frac=1, random_state=0)))
    assert shown == {(row.start, row.size): row.distance for row in distances.itertuples(index=False)}


def test_the_marks_are_the_best_blocks(distances):
    fig = plots.distance_heatmap(distances)
    best = best_blocks(distances)
    marks = next(trace for trace in fig.data if trace.name == "least of its size")
    assert list(marks.x) == list(best["start"])
    assert list(marks.y) == list(best["size"])
    assert not plots.distance_heatmap(distances, mark_best=False).data[1:]


def test_scales_start_at_zero_and_can_be_fixed(distances):
    trace = plots.distance_heatmap(distances).data[0]
    assert (trace.zmin, trace.zmax) == (0.0, distances["distance"].max())
    fixed = plots.distance_heatmap(distances, zmin=0.1, zmax=0.6).data[0]
    assert (fixed.zmin, fixed.zmax) == (0.1, 0.6)


def test_rescaling_stretches_each_size_to_zero_and_one(distances):
    shown = cells(plots.distance_heatmap(distances, rescale=True))
    for size in range(1, 7):
        values = [value for (_, row), value in shown.items() if row == size]
        assert (min(values), max(values)) == (0.0, 1.0)
    assert shown[(0, 7)] == 0.0


def test_sizes_that_were_not_measured_leave_their_rows_empty(damage):
    fig = plots.damage_heatmap(damage)
    assert fig.layout.yaxis.ticktext == ("1", "2", "4")
    four = damage[damage["size"] == 4].set_index("start")["damage"]
    shown = {start: 10**value for (start, row), value in cells(fig).items() if row == 4}
    assert shown == pytest.approx(four.to_dict())
    assert {row for _, row in cells(fig)} == {1, 2, 4}


def test_damage_is_coloured_by_decades_and_keeps_its_values(damage, tmp_path):
    damage = damage.assign(damage=damage["damage"].where(damage["start"] != 2, -0.01))
    trace = plots.damage_heatmap(damage, zmax=10).data[0]
    floor = axes.log_floor(damage["damage"])
    assert (trace.zmin, trace.zmax) == pytest.approx((np.log10(floor), 1))
    assert trace.colorbar.ticktext[0] == f"≤ {floor:g}" and floor < damage.query("damage > 0")["damage"].min()
    assert "damage (nats per token) -0.0100" in trace.text[0][2]
    (path,) = plots.save_figure(plots.damage_heatmap(damage), tmp_path / "damage.csv")
    written = pd.read_csv(path).query("trace == 0")
    assert sorted(written["z"]) == pytest.approx(sorted(damage["damage"]))
    with pytest.raises(ValueError, match="zmin must be above 0"):
        plots.damage_heatmap(damage, zmin=0)


def test_a_model_pruned_before_is_drawn_by_its_original_layers():
    distances = distance_frame(5)
    original = [0, 1, 4, 5, 7]
    fig = plots.distance_heatmap(distances.assign(start=[original[start] for start in distances["start"]]))
    assert "removes 1,4-5" in fig.data[0].text[2][1]
    assert {start for start, _ in cells(fig)} == set(original)


def test_the_hover_names_the_layers_and_the_interval(distances):
    row = distances[(distances["start"] == 2) & (distances["size"] == 3)].iloc[0]
    assert plots.distance_heatmap(distances).data[0].text[2][2] == (
        "start 2, size 3<br>removes 2-4<br>angular distance "
        f"{row['distance']:.4f} [{row['ci_low']:.4f}, {row['ci_high']:.4f}]"
    )


def test_a_chosen_block_is_framed_and_must_exist(distances):
    frame = plots.distance_heatmap(distances, chosen=(3, 2)).data[-1]
    assert (min(frame.x), max(frame.x), min(frame.y), max(frame.y)) == (2.5, 3.5, 1.5, 2.5)
    with pytest.raises(ValueError, match=r"a block must be .* got start 6, size 2"):
        plots.distance_heatmap(distances, chosen=(6, 2))


def test_distance_beside_damage_shows_the_same_blocks_twice(distances, damage):
    fig = plots.distance_beside_damage(distances, damage)
    left, right = cells(fig, 0), cells(fig, 1)
    assert left.keys() == right.keys()
    assert len(left) == len(damage)


def test_other_bad_frames_have_clear_errors(distances):
    with pytest.raises(ValueError, match="distances must be a pandas DataFrame, got "):
        plots.distance_heatmap([1])
    with pytest.raises(ValueError, match="at least one row"):
        plots.distance_heatmap(distances.head(0))
    with pytest.raises(ValueError, match=r"each \(start, size\) once, got \(0, 1\) again"):
        plots.distance_heatmap(pd.concat([distances, distances.head(1)]))
    with pytest.raises(ValueError, match="at least one block with a number in 'distance'"):
        plots.distance_heatmap(distances.assign(distance=np.nan))
    with pytest.raises(ValueError, match="must share blocks"):
        plots.distance_beside_damage(distances[distances["size"] == 1], damage_frame(distances, (2,)))


@pytest.mark.parametrize("value", ["distance", "damage"])
@pytest.mark.parametrize(("n_layers", "step"), [(80, 2), (70, 3), (16, 5)])
def test_rows_of_sizes_with_gaps_are_labelled_by_the_sizes(value, n_layers, step):
    frame = distance_frame(n_layers, n_texts=2).query("size % @step == 0")
    frame = frame.rename(columns={"distance": value})
    fig = getattr(plots, f"{value}_heatmap")(frame)
    trace, axis = fig.data[0], fig.layout.yaxis
    sizes = sorted(frame["size"].unique())
    assert list(trace.y) == sizes  # evenly spaced, so without empty rows
    assert 2 <= len(axis.tickvals) <= 25
    assert [int(text) for text in axis.ticktext] == list(axis.tickvals) and set(axis.tickvals) <= set(sizes)
    assert all(f"size {size}<br>" in row[0] for size, row in zip(sizes, trace.text, strict=True))


@pytest.mark.parametrize("kept", [[0, 1, 3, 4, 6, 7], [2, 3, 5, 9]])
def test_names_of_a_pruned_models_blocks_outlive_a_filter(kept, tmp_path):
    whole = distance_frame(len(kept))
    whole["start"] = [kept[start] for start in whole["start"]]
    whole.attrs["model"] = {"kept_layers": kept}
    damage = damage_frame(whole, sizes=(2,))
    damage.attrs = whole.attrs
    some = whole[(whole["size"] == 2) & (whole["distance"] > whole["distance"].min())]
    names = {start: format_layers(kept[kept.index(start) :][:2]) for start in some["start"]}
    for fig in (plots.distance_heatmap(some), plots.distance_beside_damage(some, damage)):
        notes = [note for note in fig.data[0].text[0] if isinstance(note, str)]
        assert [note.split("<br>")[1] for note in notes] == [
            f"removes {names[start]}" for start in sorted(names)
        ]
    points = plots.distance_vs_damage(some, damage).data[0].customdata
    assert {row[0] for row in points} == set(names.values())
    picker = BlockPicker(some)
    assert picker._layers == kept
    assert picker.keep()["removed"].item() == format_layers(picker.layers)
    assert list(picker.layers) == kept[kept.index(picker.start) :][:2]
    # without provenance nothing tells the layers: guessed they would be wrong, and then pruned
    bare = pd.DataFrame({"start": [0, 1, 3, 4, 6], "size": 2, "distance": [0.1, 0.2, 0.3, 0.4, 0.5]})
    with pytest.raises(ValueError, match="distances must have no gaps"):
        BlockPicker(bare)
